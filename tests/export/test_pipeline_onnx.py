"""The ONNX form through the whole export: alone, beside the IR, portable, and refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import (
    ParityError,
    ResourceError,
    UnsupportedArchitectureError,
    UsageError,
)
from qwen_edge.export import ExportRequest, ExportResult, export, prepare_export
from qwen_edge.export.golden import check_golden_tokens
from qwen_edge.runtime import load
from qwen_edge.runtime.manifest import FORMAT_FILES, MODEL_ONNX, MODEL_ONNX_DATA, FormatName
from qwen_edge.runtime.package import read_manifest, verify_package

CheckpointMaker = Callable[..., Path]
OPENVINO_FILES = {
    *FORMAT_FILES["openvino"],
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
}
ONNX_FILES = {*FORMAT_FILES["onnx"], "genai_config.json"}


def run(source: str | Path, output: Path, fmt: str, **options: Any) -> ExportResult:
    options = {"skip_quality": True} | options
    return export(ExportRequest(str(source), "generic-x86", output=output, format=fmt, **options))


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo model's package with both formats."""
    return run("demo", tmp_path_factory.mktemp("both") / "package", "both").folder


def test_both_formats_lie_in_one_package(both: Path) -> None:
    assert verify_package(both).is_intact
    manifest = read_manifest(both)
    assert manifest.formats == ("openvino", "onnx")
    assert set(manifest.files) >= OPENVINO_FILES | ONNX_FILES
    assert manifest.onnx is not None
    assert (manifest.onnx.opset, manifest.onnx.accuracy_level) == (21, 4)
    assert manifest.onnx.max_context_tokens == 4_096  # the demo's own bound
    assert manifest.tools.keys() == {
        "qwen-edge", "openvino", "openvino-tokenizers", "onnx-ir", "onnxruntime"
    }  # fmt: skip
    card = (both / "README.md").read_text(encoding="utf-8")
    assert "OpenVINO and ONNX Runtime" in card
    assert "`onnxruntime_genai.Model`" in card


def test_both_formats_give_the_same_answer(both: Path) -> None:
    answers = set()
    for backend in ("openvino", "onnx"):
        with load(both, backend=backend, device="CPU") as model, model.session() as chat:
            answers.add(chat.ask("What is 12 plus 30?", thinking=False).text)
    assert len(answers) == 1
    assert "42" in answers.pop()


def test_onnx_alone_brings_nothing_of_openvino(tmp_path: Path) -> None:
    result = run("demo", tmp_path / "my päckage", "onnx")
    manifest = read_manifest(result.folder)
    assert manifest.formats == ("onnx",)
    assert manifest.devices == ()
    assert not OPENVINO_FILES & set(manifest.files)
    assert not any(name.startswith("openvino") for name in manifest.tools)
    assert manifest.weights.weights_bytes == (result.folder / MODEL_ONNX_DATA).stat().st_size
    with load(result.folder) as model, model.session() as chat:
        assert "42" in chat.ask("What is 12 plus 30?", thinking=False).text


def test_the_portable_form_answers_too(tmp_path: Path) -> None:
    result = run("demo", tmp_path / "package", "onnx", portable=True)
    assert result.manifest.onnx is not None and result.manifest.onnx.is_portable
    assert b"com.microsoft" not in (result.folder / MODEL_ONNX).read_bytes()
    assert "any program that runs standard ONNX" in (result.folder / "README.md").read_text("utf-8")
    with load(result.folder) as model, model.session() as chat:
        assert "42" in chat.ask("What is 12 plus 30?", thinking=False).text


@pytest.mark.trust("T-EXP-16")
def test_equal_exports_are_equal_bytes(both: Path, tmp_path: Path) -> None:
    again = run("demo", tmp_path / "again", "both").folder
    assert hashes(again) == hashes(both)


