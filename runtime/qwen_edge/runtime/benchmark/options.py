"""What to measure: lengths of prompts, how many rounds, for how long."""

from dataclasses import dataclass

from qwen_edge.errors import UsageError

DEFAULT_PROMPT_TOKENS = (32, 512, 2048)
"""A question, a page, and a long document; those that do not fit a package are left out."""
MAX_LENGTHS = 16


@dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure.

    Args:
        prompt_tokens: Lengths of the prompts, at least 1 token each; None for
            `DEFAULT_PROMPT_TOKENS`, as far as they fit.
        new_tokens: Tokens of each answer; at least 2, since the first belongs to the prompt.
        rounds: In each round every length is measured once.
        seconds: No round is begun that would probably end later; the first is always made.
        cold_starts: Starts from nothing, of which the median is told; 0 leaves them out.

    Raises:
        UsageError: A field is out of range, which the message names.
    """

    prompt_tokens: tuple[int, ...] | None = None
    new_tokens: int = 32
    rounds: int = 5
    seconds: float = 300.0
    cold_starts: int = 3

    def __post_init__(self) -> None:
        lengths = self.prompt_tokens
        if lengths is not None:
            if not 1 <= len(lengths) <= MAX_LENGTHS:
                _refuse("prompt_tokens", list(lengths), f"1 to {MAX_LENGTHS} lengths")
            for length in lengths:
                _check("prompt_tokens", length, low=1)
            if len(set(lengths)) != len(lengths):
                _refuse("prompt_tokens", list(lengths), "each length once")
        _check("new_tokens", self.new_tokens, low=2)
        _check("rounds", self.rounds, low=1)
        _check("cold_starts", self.cold_starts, low=0)
        if not self.seconds > 0:  # also not a number
            _refuse("seconds", self.seconds, "more than 0")


def _check(name: str, value: int, *, low: int) -> None:
    if type(value) is not int or value < low:
        _refuse(name, value, f"a whole number from {low:,}")


def _refuse(name: str, value: object, expected: str) -> None:
    raise UsageError(
        f"{name} is {value!r}; expected {expected}.",
        "leave it out to get the default.",
        option=name,
        value=value,
    )
