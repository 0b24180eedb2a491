"""`qwen-edge tune`: a real package is tuned, the result is kept and used; refusals come early."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.cli.tune_command import command
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.package import TUNED_NAME, read_manifest, verify_package
from qwen_edge.runtime.tuning import engine_lab, tune
from qwen_edge.runtime.tuning.candidate import Axis, Option
from qwen_edge.runtime.tuning.engine_runner import EngineRunner
from qwen_edge.runtime.tuning.stored import apply_tuned, find_kept, read_results
from qwen_edge.runtime.tuning.texts import TEXTS
from qwen_edge.runtime.tuning.workload import WORKLOADS

AXES = (
    Axis("dynamic quantisation", (Option({"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64}),)),
    Axis("arithmetic", (Option({"INFERENCE_PRECISION_HINT": "nonsense"}),)),
    Axis("cache", (Option({"KV_CACHE_PRECISION": "u8"}), Option({"KV_CACHE_PRECISION": "f16"}))),
    Axis("prefill chunk", (Option(prefill_chunk_tokens=32),)),
)


@pytest.fixture(autouse=True)
def settings_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a settings folder of this test's own."""
    path = tmp_path / "settings ü"
    monkeypatch.setenv("QWEN_EDGE_CONFIG_DIR", str(path))
    return path


@pytest.fixture
def package(demo_package: Path, tmp_path: Path) -> Path:
    """Return a copy of the demo package that may be changed."""
    folder = tmp_path / "demo package"
    shutil.copytree(demo_package, folder)
    return folder


@pytest.fixture
def even_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine compute, and time by its settings: rounds are then few and the same."""

    def factor(runner: EngineRunner) -> float:
        gains = {64: 0.8, "f16": 0.9, 32: 1.0}
        values = (*runner.candidate.properties.values(), runner.candidate.prefill_chunk_tokens)
        product = 1.0
        for value in values:
            product *= gains.get(value, 1.0)
        return product

    def prefill(runner: EngineRunner, token_ids: Sequence[int]) -> float:
        runner.backend.reset()
        runner.backend.forward(token_ids)
        return len(token_ids) * 0.01 * factor(runner)

    def decode(runner: EngineRunner, num_tokens: int) -> float:
        for _ in range(num_tokens):
            runner.backend.forward((0,))
        return num_tokens * 0.1 * factor(runner)

    monkeypatch.setattr(EngineRunner, "prefill", prefill)
    monkeypatch.setattr(EngineRunner, "decode", decode)
    monkeypatch.setattr(tune, "_find_axes", lambda *_: AXES)


class ScriptedRunner(EngineRunner):
    """A runner without an engine: it says one thing whatever its settings are."""

    num_open = 0
    most_open = 0
    num_compiled = 0

    def compile(self) -> None:
        """Count."""
        if self._compiled is None:
            self._compiled = object()
            ScriptedRunner.num_compiled += 1
            ScriptedRunner.num_open += 1
            ScriptedRunner.most_open = max(ScriptedRunner.most_open, ScriptedRunner.num_open)
        self._resolved.update({name: str(v) for name, v in self.candidate.properties.items()})

    @property
    def backend(self) -> Any:
        """Compile where that is due, and return a model that was not trained."""
        self.compile()
        return FakeBackend(lambda ids: ids[-1] * 7 % 1024, vocab_size=1024)

    def rest(self) -> None:
        """Count."""
        ScriptedRunner.num_open -= self._compiled is not None
        super().rest()


@pytest.fixture
def scripted(even_clock: None, monkeypatch: pytest.MonkeyPatch) -> type[ScriptedRunner]:
    """Tune in one axis and without an engine; return what counts models."""
    del even_clock
    monkeypatch.setattr(engine_lab, "EngineRunner", ScriptedRunner)
    monkeypatch.setattr(tune, "_find_axes", lambda *_: AXES[:1])
    for name in ("num_open", "most_open", "num_compiled"):
        monkeypatch.setattr(ScriptedRunner, name, 0)
    return ScriptedRunner


@pytest.mark.usefixtures("even_clock")
def test_a_package_is_tuned_and_the_result_used(
    cli: Callable[..., Any],
    package: Path,
    settings_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune, "TEXTS", TEXTS[-1:])
    done = cli("tune", package, "--for", "chat", "--write-package", "--device", "cpu")
    assert done.code == 0, done.err
    chosen = "DYNAMIC_QUANTIZATION_GROUP_SIZE=64, KV_CACHE_PRECISION=f16"
    assert f"CPU, chat: {chosen}\n1.39 times as fast: read 100.0 -> 138.9 tokens/s" in done.out
    assert "Tuning for chat (128 tokens read, 256 written)" in done.err
    manifest = read_manifest(package)
    assert TUNED_NAME in manifest.files
    assert verify_package(package).is_intact

    (found,) = read_results(package / TUNED_NAME)
    assert list((settings_dir / "tuned").iterdir()) != []
    assert find_kept(manifest, "CPU") == found
    assert found.changes == {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64, "KV_CACHE_PRECISION": "f16"}
    assert found.gain == pytest.approx(1 / 0.72, rel=1e-3)
    verdicts = [trial.verdict for trial in found.trials]
    assert verdicts[:5] == ["package", "faster", "refused", "faster", "not faster"]
    assert 0 < found.exactness.mean < found.max_kl
    assert found.exactness.num_positions > 100
    assert not found.is_untrained

    settings = next(entry for entry in manifest.devices if entry.device == "CPU")
    changed, told = apply_tuned(package, manifest, settings)
    assert changed.properties["KV_CACHE_PRECISION"] == "f16"
    assert told is not None and told.startswith("tuned here for chat")
    gone = cli("tune", package, "--forget")
    assert (gone.code, "forgot what was tuned on CPU" in gone.out) == (0, True)
    _, told = apply_tuned(package, manifest, settings)
    assert told is not None and told.startswith("tuned, as the package brings it")
    assert "nothing was tuned here" in cli("tune", package, "--forget").out


@pytest.mark.usefixtures("even_clock")
def test_a_budget_of_nothing_leaves_exact_arithmetic(
    cli: Callable[..., Any],
    package: Path,
    settings_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune, "_find_axes", lambda *_: AXES[:1])
    monkeypatch.setattr(tune, "TEXTS", TEXTS[-1:])
    done = cli("tune", package, "--max-kl", "0", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["changes"] == {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "KV_CACHE_PRECISION": "f32"}
    assert found["exactness"]["upper"] == 0
    assert found["trials"][0]["verdict"] == "too inexact"
    assert Path(found["kept_in"]).parent == settings_dir / "tuned"
    assert found["written_into"] is None


def test_what_cannot_be_meant_is_refused_before_anything_is_measured(
    cli: Callable[..., Any], package: Path
) -> None:
    for arguments, problem in (
        (("--for", "caht"), "Did you mean 'chat'?"),
        (("--ratio", "4"), "The ratio is '4'"),
        (("--for", "chat", "--ratio", "1:1"), "Both a workload"),
        (("--max-kl", "-1"), "The KL budget is -1.0"),
        (("--max-kl", "nan"), "The KL budget is nan"),
        (("--time-limit", "0"), "The time limit is 0.0 s"),
        (("--device", "GPX"), "Unknown device 'GPX'"),
    ):
        done = cli("tune", package, *arguments)
        assert (done.code, done.out) == (2, ""), arguments
        assert problem in done.err


def test_a_device_that_is_not_here_or_cannot_be_tuned_is_refused(
    cli: Callable[..., Any], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "'GPU' was asked for and cannot be used" in cli("tune", package, "--device", "GPU").err
    present = tune.probe_devices()
    npu = dataclasses.replace(present[0], name="NPU", reason=None)
    monkeypatch.setattr(tune, "probe_devices", lambda: (npu,))
    done = cli("tune", package, "--device", "NPU")
    assert done.code == 6
    assert "There is nothing to tune on NPU" in done.err


@pytest.mark.usefixtures("scripted")
def test_too_little_time_is_told_with_what_it_would_take(
    cli: Callable[..., Any], package: Path, settings_dir: Path
) -> None:
    done = cli("tune", package, "--time-limit", "0.01")
    assert done.code == 8
    assert "was over before two settings could be compared" in done.err
    assert "--time-limit 60" in done.err
    assert list((settings_dir / "tuned").iterdir()) == []


@pytest.mark.usefixtures("scripted")
def test_a_package_that_changes_meanwhile_ends_it(
    cli: Callable[..., Any], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen when a package was exported anew while it was tuned: every setting looked inexact."""
    read = engine_lab.read_reference

    def read_and_touch(*arguments: Any) -> Any:
        (package / "openvino_model.bin").touch()
        return read(*arguments)

    monkeypatch.setattr(engine_lab, "read_reference", read_and_touch)
    done = cli("tune", package)
    assert done.code == 3
    assert "was changed while it was being tuned" in done.err


