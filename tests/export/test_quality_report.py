"""The report and its plots: the same bytes, nothing from elsewhere, nothing to break out of."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_edge.export.quality.facts import make_details, make_facts, shorten_number
from qwen_edge.export.quality.measure import LayerLoss, Quality, sum_up
from qwen_edge.export.quality.plots import Line, plot_lines
from qwen_edge.export.quality.report import write_report
from qwen_edge.export.quality.statistics import PositionScores
from qwen_edge.export.quality.texts import QualityText
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.package import read_manifest

NASTY = '"><script>alert(1)</script>\x00\u202e&'
TEXTS = [QualityText("a", "english", (1, 2, 3)), QualityText("b", NASTY, tuple(range(70)))]


def scores(size: int, kl: float) -> PositionScores:
    surprise = np.linspace(1, 3, size)
    surprise[-1] = np.nan
    return PositionScores(
        np.full(size, kl), np.arange(size) % 4 > 0, np.full(size, 0.8), surprise, surprise + kl
    )


def quality(kl: float) -> Quality:
    loss = sum_up(TEXTS, [scores(len(text.token_ids), kl) for text in TEXTS])
    layers = tuple(LayerLoss(0.05 * index, 0.07 * index) for index in range(1, 37))
    return Quality(loss, None, loss, layers, 73)


@pytest.fixture
def manifest(demo_package: Path) -> Manifest:
    return read_manifest(demo_package)


def page(manifest: Manifest, kl: float = 0.1) -> str:
    found = quality(kl)
    facts = make_facts(found, TEXTS, "own", device="CPU with OpenVINO", gate="kl=0.2")
    return write_report(manifest, facts, found, misses=["KL is <much>"], notes=[f"Note {NASTY}."])


def test_a_page_needs_nothing_else_and_nobody_breaks_out_of_it(manifest: Manifest) -> None:
    text = page(replace(manifest, name=NASTY))
    assert text == page(replace(manifest, name=NASTY))
    assert "<script" not in text
    assert not re.search(r"https?:|@import|url\(|\ssrc=|\shref=|[\x00\u202e]", text)
    assert "KL is &lt;much&gt;" in text
    assert "prefers-color-scheme: dark" in text


def test_a_page_says_what_was_measured(manifest: Manifest) -> None:
    text = page(manifest)
    assert "73 tokens of a text of somebody&#x27;s own" in text or "73 tokens of a text" in text
    assert text.count("<tr><td>and cache: as it runs</td>") == 1
    assert "weights alone" in text and "and activations" not in text
    assert "as it runs on CPU with OpenVINO" in text
    assert "Layer 35 loses most alone: 180 %" in text
    assert "not the model it was" not in text
    assert "not the model it was" in page(manifest, kl=0.6)
    assert manifest.recipe.name in text


def test_a_page_without_layers_has_no_plot(manifest: Manifest) -> None:
    found = replace(quality(0.1), weights=None, layers=())
    facts = make_facts(found, TEXTS, "built-in", device="CPU")
    assert "<svg" not in write_report(manifest, facts, found)


def test_facts_have_few_digits_and_no_number_that_json_lacks() -> None:
    found = quality(1e6)
    facts = make_facts(found, TEXTS, "own", device=None)
    assert facts.device is None
    assert facts.as_run is not None and facts.as_run.perplexity is None
    assert facts.as_run.perplexity_ratio is None
    assert facts.reference_perplexity is not None
    assert facts.text_sha256 != make_facts(found, TEXTS[:1], "own", device=None).text_sha256
    details = make_details(found)
    assert set(details["readings"]) == {"weights", "as_run"}
    assert len(details["layers"]) == 36
    assert details["readings"]["weights"]["by_position"][0]["to"] == 16


@given(st.floats(1e-12, 1e12))
def test_four_digits_are_kept(value: float) -> None:
    assert shorten_number(value) == pytest.approx(value, rel=5.1e-4)
    assert shorten_number(shorten_number(value)) == shorten_number(value)


@example(values=[5e-324])
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=80))
def test_every_point_of_a_plot_lies_within_it(values: list[float]) -> None:
    svg = plot_lines(
        [Line("a", "red", values), Line("b", "blue", values[::-1])], title="<&", x_name="x"
    )
    root = ET.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for line in root.iter("polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert len(points) == len(values)
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    highest = max(values)
    labels = [float(text.text or "nan") for text in root.iter("text") if text.text != "x"]
    assert max(labels) >= float(f"{highest:.3g}") or highest < 1


def test_a_higher_value_is_drawn_higher() -> None:
    svg = plot_lines([Line("a", "red", [1.0, 3.0, 2.0])], title="t", x_name="x", unit=" %")
    line = next(ET.fromstring(svg).iter("polyline")).attrib["points"]
    first, second, third = (float(point.split(",")[1]) for point in line.split())
    assert second < third < first
    assert "3 %</text>" in svg


@pytest.mark.parametrize("lines", [[], [Line("a", "red", [])]])
def test_nothing_is_no_plot(lines: list[Line]) -> None:
    with pytest.raises(ValueError, match="a value at least"):
        plot_lines(lines, title="t", x_name="x")
