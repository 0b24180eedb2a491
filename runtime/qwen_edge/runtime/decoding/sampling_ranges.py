"""Checks of single sampling settings: what is refused is named with its value and its range.

Collections come back in the one form in which `SamplingParams` keeps them. How settings work
is told in `sampling.py`.
"""

import operator
from collections.abc import Collection, Mapping

from qwen_edge.errors import UsageError

MAX_SEED = 2**64 - 1
MAX_COUNT = 2**31 - 1
_MAX_BIAS = 100.0


def check_number(
    field: str, value: float, *, low: float, high: float, keeps_tokens: bool = False
) -> None:
    """Raise UsageError unless `value` is a real number in [low, high].

    Args:
        field: Its name.
        value: What was given.
        low: Least value.
        high: Largest value.
        keeps_tokens: Whether 0 is refused because it would keep no token.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise _out_of_range(field, value, f"a number from {low:,} to {high:,}")
    if keeps_tokens and value == 0:
        raise UsageError(
            f"{field} is {value!r}, which keeps no token; expected more than 0 and at most 1.",
            "for the likeliest token each time, use temperature 0",
            field=field,
            value=value,
        )


def check_integer(field: str, value: int, *, low: int, high: int) -> None:
    """Raise UsageError unless `value` is an integer in [low, high]."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not low <= value <= high:
        raise _out_of_range(field, value, f"a whole number from {low:,} to {high:,}")


def read_token_ids(field: str, values: Collection[int]) -> tuple[int, ...]:
    """Return token ids, sorted and each once.

    Raises:
        UsageError: It is no collection, or holds what is no token id.
    """
    _check_collection(field, values, "a list of token ids")
    return tuple(sorted({_read_token_id(field, value) for value in values}))


def read_logit_bias(
    values: Mapping[int, float] | Collection[tuple[int, float]],
) -> tuple[tuple[int, float], ...]:
    """Return `(token_id, bias)` pairs sorted by id.

    Raises:
        UsageError: It is no mapping, holds what is no token id or no bias, or an id twice.
    """
    expected = "a mapping from token ids to numbers"
    _check_collection("logit_bias", values, expected)
    try:
        pairs = list(values.items() if isinstance(values, Mapping) else values)
        bias_of = {_read_token_id("logit_bias", key): value for key, value in pairs}
    except (TypeError, ValueError) as exc:
        raise _out_of_range("logit_bias", values, expected) from exc
    for token_id, bias in bias_of.items():
        check_number(f"logit_bias[{token_id}]", bias, low=-_MAX_BIAS, high=_MAX_BIAS)
    if len(bias_of) < len(pairs):
        raise _out_of_range("logit_bias", values, "each token id once")
    return tuple(sorted(bias_of.items()))


def check_breakers(values: Collection[int | str]) -> tuple[int | str, ...]:
    """Return sequence breakers in the order given.

    Raises:
        UsageError: It is no collection, or holds what is neither a token id nor a text.
    """
    field = "dry_sequence_breakers"
    _check_collection(field, values, "a list of token ids and texts")
    read: list[int | str] = []
    for value in values:
        if value == "":
            raise UsageError(
                f"{field} holds an empty text, which occurs in every token.",
                "leave it out",
                field=field,
                value=value,
            )
        read.append(value if isinstance(value, str) else _read_token_id(field, value))
    return tuple(read)


def _check_collection(field: str, values: object, expected: str) -> None:
    """Raise UsageError unless `values` is a collection, and not a text."""
    if isinstance(values, str | bytes) or not isinstance(values, Collection):
        raise _out_of_range(field, values, expected)


def _read_token_id(field: str, value: object) -> int:
    """Return a token id as an int; NumPy's integers are taken too."""
    try:
        token_id = -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        token_id = -1
    if not 0 <= token_id <= MAX_COUNT:
        raise UsageError(
            f"{field} holds {value!r}; expected token ids from 0 to {MAX_COUNT:,}.",
            "take ids from the model's tokenizer",
            field=field,
            value=value,
        )
    return token_id


def _out_of_range(field: str, value: object, expected: str) -> UsageError:
    """Return the error for one field."""
    return UsageError(
        f"{field} is {value!r}; expected {expected}.",
        f"give {field} such a value, or leave it out",
        field=field,
        value=value,
    )
