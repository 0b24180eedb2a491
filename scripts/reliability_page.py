"""The part of docs/reliability.md that is made: what is tried, how often, and what is not.

From the rows of tests/trust/catalogue, the sentences of tests/trust/claims.toml, and the figures
that a run of `python scripts/test.py --trust --trust-figures tests/trust/figures.json` wrote.
"""

import json
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRUST = ROOT / "tests" / "trust"
PAGE = ROOT / "docs" / "reliability.md"
MARK = "<!-- From here on made by scripts/write_docs.py out of tests/trust; do not edit. -->\n"
GROUPS = {
    "EXP": "Exports",
    "IN": "Checkpoints that are wrong",
    "PKG": "Packages that are wrong",
    "TOK": "Tokenizers",
    "TPL": "Chat templates",
    "SEC": "Who may reach the server",
    "SRV": "What is sent to the server",
    "GEN": "Answers and streams",
    "LOAD": "Load",
    "DEV": "Devices",
    "EMB": "In other programs",
    "SUP": "Where things come from",
}


def reliability_page() -> str:
    """Return the whole page: what stands above the mark as it is, the rest made anew."""
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    rows: dict[str, dict[str, str]] = {}
    for path in sorted((TRUST / "catalogue").glob("*.toml")):
        rows |= tomllib.loads(path.read_text(encoding="utf-8"))
    figures = json.loads((TRUST / "figures.json").read_text(encoding="utf-8"))
    return (
        "\n".join([head + MARK, *_summary(rows, figures), *_tables(rows, figures["rows"])]) + "\n"
    )


def _summary(rows: dict[str, dict[str, str]], figures: dict[str, dict[str, int]]) -> list[str]:
    claims = tomllib.loads((TRUST / "claims.toml").read_text(encoding="utf-8"))
    tried = [row for row, facts in rows.items() if "reason" not in facts]
    total = sum(figures["rows"].values())
    return [
        "## In figures",
        "",
        *(
            f"- {text.format(number=format(figures['claims'][name], ','))}"
            for name, text in claims.items()
        ),
        f"- {len(tried)} of {len(rows)} rows below are tried, in {total:,} cases (a case counts in "
        "each row that it tries), 0 failures.",
        "",
    ]


def _tables(rows: dict[str, dict[str, str]], tried: dict[str, int]) -> list[str]:
    lines = []
    for group, title in GROUPS.items():
        own = sorted(row for row in rows if row.startswith(f"T-{group}-"))
        lines += [f"## {title}", "", "| row | what is promised | cases |", "| --- | --- | ---: |"]
        for row in own:
            facts = rows[row]
            cases = f"{tried.get(row, 0):,}" if "reason" not in facts else "none"
            lines.append(f"| {row} | {_cell(facts['promise'])} | {cases} |")
        lines.append("")
        for row in own:
            if "limits" in rows[row]:
                lines.append(f"- {row}, what is not tried: {rows[row]['limits']}.")
            if "reason" in rows[row]:
                lines.append(f"- {row} is not tried: {rows[row]['reason']}.")
        if lines[-1]:
            lines.append("")
    return lines[:-1]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
