"""Compile a package's IR for a device it may run on, trying them in order where asked to.

The files are looked at right before the engine maps them and right after it compiled them. It
does not choose (`profiles` does) and does not know text; `opening.py` calls it, and
`onnx_opening.py` is the same for the other format.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_edge.errors import DeviceError, PackageError, join_problems
from qwen_edge.profiles.choose import AUTO, Choice, choose_device
from qwen_edge.profiles.gpu_memory import check_gpu_buffers
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.backends.compiling import blaming_the_model, compile_model, read_ir
from qwen_edge.runtime.backends.decoder_making import make_decoder_backend
from qwen_edge.runtime.backends.decoder_preparing import Prepared, prepare_decoder
from qwen_edge.runtime.backends.decoder_request import (
    ATTENTION_MASK,
    BEAM_IDX,
    INPUT_IDS,
    LOGITS,
    POSITION_IDS,
)
from qwen_edge.runtime.backends.openvino_static import StaticOpenVinoBackend
from qwen_edge.runtime.devices.answer_check import check_answers
from qwen_edge.runtime.devices.compile_cache import discard_cache_folder, seal_cache_folder
from qwen_edge.runtime.devices.compile_trial import (
    TRUSTED_DEVICES,
    find_cache_folder,
    make_record,
    try_compile,
)
from qwen_edge.runtime.devices.probing import DeviceReport, probe_devices
from qwen_edge.runtime.devices.trying import try_in_order
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.environment import read_environment
from qwen_edge.runtime.manifest import MODEL_BIN, MODEL_XML, DeviceSettings, Manifest
from qwen_edge.runtime.package import check_sizes
from qwen_edge.runtime.records import read_stamps
from qwen_edge.runtime.resources.memory import check_memory, estimate_memory
from qwen_edge.runtime.tuning.stored import apply_tuned

_LOGGER = logging.getLogger(__name__)
_FILES = (MODEL_XML, MODEL_BIN)


def open_openvino_backend(
    folder: Path,
    manifest: Manifest,
    *,
    device: str = AUTO,
    threads: int | None = None,
    refused: dict[str, str] | None = None,
) -> tuple[Backend, Choice[DeviceSettings]]:
    """Compile the package's IR for a device it may run on.

    Args:
        folder: The package folder, already checked.
        manifest: What `read_manifest` returned for it.
        device: "auto" tries the manifest's devices in their order; "CPU", "GPU" or "NPU" is
            tried alone and never falls back.
        threads: CPU threads; None for the engine's choice.
        refused: Takes up the devices that were passed over or are absent and why; what it holds
            before is passed over as well.

    Returns:
        An empty backend, and the settings it runs with, those that were tuned here laid over
        the package's; the reason names every device that was passed over and why.

    Raises:
        DeviceError: No device, or not the one asked for, can run it.
        MissingExtraError: OpenVINO is not installed.
        PackageError: The model's files are not what the manifest says.
        ParityError: The device asked for does not answer as the package was sealed.
        ResourceError: Memory cannot suffice.
        UsageError: `device` is no device.

    State:
        Writes records to the user's cache folder.
    """
    import_openvino()  # where it is missing, that is what to say, not that devices are
    reports = probe_devices()
    available = tuple(report.name for report in reports if report.is_available)
    refused = {} if refused is None else refused
    for name, reason in _find_absent(manifest, reports, available).items():
        refused.setdefault(name, reason)
    tuned = {entry.device: apply_tuned(folder, manifest, entry) for entry in manifest.devices}
    entries = [settings for settings, _ in tuned.values()]
    backend, choice = try_in_order(
        lambda: choose_device(entries, available, device, unusable=refused),
        lambda settings: _open_checked(folder, manifest, settings, threads=threads),
        lambda settings, problem: refused.update({settings.device: problem}),
        is_auto=device.lower() == AUTO,
    )
    _, told = tuned[choice.value.device]
    return backend, choice if told is None else Choice(choice.value, f"{choice.reason}; {told}")


def _find_absent(
    manifest: Manifest, reports: Sequence[DeviceReport], available: Sequence[str]
) -> dict[str, str]:
    """Return which of the package's devices OpenVINO does not see, and why."""
    listed = [entry.device for entry in manifest.devices]
    seen = ", ".join(available) or "none"
    return {
        report.name: f"{report.reason} (devices OpenVINO sees: {seen})"
        for report in reports
        if report.reason is not None and report.name in listed
    }


def _open_checked(
    folder: Path, manifest: Manifest, settings: DeviceSettings, *, threads: int | None
) -> Backend:
    """Compile for one device, and refuse it where it computes wrongly."""
    backend = _open_on(folder, manifest, settings, threads=threads)
    if settings.device in TRUSTED_DEVICES:
        return backend
    try:
        # On record already where a child could be started that tried it.
        record = make_record(folder, settings)
        check_answers(backend, manifest.golden, record, settings.device, compares_ways=False)
    except BaseException:
        backend.close()
        raise
    return backend


