"""What is read to measure an export: texts of the kinds that people use a model for, or their own.

The built-in ones were written for this: prose in English and Chinese, code, data, and
conversations with and without a thought, as the model's own template writes them. How well a model
knows them does not matter, only how far two models differ on them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_edge.errors import UsageError
from qwen_edge.export.recipe_search.budget import parse_budget
from qwen_edge.runtime.chat import ChatTemplate, Thinking
from qwen_edge.runtime.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from qwen_edge.export.request import ExportRequest

MAX_TEXT_TOKENS = 512
MIN_OWN_TOKENS = 64
MAX_OWN_TOKENS = 16_384
"""Of a longer text, pieces from all of it are read: an hour at Qwen3-4B's size, and intervals
are narrow enough by then."""
SHORT_TOKENS = 720
"""Of an export without a gate: less than two minutes at Qwen3-4B's size on two cores."""
_BUILT_IN_TOKENS = 3_500  # all built-in texts with Qwen3's tokenizer
_CHARACTERS_PER_TOKEN = 4
_PLAIN_KINDS = ("english", "chinese", "code", "data")
_CHATS = "chats.json"
_FOLDER = files(__package__) / "texts"


@dataclass(frozen=True)
class QualityText:
    """A text as tokens.

    Args:
        name: Unique among those read together.
        kind: "english", "chinese", "code", "data", "chat", "thinking", or "own".
        token_ids: At least two.
    """

    name: str
    kind: str
    token_ids: tuple[int, ...]


def read_built_in(
    tokenizer: TextTokenizer,
    template: ChatTemplate | None = None,
    thinking: Thinking = "switchable",
) -> list[QualityText]:
    """Return the built-in texts.

    Args:
        tokenizer: The checkpoint's.
        template: Its chat template; without one there are no conversations.
        thinking: Whether the model can be told not to think; one that never does gets no
            thoughts to read, one that always does an empty one where there is none.
    """
    texts = []
    for kind in _PLAIN_KINDS:
        content = (_FOLDER / f"{kind}.txt").read_text(encoding="utf-8")
        texts += _cut(kind, kind, tokenizer.encode(content))
    if template is None:
        return texts
    for chat in json.loads((_FOLDER / _CHATS).read_text(encoding="utf-8")):
        has_thought = chat["thinking"]
        if has_thought and thinking == "never":
            continue
        *before, last = chat["messages"]
        ids = template.encode(before, thinking=has_thought if thinking == "switchable" else None)
        answer = last["content"]
        if thinking == "always":  # its template has begun the thought
            answer = answer.removeprefix("<think>") if has_thought else f"\n</think>\n\n{answer}"
        ids += tokenizer.encode(answer, allow_special=True)
        kind = "thinking" if has_thought else "chat"
        texts += _cut(f"chat {chat['name']}", kind, ids)
    return texts


def count_tokens(request: "ExportRequest") -> int:
    """Return about how many tokens an export reads, before its tokenizer is here.

    Args:
        request: Which texts were asked for; none where nothing is measured.
    """
    if request.skip_quality:
        return 0
    if request.quality_text is not None:
        return min(len(read_text(request.quality_text)) // _CHARACTERS_PER_TOKEN, MAX_OWN_TOKENS)
    return _BUILT_IN_TOKENS if has_bound(request) else SHORT_TOKENS


def has_bound(request: "ExportRequest") -> bool:
    """Return whether an export may be refused for its figures, so that all texts are read.

    Args:
        request: Its gate, and its budget.
    """
    if request.gate is not None:
        return True
    return request.budget is not None and parse_budget(request.budget).kl is not None


def shorten(texts: Sequence[QualityText], max_tokens: int) -> list[QualityText]:
    """Return beginnings of texts with so many tokens in all, every kind present.

    Kinds get equal shares, and what one has too little of goes to the others; within a kind the
    first texts come first.

    Args:
        texts: At least one.
        max_tokens: At least two for each kind.
    """
    lengths: dict[str, int] = {}
    for text in texts:
        lengths[text.kind] = lengths.get(text.kind, 0) + len(text.token_ids)
    shares: dict[str, int] = {}
    left = max_tokens
    for place, kind in enumerate(sorted(lengths, key=lambda kind: lengths[kind])):
        shares[kind] = min(lengths[kind], left // (len(lengths) - place))
        left -= shares[kind]
    cut = []
    for text in texts:
        taken = text.token_ids[: shares[text.kind]]
        if len(taken) > 1:
            cut.append(replace(text, token_ids=taken))
            shares[text.kind] -= len(taken)
    return cut


def bound(texts: Sequence[QualityText], max_text_tokens: int) -> list[QualityText]:
    """Return beginnings of texts, none longer than a context.

    Args:
        texts: Any.
        max_text_tokens: At least two.
    """
    return [replace(text, token_ids=text.token_ids[:max_text_tokens]) for text in texts]


def read_own(path: Path, tokenizer: TextTokenizer) -> list[QualityText]:
    """Return a person's own text.

    Of a long one pieces are taken that lie evenly in it.

    Args:
        path: A UTF-8 file of any length.
        tokenizer: The checkpoint's.

    Raises:
        UsageError: It cannot be read, is no text, or is too short to say anything.
    """
    ids = tokenizer.encode(read_text(path))
    if len(ids) < MIN_OWN_TOKENS:
        raise UsageError(
            f"The text {str(path)!r} has {len(ids):,} tokens; figures of fewer than "
            f"{MIN_OWN_TOKENS} say nothing.",
            "name a longer text, some thousand words of what the model is used for",
        )
    pieces = _cut(path.name, "own", ids)
    most = MAX_OWN_TOKENS // MAX_TEXT_TOKENS
    if len(pieces) <= most:
        return pieces
    return [pieces[index * len(pieces) // most] for index in range(most)]


def read_text(path: Path) -> str:
    """Return the content of a person's own text.

    Args:
        path: A UTF-8 file.

    Raises:
        UsageError: It cannot be read, or is no text.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"The text {str(path)!r} cannot be read: {error.strerror}.",
            "name a file of plain text",
        ) from error
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The text {str(path)!r} is not UTF-8 (byte {error.start:,} is "
            f"0x{raw[error.start]:02X}), so what it says cannot be known.",
            "save it as UTF-8, or name a file of plain text",
        ) from error
    if "\0" in content:
        raise UsageError(
            f"The text {str(path)!r} has a NUL at character {content.index(chr(0)):,}: it is a "
            "binary file.",
            "name a file of plain text",
        )
    return content


def _cut(name: str, kind: str, ids: Sequence[int]) -> list[QualityText]:
    """Return pieces of at most MAX_TEXT_TOKENS; a last one of a single token is left out."""
    starts = range(0, len(ids), MAX_TEXT_TOKENS)
    pieces = [tuple(ids[start : start + MAX_TEXT_TOKENS]) for start in starts]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if len(pieces) == 1:
        return [QualityText(name, kind, pieces[0])]
    return [QualityText(f"{name} {i}", kind, piece) for i, piece in enumerate(pieces, 1)]
