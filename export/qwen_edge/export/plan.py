"""What an export will cost: time, memory, disk; worked out before anything is written.

Owns the sizes of what is written, and the refusal where disk or memory will not suffice. What the
steps take is in `resource_plan.py`. It knows sizes, not tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qwen_edge.errors import ResourceError, format_bytes
from qwen_edge.export.calibrated.calibration import count_kept_bytes
from qwen_edge.export.calibration_plan import count_work, kept_bytes
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.package_facts import device_settings, onnx_facts
from qwen_edge.export.packed_size import (
    EMBEDDING_SHARE,
    embedding_bytes,
    guess_bytes,
    onnx_extra_bytes,
    packed_bytes,
)
from qwen_edge.export.quality.texts import count_tokens
from qwen_edge.export.request import ResolvedRequest
from qwen_edge.export.resource_plan import (
    CALIBRATION_PHASES,
    ExportSpeeds,
    ExportWork,
    Phase,
    plan_phases,
)
from qwen_edge.export.seal import check_disk
from qwen_edge.export.source import ResolvedSource
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.manifest import DeviceSettings, FormatName
from qwen_edge.runtime.recipe_facts import is_for_own_kernels, planned_weights
from qwen_edge.runtime.resources.memory import ModelSize, estimate_size
from qwen_edge.runtime.resources.plan import DevicePlan, make_device_plan, onnx_cpu_settings

# Qwen3's tokenizer.json has 11.4 MB; with its OpenVINO forms 19.2 MB. Two graphs and the small
# files of a package have 80 kB besides.
_PER_TOKENIZER_BYTE, _PER_TOKENIZER_BYTE_ONNX = 1.7, 1.0
_PER_VOCABULARY_BYTE = 4.5  # of vocab.json and merges.txt, where tokenizer.json is made of them
_SMALL_FILES_BYTES, _SMALL_FILES_BYTES_ONNX = 80_000, 25_000
# The model's graph, and what a layer adds: as XML 96 kB quantised and 72 kB in fp16; as ONNX 9 to
# 13 kB, the names of its values mostly.
_GRAPH_BYTES = {"openvino": (14_000, 94_000), "onnx": (6_000, 12_000)}
_OPTIMUM_DISK = 2.5  # of the checkpoint, measured: optimum-cli 2.2.0 wrote 20 GB for 8.05
_GUESSED_LAYERS = 36
_GUESSED_WIDTH = 2_560
_GUESSED_VOCABULARY = 151_936


@dataclass(frozen=True)
class ExportPlan:
    """Estimates for one export.

    Args:
        download_bytes: To be fetched.
        package_bytes: Size of the finished package.
        disk_bytes: Most disk needed at the output at one time: package, spool file, and what
            calibration keeps.
        work: What is to be done, in numbers.
        phases: The steps, with the nominal speeds or with measured ones.
        is_exact: config.json was at hand; otherwise the embedding's share is a guess.
        is_measured: The seconds are this machine's.
        devices: What running the package takes here, by memory alone, on each of its devices.
    """

    download_bytes: int
    package_bytes: int
    disk_bytes: int
    work: ExportWork
    phases: tuple[Phase, ...]
    is_exact: bool
    is_measured: bool = False
    devices: tuple[DevicePlan, ...] = ()

    @property
    def memory_bytes(self) -> int:
        """Private memory that the export cannot do without; file pages not counted."""
        return max(phase.memory_bytes for phase in self.phases if not phase.is_optional)

    @property
    def seconds(self) -> float:
        """Wall time after the download."""
        return sum(phase.seconds for phase in self.phases)

    def peak_bytes(self, available_bytes: int | None) -> int:
        """Return the most private memory that is taken where so much is available."""
        room = available_bytes if available_bytes is not None else self.memory_bytes
        return max(
            phase.memory_bytes
            for phase in self.phases
            if not phase.is_optional or phase.memory_bytes <= room
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What will not work on this machine, or not comfortably: sentences."""
        unfit = tuple(
            f"The package would not run on {plan.device} here: {plan.problem.rstrip('.')}"
            for plan in self.devices
            if plan.problem is not None
        )
        tight = (f"{plan.device}: {note}" for plan in self.devices[:1] for note in plan.notes)
        return (*unfit, *tight)

    def to_json(self) -> dict[str, Any]:
        """Return every figure, for programs."""
        return {
            "download_bytes": self.download_bytes,
            "package_bytes": self.package_bytes,
            "disk_bytes": self.disk_bytes,
            "memory_bytes": self.memory_bytes,
            "seconds": round(self.seconds, 1),
            "is_exact": self.is_exact,
            "is_measured": self.is_measured,
            "phases": [asdict(phase) for phase in self.phases],
            "devices": [plan.to_json() for plan in self.devices],
            "notes": list(self.notes),
        }

    def with_speeds(self, speeds: ExportSpeeds) -> "ExportPlan":
        """Return the same plan with the seconds of a machine that was measured."""
        return replace(self, phases=plan_phases(self.work, speeds), is_measured=True)


