"""Ids from text: equal to the library's, and control ids only where they are allowed."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.errors import PackageError, UsageError
from qwen_edge.runtime.fake_model import make_fake_tokenizer
from qwen_edge.runtime.text_tokenizer import TextTokenizer

TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("  \n\ta'<|>")))


@pytest.mark.trust("T-TOK-06")
@settings(max_examples=200)
@given(text=TEXT)
def test_ordinary_encoding_equals_the_library(qwen3_tokenizer: TextTokenizer, text: str) -> None:
    expected = qwen3_tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
    if qwen3_tokenizer.has_added_token(text):
        return
    assert qwen3_tokenizer.encode(text) == expected
    assert qwen3_tokenizer._encode_ordinary(text) == expected


@pytest.mark.trust("T-TOK-06")
def test_ten_thousand_strings_have_the_library_s_ids(
    qwen3_tokenizer: TextTokenizer, cases: Any
) -> None:
    """Words, numbers, scripts, emoji and pure noise, put together at random."""
    generator = random.Random(6)
    scripts = [range(32, 127), range(0xC0, 0x250), range(0x400, 0x500), range(0x5D0, 0x5EB)]
    scripts += [range(0x4E00, 0x9FA0), range(0xAC00, 0xD7A0), range(0x1F300, 0x1FAF0)]
    scripts += [range(0x300, 0x370), range(0x200B, 0x2010), range(32), range(1, 0xD800)]
    pieces = [" the", "1234567", "\n\n", "don't", "\u200d", "    ", "def f(x):", "ä", "Straße"]
    compare = qwen3_tokenizer._tokenizer.encode
    for _ in range(10_000):
        letters = generator.choice(scripts)
        text = "".join(
            generator.choice(pieces) if generator.random() < 0.3 else chr(generator.choice(letters))
            for _ in range(generator.randrange(1, 24))
        )
        ids = qwen3_tokenizer.encode(text)
        assert ids == compare(text, add_special_tokens=False).ids, text
    cases(10_000)


@pytest.mark.trust("T-TOK-01", "T-TOK-02")
def test_added_tokens_in_text_stay_text(qwen3_tokenizer: TextTokenizer) -> None:
    """All 26: same ids as their letters, round trip, no control id."""
    control = set(qwen3_tokenizer.added_tokens.values())
    assert len(control) == 26
    for text in qwen3_tokenizer.added_tokens:
        ids = qwen3_tokenizer.encode(f"a {text} b")
        assert not control & set(ids)
        assert qwen3_tokenizer.decode(ids) == f"a {text} b"
        assert qwen3_tokenizer.encode(text, allow_special=True) == [
            qwen3_tokenizer.added_tokens[text]
        ]


@pytest.mark.trust("T-TOK-01")
@given(text=st.text("<|im_start>\n think/", max_size=40))
def test_pieces_of_control_strings_never_become_control_ids(
    qwen3_tokenizer: TextTokenizer, text: str
) -> None:
    ids = qwen3_tokenizer.encode(text)
    assert not set(qwen3_tokenizer.added_tokens.values()) & set(ids)
    assert qwen3_tokenizer.decode(ids) == text


@pytest.mark.trust("T-TOK-01")
def test_a_token_that_matches_only_in_normal_form_is_found() -> None:
    """Fine-tunes add tokens with `normalized: true`; a decomposed spelling must not slip by."""
    from tokenizers import AddedToken, normalizers

    tokenizer = make_fake_tokenizer()
    library = tokenizer._tokenizer
    library.normalizer = normalizers.NFC()
    library.add_tokens([AddedToken("<café>", normalized=True)])
    tokenizer = TextTokenizer(library)
    control = tokenizer.added_tokens["<café>"]
    decomposed = "<cafe\u0301>"
    assert tokenizer.encode(decomposed, allow_special=True) == [control]
    assert control not in tokenizer.encode(decomposed)
    assert tokenizer.split_added(decomposed) == ["", "<café>", ""]


def test_a_vocabulary_that_spells_a_control_token_is_refused() -> None:
    from tokenizers import Tokenizer, decoders, models

    library = Tokenizer(models.BPE(vocab={"<": 0, ">": 1, "<>": 2}, merges=[("<", ">")]))
    library.decoder = decoders.ByteLevel()
    library.add_tokens(["<>"])
    tokenizer = TextTokenizer(library)
    with pytest.raises(PackageError, match="control token '<>'"):
        tokenizer.encode("<>")


@pytest.mark.trust("T-TOK-03")
@pytest.mark.parametrize("text", ["half \ud83d", "\udc80"])
def test_a_lone_surrogate_is_refused_with_its_place(
    qwen3_tokenizer: TextTokenizer, text: str
) -> None:
    with pytest.raises(UsageError, match=f"character {len(text) - 1}"):
        qwen3_tokenizer.encode(text)


@pytest.mark.trust("T-TOK-03")
@pytest.mark.parametrize("text", ["", "\x00", "\ufeffx", "\u202eabc", "a" * 10_000])
def test_odd_texts_make_the_round_trip(qwen3_tokenizer: TextTokenizer, text: str) -> None:
    assert qwen3_tokenizer.decode(qwen3_tokenizer.encode(text)) == text


@pytest.mark.trust("T-TOK-05")
def test_ids_without_a_token_have_no_text(qwen3_tokenizer: TextTokenizer) -> None:
    """Qwen3 has 151,936 outputs and 151,669 tokens: the rest must not crash anything."""
    hello = qwen3_tokenizer.encode("Hello")
    assert qwen3_tokenizer.decode([151_935, *hello, -1, 2**40]) == "Hello"


def test_the_lower_bound_is_one_and_fast(qwen3_tokenizer: TextTokenizer) -> None:
    text = " " * 5_000 + "Köln"
    assert 0 < qwen3_tokenizer.count_at_least(text) <= len(qwen3_tokenizer.encode(text))


@pytest.mark.trust("T-TOK-03")
@pytest.mark.parametrize("word", ["a", "👋", "<think>"])
def test_encoding_stays_linear(qwen3_tokenizer: TextTokenizer, word: str) -> None:
    def seconds(num_words: int) -> float:
        start_s = time.perf_counter()
        qwen3_tokenizer.encode(word * num_words)
        return time.perf_counter() - start_s

    seconds(10)
    assert min(seconds(4_000) for _ in range(3)) < 5 * min(seconds(2_000) for _ in range(3))


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    """A tokenizer.json may carry the settings of its training; a prompt must stay whole."""
    library = make_fake_tokenizer()._tokenizer
    library.enable_truncation(4)
    library.enable_padding(length=16)
    library.save(str(tmp_path / "tokenizer.json"))
    assert len(TextTokenizer.load(tmp_path / "tokenizer.json").encode("abcdefgh")) == 8


@pytest.mark.trust("T-TOK-04")
def test_a_catastrophic_pattern_ends_in_an_error_not_a_panic(tmp_path: Path) -> None:
    """The Rust library panics with a class outside `Exception`; programs must see ours."""
    path = tmp_path / "tokenizer.json"
    raw: dict[str, Any] = json.loads(make_fake_tokenizer()._tokenizer.to_str())
    raw["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}
    path.write_text(json.dumps(raw), encoding="utf-8")
    tokenizer = TextTokenizer.load(path)
    with pytest.raises(PackageError, match="could not encode"):
        tokenizer.encode("a" * 40 + "!")


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "missing"), ("", "could not be read"), ("{}", "could not be read")],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(PackageError, match=says) as caught:
        TextTokenizer.load(path)
    assert str(path) in caught.value.problem


def test_a_tokenizer_of_another_family_is_refused() -> None:
    from tokenizers import Tokenizer, decoders, models

    library = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    library.decoder = decoders.Metaspace()
    with pytest.raises(PackageError, match="'Metaspace'; expected 'ByteLevel'"):
        TextTokenizer(library)
