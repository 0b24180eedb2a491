"""Limits on thinking: closed once, in time, and what follows sees exactly the answer's tokens."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_edge.errors import PackageError, UsageError
from qwen_edge.runtime.decoding.constraint import Bitmask, unpack_mask
from qwen_edge.runtime.decoding.reasoning import (
    ENDING_TEXT,
    ReasoningConstraint,
    check_budget_tokens,
    make_ending_ids,
    read_reasoning_start,
)
from qwen_edge.runtime.fake_model import make_fake_tokenizer
from qwen_edge.runtime.text_tokenizer import TextTokenizer

VOCAB_SIZE, OPEN, CLOSE, STOP = 40, 30, 31, 32
ENDING = (5, 6, CLOSE, 7, 7)
LAYOUT = ENDING[3:]
INNER_IDS = range(10, 20)


class Recorder:
    """A constraint that takes the ids 10 to 19, forces 11 after 10, and ends with the stop id."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def mask(self, remaining_tokens: int) -> Bitmask | None:
        del remaining_tokens
        bits = np.zeros(64, dtype=np.uint8)
        bits[[*INNER_IDS, STOP]] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def forced(self, remaining_tokens: int) -> Sequence[int]:
        del remaining_tokens
        return (11,) if self.seen[-1:] == [10] else ()

    def advance(self, token_id: int) -> None:
        assert token_id in (*INNER_IDS, STOP)
        self.seen.append(token_id)

    def count_valid(self, token_ids: Sequence[int]) -> int:
        allowed = (*INNER_IDS, STOP)
        return next((i for i, t in enumerate(token_ids) if t not in allowed), len(token_ids))


def make(**options: object) -> ReasoningConstraint:
    defaults: dict[str, object] = {
        "vocab_size": VOCAB_SIZE,
        "starts_open": False,
        "ending_ids": ENDING,
        "stop_token_ids": [STOP],
    }
    return ReasoningConstraint(OPEN, CLOSE, **(defaults | options))  # type: ignore[arg-type]


def allowed_by(constraint: ReasoningConstraint, remaining: int) -> set[int]:
    mask = constraint.mask(remaining)
    assert mask is not None
    return set(np.flatnonzero(unpack_mask(mask, VOCAB_SIZE)).tolist())


def run(
    constraint: ReasoningConstraint, total: int, choose: Callable[[list[int]], int]
) -> tuple[list[int], int]:
    """Make an answer as the token loop does; return it, and how many tokens were chosen.

    What is chosen comes before what is forced, but for the inner constraint's.
    """
    ids: list[int] = []
    num_thought = 0
    while len(ids) < total and STOP not in ids:
        forced = list(constraint.forced(total - len(ids)))[: total - len(ids)]
        allowed = sorted(allowed_by(constraint, total - len(ids)))
        assert not forced or constraint.count_valid(forced) == len(forced)
        was_thinking = constraint.is_thinking
        for token_id in forced or [choose(allowed)]:
            assert constraint.count_valid([token_id]) == 1
            constraint.advance(token_id)
            ids.append(token_id)
        num_thought += was_thinking and constraint.is_thinking and not forced
    return ids, num_thought


