"""The recipe search: its frontier is the best there is, and what it says can be had can be had."""

import itertools
import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.errors import BudgetError, UsageError
from qwen_edge.export.calibration_texts import CalibrationText
from qwen_edge.export.checkpoint import open_checkpoint
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.packed_size import matrix_bytes, packed_bytes
from qwen_edge.export.recipe_search import search as searching
from qwen_edge.export.recipe_search.budget import Budget, parse_budget
from qwen_edge.export.recipe_search.candidates import (
    CANDIDATES,
    INT8,
    check_budget,
    legal_candidates,
    needs_search,
)
from qwen_edge.export.recipe_search.frontier import Frontier
from qwen_edge.export.recipe_search.promise import find_broken_budget
from qwen_edge.export.recipe_search.report import write_search_report
from qwen_edge.export.recipe_search.search import SearchResult, search_recipe
from qwen_edge.export.recipe_search.sensitivity import MatrixCost
from qwen_edge.export.recipe_search.table import make_table
from qwen_edge.profiles.profile import load_profile
from qwen_edge.profiles.recipe import Recipe, load_recipe
from qwen_edge.runtime.quality_facts import IntervalFacts, QualityFacts, ReadingFacts
from qwen_edge.runtime.recipe_facts import CalibrationFacts

OTHER_BYTES = 12_345
NAMES = [f"model.layers.0.mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")]
AUTO = load_recipe("auto")
CheckpointMaker = Callable[..., Path]


@st.composite
def matrix_costs(draw: st.DrawFn, max_matrices: int = 3) -> list[MatrixCost]:
    """Draw matrices with losses that need not fall with the size."""
    found = []
    for name in NAMES[: draw(st.integers(1, max_matrices))]:
        rows, width = draw(st.sampled_from([32, 256])), draw(st.sampled_from([128, 512]))
        losses = st.one_of(st.just(0.0), st.floats(1e-6, 1.0))
        kl = {one: draw(losses) for one in CANDIDATES}
        found.append(MatrixCost(name, (rows, width), kl))
    return found


def every_model(costs: Sequence[MatrixCost]) -> list[tuple[int, float]]:
    """Return size and loss of all that could be chosen."""
    return [
        (
            OTHER_BYTES
            + sum(matrix_bytes(one, *cost.shape) for one, cost in zip(formats, costs, strict=True)),
            sum(cost.kl[one] for one, cost in zip(formats, costs, strict=True)),
        )
        for formats in itertools.product(CANDIDATES, repeat=len(costs))
    ]


@given(matrix_costs())
@settings(deadline=None, max_examples=60)
def test_no_choice_is_better_than_the_frontier(costs: list[MatrixCost]) -> None:
    frontier = Frontier(costs, OTHER_BYTES)
    models = every_model(costs)
    for point in frontier.points:
        formats = frontier.formats(point)
        by_name = {cost.name: cost for cost in costs}
        size = sum(matrix_bytes(one, *by_name[name].shape) for name, one in formats.items())
        assert point.num_bytes == OTHER_BYTES + size
        loss = sum(by_name[name].kl[one] for name, one in formats.items())
        assert point.kl == pytest.approx(loss, abs=1e-9)
        assert not [m for m in models if m[0] <= point.num_bytes and m[1] < point.kl - 1e-9]
        assert not [m for m in models if m[0] < point.num_bytes and m[1] <= point.kl - 1e-9]
    assert frontier.points[0].num_bytes == min(size for size, _ in models)
    assert frontier.points[-1].kl == pytest.approx(min(loss for _, loss in models), abs=1e-9)
    sizes = [point.num_bytes for point in frontier.points]
    assert sizes == sorted(set(sizes))


@given(matrix_costs(), st.floats(1e-9, 1e-3))
@settings(deadline=None)
def test_whatever_a_byte_is_worth_the_best_model_is_on_the_frontier(
    costs: list[MatrixCost], worth: float
) -> None:
    best = min(loss + worth * size for size, loss in every_model(costs))
    points = Frontier(costs, OTHER_BYTES).points
    assert min(p.kl + worth * p.num_bytes for p in points) == pytest.approx(best, abs=1e-9)


