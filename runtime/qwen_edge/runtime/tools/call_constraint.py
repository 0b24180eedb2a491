"""Keeps an answer to its tools: when a call may, must or must not come, and what is in it.

A call begins with the token `<tool_call>`, whoever wrote it; from there on a grammar holds until
`</tool_call>`. Around calls the answer is free, begins with a call, or is over. It knows ids
only; `call_grammar.py` is the grammar and `decoding/constraint.py` says what a constraint is.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from qwen_edge.errors import UsageError
from qwen_edge.runtime.decoding.constraint import Bitmask
from qwen_edge.runtime.tools.call_grammar import compile_call_grammar
from qwen_edge.runtime.tools.tool import CHOICES, Tool, read_tool_choice

if TYPE_CHECKING:
    from qwen_edge.runtime.structured.grammar import Grammar, GrammarCompiler
    from qwen_edge.runtime.structured.grammar_constraint import GrammarConstraint

_WORD_BITS = 32
_NUM_FRAME_TOKENS = 3  # both tags and the end of the answer
# Told to the grammar instead of what is left: it would bring a call to some end in time, with a
# message cut in half as an argument. A call that does not fit is no call, and shown as text.
_NO_LIMIT_TOKENS = 2**31 - 1

_Phase = Literal["free", "due", "inside", "closing", "over"]


def make_tool_constraint(
    tools: Sequence[Tool],
    choice: object,
    compiler: "GrammarCompiler",
    *,
    open_id: int,
    close_id: int,
    vocab_size: int,
    stop_token_ids: Sequence[int],
    is_parallel: bool = True,
) -> "ToolConstraint":
    """Return what limits one answer to its tools.

    Args:
        tools: Of `read_tools`.
        choice: "auto": calls as the model likes. "none": no call. "required": the answer
            begins with a call. The name of a tool: the answer is one call of it.
        compiler: The model's; asked here, so that a bad schema is known before any token.
        open_id: Id of `<tool_call>`.
        close_id: Id of `</tool_call>`.
        vocab_size: Length of the logits.
        stop_token_ids: Ids that end the answer; at least one.
        is_parallel: Whether more may follow a call. Without it the answer then ends.

    Raises:
        UsageError: The choice is none, or a tool's schema cannot be turned into a grammar.
    """
    choice = read_tool_choice(choice, tools)
    is_named = choice not in CHOICES
    offered = [tool for tool in tools if tool.name == choice] if is_named else list(tools)
    may_call = bool(offered) and choice != "none"
    return ToolConstraint(
        compile_call_grammar(offered, compiler) if may_call else None,
        open_id=open_id,
        close_id=close_id,
        vocab_size=vocab_size,
        stop_token_ids=stop_token_ids,
        must_begin=is_named or choice == "required",
        is_single=is_named or not is_parallel,
    )


class ToolConstraint:
    """Limits the calls of one answer.

    Args:
        grammar: Of what stands between the tags; None for no calls at all.
        open_id: Id of `<tool_call>`.
        close_id: Id of `</tool_call>`.
        vocab_size: Length of the logits.
        stop_token_ids: Ids that end the answer; at least one.
        must_begin: Whether the answer begins with a call.
        is_single: Whether the answer ends after a call.

    State:
        Follows the answer; belongs to one. Where it is free, a token costs nothing.
    """

    def __init__(
        self,
        grammar: "Grammar | None",
        *,
        open_id: int,
        close_id: int,
        vocab_size: int,
        stop_token_ids: Sequence[int],
        must_begin: bool = False,
        is_single: bool = False,
    ) -> None:
        self._grammar = grammar
        self._open_id = open_id
        self._close_id = close_id
        self._tag_ids = frozenset({open_id, close_id})
        self._stop_token_ids = tuple(stop_token_ids)
        self._num_words = -(-vocab_size // _WORD_BITS)
        self._is_single = is_single
        self._phase: _Phase = "due" if must_begin else "free"
        self._inside: GrammarConstraint | None = None

    @property
    def needed_tokens(self) -> int:
        """Tokens that the call takes at least which has to come; 0 where none has to."""
        if self._phase != "due" or self._grammar is None:
            return 0
        return (self._grammar.shortest_tokens or 0) + _NUM_FRAME_TOKENS

    def mask(self, remaining_tokens: int) -> Bitmask | None:
        """Return which tokens may come next, int32 [words]; see `Constraint.mask`."""
        if self._phase == "free":
            return None if self._grammar is not None else self._without(None, [self._open_id])
        if self._inside is not None and self._phase == "inside":
            return self._without(self._inside.mask(_NO_LIMIT_TOKENS), self._tag_ids)
        return self._only(self._due_ids())

    def forced(self, remaining_tokens: int) -> Sequence[int]:
        """Return the tokens that have to come next; see `Constraint.forced`."""
        if self._inside is not None and self._phase == "inside":
            return self._before_tag(self._inside.forced(_NO_LIMIT_TOKENS))
        return self._due_ids()[:1]

    def advance(self, token_id: int) -> None:
        """Take note of the answer's next token.

        Raises:
            UsageError: It is not allowed here.
            EdgeError: As the grammar.
        """
        if not self._is_allowed(token_id):
            raise UsageError(
                f"The token {token_id:,} cannot come here: {self._describe()}.",
                "ask for `mask` and `forced` before each token",
                token_id=token_id,
            )
        if self._phase == "inside":
            assert self._inside is not None
            self._inside.advance(token_id)
            if self._inside.is_finished:
                self._phase = "closing"
        elif self._phase == "closing":
            self._inside, self._phase = None, "over" if self._is_single else "free"
        elif token_id == self._open_id and self._grammar is not None:
            self._inside, self._phase = self._grammar.start(), "inside"

    def count_valid(self, token_ids: Sequence[int]) -> int:
        """Return how many of these could follow, from the first on. Changes nothing.

        What follows the end of a call is not looked at: the closing tag is forced anyway.
        """
        if self._inside is not None and self._phase == "inside":
            return self._inside.count_valid(self._before_tag(token_ids))
        if self._phase != "free":
            opens = self._phase == "due" and self._grammar is not None
            if not token_ids or not self._is_allowed(token_ids[0]):
                return 0
            return 1 + (self._count_inside(token_ids[1:]) if opens else 0)
        for index, token_id in enumerate(token_ids):
            if token_id == self._open_id:
                if self._grammar is None:
                    return index
                return index + 1 + self._count_inside(token_ids[index + 1 :])
        return len(token_ids)

    def _count_inside(self, token_ids: Sequence[int]) -> int:
        """Return how many of these could follow an opening tag."""
        assert self._grammar is not None
        return self._grammar.start().count_valid(self._before_tag(token_ids))

    def _before_tag(self, token_ids: Sequence[int]) -> Sequence[int]:
        """Return the ids up to a tag; inside a call only its letters may spell one."""
        for index, token_id in enumerate(token_ids):
            if token_id in self._tag_ids:
                return token_ids[:index]
        return token_ids

    def _is_allowed(self, token_id: int) -> bool:
        """Whether a token may come next, as far as that is not the grammar's business."""
        if self._phase == "inside":
            return token_id not in self._tag_ids
        if self._phase == "free":
            return self._grammar is not None or token_id != self._open_id
        return token_id in self._due_ids()

    def _due_ids(self) -> tuple[int, ...]:
        """Return the ids one of which has to come next; none where there is more choice."""
        if self._phase == "due":
            return (self._open_id,)
        if self._phase == "closing":
            return (self._close_id,)
        return self._stop_token_ids if self._phase == "over" else ()

    def _describe(self) -> str:
        """Return what comes here, for an error message."""
        return {
            "free": "this answer must not hold a call",
            "due": "the answer begins with a call",
            "inside": "a call is open, and the tags are no part of it",
            "closing": "the call ends here",
            "over": "the answer ends after its call",
        }[self._phase]

    def _only(self, token_ids: Iterable[int]) -> Bitmask:
        """Return a mask that allows these tokens."""
        mask = np.zeros(self._num_words, dtype=np.int32)
        for token_id in token_ids:
            mask.view(np.uint32)[token_id // _WORD_BITS] |= np.uint32(1 << token_id % _WORD_BITS)
        return mask

    def _without(self, mask: Bitmask | None, token_ids: Iterable[int]) -> Bitmask:
        """Return a copy of a mask, or of one that allows all, without these tokens."""
        copy = np.full(self._num_words, -1, dtype=np.int32) if mask is None else mask.copy()
        return copy & ~_fit(self._only(token_ids), copy.size)


def _fit(mask: Bitmask, num_words: int) -> Bitmask:
    """Return a mask cut or filled with zeros to a length."""
    words = np.zeros(num_words, dtype=np.int32)
    words[: mask.size] = mask[:num_words]
    return words
