"""Opening a package's ONNX model: what is tried once, which provider runs, and why not others."""

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.errors import (
    DeviceError,
    MissingExtraError,
    PackageError,
    ParityError,
    ResourceError,
    UsageError,
)
from qwen_edge.profiles import providers as table
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.profiles.providers import Provider, ProviderOption, Verdict, load_providers
from qwen_edge.runtime.backends.onnx_session import create_session
from qwen_edge.runtime.devices import onnx_opening
from qwen_edge.runtime.devices.onnx_opening import open_onnx_backend
from qwen_edge.runtime.devices.providers import ProviderReport
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.package import read_manifest

CPU = next(entry for entry in load_providers() if entry.name == "CPUExecutionProvider")
GPU = Provider(
    "SomeGpuExecutionProvider",
    "GPU",
    "pip install some-gpu",
    Verdict("auto", "for the test", "none"),
    Verdict("never", "has no kernels for it", "none"),
    options={"speed": ProviderOption("11", "louder", "none")},
)

Fresh = Callable[..., Any]
Seal = Callable[..., None]


def manifest_of(folder: Path, **changes: object) -> Manifest:
    return dataclasses.replace(read_manifest(folder), **changes)  # type: ignore[arg-type]


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Count the trials in a child process instead of making them."""
    tried: list[Path] = []
    monkeypatch.setattr(
        onnx_opening, "try_in_child", lambda folder, *, timeout_s: tried.append(folder)
    )
    return tried


def test_package_is_opened_and_answers(onnx_package: Path, fresh_int4: Fresh) -> None:
    """With the real trial in a child process; int8 activations move the logits a little."""
    backend, choice = open_onnx_backend(onnx_package, read_manifest(onnx_package), threads=1)
    assert choice.value.device == "CPU"
    assert choice.value.properties == {
        "provider": "CPUExecutionProvider",
        "accuracy_level": 4,
        "intra_op_num_threads": 1,
    }
    assert (choice.value.max_context_tokens, choice.value.prefill_chunk_tokens) == (256, 32)
    assert choice.reason.startswith("CPU by CPUExecutionProvider")
    assert backend.max_context_tokens == 256
    ids = list(range(40))
    assert 0 < np.abs(backend.forward(ids) - fresh_int4(ids)).max() < 0.5
    backend.close()


def test_accuracy_level_of_the_manifest_counts(
    onnx_package: Path, fresh_int4: Fresh, seal: Seal, trials: list[Path]
) -> None:
    facts = dataclasses.replace(read_manifest(onnx_package).onnx, accuracy_level=1)  # type: ignore[type-var]
    backend, choice = open_onnx_backend(onnx_package, manifest_of(onnx_package, onnx=facts))
    assert choice.value.properties["accuracy_level"] == 1
    ids = list(range(40))
    assert np.abs(backend.forward(ids) - fresh_int4(ids)).max() < 1e-4


def test_model_is_tried_once_for_a_package_and_a_version_of_the_engine(
    onnx_package: Path, trials: list[Path], monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    manifest = read_manifest(onnx_package)
    for _ in range(2):
        open_onnx_backend(onnx_package, manifest)
    assert trials == [onnx_package]
    assert len(list((cache_dir / "onnx-trials").iterdir())) == 1
    monkeypatch.setattr(onnx_opening.import_onnxruntime(), "__version__", "9.99")
    open_onnx_backend(onnx_package, manifest)
    assert len(trials) == 2
    os.utime(onnx_package / "model.onnx.data", ns=(0, 0))
    open_onnx_backend(onnx_package, manifest)
    assert len(trials) == 3


def test_trial_that_fails_ends_it_and_is_made_again(
    onnx_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(folder: Path, *, timeout_s: float) -> None:
        assert timeout_s > 60
        raise PackageError("A process that tried it first was ended by signal 11.", "export again")

    monkeypatch.setattr(onnx_opening, "try_in_child", die)
    monkeypatch.delattr(onnx_opening, "create_session")
    for _ in range(2):
        with pytest.raises(PackageError, match="signal 11"):
            open_onnx_backend(onnx_package, read_manifest(onnx_package))


def test_memory_that_cannot_suffice_is_refused_before_anything_is_read(
    onnx_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce = dataclasses.replace(probe_hardware(), available_memory_bytes=1_000)
    monkeypatch.setattr(onnx_opening, "probe_hardware", lambda: scarce)
    monkeypatch.delattr(onnx_opening, "try_in_child")
    with pytest.raises(ResourceError, match=r"on CPU takes about .* but 1\.0 kB are available"):
        open_onnx_backend(onnx_package, read_manifest(onnx_package))


@pytest.mark.trust("T-PKG-05")
def test_file_changed_while_it_is_loaded_is_refused(
    onnx_package: Path, monkeypatch: pytest.MonkeyPatch, trials: list[Path]
) -> None:
    def create_and_touch(*args: Any, **options: Any) -> Any:
        os.utime(onnx_package / "model.onnx.data", ns=(1, 1))
        return create_session(*args, **options)

    monkeypatch.setattr(onnx_opening, "create_session", create_and_touch)
    with pytest.raises(PackageError, match="was changed while it was being loaded"):
        open_onnx_backend(onnx_package, read_manifest(onnx_package))


@pytest.mark.trust("T-PKG-05")
def test_file_of_another_size_never_reaches_the_engine(
    onnx_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (onnx_package / "model.onnx.data").open("r+b") as stream:
        stream.truncate(100)
    monkeypatch.delattr(onnx_opening, "try_in_child")
    with pytest.raises(PackageError, match=r"model\.onnx\.data"):
        open_onnx_backend(onnx_package, read_manifest(onnx_package))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("model", {"num_layers": 3}),
        ("model", {"vocab_size": 65}),
        ("onnx", {"is_portable": True}),
        ("onnx", {"max_context_tokens": 5000}),
    ],
    ids=["layers", "vocabulary", "form", "context"],
)
def test_model_that_is_not_the_manifest_s_is_refused(
    onnx_package: Path, trials: list[Path], part: str, change: dict[str, Any]
) -> None:
    manifest = read_manifest(onnx_package)
    changed = dataclasses.replace(getattr(manifest, part), **change)
    with pytest.raises(PackageError, match="is not the decoder its manifest describes"):
        open_onnx_backend(onnx_package, dataclasses.replace(manifest, **{part: changed}))


def test_package_without_an_onnx_model(onnx_package: Path) -> None:
    with pytest.raises(UsageError, match="holds no ONNX model") as caught:
        open_onnx_backend(onnx_package, manifest_of(onnx_package, onnx=None))
    assert "--format both" in caught.value.fix


def test_missing_engine_is_named_before_providers_are(
    onnx_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise MissingExtraError("Running ONNX models needs 'onnxruntime'.", "pip install it")

    monkeypatch.setattr(onnx_opening, "import_onnxruntime", refuse)
    with pytest.raises(MissingExtraError):
        open_onnx_backend(onnx_package, read_manifest(onnx_package))


# Providers.


class ForeignSession:
    """A session of the CPU that says a GPU runs it."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return [GPU.name, CPU.name]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, trials: list[Path]) -> list[str]:
    """Put a GPU before the CPU; returns the names of the providers that were tried."""
    tried: list[str] = []

    def create(model: Any, provider: Provider, **options: Any) -> Any:
        tried.append(provider.name)
        session = create_session(model, CPU, **options)
        return ForeignSession(session) if provider == GPU else session

    monkeypatch.setattr(table, "load_providers", lambda: (GPU, CPU))
    reports = (ProviderReport(GPU.name, "GPU"), ProviderReport(CPU.name, "CPU"))
    monkeypatch.setattr(onnx_opening, "probe_providers", lambda: reports)
    monkeypatch.setattr(onnx_opening, "create_session", create)
    return tried


