"""The table of recipes: what it finds wrong, how it is written, and that the page holds one."""

import dataclasses
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qwen_edge.profiles import load_recipe, recipe_names

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "recipes-measured.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path() -> Iterator[None]:
    """Let the scripts import each other, as they do when one is run."""
    sys.path.insert(0, str(ROOT / "scripts"))
    yield
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def rows() -> ModuleType:
    """What is found and written."""
    return importlib.import_module("quality_rows")


@pytest.fixture
def good(rows: ModuleType) -> list[Any]:
    """Rows of one model in which nothing is missed."""

    def make(name: str, size: int, kl: float, num_right: int | None, variant: str = "") -> Any:
        interval = (kl, kl * 0.9, kl * 1.1)
        top1 = (1 - kl, 0.0, 1.0)
        return rows.Row(
            "demo", name, variant, (), size, size, interval, top1, interval, num_right, 300
        )

    return [
        make("fp16", 6_800_000, 1e-12, 294),
        make("int4-awq", 1_900_000, 0.08, 291),
        make("int4-awq-se", 1_900_000, 0.0525, 292),
        make("auto", 1_900_000, 0.04, 292),
        make("NNCF", 1_900_000, 0.05, None, ", AWQ, scale estimation"),
    ]


def change(rows: list[Any], place: int, **fields: Any) -> list[Any]:
    """Return the rows with one of them changed."""
    return [
        dataclasses.replace(row, **fields) if index == place else row
        for index, row in enumerate(rows)
    ]


def test_nothing_is_missed_at_the_bounds(rows: ModuleType, good: list[Any]) -> None:
    assert rows.find_misses(good) == []
    assert rows.find_misses(change(good, 3, kl=(0.0525, 0.0, 1.0))) == []


@pytest.mark.parametrize(
    ("place", "fields", "what"),
    [
        (3, {"kl": (0.0526, 0.0, 1.0)}, "auto is worse"),
        (3, {"weights_bytes": 1_900_001}, "auto is larger"),
        (1, {"num_right": 290}, "the default loses tasks"),
        (2, {"kl": (0.0526, 0.0, 1.0)}, "NNCF is better"),
        (0, {"kl": (0.0011, 0.0, 1.0)}, "another function"),
    ],
)
def test_each_miss_is_found(
    rows: ModuleType, good: list[Any], place: int, fields: dict[str, Any], what: str
) -> None:
    assert {miss["what"] for miss in rows.find_misses(change(good, place, **fields))} == {what}


def test_auto_is_compared_within_its_size_and_model(rows: ModuleType, good: list[Any]) -> None:
    assert [fixed.label for _, fixed in rows.pair_up(good)] == ["int4-awq", "int4-awq-se"]
    assert rows.pair_up(change(good, 3, limit_bytes=1_900_001)) == []
    assert rows.pair_up(change(good, 3, model="outliers")) == []


def test_table_has_the_best_of_each_size_in_bold(rows: ModuleType, good: list[Any]) -> None:
    text = rows.write_tables(good)
    bold = [line.split(" | ")[0] for line in text.splitlines() if "**" in line]
    assert bold == ["| `auto`"]
    assert "| NNCF, AWQ, scale estimation | 1.90 | 0.0500 (0.0450–0.0550) |" in text
    assert "| 291 of 300 (94.4–98.4 %) |" in text


def test_figures_are_replaced_and_nothing_else(rows: ModuleType) -> None:
    page = rows.replace_between_marks(rows.replace_between_marks(PAGE, "old"), "new")
    assert page.count("new\n<!-- figures: end -->") == 1
    outside = re.compile(r"(?<=figures: start -->).*(?=<!-- figures: end)", re.DOTALL)
    assert outside.sub("", page) == outside.sub("", PAGE)


def test_every_recipe_is_measured_once(scripts_on_path: None) -> None:
    entries = importlib.import_module("bench_quality").list_entries()
    named = [
        name
        for entry in entries
        if entry.group_size is None
        for name in (entry.name, *entry.aliases)
    ]
    assert sorted([*named, "auto"]) == sorted(recipe_names())
    assert len({entry.key for entry in entries}) == len(entries)
    aliases = next(entry.aliases for entry in entries if entry.name == "int4-awq")
    assert "peer-openvino-qwen3-4b" in aliases


def test_page_has_both_tables_and_names_recipes_that_exist(rows: ModuleType) -> None:
    figures = PAGE.split(rows.MARKS[0])[1].split(rows.MARKS[1])[0]
    tables = [part.split("\n\n")[1].splitlines() for part in figures.split("\n### ")[1:]]
    assert len(tables) == 2
    for heading, rule, *lines in tables:
        assert {line.count("|") for line in (heading, rule, *lines)} == {7}
        firsts = [line.split("|")[1] for line in lines]
        named = {name for first in firsts for name in re.findall(r"`([^`]+)`", first)}
        assert named == set(recipe_names())
        for first in firsts:
            assert first.startswith((" `", " NNCF")), first
        for name in named - {"auto"}:
            load_recipe(name)
