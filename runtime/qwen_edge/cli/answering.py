"""Shows the events of one answer: reasoning faint and aside, the answer as the result."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qwen_edge.cli.output import Output

if TYPE_CHECKING:
    from qwen_edge.runtime.events import Event


def show_events(events: "Iterable[Event]", out: Output) -> "Event":
    """Write an answer while it comes, and end its last line.

    Args:
        events: A stream of `Session`.
        out: Where to.

    Returns:
        The last event, which holds the reason for the end and the timings.
    """
    is_reasoning = False
    for event in events:
        if event.kind == "reasoning":
            is_reasoning = True
            out.faint(event.text)
        elif event.kind == "answer":
            if is_reasoning:
                out.notice("\n")
                is_reasoning = False
            out.model_text(event.text)
        else:
            if is_reasoning:
                out.notice()
            out.result("")
            return event
    raise AssertionError("a stream ends with a done event")
