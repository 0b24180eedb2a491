"""Compiling: what is kept, what is refused, and by how many threads at once."""

import json
import threading
import time

import pytest

from qwen_edge.errors import GrammarError, UsageError
from qwen_edge.runtime.structured import GrammarCompiler, OutputFormat, grammar
from qwen_edge.runtime.structured.compile_thread import run_with_large_stack
from qwen_edge.runtime.text_tokenizer import TextTokenizer


def test_a_format_is_compiled_once(compiler: GrammarCompiler) -> None:
    first = compiler.compile(OutputFormat.regex("[0-9]{3}"))
    assert compiler.compile(OutputFormat.regex("[0-9]{3}")) is first
    assert compiler.compile(OutputFormat.regex("[0-9]{4}")) is not first


@pytest.mark.parametrize(
    ("output", "shortest"),
    [
        (OutputFormat.json_object(), 3),  # `{}` and the end
        (OutputFormat.regex("ab{3}"), 5),
        (OutputFormat.choice(["yes", "no"]), 3),
        (OutputFormat.lark('start: "(" start ")" | "x"'), 2),
        (OutputFormat.json_schema({"type": "string", "minLength": 4}), 7),
        (OutputFormat.json_schema({"const": "é"}), 5),
        (OutputFormat.json_schema(True), 2),
        (OutputFormat.json_schema({}), 2),
        (OutputFormat.lark('start: "<" %json {"const": 1} ">"'), 4),
    ],
    ids=lambda value: str(getattr(value, "text", value)),
)
def test_the_shortest_answer_is_known(
    compiler: GrammarCompiler, output: OutputFormat, shortest: int
) -> None:
    assert compiler.compile(output).shortest_tokens == shortest


@pytest.mark.parametrize(
    "output",
    [
        OutputFormat.json_schema(False),
        OutputFormat.json_schema({"type": 5}),
        OutputFormat.json_schema({"type": "string", "pattern": "(["}),
        OutputFormat.json_schema({"type": "string", "pattern": "(?=a)b"}),
        OutputFormat.json_schema({"not": {}}),
        OutputFormat.json_schema({"type": "integer", "minimum": 2, "maximum": 1}),
        OutputFormat.json_schema({"$ref": "#/$defs/missing"}),
        OutputFormat.json_schema({"$ref": "#"}),
        OutputFormat.regex("(["),
        OutputFormat.regex(r"[^\s\S]"),  # no text matches
        OutputFormat.lark("start"),
        OutputFormat.lark("start: start"),  # no text has an end
        OutputFormat.lark('start: %json {"$ref": "http://a/b"}'),
        OutputFormat.lark("start: %json {"),
    ],
    ids=lambda output: output.text,
)
def test_what_has_no_answers_is_refused_when_compiled(
    compiler: GrammarCompiler, output: OutputFormat
) -> None:
    with pytest.raises(GrammarError) as caught:
        compiler.compile(output)
    assert caught.value.fix


def test_schemas_in_a_grammar_get_the_same_layout(compiler: GrammarCompiler) -> None:
    schema = {
        "x-guidance": {"whitespace_pattern": "[ ]*", "lenient": True},
        "type": "object",
        "properties": {"a": {"type": "string", "format": "password"}, "b": {"const": 1}},
        "required": ["a", "b"],
    }
    constraint = compiler.compile(OutputFormat.lark(f"start: %json {json.dumps(schema)}")).start()
    assert constraint.count_valid(list(b'{"a": "x", "b": 1}')) == 18
    assert constraint.count_valid(list(b'{"a" : "x", "b": 1}')) == 4


@pytest.mark.trust("T-SRV-10")
def test_the_cache_is_bounded_in_number_and_bytes(
    byte_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = GrammarCompiler(byte_tokenizer, vocab_size=300, eos_token_ids=[258])
    formats = [OutputFormat.choice([f"text {number}"]) for number in range(40)]
    first = compiler.compile(formats[0])
    for output in formats:
        compiler.compile(output)
    assert len(compiler._grammars) == grammar.MAX_GRAMMARS
    assert compiler.compile(formats[0]) is not first
    monkeypatch.setattr(grammar, "MAX_CACHE_BYTES", 200_000)
    compiler.compile(OutputFormat.choice(["one more"]))
    assert 0 < compiler._cache_bytes <= 200_000
    assert len(compiler._grammars) == compiler._cache_bytes // 65_000


def test_answers_in_several_threads_do_not_mix(compiler: GrammarCompiler) -> None:
    texts = [f'{{"key": "{number}"}}'.encode() for number in range(8)]
    valid: dict[int, int] = {}

    def check(number: int) -> None:
        schema = {"type": "object", "properties": {"key": {"const": str(number)}}}
        for _ in range(20):
            constraint = compiler.compile(OutputFormat.json_schema(schema)).start()
            for token_id in texts[number]:
                constraint.mask(1_000)
                constraint.advance(token_id)
            valid[number] = valid.get(number, 0) + constraint.is_finished

    threads = [threading.Thread(target=check, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert valid == dict.fromkeys(range(8), 20)


@pytest.mark.trust("T-SRV-08")
def test_waiting_for_a_compilation_has_an_end(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "MAX_COMPILE_S", 0.02)
    monkeypatch.setattr(GrammarCompiler, "_compile", lambda *_: time.sleep(0.2))
    with pytest.raises(GrammarError, match=r"within 0\.02 s"):
        compiler.compile(OutputFormat.regex("never compiled before"))


def test_what_a_large_stack_was_given_to_raises_here() -> None:
    before = threading.stack_size()
    assert run_with_large_stack(lambda: 7, timeout_s=5) == 7
    with pytest.raises(KeyError):
        run_with_large_stack(lambda: {}["missing"], timeout_s=5)
    assert threading.stack_size() == before


@pytest.mark.parametrize("eos_token_ids", [[], [300], [-1]])
def test_an_answer_needs_an_end(byte_tokenizer: TextTokenizer, eos_token_ids: list[int]) -> None:
    with pytest.raises(UsageError):
        GrammarCompiler(byte_tokenizer, vocab_size=300, eos_token_ids=eos_token_ids)
