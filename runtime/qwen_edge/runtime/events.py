"""What a stream yields: one frozen event with a kind, and the timings of a turn.

This module holds data only. It does not know how text is made; `session.py` does.
"""

from dataclasses import dataclass
from typing import Literal

EventKind = Literal["reasoning", "answer", "done"]
FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Timings:
    """Counts and durations of one turn.

    Args:
        prompt_tokens: Length of the whole rendered conversation.
        reused_tokens: How many of them were still in the cache from earlier turns.
        prefill_tokens: How many were computed; `prompt_tokens - reused_tokens`.
        decode_tokens: New tokens, the stop token included.
        ttft_s: Seconds from the first `next()` of the stream to the first new token; None
            when there was none. Includes waiting for the warm-up.
        total_s: Seconds from the first `next()` to the end. Time that the reader of the
            stream spends between two events counts.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
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
        kind: "reasoning" and "answer" carry text; "done" is the last event.
        text: New text, whole characters only. Empty for "done".
        token_ids: Ids consumed since the previous event. Joined over all events they are
            exactly the generated ids, so think tags and the stop token are included.
        finish_reason: None until the last event.
        timings: Set on the last event only.
    """

    kind: EventKind
    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    timings: Timings | None = None


@dataclass(frozen=True)
class Answer:
    """A whole turn, as `Session.ask` returns it.

    Args:
        text: The answer without reasoning and without the stop string.
        reasoning: Text between the think tags; empty without thinking.
        token_ids: Every generated id.
        finish_reason: Why it ended.
        timings: Counts and durations.
    """

    text: str
    reasoning: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    timings: Timings
