"""What `qwen-edge export` shows of a recipe search: all that could be had, and what was chosen.

Tokens per second are this machine's memory over the bytes that a token reads, so they are bounds:
no program is faster. It decides nothing; read `export_view.py` for the rest of an export.
"""

from typing import TYPE_CHECKING

from qwen_edge.cli.output import Output
from qwen_edge.errors import ResourceError

if TYPE_CHECKING:
    from qwen_edge.export.recipe_search.table import FrontierTable

_BAR = 24  # characters of the longest bar
_MEASURE_S = 1.0


class FrontierView:
    """Takes what an export tells while it goes on: sentences, and the table of a search.

    Args:
        out: Where it is written.
        is_read: Somebody reads notices, or a program the figures: else nothing is measured.

    State:
        `bandwidth` is bytes per second, once a table was shown; None where it cannot be measured.
    """

    def __init__(self, out: Output, *, is_read: bool = True) -> None:
        self._out = out
        self._is_read = is_read
        self.bandwidth: float | None = None

    def __call__(self, news: "str | FrontierTable") -> None:
        """Write a notice, or a table and its plot."""
        if isinstance(news, str):
            self._out.notice(news)
            return
        if self._is_read:
            self.bandwidth = _measure()
            self._out.notice("\n".join(_lines(news, self.bandwidth)))


def frontier_json(table: "FrontierTable", bandwidth: float | None) -> dict[str, object]:
    """Return a table for programs.

    Args:
        table: What a search found.
        bandwidth: Bytes of memory this machine reads per second; None where unknown.
    """
    return {
        "recipe": table.recipe,
        "num_tokens": table.num_tokens,
        "bandwidth_bytes_per_s": bandwidth,
        "lines": [
            {
                "weights_bytes": line.weights_bytes,
                "expected_kl": line.kl,
                "bytes_per_token": line.bytes_per_token,
                "most_tokens_per_s": None
                if bandwidth is None
                else bandwidth / line.bytes_per_token,
                "is_chosen": line.is_chosen,
            }
            for line in table.lines
        ],
    }


def _lines(table: "FrontierTable", bandwidth: float | None) -> list[str]:
    """Return the table with a bar for each KL."""
    speeds = [
        "–" if bandwidth is None else _in_digits(bandwidth / line.bytes_per_token)
        for line in table.lines
    ]
    most = max(line.kl for line in table.lines) or 1.0
    size = max(len(text) for text in (*table.sizes, "weights"))
    speed = max(len(text) for text in (*speeds, "tokens/s"))
    rows = [f"    {'weights':>{size}}  {'KL':>8}  {'tokens/s':>{speed}}"]
    for line, told, fast in zip(table.lines, table.sizes, speeds, strict=True):
        mark = "→" if line.is_chosen else " "
        bar = "#" * round(_BAR * line.kl / most)
        rows.append(f"  {mark} {told:>{size}}  {line.kl:>8.2g}  {fast:>{speed}}  {bar}".rstrip())
    bound = "unknown: this machine's memory could not be measured"
    if bandwidth is not None:
        bound = (
            f"at most, by {bandwidth / 1e9:,.1f} GB/s of memory here and the bytes a token reads"
        )
    return [
        f"What can be had, by about {table.num_tokens:,} tokens of calibration text:",
        *rows,
        f"  KL: expected, weights alone. tokens/s: {bound}.",
        f"  → is the recipe {table.recipe}.",
    ]


def _in_digits(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}"


def _measure() -> float | None:
    # NumPy takes a tenth of a second, and most command lines export nothing.
    from qwen_edge.runtime.machine.roofline import measure_bandwidth

    try:
        return measure_bandwidth(seconds=_MEASURE_S)
    except ResourceError:
        return None