@given(
    total=st.integers(1, 60),
    budget=st.none() | st.integers(0, 40),
    starts_open=st.booleans(),
    has_inner=st.booleans(),
    reserve=st.integers(0, 300),
    tags=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
@example(total=1, budget=None, starts_open=True, has_inner=True, reserve=256, tags=0, seed=0)
@example(total=60, budget=0, starts_open=False, has_inner=True, reserve=0, tags=1, seed=1)
def test_the_block_is_closed_once_in_time_and_the_inner_constraint_sees_the_answer(
    total: int,
    budget: int | None,
    starts_open: bool,
    has_inner: bool,
    reserve: int,
    tags: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)

    def choose(allowed: list[int]) -> int:
        favoured = [token_id for token_id in allowed if token_id in (OPEN, CLOSE, STOP)]
        return int(rng.choice(favoured if favoured and rng.random() < tags / 2 else allowed))

    inner = Recorder() if has_inner else None
    constraint = make(
        starts_open=starts_open, budget_tokens=budget, inner=inner, reserve_tokens=reserve
    )
    ids, num_chosen = run(constraint, total, choose)

    is_opened = starts_open or ids[0] == OPEN
    assert ids.count(OPEN) == (is_opened and not starts_open)
    if not is_opened:
        assert CLOSE not in ids
        assert inner is None or inner.seen == ids
        return
    assert ids.count(CLOSE) == (total > 1 or starts_open)
    if CLOSE not in ids:
        return
    end = ids.index(CLOSE)
    thought, answer = ids[:end][not starts_open :], ids[end + 1 :]
    assert STOP not in thought
    assert len(thought) == constraint.num_thought_tokens
    assert num_chosen <= (total if budget is None else budget)
    if constraint.is_cut_short and total >= 5:
        room, kept = total - end - 1 - len(LAYOUT), min(reserve, total // 4)
        assert room == kept or (num_chosen == budget and room > kept)
        assert thought[num_chosen:] in ([], list(ENDING[:2]))
    if inner is not None:
        assert tuple(answer[: len(LAYOUT)]) == LAYOUT[: len(answer)]
        assert inner.seen == answer[len(LAYOUT) :]


def test_the_budget_ends_the_thought_with_the_sentence() -> None:
    inner = Recorder()
    constraint = make(budget_tokens=3, inner=inner, reserve_tokens=0)
    assert allowed_by(constraint, 100) == {*INNER_IDS, STOP, OPEN}
    assert constraint.forced(100) == ()
    for count, token_id in enumerate((OPEN, 5, 6, CLOSE + 3)):
        assert constraint.forced(100 - count) == ()
        constraint.advance(token_id)
    assert constraint.forced(96) == ENDING
    assert allowed_by(constraint, 96) == {5}
    assert constraint.count_valid([*ENDING, 12, 13, 5]) == len(ENDING) + 2
    assert constraint.count_valid([CLOSE]) == 0
    for token_id in ENDING:
        constraint.advance(token_id)
    assert (constraint.is_cut_short, constraint.is_thinking) == (True, False)
    assert constraint.num_thought_tokens == 3 + 2
    assert allowed_by(constraint, 91) == {*INNER_IDS, STOP}
    constraint.advance(10)
    assert constraint.forced(90) == (11,)
    assert inner.seen == [10]


def test_the_model_may_close_by_itself_and_is_not_forced_to_anything_without_a_grammar() -> None:
    constraint = make(starts_open=True, budget_tokens=3)
    assert OPEN not in allowed_by(constraint, 100)
    assert STOP not in allowed_by(constraint, 100)
    for token_id in (1, CLOSE):
        constraint.advance(token_id)
    assert constraint.forced(98) == ()
    assert not constraint.is_cut_short
    assert allowed_by(constraint, 98) == set(range(VOCAB_SIZE)) - {OPEN, CLOSE}
    for token_id in (OPEN, CLOSE):
        with pytest.raises(UsageError, match="neither be opened nor closed"):
            constraint.advance(token_id)


@pytest.mark.parametrize(
    ("total", "num_own", "ending"),
    [
        (2_000, 2_000 - 256 - 5, ENDING),
        (40, 25, ENDING),
        (16, 16 - 4 - 3, ENDING[2:]),  # a quarter for the answer, too little for the sentence
    ],
)
def test_an_answer_is_kept_room_for(total: int, num_own: int, ending: tuple[int, ...]) -> None:
    constraint = make(starts_open=True)
    ids, num_chosen = run(constraint, total, lambda allowed: 1 if 1 in allowed else allowed[0])
    assert num_chosen == num_own
    assert tuple(ids[num_own : num_own + len(ending)]) == ending


def test_a_token_out_of_place_changes_nothing() -> None:
    inner = Recorder()
    constraint = make(starts_open=True, budget_tokens=1, inner=inner)
    with pytest.raises(UsageError, match="only `</think>` ends it"):
        constraint.advance(STOP)
    constraint.advance(1)
    with pytest.raises(UsageError, match="expected 5, which is forced"):
        constraint.advance(1)
    assert constraint.forced(50) == ENDING
    assert inner.seen == []


def test_nothing_is_sampled_from_outside_the_vocabulary() -> None:
    """Also where a grammar's mask is shorter than the model's, or longer."""
    constraint = make(vocab_size=100, inner=Recorder())
    mask = constraint.mask(9)
    assert mask is not None
    assert unpack_mask(mask, 100).sum() == len(INNER_IDS) + 2
    constraint.advance(12)
    mask = constraint.mask(8)
    assert mask is not None
    assert unpack_mask(mask, 100).sum() == len(INNER_IDS) + 1


def test_ending_ids(qwen3_tokenizer: TextTokenizer) -> None:
    close_id = qwen3_tokenizer.added_tokens["</think>"]
    ids = make_ending_ids(qwen3_tokenizer, close_id, budget_tokens=512)
    assert ids == make_ending_ids(qwen3_tokenizer, close_id)
    assert len(ids) == 24  # Qwen's documentation says so
    assert "".join(qwen3_tokenizer.decode([i]) for i in ids) == ENDING_TEXT
    blank, line_break = qwen3_tokenizer.encode("\n\n"), qwen3_tokenizer.encode("\n")
    assert make_ending_ids(qwen3_tokenizer, close_id, budget_tokens=24) == ids
    short = make_ending_ids(qwen3_tokenizer, close_id, budget_tokens=23)
    assert list(short) == [*line_break, close_id, *blank]
    empty = make_ending_ids(qwen3_tokenizer, close_id, budget_tokens=0)
    assert list(empty) == [*blank, close_id, *blank]
    with pytest.raises(PackageError, match="'</think>'"):
        make_ending_ids(qwen3_tokenizer, close_id + 1)
    with pytest.raises(ValueError, match="once"):
        make(ending_ids=[1, 2])


def test_an_empty_thought_is_written_as_the_template_writes_it() -> None:
    tokenizer = make_fake_tokenizer()
    open_id, close_id = (tokenizer.added_tokens[tag] for tag in ("<think>", "</think>"))
    constraint = ReasoningConstraint(
        open_id,
        close_id,
        vocab_size=tokenizer.vocab_size,
        starts_open=False,
        budget_tokens=0,
        ending_ids=make_ending_ids(tokenizer, close_id, budget_tokens=0),
    )
    constraint.advance(open_id)
    ids = [open_id, *constraint.forced(100)]
    assert ids == tokenizer.encode("<think>\n\n</think>\n\n", allow_special=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("assistant\n", "unopened"),
        ("assistant\n<think>\n", "open"),
        ("assistant\n<think>\n\n</think>\n\n", "closed"),
        ("<think>\nhm</think> and a long text", "unopened"),
        ("", "unopened"),
    ],
)
def test_the_end_of_a_prompt_says_whether_a_thought_is_open(text: str, expected: str) -> None:
    tokenizer = make_fake_tokenizer()
    ids = tokenizer.encode(text, allow_special=True)
    open_id, close_id = (tokenizer.added_tokens[tag] for tag in ("<think>", "</think>"))
    assert read_reasoning_start(ids, open_id, close_id) == expected


@pytest.mark.parametrize("budget", [-1, 1.5, True, "8"])
def test_a_budget_that_is_no_count_is_refused(budget: object) -> None:
    with pytest.raises(UsageError, match="thinking budget is"):
        check_budget_tokens(budget)  # type: ignore[arg-type]
    check_budget_tokens(0)
    check_budget_tokens(None)
