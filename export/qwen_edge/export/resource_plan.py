"""The steps of an export with the seconds and the memory of each.

Factors are measurements of three sizes (docs/resources.md has them, `scripts/check_plans.py`
compares them with real exports); speeds are this machine's, measured when somebody wants to know.
`plan.py` owns the sizes of files, and refuses.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import EdgeError
from qwen_edge.export.calibration_plan import (
    CalibrationWork,
    cost_of_calibration,
    cost_of_search,
)
from qwen_edge.export.compress import mode_of
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.quantise import Mode, quantise
from qwen_edge.export.source import ResolvedSource
from qwen_edge.profiles.recipe import Recipe
from qwen_edge.runtime.backends.backend import MAX_SCORED_TOKENS
from qwen_edge.runtime.golden import GOLDEN_PROPERTIES
from qwen_edge.runtime.kernels.library import are_used
from qwen_edge.runtime.machine.engine_speed import EngineSpeed, measure_engine
from qwen_edge.runtime.machine.speed import (
    MachineSpeed,
    find_cached_share,
    measure_machine,
    measure_reading,
    measure_writing,
)
from qwen_edge.runtime.recipe_facts import planned_weights
from qwen_edge.runtime.resources.memory import CPU_FACTORS, ONNX_FACTORS, WIDENED_FACTOR
from qwen_edge.runtime.resources.run_time import NARROW_BELOW, compile_s, estimate_step_s, slowness

# Private memory. While weights are compressed: Python and its packages, blocks of weights (bounded
# whatever the model's size), and the tokenizer's conversion. Measured: 0.48 to 0.71 GB.
_COMPRESS_BYTES = 300_000_000
_BLOCKS_BYTES = 150_000_000
_COMPRESS_PER_TOKENIZER_BYTE = 14
# What is left of that when the finished package is run: 353 MB at any size, with Qwen3's tokenizer.
_REST_BYTES = 215_000_000
_REST_PER_TOKENIZER_BYTE = 12
# The first run, without dynamic quantisation: a single token has another kernel than a prompt, and
# below NARROW_BELOW that kernel wants another copy of the layers' weights.
# Measured: 719 and 1,138 MB for Qwen3-0.6B's 383 and 598 MB, 1,262 for 1,039 MB of Qwen3-1.7B.
_RUN_BYTES = 60_000_000
_ONNX_SAVED = 0.15  # of ONNX_FACTORS, which hold a conversation's memory as well
# Compiling for NPU in a process of its own: 7.0 GB for Qwen3-4B's 2.26 GB (npu_eligibility.py).
_NPU_FACTOR = 3.1

# Seconds on one core that runs 68 million turns of an empty loop in a second.
_START_S = 3.0  # with what was found missing at three sizes
_TOKENIZER_S_PER_BYTE = 585e-9  # 6.7 s for Qwen3's 11.4 MB, beside compressing
_CHECK_S_PER_WEIGHT = 0.2e-9  # looking for NaN, sampling rows, copying: not in the probe
_MERGE_S_PER_WEIGHT = 6e-9  # of the layers: measured with ranks of 16 to 256, which differ little
_GRAPH_S_PER_LAYER = 0.03
_COPY_S_PER_BYTE = 0.5e-9  # writing into the system's memory
_NPU_S, _NPU_S_PER_WEIGHT = 4.0, 2.8e-9  # Qwen3-4B: 14 s
_ONNX_RUN_S_PER_BYTE = 6.0e-9
_HASH_SHARE = 0.8  # of hashing alone: files are read as well
_GOLDEN_STEPS = 13  # a prompt of some 30 tokens counts as one
# optimum-cli 2.2.0 on the full-size Qwen3-4B (8.05 GB): 97 s, 10.8 GB resident, 20 GB written.
_OPTIMUM_S, _OPTIMUM_S_PER_BYTE = 25.0, 10e-9
_OPTIMUM_MEMORY, _OPTIMUM_BYTES = 1.25, 1_000_000_000
# Measuring the loss. Qwen3-4B, 2,548 tokens: 36 layers in 240 s, the logits of two readings in 77 s
# with their comparison; 1.27 GB during the layers, 1.77 during the logits.
_READINGS, _LOGIT_S = 3, 0.8e-7
_QUALITY_S, _QUALITY_S_PER_LAYER = 1.5, 0.15  # reading the package, drawing intervals; two graphs
_ALONE_TOKENS = 256  # as quality/measure.py
_GROUP_READS = 2  # what a call of MAX_SCORED_TOKENS takes, in readings of the weights
_LAYER_COPIES = 2  # of a layer's weights in float32
_HEAD_COPIES = 2  # of the head in 8 bits: as it is stored, and as the engine wants it
_LOGITS_BYTES = 4 * (2 * 256 + 8 * 64)  # a vocabulary entry: rows of logits and of their logarithms
_OWN_RUN_BYTES = 150_000_000
_PROBE_ROWS, _PROBE_WIDTH = 1_024, 4_096
CALIBRATION_PHASES = ("measure sensitivity", "calibrate and compress")


@dataclass(frozen=True)
class ExportSpeeds:
    """How fast this machine is at the parts of an export.

    Args:
        machine: Memory and one core.
        engine: OpenVINO with the package's weights, as the first run has it.
        quantised_weights_per_s: All cores.
        write_bytes_per_s: To the disk of the output.
        read_bytes_per_s: From the disk of the checkpoint.
        unread_share: Part of the checkpoint that is not in memory.
    """

    machine: MachineSpeed
    engine: EngineSpeed
    quantised_weights_per_s: float
    write_bytes_per_s: float
    read_bytes_per_s: float
    unread_share: float = 0.0


# A laptop of few cores, for a first idea before anything is measured.
NOMINAL = ExportSpeeds(
    MachineSpeed(memory_bytes_per_s=25e9, hash_bytes_per_s=1.2e9, loops_per_s=60e6),
    EngineSpeed(
        prepared_weights_per_s=0.3e9,
        multiplied_weights_per_s=300e9,
        stepped_weights_per_s=40e9,
        attention_macs_per_s=75e9,
    ),
    quantised_weights_per_s=0.5e9,
    write_bytes_per_s=1e9,
    read_bytes_per_s=1e9,
)


@dataclass(frozen=True)
class ExportWork:
    """What an export has to do, in numbers.

    Args:
        source_bytes: Weights of the checkpoint.
        hashed_bytes: What of the checkpoint has no hash yet.
        num_weights: Of all matrices.
        layer_weights: Of the layers' alone.
        num_layers: Decoder layers.
        hidden_size: Width of the residual stream.
        layer_bytes: Packed weights of the layers, without embedding and head.
        openvino_bytes: Weights of the IR; 0 where none is written.
        unused_bytes: Of these, an embedding that is not the head: it stays in the file.
        onnx_bytes: Weights of the ONNX form; 0 where none is written.
        package_bytes: The finished package.
        tokenizer_bytes: Size of tokenizer.json.
        weights: How the layers' matrices are stored.
        is_portable: The ONNX form in standard operators.
        is_native: False where optimum-intel exports.
        checks_npu: The profile names an NPU, and the check is not left out.
        has_adapters: Adapters are merged while the checkpoint is read.
        quality_tokens: What is read to measure the loss; 0 where it is not measured.
        vocab_size: Logits of each of them.
        calibration: What a calibrated recipe has to do; None for others.
    """

    source_bytes: int
    hashed_bytes: int
    num_weights: int
    layer_weights: int
    num_layers: int
    hidden_size: int
    layer_bytes: int
    openvino_bytes: int
    unused_bytes: int
    onnx_bytes: int
    package_bytes: int
    tokenizer_bytes: int
    weights: str
    is_portable: bool = False
    is_native: bool = True
    checks_npu: bool = False
    has_adapters: bool = False
    quality_tokens: int = 0
    vocab_size: int = 151_936
    calibration: CalibrationWork | None = None


@dataclass(frozen=True)
class Phase:
    """One step of an export.

    Args:
        name: As the progress bars have it.
        seconds: How long it takes.
        memory_bytes: Most private memory, of this process and its children.
        is_optional: Left out where memory does not suffice.
    """

    name: str
    seconds: float
    memory_bytes: int
    is_optional: bool = False


def plan_phases(work: ExportWork, speeds: ExportSpeeds = NOMINAL) -> tuple[Phase, ...]:
    """Return the steps of an export in their order.

    Args:
        work: What is to be done.
        speeds: This machine's, or the nominal ones.
    """
    slower = slowness(speeds.machine)
    rest = _REST_BYTES + _REST_PER_TOKENIZER_BYTE * work.tokenizer_bytes
    hashing = _HASH_SHARE * speeds.machine.hash_bytes_per_s
    phases = [Phase("start", _START_S * slower, rest)]
    if work.calibration is not None and work.is_native:
        phases += _calibration_phases(work, work.calibration, speeds, rest)
    else:
        phases.append(_compress_phase(work, speeds))
    written = work.openvino_bytes + work.onnx_bytes
    forms = (work.openvino_bytes > 0) + (work.onnx_bytes > 0)
    write_s = forms * work.num_layers * _GRAPH_S_PER_LAYER + written * _COPY_S_PER_BYTE
    phases.append(Phase("write model", write_s * slower, rest + _BLOCKS_BYTES))
    phases += _run_phases(work, speeds, rest)
    if work.checks_npu and work.openvino_bytes:
        seconds = (_NPU_S + _NPU_S_PER_WEIGHT * work.num_weights) * slower
        needed = rest + round(_NPU_FACTOR * work.openvino_bytes)
        phases.append(Phase("check for NPU", seconds, needed, is_optional=True))
    if work.quality_tokens and work.is_native:
        tried = max(phase.memory_bytes for phase in phases if phase.name.startswith("try"))
        phases.append(_quality_phase(work, speeds, rest, tried))
    hashed = work.hashed_bytes + work.package_bytes
    phases.append(Phase("hash files", hashed / hashing, rest))
    phases.append(Phase("write to the disk", work.package_bytes / speeds.write_bytes_per_s, rest))
    return tuple(phases)


def _calibration_phases(
    work: ExportWork, calibration: CalibrationWork, speeds: ExportSpeeds, rest: int
) -> list[Phase]:
    """Return the search for a recipe, where there is one, and the calibration of all layers."""
    slower, products = slowness(speeds.machine), speeds.engine.multiplied_weights_per_s
    phases = []
    if calibration.is_searched:
        cost = cost_of_search(calibration, work, products_per_s=products, slower=slower)
        phases.append(Phase(CALIBRATION_PHASES[0], cost.seconds, rest + cost.memory_bytes))
    # Embedding and head are compressed as ever, and the tokenizer is converted first.
    plain = _compress_phase(
        replace(work, num_weights=work.num_weights - work.layer_weights), speeds
    )
    cost = cost_of_calibration(calibration, work, products_per_s=products, slower=slower)
    memory = max(plain.memory_bytes, rest + cost.memory_bytes)
    phases.append(Phase(CALIBRATION_PHASES[1], plain.seconds + cost.seconds, memory))
    return phases


def _compress_phase(work: ExportWork, speeds: ExportSpeeds) -> Phase:
    slower = slowness(speeds.machine)
    cores = max(os.cpu_count() or 1, 1)
    read_s = speeds.unread_share * work.source_bytes / speeds.read_bytes_per_s
    if not work.is_native:
        seconds = (_OPTIMUM_S + _OPTIMUM_S_PER_BYTE * work.source_bytes) * slower
        memory = round(_OPTIMUM_MEMORY * work.source_bytes) + _OPTIMUM_BYTES
        return Phase("run optimum-intel", seconds + read_s, memory)
    tokenizer_s = _TOKENIZER_S_PER_BYTE * work.tokenizer_bytes * slower
    # The tokenizer is converted meanwhile, on one of the cores.
    compress_s = (
        work.num_weights / speeds.quantised_weights_per_s
        + work.num_weights * _CHECK_S_PER_WEIGHT * slower
        + tokenizer_s / cores
    )
    memory = (
        _COMPRESS_BYTES
        + min(_BLOCKS_BYTES, 4 * work.source_bytes)
        + _COMPRESS_PER_TOKENIZER_BYTE * work.tokenizer_bytes
    )
    if work.has_adapters:
        compress_s += work.layer_weights * _MERGE_S_PER_WEIGHT * slower
        # A layer's merged tensors are no pages of a file: 2 bytes a weight.
        memory += 2 * work.layer_weights // work.num_layers
    return Phase("compress weights", max(compress_s, tokenizer_s) + read_s, memory)


def _run_phases(work: ExportWork, speeds: ExportSpeeds, rest: int) -> list[Phase]:
    """Return the first run in every format."""
    slower = slowness(speeds.machine)
    phases = []
    if work.openvino_bytes:
        kept = work.openvino_bytes - work.unused_bytes
        step_s = estimate_step_s(
            kept,
            work.layer_weights,
            speeds.machine,
            speeds.engine,
            num_layers=work.num_layers,
        )
        seconds = (
            compile_s(work.layer_weights, speeds.machine, work.num_layers)
            + work.layer_weights / speeds.engine.prepared_weights_per_s
            + _GOLDEN_STEPS * step_s
        )
        memory = rest + _RUN_BYTES + round(_factor(work) * kept)
        if work.hidden_size < NARROW_BELOW and work.weights != "fp16":
            memory += work.layer_bytes
        phases.append(Phase("try the package", seconds, memory))
    if work.onnx_bytes:
        factor = ONNX_FACTORS[work.is_portable, work.weights == "fp16"] - _ONNX_SAVED
        memory = rest + _RUN_BYTES + round(factor * work.onnx_bytes)
        seconds = _ONNX_RUN_S_PER_BYTE * work.onnx_bytes * slower
        phases.append(Phase("try the ONNX form", seconds, memory))
    return phases


def _quality_phase(work: ExportWork, speeds: ExportSpeeds, rest: int, tried: int) -> Phase:
    """Return what it takes to read texts with checkpoint and package, a layer at a time.

    Args:
        work: What is to be done.
        speeds: The machine's.
        rest: Memory that the process has anyway.
        tried: Memory of the package's first run.
    """
    slower = slowness(speeds.machine)
    tokens, engine = work.quality_tokens, speeds.engine
    rows = 2 * tokens + min(tokens, _ALONE_TOKENS)
    layers_s = work.layer_weights * (
        rows / engine.multiplied_weights_per_s + 1 / engine.prepared_weights_per_s
    )
    logits_s = _READINGS * tokens * work.vocab_size * _LOGIT_S * slower
    kept = work.openvino_bytes - work.unused_bytes or work.onnx_bytes
    read_s = _GROUP_READS * kept / speeds.machine.memory_bytes_per_s
    run_s = compile_s(work.layer_weights, speeds.machine, work.num_layers)
    run_s += read_s * tokens / MAX_SCORED_TOKENS
    layer = _LAYER_COPIES * 4 * work.layer_weights // max(work.num_layers, 1)
    hidden = 4 * 4 * tokens * work.hidden_size
    logits = _LOGITS_BYTES * work.vocab_size
    # Of a package that our kernels run there is little in memory that is not its file.
    is_ours = work.openvino_bytes and are_used({}) and work.weights != "fp16"
    run = rest + _OWN_RUN_BYTES if is_ours else tried
    head = _HEAD_COPIES * work.vocab_size * work.hidden_size if work.openvino_bytes else 0
    memory = hidden + max(rest + layer, rest + head + logits, run + logits)
    graphs_s = (_QUALITY_S + _QUALITY_S_PER_LAYER * work.num_layers) * slower
    return Phase("measure quality", graphs_s + layers_s + logits_s + 2 * run_s, memory)


def _factor(work: ExportWork) -> float:
    return WIDENED_FACTOR if work.weights == "fp16" else CPU_FACTORS[work.weights]


def measure_speeds(
    recipe: Recipe, source: ResolvedSource, spec: DecoderSpec | None, output: Path
) -> ExportSpeeds:
    """Measure this machine for two seconds.

    Args:
        recipe: How weights are stored.
        source: The checkpoint; files that are here already are looked at.
        spec: The decoder; a width of 2,560 is assumed without it.
        output: The package folder to be; its disk is written to for a moment.
    """
    engine = NOMINAL.engine
    try:
        width = 2_560 if spec is None else spec.hidden_size
        weights = planned_weights(recipe.weights)
        engine = measure_engine(weights, width, GOLDEN_PROPERTIES, seconds=0.0)
    except EdgeError:  # no OpenVINO here: only ONNX can be asked for
        pass
    folder = output.absolute().parent
    while not folder.exists():
        folder = folder.parent
    write = measure_writing(folder) or NOMINAL.write_bytes_per_s
    unread, read = _look_at_source(source)
    return ExportSpeeds(
        measure_machine(),
        engine,
        quantised_weights_per_s=_measure_quantising(recipe),
        write_bytes_per_s=write,
        read_bytes_per_s=read or write,
        unread_share=unread,
    )


def _measure_quantising(recipe: Recipe) -> float:
    """Return weights per second, on all cores."""
    generator = np.random.default_rng(0)
    wide = generator.standard_normal((_PROBE_ROWS, _PROBE_WIDTH), np.float32)
    array = (wide.view(np.uint32) >> 16).astype(np.uint16)
    if recipe.weights == "fp16":
        return NOMINAL.quantised_weights_per_s * 2  # only widened and narrowed again
    found = recipe.layer_format
    best_s = min(_time_quantising(array, mode_of(found), found.group_size) for _ in range(3))
    return array.size / best_s


def _time_quantising(array: npt.NDArray[np.uint16], mode: Mode, group_size: int) -> float:
    started_s = time.perf_counter()
    quantise(array, "BF16", mode, group_size)
    return time.perf_counter() - started_s


def _look_at_source(source: ResolvedSource) -> tuple[float, float | None]:
    """Return which share of the checkpoint is not in memory, and how fast its disk gives it."""
    paths = [
        (source.folder / file.name, file.size_bytes)
        for file in source.files
        if file.name.endswith(".safetensors") and (source.folder / file.name).is_file()
    ]
    total = sum(size for _, size in paths)
    if not total:
        return 0.0, None  # still to be fetched: memory has it then
    unread = [(1 - find_cached_share(path)) * size for path, size in paths]
    share = sum(unread) / total
    largest = max(zip(unread, paths, strict=True))[1][0]
    return share, measure_reading(largest) if share > 0.01 else None
