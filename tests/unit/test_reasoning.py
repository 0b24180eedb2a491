"""Reasoning and answer: total, nothing lost but layout, unclosed and nested tags."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.runtime.fake_model import make_fake_tokenizer
from qwen_edge.runtime.reasoning import ReasoningSplitter


@pytest.fixture(scope="module")
def split():  # type: ignore[no-untyped-def]
    """Return a function from a text with think tags to its two parts."""
    tokenizer = make_fake_tokenizer()
    added = tokenizer.added_tokens

    def run(text: str, *, starts_open: bool = False, thinks: bool = True) -> tuple[str, str]:
        ids = (added["<think>"], added["</think>"]) if thinks else (None, None)
        splitter = ReasoningSplitter(tokenizer.token_bytes, *ids, starts_open=starts_open)
        parts: dict[str, list[str]] = {"reasoning": [], "answer": []}
        for token_id in tokenizer.encode(text, allow_special=True):
            for kind, piece in splitter.push(token_id):
                assert piece
                parts[kind].append(piece)
        for kind, piece in splitter.finish():
            parts[kind].append(piece)
        return "".join(parts["reasoning"]), "".join(parts["answer"])

    return run


@pytest.mark.trust("T-GEN-11")
@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nhm\n\nwell\n</think>\n\nHi\n", "hm\n\nwell", "Hi\n"),
        ("<think>\n\n</think>\n\nHi", "", "Hi"),
        ("\n <think>\nhm</think>Hi", "hm", "Hi"),
        ("Hi", "", "Hi"),
        ("\n\nHi", "", "\n\nHi"),
        ("  ", "", "  "),
        ("<think>\nnever closed 👋\n", "never closed 👋", ""),
        ("<think>a<think>b</think>c", "a<think>b", "c"),
        ("Hi <think>x</think> y", "", "Hi <think>x</think> y"),
        ("</think>x", "", "</think>x"),
        ("<think>a</think>b</think>c<think>d", "a", "b</think>c<think>d"),
        ("", "", ""),
    ],
)
def test_parts(split, text: str, reasoning: str, answer: str) -> None:  # type: ignore[no-untyped-def]
    assert split(text) == (reasoning, answer)


def test_a_prompt_that_opened_the_block(split) -> None:  # type: ignore[no-untyped-def]
    assert split("\nhm\n</think>\n\nHi", starts_open=True) == ("hm", "Hi")


def test_a_model_without_thinking_shows_everything(split) -> None:  # type: ignore[no-untyped-def]
    assert split("\n<think>\nx</think>", thinks=False) == ("", "\n<think>\nx</think>")


@pytest.mark.trust("T-GEN-11")
@given(parts=st.lists(st.sampled_from(["<think>", "</think>", "\n", "a", "ö", " "]), max_size=12))
def test_nothing_but_layout_is_lost(split, parts: list[str]) -> None:  # type: ignore[no-untyped-def]
    text = "".join(parts)
    reasoning, answer = split(text)
    tags = "<think>", "</think>"
    letters = [c for c in text.replace(tags[0], "").replace(tags[1], "") if c not in "\n "]
    shown = (reasoning + answer).replace(tags[0], "").replace(tags[1], "")
    assert [c for c in shown if c not in "\n "] == letters
    assert reasoning == reasoning.strip("\n")


@pytest.mark.trust("T-GEN-11")
def test_an_unfinished_character_ends_with_its_part() -> None:
    splitter = ReasoningSplitter(lambda i: b"" if i < 2 else "ö".encode()[i - 2 : i - 1], 0, 1)
    pieces = [piece for i in (0, 2, 1, 2, 3) for piece in splitter.push(i)]
    assert pieces == [("reasoning", "\ufffd"), ("answer", "ö")]
