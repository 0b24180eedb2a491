"""A page of HTML that needs nothing else: the style of all reports, light or dark.

The same bytes for the same content: no time, host, path or script, and nothing fetched. What a page
says is written by `quality/report.py` and `recipe_search/report.py`.
"""

import html
from collections.abc import Sequence

_STYLE = """\
:root { color-scheme: light dark; --text: #1c2733; --faint: #5a6775; --page: #ffffff;
  --rule: #d8dee5; --head: #f2f5f8; --first: #0b62b8; --second: #b4480a; --bad: #b3141f; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e9ef; --faint: #9ba8b6; --page: #14191f;
  --rule: #36404b; --head: #1e252d; --first: #6cb2f5; --second: #f0a060; --bad: #ff8088; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 1.5rem 1rem 3rem; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 .6rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .5rem 0; } .faint { color: var(--faint); font-size: .9rem; }
.bad { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--rule); text-align: right;
  vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 5.2rem;
  overflow-wrap: normal; }
thead th { background: var(--head); font-weight: 600; }
td small { display: block; color: var(--faint); font-size: .8rem; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.facts td:first-child { color: var(--faint); width: 9rem; }
svg { display: block; width: 100%; max-width: 36rem; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--faint); }
@media (max-width: 34rem) { table { font-size: .82rem; } th, td { padding: .3rem .35rem; }
  td small { font-size: .72rem; } table.facts td:first-child { width: 6rem; } }
.key { display: inline-block; width: 1.6rem; border-top: 3px solid; vertical-align: middle; }
.key.second { border-top-style: dashed; }
.swatch { display: inline-block; width: .9em; height: .9em; vertical-align: -.1em; }
.key-name { white-space: nowrap; }
tr.chosen td { background: var(--head); font-weight: 600; }
code { font-size: .88em; }
"""


def write_page(title: str, body: Sequence[str]) -> str:
    """Return a whole page.

    Args:
        title: Of the window, as text.
        body: Elements, as HTML.
    """
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{to_html(title)}</title>",
            f"<style>\n{_STYLE}</style>",
            "</head>",
            "<body>",
            *body,
            "</body>",
            "</html>",
            "",
        ]
    )


def make_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, chosen: int | None = None
) -> str:
    """Return a table.

    Args:
        columns: Names, as text.
        rows: Cells, as HTML.
        chosen: Index of a row that is set off from the others.
    """
    head = "".join(f"<th>{to_html(column)}</th>" for column in columns)
    body = []
    for index, row in enumerate(rows):
        mark = ' class="chosen"' if index == chosen else ""
        body.append(f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>")
    return "\n".join(
        [
            '<div class="scroll"><table>',
            f"<thead><tr>{head}</tr></thead>",
            "<tbody>",
            *body,
            "</tbody>",
            "</table></div>",
        ]
    )


def make_facts_table(rows: Sequence[tuple[str, str]]) -> str:
    """Return a table of names and values, both as text."""
    lines = [f"<tr><td>{to_html(key)}</td><td>{to_html(value)}</td></tr>" for key, value in rows]
    return "\n".join(['<table class="facts">', "<tbody>", *lines, "</tbody>", "</table>"])


def to_html(text: str) -> str:
    """Return a stranger's text as HTML, as one line without characters that nobody sees."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return html.escape(line, quote=True)
