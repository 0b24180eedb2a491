"""Splits a stream of token ids into reasoning and answer text.

Qwen3 writes its reasoning between `<think>` and `</think>`, each a single token, so the
split is made on ids and a model that merely writes the letters "<think>" in an answer
changes nothing. This module knows the two ids and nothing of sessions or stop strings.
"""

from collections.abc import Callable, Iterator

from qwen_edge.runtime.detokenizer import Detokenizer
from qwen_edge.runtime.events import EventKind

Piece = tuple[EventKind, str]


class ReasoningSplitter:
    """Turns ids into pieces of reasoning and answer text.

    The first `<think>` opens reasoning when only white space came before it; any other one,
    and a `</think>` outside reasoning, is ordinary text. Reasoning that is never closed stays
    reasoning. The line breaks around reasoning, and those before the answer that follows
    it, are layout of the template and are left out; nothing else is.

    Args:
        token_bytes: See `Detokenizer`.
        open_id: Id of `<think>`, or None for a model that does not reason.
        close_id: Id of `</think>`, or None likewise.
        starts_open: Whether the prompt ended inside a think block.

    State:
        Holds an unfinished character and line breaks that may turn out to be layout.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        open_id: int | None,
        close_id: int | None,
        *,
        starts_open: bool = False,
    ) -> None:
        self._detokenizer = Detokenizer(token_bytes)
        self._open_id = open_id
        self._close_id = close_id
        self._is_open = starts_open
        self._may_open = not starts_open and open_id is not None
        self._held = ""  # reasoning: line breaks at the end; answer: white space before <think>
        self._is_at_start = starts_open  # line breaks at the start of a part are dropped

    @property
    def is_open(self) -> bool:
        """Whether the next token belongs to the reasoning."""
        return self._is_open

    def flush(self) -> Iterator[Piece]:
        """Yield what is held back, because something that is no text comes next."""
        yield from self.finish()
        self._may_open = False

    def push(self, token_id: int) -> Iterator[Piece]:
        """Yield the pieces that one more id completes: none, one or two."""
        if self._may_open and token_id == self._open_id:
            self._detokenizer.finish()
            self._held = ""
            self._may_open, self._is_open, self._is_at_start = False, True, True
        elif self._is_open and token_id == self._close_id:
            # The unfinished character belongs to the reasoning; held line breaks are layout.
            yield from self._add_reasoning(self._detokenizer.finish())
            self._held = ""
            self._is_open, self._is_at_start = False, True
        else:
            yield from self._add(self._detokenizer.push(token_id))

    def finish(self) -> Iterator[Piece]:
        """Yield what is still held back when the ids end."""
        yield from self._add(self._detokenizer.finish())
        if not self._is_open and self._held:
            yield "answer", self._held
        self._held = ""

    def _add(self, text: str) -> Iterator[Piece]:
        """Yield what may be shown of `text` in the current part."""
        return self._add_reasoning(text) if self._is_open else self._add_answer(text)

    def _add_reasoning(self, text: str) -> Iterator[Piece]:
        """Yield reasoning without the line breaks around it."""
        text = self._drop_start(self._held + text)
        shown = text.rstrip("\n")
        self._held = text[len(shown) :]
        if shown:
            yield "reasoning", shown

    def _add_answer(self, text: str) -> Iterator[Piece]:
        """Yield answer text; hold white space while `<think>` may still come."""
        text = self._held + self._drop_start(text)
        self._held = ""
        if self._may_open and not text.strip():
            self._held = text
            return
        self._may_open = False
        if text:
            yield "answer", text

    def _drop_start(self, text: str) -> str:
        """Return `text` without line breaks at the start of a part."""
        if self._is_at_start:
            text = text.lstrip("\n")
            self._is_at_start = not text
        return text
