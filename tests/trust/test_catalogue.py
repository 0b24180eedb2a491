"""Every row of the catalogue is tried by a test, or the page says why not; no other way."""

import re
from pathlib import Path

import pytest
from trust_rows import read_catalogue, read_claims

TESTS = Path(__file__).parents[1]
ROWS_BY_GROUP = {
    "EXP": 19, "IN": 17, "PKG": 15, "TOK": 6, "TPL": 6, "SEC": 9, "SRV": 13, "GEN": 12,
    "LOAD": 5, "DEV": 7, "EMB": 11, "SUP": 10,
}  # fmt: skip
ROW = re.compile(r"T-[A-Z]+-[0-9]{2}")


@pytest.fixture(scope="module")
def marked() -> set[str]:
    """Return the rows that stand in a mark of a test file."""
    marks = re.compile(r"mark\.trust\(([^)]*)\)")
    return {
        row
        for path in TESTS.rglob("test_*.py")
        for arguments in marks.findall(path.read_text(encoding="utf-8"))
        for row in ROW.findall(arguments)
    }


def test_the_catalogue_is_whole() -> None:
    expected = {
        f"T-{group}-{number:02}"
        for group, count in ROWS_BY_GROUP.items()
        for number in range(1, count + 1)
    }
    assert set(read_catalogue()) == expected
    assert len(expected) == 130


def test_each_row_has_a_test_or_a_reason(marked: set[str]) -> None:
    rows = read_catalogue()
    assert {row for row, facts in rows.items() if "reason" not in facts} == marked


@pytest.mark.parametrize("row", read_catalogue())
def test_a_row_says_what_is_promised_in_one_sentence(row: str) -> None:
    facts = read_catalogue()[row]
    assert set(facts) <= {"promise", "limits", "reason"}
    for text in facts.values():
        assert text == text.strip()
        assert not text.endswith(".")
        assert len(text) < 300


@pytest.mark.parametrize("claim", read_claims())
def test_a_claim_has_one_sum_and_a_test_that_adds_to_it(claim: str) -> None:
    assert read_claims()[claim].count("{number}") == 1
    texts = [path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")]
    assert any(f'claim="{claim}"' in text for text in texts)
