"""Batchers on engines that say what a script says."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.batching.answer_handle import AnswerHandle
from qwen_edge.runtime.batching.batch_options import BatchOptions
from qwen_edge.runtime.batching.fake_paged import FakePagedEngine
from qwen_edge.runtime.batching.paged import PagedBatchBackend
from qwen_edge.runtime.batching.scheduler import ContinuousBatcher
from qwen_edge.runtime.batching.sequential import SequentialBatchBackend
from qwen_edge.runtime.decoding.constraint import Bitmask
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams

VOCAB_SIZE = 64
STOP_ID = 7


def scattered(token_ids: Sequence[int]) -> int:
    """Say an id that depends on every id before it, and now and then the end."""
    return zlib.crc32(np.array(token_ids, np.int32).tobytes()) % VOCAB_SIZE


@dataclass
class Bench:
    """A batcher and what it runs on.

    Args:
        engine: Of a paged backend; None where turns are taken.
    """

    batcher: ContinuousBatcher
    backend: Any
    engine: FakePagedEngine | None

    def ask(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int = 8,
        *,
        stops: bool = True,
        is_forced: bool = False,
    ) -> AnswerHandle:
        """Submit a prompt, to be answered greedily."""
        return self.batcher.submit(
            prompt_ids,
            greedy(is_forced=is_forced),
            max_new_tokens=max_new_tokens,
            stop_token_ids=[STOP_ID] if stops else [],
        )

    def check_nothing_leaked(self) -> None:
        """No request holds a block; called when all are done."""
        self.batcher.step()
        assert self.batcher.statistics().num_blocks_used == 0


class EveryFifth:
    """A constraint that wants three tokens after every chosen one that 5 divides."""

    def __init__(self) -> None:
        self._due: list[int] = []

    def mask(self, remaining_tokens: int) -> Bitmask | None:
        return None

    def forced(self, remaining_tokens: int) -> Sequence[int]:
        return tuple(self._due)

    def advance(self, token_id: int) -> None:
        if self._due:
            assert token_id == self._due.pop(0)
        else:
            self._due = due_after(token_id)

    def count_valid(self, token_ids: Sequence[int]) -> int:
        return len(token_ids)


def due_after(token_id: int) -> list[int]:
    return [] if token_id % 5 else [(token_id + more) % VOCAB_SIZE for more in (1, 2, 4)]


def greedy(*, is_forced: bool = False) -> TokenPicker:
    return TokenPicker(Sampler(SamplingParams(temperature=0)), EveryFifth() if is_forced else None)


def make_paged(
    *,
    num_blocks: int = 100,
    script: Callable[[Sequence[int]], int | None] = scattered,
    fail_at_call: Sequence[int] = (),
    reuses_answers: bool = False,
    **options: int,
) -> Bench:
    engine = FakePagedEngine(script, vocab_size=VOCAB_SIZE, fail_at_call=fail_at_call)
    backend = PagedBatchBackend(
        engine,
        max_context_tokens=10_000,
        cache_bytes=num_blocks + 1,  # a block is a byte there, and one is for padding
        reuses_answers=reuses_answers,
    )
    return Bench(ContinuousBatcher(backend, BatchOptions(**options)), backend, engine)


def make_turns(*, max_sequences: int = 3, num_blocks: int = 100, **options: int) -> Bench:
    backend = SequentialBatchBackend(
        FakeBackend(scattered, vocab_size=VOCAB_SIZE, max_context_tokens=10_000),
        max_sequences=max_sequences,
        max_cached_tokens=num_blocks * 4,
        block_tokens=4,
    )
    return Bench(ContinuousBatcher(backend, BatchOptions(**options)), backend, None)


def answer_alone(
    prompt_ids: Sequence[int],
    max_new_tokens: int = 8,
    *,
    stops: bool = True,
    is_forced: bool = False,
) -> list[int]:
    """What the script says to a prompt that nothing else runs beside."""
    answer: list[int] = []
    due: list[int] = []
    while len(answer) < max_new_tokens and not (stops and STOP_ID in answer):
        if due:
            answer.append(due.pop(0))
            continue
        answer.append(scattered([*prompt_ids, *answer]))
        due = due_after(answer[-1]) if is_forced else []
    return answer


@pytest.fixture
def make_bench() -> Callable[..., Bench]:
    """Return a maker of batchers on a paged engine without arithmetic."""
    return make_paged


@pytest.fixture(params=[make_paged, make_turns], ids=["paged", "sequential"])
def make_any_bench(request: pytest.FixtureRequest) -> Callable[..., Bench]:
    """Return makers of batchers on each kind of backend in turn."""
    maker: Callable[..., Bench] = request.param
    return maker


@pytest.fixture(scope="session")
def alone() -> Callable[..., list[int]]:
    """Return a function (prompt_ids, max_new_tokens) → the answer without anything beside."""
    return answer_alone


@pytest.fixture(scope="session")
def makers() -> tuple[Callable[..., Bench], Callable[..., Bench]]:
    """Return the makers of both kinds of batchers."""
    return make_paged, make_turns
