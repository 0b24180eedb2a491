"""The table counts what was tried, and a page that says more than that is noticed."""

from types import SimpleNamespace
from typing import Any

import pytest
from trust_rows import Cases, Table


def report(when: str = "call", outcome: str = "passed", **counted: Any) -> Any:
    properties: list[tuple[str, object]] = [("trust rows", ["T-EXP-01", "T-EXP-02"])]
    if counted:
        cases = Cases(properties)
        for claim, number in counted.items():
            cases(number, claim=claim)
    return SimpleNamespace(
        user_properties=properties,
        when=when,
        passed=outcome == "passed",
        failed=outcome == "failed",
        skipped=outcome == "skipped",
    )


def test_a_test_is_one_case_for_each_of_its_rows() -> None:
    table = Table()
    table.add(report("setup"))
    table.add(report("call"))
    table.add(report("teardown"))
    assert table.tried == {"T-EXP-01": 1, "T-EXP-02": 1}
    assert not table.failed
    assert not table.claims


def test_cases_are_added_up_by_row_and_by_claim() -> None:
    table = Table()
    table.add(report(killed=20, failed=5))
    table.add(report(killed=3))
    assert table.tried == {"T-EXP-01": 28, "T-EXP-02": 28}
    assert table.claims == {"killed": 23, "failed": 5}


@pytest.mark.parametrize("when", ["setup", "call", "teardown"])
def test_a_failure_counts_wherever_it_is(when: str) -> None:
    table = Table()
    table.add(report(when, "failed"))
    assert table.failed == {"T-EXP-01": 1, "T-EXP-02": 1}


def test_what_is_skipped_is_not_tried() -> None:
    table = Table()
    table.add(report("setup", "skipped"))
    assert not table.tried
    assert table.skipped == {"T-EXP-01": 1, "T-EXP-02": 1}


@pytest.mark.parametrize(("stated", "is_short"), [(100, False), (111, False), (112, True)])
def test_a_page_may_not_say_more_than_was_tried(stated: int, is_short: bool) -> None:
    table = Table()
    table.add(report(killed=100))
    by_row = table.shortfalls({"rows": {"T-EXP-01": stated}, "claims": {}})
    by_claim = table.shortfalls({"rows": {}, "claims": {"killed": stated}})
    assert (bool(by_row), bool(by_claim)) == (is_short, is_short)
    assert table.shortfalls({"rows": {"T-GEN-01": 1}, "claims": {}}) == [
        "T-GEN-01: 0 tried, docs/reliability.md says 1"
    ]
