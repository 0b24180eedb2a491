"""When a call may, must or must not come: every choice, walked token by token.

The grammar of a call is played by a script of ids here; `test_call_grammar.py` has the real one.
"""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import UsageError
from qwen_edge.runtime.decoding.constraint import Bitmask, unpack_mask
from qwen_edge.runtime.tools.call_constraint import ToolConstraint

VOCAB_SIZE = 40
TEXT, OPEN, CLOSE, STOP, OTHER_STOP = 5, 33, 34, 38, 39
SCRIPT = (7, 8, 9)
CALL = (OPEN, *SCRIPT, CLOSE)


class ScriptedGrammar:
    """Stands in for a compiled grammar and for its constraint: these ids and no others.

    Its mask also allows the tags, as a grammar would that takes them for text.
    """

    def __init__(self, script: Sequence[int] = SCRIPT) -> None:
        self._due = list(script)
        self.asked: list[int] = []

    def start(self) -> "ScriptedGrammar":
        return ScriptedGrammar(self._due)

    @property
    def is_finished(self) -> bool:
        return not self._due

    def mask(self, remaining_tokens: int) -> Bitmask:
        self.asked.append(remaining_tokens)
        bits = np.zeros(64, dtype=np.uint8)
        bits[[self._due[0], OPEN, CLOSE]] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def forced(self, remaining_tokens: int) -> Sequence[int]:
        return [] if len(self._due) > 2 else [*self._due, OPEN]

    def advance(self, token_id: int) -> None:
        assert token_id == self._due.pop(0)

    def count_valid(self, token_ids: Sequence[int]) -> int:
        pairs = zip(token_ids, self._due, strict=False)
        return next(
            (i for i, (a, b) in enumerate(pairs) if a != b), min(len(token_ids), len(self._due))
        )


def make(
    script: Sequence[int] = SCRIPT,
    *,
    calls: bool = True,
    required: bool = False,
    single: bool = False,
) -> ToolConstraint:
    return ToolConstraint(
        ScriptedGrammar(script) if calls else None,  # type: ignore[arg-type]
        open_id=OPEN,
        close_id=CLOSE,
        vocab_size=VOCAB_SIZE,
        stop_token_ids=[STOP, OTHER_STOP],
        must_begin=required,
        is_single=single,
    )


def allowed(constraint: ToolConstraint) -> list[int] | None:
    """Return which ids may come next; None for all."""
    mask = constraint.mask(100)
    return None if mask is None else np.flatnonzero(unpack_mask(mask, VOCAB_SIZE)).tolist()


def walk(constraint: ToolConstraint, token_ids: Sequence[int]) -> list[list[int] | None]:
    """Return what is allowed before each of these ids and after the last."""
    seen = []
    for token_id in token_ids:
        seen.append(allowed(constraint))
        constraint.advance(token_id)
    return [*seen, allowed(constraint)]


def test_a_call_is_limited_from_its_tag_to_its_end() -> None:
    seen = walk(make(), [TEXT, *CALL, TEXT, *CALL, STOP])
    call = [None, [7], [8], [9], [CLOSE]]
    assert seen == [None, *call, None, *call, None, None]


def test_without_calls_only_the_tag_is_missing() -> None:
    every = [i for i in range(VOCAB_SIZE) if i != OPEN]
    constraint = make(calls=False)
    assert walk(constraint, [TEXT, CLOSE]) == [every] * 3
    with pytest.raises(UsageError, match="must not hold a call"):
        constraint.advance(OPEN)


def test_a_call_that_is_required_comes_first() -> None:
    constraint = make(required=True)
    assert allowed(constraint) == [OPEN]
    assert constraint.forced(100) == (OPEN,)
    with pytest.raises(UsageError, match="begins with a call"):
        constraint.advance(TEXT)
    assert walk(constraint, CALL)[-1] is None


