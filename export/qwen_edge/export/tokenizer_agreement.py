"""Does the converted OpenVINO tokenizer say the same as the original? A built-in corpus.

Owns the texts and the comparison. It does not convert or write anything; see
`tokenizer_files.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen_edge.errors import ParityError

# What people write: a difference here is a broken package.
ORDINARY_TEXTS = (
    "Hello, world! How are you today?",
    "The quick brown fox doesn't jump over 1,234.56 lazy dogs.",
    "Grüße aus Köln: Äpfel, Öl und übermäßig süße Maßbänder.",
    "L'été où Noël a coûté 15 € à Besançon.",
    "你好，世界！今天天气怎么样？",
    "日本語のテキストと、한국어 텍스트.",
    "Привет, мир! Ελληνικά. שלום. مرحبا بالعالم",
    "Emoji: 😀 👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️",
    'def f(x: int) -> str:\n    return f"{x:>8}"  # comment\n',
    "if (a && b) {\n\t\tc[0] = '\\n';\n}\n",
    "https://example.org/path?query=1&other=%20#anchor",
    "Line one\nLine two\r\nLine three\n\n\nAfter blank lines",
    "1 22 333 4444 55555 3.14159 -7 1e-9",
    "a" * 200,
)

# What programs write, or what has many readings: a difference is reported.
UNUSUAL_TEXTS = (
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    '<think>\n\n</think>\n\n<tool_call>\n{"name": "f"}\n</tool_call>',
    "<|im_start|><|im_end|><|endoftext|>",
    " leading and trailing ",
    "  two  spaces   three    four",
    " \t\n \u00a0\u3000",
    "cafe\u0301 versus caf\u00e9",  # two spellings of the same letter
    "zero\u200bwidth\u200djoiner\ufeff",
    "\x01\x7f\u0085control",
)


@dataclass(frozen=True)
class Disagreement:
    """One text that the two tokenizers treat differently.

    Attributes:
        text: The text of the corpus.
        step: "encode" (text to ids) or "decode" (ids to text).
        expected: What the original gives.
        actual: What the converted one gives.
        is_ordinary: The text is of the kind that people write.
    """

    text: str
    step: Literal["encode", "decode"]
    expected: Sequence[int] | str
    actual: Sequence[int] | str
    is_ordinary: bool


def find_disagreements(
    original: Any,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    *,
    extra_texts: Sequence[str] = (),
) -> tuple[Disagreement, ...]:
    """Compare a converted tokenizer with the original on the corpus.

    Args:
        original: A `tokenizers.Tokenizer`.
        encode: The converted tokenizer: text to token ids.
        decode: The converted detokenizer: token ids, at least one, to text.
        extra_texts: More texts, for example with the model's own special tokens.

    Returns:
        What differs, ordinary texts first; empty when all is the same.
    """
    texts = [(text, True) for text in ORDINARY_TEXTS]
    texts += [(text, False) for text in (*UNUSUAL_TEXTS, *extra_texts)]
    found = []
    for text, is_ordinary in texts:
        ids: list[int] = original.encode(text).ids
        actual_ids = encode(text)
        if actual_ids != ids:
            found.append(Disagreement(text, "encode", tuple(ids), tuple(actual_ids), is_ordinary))
        if not ids:
            continue
        back: str = original.decode(ids, skip_special_tokens=True)
        actual_back = decode(ids)
        if actual_back != back:
            found.append(Disagreement(text, "decode", back, actual_back, is_ordinary))
    return tuple(found)


def check_ordinary(disagreements: Sequence[Disagreement]) -> None:
    """Refuse a tokenizer that treats ordinary text differently.

    Raises:
        ParityError: With the first such text, and what was expected and got.
    """
    broken = [found for found in disagreements if found.is_ordinary]
    if not broken:
        return
    first = broken[0]
    raise ParityError(
        f"The converted tokenizer treats {len(broken):,} of {len(ORDINARY_TEXTS):,} ordinary texts "
        f"differently from tokenizer.json. First: {first.step} of {first.text[:60]!r} gives "
        f"{_shown(first.actual)} where {_shown(first.expected)} is expected.",
        "report it with the name of the model: openvino-tokenizers does not support this kind of "
        "tokenizer fully",
        disagreements=tuple(broken),
    )


def _shown(value: Sequence[int] | str) -> str:
    if isinstance(value, str):
        return repr(value[:60])
    return f"[{', '.join(map(str, value[:12]))}{', …' if len(value) > 12 else ''}]"
