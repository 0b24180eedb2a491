"""A limit on thinking: closes a thought in time, and lets a grammar wait until it is closed.

Follows an answer through its three parts: nothing yet, inside `<think>`, after `</think>`. What
limits the answer itself (a grammar, tools) is asleep while the model thinks and sees exactly the
tokens after the blank line that ends the thought. It knows ids only; the splitter of the text is
`runtime/reasoning.py`, and `constraint.py` says what a constraint is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qwen_edge.errors import PackageError, UsageError
from qwen_edge.runtime.decoding.constraint import Bitmask, Constraint
from qwen_edge.runtime.text_tokenizer import TextTokenizer

ENDING_TEXT = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the "
    "thinking directly now.\n</think>\n\n"
)
"""Ends a thought that has used up its budget.

Source: Qwen's documentation, Quickstart, "Thinking Budget" (`early_stopping_text`); the same
sentence is in the Qwen3 Technical Report, arXiv 2505.09388, section 4.3.
"""

SHORT_ENDING_TEXT = "\n</think>\n\n"
"""Ends a thought that is shorter than that sentence, as Qwen3's template ends every thought."""

EMPTY_ENDING_TEXT = "\n\n</think>\n\n"
"""Ends a thought before it begins, as Qwen3's template writes it where thinking is off."""

ANSWER_RESERVE_TOKENS = 256  # a paragraph or a small JSON text; a quarter of short limits

ReasoningStart = Literal["unopened", "open", "closed"]
"""What the end of a prompt says: the model may think, is thinking, or was told not to."""

_MAX_LAYOUT_TOKENS = 4  # `<think>`, a line break, and room for a template that adds more
_WORD_BITS = 32

_Phase = Literal["start", "thinking", "answer"]


@dataclass(frozen=True, slots=True)
class _Place:
    """How far an answer has come.

    Args:
        phase: The part that the next token belongs to.
        num_tokens: Tokens so far.
        num_thought: Tokens inside the block so far, without the tags.
        due: Tokens that have to come next.
    """

    phase: _Phase
    num_tokens: int = 0
    num_thought: int = 0
    due: tuple[int, ...] = ()


