"""Quality inside an export: what is sealed, what is refused, what is left behind."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.errors import ParityError, UsageError
from qwen_edge.export import ExportRequest, ExportResult, export, prepare_export
from qwen_edge.export.quality.measure import Loss, Quality
from qwen_edge.export.quality.runs import StagedRuns, with_exact_cache
from qwen_edge.export.quality.sealing import check_measurable
from qwen_edge.export.quality.statistics import PositionScores, summarise
from qwen_edge.runtime.manifest import DeviceSettings
from qwen_edge.runtime.package import read_manifest, verify_package

CheckpointMaker = Callable[..., Path]
WORDS = "A short text that somebody wrote about a bridge over a river in the north. " * 8


SHORT = "qwen_edge.export.quality.assessment.SHORT_TOKENS"


def export_tiny(source: Path, recipe: str = "int4", **options: Any) -> ExportResult:
    output = source.parent / "package"
    return export(
        ExportRequest(str(source), "generic-x86", recipe=recipe, output=output, **options)
    )


def names(source: Path) -> list[str]:
    return sorted(path.name for path in source.parent.iterdir())


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: CheckpointMaker
) -> tuple[Path, ExportResult, list[str]]:
    """Return a checkpoint, what came of exporting it, and the steps that were told of."""
    source = make_checkpoint(tmp_path_factory.mktemp("measured") / "source")
    told: list[str] = []
    request = ExportRequest(
        str(source), "generic-x86", recipe="int4", output=source.parent / "package"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SHORT, 120)
        result = export(request, lambda step, done, total: told.append(step))
    return source, result, list(dict.fromkeys(told))


@pytest.fixture
def source(
    tmp_path: Path, make_checkpoint: CheckpointMaker, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a checkpoint of which every measurement says: KL 0.1, top 1 at 3 of 4 positions."""

    def measure(
        spec: object, checkpoint: object, weights: object, texts: Any, **options: object
    ) -> Quality:
        del spec, checkpoint, weights, options
        num_tokens = sum(len(text.token_ids) for text in texts)
        kl, surprise = np.full(num_tokens, 0.1), np.full(num_tokens, 2.0)
        same = np.arange(num_tokens) % 4 > 0
        figures = summarise([PositionScores(kl, same, kl * 9, surprise, surprise)])
        return Quality(Loss(figures, {}, {}), None, None, (), num_tokens)

    monkeypatch.setattr("qwen_edge.export.quality.assessment.measure_quality", measure)
    return make_checkpoint(tmp_path / "source")


def test_every_package_says_what_it_lost(
    measured: tuple[Path, ExportResult, list[str]],
) -> None:
    _, result, steps = measured
    quality = result.manifest.quality
    assert quality is not None
    assert (quality.text, quality.device, quality.gate) == (
        "built-in, shortened",
        "CPU with OpenVINO",
        None,
    )
    assert 100 <= quality.num_tokens <= 120
    assert set(quality.readings) == {"weights", "activations", "as_run"}
    assert quality.weights is not None and 0 < quality.weights.kl.value < 0.5
    assert result.notes == ()
    assert verify_package(result.folder).is_intact
    assert read_manifest(result.folder).quality == quality
    page = (result.folder / "quality.html").read_text(encoding="utf-8")
    assert "By layer" in page
    card = (result.folder / "README.md").read_text(encoding="utf-8")
    assert "[quality.html](quality.html)" in card
    assert f"| weights alone | {quality.weights.kl.value:.3g} |" in card
    assert steps.index("try the package") < steps.index("measure quality: running layers")
    assert steps.index("measure quality: running the package") < steps.index("hash files")


