"""The built-in texts and a person's own, as tokens."""

from pathlib import Path

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.export.quality.texts import MAX_TEXT_TOKENS, read_built_in, read_own
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
