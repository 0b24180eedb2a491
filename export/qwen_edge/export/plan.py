"""What an export will cost: time, memory, disk; worked out before anything is written.

Owns the sizes of what is written, and the refusal where disk or memory will not suffice. What the
steps take is in `resource_plan.py`. It knows sizes, not tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from qwen_edge.errors import ResourceError, format_bytes
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.package_facts import device_settings, onnx_facts
from qwen_edge.export.request import ResolvedRequest
from qwen_edge.export.resource_plan import (
    ExportSpeeds,
    ExportWork,
    Phase,
    plan_phases,
)
from qwen_edge.export.seal import check_disk
from qwen_edge.export.source import ResolvedSource
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.profiles.recipe import Recipe
from qwen_edge.runtime.manifest import DeviceSettings, FormatName, OnnxFacts
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
_ROW_BLOCK = 128  # into which a row with one scale is cut for ONNX (onnx_weights.py)
_EMBEDDING_SHARE = 0.25  # of the parameters, where config.json is not here yet: a safe guess


@dataclass(frozen=True)
class ExportPlan:
    """Estimates for one export.

    Args:
        download_bytes: To be fetched.
        package_bytes: Size of the finished package.
        disk_bytes: Most disk needed at the output at one time: package and spool file.
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
    if spec is None:
        num_weights = source_bytes // 2  # published checkpoints are bfloat16
        spool_bytes = _guess_weights_bytes(resolved.recipe, num_weights)
    else:
        num_weights = spec.num_parameters
        spool_bytes = packed_bytes(resolved.recipe, spec)
    tokenizer_bytes = _tokenizer_bytes(sizes)
    weights_bytes = {
        name: _weights_bytes(resolved, name, spec, spool_bytes) for name in resolved.formats
    }
    num_layers = _GUESSED_LAYERS if spec is None else spec.num_layers
    package_bytes = sum(weights_bytes.values()) + _files_bytes(
        resolved.formats, tokenizer_bytes, num_layers
    )
    embedding_bytes, head_bytes = _embedding_bytes(resolved.recipe, spec)
    work = ExportWork(
        source_bytes=source_bytes,
        hashed_bytes=sum(file.size_bytes for file in source.files if file.sha256 is None),
        num_weights=num_weights,
        layer_weights=_count_layer_weights(spec, num_weights),
        num_layers=num_layers,
        hidden_size=_GUESSED_WIDTH if spec is None else spec.hidden_size,
        layer_bytes=max(spool_bytes - embedding_bytes - head_bytes, 0),
        openvino_bytes=weights_bytes.get("openvino", 0),
        unused_bytes=embedding_bytes if head_bytes else 0,
        onnx_bytes=weights_bytes.get("onnx", 0),
        package_bytes=package_bytes,
        tokenizer_bytes=tokenizer_bytes,
        weights=resolved.recipe.weights,
        is_portable=resolved.request.portable,
        is_native=is_native,
        checks_npu=_checks_npu(resolved),
    )
    spare_bytes = spool_bytes if is_native else int(_OPTIMUM_DISK * source_bytes)
    return ExportPlan(
        download_bytes=source.download_bytes,
        package_bytes=package_bytes,
        disk_bytes=package_bytes + spare_bytes,
        work=work,
        phases=plan_phases(work),
        is_exact=spec is not None,
        devices=() if spec is None else _plan_devices(resolved, spec, weights_bytes, work),
    )


