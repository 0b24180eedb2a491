"""The README.md of a package: true, and not to be broken out of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_edge.export.model_card import write_model_card
from qwen_edge.export.package_facts import recipe_facts
from qwen_edge.profiles.matrix_format import MatrixFormat
from qwen_edge.profiles.recipe import load_recipe
from qwen_edge.runtime.manifest import GroupSizeFallback, Manifest
from qwen_edge.runtime.package import read_manifest

NASTY = 'x"\n---\nlicense: mit | `rm -rf`\x00\u2028\x7f'


@pytest.fixture
def manifest(demo_package: Path) -> Manifest:
    return read_manifest(demo_package)


def front_matter(text: str) -> dict[str, object]:
    assert text.startswith("---\n")
    content: dict[str, object] = yaml.safe_load(text[4 : text.index("\n---\n", 4)])
    return content


def test_the_demo(manifest: Manifest, demo_package: Path) -> None:
    text = write_model_card(manifest, ("openvino",))
    assert text == (demo_package / "README.md").read_text(encoding="utf-8")
    assert front_matter(text) == {
        "license": "apache-2.0",
        "library_name": "openvino",
        "pipeline_tag": "text-generation",
    }
    assert "symmetric int4 weights in groups of 128 and data-free AWQ" in text
    assert f"{manifest.weights.weights_bytes:,} bytes" in text
    assert "How much answers change was not measured" in text


def test_a_hub_model_names_its_ancestor(manifest: Manifest) -> None:
    source = replace(
        manifest.source,
        kind="hub",
        id="Qwen/Qwen3-4B",
        revision="a" * 40,
        license="other",
        license_link="https://example.org/L",
    )
    text = write_model_card(replace(manifest, source=source), ("openvino",))
    found = front_matter(text)
    assert found["base_model"] == "Qwen/Qwen3-4B"
    assert found["base_model_relation"] == "quantized"
    assert (found["license"], found["license_link"]) == ("other", "https://example.org/L")
    assert f"Qwen/Qwen3-4B, commit {'a' * 40}" in text


def test_nothing_a_stranger_wrote_breaks_out(manifest: Manifest) -> None:
    source = replace(manifest.source, id=NASTY, license=NASTY, base_model=NASTY, license_link=NASTY)
    text = write_model_card(replace(manifest, source=source), ("openvino",))
    found = front_matter(text)
    assert set(found) == {
        "license",
        "license_link",
        "base_model",
        "library_name",
        "pipeline_tag",
    }
    assert found["license"] == 'x" --- license: mit | `rm -rf`   '
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)
    assert text.encode("utf-8")


def test_fallbacks_are_listed(manifest: Manifest) -> None:
    entries = (GroupSizeFallback("a.weight", 192, 64), GroupSizeFallback("b.weight", 80, -1))
    weights = replace(manifest.weights, group_size_fallbacks=entries)
    text = write_model_card(replace(manifest, weights=weights), ("openvino",))
    assert "- `a.weight`, 192 wide: group 64" in text
    assert "- `b.weight`, 80 wide: group one per row" in text


@pytest.mark.parametrize(
    ("weights", "symmetric", "expected"),
    [
        ("fp16", True, "with float16 weights."),
        ("int8", False, "with asymmetric int8 weights per output channel."),
        ("int8", True, "with symmetric int8 weights per output channel."),
    ],
)
def test_kinds_of_weights(weights: str, symmetric: bool, expected: str, manifest: Manifest) -> None:
    recipe = replace(
        manifest.recipe,
        weights=weights,  # type: ignore[arg-type]
        symmetric=symmetric,
        group_size=-1,
        awq=False,
    )
    assert expected in write_model_card(replace(manifest, recipe=recipe), ("openvino",))


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("int4", {}, "symmetric int4 weights in groups of 128."),
        ("nf4-channel", {}, "NF4 weights per output channel and data-free AWQ."),
        ("int4-awq-se", {}, "in groups of 128 and calibrated AWQ and scale estimation."),
        ("int4-gptq", {}, "and calibrated AWQ, scale estimation and GPTQ."),
        ("int4-mixed", {}, "in groups of 128 (20% of the layers' weights in int8) and calibrated"),
        (
            "int4",
            {"matrices": {"layers.0.mlp.up_proj": MatrixFormat("int8", False, -1)}},
            "in groups of 128 (1 exception, see `manifest.json`).",
        ),
    ],
)
def test_methods_and_exceptions_are_named(
    name: str, changes: dict[str, Any], expected: str, manifest: Manifest
) -> None:
    recipe = recipe_facts(replace(load_recipe(name), **changes))
    assert expected in write_model_card(replace(manifest, recipe=recipe), ("openvino",))