@given(matrix_costs(), st.integers(0, 400_000), st.floats(0, 3))
@settings(deadline=None)
def test_a_limit_is_used_up_but_not_passed(
    costs: list[MatrixCost], limit_bytes: int, limit_kl: float
) -> None:
    frontier = Frontier(costs, OTHER_BYTES)
    points = frontier.points
    found = frontier.within_bytes(limit_bytes)
    fitting = [point for point in points if point.num_bytes <= limit_bytes]
    assert found == (fitting[-1] if fitting else None)
    small = frontier.within_kl(limit_kl)
    good = [point for point in points if point.kl <= limit_kl]
    assert small == (good[0] if good else None)


@given(matrix_costs(), st.integers(2, 12))
@settings(deadline=None)
def test_a_sample_has_both_ends_and_no_point_twice(costs: list[MatrixCost], count: int) -> None:
    frontier = Frontier(costs, OTHER_BYTES)
    sample = frontier.sample(count)
    assert (sample[0], sample[-1]) == (frontier.points[0], frontier.points[-1])
    assert len(sample) <= count
    assert len(set(sample)) == len(sample)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("size<=2.6GB", Budget(2_600_000_000, None)),
        ("size<=2.01MB", Budget(2_010_000, None)),  # was a byte less
        (" KL = 0.03 , size<1GiB", Budget(2**30, 0.03)),
        ("size<=512kB", Budget(512_000, None)),
    ],
)
def test_budgets(text: str, expected: Budget) -> None:
    assert parse_budget(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is no limit on size or kl"),
        ("sise<=1GB", "Did you mean 'size'"),
        ("size>=1GB", "is no limit"),
        ("size<=1", "unit ''"),
        ("size<=1TB", "unit 'TB'"),
        ("size<=0GB", "expected more than 0"),
        ("kl<=0", "expected more than 0"),
        ("kl<=-1", "expected more than 0"),
        ("kl<=1e999", "expected more than 0"),
        ("kl<=1.2.3", "'1.2.3' is no number"),
        ("kl<=0.1GB", "expected none"),
        ("kl<=0.1,kl<=0.2", "kl is there twice"),
        ("kl<=nan", "is no limit"),
    ],
)
def test_budgets_that_are_none(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=re.escape(problem)):
        parse_budget(text)


def asked_for(fix: str) -> list[Budget]:
    """Return the budgets that a fix names."""
    found = re.findall(r'--budget "([^"]+)"', fix)
    assert found
    return [parse_budget(text) for text in found]


@given(matrix_costs(), st.integers(1, 400_000), st.floats(1e-7, 2.0))
@settings(deadline=None)
def test_the_nearest_possible_budget_is_possible(
    costs: list[MatrixCost], num_bytes: int, kl: float
) -> None:
    frontier = Frontier(costs, OTHER_BYTES)
    for budget in (Budget(num_bytes, None), Budget(None, kl), Budget(num_bytes, kl)):
        try:
            point = searching._choose(frontier, budget)
        except BudgetError as refusal:
            for nearest in asked_for(refusal.fix or ""):
                searching._choose(frontier, nearest)
        else:
            assert point.num_bytes <= (budget.num_bytes or math.inf)
            assert point.kl <= (budget.kl or math.inf)


@pytest.fixture(scope="module")
def tiny_spec(tiny_config: dict[str, Any]) -> DecoderSpec:
    return read_spec(tiny_config)


def test_an_impossible_size_is_refused_before_anything_is_read(tiny_spec: DecoderSpec) -> None:
    with pytest.raises(BudgetError) as caught:
        check_budget(parse_budget("size<=50kB"), tiny_spec, AUTO, CANDIDATES)
    smallest = caught.value.facts["smallest_bytes"]
    (nearest,) = asked_for(caught.value.fix or "")
    assert nearest.num_bytes is not None and 0 <= nearest.num_bytes - smallest < 10_000
    check_budget(nearest, tiny_spec, AUTO, CANDIDATES)
    check_budget(Budget(smallest, None), tiny_spec, AUTO, CANDIDATES)
    check_budget(Budget(None, 1e-9), tiny_spec, AUTO, CANDIDATES)  # known only when it is measured
    with pytest.raises(BudgetError):
        check_budget(Budget(smallest - 1, None), tiny_spec, AUTO, CANDIDATES)


