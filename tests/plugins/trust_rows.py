"""Which promises of docs/reliability.md a test tries, and how many cases it tries of them.

A test that tries a row of the catalogue (`tests/trust/catalogue/*.toml`) is marked with it:
`@pytest.mark.trust("T-EXP-01")`. It counts as one case; one that loops over many says so with the
fixture `cases`: `cases(120)`, or `cases(120, claim="killed")` where a sentence of
`claims.toml` gives the sum. At the end of a run the table is printed, and a run of all of them
fails where docs/reliability.md says more than was tried.
"""

import json
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

TRUST = Path(__file__).parents[1] / "trust"
FIGURES = TRUST / "figures.json"
_ROWS, _CASES = "trust rows", "trust cases"
# What another machine may try fewer: operators and files differ a little between processors.
_SHORTFALL = 0.9


class Cases:
    """Counts the cases of one test; see the module's docstring."""

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties
        self._number = 0
        self._claims: Counter[str] = Counter()

    def __call__(self, number: int, *, claim: str | None = None) -> None:
        """Add tried cases, to a claim's sum as well where one is named."""
        self._number += number
        if claim is not None:
            self._claims[claim] += number
        self._properties.append((_CASES, (self._number, dict(self._claims))))


@dataclass
class Table:
    """What a whole run tried, by row and by claim."""

    tried: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    claims: Counter[str] = field(default_factory=Counter)

    def add(self, report: pytest.TestReport) -> None:
        """Add one report of a test's setup, call or teardown."""
        properties: dict[str, Any] = dict(report.user_properties)
        rows = properties.get(_ROWS, ())
        if report.failed:
            self.failed.update(rows)
        elif report.skipped:
            self.skipped.update(rows)
        if report.when != "call" or report.skipped or not rows:
            return
        number, claims = properties.get(_CASES, (1, {}))
        self.tried.update(dict.fromkeys(rows, number))
        self.claims.update(claims)

    def shortfalls(self, figures: dict[str, dict[str, int]]) -> list[str]:
        """Return where fewer cases were tried than docs/reliability.md says."""
        pairs = [(figures["rows"], self.tried), (figures["claims"], self.claims)]
        return [
            f"{name}: {found[name]:,} tried, docs/reliability.md says {stated:,}"
            for stated_by_name, found in pairs
            for name, stated in stated_by_name.items()
            if found[name] < stated * _SHORTFALL and not self.skipped[name]
        ]


def read_catalogue() -> dict[str, dict[str, str]]:
    """Return every row of the catalogue: id → `promise`, and `reason` where it is not tried."""
    rows: dict[str, dict[str, str]] = {}
    for path in sorted((TRUST / "catalogue").glob("*.toml")):
        rows |= tomllib.loads(path.read_text(encoding="utf-8"))
    return rows


def read_claims() -> dict[str, str]:
    """Return the sentences with a sum of cases in them: name → text with `{number}`."""
    claims: dict[str, str] = tomllib.loads((TRUST / "claims.toml").read_text(encoding="utf-8"))
    return claims


def rows_of(item: pytest.Item) -> list[str]:
    """Return the rows that a test is marked with."""
    return sorted({row for mark in item.iter_markers("trust") for row in mark.args})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options of `scripts/test.py --trust`."""
    group = parser.getgroup("trust")
    group.addoption("--trust-table", action="store_true", help="print every row, not only sums")
    group.addoption("--trust-figures", metavar="FILE", help="write the figures there, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Announce the mark, and count where the reports of all processes arrive."""
    config.addinivalue_line("markers", "trust(*rows): tries rows of docs/reliability.md")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Counting(config), "trust table")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Write on each test which rows it tries: its reports carry that to who counts."""
    for item in items:
        if rows := rows_of(item):
            item.user_properties.append((_ROWS, rows))


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> Cases:
    """Return the counter of this test's cases."""
    return Cases(request.node.user_properties)


class _Counting:
    """Adds up the reports and prints the table."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._table = Table()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._table.add(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        table, option = self._table, self._config.option
        if option.trust_figures:
            figures = {"rows": dict(table.tried), "claims": dict(table.claims)}
            text = json.dumps(figures, indent=1, sort_keys=True) + "\n"
            Path(option.trust_figures).write_text(text, encoding="utf-8")
        elif self._is_whole() and FIGURES.exists() and not session.exitstatus:
            stated = json.loads(FIGURES.read_text(encoding="utf-8"))
            if table.shortfalls(stated):
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _is_whole(self) -> bool:
        """Return whether this run took all tests that are marked."""
        option = self._config.option
        narrowed = option.keyword or option.deselect or option.markexpr not in ("", "trust")
        return not narrowed and self._config.args_source is pytest.Config.ArgsSource.TESTPATHS

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        table, write = self._table, terminalreporter.write_line
        if not table.tried and not table.failed:
            return
        terminalreporter.section("trust")
        if self._config.option.trust_table:
            rows = read_catalogue()
            for row in sorted(rows):
                reason = rows[row].get("reason")
                state = f"{table.tried[row]:>8,} {table.failed[row]:>6}" if not reason else " " * 15
                write(f"{row:<11} {state}  {reason or rows[row]['promise']}")
        for name, text in read_claims().items():
            if table.claims[name]:
                write("  " + text.format(number=f"{table.claims[name]:,}"))
        failed = sum(table.failed.values())
        total = sum(table.tried.values())
        write(f"  {len(table.tried)} rows tried in {total:,} cases, {failed} failures")
        if self._is_whole() and FIGURES.exists():
            for text in table.shortfalls(json.loads(FIGURES.read_text(encoding="utf-8"))):
                write(f"  {text}")
