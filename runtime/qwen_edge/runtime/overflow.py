"""What to do with a conversation that outgrew the context: refuse it, or forget its beginning.

Forgetting goes by whole turns, so that no answer loses its question and no tool call its result.
It knows messages and counts, and is told how to count; read `limits.py` for the refusal before
prefill, and `chat.py` for what a message is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

from qwen_edge.errors import ContextFullError, UsageError, did_you_mean
from qwen_edge.runtime.chat import Message

OnOverflow = Literal["refuse", "drop-oldest"]
"""What happens to a conversation that does not fit."""

CountTokens = Callable[[Sequence[Message]], int]
"""Returns how many tokens a conversation has as a prompt."""

ANSWER_RESERVE_TOKENS = 256  # a quarter of small contexts; see `fit_conversation`
_KEPT_SHARE = 0.75
# A first guess, soon replaced by what was counted.
_CHARS_PER_TOKEN = 4.0
_CHARS_PER_MESSAGE = 20
# No real text has so many characters a token; it is not counted to find out.
_MAX_CHARS_PER_TOKEN = 32


@dataclass(frozen=True)
class FittedConversation:
    """A conversation that fits.

    Args:
        messages: What is left: system messages, then the newest turns.
        dropped_messages: What was dropped, oldest first; none where all fitted.
        num_tokens: Of `messages`, as a prompt.
    """

    messages: tuple[Message, ...]
    dropped_messages: tuple[Message, ...]
    num_tokens: int


def fit_conversation(
    messages: Sequence[Message],
    count_tokens: CountTokens,
    limit: int,
    *,
    reserve_tokens: int = ANSWER_RESERVE_TOKENS,
) -> FittedConversation:
    """Return a conversation without its oldest turns, as far as that is needed to fit.

    A turn is a user message with everything up to the next one: answers, tool calls and their
    results. What comes before the first user message, but for system messages, is a turn too.
    System messages and the newest turn always stay.

    A conversation of up to `limit - reserve_tokens` tokens is left as it is. Of a longer one the
    fewest turns are dropped that bring it down to three quarters of `limit`: a prompt that lost
    its beginning is computed anew as a whole, so this must not happen at every turn. The newest
    turn alone may take all of `limit`.

    Args:
        messages: Checked; oldest first.
        count_tokens: Called a few times, and never with much more than what fits.
        limit: Most tokens of a prompt.
        reserve_tokens: Room below `limit` to keep for the answer; a quarter of `limit` at most.

    Raises:
        ContextFullError: The system messages and the newest turn have more than `limit` tokens.
        EdgeError: As `count_tokens`.
    """
    cuts = _Cuts(messages, count_tokens)
    enough = limit - min(reserve_tokens, limit // 4)
    if cuts.may_fit(0, limit) and cuts.count(0) <= enough:
        return cuts.take(0)
    newest = cuts.num_turns - 1
    if cuts.count(newest) > limit:
        raise _newest_turn_error(cuts.count(newest), limit, num_older=newest)
    target = int(limit * _KEPT_SHARE)
    return cuts.take(newest if cuts.count(newest) > target else cuts.search(target))


def find_newest_turn(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the newest user message and what follows it; all messages where there is none."""
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return tuple(messages[users[-1] :] if users else messages)


def check_on_overflow(on_overflow: str) -> None:
    """Raise UsageError unless this names a way to handle an overflow."""
    known = get_args(OnOverflow)
    if on_overflow not in known:
        raise UsageError(
            f"on_overflow is {on_overflow!r}.{did_you_mean(str(on_overflow), known)}",
            f"use one of: {', '.join(known)}",
            field="on_overflow",
            value=on_overflow,
        )


