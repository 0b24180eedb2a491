"""The grammar of a call, compiled: what the template writes fits, token by token."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen_edge.export
from qwen_edge.errors import GrammarError
from qwen_edge.runtime.decoding.constraint import is_allowed, unpack_mask
from qwen_edge.runtime.structured.grammar import GrammarCompiler
from qwen_edge.runtime.structured.schema_closing import close_objects
from qwen_edge.runtime.text_tokenizer import TextTokenizer
from qwen_edge.runtime.tools.call_constraint import make_tool_constraint
from qwen_edge.runtime.tools.call_parser import ToolCallParser
from qwen_edge.runtime.tools.tool import read_tools
from qwen_edge.runtime.tools.tool_call import ToolCall

STRING = {"type": "string"}
TOOLS = read_tools(
    [
        {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": STRING, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
        {
            "name": "get_time",
            "parameters": {
                "properties": {
                    "unit": {"$ref": "#/$defs/unit"},
                    "about": {"enum": ["<tool_call>", "</tool_call>"]},
                },
                "required": ["unit"],
                "$defs": {"unit": {"enum": ["s", "ms"]}},
            },
        },
        {"name": "stop"},
    ]
)
CALLS = [
    '\n{"name": "get_weather", "arguments": {"city": "Köln \\"x\\""}}\n',
    '\n{"name": "get_weather", "arguments": {"city": "", "days": -12}}\n',
    '\n{"name": "get_time", "arguments": {"unit": "ms"}}\n',
    '\n{"name": "stop", "arguments": {}}\n',
]
NO_CALLS = [
    '{"name": "stop", "arguments": {}}\n',
    '\n{"name":"stop", "arguments": {}}\n',
    '\n{"name": "sto", "arguments": {}}\n',
    '\n{"name": "stop", "arguments": {"city": ""}}\n',
    '\n{"name": "get_weather", "arguments": {"days": 1}}\n',
    '\n{"name": "get_weather", "arguments": {"city": 1}}\n',
    '\n{"name": "get_weather", "arguments": {"city": "a", "days": "1"}}\n',
    '\n{"name": "get_weather", "arguments": {"city": "a", "land": "b"}}\n',
    '\n{"name": "get_time", "arguments": {"unit": "h"}}\n',
    '\n{"name": "get_time", "arguments": {"city": "a"}}\n',
    '\n{"arguments": {}, "name": "stop"}\n',
]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    """Return the demo model's tokenizer, which merges letters as Qwen3's does."""
    return TextTokenizer.load(Path(qwen_edge.export.__file__).parent / "demo" / "tokenizer.json")


@pytest.fixture(scope="module")
def start(tokenizer: TextTokenizer):  # type: ignore[no-untyped-def]
    """Return a maker of constraints; its arguments: tools, choice, is_parallel."""
    eos = tokenizer.added_tokens["<|im_end|>"]
    compiler = GrammarCompiler(tokenizer, vocab_size=1024, eos_token_ids=[eos])

    def make(tools=TOOLS, choice: str = "auto", *, is_parallel: bool = True):  # type: ignore[no-untyped-def]
        return make_tool_constraint(
            tools,
            choice,
            compiler,
            open_id=tokenizer.added_tokens["<tool_call>"],
            close_id=tokenizer.added_tokens["</tool_call>"],
            vocab_size=1024,
            stop_token_ids=[eos],
            is_parallel=is_parallel,
        )

    return make


def follow(constraint, token_ids: list[int]) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """Return how many of these ids are allowed one after the other, and how many are forced."""
    num_forced = 0
    forced: list[int] = []
    for index, token_id in enumerate(token_ids):
        forced = forced or list(constraint.forced(100))
        mask = constraint.mask(100)
        if mask is not None and not is_allowed(mask, token_id):
            assert not forced or forced[0] != token_id
            return index, num_forced
        if forced:
            assert forced.pop(0) == token_id
            num_forced += 1
        constraint.advance(token_id)
    return len(token_ids), num_forced


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_what_the_template_writes_fits(start, tokenizer, call: str, choice: str) -> None:  # type: ignore[no-untyped-def]
    """With the very ids that the rendered conversation has later."""
    text = f"<tool_call>{call}</tool_call>"
    twice = tokenizer.encode(f"{text}\n{text}", allow_special=True)
    num_allowed, num_forced = follow(start(choice=choice), twice)
    assert num_allowed == len(twice)
    assert num_forced > len(twice) / 3


@pytest.mark.parametrize("call", NO_CALLS)
def test_nothing_else_does(start, tokenizer, call: str) -> None:  # type: ignore[no-untyped-def]
    ids = tokenizer.encode(f"<tool_call>{call}</tool_call>", allow_special=True)
    num_allowed, _ = follow(start(), ids)
    assert num_allowed < len(ids) - 1


def test_a_named_tool_is_called_once(start, tokenizer) -> None:  # type: ignore[no-untyped-def]
    call = f"<tool_call>{CALLS[3]}</tool_call>"
    ids = tokenizer.encode(f"{call}<|im_end|>", allow_special=True)
    assert follow(start(choice="stop"), ids) == (len(ids), len(ids))
    other = tokenizer.encode("<tool_call>" + CALLS[0], allow_special=True)
    assert follow(start(choice="stop"), other)[0] < len(other)


def test_a_tag_in_a_text_is_spelled(start, tokenizer) -> None:  # type: ignore[no-untyped-def]
    """Its token would end the call in the conversation's rendered text, or begin another."""
    begin = '<tool_call>\n{"name": "get_time", "arguments": {"unit": "s", "about": "'
    ids = tokenizer.encode(begin, allow_special=True)
    spelled = tokenizer.encode('<tool_call>"}}\n')
    assert not set(spelled) & set(tokenizer.added_tokens.values())
    constraint = start()
    assert follow(constraint, ids)[0] == len(ids)
    assert not set(constraint.forced(100)) & set(tokenizer.added_tokens.values())
    assert follow(constraint, spelled)[0] == len(spelled)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_is_sampled_is_a_call(start, tokenizer, seed: int) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    constraint = start(choice="required", is_parallel=False)
    quote = tokenizer.encode('"')[0]
    eos = tokenizer.added_tokens["<|im_end|>"]
    parser = ToolCallParser([tool.name for tool in TOOLS])
    ids: list[int] = []
    while eos not in ids and len(ids) < 400:
        mask = constraint.mask(100)
        options = np.flatnonzero(unpack_mask(mask, 1024))
        forced = list(constraint.forced(100))
        # Random texts would hardly ever end.
        chosen = quote if quote in options and rng.random() < 0.5 else int(rng.choice(options))
        for token_id in forced or [chosen]:
            constraint.advance(token_id)
            ids.append(token_id)
    tags = {tokenizer.added_tokens[tag]: tag for tag in ("<tool_call>", "</tool_call>")}
    assert [tags[i] for i in ids if i in tags] == ["<tool_call>", "</tool_call>"]
    body = tokenizer.decode(ids[1 : ids.index(tokenizer.added_tokens["</tool_call>"])])
    pieces = [*parser.push_open(), *parser.push(body), *parser.push_close(), *parser.finish()]
    (call,) = [piece for piece in pieces if isinstance(piece, ToolCall)]
    assert call.name in ("get_weather", "get_time", "stop")
    assert not [piece for piece in pieces if isinstance(piece, str)]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"pattern": "(?=a)"}, "regex"),
        ({"$ref": "https://example.com/schema"}, "nothing is fetched"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ],
)
def test_a_schema_that_cannot_be_kept_to_names_its_tool(  # type: ignore[no-untyped-def]
    start, schema: Mapping[str, object], words: str
) -> None:
    bad = {"name": "bad", "parameters": {"type": "object", "properties": {"a": schema}}}
    with pytest.raises(GrammarError) as caught:
        start(read_tools([{"name": "good"}, bad]))
    assert "the tool 'bad'" in caught.value.problem
    assert words in caught.value.problem
    start(read_tools([{"name": "good"}, bad]), "good")