def _count_layer_weights(spec: DecoderSpec | None, num_weights: int) -> int:
    if spec is None:
        return int((1 - _EMBEDDING_SHARE) * num_weights)
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
    asked = resolved.request.max_context_tokens
    limit = spec.max_position_embeddings
    limit = limit if asked is None else min(limit, asked)
    plans = []
    for fmt, num_bytes in weights_bytes.items():
        size = ModelSize(
            format=fmt,
            weights_bytes=num_bytes,
            weights=resolved.recipe.weights,
            num_layers=spec.num_layers,
            hidden_size=spec.hidden_size,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            vocab_size=spec.vocab_size,
            tokenizer_bytes=work.tokenizer_bytes,
            is_portable=work.is_portable and fmt == "onnx",
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


def _embedding_bytes(recipe: Recipe, spec: DecoderSpec | None) -> tuple[int, int]:
    """Return the bytes of the embedding, and those of a head that is a matrix of its own."""
    if spec is None:
        return 0, 0
    embedding = _matrix_bytes(recipe.embedding, spec.vocab_size, spec.hidden_size)
    head = _matrix_bytes(recipe.head, spec.vocab_size, spec.hidden_size)
    return embedding, 0 if spec.is_tied else head


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
    return spool_bytes + _onnx_extra_bytes(resolved.recipe, spec, facts)


def _onnx_extra_bytes(recipe: Recipe, spec: DecoderSpec, facts: OnnxFacts) -> int:
    """Return by how much the ONNX form's weights are larger: what ONNX Runtime wants repeated.

    Scales are float32 there, and a scale per row stands once for every block; the rotary tables
    are part of the file.
    """
    extra = 0 if facts.is_portable else 4 * facts.max_context_tokens * spec.head_dim
    matrices = [
        (recipe.weights, *shape)
        for index in range(spec.num_layers)
        for shape in spec.linear_shapes(index).values()
    ]
    matrices.append((recipe.embedding, spec.vocab_size, spec.hidden_size))
    if not spec.is_tied:
        matrices.append((recipe.head, spec.vocab_size, spec.hidden_size))
    for fmt, rows, width in matrices:
        if fmt == "int8":
            extra += 5 * rows * -(-width // _ROW_BLOCK)
        elif fmt == "int4":
            group = recipe.group_size
            extra += 2 * rows * -(-width // (group if group > 0 else _ROW_BLOCK))
    return extra


def packed_bytes(recipe: Recipe, spec: DecoderSpec) -> int:
    """Return the bytes of a package's weights: values, scales and zero points.

    Args:
        recipe: Formats and group size.
        spec: The decoder.
    """
    layer = 0
    matrices = spec.linear_shapes(0)
    for name, shape in spec.layer_shapes(0).items():
        if name in matrices:
            layer += _matrix_bytes(recipe.weights, *matrices[name], recipe.group_size)
        else:
            layer += 4 * prod(shape)  # norms and biases stay float32
    embedding = _matrix_bytes(recipe.embedding, spec.vocab_size, spec.hidden_size)
    head = _matrix_bytes(recipe.head, spec.vocab_size, spec.hidden_size)
    return spec.num_layers * layer + embedding + (0 if spec.is_tied else head)


def _matrix_bytes(fmt: str, rows: int, width: int, group_size: int = -1) -> int:
    if fmt == "fp16":
        return 2 * rows * width
    if fmt == "int8":
        return rows * (width + 3)  # float16 scale and uint8 zero point per row
    groups = width // group_size if group_size != -1 and width % group_size == 0 else 1
    return rows * (width // 2 + 2 * groups)


def _guess_weights_bytes(recipe: Recipe, num_parameters: int) -> int:
    """Return the bytes of a package's weights where config.json is not here yet."""
    group = recipe.group_size if recipe.group_size > 0 else 2_048
    per_layer_value = {"fp16": 2.0, "int8": 1.0, "int4": 0.5 + 2 / group}[recipe.weights]
    per_embedding_value = {"fp16": 2.0, "int8": 1.0}[recipe.embedding]
    share = _EMBEDDING_SHARE
    return int(num_parameters * ((1 - share) * per_layer_value + share * per_embedding_value))


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
            "close other programs, or export a smaller model, such as Qwen/Qwen3-1.7B",
            needed_bytes=plan.memory_bytes,
            available_bytes=available,
        )


def _same_disk(first: Path, second: Path) -> bool:
    return _existing(first).stat().st_dev == _existing(second).stat().st_dev


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
