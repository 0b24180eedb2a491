"""Decides what each step computes: who runs, who waits, whose turn it is.

The rules. Requests begin in the order they came. One begins when there are blocks for all it has
so far and one more for each that runs. Every running answer gets its token in every step; what
the step has left goes to prompts, the oldest first, in pieces that end at whole blocks. Where a
block is missing, the youngest request is put back in the line and computed again later: the
oldest always goes on, so that there is no standstill. A prompt that begins as another one that
is just being computed waits a step and takes the blocks.

It computes nothing and has no threads; `scheduler.py` runs what is planned.
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from qwen_edge.runtime.batching.batch_backend import BatchBackend
from qwen_edge.runtime.batching.batch_options import BatchOptions
from qwen_edge.runtime.batching.batch_request import BatchRequest
from qwen_edge.runtime.batching.block_keys import BlockKey, cut_prompt


@dataclass(frozen=True, slots=True)
class Share:
    """What one request has in a step.

    Args:
        request: Running.
        sequence_id: Of the request.
        token_ids: To be fed.
        is_scored: Whether its next token is chosen after this.
    """

    request: BatchRequest
    sequence_id: int
    token_ids: Sequence[int]
    is_scored: bool


class StepPlanner:
    """Who runs and who waits.

    Args:
        backend: Sequences are begun, given memory and freed here, and nowhere else.
        options: Limits and budgets.

    State:
        `running` and `waiting` hold requests in their order.
    """

    def __init__(self, backend: BatchBackend, options: BatchOptions) -> None:
        self._backend = backend
        self._options = options
        self.running: list[BatchRequest] = []
        self.waiting: list[BatchRequest] = []
        self.prompt_tokens = 0
        self.hit_tokens = 0
        self.num_preemptions = 0

    def plan(self) -> list[Share]:
        """Return what the next step computes; nothing only where nobody runs or waits."""
        shares = self._plan_answers()
        self._admit()
        options = self._options
        budget = options.shared_step_tokens if shares else options.step_tokens
        return shares + self._plan_prompts(budget)

    def take_note(self, shares: Sequence[Share]) -> None:
        """Count what a step computed."""
        for share in shares:
            request = share.request
            is_answering = self._position(request) > len(request.prompt_ids)
            request.num_calls_fed += is_answering

    def remove(self, request: BatchRequest) -> None:
        """Take a request out, wherever it is, with its memory."""
        if request in self.running:
            self.running.remove(request)
        if request in self.waiting:
            self.waiting.remove(request)
        if request.sequence_id is not None:
            self._backend.free(request.sequence_id)
            request.sequence_id = None

    def lose_all(self) -> list[BatchRequest]:
        """Take out all running requests after a failure, or the next one; return them."""
        lost, self.running = self.running, []
        for request in lost:
            request.sequence_id = None
        self._backend.reset()
        if not lost:  # it was its turn that failed: without this it would fail for ever
            lost, self.waiting = self.waiting[:1], self.waiting[1:]
        return lost

    def _plan_answers(self) -> list[Share]:
        """Return the next call of every running answer, making room where it is missing."""
        shares: list[Share] = []
        for request in list(self.running):
            if request.sequence_id is None or self._is_reading(request):
                continue  # put back a moment ago, or not as far
            call = request.calls[request.num_calls_fed]
            while request.sequence_id is not None:
                if self._backend.reserve(request.sequence_id, len(call)):
                    is_last = request.num_calls_fed == len(request.calls) - 1
                    shares.append(Share(request, request.sequence_id, call, is_last))
                    break
                self._put_back(self.running[-1])
        return shares

    def _put_back(self, request: BatchRequest) -> None:
        self.remove(request)
        self.num_preemptions += 1
        insort(self.waiting, request, key=lambda item: item.order)

    def _admit(self) -> None:
        """Let waiting requests begin, in order, as long as there is room."""
        limit = min(self._options.max_running, self._backend.max_sequences or 1 << 31)
        while self.waiting and len(self.running) < limit:
            request = self.waiting[0]
            sequence_id = self._backend.begin(
                request.prompt_ids, request.calls, max_reused=request.max_reused
            )
            num_cached = self._backend.cached_tokens(sequence_id)
            has_room = self._backend.reserve(sequence_id, request.num_known_tokens - num_cached)
            if has_room and self.running:
                has_room = self._backend.num_blocks_available > len(self.running)
            if not has_room:
                self._backend.free(sequence_id)
                return
            self.waiting.pop(0)
            insort(self.running, request, key=lambda item: item.order)
            request.begin_at(sequence_id, num_cached)
            if not request.is_counted:
                request.is_counted = True
                self.prompt_tokens += len(request.prompt_ids)
                self._count_hits(request, num_cached)

    def _plan_prompts(self, budget: int) -> list[Share]:
        """Return pieces of prompts, the oldest first; at least one where a prompt is there."""
        shares: list[Share] = []
        in_the_making: set[BlockKey] = set()
        block_tokens = self._backend.block_tokens
        for request in self.running:
            if request.sequence_id is None or not self._is_reading(request):
                continue
            num_moved = self._backend.reuse(request.sequence_id)
            if num_moved and not request.calls:
                self._count_hits(request, num_moved)
            start, num_prompt = self._position(request), len(request.prompt_ids)
            next_key = request.prompt_keys[start // block_tokens :][:1]
            if in_the_making.intersection(next_key):
                continue
            end = cut_prompt(start, num_prompt, block_tokens=block_tokens, budget=budget)
            if shares and end - start > budget:
                break
            in_the_making.update(request.prompt_keys[start // block_tokens : end // block_tokens])
            is_scored = end == num_prompt and not request.calls
            piece = request.prompt_ids[start:end]
            shares.append(Share(request, request.sequence_id, piece, is_scored))
            budget -= end - start
        return shares

    def _count_hits(self, request: BatchRequest, num_tokens: int) -> None:
        request.num_reused += num_tokens
        self.hit_tokens += num_tokens

    def _position(self, request: BatchRequest) -> int:
        assert request.sequence_id is not None
        return self._backend.cached_tokens(request.sequence_id)

    def _is_reading(self, request: BatchRequest) -> bool:
        """Return whether a part of the prompt is still to be computed."""
        return self._position(request) < len(request.prompt_ids)
