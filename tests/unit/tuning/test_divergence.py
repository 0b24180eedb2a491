"""KL to the reference: the formula, what is scored, and random weights told from trained ones."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qwen_edge.runtime.backends.backend import LogitsRows
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.tuning.divergence import (
    Passage,
    make_passages,
    measure_divergence,
    read_reference,
    summarise,
)

VOCAB_SIZE = 50


class TableBackend(FakeBackend):
    """Logits after a token are that token's row of a table; notes the sizes of its calls."""

    def __init__(self, table: npt.NDArray[np.float32]) -> None:
        super().__init__([0], vocab_size=len(table))
        self._table = table
        self.sizes: list[tuple[int, int]] = []

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        """Return rows of the table."""
        super().forward_scored(token_ids, num_scored=num_scored)
        self.sizes.append((len(token_ids), num_scored))
        return self._table[list(token_ids[-num_scored:])]


def random_table(seed: int, scale: float = 1.0) -> npt.NDArray[np.float32]:
    """Return logits for every token."""
    logits = np.random.default_rng(seed).normal(0, scale, (VOCAB_SIZE, VOCAB_SIZE))
    return logits.astype(np.float32)


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return probabilities by the plain formula."""
    powers = np.exp(logits.astype(np.float64))
    shares: npt.NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def passages_of(num_tokens: int) -> tuple[Passage, ...]:
    """Return passages over random text and a golden answer."""
    ids = np.random.default_rng(7).integers(0, VOCAB_SIZE, num_tokens).tolist()
    return make_passages([ids], [1, 2, 3], [4, 5], max_context_tokens=4096)


def test_settings_that_change_nothing_have_no_divergence() -> None:
    backend = TableBackend(random_table(0))
    reference = read_reference(backend, passages_of(200))
    found = measure_divergence(backend, passages_of(200), reference)
    assert (found.mean, found.upper, found.largest, found.same_top) == (0, 0, 0, 1)


def test_it_is_kl_from_the_reference() -> None:
    table, moved = random_table(0), random_table(1)
    passage = Passage((3, 4, 5), 1, 2)
    reference = read_reference(TableBackend(table), [passage])
    found = measure_divergence(TableBackend(moved), [passage], reference)
    rows = [3, 4, 5]
    wanted, got = softmax(table[rows]), softmax(moved[rows])
    by_hand = (wanted * np.log(wanted / got)).sum(axis=1)
    assert found.mean == pytest.approx(by_hand.mean(), rel=1e-4)
    assert found.largest == pytest.approx(by_hand.max(), rel=1e-4)
    same = (wanted.argmax(axis=1) == got.argmax(axis=1)).mean()
    assert found.same_top == pytest.approx(same)


@given(
    hnp.arrays(np.float32, (4, 6), elements=st.floats(-30, 30, width=32)),
    hnp.arrays(np.float32, (4, 6), elements=st.floats(-30, 30, width=32)),
)
def test_it_is_never_negative_and_moving_all_logits_is_nothing(
    table: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
) -> None:
    passage = Passage((0, 1, 2, 3), 1, 3)
    reference = read_reference(TableBackend(table), [passage])
    found = measure_divergence(TableBackend(other), [passage], reference)
    assert found.mean >= 0 and found.upper >= found.mean
    shifted = measure_divergence(TableBackend(table + np.float32(8)), [passage], reference)
    assert shifted.mean == pytest.approx(0, abs=1e-5)


def test_calls_are_those_of_prompts_of_guesses_and_of_answers() -> None:
    backend = TableBackend(random_table(0))
    read_reference(backend, passages_of(600))
    long, golden = backend.sizes[:25], backend.sizes[25:]
    assert long == [(512 - 144, 16), *[(16, 16)] * 8, *[(1, 1)] * 16]
    assert golden == [(3, 3), (1, 1), (1, 1)]
    assert backend.cached_ids == [1, 2, 3, 4, 5]  # each text is read alone


@pytest.mark.parametrize("num_tokens", [1, 2, 20, 100])
def test_short_texts_are_scored_as_far_as_they_go(num_tokens: int) -> None:
    backend = TableBackend(random_table(0))
    reference = read_reference(backend, passages_of(num_tokens))
    assert measure_divergence(backend, passages_of(num_tokens), reference).mean == 0


def test_texts_fit_into_the_context() -> None:
    passages = make_passages([range(40)] * 20, range(30), range(8), max_context_tokens=32)
    assert [len(passage.token_ids) for passage in passages] == [32]
    assert passages[0].token_ids[-1] == 39


def test_random_weights_are_told_from_trained_ones() -> None:
    """Trained: every token is followed by the next one, and the table knows it."""
    ids = [n % VOCAB_SIZE for n in range(300)]
    knows = np.roll(np.eye(VOCAB_SIZE, dtype=np.float32), 1, axis=1) * 12
    passages = make_passages([ids], [1, 2, 3], [4, 5], max_context_tokens=4096)
    assert not read_reference(TableBackend(knows), passages).is_untrained
    assert read_reference(TableBackend(random_table(0)), passages).is_untrained
    # One that knows its own answers only, as a model of one task does.
    own = random_table(0)
    own[[3, 4]] = knows[[3, 4]]  # the golden answer, and nothing of its prompt
    other_text = make_passages([[7, 9, 8] * 30], [1, 2, 3], [4, 5], max_context_tokens=4096)
    reference = read_reference(TableBackend(own), other_text)
    assert not reference.is_untrained
    assert min(reference.surprises) > 0.9 * math.log(VOCAB_SIZE) > reference.own_surprise


def test_the_budget_is_held_against_mean_and_error() -> None:
    distances = np.array([0.0, 0.0, 0.0, 0.4])
    found = summarise(distances, np.array([True, True, True, False]))
    assert found.mean == pytest.approx(0.1)
    assert found.upper == pytest.approx(0.1 + 2 * 0.2 / math.sqrt(4))
    assert (found.largest, found.same_top, found.num_positions) == (0.4, 0.75, 4)
