"""Recipes by the shape of an architecture: found without a name, and never illegal."""

from dataclasses import replace
from pathlib import Path

import pytest

from qwen_edge.profiles import load_profile, load_recipe, profile_names
from qwen_edge.profiles.legality import legality
from qwen_edge.profiles.model_recipes import (
    GENERAL_RECIPE,
    ModelRecipe,
    choose_model_recipe,
    find_model_recipe,
    model_recipes,
)

# Layers, width, MLP, heads, key heads, of the published config.json; each head has 128 dimensions.
PUBLISHED = {
    "qwen3-0.6b": (28, 1_024, 3_072, 16, 8),
    "qwen3-1.7b": (28, 2_048, 6_144, 16, 8),
    "qwen3-4b": (36, 2_560, 9_728, 32, 8),
    "qwen3-8b": (36, 4_096, 12_288, 32, 8),
    "qwen3-14b": (40, 5_120, 17_408, 40, 8),
}


def find(name: str) -> ModelRecipe:
    return next(entry for entry in model_recipes() if entry.tuned == name)


def test_the_published_shapes() -> None:
    found = {
        entry.tuned: (
            entry.num_layers,
            entry.hidden_size,
            entry.intermediate_size,
            entry.num_heads,
            entry.num_kv_heads,
        )
        for entry in model_recipes()
    }
    assert found == PUBLISHED
    assert {(e.model_type, e.head_dim) for e in model_recipes()} == {("qwen3", 128)}


@pytest.mark.parametrize("entry", model_recipes(), ids=lambda entry: entry.tuned)
def test_every_entry_is_sound(entry: ModelRecipe) -> None:
    assert find_model_recipe(entry) is entry
    assert load_recipe(entry.tuned).is_calibrated
    assert entry.recipes[-1] == GENERAL_RECIPE
    assert not any(load_recipe(name).is_calibrated for name in entry.recipes)


def test_another_shape_is_not_known() -> None:
    entry = find("qwen3-4b")
    for change in ({"num_layers": 35}, {"intermediate_size": 9_729}, {"model_type": "qwen2"}):
        assert find_model_recipe(replace(entry, **change)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("profile", profile_names())
@pytest.mark.parametrize("entry", model_recipes(), ids=lambda entry: entry.tuned)
def test_the_choice_is_legal_on_every_device_of_the_profile(
    entry: ModelRecipe, profile: str
) -> None:
    loaded = load_profile(profile)
    chosen = choose_model_recipe(entry, loaded)
    if loaded.recipe != GENERAL_RECIPE:
        assert chosen is None
        return
    assert chosen is not None
    recipe = load_recipe(chosen.value)
    assert all(legality(recipe, device.device).value for device in loaded.devices)
    assert f"--recipe {entry.tuned}" in chosen.reason


def test_the_reason_says_why_the_best_is_not_taken() -> None:
    entry = find("qwen3-0.6b")
    on_cpu = choose_model_recipe(entry, load_profile("core-ultra-cpu"))
    everywhere = choose_model_recipe(entry, load_profile("core-ultra"))
    as_onnx = choose_model_recipe(entry, load_profile("core-ultra"), is_for_openvino=False)
    assert on_cpu is not None and everywhere is not None and as_onnx is not None
    assert (on_cpu.value, everywhere.value, as_onnx.value) == (
        "int4-awq-g64",
        "int4-awq",
        "int4-awq-g64",
    )
    assert "3 % more bytes" in on_cpu.reason
    assert "int4-awq-g64, its own, is not for NPU" in everywhere.reason


def test_a_profile_of_ones_own_means_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "core-ultra-cpu"\nrecipe = "int4-awq"\n', encoding="utf-8")
    assert choose_model_recipe(find("qwen3-0.6b"), load_profile(path)) is None
