"""How a package is run to be measured: with its settings, and once more with an exact cache.

The CPU is preferred, since its settings are tested and it is always there; a GPU is taken where the
package has settings for nothing else. What cannot be run is left out with a note, unless a device
was asked for by name. Read `measure.py` for what is done with the runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qwen_edge.errors import DeviceError, MissingExtraError, ResourceError
from qwen_edge.profiles.choose import AUTO, choose_device
from qwen_edge.profiles.properties import PropertyValue
from qwen_edge.runtime.backends.backend import MAX_SCORED_TOKENS, Backend
from qwen_edge.runtime.manifest import (
    FORMAT_ENGINES,
    DeviceSettings,
    FormatName,
    GoldenTokens,
    Manifest,
    OnnxFacts,
)
from qwen_edge.runtime.resources.plan import onnx_cpu_settings

# Of the cache, the most exact that each device has. NPUs have no setting for it.
_EXACT_CACHE = {"CPU": "f32", "GPU": "f16"}
_CACHE_PREFIXES = ("KV_CACHE_", "KEY_CACHE_", "VALUE_CACHE_")
_TRIAL_TIME_LIMIT_S = 600.0


@dataclass
class Runs(ABC):
    """Opens a package to be read.

    State:
        What `as_run` opened, and why something could not be: settings and notes grow.
    """

    folder: Path
    vocab_size: int
    format: FormatName | None = field(default=None, init=False)
    settings: DeviceSettings | None = field(default=None, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    @abstractmethod
    def as_run(self) -> Backend | None:
        """Open it as it runs; None where it cannot be run here."""

    def activations(self) -> Backend | None:
        """Open what `as_run` opened with an exact cache; None where that is no other reading."""
        if self.settings is None:
            return None
        exact = with_exact_cache(self.settings) if self.format == "openvino" else None
        if exact is None or dict(exact.properties) == dict(self.settings.properties):
            where = "ONNX Runtime" if self.format == "onnx" else self.settings.device
            self.notes.append(
                f"On {where} there is no more exact cache to compare with, so activations and "
                "cache are one reading."
            )
            return None
        try:
            return _compile(self.folder, exact, self.vocab_size)
        except (DeviceError, ResourceError) as error:
            self.notes.append(f"It was not run with an exact cache: {error.problem}")
            return None


class StagedRuns(Runs):
    """Runs of a package that has no manifest yet.

    Args:
        folder: Its staging folder.
        devices: The settings it will have; none where it has no IR.
        onnx: How its ONNX form was written; None where there is none.
        golden: What it answers.
        vocab_size: Of the model.
    """

    def __init__(
        self,
        folder: Path,
        devices: Sequence[DeviceSettings],
        onnx: OnnxFacts | None,
        golden: GoldenTokens,
        vocab_size: int,
    ) -> None:
        super().__init__(folder, vocab_size)
        self._devices, self._onnx, self._golden = devices, onnx, golden

    def as_run(self) -> Backend | None:
        """Open it on the CPU, else on what else it has settings for and opens here."""
        if not self._devices:
            return None if self._onnx is None else self._open_onnx(self._onnx)
        ordered = sorted(self._devices, key=lambda entry: entry.device != "CPU")
        for entry in ordered:
            try:
                backend = self._open(entry)
            except (DeviceError, MissingExtraError, ResourceError) as error:
                self.notes.append(f"It was not run on {entry.device}: {error.problem}")
                continue
            if backend is not None:
                self.format, self.settings = "openvino", entry
                return backend
        return None

    def _open(self, entry: DeviceSettings) -> Backend | None:
        if entry.device == "NPU":
            self.notes.append(
                "It was not run on an NPU, where it is compiled for minutes: "
                "`qwen-edge quality --device NPU` does that."
            )
            return None
        if entry.device != "CPU":
            self._try_first(entry)
        return _compile(self.folder, entry, self.vocab_size)

    def _try_first(self, entry: DeviceSettings) -> None:
        """Compile it in a process of its own: drivers crash, and an export must not with them."""
        from qwen_edge.runtime.devices.compile_trial import CompileTask, explain, run_task
        from qwen_edge.runtime.devices.probing import probe_devices

        reports = {report.name: report for report in probe_devices()}
        report = reports.get(entry.device)
        if report is None or not report.is_available:
            reason = "it is not here" if report is None else report.reason
            raise DeviceError(f"{reason}.", device=entry.device)
        task = CompileTask(str(self.folder), entry, self.vocab_size, self._golden)
        end = run_task(task, time_limit_s=_TRIAL_TIME_LIMIT_S)
        if end is not None and not end.is_well:
            raise DeviceError(explain(end, entry.device).problem, device=entry.device)

    def _open_onnx(self, facts: OnnxFacts) -> Backend:
        from qwen_edge.profiles.providers import choose_provider
        from qwen_edge.runtime.backends.onnx import OnnxBackend
        from qwen_edge.runtime.backends.onnx_file import read_onnx
        from qwen_edge.runtime.backends.onnx_session import CPU_PROVIDER, create_session

        level = facts.accuracy_level
        model = read_onnx(self.folder, accuracy_level=level, num_last_positions=MAX_SCORED_TOKENS)
        choice = choose_provider([CPU_PROVIDER], CPU_PROVIDER, is_portable=model.is_portable)
        self.format, self.settings = "onnx", onnx_cpu_settings(facts)
        return OnnxBackend(
            create_session(model, choice.value, accuracy_level=level),
            model=model,
            device="CPU",
            max_context_tokens=facts.max_context_tokens,
            prefill_chunk_tokens=facts.prefill_chunk_tokens,
        )


class SealedRuns(Runs):
    """Runs of a sealed package, opened as `run` and `chat` open it, tuned settings included.

    Args:
        folder: The package, checked.
        manifest: Its manifest.
        device: "auto" for the CPU where the package has settings for it, else for what opens;
            one that is named is never exchanged for another.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, device: str = AUTO) -> None:
        super().__init__(folder, manifest.model.vocab_size)
        self._manifest, self._device = manifest, device

    def check_device(self) -> None:
        """Refuse a device that was asked for by name and is not here, before minutes of work.

        Raises:
            DeviceError: OpenVINO does not see it, or the package has no settings for it.
            UsageError: It is an execution provider, and the package has no ONNX model.
        """
        from qwen_edge.runtime.devices.opening import choose_formats
        from qwen_edge.runtime.devices.probing import probe_devices

        formats = choose_formats(self.folder, self._manifest, device=self._device)
        if self._device != AUTO and formats == ("openvino",):
            available = tuple(report.name for report in probe_devices() if report.is_available)
            choose_device(self._manifest.devices, available, self._device)

    def as_run(self) -> Backend | None:
        """Open it.

        Raises:
            EdgeError: The device that was asked for by name cannot run it.
        """
        from qwen_edge.runtime.devices.opening import open_backend

        device = self._device
        has_cpu = any(entry.device == "CPU" for entry in self._manifest.devices)
        if device == AUTO and (has_cpu or not self._manifest.devices):
            device = "CPU"
        try:
            opened = open_backend(self.folder, self._manifest, device=device)
        except (DeviceError, MissingExtraError, ResourceError) as error:
            if self._device != AUTO:
                raise
            self.notes.append(f"It was not run: {error.problem}")
            return None
        self.format, self.settings = opened.name, opened.choice.value
        return opened.backend


