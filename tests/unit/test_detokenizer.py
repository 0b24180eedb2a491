"""The detokenizer law: joined pieces equal `decode`, and no piece splits a character."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.runtime.detokenizer import Detokenizer, byte_of_character
from qwen_edge.runtime.text_tokenizer import TextTokenizer

CORPUS = [
    "Hello, world!",
    "Grüße aus Köln",
    "你好，世界！𠀀𠜎 こんにちは 안녕하세요",
    "👋🏽 👩‍👩‍👧‍👦 🏳️‍🌈 \U0001faf1🏿‍\U0001faf2🏻",
    "e\u0301 n\u0303 \u1112\u1161\u11ab a\u0300\u0316\u0301",
    "<think>\nhm\n</think>\n\n<tool_call>{}</tool_call>",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "\x00 \ufeff \ufffd \u200b \U0010ffff",
    "مرحبا שלום हिन्दी ไทย",
]


def pieces_of(tokenizer: TextTokenizer, ids: list[int]) -> list[str]:
    """Return what a stream shows for these ids, the last piece from `finish`."""
    detokenizer = Detokenizer(tokenizer.token_bytes)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


def reference(tokenizer: TextTokenizer, ids: list[int]) -> str:
    """Return what the library decodes."""
    return str(tokenizer._tokenizer.decode(ids, skip_special_tokens=True))


@pytest.mark.trust("T-GEN-04")
@pytest.mark.parametrize("text", CORPUS)
def test_joined_pieces_equal_decode(qwen3_tokenizer: TextTokenizer, text: str) -> None:
    ids = qwen3_tokenizer.encode(text, allow_special=True)
    pieces = pieces_of(qwen3_tokenizer, ids)
    assert "".join(pieces) == reference(qwen3_tokenizer, ids)
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


@pytest.mark.trust("T-GEN-04")
@pytest.mark.parametrize("text", CORPUS)
def test_single_bytes_never_show_half_a_character(
    qwen3_tokenizer: TextTokenizer, text: str
) -> None:
    """The vocabulary has a token for every byte, so every split inside a character occurs."""
    characters = {byte: character for character, byte in byte_of_character().items()}
    to_id = qwen3_tokenizer._tokenizer.token_to_id
    ids = [to_id(characters[byte]) for byte in text.encode("utf-8")]
    pieces = pieces_of(qwen3_tokenizer, ids)
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)


@settings(max_examples=300)
@given(ids=st.lists(st.integers(0, 152_000), max_size=30))
def test_random_ids_equal_decode(qwen3_tokenizer: TextTokenizer, ids: list[int]) -> None:
    assert "".join(pieces_of(qwen3_tokenizer, ids)) == reference(qwen3_tokenizer, ids)


@pytest.mark.trust("T-GEN-04")
@settings(max_examples=300)
@given(data=st.binary(max_size=24))
def test_random_bytes_equal_decode(qwen3_tokenizer: TextTokenizer, data: bytes) -> None:
    """Broken UTF-8 of every kind gives the same U+FFFD at the same places."""
    characters = {byte: character for character, byte in byte_of_character().items()}
    ids = [qwen3_tokenizer._tokenizer.token_to_id(characters[byte]) for byte in data]
    pieces = pieces_of(qwen3_tokenizer, ids)
    assert "".join(pieces) == reference(qwen3_tokenizer, ids)


@pytest.mark.trust("T-GEN-05")
def test_an_unfinished_character_at_the_end_is_one_replacement_character() -> None:
    detokenizer = Detokenizer(lambda token_id: "👋".encode()[token_id : token_id + 1])
    assert [detokenizer.push(i) for i in range(3)] == ["", "", ""]
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.finish() == ""


def test_the_byte_table_is_complete() -> None:
    table = byte_of_character()
    assert sorted(table.values()) == list(range(256))
    assert (table["Ġ"], table["Ċ"], table["a"]) == (0x20, 0x0A, 0x61)
