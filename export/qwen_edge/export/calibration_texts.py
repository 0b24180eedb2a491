"""What calibrated recipes see a model read: built-in texts, or what a person uses it for.

The built-in texts were written for this: prose in many languages, code, data, mathematics and
conversations with and without thoughts and tools, none of which the quality texts share, so that
a recipe is never measured on what it was fitted to. Conversations go through the model's own chat
template. Read `calibration_files.py` for what a person's file may hold.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from qwen_edge.errors import UsageError
from qwen_edge.export.calibration_files import Document, Object, parse_lines, read_documents
from qwen_edge.runtime.chat import ChatTemplate, Thinking
from qwen_edge.runtime.text_tokenizer import TextTokenizer

MIN_TOKENS = 512
BUILT_IN = "built-in"
_KINDS = ("english", "chinese", "languages", "code", "data", "mathematics")
_CONVERSATIONS = "conversations.jsonl"
_SEPARATOR = "\n%\n"  # between the documents of a built-in file
_FOLDER = files(__package__) / "calibration_texts"
_MIN_TAIL_TOKENS = 16  # a shorter last piece would take the place of a whole one
_CHARS_PER_TOKEN = 16  # far above that of any language: what is cut out has tokens enough
_LINE_CHARS = 512  # how far on a line's beginning is looked for

Item = TypeVar("Item")


@dataclass(frozen=True)
class CalibrationText:
    """What calibration reads.

    Args:
        samples: Token ids, at least two each; every sample is read from position 0.
        source: "built-in", or the name of the file.
        sha256: Of the file's bytes, or of the built-in texts, in hex.
        notes: What a person should know of the choice; sentences.
    """

    samples: tuple[tuple[int, ...], ...]
    source: str
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of all samples."""
        return sum(map(len, self.samples))


def read_calibration(
    path: Path | None,
    tokenizer: TextTokenizer,
    template: ChatTemplate | None,
    thinking: Thinking,
    *,
    max_samples: int = 128,
    max_tokens: int = 512,
) -> CalibrationText:
    """Read the calibration texts as tokens.

    Args:
        path: A person's file, see `read_documents`; None for the built-in texts.
        tokenizer: The checkpoint's.
        template: Its chat template; None where it has none.
        thinking: Whether the model can be told not to think. One that never does gets the
            conversations without their thoughts.
        max_samples: At least 1. Of more there are, as many are taken evenly spread.
        max_tokens: Of a sample, at least 2. What is longer becomes several samples.

    Raises:
        UsageError: The file is missing, malformed, no text or too short, holds conversations
            that the model's template does not take, or a number is out of range.
    """
    for name, value, low in (("max_samples", max_samples, 1), ("max_tokens", max_tokens, 2)):
        if value < low:
            raise UsageError(f"{name} is {value:,}; expected {low} or more.", "give a larger one")
    if path is None:
        documents, digest = _read_built_in(has_template=template is not None)
        source, shown = BUILT_IN, "the built-in texts"
    else:
        documents, digest = read_documents(path)
        source, shown = path.name, repr(path.name)
    reader = _Reader(tokenizer, template, thinking, shown)
    chosen = spread_evenly(documents, max_samples)
    pieces, is_cut = [], len(chosen) < len(documents)
    for document in chosen:
        for part in _excerpts(document, max_samples, max_tokens):
            found = _cut(reader.encode(part), max_tokens)
            pieces += found if part is document else found[:1]
            is_cut |= part is not document
    num_tokens = sum(map(len, pieces))
    if num_tokens < MIN_TOKENS:
        raise _too_short(shown, num_tokens, max_samples, is_cut=is_cut)
    samples = spread_evenly(pieces, max_samples)
    notes = list(reader.notes)
    if is_cut or len(samples) < len(pieces):
        notes.append(
            f"{len(samples):,} samples of at most {max_tokens:,} tokens were taken, spread evenly "
            f"over {shown}; the rest of it was not read."
        )
    elif path is not None and len(samples) < max_samples:
        notes.append(
            f"{shown} has {len(samples):,} samples of at most {max_tokens:,} tokens, and all are "
            f"read; {max_samples:,} were asked for."
        )
    return CalibrationText(tuple(samples), source, digest, tuple(notes))


def spread_evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Return at most so many items: all, or the middles of equal stretches, in their order."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


