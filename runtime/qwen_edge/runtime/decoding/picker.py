"""Chooses the tokens of one answer: sampler and constraint joined.

A constraint says what may come; the sampler takes one of these. Where only one continuation is
possible nothing is sampled: those tokens are *forced*. It knows ids only; `generation.py` asks it
and `constraint.py` says what a constraint is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qwen_edge.runtime.backends.backend import Logits
from qwen_edge.runtime.decoding.constraint import Constraint
from qwen_edge.runtime.decoding.sampling import Sampler, TokenLogprobs


@dataclass(frozen=True, slots=True)
class NewToken:
    """One token of an answer.

    Args:
        token_id: Its id.
        is_forced: Whether it was the only one possible, so that no logits were looked at.
        logprobs: How likely it and others were, where that was asked for and it was sampled.
    """

    token_id: int
    is_forced: bool = False
    logprobs: TokenLogprobs | None = None


class TokenPicker:
    """Chooses the tokens of one answer, one after the other.

    Args:
        sampler: Takes one of the allowed tokens.
        constraint: Says which are allowed; None allows all.

    State:
        Follows the answer; belongs to one.
    """

    def __init__(self, sampler: Sampler, constraint: Constraint | None = None) -> None:
        self._sampler = sampler
        self._constraint = constraint

    def pick(self, logits: Logits, remaining_tokens: int) -> NewToken:
        """Return the next token.

        Args:
            logits: float32 [vocab_size], after the last token of the sequence.
            remaining_tokens: How many tokens the answer may still have, this one included.

        Raises:
            ParityError: The logits are no numbers to choose by.
            UsageError: What is allowed and what is banned leave nothing.
        """
        constraint = self._constraint
        mask = None if constraint is None else constraint.mask(remaining_tokens)
        token_id = self._sampler.sample(logits, mask)
        logprobs = self._sampler.describe_last()
        self._take(token_id)
        return NewToken(token_id, logprobs=logprobs)

    def take_forced(self, remaining_tokens: int) -> list[NewToken]:
        """Return the tokens that have to come next, and count them as given.

        Args:
            remaining_tokens: Most tokens to return.
        """
        if self._constraint is None:
            return []
        forced = list(self._constraint.forced(remaining_tokens))[: max(remaining_tokens, 0)]
        for token_id in forced:
            self._take(token_id)
        return [NewToken(token_id, is_forced=True) for token_id in forced]

    def cut_draft(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Return the beginning of a draft that could be chosen; the rest would be in vain."""
        if self._constraint is None or not token_ids:
            return token_ids
        return token_ids[: self._constraint.count_valid(token_ids)]

    def _take(self, token_id: int) -> None:
        self._sampler.record(token_id)
        if self._constraint is not None:
            self._constraint.advance(token_id)