def test_candidates_are_legal_on_every_device() -> None:
    for_npu = legal_candidates(AUTO, load_profile("core-ultra"), ["openvino"])
    assert {(one.weights, one.symmetric, one.group_size) for one in for_npu} == {
        ("int4", True, 128),
        ("int4", True, -1),
    }
    assert legal_candidates(AUTO, load_profile("generic-x86"), ["openvino"]) == list(CANDIDATES)
    assert legal_candidates(AUTO, load_profile("core-ultra"), ["onnx"]) == list(CANDIDATES)
    assert needs_search(AUTO) and needs_search(load_recipe("int4-mixed"))
    assert not needs_search(load_recipe("int4-gptq"))


class Search:
    """A search on the tiny model whose costs are made up; counts how often they are measured."""

    def __init__(self, folder: Path, checkpoint: Path, patch: pytest.MonkeyPatch) -> None:
        self.kept = folder / "search.json"
        self.spec = read_spec(json.loads((checkpoint / "config.json").read_bytes()))
        self.checkpoint = checkpoint
        self.num_measured = 0
        patch.setattr(searching, "measure_sensitivity", self._measure)

    def _measure(self, spec: DecoderSpec, *others: Any) -> tuple[MatrixCost, ...]:
        self.num_measured += 1
        tried = others[2]
        costs = []
        for layer in range(spec.num_layers):
            for index, (name, shape) in enumerate(spec.linear_shapes(layer).items()):
                worst = (0.003 + 0.001 * index) * (layer + 1) / 3  # digits that text must keep
                kl = {one: worst * (1_000 / matrix_bytes(one, *shape)) ** 2 for one in tried}
                costs.append(MatrixCost(name, shape, kl))
        return tuple(costs)

    def run(self, budget: str | None, recipe: Recipe = AUTO, key: str = "key") -> SearchResult:
        checkpoint = open_checkpoint(self.checkpoint)
        try:
            return search_recipe(
                self.spec,
                checkpoint,
                recipe,
                CANDIDATES,
                CalibrationText(((1, 2, 3),), "own", "0"),
                None if budget is None else parse_budget(budget),
                self.kept,
                key,
                lambda what, done, total: None,
            )
        finally:
            checkpoint.close()


