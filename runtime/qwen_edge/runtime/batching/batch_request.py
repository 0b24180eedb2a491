"""One request to a batcher: what it asked for, how far it is, and what it was given.

A request that loses its memory begins again from what is noted here: the prompt, and the calls
that followed it one by one, since a token computed alone and one computed among others differ
in their last bits. It knows no threads; `scheduler.py` guards it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qwen_edge.errors import ParityError
from qwen_edge.runtime.backends.backend import Logits
from qwen_edge.runtime.batching.block_keys import BlockKey, name_blocks
from qwen_edge.runtime.decoding.picker import NewToken, TokenPicker
from qwen_edge.runtime.events import FinishReason, Timings


@dataclass(eq=False)
class BatchRequest:
    """One request.

    Args:
        prompt_ids: At least one.
        picker: Chooses its tokens; belongs to it.
        max_new_tokens: At least one.
        stop_token_ids: Ids that end the answer; the one that does is part of it.
        order: Its place in the line, for ever.
        block_tokens: Of the backend.

    State:
        `sequence_id` is None while it waits. `calls` are the tokens that follow the prompt as
        they are fed, the last one perhaps not fed yet; `num_calls_fed` counts. `tokens` only
        grows, and ends when `finish_reason` or `error` is set.
    """

    prompt_ids: Sequence[int]
    picker: TokenPicker
    max_new_tokens: int
    stop_token_ids: frozenset[int]
    order: int
    block_tokens: int
    sequence_id: int | None = None
    calls: list[list[int]] = field(default_factory=list)
    num_calls_fed: int = 0
    num_reused: int = 0
    is_counted: bool = False
    tokens: list[NewToken] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: BaseException | None = None

    def __post_init__(self) -> None:
        named = name_blocks(self.prompt_ids, (), self.block_tokens, tells_calls=True)
        self.prompt_keys: tuple[BlockKey, ...] = tuple(key for key, _ in named)
        self._submitted_s = time.perf_counter()
        self._first_s: float | None = None
        self._done_s: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come."""
        return self.finish_reason is not None or self.error is not None

    @property
    def num_known_tokens(self) -> int:
        """Tokens of the sequence so far, fed or not."""
        return len(self.prompt_ids) + sum(len(call) for call in self.calls)

    @property
    def max_reused(self) -> int:
        """Most tokens that need no computing: logits are wanted after the last call."""
        last = len(self.calls[-1]) if self.calls else 1
        return self.num_known_tokens - last

    def begin_at(self, sequence_id: int, num_cached: int) -> None:
        """Take note of the sequence it has from now on, and how much of that is cached."""
        self.sequence_id = sequence_id
        self.num_calls_fed = 0
        position = len(self.prompt_ids)
        while self.num_calls_fed < len(self.calls):
            position += len(self.calls[self.num_calls_fed])
            if position > num_cached:
                break
            self.num_calls_fed += 1

    def settle(self, logits: Logits) -> None:
        """Choose the tokens that the logits after the last one decide.

        Args:
            logits: float32 [vocab_size].

        Raises:
            ParityError: The logits are no numbers.
            EdgeError: As the picker.

        State:
            `tokens` grows; `calls` grows by what is to be fed, or `finish_reason` is set.
        """
        if self.is_done:
            return  # cancelled meanwhile
        _check_numbers(logits)
        burst: list[NewToken] = []
        remaining = self.max_new_tokens - len(self.tokens)
        is_stopped = False
        while len(burst) < remaining and not is_stopped:
            left = remaining - len(burst)
            forced = self.picker.take_forced(left)
            if burst and not forced:
                break  # the logits after it are not here
            for token in forced or [self.picker.pick(logits, left)]:
                burst.append(token)
                is_stopped = token.token_id in self.stop_token_ids
                if is_stopped:
                    break
        if self._first_s is None:
            self._first_s = time.perf_counter()
        self.calls.append([token.token_id for token in burst])
        self.tokens += burst  # before the end: who sees that has seen all
        if is_stopped or len(burst) == remaining:
            self.end("stop" if is_stopped else "length")

    def end(self, reason: FinishReason | None, error: BaseException | None = None) -> None:
        """Let nothing more come; the first end counts."""
        if not self.is_done:
            self.finish_reason, self.error = reason, error
            self._done_s = time.perf_counter()

    def read_timings(self) -> Timings:
        """Return counts and durations up to now; waiting counts."""
        now_s = time.perf_counter() if self._done_s is None else self._done_s
        return Timings(
            prompt_tokens=len(self.prompt_ids),
            reused_tokens=self.num_reused,
            prefill_tokens=len(self.prompt_ids) - self.num_reused,
            decode_tokens=len(self.tokens),
            forced_tokens=sum(token.is_forced for token in self.tokens),
            ttft_s=None if self._first_s is None else self._first_s - self._submitted_s,
            total_s=now_s - self._submitted_s,
        )


def _check_numbers(logits: Logits) -> None:
    """Refuse logits to choose by of which one is NaN or infinite."""
    num_bad = int(np.count_nonzero(~np.isfinite(logits)))
    if num_bad:
        raise ParityError(
            f"The model gave {num_bad:,} of {logits.size:,} logits that are no finite numbers. "
            "Other requests are not concerned.",
            "check the package with `qwen-edge verify`; if it is intact, export it again.",
            num_non_finite=num_bad,
        )
