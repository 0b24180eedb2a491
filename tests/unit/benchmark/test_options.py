"""What cannot be measured is refused before anything is loaded."""

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.runtime.benchmark.options import BenchmarkOptions


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompt_tokens": ()}, r"prompt_tokens is \[\]; expected 1 to 16 lengths"),
        ({"prompt_tokens": tuple(range(1, 18))}, "expected 1 to 16 lengths"),
        ({"prompt_tokens": (8, 0)}, "prompt_tokens is 0; expected a whole number from 1"),
        ({"prompt_tokens": (8, 8)}, "expected each length once"),
        ({"new_tokens": 1}, "new_tokens is 1; expected a whole number from 2"),
        ({"rounds": 0}, "rounds is 0; expected a whole number from 1"),
        ({"cold_starts": -1}, "cold_starts is -1; expected a whole number from 0"),
        ({"seconds": 0.0}, "seconds is 0.0; expected more than 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
    ],
    ids=["none", "many", "zero", "twice", "new", "rounds", "cold", "seconds", "nan"],
)
def test_what_is_out_of_range_is_named(given: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BenchmarkOptions(**given)  # type: ignore[arg-type]


def test_the_defaults_are_fit() -> None:
    assert BenchmarkOptions() == BenchmarkOptions(prompt_tokens=None, rounds=5)
