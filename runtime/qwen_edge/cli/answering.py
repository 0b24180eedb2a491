"""Shows the events of one answer: reasoning faint and aside, the answer as the result."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qwen_edge.cli.output import Output

if TYPE_CHECKING:
    from qwen_edge.runtime.events import Event
    from qwen_edge.runtime.tools.tool_call import ToolCall


def show_events(events: "Iterable[Event]", out: Output, *, may_call: bool = False) -> "Event":
    """Write an answer while it comes, and end its last line.

    Tool calls are the result where there are any, one line of JSON each. What is said besides
    them goes aside then; so with tools a program gets the text at the end, a person at once.

    Args:
        events: A stream of `Session`.
        out: Where to.
        may_call: Whether tools were offered.

    Returns:
        The last event, which holds the reason for the end and the timings.
    """
    writer = _AnswerWriter(out, holds_text=may_call and not out.is_watched)
    for event in events:
        if event.kind == "reasoning":
            writer.add_reasoning(event.text)
        elif event.kind == "answer":
            writer.add_text(event.text)
        elif event.tool_call is not None:
            writer.add_call(event.tool_call)
        elif event.kind == "done":
            writer.finish()
            return event
    raise AssertionError("a stream ends with a done event")


class _AnswerWriter:
    """Writes the parts of one answer.

    State:
        Knows in the middle of what it is, and keeps text back until it is clear whether calls
        come, where it is told to.
    """

    def __init__(self, out: Output, *, holds_text: bool) -> None:
        self._out = out
        self._holds_text = holds_text
        self._held: list[str] = []
        self._is_in_reasoning = False
        self._is_in_line = False
        self._has_calls = False

    def add_reasoning(self, text: str) -> None:
        """Write a piece of reasoning."""
        self._is_in_reasoning = True
        self._out.faint(text)

    def add_text(self, text: str) -> None:
        """Write or keep a piece of the answer."""
        self._end_reasoning("\n")
        if self._holds_text:
            self._held.append(text)
            return
        self._is_in_line = True
        self._out.model_text(text)

    def add_call(self, call: "ToolCall") -> None:
        """Write a call."""
        self._end_reasoning("\n")
        self._has_calls = True
        self._tell_held()
        if self._is_in_line:
            self._out.result("")
            self._is_in_line = False
        self._out.result_json_line(describe_call(call))

    def finish(self) -> None:
        """Write what was kept, and end the line."""
        self._end_reasoning("")
        if self._has_calls:
            self._tell_held()
        else:
            self._out.model_text("".join(self._held))
        if self._is_in_line or not self._has_calls:
            self._out.result("")

    def _tell_held(self) -> None:
        """Write aside what was said besides calls."""
        text = "".join(self._held).strip()
        if text:
            self._out.notice(text)
        self._held.clear()

    def _end_reasoning(self, between: str) -> None:
        if self._is_in_reasoning:
            self._is_in_reasoning = False
            self._out.notice(between)


def describe_call(call: "ToolCall") -> dict[str, object]:
    """Return a tool call as JSON data."""
    return {"id": call.id, "name": call.name, "arguments": call.arguments}


def describe_end(done: "Event") -> str:
    """Return one line of figures for a finished answer."""
    timings, finish_reason = done.timings, done.finish_reason
    assert timings is not None
    forced = f" ({timings.forced_tokens:,} forced)" if timings.forced_tokens else ""
    parts = [_count(timings.decode_tokens, "token") + forced]
    if timings.decode_tokens_per_s is not None:
        parts.append(f"{timings.decode_tokens_per_s:,.1f} tokens/s")
    if done.speculation is not None and done.speculation.num_accepted:
        parts.append(
            f"{done.speculation.num_accepted:,} of {done.speculation.num_proposed:,} guesses right"
        )
    if timings.ttft_s is not None:
        reused = f", {timings.reused_tokens:,} reused" if timings.reused_tokens else ""
        parts.append(
            f"first after {timings.ttft_s:.2f} s "
            f"({_count(timings.prefill_tokens, 'prompt token')} computed{reused})"
        )
    if done.dropped_messages:
        dropped = _count(len(done.dropped_messages), "old message")
        parts.append(f"{dropped} dropped to make it fit")
    if finish_reason == "length":
        where = " in the middle of a tool call" if done.is_call_cut_off else ""
        parts.append(f"cut off by the length limit{where}")
    elif finish_reason == "cancelled":
        parts.append("stopped by you")
    return ", ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
