"""Keeps one answer to a grammar, and brings it to a whole end in time.

What may come is the engine's mask, narrowed near the limit; what must come is forced, so that no
logits are needed for it. Read `decoding/constraint.py` for the protocol, `landing.py` for the
limit, and `grammar.py` for where grammars come from.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwen_edge.errors import GrammarError
from qwen_edge.runtime.decoding.constraint import Bitmask
from qwen_edge.runtime.structured.landing import Landing
from qwen_edge.runtime.structured.matcher import Matcher

if TYPE_CHECKING:
    from qwen_edge.runtime.decoding.constraint import Constraint


class GrammarConstraint:
    """Limits one answer to a grammar; a `Constraint`.

    Args:
        matcher: At the beginning of the grammar; not shared.
        landing: Of the same answer; None where it is not brought to an end in time.
        eos_token_ids: Ids that end an answer; the first one is forced where nothing else can
            come.
        control_ids: Ids that stand for no text; never forced.

    State:
        Follows the answer. The mask is written into the same memory each time.
    """

    def __init__(
        self,
        matcher: Matcher,
        landing: Landing | None,
        *,
        eos_token_ids: Sequence[int],
        control_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._matcher = matcher
        self._landing = landing
        self._eos_token_ids = tuple(eos_token_ids)
        self._control_ids = control_ids
        self._mask = matcher.new_mask()
        self._is_ended = False

    @property
    def is_complete(self) -> bool:
        """Whether the answer so far is a whole one; it may still go on."""
        return self._is_ended or self._matcher.is_accepting

    @property
    def is_finished(self) -> bool:
        """Whether the answer is whole and nothing but its end can follow."""
        return self._is_ended or self._matcher.is_stopped

    def copy(self) -> "GrammarConstraint":
        """Return another constraint at the same place; takes microseconds."""
        copied = GrammarConstraint(
            self._matcher.copy(),
            None if self._landing is None else self._landing.copy(),
            eos_token_ids=self._eos_token_ids,
            control_ids=self._control_ids,
        )
        copied._is_ended = self._is_ended
        return copied

    def mask(self, remaining_tokens: int) -> Bitmask:
        """Return which tokens may come next, int32 [words], valid until the next call.

        Args:
            remaining_tokens: How many tokens the answer may still have, this one included. Where
                a whole answer fits into it, the answer will be whole.

        Raises:
            GrammarError: The engine gave up; the message says at what.
        """
        self._matcher.fill_mask(self._mask)
        if self._landing is None or self.is_finished:
            return self._mask
        return self._landing.narrow(self._matcher, self._mask, remaining_tokens)

    def forced(self, remaining_tokens: int) -> Sequence[int]:
        """Return the tokens that have to come next, the end of the answer included.

        Raises:
            GrammarError: The engine gave up.
        """
        if self._is_ended:
            return ()
        if self._matcher.is_stopped:
            return self._eos_token_ids[:1]
        forced = self._matcher.forced()
        for index, token_id in enumerate(forced):
            if token_id in self._control_ids:
                return forced[:index]
        if forced or self._landing is None:
            return forced
        return self._landing.way_if_due(self._matcher, remaining_tokens)

    def advance(self, token_id: int) -> None:
        """Take note of the answer's next token.

        Raises:
            GrammarError: It is not allowed here. The constraint cannot be used any more.
        """
        if self._is_ended:
            raise self._refuse(token_id, "the answer is over")
        if token_id in self._eos_token_ids:
            if not self._matcher.is_accepting:
                raise self._refuse(token_id, "it would end an answer that is not whole")
            self._is_ended = True
            return
        if self._matcher.count_valid([token_id]) < 1:
            raise self._refuse(token_id, "the grammar does not allow it")
        self._matcher.consume([token_id])
        if self._landing is not None:
            self._landing.note(token_id)

    def count_valid(self, token_ids: Sequence[int]) -> int:
        """Return how many of these could follow, from the first on. Changes nothing."""
        if self._is_ended or not token_ids:
            return 0
        ends = (i for i, token_id in enumerate(token_ids) if token_id in self._eos_token_ids)
        before_end = list(token_ids[: next(ends, len(token_ids))])
        num_valid = self._matcher.count_valid(before_end)
        if num_valid < len(before_end) or len(before_end) == len(token_ids):
            return num_valid
        after = self._matcher.copy()
        after.consume(before_end)
        return num_valid + after.is_accepting

    def _refuse(self, token_id: int, reason: str) -> GrammarError:
        """Return the error for a token that cannot come here."""
        return GrammarError(
            f"The token {token_id:,} cannot come here: {reason}.",
            "ask for `mask` and `forced` before each token",
            token_id=token_id,
        )


if TYPE_CHECKING:

    def _is_a_constraint(constraint: GrammarConstraint) -> Constraint:
        return constraint
