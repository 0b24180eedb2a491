"""The recipe meets its model: one made for the shape, layers that are there, another exporter."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import RecipeNotSupportedError, UsageError
from qwen_edge.export import ExportRequest
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.optimum_frontend import optimum_options
from qwen_edge.export.pipeline import prepare_export
from qwen_edge.export.recipe_choice import fit_recipe
from qwen_edge.export.request import ResolvedRequest, resolve_request
from qwen_edge.profiles.matrix_format import MatrixFormat
from qwen_edge.profiles.recipe import load_recipe
from qwen_edge.runtime.environment import Environment

CheckpointMaker = Callable[..., Path]


def resolve(profile: str = "core-ultra-cpu", **changes: Any) -> ResolvedRequest:
    environment = changes.pop("environment", Environment(cache_dir=None))
    return resolve_request(ExportRequest("./my-fine-tune", profile, **changes), environment)


@pytest.fixture
def spec(tiny_config: dict[str, Any]) -> DecoderSpec:
    """The shape of Qwen3-0.6B under another name, with another vocabulary."""
    sizes = {
        "num_hidden_layers": 28,
        "hidden_size": 1_024,
        "intermediate_size": 3_072,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    return read_spec(tiny_config | sizes)


def test_a_fine_tune_gets_the_recipe_of_its_architecture(spec: DecoderSpec) -> None:
    resolved = resolve()
    assert resolved.recipe.name == "int4-awq"
    fitted = fit_recipe(resolved, spec)
    assert fitted.recipe == load_recipe("int4-awq-g64")
    reason = dict(fitted.origins)["recipe"].reason
    assert reason.startswith("a model of the shape of Qwen3-0.6B: ")
    assert [name for name, _ in fitted.origins] == [name for name, _ in resolved.origins]
    assert fit_recipe(fitted, spec) == fitted
    assert fitted.name == resolved.name  # the folder does not change when the model is known


def test_what_somebody_asked_for_stays(spec: DecoderSpec) -> None:
    for asked in (
        resolve(recipe="int4-awq"),
        resolve(environment=Environment(cache_dir=None, recipe="int4-awq")),
    ):
        assert fit_recipe(asked, spec) is asked


def test_another_shape_keeps_the_profiles_recipe(spec: DecoderSpec) -> None:
    resolved = resolve()
    assert fit_recipe(resolved, replace(spec, num_layers=27)) is resolved


def test_an_export_is_planned_with_it(
    tmp_path: Path, make_checkpoint: CheckpointMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through `prepare_export`: a table with the tiny shape stands for the real one."""
    from qwen_edge.profiles import model_recipes

    entry = replace(
        model_recipes.model_recipes()[0],
        num_layers=2,
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
    )
    folder = make_checkpoint(tmp_path / "c")
    request = ExportRequest(str(folder), "generic-x86", output=tmp_path / "package")
    before = prepare_export(request)
    spec = before.spec
    assert spec is not None
    known = replace(entry, num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim)
    monkeypatch.setattr(model_recipes, "model_recipes", lambda: (known,))
    found = prepare_export(request)
    assert (before.resolved.recipe.name, found.resolved.recipe.name) == ("int4-awq", "int4-awq-g64")


@pytest.mark.parametrize("layer", [28, 4_711])
def test_layers_that_the_model_has_not(layer: int, spec: DecoderSpec, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'extends = "int4"\n[matrices]\n'
        f'"layers.{layer}.mlp.up_proj" = {{ weights = "int8" }}\n'
        '"layers.27.mlp.up_proj" = { weights = "int8" }\n',
        encoding="utf-8",
    )
    with pytest.raises(RecipeNotSupportedError) as caught:
        fit_recipe(resolve(recipe=str(path)), spec)
    assert caught.value.problem == (
        f"Recipe 'mine' makes exceptions for layers {layer}; the model has layers 0 to 27."
    )


def test_onnx_has_no_nf4() -> None:
    assert resolve("generic-x86", recipe="nf4-channel").recipe.weights == "nf4"
    for fmt in ("onnx", "both"):
        with pytest.raises(RecipeNotSupportedError, match="has no ONNX form"):
            resolve("generic-x86", recipe="nf4-channel", format=fmt)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "int4-gptq",
            "--weight-format int4 --sym --group-size 128 --ratio 1.0 --group-size-fallback adjust "
            "--backup-precision int8_asym --dataset auto --awq --scale-estimation --gptq",
        ),
        (
            "int4-mixed",
            "--weight-format int4 --sym --group-size 128 --ratio 0.8 --group-size-fallback adjust "
            "--backup-precision int8_asym --dataset auto --awq --scale-estimation --gptq",
        ),
        (
            "peer-optimum-qwen3-8b",
            "--weight-format int4 --group-size 128 --ratio 1.0 --group-size-fallback adjust "
            "--backup-precision int8_asym --dataset auto --scale-estimation",
        ),
        (
            "nf4-channel",
            "--weight-format nf4 --group-size -1 --ratio 1.0 --group-size-fallback adjust "
            "--backup-precision int8_asym --awq",
        ),
    ],
)
def test_recipes_for_optimum_intel(name: str, expected: str) -> None:
    assert " ".join(optimum_options(load_recipe(name))) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"matrices": {"layers.1.mlp.up_proj": MatrixFormat("int8", False, -1)}}, "exceptions for"),
        ({"embedding": "fp16"}, "of different formats"),
        (
            {"weights": "int8", "group_size": -1, "embedding": "fp16", "head": "fp16"},
            "fp16 beside int8 weights",
        ),
    ],
)
def test_what_optimum_intel_cannot_do_is_refused_at_once(
    changes: dict[str, Any], expected: str
) -> None:
    recipe = replace(load_recipe("int4"), **changes)
    resolved = replace(resolve(), recipe=recipe)
    with pytest.raises(RecipeNotSupportedError, match=expected):
        fit_recipe(resolved, None)
    assert fit_recipe(resolve(), None).recipe.name == "int4-awq"


def test_calibration_text_is_not_for_optimum_intel(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Calibration text of your own"):
        fit_recipe(resolve(recipe="int4-gptq", calibration=tmp_path / "text.txt"), None)
