"""What an export will cost: time, memory, disk; worked out before anything is written.

The constants are measurements on the full-size Qwen3-4B (docs/LOG.md); `scripts/bench_export.py`
prints the same figures, so that they can be checked. It knows sizes, not tensors.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from qwen_edge.errors import ResourceError, format_bytes
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.package_facts import onnx_facts
from qwen_edge.export.request import ResolvedRequest
from qwen_edge.export.seal import check_disk
from qwen_edge.export.source import ResolvedSource
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.profiles.recipe import Recipe
from qwen_edge.runtime.manifest import FormatName, OnnxFacts

# Qwen3's tokenizer.json has 11.4 MB; with its OpenVINO forms 19.2 MB. Two graphs and the small
# files of a package have 80 kB besides.
_PER_TOKENIZER_BYTE, _PER_TOKENIZER_BYTE_ONNX = 1.7, 1.0
_PER_VOCABULARY_BYTE = 4.5  # of vocab.json and merges.txt, where tokenizer.json is made of them
_SMALL_FILES_BYTES, _SMALL_FILES_BYTES_ONNX = 80_000, 25_000
# The model's graph, and what a layer adds: as XML 96 kB quantised and 72 kB in fp16; as ONNX 9 to
# 13 kB, the names of its values mostly.
_GRAPH_BYTES = {"openvino": (14_000, 94_000), "onnx": (6_000, 12_000)}
_FIXED_SECONDS = 8.0  # imports, tokenizer conversion, small files
_CORE_SECONDS_PER_BILLION = 8.0  # reading, quantising, packing a billion weights, on one core
_RUN_SECONDS_PER_GB = 6.0  # loading the package once and running its golden tokens
_DISK_BYTES_PER_SECOND = 500e6  # a laptop's SSD, writing
# Private memory while compressing: Python and its packages, blocks of weights (bounded whatever
# the model's size), and the tokenizer's conversion, measured at 285 MB for Qwen3's.
_PROCESS_BYTES = 300_000_000
_BLOCKS_BYTES = 300_000_000
_MEMORY_PER_TOKENIZER_BYTE = 25
# The first run computes in f32: the CPU plugin repacks compressed weights, and widens 16-bit ones
# besides. Measured with all that the export holds: Qwen3-4B int4 2.96 GB (2.26 GB of weights) and
# int8 4.6 GB (4.03 GB); Qwen3-0.6B int4 1.1, int8 1.5 and fp16 5.4 GB (0.38, 0.60 and 1.19 GB).
_RUN_FACTOR, _RUN_FACTOR_FP16 = 1.1, 4.3
_RUN_FIXED_BYTES = 100_000_000
# optimum-cli 2.2.0 on the full-size Qwen3-4B (8.05 GB): 97 s, 10.8 GB resident, 20 GB written.
_OPTIMUM_SECONDS, _OPTIMUM_SECONDS_PER_GB = 25.0, 10.0
_OPTIMUM_MEMORY, _OPTIMUM_FIXED_BYTES = 1.25, 1_000_000_000
_OPTIMUM_DISK = 2.5
_GUESSED_LAYERS = 36
_ROW_BLOCK = 128  # into which a row with one scale is cut for ONNX (onnx_weights.py)
_EMBEDDING_SHARE = 0.25  # of the parameters, where config.json is not here yet: a safe guess


@dataclass(frozen=True)
class ExportPlan:
    """Estimates for one export.

    Args:
        download_bytes: To be fetched.
        package_bytes: Size of the finished package.
        disk_bytes: Most disk needed at the output at one time: package and spool file.
        memory_bytes: Peak private memory; file pages that the system may drop not counted.
        seconds: Wall time after the download.
        is_exact: config.json was at hand; otherwise the embedding's share is a guess.
    """

    download_bytes: int
    package_bytes: int
    disk_bytes: int
    memory_bytes: int
    seconds: float
    is_exact: bool


def plan_export(
    resolved: ResolvedRequest,
    source: ResolvedSource,
    spec: DecoderSpec | None,
    *,
    is_native: bool = True,
) -> ExportPlan:
    """Estimate time, memory and disk.

    Args:
        resolved: The request.
        source: What is to be read; only listed, not fetched.
        spec: The decoder, when config.json is on this machine already.
        is_native: False when optimum-intel has to export it.
    """
    sizes = {file.name: file.size_bytes for file in source.files}
    source_bytes = sum(n for name, n in sizes.items() if name.endswith(".safetensors"))
    if spec is None:
        num_parameters = source_bytes // 2  # published checkpoints are bfloat16
        spool_bytes = _guess_weights_bytes(resolved.recipe, num_parameters)
    else:
        num_parameters = spec.num_parameters
        spool_bytes = packed_bytes(resolved.recipe, spec)
    tokenizer_bytes = _tokenizer_bytes(sizes)
    weights_bytes = {
        name: _weights_bytes(resolved, name, spec, spool_bytes) for name in resolved.formats
    }
    num_layers = _GUESSED_LAYERS if spec is None else spec.num_layers
    package_bytes = sum(weights_bytes.values()) + _files_bytes(
        resolved.formats, tokenizer_bytes, num_layers
    )
    cores = os.cpu_count() or 1
    written_bytes = spool_bytes + sum(weights_bytes.values())
    seconds = (
        _FIXED_SECONDS
        + num_parameters / 1e9 * _CORE_SECONDS_PER_BILLION / min(cores, 4)
        + sum(weights_bytes.values()) / 1e9 * _RUN_SECONDS_PER_GB
        + written_bytes / _DISK_BYTES_PER_SECOND
    )
    compress_bytes = (
        _PROCESS_BYTES
        + min(_BLOCKS_BYTES, 4 * source_bytes)
        + _MEMORY_PER_TOKENIZER_BYTE * tokenizer_bytes
    )
    disk_bytes = package_bytes + spool_bytes
    if not is_native:
        seconds += _OPTIMUM_SECONDS + _OPTIMUM_SECONDS_PER_GB * source_bytes / 1e9
        compress_bytes = int(_OPTIMUM_MEMORY * source_bytes) + _OPTIMUM_FIXED_BYTES
        disk_bytes = package_bytes + int(_OPTIMUM_DISK * source_bytes)
    return ExportPlan(
        download_bytes=source.download_bytes,
        package_bytes=package_bytes,
        disk_bytes=disk_bytes,
        memory_bytes=max(
            compress_bytes,
            _run_bytes(resolved.recipe, max(weights_bytes.values()), tokenizer_bytes),
        ),
        seconds=seconds,
        is_exact=spec is not None,
    )


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


def _run_bytes(recipe: Recipe, weights_bytes: int, tokenizer_bytes: int) -> int:
    """Return the private memory of this process while it runs the finished package."""
    factor = _RUN_FACTOR_FP16 if recipe.weights == "fp16" else _RUN_FACTOR
    own_bytes = _PROCESS_BYTES + _MEMORY_PER_TOKENIZER_BYTE * tokenizer_bytes
    return int(factor * weights_bytes) + _RUN_FIXED_BYTES + own_bytes


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