def plan_export(
    resolved: ResolvedRequest,
    source: ResolvedSource,
    spec: DecoderSpec | None,
    *,
    is_native: bool = True,
) -> ExportPlan:
    """Estimate time, memory and disk, the time with nominal speeds.

    Args:
        resolved: The request.
        source: What is to be read; only listed, not fetched.
        spec: The decoder, when config.json is on this machine already.
        is_native: False when optimum-intel has to export it.
    """
    sizes = {file.name: file.size_bytes for file in source.files}
    source_bytes = sum(n for name, n in sizes.items() if name.endswith(".safetensors"))
    num_weights, spool_bytes = _count_weights(resolved, spec, source_bytes)
    tokenizer_bytes = _tokenizer_bytes(sizes)
    weights_bytes = {
        name: _weights_bytes(resolved, name, spec, spool_bytes) for name in resolved.formats
    }
    num_layers = _GUESSED_LAYERS if spec is None else spec.num_layers
    package_bytes = sum(weights_bytes.values()) + _files_bytes(
        resolved.formats, tokenizer_bytes, num_layers
    )
    embedded, head = (0, 0) if spec is None else embedding_bytes(resolved.recipe, spec)
    work = ExportWork(
        source_bytes=source_bytes,
        hashed_bytes=sum(file.size_bytes for file in source.files if file.sha256 is None),
        num_weights=num_weights,
        layer_weights=_count_layer_weights(spec, num_weights),
        num_layers=num_layers,
        hidden_size=_GUESSED_WIDTH if spec is None else spec.hidden_size,
        layer_bytes=max(spool_bytes - embedded - head, 0),
        openvino_bytes=weights_bytes.get("openvino", 0),
        unused_bytes=embedded if head else 0,
        onnx_bytes=weights_bytes.get("onnx", 0),
        package_bytes=package_bytes,
        tokenizer_bytes=tokenizer_bytes,
        weights=planned_weights(resolved.recipe.weights),
        is_portable=resolved.request.portable,
        is_native=is_native,
        checks_npu=_checks_npu(resolved),
        has_adapters=bool(resolved.request.adapters),
        quality_tokens=count_tokens(resolved.request),
        vocab_size=_GUESSED_VOCABULARY if spec is None else spec.vocab_size,
        calibration=count_work(resolved.recipe, resolved.request, spec) if is_native else None,
    )
    return ExportPlan(
        download_bytes=source.download_bytes,
        package_bytes=package_bytes,
        disk_bytes=package_bytes + _spare_bytes(work, spool_bytes),
        work=work,
        phases=plan_phases(work),
        is_exact=spec is not None,
        devices=() if spec is None else _plan_devices(resolved, spec, weights_bytes, work),
    )


def _spare_bytes(work: ExportWork, spool_bytes: int) -> int:
    """Return the disk that is needed beside the package while it is made."""
    if not work.is_native:
        return int(_OPTIMUM_DISK * work.source_bytes)
    if work.calibration is None:
        return spool_bytes
    return spool_bytes + kept_bytes(work.calibration, work.hidden_size, work.layer_bytes)


def _count_weights(
    resolved: ResolvedRequest, spec: DecoderSpec | None, source_bytes: int
) -> tuple[int, int]:
    """Return the number of weights, and their bytes once they are compressed."""
    if spec is None:
        num_weights = source_bytes // 2  # published checkpoints are bfloat16
        return num_weights, guess_bytes(resolved.recipe, num_weights)
    return spec.num_parameters, packed_bytes(resolved.recipe, spec)


def _count_layer_weights(spec: DecoderSpec | None, num_weights: int) -> int:
    if spec is None:
        return int((1 - EMBEDDING_SHARE) * num_weights)
    return num_weights - spec.vocab_size * spec.hidden_size * (1 if spec.is_tied else 2)


def _checks_npu(resolved: ResolvedRequest) -> bool:
    has_npu = any(entry.device == "NPU" for entry in resolved.profile.devices)
    return has_npu and not resolved.request.skip_npu_check


