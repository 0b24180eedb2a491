"""What a caller holds of a request: its tokens as they come, its end, and the way to stop it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from qwen_edge.runtime.batching.batch_request import BatchRequest
from qwen_edge.runtime.decoding.picker import NewToken
from qwen_edge.runtime.events import FinishReason, Timings

if TYPE_CHECKING:
    from qwen_edge.runtime.batching.scheduler import ContinuousBatcher


@dataclass(frozen=True)
class BatchResult:
    """A whole answer.

    Args:
        tokens: Of the answer, the stop token included; what there is of it after an error.
        finish_reason: Why it ended; None after an error.
        timings: Counts and durations; waiting counts.
        error: What went wrong with this request, or None.
    """

    tokens: tuple[NewToken, ...]
    finish_reason: FinishReason | None
    timings: Timings
    error: BaseException | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Ids of the answer."""
        return tuple(token.token_id for token in self.tokens)


class AnswerHandle:
    """One request of a `ContinuousBatcher`, from any thread.

    Args:
        batcher: Makes the answer.
        request: The request, which only grows.

    State:
        `iter_tokens` and `wait` take steps of the batcher where nobody else does.
    """

    def __init__(self, batcher: "ContinuousBatcher", request: BatchRequest) -> None:
        self._batcher = batcher
        self._request = request

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come."""
        return self._request.is_done

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer by now."""
        return len(self._request.tokens)

    @property
    def num_reused(self) -> int:
        """Tokens of the prompt that did not have to be computed; counts up to the first token."""
        return self._request.num_reused

    def read(self, start: int = 0) -> tuple[NewToken, ...]:
        """Return the tokens there are by now, from one on. Does not wait."""
        return tuple(self._request.tokens[start:])

    def iter_tokens(self) -> Iterator[NewToken]:
        """Yield the tokens as they come; closing the iterator cancels the request.

        Raises:
            EdgeError: What ended the request, after its last token.
        """
        num_given = 0
        try:
            while True:
                self._batcher.step_until(partial(self._has_more, num_given))
                new = self.read(num_given)
                if not new:
                    break
                yield from new
                num_given += len(new)
        finally:
            self.cancel()
        if self._request.error is not None:
            raise self._request.error

    def wait(self) -> BatchResult:
        """Return the whole answer when it is done; an error is part of it."""
        self._batcher.step_until(lambda: self.is_done)
        return self.result()

    def result(self) -> BatchResult:
        """Return the answer as far as it is."""
        request = self._request
        return BatchResult(
            self.read(), request.finish_reason, request.read_timings(), request.error
        )

    def cancel(self) -> None:
        """End the request, which then leaves at the next step. Harmless when it is done."""
        self._batcher.cancel(self._request)

    def _has_more(self, num_given: int) -> bool:
        return self.is_done or self.num_tokens > num_given
