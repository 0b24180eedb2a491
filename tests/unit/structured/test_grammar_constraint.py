"""One answer and its grammar: masks, forced tokens, drafts, the end, and errors."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.errors import GrammarError
from qwen_edge.runtime.decoding.constraint import is_allowed, unpack_mask
from qwen_edge.runtime.structured import GrammarCompiler, GrammarConstraint, OutputFormat
from qwen_edge.runtime.text_tokenizer import TextTokenizer

MANY = 10_000
ORDER = {
    "type": "object",
    "properties": {
        "customer_identification_number": {"type": "integer"},
        "preferred_delivery_time_window": {"enum": ["morning", "afternoon"]},
        "list_of_article_names": {"type": "array", "items": {"type": "string"}},
    },
    "required": [
        "customer_identification_number",
        "preferred_delivery_time_window",
        "list_of_article_names",
    ],
    "additionalProperties": False,
}


def start(compiler: GrammarCompiler, schema: object) -> GrammarConstraint:
    """Return a constraint at the beginning of an answer to a schema."""
    return compiler.compile(OutputFormat.json_schema(schema)).start()  # type: ignore[arg-type]


def follow(constraint: GrammarConstraint, token_ids: list[int]) -> int:
    """Give a whole answer to a constraint, check that all is consistent, count forced tokens."""
    num_forced = place = 0
    while place < len(token_ids):
        assert constraint.count_valid(token_ids[place:]) == len(token_ids) - place
        forced = list(constraint.forced(MANY))
        assert forced == token_ids[place : place + len(forced)]
        num_forced += len(forced)
        for token_id in forced or token_ids[place : place + 1]:
            assert is_allowed(constraint.mask(MANY), token_id)
            constraint.advance(token_id)
        place += max(len(forced), 1)
    return num_forced


def test_forced_tokens_are_those_the_tokenizer_would_make(
    qwen3_compiler: GrammarCompiler, qwen3_tokenizer: TextTokenizer
) -> None:
    """What is forced equals the encoded text, so a model sees what it was trained on."""
    answer = {
        "customer_identification_number": 4821,
        "preferred_delivery_time_window": "afternoon",
        "list_of_article_names": ["größe 40, rot", 'a "quoted" one'],
    }
    text = json.dumps(answer, ensure_ascii=False)
    end = qwen3_tokenizer.added_tokens["<|im_end|>"]
    token_ids = [*qwen3_tokenizer.encode(text), end]
    constraint = start(qwen3_compiler, ORDER)
    assert follow(constraint, token_ids) > len(token_ids) / 3
    assert constraint.is_finished


@pytest.mark.parametrize("text", ["<think>", "a <tool_call> b", "</think>\n", "<|im_end|>", "<"])
def test_control_tokens_are_never_forced_or_allowed_for_text(
    qwen3_compiler: GrammarCompiler, qwen3_tokenizer: TextTokenizer, text: str
) -> None:
    """The engine forced `<|im_end|>` for a constant that holds these characters."""
    control = set(qwen3_tokenizer.added_tokens.values())
    constraint = start(qwen3_compiler, {"const": text})
    forced = list(constraint.forced(MANY))
    assert not control & set(forced)
    assert forced
    assert json.dumps(text).startswith(qwen3_tokenizer.decode(forced))
    constraint = start(qwen3_compiler, {"type": "string"})
    constraint.advance(qwen3_tokenizer.encode('"')[0])
    allowed = unpack_mask(constraint.mask(MANY), 151_936)
    assert allowed.sum() > 100_000
    assert not allowed[151_643:].any()


def test_the_end_is_forced_where_nothing_else_can_come(
    compiler: GrammarCompiler, byte_tokenizer: TextTokenizer
) -> None:
    control = byte_tokenizer.added_tokens
    end, other_end = control["<|im_end|>"], control["<|endoftext|>"]
    constraint = start(compiler, {"const": 12})
    assert list(constraint.forced(MANY)) == byte_tokenizer.encode("12")
    for token_id in byte_tokenizer.encode("12"):
        assert not constraint.is_finished
        constraint.advance(token_id)
    assert constraint.is_finished
    assert list(constraint.forced(MANY)) == [end]
    allowed = np.flatnonzero(unpack_mask(constraint.mask(MANY), byte_tokenizer.vocab_size))
    assert set(allowed) == {end, other_end}
    assert constraint.count_valid([end]) == 1
    constraint.advance(end)
    assert list(constraint.forced(MANY)) == []
    assert constraint.count_valid([end]) == 0


def test_where_the_answer_may_end_or_go_on_nothing_is_forced(
    compiler: GrammarCompiler, byte_tokenizer: TextTokenizer
) -> None:
    end = byte_tokenizer.added_tokens["<|im_end|>"]
    constraint = start(compiler, {"type": "integer"})
    constraint.advance(ord("1") if byte_tokenizer.encode("1") == [ord("1")] else 0)
    assert constraint.is_complete
    assert not constraint.is_finished
    assert list(constraint.forced(MANY)) == []
    assert is_allowed(constraint.mask(MANY), end)
    assert constraint.count_valid([*b"23", end]) == 3
    assert constraint.count_valid([*b"23", ord("x"), end]) == 2


@pytest.mark.parametrize("token_id", [ord("x"), 258, 10**9, -1])
def test_a_token_that_is_not_allowed_is_a_typed_error(
    compiler: GrammarCompiler, token_id: int
) -> None:
    constraint = start(compiler, {"type": "object"})
    assert constraint.count_valid([token_id]) == 0
    with pytest.raises(GrammarError, match="cannot come here"):
        constraint.advance(token_id)
    assert constraint.count_valid(list(b"{}")) == 2  # it still stands where it stood


def test_nothing_follows_the_end(compiler: GrammarCompiler, byte_tokenizer: TextTokenizer) -> None:
    constraint = start(compiler, {"type": "integer"})
    end = byte_tokenizer.added_tokens["<|im_end|>"]
    with pytest.raises(GrammarError, match="not whole"):
        constraint.advance(end)
    constraint.advance(ord("7"))
    constraint.advance(end)
    with pytest.raises(GrammarError, match="over"):
        constraint.advance(ord("7"))


def test_asking_changes_nothing_and_copies_go_their_own_way(compiler: GrammarCompiler) -> None:
    constraint = start(compiler, ORDER)
    copied = constraint.copy()
    before = constraint.mask(30).copy(), list(constraint.forced(30))
    for token_id in list(copied.forced(30)):
        copied.advance(token_id)
    copied.advance(ord("5"))
    constraint.count_valid(list(b'{"customer'))
    assert np.array_equal(constraint.mask(30), before[0])
    assert list(constraint.forced(30)) == before[1]


def test_white_space_cannot_go_on_for_ever(compiler: GrammarCompiler) -> None:
    for text in (b" {", b"{ ", b"{\n", b'{"customer_identification_number":  '):
        assert start(compiler, ORDER).count_valid(list(text)) < len(text)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_every_choice_can_be_answered_and_nothing_else(
    compiler: GrammarCompiler, texts: list[str]
) -> None:
    chosen = compiler.compile(OutputFormat.choice(texts))
    for text in texts:
        constraint = chosen.start()
        assert constraint.count_valid(list(text.encode())) == len(text.encode())
        for token_id in text.encode():
            constraint.advance(token_id)
        assert constraint.is_complete
    beginnings = {text.encode()[:1] for text in texts}
    allowed = np.flatnonzero(unpack_mask(chosen.start().mask(MANY), 256))
    assert {bytes([int(token_id)]) for token_id in allowed} == beginnings