class _Reader:
    """Turns documents into tokens as the model would read them.

    State:
        Remembers what the template opens an answer with, and whether thoughts were left out.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        template: ChatTemplate | None,
        thinking: Thinking,
        shown: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._thinking = thinking
        self._shown = shown
        self._openings: dict[bool | None, list[int]] = {}
        self._has_dropped_thoughts = False

    @property
    def notes(self) -> list[str]:
        """What was changed in a person's file."""
        if self._has_dropped_thoughts and self._shown != "the built-in texts":
            return [f"The thoughts in {self._shown} were left out: this model does not think."]
        return []

    def encode(self, document: Document) -> list[int]:
        """Return a document's tokens; raise UsageError where the template refuses it."""
        if document.messages is None or (self._template is None and document.text is not None):
            return self._tokenizer.encode(document.text or "")
        if self._template is None:
            raise UsageError(
                f"{document.where.capitalize()} of {self._shown} is a conversation, and the "
                "checkpoint has no chat template to write it with.",
                "give plain text, or put the model's chat_template.jinja beside the checkpoint",
            )
        try:
            return self._encode_conversation(self._template, document, document.messages)
        except UsageError as error:
            raise UsageError(
                f"The model's chat template does not take {document.where} of {self._shown}: "
                f"{error.problem}",
                "change that conversation, or leave it out",
                **error.facts,
            ) from error

    def _encode_conversation(
        self, template: ChatTemplate, document: Document, messages: Sequence[Object]
    ) -> list[int]:
        last = messages[-1]
        if self._thinking == "never":
            without = [_without_thought(message) for message in messages]
            self._has_dropped_thoughts |= without != list(messages)
            messages = without
        is_answered = last["role"] == "assistant"
        # The switch also changes what some templates write of the system's message.
        switch = _has_thought(last) if is_answered and self._thinking == "switchable" else None
        ids = template.encode(messages, tools=document.tools, thinking=switch)
        if not is_answered:
            return ids
        opening = self._opening(template, switch)
        return ids[: -len(opening)] if opening and ids[-len(opening) :] == opening else ids

    def _opening(self, template: ChatTemplate, switch: bool | None) -> list[int]:
        """Return what the template writes behind the token that ends the last answer."""
        known = self._openings.get(switch)
        if known is None:
            answer = "Answer"
            messages = [
                {"role": "user", "content": "Q"},
                {"role": "assistant", "content": answer},
            ]
            behind = template.render(messages, thinking=switch).rpartition(answer)[2]
            parts = self._tokenizer.split_added(behind)  # odd entries are control tokens
            known = self._tokenizer.encode("".join(parts[2:]), allow_special=True)
            self._openings[switch] = known
        return known


def _read_built_in(*, has_template: bool) -> tuple[list[Document], str]:
    digest = hashlib.sha256()
    documents: list[Document] = []
    for kind in _KINDS:
        content = (_FOLDER / f"{kind}.txt").read_text(encoding="utf-8")
        digest.update(content.encode())
        documents += [Document(kind, text.strip("\n")) for text in content.split(_SEPARATOR)]
    if has_template:
        content = (_FOLDER / _CONVERSATIONS).read_text(encoding="utf-8")
        digest.update(content.encode())
        documents += parse_lines(content, _CONVERSATIONS)
    return documents, digest.hexdigest()


def _excerpts(document: Document, max_samples: int, max_tokens: int) -> list[Document]:
    """Return a document, or of a very long text so many parts that each make a sample."""
    text = document.text
    length = max_tokens * _CHARS_PER_TOKEN
    if document.messages is not None or text is None or len(text) <= max_samples * length:
        return [document]
    parts = []
    for index in range(max_samples):
        first = index * len(text) // max_samples
        line = text.find("\n", first, first + _LINE_CHARS) + 1 if index else 0
        parts.append(Document(document.where, text[line or first :][:length]))
    return parts


def _cut(ids: Sequence[int], max_tokens: int) -> list[tuple[int, ...]]:
    """Return pieces of at most so many tokens; a last one that is hardly any is left out."""
    pieces = [tuple(ids[start : start + max_tokens]) for start in range(0, len(ids), max_tokens)]
    if len(pieces) > 1 and len(pieces[-1]) < min(_MIN_TAIL_TOKENS, max_tokens):
        pieces.pop()
    return [piece for piece in pieces if len(piece) > 1]


def _has_thought(message: Object) -> bool:
    return bool(message.get("reasoning_content")) or "</think>" in str(message["content"])


def _without_thought(message: Object) -> Object:
    """Return an assistant's message with its answer alone, any other as it is."""
    if message["role"] != "assistant" or not _has_thought(message):
        return message
    plain = {key: value for key, value in message.items() if key != "reasoning_content"}
    plain["content"] = str(message["content"]).rpartition("</think>")[2].lstrip("\n")
    return plain


def _too_short(shown: str, num_tokens: int, max_samples: int, *, is_cut: bool) -> UsageError:
    """Return the refusal of what is too little to calibrate with."""
    fix = "give a longer text, some thousand words of what the model is used for"
    if is_cut:
        fix = f"take more than {max_samples:,} samples, or write longer documents"
    return UsageError(
        f"The calibration samples of {shown} have {num_tokens:,} tokens in all; fewer than "
        f"{MIN_TOKENS} say nothing of what a model reads.",
        fix,
        num_tokens=num_tokens,
    )