def _plan_devices(
    resolved: ResolvedRequest,
    spec: DecoderSpec,
    weights_bytes: Mapping[FormatName, int],
    work: ExportWork,
) -> tuple[DevicePlan, ...]:
    """Return what running the package takes on each of its devices, by this machine's memory."""
    available = probe_hardware().available_memory_bytes
    recipe, asked = resolved.recipe, resolved.request.max_context_tokens
    limit = spec.max_position_embeddings
    limit = limit if asked is None else min(limit, asked)
    plans = []
    for fmt, num_bytes in weights_bytes.items():
        size = ModelSize(
            format=fmt,
            weights_bytes=num_bytes,
            weights=planned_weights(recipe.weights),
            num_layers=spec.num_layers,
            hidden_size=spec.hidden_size,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            vocab_size=spec.vocab_size,
            tokenizer_bytes=work.tokenizer_bytes,
            is_portable=work.is_portable and fmt == "onnx",
            is_for_own_kernels=is_for_own_kernels(recipe.weights, is_symmetric=recipe.symmetric),
        )
        for settings in _settings_of(resolved, fmt, limit, spec.num_layers):
            memory = estimate_size(size, settings)
            plans.append(make_device_plan(fmt, settings.device, memory, available))
    return tuple(plans)


def _settings_of(
    resolved: ResolvedRequest, fmt: FormatName, limit: int, num_layers: int
) -> tuple[DeviceSettings, ...]:
    if fmt == "openvino":
        return device_settings(resolved.profile, limit, num_layers)
    facts = onnx_facts(resolved.profile, limit, is_portable=resolved.request.portable)
    return (onnx_cpu_settings(facts),)


def _files_bytes(formats: Sequence[str], tokenizer_bytes: int, num_layers: int) -> int:
    """Return the size of all that is not weights: tokenizer, graphs, small files."""
    has_openvino = "openvino" in formats
    per_byte = _PER_TOKENIZER_BYTE if has_openvino else _PER_TOKENIZER_BYTE_ONNX
    graphs = (_GRAPH_BYTES[name] for name in formats)
    graph_bytes = sum(fixed + per_layer * num_layers for fixed, per_layer in graphs)
    small = _SMALL_FILES_BYTES if has_openvino else _SMALL_FILES_BYTES_ONNX
    return int(per_byte * tokenizer_bytes) + graph_bytes + small


def _weights_bytes(
    resolved: ResolvedRequest, name: FormatName, spec: DecoderSpec | None, spool_bytes: int
) -> int:
    """Return the size of one format's weights file."""
    if name == "openvino" or spec is None:
        return spool_bytes
    facts = onnx_facts(
        resolved.profile, spec.max_position_embeddings, is_portable=resolved.request.portable
    )
    return spool_bytes + onnx_extra_bytes(resolved.recipe, spec, facts)


def _tokenizer_bytes(sizes: Mapping[str, int]) -> int:
    """Return the size of tokenizer.json, or what it will have."""
    if "tokenizer.json" in sizes:
        return sizes["tokenizer.json"]
    vocabulary = sizes.get("vocab.json", 0) + sizes.get("merges.txt", 0)
    return int(_PER_VOCABULARY_BYTE / _PER_TOKENIZER_BYTE * vocabulary)


def check_plan(plan: ExportPlan, output: Path, cache_folder: Path | None) -> None:
    """Refuse an export for which disk or memory will not suffice.

    Args:
        plan: The estimates.
        output: The package folder to be.
        cache_folder: Where a download goes; None when there is none.

    Raises:
        ResourceError: With needed and available figures. Nothing has been written.
    """
    needed_here = plan.disk_bytes
    if plan.work.calibration is not None:  # what was kept is there already
        needed_here = max(needed_here - count_kept_bytes(output), plan.package_bytes)
    if cache_folder is not None and plan.download_bytes:
        if _same_disk(cache_folder, output.absolute().parent):
            needed_here += plan.download_bytes
        else:
            check_disk(cache_folder, plan.download_bytes)
    check_disk(output.absolute().parent, needed_here)
    available = probe_hardware().available_memory_bytes
    if available is not None and available < plan.memory_bytes:
        raise ResourceError(
            f"The export needs {format_bytes(plan.memory_bytes)} of memory; "
            f"{format_bytes(available)} are available. Nothing was written.",
            f"close other programs, or export {_find_smaller(plan, available)}",
            needed_bytes=plan.memory_bytes,
            available_bytes=available,
        )


def _find_smaller(plan: ExportPlan, available_bytes: int) -> str:
    """Return what takes less memory: a recipe, where calibrating is what takes too much."""
    others = [phase for phase in plan.phases if phase.name not in CALIBRATION_PHASES]
    needed = max(phase.memory_bytes for phase in others if not phase.is_optional)
    if plan.work.calibration is not None and needed <= available_bytes:
        return "with a recipe that does not calibrate, such as --recipe int4-awq"
    return "a smaller model, such as Qwen/Qwen3-1.7B"


def _same_disk(first: Path, second: Path) -> bool:
    return _existing(first).stat().st_dev == _existing(second).stat().st_dev


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
