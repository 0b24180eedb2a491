"""A call that a model wrote, whole and in pieces. Data only; `call_parser.py` makes these."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ToolCall:
    """A finished call.

    Args:
        id: Tells it from all other calls; its result refers to it.
        name: The tool.
        arguments: JSON data. Whether they fit the tool's schema is known only where a
            constraint saw to it.
        index: Its place among the calls of one answer, from 0.
        arguments_text: The arguments as the model wrote them; empty where unknown.
    """

    id: str
    name: str
    arguments: Mapping[str, object]
    index: int = 0
    arguments_text: str = ""


@dataclass(frozen=True)
class ToolCallDelta:
    """A step of a call that is being written.

    The first one of a call has the name and no text. The texts of all of them joined are the
    call's arguments.

    Args:
        index: The call's place among the calls of one answer.
        id: The call's id.
        name: The tool, in the first step only.
        arguments_text: The next piece of the arguments' JSON text.
        is_withdrawn: The last step of a call that broke off or turned out not to be one: no
            `ToolCall` follows, its text comes as text, and the next call has this index.
    """

    index: int
    id: str
    name: str | None = None
    arguments_text: str = ""
    is_withdrawn: bool = False


CallPiece = str | ToolCallDelta | ToolCall
"""What comes out of an answer that may hold calls; a text is what is outside of them."""


def make_call_id() -> str:
    """Return an id that no other call has."""
    return f"call_{uuid.uuid4().hex[:24]}"