def with_exact_cache(settings: DeviceSettings) -> DeviceSettings | None:
    """Return settings that differ in the cache alone, which is as exact as the device has it.

    Args:
        settings: Of a device of OpenVINO's.

    Returns:
        None for a device that has no such setting.
    """
    from qwen_edge.runtime.kernels import are_used, has_own_cache

    exact = _EXACT_CACHE.get(settings.device)
    if exact is None:
        return None
    given = settings.properties
    properties: dict[str, PropertyValue] = {
        name: value for name, value in given.items() if not name.startswith(_CACHE_PREFIXES)
    }
    properties["KV_CACHE_PRECISION"] = exact
    is_narrow = str(given.get("INFERENCE_PRECISION_HINT", "bf16")).lower() == "bf16"
    if settings.device == "CPU" and is_narrow and are_used(given) and has_own_cache(given):
        # Whole layers of ours leave the engine little, and that in float32. Without a cache of
        # ours it has more of the layer, which must not be rounded more for that.
        properties["INFERENCE_PRECISION_HINT"] = "f32"
    return replace(settings, properties=properties)


def describe_engine(runs: Runs) -> str | None:
    """Return what ran the package: device and engine; None where nothing did."""
    if runs.settings is None or runs.format is None:
        return None
    return f"{runs.settings.device} with {FORMAT_ENGINES[runs.format]}"


def _compile(folder: Path, settings: DeviceSettings, vocab_size: int) -> Backend:
    # Not at the top: where only ONNX is written, OpenVINO need not be installed.
    from qwen_edge.runtime.devices.openvino_opening import compile_backend

    return compile_backend(folder, settings, vocab_size=vocab_size)
