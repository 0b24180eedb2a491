"""The built-in texts and a person's own, as tokens."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import UsageError
from qwen_edge.export import ExportRequest
from qwen_edge.export.quality.texts import (
    MAX_TEXT_TOKENS,
    SHORT_TOKENS,
    QualityText,
    bound,
    count_tokens,
    read_built_in,
    read_own,
    shorten,
)
from qwen_edge.runtime.chat import ChatTemplate, Thinking
from qwen_edge.runtime.text_tokenizer import TextTokenizer

TEMPLATE = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{%- endfor -%}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and not enable_thinking -%}"
    "<think>\n\n</think>\n\n{%- endif -%}"
)


def read(tokenizer: TextTokenizer, source: str, thinking: Thinking) -> dict[str, str]:
    texts = read_built_in(tokenizer, ChatTemplate(source, tokenizer, thinking=thinking), thinking)
    return {text.name: tokenizer.decode(list(text.token_ids)) for text in texts}


def test_there_is_something_of_every_kind(demo_tokenizer: TextTokenizer) -> None:
    template = ChatTemplate(TEMPLATE, demo_tokenizer)
    texts = read_built_in(demo_tokenizer, template)
    assert {text.kind for text in texts} == {
        "english",
        "chinese",
        "code",
        "data",
        "chat",
        "thinking",
    }
    assert len({text.name for text in texts}) == len(texts)
    assert all(1 < len(text.token_ids) <= MAX_TEXT_TOKENS for text in texts)


def test_without_a_template_there_are_no_conversations(demo_tokenizer: TextTokenizer) -> None:
    kinds = {text.kind for text in read_built_in(demo_tokenizer)}
    assert kinds == {"english", "chinese", "code", "data"}


def test_a_model_that_never_thinks_reads_no_thoughts(demo_tokenizer: TextTokenizer) -> None:
    texts = read(demo_tokenizer, TEMPLATE, "never")
    assert "chat plain" in " ".join(texts)
    assert "chat thinking" not in " ".join(texts)


def test_own_text_is_cut_into_pieces(tmp_path: Path, demo_tokenizer: TextTokenizer) -> None:
    path = tmp_path / "möwen.txt"
    path.write_text("The gulls came back in March. " * 400, encoding="utf-8-sig")
    texts = read_own(path, demo_tokenizer)
    assert [text.name for text in texts][:2] == ["möwen.txt 1", "möwen.txt 2"]
    joined = [token for text in texts for token in text.token_ids]
    assert demo_tokenizer.decode(joined).startswith("The gulls came back in March. The")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has 0 tokens"),
        (b"too short", "tokens"),
        ("Grüße".encode("latin-1") * 100, "not UTF-8"),
        (b"GGUF\0\0\0\x03" * 100, "NUL"),
    ],
)
def test_what_is_no_text_is_refused(
    tmp_path: Path, demo_tokenizer: TextTokenizer, content: bytes, problem: str
) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=problem):
        read_own(path, demo_tokenizer)


def test_a_missing_file_is_named(tmp_path: Path, demo_tokenizer: TextTokenizer) -> None:
    with pytest.raises(UsageError, match=r"nowhere.*cannot be read"):
        read_own(tmp_path / "nowhere", demo_tokenizer)


LENGTHS = st.lists(
    st.tuples(st.sampled_from(["english", "code", "chat"]), st.integers(2, 512)),
    min_size=1,
    max_size=12,
)


@given(LENGTHS, st.integers(6, 1_000))
def test_short_texts_are_beginnings_of_every_kind(
    given_texts: list[tuple[str, int]], max_tokens: int
) -> None:
    texts = [
        QualityText(str(index), kind, tuple(range(length)))
        for index, (kind, length) in enumerate(given_texts)
    ]
    cut = {text.name: text for text in shorten(texts, max_tokens)}
    before = {text.name: text for text in texts}
    assert {text.kind for text in cut.values()} == {text.kind for text in texts}
    for name, text in cut.items():
        assert len(text.token_ids) >= 2
        assert text.token_ids == before[name].token_ids[: len(text.token_ids)]
    taken = sum(len(text.token_ids) for text in cut.values())
    total = sum(len(text.token_ids) for text in texts)
    # A single token that would be left over of a text is not read.
    assert min(total, max_tokens) - len(texts) <= taken <= max_tokens


def test_what_a_kind_lacks_goes_to_the_others() -> None:
    texts = [
        QualityText("a", "chat", tuple(range(10))),
        QualityText("b", "code", tuple(range(500))),
        QualityText("c", "english", tuple(range(500))),
    ]
    assert [len(text.token_ids) for text in shorten(texts, 310)] == [10, 150, 150]


def test_no_text_is_longer_than_a_context() -> None:
    assert [len(t.token_ids) for t in bound([QualityText("a", "own", tuple(range(9)))], 4)] == [4]


def test_of_a_long_text_pieces_from_all_of_it_are_read(
    tmp_path: Path, demo_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_edge.export.quality.texts.MAX_OWN_TOKENS", 3 * MAX_TEXT_TOKENS)
    path = tmp_path / "long.txt"
    path.write_text("".join(f"{number} lamps. " for number in range(2_000)), encoding="utf-8")
    texts = read_own(path, demo_tokenizer)
    assert len(texts) == 3
    numbers = [
        int(demo_tokenizer.decode(list(text.token_ids)).split(" lamps.")[1]) for text in texts
    ]
    assert numbers[0] < 10 < 500 < numbers[1] < 1_000 < numbers[2]


def test_the_plan_knows_how_much_is_read(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("abcd" * 1_000, encoding="utf-8")
    assert count_tokens(ExportRequest(skip_quality=True)) == 0
    assert count_tokens(ExportRequest()) == SHORT_TOKENS
    assert count_tokens(ExportRequest(gate="kl=1")) > 4 * SHORT_TOKENS
    assert count_tokens(ExportRequest(quality_text=own)) == 1_000