@pytest.mark.parametrize("num_models", [1, 2])
def test_memory_for_one_model_is_enough_and_two_are_never_exceeded(
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    scripted: type[ScriptedRunner],
    num_models: int,
) -> None:
    manifest = read_manifest(package)
    settings = next(entry for entry in manifest.devices if entry.device == "CPU")
    available = num_models * engine_lab.estimate_memory(manifest, settings).min_bytes
    scarce = dataclasses.replace(tune.probe_hardware(), available_memory_bytes=available)
    monkeypatch.setattr(tune, "probe_hardware", lambda: scarce)
    lines: list[str] = []
    found = tune.tune_package(package, manifest, workload=WORKLOADS["chat"], report=lines.append)
    assert found.changes == {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64}
    assert (scripted.most_open, scripted.num_open) == (num_models, 0)
    assert (scripted.num_compiled > 6) is (num_models == 1)
    assert lines[0].startswith("memory holds one model at a time") is (num_models == 1)


def test_settings_whose_cache_would_not_fit_are_not_tried(
    package: Path, monkeypatch: pytest.MonkeyPatch, scripted: type[ScriptedRunner]
) -> None:
    manifest = read_manifest(package)
    settings = next(entry for entry in manifest.devices if entry.device == "CPU")
    available = engine_lab.estimate_memory(manifest, settings).max_bytes
    scarce = dataclasses.replace(tune.probe_hardware(), available_memory_bytes=available)
    monkeypatch.setattr(tune, "probe_hardware", lambda: scarce)
    monkeypatch.setattr(tune, "_find_axes", lambda *_: AXES[2:3])
    found = tune.tune_package(package, manifest, workload=WORKLOADS["chat"])
    assert [trial.verdict for trial in found.trials] == ["package", "refused"]
    assert "a full conversation takes" in found.trials[1].reason
    assert scripted.num_open == 0


@pytest.mark.usefixtures("scripted")
def test_random_weights_are_told(cli: Callable[..., Any], package: Path) -> None:
    done = cli("tune", package)
    assert done.code == 0, done.err
    assert "predicts text no better than chance" in done.err


def test_an_onnx_package_has_nothing_to_tune(
    cli: Callable[..., Any], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Manifest, "formats", ("onnx",))
    done = cli("tune", package)
    assert done.code == 2
    assert "what is tuned are settings of OpenVINO" in done.err


def test_help_names_every_workload(cli: Callable[..., Any]) -> None:
    done = cli("tune", "--help")
    assert done.code == 0
    assert all(name in done.out for name in WORKLOADS)
    assert command.name == "tune"