@pytest.fixture
def search(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    return Search(tmp_path, tiny_checkpoint, monkeypatch)


def test_what_was_measured_is_kept_for_other_budgets(search: Search) -> None:
    first = search.run("kl<=1")
    assert not first.is_kept
    again = search.run("kl<=1")
    assert again.is_kept and again.recipe == first.recipe and again.point == first.point
    large = search.run("size<=1GB")
    assert search.num_measured == 1
    assert large.point == large.frontier.points[-1]
    assert large.recipe.name != first.recipe.name
    search.run("kl<=1", key="another checkpoint")
    search.kept.write_text("{", encoding="utf-8")
    search.run("kl<=1", key="another checkpoint")
    assert search.num_measured == 3


def test_the_recipe_is_the_model_that_was_chosen(search: Search) -> None:
    middle = search.run("size<=1GB").frontier.sample(3)[1]
    found = search.run(f"size<={middle.num_bytes / 1e6:.6f}MB")
    assert found.point == middle
    assert packed_bytes(found.recipe, search.spec) == middle.num_bytes
    assert found.recipe.ratio == 1 and not needs_search(found.recipe)


@pytest.mark.parametrize("ratio", [0.95, 0.8, 0.5, 0.05])
def test_a_ratio_is_kept_within_one_matrix(search: Search, ratio: float) -> None:
    recipe = replace(load_recipe("int4-mixed"), ratio=ratio)
    found = search.run(None, recipe)
    sizes = {
        name: rows * width
        for layer in range(search.spec.num_layers)
        for name, (rows, width) in search.spec.linear_shapes(layer).items()
    }
    used = sum(size for name, size in sizes.items() if found.recipe.matrix_format(name) == INT8)
    allowed = (1 - ratio) * sum(sizes.values())
    assert used <= allowed < used + max(sizes.values())


def quality(kl: float, *, has_weights: bool = True) -> QualityFacts:
    interval = IntervalFacts(kl, kl, kl)
    reading = ReadingFacts(interval, interval, interval, interval, None, None)
    weights, as_run = (reading, None) if has_weights else (None, reading)
    return QualityFacts("built-in", "0", 100, None, weights, None, as_run, None)


def test_a_budget_that_is_kept_is_no_matter(search: Search) -> None:
    found = search.run("kl<=0.1")
    assert find_broken_budget(found, Budget(None, 0.1), quality(0.1)) is None
    assert find_broken_budget(found, Budget(1, None), quality(9.0)) is None


@pytest.mark.parametrize("has_weights", [True, False])
def test_a_broken_budget_names_what_to_ask_for(search: Search, has_weights: bool) -> None:
    everything = search.run("size<=1GB").frontier
    limit = everything.points[len(everything.points) // 3].kl
    found = search.run(f"kl<={limit}")
    measured = 1.5 * found.point.kl
    broken = find_broken_budget(
        found, Budget(None, limit), quality(measured, has_weights=has_weights)
    )
    assert broken is not None
    assert f"{measured:.3g}" in broken.problem and f"{found.point.kl:.3g}" in broken.problem
    assert broken.problem.startswith("By its weights" if has_weights else "As it runs")
    better, same = asked_for(broken.fix)
    assert better.kl == pytest.approx(limit, rel=1e-5)
    chosen = searching._choose(everything, better)
    assert chosen.kl * 1.5 <= limit  # so that it is likely to keep to it
    assert searching._choose(everything, same) == found.point
    assert same.kl is not None and same.kl >= measured


def test_a_budget_that_nothing_keeps_to(search: Search) -> None:
    found = search.run("size<=1GB")
    limit = found.point.kl * 1.01
    broken = find_broken_budget(found, Budget(None, limit), quality(limit * 2))
    assert broken is not None
    assert broken.fix.startswith("no format here is likely to do")
    (same,) = asked_for(broken.fix)
    assert searching._choose(found.frontier, same) == found.point


def test_the_table_has_the_chosen_line_once(search: Search) -> None:
    frontier = search.run("size<=1GB").frontier
    for point in frontier.points:
        found = search.run(f"size<={point.num_bytes / 1e6:.6f}MB")
        table = make_table(found, search.spec)
        assert table.chosen.weights_bytes == point.num_bytes
        assert [line.is_chosen for line in table.lines].count(True) == 1
        assert len(table.lines) <= 11
        sizes = [line.weights_bytes for line in table.lines]
        assert sizes == sorted(set(sizes))
        assert all(line.bytes_per_token == line.weights_bytes for line in table.lines)


def test_an_embedding_that_is_no_head_is_not_read(
    tmp_path: Path, make_checkpoint: CheckpointMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = make_checkpoint(tmp_path / "apart", tie_word_embeddings=False)
    search = Search(tmp_path, apart, monkeypatch)
    table = make_table(search.run("size<=1GB"), search.spec)
    spec = search.spec
    embedding = spec.vocab_size * (spec.hidden_size + 3)
    assert {line.weights_bytes - line.bytes_per_token for line in table.lines} == {embedding}


NASTY = '"><script>alert(1)</script>\x00\u202e&'


def test_the_page_is_whole_and_the_same(search: Search) -> None:
    found = search.run("size<=1GB")
    found = replace(found, point=found.frontier.points[len(found.frontier.points) // 2])
    found = replace(
        found, recipe=searching._name_formats(AUTO, found.frontier.formats(found.point))
    )
    facts = CalibrationFacts(NASTY, "ab" * 32, 1, 3, found.point.kl)
    page = write_search_report(NASTY, found, search.spec, facts)
    assert page == write_search_report(NASTY, found, search.spec, facts)
    assert "<script" not in page
    assert not re.search(r"https?:|@import|url\(|\ssrc=|\shref=|[\x00\u202e]", page)
    assert page.count('<tr class="chosen">') == 1
    plots = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(plots) == 2
    for plot in plots:
        _, _, width, height = map(float, plot.attrib["viewBox"].split())
        for circle in plot.iter("circle"):
            assert 0 <= float(circle.attrib["cx"]) <= width
            assert 0 <= float(circle.attrib["cy"]) <= height
    assert len(list(plots[1].iter("rect"))) == 7 * search.spec.num_layers
    for name in NAMES:
        assert str(found.recipe.matrix_format(name)) in page