class _Cuts:
    """The ways to cut off the beginning of one conversation; cut n drops the first n turns.

    State:
        Remembers what was counted.
    """

    def __init__(self, messages: Sequence[Message], count_tokens: CountTokens) -> None:
        self._messages = tuple(messages)
        self._count_tokens = count_tokens
        self._num_system = next(
            (i for i, message in enumerate(messages) if message["role"] != "system"), len(messages)
        )
        self._starts = _find_turns(self._messages, self._num_system)
        self._chars_before = [0, *accumulate(map(_count_chars, self._messages))]
        self._counted: dict[int, int] = {}

    @property
    def num_turns(self) -> int:
        """How many turns there are, at least one."""
        return len(self._starts)

    def may_fit(self, cut: int, limit: int) -> bool:
        """Whether it is worth counting what is left after a cut."""
        return self._num_chars(cut) <= limit * _MAX_CHARS_PER_TOKEN

    def count(self, cut: int) -> int:
        """Return how many tokens are left after a cut."""
        if cut not in self._counted:
            self._counted[cut] = self._count_tokens(self._left(cut))
        return self._counted[cut]

    def take(self, cut: int) -> FittedConversation:
        """Return what is left after a cut."""
        dropped = self._messages[self._num_system : self._starts[cut]]
        return FittedConversation(self._left(cut), dropped, self.count(cut))

    def search(self, target: int) -> int:
        """Return the smallest cut that leaves up to `target` tokens.

        Args:
            target: At least the count of the newest turn; less than that of all turns.
        """
        fits = self.num_turns - 1
        candidates = (cut for cut in range(fits) if self.may_fit(cut + 1, target))
        too_long = next(candidates, fits - 1)
        num_guesses = 0
        while fits - too_long > 1:
            num_guesses += 1
            # Now and then halve: texts of very uneven density mislead a guess.
            halves = num_guesses % 4 == 0
            cut = (too_long + fits) // 2 if halves else self._guess(too_long, fits, target)
            if self.count(cut) <= target:
                fits = cut
            else:
                too_long = cut
        return fits

    def _guess(self, too_long: int, fits: int, target: int) -> int:
        """Return a cut between two others that may leave just `target` tokens."""
        wanted = self._num_chars(fits) + self._chars_per_token(too_long, fits) * (
            target - self.count(fits)
        )
        low, high = too_long + 1, fits - 1
        while low < high:
            middle = (low + high) // 2
            if self._num_chars(middle) <= wanted:
                high = middle
            else:
                low = middle + 1
        return low

    def _chars_per_token(self, too_long: int, fits: int) -> float:
        """Return how dense the text between two cuts is, as far as that is known."""
        if too_long not in self._counted:
            return _CHARS_PER_TOKEN
        num_chars = self._num_chars(too_long) - self._num_chars(fits)
        return num_chars / max(self.count(too_long) - self.count(fits), 1)

    def _num_chars(self, cut: int) -> int:
        """Return about how many characters the turns after a cut have."""
        return self._chars_before[-1] - self._chars_before[self._starts[cut]]

    def _left(self, cut: int) -> tuple[Message, ...]:
        """Return the messages after a cut, the system messages before them."""
        return self._messages[: self._num_system] + self._messages[self._starts[cut] :]


def _find_turns(messages: Sequence[Message], num_system: int) -> list[int]:
    """Return where the turns begin, the first one right after the system messages."""
    users = (i for i, message in enumerate(messages) if message["role"] == "user")
    return sorted({min(num_system, len(messages)), *users})


def _count_chars(message: Message) -> int:
    """Return about how many characters a message adds to a prompt, reasoning left out."""
    content = message.get("content")
    text = content.rpartition("</think>")[2] if isinstance(content, str) else str(content)
    calls = message.get("tool_calls")
    return _CHARS_PER_MESSAGE + len(text) + (len(str(calls)) if calls else 0)


def _newest_turn_error(num_tokens: int, limit: int, *, num_older: int) -> ContextFullError:
    """Return the error for a newest turn that fits nowhere."""
    dropped = f" without the {num_older:,} turns before it" if num_older else ""
    return ContextFullError(
        f"The newest turn with the system message needs {num_tokens:,} tokens{dropped}, but a "
        f"prompt may have {limit:,}. It is not cut: neither a question nor a tool call may lose "
        "its half.",
        f"shorten the message or the results of its tool calls by {num_tokens - limit:,} tokens",
        prompt_tokens=num_tokens,
        max_prompt_tokens=limit,
    )