class ReasoningConstraint:
    """Limits the thought of one answer, and what follows it.

    The block can be opened by the first token alone and is closed once; neither tag comes
    again, nor does the answer end inside the block. It is closed by `ending_ids` after
    `budget_tokens` tokens of thought, or when what is left of the answer shrinks to these ids
    and a reserve: `reserve_tokens`, but no more than a quarter of the whole answer. Where the
    ids would take more than a quarter themselves, only their part from `</think>` on is written.

    Args:
        open_id: Id of `<think>`.
        close_id: Id of `</think>`.
        vocab_size: Length of the logits.
        starts_open: Whether the prompt ended inside the block. One that ended after it needs no
            such constraint; see `read_reasoning_start`.
        ending_ids: Of `make_ending_ids`: a sentence, `</think>` and a blank line.
        budget_tokens: Most tokens of thought, `ending_ids` not counted; None for no such limit.
        inner: Limits what follows the thought; a fresh one. Before it begins, the blank line
            after `</think>` is forced. Without a block it begins with the first token.
        stop_token_ids: Ids that end the answer.
        reserve_tokens: Tokens to keep for what follows the thought.
        needed_tokens: Tokens without which that cannot be whole; kept whatever the share.

    Raises:
        UsageError: `budget_tokens` is not a count.
        ValueError: `ending_ids` does not hold `close_id` exactly once.

    State:
        Follows the answer; belongs to one. Learns from `remaining_tokens` how long it may be.
    """

    def __init__(
        self,
        open_id: int,
        close_id: int,
        *,
        vocab_size: int,
        starts_open: bool,
        ending_ids: Sequence[int],
        budget_tokens: int | None = None,
        inner: Constraint | None = None,
        stop_token_ids: Sequence[int] = (),
        reserve_tokens: int = ANSWER_RESERVE_TOKENS,
        needed_tokens: int = 0,
    ) -> None:
        check_budget_tokens(budget_tokens)
        if tuple(ending_ids).count(close_id) != 1:
            raise ValueError(f"ending_ids must hold the id {close_id} once: {list(ending_ids)}")
        self._open_id = open_id
        self._close_id = close_id
        self._ending = tuple(ending_ids)
        self._short_ending = self._ending[self._ending.index(close_id) :]
        self._budget_tokens = budget_tokens
        self._reserve_tokens = reserve_tokens
        self._needed_tokens = needed_tokens
        self._inner = inner
        self._num_words = -(-vocab_size // _WORD_BITS)
        self._not_in_thought = frozenset({open_id, *stop_token_ids})
        self._thought_mask = self._all_but(self._not_in_thought)
        self._start_mask = self._all_but({close_id})
        self._answer_mask = self._all_but({open_id, close_id})
        self._total_tokens: int | None = None
        self._place = _Place("thinking" if starts_open else "start")
        self._is_cut_short = False

    @property
    def is_thinking(self) -> bool:
        """Whether the answer is inside the block."""
        return self._place.phase == "thinking"

    @property
    def num_thought_tokens(self) -> int:
        """Tokens inside the block so far, without the tags, with the sentence that ended it."""
        return self._place.num_thought

    @property
    def is_cut_short(self) -> bool:
        """Whether the thought was ended by a limit and not by the model."""
        return self._is_cut_short

    def mask(self, remaining_tokens: int) -> Bitmask | None:
        """Return which tokens may come next, int32 [words]; see `Constraint.mask`."""
        self._total_tokens = self._place.num_tokens + remaining_tokens
        due = self._due(self._place)
        if due:
            return self._with(self._nothing(), due[0])
        phase = self._place.phase
        if phase == "thinking":
            return self._thought_mask
        inner = None if self._inner is None else self._inner.mask(remaining_tokens)
        if phase == "start":
            return self._start_mask if inner is None else self._with(inner, self._open_id)
        return self._answer_mask if inner is None else inner & self._fit(self._answer_mask, inner)

    def forced(self, remaining_tokens: int) -> Sequence[int]:
        """Return the tokens that have to come next; see `Constraint.forced`."""
        self._total_tokens = self._place.num_tokens + remaining_tokens
        due = self._due(self._place)
        if due or self._inner is None or self._place.phase != "answer":
            return due
        return self._inner.forced(remaining_tokens)

    def advance(self, token_id: int) -> None:
        """Take note of the answer's next token.

        Raises:
            UsageError: It is not allowed here.
            EdgeError: As the inner constraint.
        """
        place = self._step(self._place, token_id)
        if place is None:
            raise UsageError(
                f"The token {token_id:,} cannot come here: {self._describe()}.",
                "ask for `mask` and `forced` before each token",
                token_id=token_id,
            )
        if self._inner is not None and self._is_inner_next(self._place, token_id):
            self._inner.advance(token_id)
        if self._place.phase == "thinking" and not self._place.due and self._due(self._place):
            self._is_cut_short = True
        self._place = place

    def count_valid(self, token_ids: Sequence[int]) -> int:
        """Return how many of these could follow, from the first on. Changes nothing."""
        place = self._place
        for index, token_id in enumerate(token_ids):
            if self._inner is not None and self._is_inner_next(place, token_id):
                return index + self._inner.count_valid(token_ids[index:])
            following = self._step(place, token_id)
            if following is None:
                return index
            place = following
        return len(token_ids)

    def _step(self, place: _Place, token_id: int) -> _Place | None:
        """Return the place after one more token; None where it is not allowed."""
        due = self._due(place)
        if due and token_id != due[0]:
            return None
        following = replace(place, num_tokens=place.num_tokens + 1, due=due[1:])
        if place.phase == "thinking":
            if token_id == self._close_id:
                layout = self._short_ending[1:] if self._inner is not None else ()
                return replace(following, phase="answer", due=due[1:] or layout)
            if token_id in self._not_in_thought and not due:
                return None
            return replace(following, num_thought=place.num_thought + 1)
        if due:
            return following
        if place.phase == "start" and token_id == self._open_id:
            return replace(following, phase="thinking")
        if token_id in (self._open_id, self._close_id):
            return None
        return replace(following, phase="answer")

    def _is_inner_next(self, place: _Place, token_id: int) -> bool:
        """Whether a token at this place is one of the inner constraint's."""
        if place.phase == "start":
            return token_id != self._open_id
        return place.phase == "answer" and not place.due

    def _due(self, place: _Place) -> tuple[int, ...]:
        """Return the tokens that have to come next, as far as this constraint says."""
        if place.due or place.phase != "thinking":
            return place.due
        if self._total_tokens is None:
            return self._ending if self._is_spent(place) else ()
        remaining = self._total_tokens - place.num_tokens
        share = self._total_tokens // 4
        reserve = max(min(self._reserve_tokens, share), self._needed_tokens)
        has_room = len(self._ending) <= share and remaining >= len(self._ending) + reserve
        ending = self._ending if has_room else self._short_ending
        is_late = remaining <= len(ending) + reserve
        return ending if is_late or self._is_spent(place) else ()

    def _is_spent(self, place: _Place) -> bool:
        """Whether the budget is used up."""
        return self._budget_tokens is not None and place.num_thought >= self._budget_tokens

    def _describe(self) -> str:
        """Return what comes here, for an error message."""
        due = self._due(self._place)
        if due:
            return f"expected {due[0]:,}, which is forced"
        return {
            "start": "the answer begins, and no thought is open",
            "thinking": "a thought is open, and only `</think>` ends it",
            "answer": "the answer has begun, so a thought can neither be opened nor closed",
        }[self._place.phase]

    def _nothing(self) -> Bitmask:
        """Return a mask that allows nothing."""
        return np.zeros(self._num_words, dtype=np.int32)

    def _all_but(self, token_ids: Iterable[int]) -> Bitmask:
        """Return a read-only mask that allows all tokens but these."""
        bits = np.ones(self._num_words * _WORD_BITS, dtype=np.uint8)
        bits[list(token_ids)] = 0
        mask = np.packbits(bits, bitorder="little").view(np.int32)
        mask.flags.writeable = False
        return mask

    def _with(self, mask: Bitmask, token_id: int) -> Bitmask:
        """Return a copy of a mask that also allows one token."""
        words = np.zeros(max(mask.size, token_id // _WORD_BITS + 1), dtype=np.int32)
        words[: mask.size] = mask
        words.view(np.uint32)[token_id // _WORD_BITS] |= np.uint32(1 << token_id % _WORD_BITS)
        return words

    def _fit(self, mask: Bitmask, other: Bitmask) -> Bitmask:
        """Return a mask cut or filled up to the length of another one."""
        if mask.size >= other.size:
            return mask[: other.size]
        return np.concatenate([mask, np.full(other.size - mask.size, -1, dtype=np.int32)])


def make_ending_ids(
    tokenizer: TextTokenizer, close_id: int, *, budget_tokens: int | None = None
) -> tuple[int, ...]:
    """Return the ids that close a thought in time.

    Args:
        tokenizer: The package's.
        close_id: Id of `</think>`.
        budget_tokens: Of the answer. With 0 there is nothing to conclude, so the block is
            closed as the template closes an empty one; and after a thought that is shorter than
            the sentence there is none, since it would weigh more than the thought. (A model
            that never saw the sentence, such as the demo, loses its thread over it.)

    Raises:
        PackageError: The tokenizer does not write `</think>` as this one id.
    """
    text = EMPTY_ENDING_TEXT if budget_tokens == 0 else ENDING_TEXT
    ids = tuple(tokenizer.encode(text, allow_special=True))
    if budget_tokens is not None and 0 < budget_tokens < len(ids):
        ids = tuple(tokenizer.encode(SHORT_ENDING_TEXT, allow_special=True))
    if ids.count(close_id) != 1:
        raise PackageError(
            f"The tokenizer does not write '</think>' as the token {close_id:,}, which the "
            "package's manifest names as the end of a thought.",
            "export the package again from the model's original tokenizer",
            think_close_id=close_id,
        )
    return ids


def read_reasoning_start(prompt_ids: Sequence[int], open_id: int, close_id: int) -> ReasoningStart:
    """Return what the end of a prompt says about thinking.

    Args:
        prompt_ids: Ends with `<think>` and a line break for models that always think, with an
            empty block where thinking is switched off.
        open_id: Id of `<think>`.
        close_id: Id of `</think>`.
    """
    for token_id in reversed(prompt_ids[-_MAX_LAYOUT_TOKENS:]):
        if token_id in (open_id, close_id):
            return "open" if token_id == open_id else "closed"
    return "unopened"


def check_budget_tokens(budget_tokens: int | None) -> None:
    """Raise UsageError unless a budget of thought is None or a whole number from 0 on."""
    is_count = isinstance(budget_tokens, int) and not isinstance(budget_tokens, bool)
    if budget_tokens is not None and (not is_count or budget_tokens < 0):
        raise UsageError(
            f"The thinking budget is {budget_tokens!r}; expected a whole number of tokens, "
            "0 or more.",
            "give 0 for no thought, or leave it out for no limit",
            field="thinking_budget",
            value=budget_tokens,
        )