def test_objects_are_closed_where_that_changes_no_meaning() -> None:
    inner = {"type": "object", "properties": {"a": STRING}, "required": ["a"]}
    closed = {**inner, "additionalProperties": False}
    assert close_objects(inner) == closed
    assert inner == {"type": "object", "properties": {"a": STRING}, "required": ["a"]}
    nested = {
        "properties": {"list": {"items": inner}, "one": {"anyOf": [inner, {"type": "null"}]}},
        "$defs": {"part": inner},
    }
    found = close_objects(nested)
    assert found["properties"]["list"]["items"] == closed
    assert found["properties"]["one"]["anyOf"][0] == closed
    assert found["$defs"]["part"] == closed
    assert found["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"properties": {"a": STRING}, "additionalProperties": STRING},
        {"properties": {"a": STRING}, "additionalProperties": True},
        {"properties": {"a": STRING}, "patternProperties": {"b": STRING}},
        {"properties": {"a": STRING}, "required": ["b"]},
        {"properties": {"a": STRING}, "anyOf": [{"required": ["b"]}]},
        {"properties": {"a": STRING}, "anyOf": [{"properties": {"b": STRING}}]},
        {"properties": {"a": STRING}, "minProperties": 2},
        {"allOf": [{"properties": {"a": STRING}}, {"properties": {"b": STRING}}]},
        {"$ref": "#/$defs/a", "properties": {"b": STRING}, "$defs": {"a": {"properties": {}}}},
        {"properties": {"a": True}, "unevaluatedProperties": False},
    ],
    ids=json.dumps,
)
def test_other_objects_stay_as_they_are(schema: Mapping[str, object]) -> None:
    assert close_objects(schema) == schema
