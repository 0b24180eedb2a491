"""The budget of a rendering: a clock that can be set, characters and items."""

import pytest

from qwen_edge.runtime.template_budget import (
    MAX_OUTPUT_CHARS,
    MAX_RENDER_S,
    MAX_STEP_S,
    MAX_VALUE_ITEMS,
    Budget,
    LimitError,
)


@pytest.mark.trust("T-TPL-03")
def test_time_ends_at_the_limit() -> None:
    now_s = 100.0
    budget = Budget(lambda: now_s)
    for _ in range(4):
        now_s += MAX_RENDER_S / 4
        budget.step()
    now_s += 0.001
    with pytest.raises(LimitError, match="1 s"):
        budget.step()


@pytest.mark.trust("T-TPL-03")
def test_one_long_pause_of_the_program_is_not_the_templates_fault() -> None:
    """Garbage of the whole program was collected in the thread that renders."""
    now_s = 100.0
    budget = Budget(lambda: now_s)
    now_s += 60
    budget.step()
    now_s += MAX_STEP_S
    budget.step()
    now_s += 60
    with pytest.raises(LimitError, match="1 s"):
        budget.step()


def test_characters_are_counted_over_all_outputs() -> None:
    budget = Budget()
    for _ in range(4):
        budget.emit(MAX_OUTPUT_CHARS // 4)
    with pytest.raises(LimitError, match="4,194,304 characters"):
        budget.emit(1)


@pytest.mark.parametrize(
    "value",
    ["x" * (MAX_OUTPUT_CHARS + 1), 2**1024, [0] * (MAX_VALUE_ITEMS + 1), [["x" * 999_999] * 5]],
    ids=["text", "number", "items", "text-in-list"],
)
def test_values_over_a_limit_are_refused(value: object) -> None:
    with pytest.raises(LimitError):
        Budget().check(value)


@pytest.mark.parametrize("value", ["x", 7, None, 1.5, [1, {"a": ("b",)}], {}], ids=repr)
def test_ordinary_values_pass_unchanged(value: object) -> None:
    assert Budget().check(value) is value


def test_a_list_that_holds_itself_twice_counts_each_time() -> None:
    value: list[object] = [1]
    for _ in range(40):
        value = [value, value]
    with pytest.raises(LimitError, match="200,000 items"):
        Budget().check(value)
