"""The legality table: which recipe runs on which device, and why not."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from qwen_edge.errors import RecipeNotSupportedError, UsageError
from qwen_edge.profiles import (
    check_recipe,
    load_profile,
    load_recipe,
    profile_names,
    recipe_names,
)
from qwen_edge.profiles.legality import LEGALITY_ROWS, check_onnx_recipe, legality
from qwen_edge.profiles.matrix_format import MatrixFormat, WeightFormat
from qwen_edge.profiles.recipe import Recipe


@pytest.mark.parametrize("name", recipe_names())
def test_the_cpu_takes_every_recipe_and_the_gpu_all_but_nf4(name: str) -> None:
    for device in ("CPU", "GPU"):
        verdict = legality(load_recipe(name), device)
        assert verdict.value == (device == "CPU" or name != "nf4-channel")
        assert verdict.reason


@pytest.mark.parametrize(
    ("name", "is_legal"),
    [
        ("fp16", False),
        ("int8", False),
        ("int4", True),
        ("int4-awq", True),
        ("int4-channel", True),
        ("int4-gptq", True),
        ("int4-mixed", False),
        ("int4-awq-g64", False),
        ("nf4-channel", True),
        ("peer-olive-cpu", False),
    ],
)
def test_the_npu_takes_four_bits_only(name: str, is_legal: bool) -> None:
    assert legality(load_recipe(name), "NPU").value is is_legal


@pytest.mark.parametrize(
    ("symmetric", "group_size", "expected"),
    [
        (True, 64, "group_size is 64"),
        (False, 128, "symmetric is false"),
        (False, 32, "symmetric is false, the NPU needs symmetric weights"),
    ],
)
def test_the_npu_says_which_field_is_wrong(symmetric: bool, group_size: int, expected: str) -> None:
    recipe = dataclasses.replace(
        load_recipe("int4"), name="mine", symmetric=symmetric, group_size=group_size
    )
    verdict = legality(recipe, "NPU")
    assert not verdict.value
    assert expected in verdict.reason
    assert ("group_size" in verdict.reason) == (group_size != 128)


def test_weights_without_groups_are_refused_for_their_format_alone() -> None:
    """int8 is also asymmetric and per channel; saying so would point to the wrong remedy."""
    reason = legality(load_recipe("int8"), "NPU").reason
    assert reason.startswith("weights is int8")
    assert "symmetric is" not in reason


def test_the_page_in_docs_shows_the_table_as_it_is() -> None:
    page = Path(__file__).parents[2] / "docs/recipes-and-legality.md"
    devices = ("CPU", "GPU", "NPU")
    for name in recipe_names():
        recipe = load_recipe(name)
        verdicts = ("yes" if legality(recipe, device).value else "no" for device in devices)
        row = f"| `{name}` | {recipe.summary} | {' | '.join(verdicts)} |"
        assert row in page.read_text(encoding="utf-8")


def test_every_row_has_its_source_and_a_field_of_a_recipe() -> None:
    names = {item.name for item in dataclasses.fields(Recipe)}
    for row in LEGALITY_ROWS:
        assert row.source
        assert set(row.weights) <= set(get_args(WeightFormat))
        assert row.expectation
        assert row.key in names


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        legality(load_recipe("int4"), "NPPU")
    assert caught.value.problem == "Unknown device 'NPPU'. Did you mean 'NPU'?"


@pytest.mark.parametrize("profile", profile_names())
@pytest.mark.parametrize("recipe", recipe_names())
def test_check_agrees_with_the_table_on_every_device_of_a_profile(
    recipe: str, profile: str
) -> None:
    loaded, machine = load_recipe(recipe), load_profile(profile)
    if all(legality(loaded, entry.device).value for entry in machine.devices):
        check_recipe(loaded, machine)
        return
    with pytest.raises(RecipeNotSupportedError):
        check_recipe(loaded, machine)


def test_the_refusal_names_the_reason_and_both_ways_out() -> None:
    with pytest.raises(RecipeNotSupportedError) as caught:
        check_recipe(load_recipe("int8"), load_profile("core-ultra"))
    error = caught.value
    assert error.problem.startswith("Recipe 'int8' cannot serve profile 'core-ultra'. NPU: weights")
    assert error.fix == (
        "use --recipe int4-awq, int4, int4-awq-se, int4-channel or int4-gptq\n"
        "or keep the recipe with --profile core-ultra-cpu, core-ultra-gpu, generic-onnx or "
        "generic-x86"
    )
    assert error.exit_code == 2
    assert set(error.facts["refused"]) == {"NPU"}  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("device", "found", "expected"),
    [
        ("NPU", MatrixFormat("int8", False, -1), "weights is int8, the NPU runs"),
        ("NPU", MatrixFormat("int4", True, 64), "group_size is 64, the NPU needs groups of 128"),
        ("NPU", MatrixFormat("nf4", True, 128), "group_size is 128, the NPU takes NF4 with one"),
        ("NPU", MatrixFormat("nf4", True, -1), None),
        ("GPU", MatrixFormat("nf4", True, -1), "weights is nf4, the GPU plugin has no NF4"),
        ("GPU", MatrixFormat("int4", False, 64), None),
        ("CPU", MatrixFormat("nf4", True, 64), None),
    ],
)
def test_one_matrix_can_make_a_recipe_illegal(
    device: str, found: MatrixFormat, expected: str | None
) -> None:
    key = "layers.2.mlp.up_proj"
    verdict = legality(dataclasses.replace(load_recipe("int4"), matrices={key: found}), device)
    assert verdict.value == (expected is None)
    if expected is not None:
        assert verdict.reason.startswith(f"matrices {key!r}: {expected}")


def test_the_npu_says_what_is_wrong_with_nf4_in_groups_and_with_a_ratio() -> None:
    grouped = dataclasses.replace(load_recipe("nf4-channel"), group_size=128)
    assert legality(grouped, "NPU").reason.startswith("group_size is 128, the NPU takes NF4")
    assert legality(load_recipe("int4-mixed"), "NPU").reason.startswith("ratio is 0.8, the NPU")


def test_onnx_has_no_nf4() -> None:
    check_onnx_recipe(load_recipe("peer-olive-cpu"))
    for recipe in (
        load_recipe("nf4-channel"),
        dataclasses.replace(
            load_recipe("int4"), matrices={"layers.0.mlp.up_proj": MatrixFormat("nf4", True, -1)}
        ),
    ):
        with pytest.raises(RecipeNotSupportedError, match=r"has no ONNX form: .* is nf4") as caught:
            check_onnx_recipe(recipe)
        assert "--format openvino" in caught.value.fix