def test_after_a_single_call_the_answer_is_over() -> None:
    constraint = make(single=True)
    assert walk(constraint, [TEXT, *CALL])[-1] == [STOP, OTHER_STOP]
    assert constraint.forced(100) == (STOP,)
    with pytest.raises(UsageError, match="ends after its call"):
        constraint.advance(TEXT)
    constraint.advance(OTHER_STOP)


def test_what_has_no_choice_is_forced() -> None:
    constraint = make()
    assert constraint.forced(100) == ()
    walk(constraint, [OPEN])
    assert list(constraint.forced(100)) == []
    walk(constraint, [7])
    # Not the tag, which the grammar took for a text.
    assert list(constraint.forced(100)) == [8, 9]
    walk(constraint, [8, 9])
    assert list(constraint.forced(100)) == [CLOSE]


def test_a_call_is_not_hurried_to_an_end() -> None:
    """Half a message sent is worse than none."""
    constraint = make()
    constraint.advance(OPEN)
    inside = constraint._inside
    assert isinstance(inside, ScriptedGrammar)
    constraint.mask(1)
    assert inside.asked == [2**31 - 1]


def test_a_tag_inside_a_call_is_refused() -> None:
    for tag in (OPEN, CLOSE):
        constraint = make()
        constraint.advance(OPEN)
        with pytest.raises(UsageError, match="no part of it"):
            constraint.advance(tag)


@pytest.mark.parametrize(
    ("before", "draft", "count"),
    [
        ([], [TEXT, TEXT, CLOSE], 3),
        ([], [TEXT, OPEN, 7, 8, 6], 4),
        ([], [TEXT, OPEN, OPEN], 2),
        ([], [OPEN, 7, 8, 9, CLOSE], 4),
        ([OPEN], [7, 8, 9, CLOSE], 3),
        ([OPEN], [CLOSE], 0),
        ([OPEN, 7, 8, 9], [CLOSE, TEXT], 1),
        ([OPEN, 7, 8, 9], [TEXT], 0),
        ([], [], 0),
    ],
)
def test_drafts_are_cut(before: list[int], draft: list[int], count: int) -> None:
    constraint = make()
    walk(constraint, before)
    assert constraint.count_valid(draft) == count
    assert constraint.count_valid(draft) == count


@pytest.mark.parametrize(("draft", "count"), [([OPEN, 7, 6], 2), ([TEXT], 0), ([OPEN], 1), ([], 0)])
def test_drafts_of_an_answer_that_begins_with_a_call(draft: list[int], count: int) -> None:
    assert make(required=True).count_valid(draft) == count


def test_drafts_end_at_a_tag_even_where_a_grammar_would_take_it() -> None:
    constraint = make([7, OPEN, 8])
    assert constraint.count_valid([TEXT, OPEN, 7, OPEN, 8]) == 3
    constraint.advance(OPEN)
    assert constraint.count_valid([7, OPEN, 8]) == 1


def test_drafts_without_calls_end_at_the_tag() -> None:
    assert make(calls=False).count_valid([TEXT, OPEN, TEXT]) == 1


@given(
    required=st.booleans(),
    single=st.booleans(),
    calls=st.booleans(),
    draft=st.lists(st.sampled_from([TEXT, OPEN, 7, 8, 9, CLOSE, STOP]), max_size=8),
    choices=st.lists(st.integers(0, 6), max_size=12),
)
def test_mask_forced_count_and_advance_agree(
    required: bool, single: bool, calls: bool, draft: list[int], choices: list[int]
) -> None:
    constraint = make(calls=calls, required=required and calls, single=single)
    for choice in choices:
        options = allowed(constraint) or [TEXT, OPEN, CLOSE]
        forced = list(constraint.forced(100))
        assert all(token_id in options for token_id in forced[:1])
        assert constraint.count_valid(forced) == len(forced)
        count = constraint.count_valid(draft)
        first_fits = bool(draft) and draft[0] in (allowed(constraint) or range(VOCAB_SIZE))
        assert (count > 0) == first_fits
        token_id = options[choice % len(options)]
        if token_id in (STOP, OTHER_STOP):
            break
        constraint.advance(token_id)