@pytest.mark.parametrize("recipe", ["int8", "fp16", "int4-channel"])
def test_every_recipe_has_an_onnx_form(
    recipe: str, tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    source = make_checkpoint(tmp_path / "source", tie_word_embeddings=False)
    manifest = run(source, tmp_path / "package", "both", recipe=recipe).manifest
    assert manifest.formats == ("openvino", "onnx")


@pytest.mark.parametrize("fmt", ["openvino", "onnx"])
@pytest.mark.trust("T-EXP-19")
def test_golden_tokens_of_another_model_are_refused(both: Path, fmt: FormatName) -> None:
    golden = read_manifest(both).golden
    wrong = tuple((token + 1) % 1_000 for token in golden.token_ids)
    with pytest.raises(ParityError, match="Nothing was published"):
        check_golden_tokens(both, type(golden)(golden.prompt, golden.prompt_ids, wrong, {}), fmt)


@pytest.mark.parametrize("fmt", ["openvino", "onnx", "both"])
@pytest.mark.parametrize("recipe", ["int4", "int8", "fp16"])
def test_the_plan_knows_the_size(
    recipe: str, fmt: str, tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    source = make_checkpoint(tmp_path / "source", tie_word_embeddings=False)
    request = ExportRequest(
        str(source),
        "generic-x86",
        recipe=recipe,
        format=fmt,
        output=tmp_path / "package",
        skip_quality=True,
    )
    plan = prepare_export(request).plan
    folder = export(request).folder
    written = sum(path.stat().st_size for path in folder.iterdir())
    assert abs(plan.package_bytes - written) < 0.1 * written + 200_000


def test_the_format_stands_in_the_name_where_the_profile_says_another(tmp_path: Path) -> None:
    def name(profile: str, fmt: str | None) -> str:
        return prepare_export(ExportRequest("demo", profile, format=fmt)).resolved.name

    assert name("generic-x86", None) == "demo-generic-x86-int4"
    assert name("generic-x86", "onnx") == "demo-generic-x86-int4-onnx"
    assert name("generic-x86", "both") == "demo-generic-x86-int4-openvino-onnx"
    assert name("generic-onnx", None) == "demo-generic-onnx-int4"
    assert name("generic-onnx", "openvino") == "demo-generic-onnx-int4-openvino"


def test_unknown_formats_and_useless_flags_are_refused() -> None:
    with pytest.raises(UsageError, match="Did you mean 'onnx'"):
        ExportRequest("demo", format="onxx")
    with pytest.raises(UsageError, match="writes OpenVINO only"):
        prepare_export(ExportRequest("demo", "generic-x86", portable=True))


def test_recipes_that_only_openvino_s_devices_refuse_may_be_onnx(tmp_path: Path) -> None:
    """fp16 cannot run on an NPU through OpenVINO; the ONNX form is not for that NPU."""
    request = ExportRequest("demo", "core-ultra", recipe="fp16", format="onnx", output=tmp_path)
    assert prepare_export(request).resolved.formats == ("onnx",)


def test_genai_config_is_bounded(both: Path) -> None:
    content = json.loads((both / "genai_config.json").read_bytes())
    assert content["search"]["max_length"] <= 4_096
    assert content["model"]["context_length"] == 4_096


@pytest.mark.parametrize(
    "step",
    [
        "onnx_files.build_onnx_decoder",
        "onnx_files.ir.save",
        "onnx_weights.OnnxWeights.append",
        "pipeline.write_genai_config",
        "pipeline.check_golden_tokens",
    ],
)
def test_an_exception_in_any_step_leaves_the_earlier_package(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = run("demo", tmp_path / "package", "both").folder
    before = hashes(package)

    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"qwen_edge.export.{step}", fail)
    with pytest.raises(ResourceError, match="filled up"):
        run("demo", package, "both", force=True)
    assert hashes(package) == before
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_heads_without_an_attention_are_refused_before_the_weights_are_touched(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    source = make_checkpoint(tmp_path / "source", head_dim=24)
    steps: list[str] = []
    request = ExportRequest(
        str(source), "generic-x86", recipe="int8", format="onnx", output=tmp_path / "package"
    )
    with pytest.raises(UnsupportedArchitectureError, match="24 dimensions") as caught:
        export(request, lambda step, done, total: steps.append(step))
    assert "--portable" in caught.value.fix
    assert "compress weights" not in steps
    assert run(source, tmp_path / "package", "onnx", recipe="int8", portable=True).folder.is_dir()
