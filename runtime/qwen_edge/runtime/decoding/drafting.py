"""Guesses of what comes next: the seam between the token loop and speculation.

One forward call over several tokens costs little more than over one. A drafter proposes how the
text might go on; the loop has all proposals scored at once and keeps those that would have been
chosen anyway. So a draft saves time or costs its share of a forward call, and what is chosen is
chosen by the model; only the rounding of a call of several tokens may differ from single ones.
`generation.py` drives this; `speculation.py` decides how long drafts are.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qwen_edge.errors import EdgeError

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CallReport:
    """How a forward call went.

    Args:
        num_fed: Tokens in the call, guesses included.
        num_drafted: How many of them, the last ones, were guesses.
        num_accepted: How many guesses, the first ones, were right.
        seconds: Duration of the forward call.
        draft_seconds: Duration of the proposing before it.
    """

    num_fed: int
    num_drafted: int
    num_accepted: int
    seconds: float
    draft_seconds: float = 0.0


class Drafter(Protocol):
    """Proposes tokens, one answer after the other.

    State:
        Follows the sequence of an answer: `begin` with its prompt, `extend` with what was added
        since.
    """

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Start on a new answer; the whole prompt, cached or not."""
        ...

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take note of new tokens of the sequence."""
        ...

    def propose(self, max_tokens: int) -> Sequence[int]:
        """Return how the sequence may go on: up to `max_tokens` ids, none for no guess."""
        ...

    def report(self, call: CallReport) -> None:
        """Take note of a forward call, also of one without a draft; `extend` comes after it."""
        ...

    def close(self) -> None:
        """Let go of what belongs to this answer; called once, at its end, however it ends."""
        ...


class DraftSource(Drafter, Protocol):
    """A drafter that says how much speaks for its next draft, before it makes one."""

    @property
    def name(self) -> str:
        """What to call it when it is switched off."""
        ...

    @property
    def is_free(self) -> bool:
        """Whether making a draft costs next to nothing."""
        ...

    def evidence(self) -> int:
        """Return how much speaks for a draft now; 0 when there is none to make. Changes nothing.

        Counted as tokens that agree: each further guess that is right adds one.
        """
        ...

    def prepare(self) -> bool:
        """Do a part of what must be done before a draft can be made.

        Returns:
            Whether there was something to do; then there may be more, and no draft yet.
        """
        ...


class GuardedDrafter:
    """A drafter whose failure costs the speed and not the answer.

    Args:
        drafter: Begun on the sequence; None never proposes anything.

    State:
        After its first failure it proposes nothing more; the failure is logged.
        `draft_seconds` is the duration of the last proposing.
    """

    def __init__(self, drafter: Drafter | None) -> None:
        self._drafter = drafter
        self.draft_seconds = 0.0

    @property
    def is_on(self) -> bool:
        """Whether there is anything to ask."""
        return self._drafter is not None

    def propose(self, max_tokens: int, vocab_size: int) -> list[int]:
        """Return up to `max_tokens` guesses, all of them tokens of the vocabulary."""
        self.draft_seconds = 0.0
        if self._drafter is None or max_tokens < 1:
            return []
        begun_s = time.perf_counter()
        try:
            guesses = list(self._drafter.propose(max_tokens))
        except Exception as error:
            self._switch_off(error)
            return []
        self.draft_seconds = time.perf_counter() - begun_s
        for index, token_id in enumerate(guesses[:max_tokens]):
            if not 0 <= token_id < vocab_size:
                return guesses[:index]
        return guesses[:max_tokens]

    def note(self, call: CallReport | None, token_ids: Sequence[int]) -> None:
        """Pass on how a call went, None for the prompt's, and the tokens it settled."""
        if self._drafter is None:
            return
        try:
            if call is not None:
                self._drafter.report(call)
            self._drafter.extend(token_ids)
        except Exception as error:
            self._switch_off(error)

    def close(self) -> None:
        """Close the drafter, unless its failure did so."""
        drafter, self._drafter = self._drafter, None
        if drafter is None:
            return
        try:
            drafter.close()
        except Exception as error:
            _LOGGER.warning("A drafter did not close: %s", describe_failure(error))

    def _switch_off(self, error: Exception) -> None:
        _LOGGER.warning(
            "Speculation is off for the rest of this answer: %s", describe_failure(error)
        )
        self.close()


def describe_failure(error: Exception) -> str:
    """Return what went wrong, in the words of a log."""
    if isinstance(error, EdgeError):
        return error.problem
    return f"{type(error).__name__}: {error}"
