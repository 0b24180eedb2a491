"""Does the model that was written run on an NPU? Asked before the package is sealed.

Two questions. Do its weights keep the rules of the NPU's compiler, which is not here to ask? And
does the plugin cut the model up, make it static and compile it with the profile's settings? The
plugin does that without an NPU, with NPUW_DEVICES=CPU, in a child process with a time limit: what
makes it crash must not take the export along. `devices/openvino_opening.py` of the runtime heeds
the verdict.

Source:
    OpenVINO's guide "OpenVINO GenAI on NPU" (2026); openvino 2026.4.1, src/plugins/intel_npu/
    src/plugin/npuw/llm_compiled_model.cpp.
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge.errors import DeviceError, ResourceError, format_bytes
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.profiles.matrix_format import PER_CHANNEL
from qwen_edge.runtime.devices.compile_trial import CompileTask, explain, run_task
from qwen_edge.runtime.devices.npu_verdict import NpuVerdict, describe_verdict
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.manifest import MODEL_BIN, MODEL_XML, DeviceSettings

_LOGGER = logging.getLogger(__name__)
CHECK_TIME_LIMIT_S = 600.0
"""Qwen3-4B took 14 s on two idle cores, and 60 s on two that six other programs used."""
_BYTES_PER_WEIGHT_BYTE = 3.1  # Qwen3-4B, 2.26 GB of weights: 7.0 GB of private memory at the peak
_LEGAL_GROUPS = (128, PER_CHANNEL)
_GUIDE = "rule of OpenVINO's guide for NPU"
_MAX_CHAIN = 8  # operations between a constant and the multiplication that uses it
_PASSED_THROUGH = ("Convert", "Reshape", "Multiply", "Subtract")


@dataclass(frozen=True)
class MatrixFormat:
    """How one matrix of a model is stored.

    Args:
        layer: Name of the multiplication.
        element_type: OpenVINO's name of the numbers' type, for example "i4".
        group_size: Inputs that share a scale; `PER_CHANNEL` for one a row, 0 for none at all.
        has_zero_point: Whether a zero point is taken off.
        num_rows: Outputs of the layer.
    """

    layer: str
    element_type: str
    group_size: int
    has_zero_point: bool
    num_rows: int


def check_npu(
    folder: Path,
    devices: Sequence[DeviceSettings],
    *,
    vocab_size: int,
    is_skipped: bool = False,
    time_limit_s: float = CHECK_TIME_LIMIT_S,
) -> NpuVerdict | None:
    """Find out whether the IR in a folder runs on an NPU.

    Args:
        folder: Holds the IR; needs no manifest.
        devices: The package's; None is returned where no NPU is among them.
        vocab_size: Of the model; its head may have 8 bits.
        is_skipped: Somebody asked to leave the check out.
        time_limit_s: Seconds after which compiling is ended.

    Returns:
        What was found; logged as a warning where the NPU is not among the fit devices.

    Raises:
        DeviceError: The model is unfit, and the package has no other device.
    """
    settings = next((entry for entry in devices if entry.device == "NPU"), None)
    if settings is None:
        return None
    verdict = _find_verdict(folder, settings, vocab_size, is_skipped, time_limit_s)
    words = describe_verdict(verdict)
    if not verdict.problems:
        if not (verdict.is_fit or is_skipped):
            _LOGGER.warning("Whether the model runs on an NPU is unknown: %s", words)
        return verdict
    if len(devices) > 1:
        _LOGGER.warning("The package will not be used on an NPU: the model %s", words)
        return verdict
    raise DeviceError(
        f"An NPU is the only device of this profile, and the model {words}. Nothing was published.",
        "export with --profile core-ultra and --recipe int4-awq, or leave the check out with "
        "--skip-npu-check",
        device="NPU",
        problems=verdict.problems,
    )


def _find_verdict(
    folder: Path,
    settings: DeviceSettings,
    vocab_size: int,
    is_skipped: bool,
    time_limit_s: float,
) -> NpuVerdict:
    if is_skipped:
        return NpuVerdict(unchecked="asked")
    if not _has_plugin():
        return NpuVerdict(unchecked="plugin")
    model = import_openvino().Core().read_model(folder / MODEL_XML)
    problems = find_rule_breaks(model, vocab_size=vocab_size)
    del model  # Windows does not rename a folder whose files are mapped
    if problems:
        return NpuVerdict(problems)
    needed = round((folder / MODEL_BIN).stat().st_size * _BYTES_PER_WEIGHT_BYTE)
    available = probe_hardware().available_memory_bytes
    if available is not None and available < needed:
        _LOGGER.info(
            "Compiling for an NPU takes about %s of memory, but %s are available",
            format_bytes(needed),
            format_bytes(available),
        )
        return NpuVerdict(unchecked="memory")
    return _compile(folder, settings, vocab_size, time_limit_s)


def _has_plugin() -> bool:
    """Return whether this build of OpenVINO has the plugin; an NPU is not needed."""
    try:
        import_openvino().Core().get_property("NPU", "SUPPORTED_PROPERTIES")
    except RuntimeError:
        return False
    return True


def _compile(
    folder: Path, settings: DeviceSettings, vocab_size: int, time_limit_s: float
) -> NpuVerdict:
    """Have the plugin compile the model for the CPU, with the profile's settings."""
    on_cpu = dataclasses.replace(
        settings, properties={**settings.properties, "NPUW_DEVICES": "CPU"}
    )
    end = run_task(CompileTask(str(folder), on_cpu, vocab_size), time_limit_s=time_limit_s)
    if end is None:
        return NpuVerdict(unchecked="process")
    if end.is_well:
        return NpuVerdict()
    error = explain(end, settings.device)
    if end.returncode is None or end.was_stopped or isinstance(error, ResourceError):
        _LOGGER.info("%s", error.problem)
        return NpuVerdict(unchecked="memory" if isinstance(error, ResourceError) else "time")
    where = f"{settings.max_prompt_tokens:,} + {settings.min_response_tokens:,} tokens"
    return NpuVerdict((f"its plugin does not compile it for {where}: {error.problem.rstrip('.')}",))


