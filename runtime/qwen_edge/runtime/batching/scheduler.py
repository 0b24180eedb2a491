"""The batcher: takes requests from any thread, makes steps, hands out tokens.

There is no thread of its own. A step is made by whoever waits for a token, one at a time, and
the others take theirs from it; a server may instead give one thread to `run`. What a step
computes is decided in `step_plan.py`; what a token is, by each request's own picker. A request
that goes wrong ends alone; a step that goes wrong ends those that were running.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from qwen_edge.errors import ContextFullError, DeviceError, EdgeError, QueueFullError, UsageError
from qwen_edge.runtime.backends.backend import LogitsRows
from qwen_edge.runtime.backends.checks import check_token_ids, closed_error
from qwen_edge.runtime.batching.answer_handle import AnswerHandle
from qwen_edge.runtime.batching.batch_backend import BatchBackend, Feed
from qwen_edge.runtime.batching.batch_options import BatchOptions, BatchStatistics
from qwen_edge.runtime.batching.batch_request import BatchRequest
from qwen_edge.runtime.batching.step_plan import Share, StepPlanner
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.limits import check_max_new_tokens

_LOGGER = logging.getLogger(__name__)
_WARM_UP_TOKENS = 16


class ContinuousBatcher:
    """Answers many requests at once on one backend.

    Args:
        backend: Owned and closed here; from now on only this object uses it.
        options: Limits and budgets.

    State:
        Open until `close`. `_changed` guards everything but what only a step touches: the
        planner and the backend. `_is_stepping` says that somebody is making one.
    """

    def __init__(self, backend: BatchBackend, options: BatchOptions | None = None) -> None:
        self.options = options or BatchOptions()
        self._backend = backend
        self._planner = StepPlanner(backend, self.options)
        self._changed = threading.Condition()
        self._incoming: list[BatchRequest] = []
        self._num_submitted = 0
        self._num_steps = 0
        self._is_stepping = False
        self._is_closing = False
        self._is_closed = False
        self._listeners: dict[BatchRequest, Callable[[], None]] = {}

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of one request, prompt and answer together."""
        return self._backend.max_context_tokens

    @property
    def vocab_size(self) -> int:
        """Length of the logits."""
        return self._backend.vocab_size

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closing

    def submit(
        self,
        prompt_ids: Sequence[int],
        picker: TokenPicker,
        *,
        max_new_tokens: int,
        stop_token_ids: Sequence[int] = (),
        on_change: Callable[[], None] | None = None,
    ) -> AnswerHandle:
        """Ask for an answer; from any thread. Nothing is computed here.

        Args:
            prompt_ids: At least one id, each in [0, vocab_size).
            picker: Chooses the tokens; belongs to this answer.
            max_new_tokens: Most tokens of the answer, at least one.
            stop_token_ids: Ids that end it; the one that does is part of it.
            on_change: Called after every step that added to the answer or ended it, by who made
                the step or closed the batcher. It must return at once.

        Raises:
            ContextFullError: Prompt and answer can never fit.
            QueueFullError: Too many requests are waiting.
            UsageError: There are no ids, one is outside the vocabulary, `max_new_tokens` is
                out of range, or the batcher is closed.
        """
        try:
            check_token_ids(prompt_ids, self.vocab_size)
        except ValueError as error:
            raise UsageError(
                f"The prompt cannot be fed: {error}.",
                "encode it with this model's tokenizer.",
            ) from error
        check_max_new_tokens(max_new_tokens)
        self._check_fits(len(prompt_ids), max_new_tokens)
        with self._changed:
            if self._is_closing:
                raise closed_error()
            num_waiting = self._count_waiting()
            if num_waiting >= self.options.max_waiting:
                raise QueueFullError(
                    f"{num_waiting:,} requests are waiting already, and at most "
                    f"{self.options.max_waiting:,} may.",
                    "ask again when some of them are answered.",
                    num_waiting=num_waiting,
                    max_waiting=self.options.max_waiting,
                )
            request = BatchRequest(
                prompt_ids=tuple(prompt_ids),
                picker=picker,
                max_new_tokens=max_new_tokens,
                stop_token_ids=frozenset(stop_token_ids),
                order=self._num_submitted,
                block_tokens=self._backend.block_tokens,
            )
            self._num_submitted += 1
            self._incoming.append(request)
            if on_change is not None:
                self._listeners[request] = on_change
            self._changed.notify_all()
        return AnswerHandle(self, request)

    def step(self) -> bool:
        """Make one step, after the one that may be in the making; return whether there was work.

        Raises:
            UsageError: The batcher is closed.
        """
        self._enter(lambda: False)
        return self._step_and_leave()

    def step_until(self, is_ready: Callable[[], bool]) -> None:
        """Make steps, or wait for those that others make, until something is so.

        Args:
            is_ready: Asked after every step. It must become true by steps alone.
        """
        while self._enter(is_ready):
            self._step_and_leave()

    def run(self) -> None:
        """Make steps until the batcher is closed; for a thread that does nothing else."""
        while not self._is_closed:
            try:
                had_work = self.step()
            except UsageError:
                return  # closed in between
            with self._changed:
                if not had_work and not self._incoming and not self._is_closing:
                    self._changed.wait()

    def warm_up(self) -> None:
        """Run the first, slow inference; requests wait for it. For a thread of its own.

        A failure is that of a step: it is logged, and ends what was running.
        """
        if not self._enter(lambda: self._is_closing):
            return
        changed: list[BatchRequest] = []
        started_s = time.monotonic()
        ids = [0] * min(_WARM_UP_TOKENS, self.max_context_tokens - 1)
        try:
            sequence_id = self._backend.begin(ids, max_reused=0)
            if self._backend.reserve(sequence_id, len(ids) + 1):
                for call in (ids, [0]):  # a prompt and a single token use different kernels
                    self._backend.step([Feed(sequence_id, call, True)])
            self._backend.free(sequence_id)
            _LOGGER.info("Warmed up in %.1f s", time.monotonic() - started_s)
        except EdgeError as error:
            changed = self._fail_all(error)
        finally:
            self._leave(changed)

    def cancel(self, request: BatchRequest) -> None:
        """End a request; it leaves its place at the next step. Harmless when it is done."""
        with self._changed:
            request.end("cancelled")
            self._listeners.pop(request, None)
            self._changed.notify_all()

    def statistics(self) -> BatchStatistics:
        """Return what is going on and what has been done."""
        with self._changed:
            backend, planner = self._backend, self._planner
            num_available = backend.num_blocks if self._is_closed else backend.num_blocks_available
            return BatchStatistics(
                num_running=sum(not request.is_done for request in planner.running),
                num_waiting=self._count_waiting(),
                num_blocks=backend.num_blocks,
                num_blocks_used=backend.num_blocks - num_available,
                num_blocks_cached=backend.num_blocks_cached,
                num_steps=self._num_steps,
                prompt_tokens=planner.prompt_tokens,
                hit_tokens=planner.hit_tokens,
                num_preemptions=planner.num_preemptions,
            )

    def close(self) -> None:
        """Cancel all requests and release the backend; closing twice is harmless.

        A step in the making is waited for.
        """
        with self._changed:
            self._is_closing = True
            while self._is_stepping:
                self._changed.wait()
            self._is_closed = True
            planner = self._planner
            for request in [*planner.running, *planner.waiting, *self._incoming]:
                request.end("cancelled")
            listeners = list(self._listeners.values())
            self._listeners.clear()
            self._backend.close()
            self._changed.notify_all()
        _tell(listeners)

    def _count_waiting(self) -> int:
        """Return how many requests are in the line; those that were cancelled are not."""
        return sum(not request.is_done for request in (*self._incoming, *self._planner.waiting))

    def _enter(self, is_ready: Callable[[], bool]) -> bool:
        """Take the right to make a step; False where there is no need any more."""
        with self._changed:
            while True:
                if is_ready():
                    return False
                if self._is_closed:
                    raise closed_error()
                if not self._is_stepping and not self._is_closing:
                    self._is_stepping = True
                    return True
                self._changed.wait()

    def _step_and_leave(self) -> bool:
        changed: list[BatchRequest] = []
        try:
            return self._step(changed)
        finally:
            self._leave(changed)

    def _leave(self, changed: Sequence[BatchRequest]) -> None:
        """Give the right to make a step back, and tell who has news."""
        with self._changed:
            self._is_stepping = False
            listeners = [self._listeners[one] for one in changed if one in self._listeners]
            for request in changed:
                if request.is_done:
                    self._listeners.pop(request, None)
            self._changed.notify_all()
        _tell(listeners)

    def _step(self, changed: list[BatchRequest]) -> bool:
        """Plan, compute, settle. What goes wrong in the engine ends all that run."""
        self._sweep()
        try:
            shares = self._planner.plan()
            if not shares:
                return False
            rows = self._backend.step(
                [Feed(share.sequence_id, share.token_ids, share.is_scored) for share in shares]
            )
            self._num_steps += 1
            self._planner.take_note(shares)
            self._settle([share for share in shares if share.is_scored], rows, changed)
        except BaseException as error:
            changed += self._fail_all(error)
            if not isinstance(error, Exception):
                raise
        return True

    def _sweep(self) -> None:
        """Let new requests in and cancelled ones out."""
        with self._changed:
            self._planner.waiting += self._incoming
            self._incoming.clear()
            here = [*self._planner.running, *self._planner.waiting]
        for request in here:
            if request.is_done:
                self._planner.remove(request)

    def _settle(
        self, scored: Sequence[Share], rows: LogitsRows, changed: list[BatchRequest]
    ) -> None:
        """Choose the next tokens of each answer."""
        for share, logits in zip(scored, rows, strict=True):
            request = share.request
            changed.append(request)
            try:
                request.settle(logits)
            except Exception as error:  # a picker's: this request's own business
                request.end(None, error)
            if request.is_done:
                self._planner.remove(request)

    def _fail_all(self, error: BaseException) -> list[BatchRequest]:
        """End what was running with the error; what waits is not concerned."""
        is_interrupt = not isinstance(error, Exception)
        told = DeviceError("A step was interrupted.", "ask again.") if is_interrupt else error
        lost = self._planner.lose_all()
        if not is_interrupt:  # Ctrl-C is no fault to tell of
            _LOGGER.warning("A step of %d requests failed: %s", len(lost), error)
        for request in lost:
            request.end(None, told)
        return lost

    def _check_fits(self, num_prompt_tokens: int, max_new_tokens: int) -> None:
        """Refuse what no amount of waiting makes room for."""
        needed = num_prompt_tokens + max_new_tokens
        limit = self.max_context_tokens
        if needed > limit:
            raise ContextFullError(
                f"The request needs up to {needed:,} tokens ({num_prompt_tokens:,} of prompt and "
                f"{max_new_tokens:,} new ones), but one request may have {limit:,} here.",
                f"shorten the prompt or max_new_tokens by {needed - limit:,}, or give the cache "
                "more memory.",
                needed_tokens=needed,
                max_context_tokens=limit,
            )


def _tell(listeners: Sequence[Callable[[], None]]) -> None:
    """Say that there is news; a listener that fails is no reason for others not to be told."""
    for listener in listeners:
        try:
            listener()
        except Exception:
            _LOGGER.exception("on_change of an answer failed")