def _open_on(
    folder: Path, manifest: Manifest, settings: DeviceSettings, *, threads: int | None
) -> Backend:
    """Compile for one device; the files are looked at right before and right after."""
    check_verdict(manifest, settings.device)
    estimate = estimate_memory(manifest, settings)
    check_memory(estimate, probe_hardware().available_memory_bytes, settings.device)
    _check_gpu(manifest, settings)
    # A mapped file that is shorter than the engine believes ends the process: look again now.
    check_sizes(folder, manifest)
    stamps = read_stamps(folder, _FILES)
    try_compile(folder, manifest, settings)
    cache_folder = find_cache_folder(folder, settings)
    try:
        backend = compile_backend(
            folder,
            settings,
            vocab_size=manifest.model.vocab_size,
            threads=threads,
            cache_folder=cache_folder,
            records_dir=read_environment().cache_dir,
        )
        if read_stamps(folder, _FILES) != stamps:
            backend.close()
            raise PackageError(
                f"The package {str(folder)!r} was changed while it was being loaded.",
                "load it again when whatever writes there is done.",
                path=str(folder),
            )
    except BaseException:
        discard_cache_folder(cache_folder)
        raise
    seal_cache_folder(cache_folder)
    return backend


def _check_gpu(manifest: Manifest, settings: DeviceSettings) -> None:
    """Refuse a model with a buffer that this GPU's driver does not give out.

    Raises:
        ResourceError: With the longest context for which it would.
    """
    if settings.device != "GPU":
        return
    try:
        core = import_openvino().Core()
        limit_bytes = int(core.get_property("GPU", "GPU_DEVICE_MAX_ALLOC_MEM_SIZE"))
    except (RuntimeError, TypeError, ValueError) as error:
        _LOGGER.debug("The GPU does not tell how large a buffer may be: %s", error)
        return
    note = check_gpu_buffers(manifest.model, settings, manifest.recipe, limit_bytes=limit_bytes)
    if note is not None:
        _LOGGER.warning("%s", note)


def check_verdict(manifest: Manifest, device: str) -> None:
    """Refuse an NPU for which the package was found unfit when it was exported.

    Raises:
        DeviceError: With what was found.
    """
    verdict = manifest.npu
    if device == "NPU" and verdict is not None and verdict.problems:
        raise DeviceError(
            f"This package does not run on an NPU: {join_problems(verdict.problems)}. "
            "That was found when it was exported.",
            "run with --device CPU, or export again with --recipe int4-awq",
            device=device,
            problems=verdict.problems,
        )


def compile_backend(
    folder: Path,
    settings: DeviceSettings,
    *,
    vocab_size: int,
    threads: int | None = None,
    cache_folder: Path | None = None,
    records_dir: Path | None = None,
) -> Backend:
    """Compile the IR in a folder as its settings say, in this process and at once.

    Args:
        folder: Holds the IR; needs no manifest.
        settings: Device, properties and limits.
        vocab_size: What the model must have.
        threads: CPU threads; None for the engine's choice.
        cache_folder: Where the engine keeps what it compiled, and looks for it first; None for
            nowhere.
        records_dir: As for `read_ir`.

    Raises:
        DeviceError: The device refused the model.
        PackageError: The IR cannot be read, or is another decoder.
        ResourceError: Memory ran out.
    """
    model = read_ir(folder / MODEL_XML, records_dir=records_dir)
    with blaming_the_model(MODEL_XML):
        _check_ports(model, vocab_size)
    properties = dict(settings.properties)
    # Packages of earlier versions name it for the GPU; language models get slower and less exact.
    factor = properties.pop("ACTIVATIONS_SCALE_FACTOR", None)
    if factor is not None:
        _LOGGER.info("The package's ACTIVATIONS_SCALE_FACTOR is left out: it does harm")
    if threads is not None and settings.device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = threads
    if cache_folder is not None:
        properties["CACHE_DIR"] = str(cache_folder)
    prepared = Prepared(properties)
    if settings.max_prompt_tokens is None:  # the NPU plugin looks for the head and cuts it itself
        with blaming_the_model(MODEL_XML):
            prepared = prepare_decoder(model, settings.device, properties)
    compiled = compile_model(model, settings.device, prepared.properties)
    return _make_backend(compiled, settings, prepared)


def _make_backend(compiled: Any, settings: DeviceSettings, prepared: Prepared) -> Backend:
    if settings.max_prompt_tokens is None:
        return make_decoder_backend(
            compiled,
            prepared,
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


def _check_ports(model: Any, vocab_size: int) -> None:
    """Refuse a model that is no decoder of this vocabulary.

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
        if width is None or not width.is_static or width.get_length() != vocab_size:
            problem = f"its logits have shape {shape}, expected [?,?,{vocab_size}]"
    if problem:
        raise PackageError(
            f"{MODEL_XML!r} is not the decoder its manifest describes: {problem}.",
            "export the package again.",
        )
