"""From an answer's text to the calls in it, piece by piece as the model writes.

A call stands between the tokens `<tool_call>` and `</tool_call>`. Whoever reads the ids tells
them apart from text that merely spells them, so there are three ways in: `push_open`,
`push_close` and `push` for text. What is not exactly one object with the name of a tool and
arguments comes out as the text that it is, tags and all. Nothing raises, everything is read once,
and nothing is lost but the line break before a call, which is layout of the template.
"""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from qwen_edge.runtime.tools.json_scanner import JsonScanner, Part
from qwen_edge.runtime.tools.tool_call import CallPiece, ToolCall, ToolCallDelta, make_call_id

OPEN_TEXT, CLOSE_TEXT = "<tool_call>", "</tool_call>"


class ToolCallParser:
    """Reads the calls of one answer.

    Within a call a tag counts as text while a JSON text is open, so that a call may be about
    `<tool_call>`. Anywhere else an opening tag begins a new call and drops an unfinished one.

    Args:
        names: The tools; a call of any other is no call.
        make_id: Returns the id of the next call.

    State:
        Holds a line break at the end of the text, and the text of the call being written.
    """

    def __init__(
        self, names: Collection[str], *, make_id: Callable[[], str] = make_call_id
    ) -> None:
        self._names = frozenset(names)
        self._make_id = make_id
        self._call: _CallInProgress | None = None
        self._held = ""
        self._num_calls = 0

    @property
    def is_in_call(self) -> bool:
        """Whether a call has begun and may still become one."""
        return self._call is not None

    def push(self, text: str) -> list[CallPiece]:
        """Add text and return what it completes."""
        if self._call is None:
            return self._show(text)
        deltas = self._call.push(text)
        return [*deltas, *self._drop_call()] if self._call.is_broken else deltas

    def push_open(self) -> list[CallPiece]:
        """Add the token `<tool_call>` and return what it completes."""
        if self._call is not None and self._call.is_in_text:
            return self.push(OPEN_TEXT)
        dropped = self._drop_call()
        self._call = _CallInProgress(
            self._held + OPEN_TEXT, self._names, self._num_calls, self._make_id
        )
        self._held = ""
        return dropped

    def push_close(self) -> list[CallPiece]:
        """Add the token `</tool_call>` and return what it completes."""
        if self._call is None or self._call.is_in_text:
            return self.push(CLOSE_TEXT)
        pieces = self._call.finish()
        if self._call.is_broken:
            return [*self._drop_call(), *self._show(CLOSE_TEXT)]
        self._call = None
        self._num_calls += 1
        return pieces

    def finish(self) -> list[CallPiece]:
        """Return what is held back when the answer ends; an open call is none."""
        pieces = self._drop_call()
        held, self._held = self._held, ""
        return [*pieces, held] if held else pieces

    def _show(self, text: str) -> list[CallPiece]:
        """Return text outside of calls, without a line break that a call may follow."""
        text = self._held + text
        self._held = "\n" if text.endswith("\n") else ""
        shown = text.removesuffix("\n")
        return [shown] if shown else []

    def _drop_call(self) -> list[CallPiece]:
        """Return the text of an unfinished call, if there is one."""
        if self._call is None:
            return []
        call, self._call = self._call, None
        return [*call.withdraw(), *self._show(call.text)]


