"""A budget as people write it: "size<=2.6GB,kl<=0.03"."""

import math
import re
from dataclasses import dataclass

from qwen_edge.errors import UsageError, did_you_mean, join_problems

_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_ENTRY = re.compile(r"\s*([A-Za-z0-9_]+)\s*(<=|=|<)\s*([0-9.eE+-]+)\s*([A-Za-z]*)\s*")
_KEYS = ("size", "kl")


@dataclass(frozen=True)
class Budget:
    """What a model may take and lose.

    Args:
        num_bytes: Of weights at most; None for any size.
        kl: Mean KL at most, in nats; None for any loss.
    """

    num_bytes: int | None
    kl: float | None


def parse_budget(text: str) -> Budget:
    """Read a budget.

    Args:
        text: "size<=2.6GB", "kl<=0.03" or both with a comma; MB and GB are powers of ten, MiB and
            GiB of two.

    Raises:
        UsageError: With every entry that is no limit.
    """
    limits: dict[str, float] = {}
    problems = []
    for entry in text.split(","):
        match = _ENTRY.fullmatch(entry)
        if match is None or match[1].lower() not in _KEYS:
            key = match[1] if match else entry.strip()
            hint = did_you_mean(key.lower(), _KEYS)
            problems.append(f"{entry.strip()!r} is no limit on size or kl.{hint}".rstrip("."))
            continue
        key = match[1].lower()
        if key in limits:
            problems.append(f"{key} is there twice")
            continue
        value = _read_value(key, match[3], match[4])
        if isinstance(value, str):
            problems.append(value)
        else:
            limits[key] = value
    if problems:
        raise UsageError(
            f"The budget {text!r} cannot be read: {join_problems(problems)}.",
            'write it as "size<=2.6GB,kl<=0.03", or one of the two',
            field="budget",
        )
    size = limits.get("size")
    # 2.01 times a million is a little less than 2,010,000 in floating point.
    return Budget(None if size is None else round(size), limits.get("kl"))


def _read_value(key: str, number: str, unit: str) -> float | str:
    """Return a limit, or what is wrong with it."""
    try:
        value = float(number)
    except ValueError:
        return f"{number!r} is no number"
    if not math.isfinite(value) or value <= 0:
        return f"{key} is {number}, expected more than 0"
    if key == "kl":
        return f"kl has the unit {unit!r}, expected none" if unit else value
    if unit not in _UNITS:
        hint = did_you_mean(unit, _UNITS)
        return f"size has the unit {unit!r}, expected one of {', '.join(_UNITS)}{hint}"
    return value * _UNITS[unit]
