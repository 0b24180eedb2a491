"""Answers come to a whole end within their limit, whatever the model would like."""

import importlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.runtime.decoding.constraint import unpack_mask
from qwen_edge.runtime.structured import GrammarCompiler, OutputFormat
from qwen_edge.runtime.text_tokenizer import TextTokenizer

ROOT = Path(__file__).parents[3]
QWEN3_VOCAB_SIZE = 151_936
NUM_SCHEMAS = 16
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
TREE = {
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
            },
            "required": ["name", "children"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/tree",
}


@pytest.fixture(scope="module")
def schemas() -> Iterator[ModuleType]:
    """Return the maker of random schemas."""
    sys.path.insert(0, str(ROOT / "scripts"))
    yield importlib.import_module("random_schemas")
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture
def eos_ids(byte_tokenizer: TextTokenizer) -> tuple[int, ...]:
    """Return the ids that end an answer of the small tokenizer."""
    control = byte_tokenizer.added_tokens
    return control["<|im_end|>"], control["<|endoftext|>"]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), spare=st.integers(0, 120))
def test_blind_answers_are_whole_and_valid_within_every_limit_that_suffices(
    compiler: GrammarCompiler,
    byte_tokenizer: TextTokenizer,
    schemas: ModuleType,
    answer_blindly: Callable[..., list[int]],
    seed: int,
    spare: int,
) -> None:
    maker = schemas.SchemaMaker(seed)
    schema = maker.make()
    if not maker.is_supported:
        return
    grammar = compiler.compile(OutputFormat.json_schema(schema))
    control = byte_tokenizer.added_tokens
    ends = control["<|im_end|>"], control["<|endoftext|>"]
    assert grammar.shortest_tokens is not None
    limit = grammar.shortest_tokens + spare
    token_ids = answer_blindly(grammar, byte_tokenizer.vocab_size, ends, limit, seed)
    assert token_ids[-1] in ends
    check(schema, bytes(token_ids[:-1]).decode())


def check(schema: object, text: str) -> None:
    """Fail unless a text is JSON and valid by a schema; numbers are compared exactly."""
    read = {"parse_float": lambda digits: Decimal(digits.lower().partition("e")[0])}
    value = json.loads(text, **read)
    jsonschema.Draft202012Validator(json.loads(json.dumps(schema), **read)).validate(value)


def test_qwen3_answers_random_schemas(
    qwen3_compiler: GrammarCompiler,
    qwen3_tokenizer: TextTokenizer,
    schemas: ModuleType,
    answer_blindly: Callable[..., list[int]],
) -> None:
    """The small version of `scripts/check_schemas.py`, with the real vocabulary."""
    control = qwen3_tokenizer.added_tokens
    ends = control["<|im_end|>"], control["<|endoftext|>"]
    for seed in range(NUM_SCHEMAS):
        maker = schemas.SchemaMaker(seed)
        schema = maker.make()
        if not maker.is_supported:
            continue
        grammar = qwen3_compiler.compile(OutputFormat.json_schema(schema))
        assert grammar.shortest_tokens is not None
        limit = grammar.shortest_tokens + seed % 16
        token_ids = answer_blindly(grammar, QWEN3_VOCAB_SIZE, ends, limit, seed)
        assert token_ids[-1] in ends, schema
        check(schema, qwen3_tokenizer.decode(token_ids[:-1]))


def test_the_smallest_limit_gives_the_shortest_answer(
    compiler: GrammarCompiler,
    byte_tokenizer: TextTokenizer,
    eos_ids: tuple[int, ...],
    answer_blindly: Callable[..., list[int]],
) -> None:
    grammar = compiler.compile(OutputFormat.json_schema(TEXT))
    assert grammar.shortest_tokens is not None
    size = byte_tokenizer.vocab_size
    token_ids = answer_blindly(grammar, size, eos_ids, grammar.shortest_tokens, 0)
    assert bytes(token_ids[:-1]) == b'{"text": ""}'
    cut = answer_blindly(grammar, size, eos_ids, grammar.shortest_tokens - 1, 0)
    assert cut[-1] not in eos_ids  # nothing could help; the caller reports the limit


def test_with_room_left_nothing_is_taken_from_the_model(
    compiler: GrammarCompiler, byte_tokenizer: TextTokenizer
) -> None:
    constraint = compiler.compile(OutputFormat.json_schema(TREE)).start()
    for token_id in b'{"name": "a", "children": [':
        constraint.advance(token_id)
    free = unpack_mask(constraint.mask(10_000), byte_tokenizer.vocab_size)
    near = unpack_mask(constraint.mask(400), byte_tokenizer.vocab_size)
    assert np.array_equal(free, near)


def test_another_branch_is_begun_only_if_it_can_be_ended(compiler: GrammarCompiler) -> None:
    constraint = compiler.compile(OutputFormat.json_schema(TREE)).start()
    for token_id in b'{"name": "a", "children": [':
        constraint.advance(token_id)
    branch = len('{"name": "", "children": []}')
    rest = len("]}") + 1  # and the end
    assert (
        list(np.flatnonzero(unpack_mask(constraint.mask(rest + branch), 256)))
        == [
            ord("["),
            ord("]"),
            ord("{"),
        ][1:]
    )
    tight = unpack_mask(constraint.mask(rest + branch - 1), 256)
    assert list(np.flatnonzero(tight)) == [ord("]")]
    assert list(constraint.forced(rest))[:2] == list(b"]}")


def test_text_goes_on_until_it_has_to_be_closed(compiler: GrammarCompiler) -> None:
    constraint = compiler.compile(OutputFormat.json_schema(TEXT)).start()
    for token_id in b'{"text": "Once upon a time':
        constraint.advance(token_id)
    assert unpack_mask(constraint.mask(60), 256)[ord("x")]
    assert list(constraint.forced(60)) == []
    assert bytes(constraint.forced(3)[:2]) == b'"}'


@pytest.mark.parametrize(
    "output",
    [
        OutputFormat.regex(r"[a-z]+@[a-z]+\.(com|org)"),
        OutputFormat.regex(r"(\d{3}-){2}[A-Z]{4}"),
        OutputFormat.choice(["one", "two hundred and eleven", "three"]),
        OutputFormat.lark('start: item ("; " item)*\nitem: /[a-z]+/ " = " %json {"type": "array"}'),
    ],
    ids=lambda output: output.kind,
)
def test_other_forms_come_to_an_end_too(
    compiler: GrammarCompiler,
    byte_tokenizer: TextTokenizer,
    eos_ids: tuple[int, ...],
    answer_blindly: Callable[..., list[int]],
    output: OutputFormat,
) -> None:
    grammar = compiler.compile(output)
    assert grammar.shortest_tokens is not None
    pick = random.Random(0)
    for seed in range(12):
        limit = grammar.shortest_tokens + pick.randrange(60)
        token_ids = answer_blindly(grammar, byte_tokenizer.vocab_size, eos_ids, limit, seed)
        assert token_ids[-1] in eos_ids