class _CallInProgress:
    """A call while it is written.

    State:
        Keeps its whole text until it is finished or dropped.
    """

    def __init__(
        self, opening: str, names: frozenset[str], index: int, make_id: Callable[[], str]
    ) -> None:
        self._texts = [opening]
        self._names = names
        self._index = index
        self._make_id = make_id
        self._scanner = JsonScanner()
        self._is_refused = False
        self._ended: set[str] = set()
        self._name_text = ""
        self._arguments: list[str] = []
        self._start: ToolCallDelta | None = None

    @property
    def text(self) -> str:
        """Everything from the tag on."""
        return "".join(self._texts)

    @property
    def is_broken(self) -> bool:
        """Whether this can no longer become a call."""
        return self._is_refused or self._scanner.is_broken

    @property
    def is_in_text(self) -> bool:
        """Whether the next character stands between quotes."""
        return self._scanner.is_in_text

    def push(self, text: str) -> list[CallPiece]:
        """Add text and return the steps that it completes."""
        self._texts.append(text)
        deltas: list[CallPiece] = []
        for part in self._scanner.push(text):
            self._add_part(part, deltas)
            if self._is_refused:
                break
        return deltas

    def finish(self) -> list[CallPiece]:
        """Return the call, or nothing and be broken."""
        arguments_text = "".join(self._arguments)
        arguments = _read_arguments(arguments_text or "{}")
        if self._start is None or not self._scanner.is_complete or arguments is None:
            self._is_refused = True
            return []
        pieces: list[CallPiece] = []
        if not arguments_text:  # left out, as models do where a tool takes none
            arguments_text = "{}"
            pieces.append(ToolCallDelta(self._index, self._start.id, None, arguments_text))
        name = str(self._start.name)
        pieces.append(ToolCall(self._start.id, name, arguments, self._index, arguments_text))
        return pieces

    def withdraw(self) -> Sequence[CallPiece]:
        """Return the step that takes back those given out, if there were any."""
        if self._start is None:
            return []
        return [ToolCallDelta(self._index, self._start.id, is_withdrawn=True)]

    def _add_part(self, part: Part, deltas: list[CallPiece]) -> None:
        """Take a piece of an outermost value; refuse what does not belong to a call."""
        key = _read_text(part.key)
        if key == "name" and key not in self._ended:
            self._add_name(part, deltas)
        elif key == "arguments" and key not in self._ended:
            self._add_arguments(part.text, deltas)
        else:
            self._is_refused = True
        if part.is_end and key is not None:
            self._ended.add(key)

    def _add_name(self, part: Part, deltas: list[CallPiece]) -> None:
        """Take a piece of the name; begin the call when it is whole and known."""
        self._name_text += part.text
        if not part.is_end:
            # Every character may be written as \uXXXX; what is longer names no tool.
            self._is_refused = len(self._name_text) > 6 * max(map(len, self._names), default=0) + 1
            return
        name = _read_text(self._name_text)
        if name not in self._names:
            self._is_refused = True
            return
        self._start = ToolCallDelta(self._index, self._make_id(), name)
        deltas.append(self._start)
        if self._arguments:
            self._emit("".join(self._arguments), deltas)

    def _add_arguments(self, text: str, deltas: list[CallPiece]) -> None:
        """Take a piece of the arguments, which have to be an object."""
        if not self._arguments and not text.startswith("{"):
            self._is_refused = True
            return
        self._arguments.append(text)
        if self._start is not None:
            self._emit(text, deltas)

    def _emit(self, text: str, deltas: list[CallPiece]) -> None:
        """Add a step with a piece of the arguments."""
        assert self._start is not None
        deltas.append(ToolCallDelta(self._index, self._start.id, None, text))


def _read_text(text: str) -> str | None:
    """Return the text that a JSON text stands for; None for another value."""
    value: Any = json.loads(text) if text.startswith('"') else None
    return value if isinstance(value, str) else None


def _read_arguments(text: str) -> dict[str, Any] | None:
    """Return an object's entries; None where they cannot be data of a message.

    Args:
        text: Valid JSON that is not nested deep, which the scanner has seen to.
    """
    try:
        arguments: dict[str, Any] = json.loads(
            text, object_pairs_hook=_make_object, parse_float=_make_float
        )
        # Halves of characters have no UTF-8 form, so they could not be fed back.
        json.dumps(arguments, ensure_ascii=False).encode("utf-8")
    except ValueError:
        return None
    return arguments


def _make_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; a repeated key has no meaning that all readers share."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key is repeated")
    return entries


def _make_float(text: str) -> float:
    """Return a number; those beyond the range of a double have no JSON form."""
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return number
