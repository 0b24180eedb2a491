"""Compile a package's IR for a device it may run on, trying them in order where asked to.

The files are looked at right before the engine maps them and right after it compiled them. It
does not choose (`profiles` does) and does not know text; `opening.py` calls it, and
`onnx_opening.py` is the same for the other format.
"""

import logging
from pathlib import Path
from typing import Any

from qwen_edge.errors import PackageError
from qwen_edge.profiles.choose import AUTO, Choice, choose_device
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.backends.backend import MAX_SCORED_TOKENS, Backend
from qwen_edge.runtime.backends.compiling import compile_model, read_ir
from qwen_edge.runtime.backends.decoder_request import (
    ATTENTION_MASK,
    BEAM_IDX,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
)
from qwen_edge.runtime.backends.last_logits import keep_last_logits
from qwen_edge.runtime.backends.openvino import OpenVinoBackend
from qwen_edge.runtime.backends.openvino_static import StaticOpenVinoBackend
from qwen_edge.runtime.devices import probe_devices
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.manifest import MODEL_BIN, MODEL_XML, DeviceSettings, Manifest
from qwen_edge.runtime.memory import check_memory, estimate_memory
from qwen_edge.runtime.package import check_sizes
from qwen_edge.runtime.records import read_stamps
from qwen_edge.runtime.trying import try_in_order

_LOGGER = logging.getLogger(__name__)
_FILES = (MODEL_XML, MODEL_BIN)


def open_openvino_backend(
    folder: Path,
    manifest: Manifest,
    *,
    device: str = AUTO,
    threads: int | None = None,
) -> tuple[Backend, Choice[DeviceSettings]]:
    """Compile the package's IR for a device it may run on.

    Args:
        folder: The package folder, already checked.
        manifest: What `read_manifest` returned for it.
        device: "auto" tries the manifest's devices in their order; "CPU", "GPU" or "NPU" is
            tried alone and never falls back.
        threads: CPU threads; None for the engine's choice.

    Returns:
        An empty backend, and the settings it runs with; the reason names every device that
        was passed over and why.

    Raises:
        DeviceError: No device, or not the one asked for, can run it.
        MissingExtraError: OpenVINO is not installed.
        PackageError: The model's files are not what the manifest says.
        ResourceError: Memory cannot suffice.
        UsageError: `device` is no device.
    """
    import_openvino()  # where it is missing, that is what to say, not that devices are
    reports = probe_devices()
    available = tuple(report.name for report in reports if report.is_available)
    seen = ", ".join(available) or "none"
    refusals = {
        report.name: f"{report.reason} (devices OpenVINO sees: {seen})"
        for report in reports
        if report.reason is not None
    }
    return try_in_order(
        lambda: choose_device(manifest.devices, available, device, unusable=refusals),
        lambda settings: _open_on(folder, manifest, settings, threads=threads),
        lambda settings, problem: refusals.update({settings.device: problem}),
        is_auto=device.lower() == AUTO,
    )


def _open_on(
    folder: Path, manifest: Manifest, settings: DeviceSettings, *, threads: int | None
) -> Backend:
    """Compile for one device; the files are looked at right before and right after."""
    estimate = estimate_memory(manifest, settings)
    check_memory(estimate, probe_hardware().available_memory_bytes, settings.device)
    # A mapped file that is shorter than the engine believes ends the process: look again now.
    check_sizes(folder, manifest)
    stamps = read_stamps(folder, _FILES)
    model = read_ir(folder / MODEL_XML)
    _check_ports(model, manifest)
    is_static = settings.max_prompt_tokens is not None
    if not is_static:  # the NPU plugin looks for the head itself and cuts it its own way
        keep_last_logits(model, MAX_SCORED_TOKENS)
    properties = dict(settings.properties)
    if threads is not None and settings.device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = threads
    compiled = compile_model(model, settings.device, properties)
    if read_stamps(folder, _FILES) != stamps:
        raise PackageError(
            f"The package {str(folder)!r} was changed while it was being loaded.",
            "load it again when whatever writes there is done.",
            path=str(folder),
        )
    return _make_backend(compiled, settings)


def _make_backend(compiled: Any, settings: DeviceSettings) -> Backend:
    if settings.max_prompt_tokens is None:
        return OpenVinoBackend(
            compiled,
            device=settings.device,
            max_context_tokens=settings.max_context_tokens,
            prefill_chunk_tokens=settings.prefill_chunk_tokens,
        )
    return StaticOpenVinoBackend(
        compiled,
        device=settings.device,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_context_tokens=settings.max_context_tokens,
    )


def _check_ports(model: Any, manifest: Manifest) -> None:
    """Refuse a model that is no decoder of the manifest's vocabulary.

    Raises:
        PackageError: An input or the output is missing or has another shape.
    """
    names = {name for port in model.inputs for name in port.get_names()}
    missing = {INPUT_IDS, ATTENTION_MASK, POSITION_IDS, BEAM_IDX} - names
    outputs = [port for port in model.outputs if LOGITS in port.get_names()]
    problem = f"it has no input {', '.join(sorted(missing))}" if missing else ""
    if not problem and not outputs:
        problem = f"it has no output {LOGITS!r}"
    if not problem:
        shape = outputs[0].get_partial_shape()
        width = shape[2] if shape.rank.is_static and len(shape) == 3 else None
        expected = manifest.model.vocab_size
        if width is None or not width.is_static or width.get_length() != expected:
            problem = f"its logits have shape {shape}, expected [?,?,{expected}]"
    if problem:
        raise PackageError(
            f"{MODEL_XML!r} is not the decoder its manifest describes: {problem}.",
            "export the package again.",
        )