def refuse_gpu(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    create = onnx_opening.create_session

    def refuse(model: Any, provider: Provider, **options: Any) -> Any:
        session = create(model, provider, **options)
        if provider == GPU:
            raise error
        return session

    monkeypatch.setattr(onnx_opening, "create_session", refuse)


@pytest.mark.parametrize("device", ["auto", "GPU", "gpu", GPU.name])
def test_provider_that_answers_rightly_is_used_and_remembered(
    onnx_package: Path, gpu: list[str], cache_dir: Path, device: str
) -> None:
    manifest = read_manifest(onnx_package)
    backend, choice = open_onnx_backend(onnx_package, manifest, device=device)
    assert gpu == [GPU.name]
    assert choice.value.device == "GPU"
    assert choice.value.properties["provider"] == GPU.name
    assert choice.value.properties["speed"] == "11"
    assert backend.cached_tokens == 0
    assert len(list((cache_dir / "onnx-answers").iterdir())) == 1
    # Remembered: other golden tokens, though wrong, are not asked for again.
    golden = dataclasses.replace(manifest.golden, token_ids=(1, 2, 3, 4))
    open_onnx_backend(onnx_package, dataclasses.replace(manifest, golden=golden), device=device)


def test_provider_that_answers_wrongly_is_passed_over(
    onnx_package: Path, gpu: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU made of software computed prompts of five tokens and more wrongly, without a word."""
    golden = read_manifest(onnx_package).golden
    other = (*golden.token_ids[:3], (golden.token_ids[3] + 1) % 64, *golden.token_ids[4:])
    manifest = manifest_of(onnx_package, golden=dataclasses.replace(golden, token_ids=other))
    backend, choice = open_onnx_backend(onnx_package, manifest)
    assert gpu == [GPU.name, CPU.name]
    assert choice.value.properties["provider"] == CPU.name
    assert "passed over SomeGpuExecutionProvider: SomeGpuExecutionProvider computes wrongly" in (
        choice.reason
    )
    assert "computes wrongly here" in caplog.text
    backend.close()
    for device in ("GPU", GPU.name):
        with pytest.raises(ParityError, match="computes wrongly here"):
            open_onnx_backend(onnx_package, manifest, device=device)


class SlipperySession(ForeignSession):
    """A GPU whose first answer, to the prompt read at once, is a little off."""

    num_calls = 0

    def run_with_iobinding(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)
        self.num_calls += 1
        if self.num_calls == 1:
            logits = binding.get_outputs()[0]
            logits.update_inplace(logits.numpy() + np.linspace(0, 0.5, 64, dtype=np.float32))


def test_kernel_that_is_a_little_off_is_found(
    onnx_package: Path, gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens were right all the same: a confident model says them with wrong logits too."""
    create = onnx_opening.create_session

    def create_slippery(model: Any, provider: Provider, **options: Any) -> Any:
        session = create(model, provider, **options)
        return SlipperySession(session._session) if provider == GPU else session

    monkeypatch.setattr(onnx_opening, "create_session", create_slippery)
    with pytest.raises(ParityError, match="of their range between reading it at once and"):
        open_onnx_backend(onnx_package, read_manifest(onnx_package), device="GPU")
    assert open_onnx_backend(onnx_package, read_manifest(onnx_package))[1].value.device == "CPU"
    assert gpu == [GPU.name, GPU.name, CPU.name]


def test_later_golden_tokens_are_not_looked_at(onnx_package: Path, gpu: list[str]) -> None:
    """They were computed in float32, and a GPU may round otherwise."""
    golden = read_manifest(onnx_package).golden
    other = (*golden.token_ids[:4], *(63 - token for token in golden.token_ids[4:]))
    manifest = manifest_of(onnx_package, golden=dataclasses.replace(golden, token_ids=other))
    assert open_onnx_backend(onnx_package, manifest)[1].value.device == "GPU"


@pytest.mark.parametrize("error_type", [DeviceError, ResourceError])
def test_auto_goes_on_after_a_refusal_and_a_named_one_does_not(
    onnx_package: Path,
    gpu: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error_type: type[DeviceError],
) -> None:
    caplog.set_level(logging.WARNING)
    refuse_gpu(monkeypatch, error_type("SomeGpuExecutionProvider did not start."))
    _, choice = open_onnx_backend(onnx_package, read_manifest(onnx_package))
    assert gpu == [GPU.name, CPU.name]
    assert choice.value.device == "CPU"
    assert "passed over SomeGpuExecutionProvider: SomeGpuExecutionProvider did not start" in (
        choice.reason
    )
    assert "did not start" in caplog.text
    with pytest.raises(error_type, match="did not start"):
        open_onnx_backend(onnx_package, read_manifest(onnx_package), device="GPU")
    assert gpu == [GPU.name, CPU.name, GPU.name]


def test_memory_as_the_last_word_is_said_to_be_memory(
    onnx_package: Path, gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ResourceError("Memory did not suffice.", "close other programs")

    monkeypatch.setattr(onnx_opening, "create_session", refuse)
    with pytest.raises(ResourceError, match="Memory did not suffice") as caught:
        open_onnx_backend(onnx_package, read_manifest(onnx_package))
    assert isinstance(caught.value.__cause__, DeviceError)
    assert gpu == []


def test_damaged_model_is_not_passed_over(
    onnx_package: Path, gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_gpu(monkeypatch, PackageError("ONNX Runtime cannot read the model.", "verify"))
    with pytest.raises(PackageError):
        open_onnx_backend(onnx_package, read_manifest(onnx_package))
    assert gpu == [GPU.name]