def find_rule_breaks(model: Any, *, vocab_size: int) -> tuple[str, ...]:
    """Return one sentence per rule that the model's matrices break, each with its first layer.

    Args:
        model: An `openvino.Model`; its weights are not read.
        vocab_size: Matrices of so many rows are the head, which may have 8 bits.
    """
    broken: dict[str, list[str]] = {}
    for matrix in read_matrices(model):
        rule = _find_broken_rule(matrix, is_head=matrix.num_rows == vocab_size)
        if rule is not None:
            broken.setdefault(rule, []).append(matrix.layer)
    return tuple(
        f"layer {layers[0]!r}{f' and {len(layers) - 1:,} more' if len(layers) > 1 else ''}: {rule}"
        for rule, layers in broken.items()
    )


def _find_broken_rule(matrix: MatrixFormat, *, is_head: bool) -> str | None:
    """Return the rule that a matrix breaks, with what it is instead, or None."""
    kind = matrix.element_type
    if is_head and kind in ("i8", "u8"):
        return None
    if kind not in ("i4", "u4", "nf4"):
        return f"its weights are {kind}, expected 4 bits ({_GUIDE})"
    if matrix.has_zero_point or kind == "u4":
        return f"its weights are asymmetric ({kind}), expected symmetric ones ({_GUIDE})"
    if matrix.group_size not in _LEGAL_GROUPS:
        return (
            f"its weights are in groups of {matrix.group_size}, expected groups of 128 or one "
            f"scale per row ({_GUIDE})"
        )
    return None


def read_matrices(model: Any) -> tuple[MatrixFormat, ...]:
    """Return how the weights of every multiplication of a model are stored.

    Args:
        model: An `openvino.Model`.
    """
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        matrix = _read_matrix(node)
        if matrix is not None:
            found.append(matrix)
    return tuple(found)


def _read_matrix(node: Any) -> MatrixFormat | None:
    """Follow the second input of a multiplication to a constant; None where there is none."""
    source = node.input_value(1)
    rows, width = _matrix_shape(source)
    num_scales, has_zero_point = 0, False
    for _ in range(_MAX_CHAIN):
        producer = source.get_node()
        kind = producer.get_type_name()
        if kind == "Constant":
            per_row = num_scales // rows if rows else 0
            group_size = 0 if not per_row else PER_CHANNEL if per_row == 1 else width // per_row
            name = str(producer.get_element_type().get_type_name())
            return MatrixFormat(node.get_friendly_name(), name, group_size, has_zero_point, rows)
        if kind not in _PASSED_THROUGH:
            return None
        if kind == "Multiply":
            num_scales = _count(producer.input_value(1))
        has_zero_point = has_zero_point or kind == "Subtract"
        source = producer.input_value(0)
    return None


def _matrix_shape(source: Any) -> tuple[int, int]:
    """Return (rows, width) of a weight [out, in]; zeros where it is none."""
    shape = source.get_partial_shape()
    if shape.is_dynamic or len(shape) != 2:
        return 0, 0
    return int(shape[0].get_length()), int(shape[1].get_length())


def _count(source: Any) -> int:
    shape = source.get_partial_shape()
    if shape.is_dynamic:
        return 0
    count = 1
    for dimension in shape:
        count *= int(dimension.get_length())
    return count