def test_equal_exports_are_equal_bytes(
    measured: tuple[Path, ExportResult, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, result, _ = measured
    monkeypatch.setattr(SHORT, 120)
    before = {path.name: path.read_bytes() for path in result.folder.iterdir()}
    second = export_tiny(source, force=True).folder
    assert {path.name: path.read_bytes() for path in second.iterdir()} == before
    assert "quality.html" in before


def test_a_gate_reads_all_texts_and_is_remembered(source: Path) -> None:
    result = export_tiny(source, gate="top1=0.5, kl=0.1")
    quality = result.manifest.quality
    assert quality is not None
    assert (quality.text, quality.gate) == ("built-in", "top1=0.5,kl=0.1")
    assert quality.num_tokens > 2_000
    assert "It passed the gate" in (result.folder / "README.md").read_text(encoding="utf-8")
    assert "Passes the gate" in (result.folder / "quality.html").read_text(encoding="utf-8")


@pytest.mark.trust("T-EXP-19")
def test_a_missed_gate_seals_nothing_and_keeps_the_report(source: Path) -> None:
    text = source.parent / "own.txt"
    text.write_text(WORDS, encoding="utf-8")
    kept = source.parent / "package.quality.html"
    with pytest.raises(ParityError, match=r"loses more than the gate allows") as caught:
        export_tiny(source, gate="kl=0,top1=0.1", quality_text=text)
    assert "mean KL is" in caught.value.problem and "likeliest" not in caught.value.problem
    assert repr(str(kept)) in caught.value.problem
    assert caught.value.exit_code == 9
    assert names(source) == ["own.txt", "package.quality.html", "source"]
    assert "Misses the gate" in kept.read_text(encoding="utf-8")


@pytest.mark.trust("T-EXP-19")
def test_a_lost_model_is_refused_unless_somebody_wants_it(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_edge.export.quality.gate.LOST_KL", 0.09)
    with pytest.raises(ParityError, match=r"has lost the model: KL .*Nothing was sealed") as caught:
        export_tiny(source)
    assert "--accept-loss" in caught.value.fix
    assert names(source) == ["package.quality.html", "source"]
    result = export_tiny(source, accept_loss=True)
    quality = result.manifest.quality
    assert quality is not None and quality.is_loss_accepted
    assert "not the model it was" in (result.folder / "README.md").read_text(encoding="utf-8")


def test_a_gate_decides_alone(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_edge.export.quality.gate.LOST_KL", 0.0)
    assert export_tiny(source, gate="kl=1").folder.is_dir()


def test_a_loss_that_is_none_needs_no_acceptance(source: Path) -> None:
    quality = export_tiny(source, accept_loss=True).manifest.quality
    assert quality is not None and not quality.is_loss_accepted


def test_who_skips_it_is_told(source: Path) -> None:
    result = export_tiny(source, skip_quality=True)
    assert result.manifest.quality is None
    assert result.notes == ("What compression cost was not measured: --skip-quality.",)
    assert not (result.folder / "quality.html").exists()


def test_onnx_alone_is_measured_as_it_runs(
    tmp_path: Path, make_checkpoint: CheckpointMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SHORT, 120)
    result = export_tiny(make_checkpoint(tmp_path / "source"), format="onnx")
    quality = result.manifest.quality
    assert quality is not None
    assert set(quality.readings) == {"as_run"}
    assert quality.device == "CPU with ONNX Runtime"
    assert any("left out" in note for note in result.notes)
    assert "<svg" not in (result.folder / "quality.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "cannot be read"), (b"\xff\xfe", "not UTF-8"), (b"a\0b" * 99, "a NUL")],
)
def test_an_unusable_text_is_refused_before_anything_is_fetched(
    content: bytes | None, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=told):
        prepare_export(ExportRequest("demo", "generic-x86", quality_text=path))


def test_a_short_text_is_refused_and_nothing_is_left(source: Path) -> None:
    path = source.parent / "own.txt"
    path.write_bytes(b"Hello.")
    with pytest.raises(UsageError, match="say nothing"):
        export_tiny(source, quality_text=path)
    assert names(source) == ["own.txt", "source"]


def test_a_gate_for_what_cannot_be_measured_is_refused() -> None:
    check_measurable(ExportRequest(), "Phi3ForCausalLM")
    with pytest.raises(UsageError, match="Phi3ForCausalLM cannot be measured"):
        check_measurable(ExportRequest(gate="kl=1"), "Phi3ForCausalLM")


CPU = DeviceSettings("CPU", {"KV_CACHE_PRECISION": "u8"}, 512, None, None, 256)


def test_only_the_cache_gets_exact() -> None:
    properties = {
        "KV_CACHE_PRECISION": "u8",
        "KEY_CACHE_GROUP_SIZE": 64,
        "VALUE_CACHE_PRECISION": "u4",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32,
        "INFERENCE_PRECISION_HINT": "bf16",
    }
    exact = with_exact_cache(replace(CPU, properties=properties))
    assert exact is not None
    assert dict(exact.properties) == {
        "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32,
        "INFERENCE_PRECISION_HINT": "bf16",
    }
    assert replace(exact, properties={}) == replace(CPU, properties={})
    gpu = with_exact_cache(replace(CPU, device="GPU", properties={}))
    assert gpu is not None and dict(gpu.properties) == {"KV_CACHE_PRECISION": "f16"}
    assert with_exact_cache(replace(CPU, device="NPU")) is None


def test_whole_layers_of_ours_round_no_more_without_our_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They leave the engine little, in float32 whatever is asked for."""
    monkeypatch.setattr("qwen_edge.runtime.kernels.are_used", lambda properties: True)
    settings = replace(CPU, properties={"INFERENCE_PRECISION_HINT": "bf16"})
    exact = with_exact_cache(settings)
    assert exact is not None and exact.properties["INFERENCE_PRECISION_HINT"] == "f32"


def test_a_device_that_is_not_here_is_passed_over_with_a_note(
    demo_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_edge.runtime.devices.probing.probe_devices", lambda: ())
    manifest = read_manifest(demo_package)
    devices = [entry for entry in manifest.devices if entry.device != "CPU"]
    runs = StagedRuns(demo_package, devices, None, manifest.golden, manifest.model.vocab_size)
    assert runs.as_run() is None and runs.activations() is None
    assert len(runs.notes) == 2
    assert "GPU" in runs.notes[0] and "not here" in runs.notes[0]
    assert "NPU" in runs.notes[1]
