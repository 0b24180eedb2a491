"""What a stream yields: one frozen event with a kind, and the timings of a turn.

This module holds data only. It does not know how text is made; `session.py` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from qwen_edge.runtime.decoding.sampling import TokenLogprobs

if TYPE_CHECKING:
    from qwen_edge.runtime.decoding.draft_account import SpeculationStats
    from qwen_edge.runtime.tools.tool_call import ToolCall, ToolCallDelta

EventKind = Literal["reasoning", "answer", "tool_call_delta", "tool_call", "done"]
FinishReason = Literal["stop", "tool_calls", "length", "cancelled"]


@dataclass(frozen=True)
class Timings:
    """Counts and durations of one turn.

    Args:
        prompt_tokens: Length of the whole rendered conversation.
        reused_tokens: How many of them were still in the cache from earlier turns.
        prefill_tokens: How many were computed; `prompt_tokens - reused_tokens`.
        decode_tokens: New tokens, the stop token included.
        forced_tokens: How many of them were the only ones possible, and so cost no step.
        reasoning_tokens: How many of them belong to the reasoning, its tags included.
        ttft_s: Seconds from the first `next()` of the stream to the first new token; None
            when there was none. Includes waiting for the warm-up.
        total_s: Seconds from the first `next()` to the end. Time that the reader of the
            stream spends between two events counts.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    forced_tokens: int = 0
    reasoning_tokens: int = 0
    ttft_s: float | None = None
    total_s: float = 0.0

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens computed per second; None when there was no first token."""
        if not self.ttft_s:
            return None
        return self.prefill_tokens / self.ttft_s

    @property
    def decode_tokens_per_s(self) -> float | None:
        """New tokens per second after the first one; None with fewer than two tokens."""
        if self.ttft_s is None or self.decode_tokens < 2 or self.total_s <= self.ttft_s:
            return None
        return (self.decode_tokens - 1) / (self.total_s - self.ttft_s)


@dataclass(frozen=True)
class Event:
    """One step of a stream.

    Args:
        kind: "reasoning" and "answer" carry text, "tool_call_delta" a piece of a call as it
            comes, "tool_call" a whole one; "done" is the last event.
        text: New text, whole characters only; empty for calls and for "done".
        token_ids: Ids consumed since the previous event. Joined over all events they are
            exactly the generated ids, so think tags and the stop token are included.
        logprobs: One entry for each of `token_ids` where they were asked for, else empty; None
            for a token that was the only one possible.
        tool_call: The call; set for "tool_call" only.
        tool_call_delta: The piece; set for "tool_call_delta" only.
        finish_reason: None until the last event.
        timings: Set on the last event only.
        dropped_messages: On the last event: messages left out to make the conversation fit.
        speculation: On the last event: how guessing ahead went; None where none was made.
        message: On the last event: the whole answer as a message of the conversation.
        is_call_cut_off: On the last event: whether it ended in the middle of a tool call.
        notices: On the last event: what the reader should know besides, in sentences; such as
            that the device stopped and another went on.
    """

    kind: EventKind
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    timings: Timings | None = None
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    tool_call: "ToolCall | None" = None
    tool_call_delta: "ToolCallDelta | None" = None
    dropped_messages: tuple[Mapping[str, object], ...] = ()
    speculation: "SpeculationStats | None" = None
    message: Mapping[str, object] = field(default_factory=dict)
    is_call_cut_off: bool = False
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A whole turn, as `Session.ask` returns it.

    Args:
        text: The answer without reasoning, tool calls and the stop string.
        reasoning: Text between the think tags; empty without thinking.
        token_ids: Every generated id.
        finish_reason: Why it ended: "stop", "tool_calls", "length" or "cancelled".
        timings: Counts and durations.
        tool_calls: What the model wants called, in order.
        logprobs: See `Event`.
        dropped_messages: Messages left out to make the conversation fit; oldest first.
        speculation: How guessing ahead went; None where none was made.
        is_call_cut_off: Whether the answer ended in the middle of a tool call.
        message: The answer as a message, as the session remembers it.
        notices: See `Event`.
    """

    text: str
    reasoning: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    timings: Timings
    tool_calls: "tuple[ToolCall, ...]" = ()
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    dropped_messages: tuple[Mapping[str, object], ...] = ()
    speculation: "SpeculationStats | None" = None
    is_call_cut_off: bool = False
    message: Mapping[str, object] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
