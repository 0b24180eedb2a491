"""Combinations of machine, drivers and engine that are known to fail, from a table of reports.

`known_problems.toml` holds each with its rule, words, fix and sources. A rule is a list of facts
with a condition each; all must hold. A fact that is not known holds no condition, so that nobody
is told of a fault on a guess. Where the facts come from is in `facts.py`.
"""

import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

Fact = str | bool | int | float | None
"""A fact about a machine; None where it is not known."""
Facts = Mapping[str, Fact]

_COMPARISON = re.compile(r"(<=|>=|<|>)\s*(\S+)")
_NUMBERS = re.compile(r"\d+")
_CONTAINS = "contains "
_ONE_OF = "one of "


@dataclass(frozen=True)
class KnownProblem:
    """One combination that is known to fail.

    Args:
        id: For programs and for searching.
        level: "problem" (something will not work and can be mended) or "note".
        when: Fact to condition; all must hold.
        what: What is wrong, for a person; `{fact}` is replaced.
        fix: A command, or what to do; `{fact}` is replaced.
        sources: Where it was reported or is documented; at least one.
    """

    id: str
    level: Literal["problem", "note"]
    when: Mapping[str, str | bool]
    what: str
    fix: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class FoundProblem:
    """A known problem that this machine has, with its words filled in."""

    id: str
    level: Literal["problem", "note"]
    what: str
    fix: str
    sources: tuple[str, ...]


@functools.cache
def load_known_problems() -> tuple[KnownProblem, ...]:
    """Return the table, in its order."""
    text = resources.files("qwen_edge.runtime.machine").joinpath("known_problems.toml").read_bytes()
    return tuple(_read(table) for table in tomllib.loads(text.decode("utf-8"))["problems"])


def _read(table: Mapping[str, Any]) -> KnownProblem:
    return KnownProblem(**{**table, "sources": tuple(table["sources"])})


def find_known_problems(
    facts: Facts, known: Sequence[KnownProblem] | None = None
) -> tuple[FoundProblem, ...]:
    """Return the known problems whose rules hold here.

    Args:
        facts: About this machine; one that is left out is not known.
        known: Instead of the table.
    """
    words = _Words((name, _say(value)) for name, value in facts.items() if value is not None)
    return tuple(
        FoundProblem(
            entry.id,
            entry.level,
            entry.what.format_map(words),
            entry.fix.format_map(words),
            entry.sources,
        )
        for entry in (load_known_problems() if known is None else known)
        if all(is_met(facts.get(name), condition) for name, condition in entry.when.items())
    )


class _Words(dict[str, str]):
    """Facts in words; what is not known is called so."""

    def __missing__(self, name: str) -> str:
        return "unknown"


def is_met(fact: Fact, condition: str | bool) -> bool:
    """Return whether a fact meets a condition; one that is not known meets none.

    Args:
        fact: What is known.
        condition: True or False; "< 6.6", ">= 6.18 < 6.19" for numbers and versions; "contains
            text" for a part of it; "one of a, b"; or the text itself. Texts in any case.
    """
    if fact is None:
        return False
    if isinstance(condition, bool) or isinstance(fact, bool):
        return fact is condition
    comparisons = _COMPARISON.findall(condition)
    if comparisons:
        return all(_compare(str(fact), sign, limit) for sign, limit in comparisons)
    text, wanted = str(fact).lower(), condition.lower()
    if wanted.startswith(_CONTAINS):
        return wanted.removeprefix(_CONTAINS) in text
    if wanted.startswith(_ONE_OF):
        return text in [part.strip() for part in wanted.removeprefix(_ONE_OF).split(",")]
    return text == wanted


def _compare(found: str, sign: str, limit: str) -> bool:
    """Compare as versions: number by number, as far as the limit goes into detail.

    Linux's "6.18.5-200.fc43" is not above "6.18"; it is that version.
    """
    wanted = [int(number) for number in _NUMBERS.findall(limit)]
    numbers = [int(number) for number in _NUMBERS.findall(found)]
    if not numbers:
        return False
    have = (numbers + [0] * len(wanted))[: len(wanted)]
    return {
        "<": have < wanted,
        "<=": have <= wanted,
        ">": have > wanted,
        ">=": have >= wanted,
    }[sign]


def _say(fact: Fact) -> str:
    return f"{fact:g}" if isinstance(fact, float) else str(fact)
