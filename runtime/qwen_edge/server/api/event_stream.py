"""Frames of an event stream (server-sent events), and what writes answers into them."""

import json
from collections.abc import Iterator, Sequence
from typing import Protocol

from qwen_edge.runtime.events import Event

Json = dict[str, object]
DONE_FRAME = b"data: [DONE]\n\n"


def data_frame(content: Json) -> bytes:
    """Return JSON as one frame. Every line break in it is escaped, so it is one line."""
    return b"data: " + encode_json(content) + b"\n\n"


def named_frame(name: str, content: Json) -> bytes:
    """Return JSON as a frame with a name."""
    return b"event: " + name.encode("ascii") + b"\n" + data_frame(content)


def encode_json(content: Json) -> bytes:
    """Return JSON as UTF-8."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8")


class AnswerWriter(Protocol):
    """Turns the events of the answers to one request into what an interface sends."""

    def add(self, index: int, events: Sequence[Event]) -> None:
        """Take in new events of one answer."""
        ...

    def first_frames(self) -> Iterator[bytes]:
        """Yield what a stream begins with."""
        ...

    def frames(self, index: int, events: Sequence[Event]) -> Iterator[bytes]:
        """Yield the frames for new events of one answer, which are added already."""
        ...

    def last_frames(self) -> Iterator[bytes]:
        """Yield what a stream of finished answers ends with."""
        ...

    def whole(self) -> Json:
        """Return the finished answers."""
        ...
