"""How values are written in error texts: suggestions, sizes, lists of problems."""

import difflib
from collections.abc import Iterable, Sequence

_MAX_LISTED_PROBLEMS = 8


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest known name, or an empty text.

    Args:
        name: What was typed.
        known: The names that exist.

    Returns:
        A sentence with a leading space, ready to be appended to the problem.
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def format_bytes(size_bytes: float) -> str:
    """Return a size in bytes, kB, MB or GB (powers of 1,000), with its unit.

    Args:
        size_bytes: A count of bytes, zero or more.
    """
    if size_bytes < 1_000:
        return f"{size_bytes:,.0f} bytes"
    for unit, scale in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if size_bytes < scale * 1_000 or unit == "GB":
            return f"{size_bytes / scale:,.1f} {unit}"
    return f"{size_bytes:,.0f} bytes"


def join_problems(problems: Sequence[str]) -> str:
    """Join problems of one kind into one text; count those beyond the first eight."""
    listed = list(problems[:_MAX_LISTED_PROBLEMS])
    if len(problems) > _MAX_LISTED_PROBLEMS:
        listed.append(f"and {len(problems) - _MAX_LISTED_PROBLEMS:,} more")
    return "; ".join(listed)
