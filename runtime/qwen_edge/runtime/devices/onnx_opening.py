"""Make a package's ONNX model ready on a provider it may run on, trying them in order.

What is done only once for a package and a version of the engine is remembered: a trial in a
process of its own, and the first answers of a provider other than the CPU's. It does not choose
(`profiles/providers.py` does) and does not know text; `opening.py` calls it.
"""

import importlib.metadata
import logging
import platform
import time
from pathlib import Path

from qwen_edge.errors import (
    PackageError,
    UsageError,
    join_problems,
)
from qwen_edge.profiles.choose import AUTO, Choice
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.profiles.providers import Provider, choose_provider
from qwen_edge.runtime.backends.backend import MAX_SCORED_TOKENS, Backend
from qwen_edge.runtime.backends.onnx import OnnxBackend
from qwen_edge.runtime.backends.onnx_file import OnnxModel, read_onnx
from qwen_edge.runtime.backends.onnx_session import CPU_PROVIDER, create_session
from qwen_edge.runtime.backends.onnx_trial import try_in_child
from qwen_edge.runtime.devices.answer_check import check_answers
from qwen_edge.runtime.devices.providers import import_onnxruntime, probe_providers
from qwen_edge.runtime.devices.trying import try_in_order
from qwen_edge.runtime.environment import read_environment
from qwen_edge.runtime.manifest import (
    MODEL_ONNX,
    MODEL_ONNX_DATA,
    DeviceSettings,
    Manifest,
    OnnxFacts,
    PropertyValue,
)
from qwen_edge.runtime.package import check_sizes, package_hash
from qwen_edge.runtime.records import Record, is_recorded, read_stamps, write_record
from qwen_edge.runtime.resources.memory import check_memory, estimate_memory

_LOGGER = logging.getLogger(__name__)
_FILES = (MODEL_ONNX, MODEL_ONNX_DATA)
_TRIALS, _ANSWERS = "onnx-trials", "onnx-answers"  # folders of records in the user's cache
_TRIAL_TIMEOUT_S = 600.0  # 9 GB from a disk of 20 MB/s


def open_onnx_backend(
    folder: Path,
    manifest: Manifest,
    *,
    device: str = AUTO,
    threads: int | None = None,
    refused: dict[str, str] | None = None,
) -> tuple[Backend, Choice[DeviceSettings]]:
    """Make the package's ONNX model ready on a provider it may run on.

    Args:
        folder: The package folder, already checked.
        manifest: What `read_manifest` returned for it.
        device: "auto" tries the known providers in their order; "CPU", "GPU", "NPU" or the name
            of a provider is tried alone and never falls back.
        threads: CPU threads; None for the engine's choice.
        refused: Takes up the providers that were passed over and why; what it holds before is
            passed over as well.

    Returns:
        An empty backend, and the settings it runs with; the reason names every provider that
        was passed over and why.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        DeviceError: No provider, or not the one asked for, can run it.
        PackageError: The model's files are not what the manifest says, or the engine cannot
            read them.
        ParityError: The provider asked for does not answer as the package was sealed.
        ResourceError: Memory cannot suffice.
        UsageError: `device` is no device, or the package has no ONNX model.

    State:
        Writes records to the user's cache folder.
    """
    facts = _facts(folder, manifest)
    import_onnxruntime()  # where it is missing, that is what to say
    reports = probe_providers()
    available = tuple(report.name for report in reports if report.is_available)
    refused = {} if refused is None else refused
    absent = {report.name: report.reason for report in reports if report.reason is not None}

    def open_on(provider: Provider) -> Backend:
        settings = _settings(facts, provider, threads)
        return _open_on(folder, manifest, provider, settings, threads=threads)

    backend, choice = try_in_order(
        lambda: choose_provider(
            available, device, is_portable=facts.is_portable, unusable={**absent, **refused}
        ),
        open_on,
        lambda provider, problem: refused.update({provider.name: problem}),
        is_auto=device.lower() == AUTO,
    )
    return backend, Choice(_settings(facts, choice.value, threads), choice.reason)


def _facts(folder: Path, manifest: Manifest) -> OnnxFacts:
    if manifest.onnx is None:
        raise UsageError(
            f"The package {str(folder)!r} holds no ONNX model.",
            "export it again: qwen-edge export … --format both",
        )
    return manifest.onnx


def _settings(facts: OnnxFacts, provider: Provider, threads: int | None) -> DeviceSettings:
    """Return what the model will run with, in the terms of the package's own settings."""
    properties: dict[str, PropertyValue] = {
        "provider": provider.name,
        "accuracy_level": facts.accuracy_level,
    }
    properties |= {key: option.value for key, option in provider.options.items()}
    if threads is not None:
        properties["intra_op_num_threads"] = threads
    return DeviceSettings(
        device=provider.device,
        properties=properties,
        max_context_tokens=facts.max_context_tokens,
        max_prompt_tokens=None,
        min_response_tokens=None,
        prefill_chunk_tokens=facts.prefill_chunk_tokens,
    )


def _open_on(
    folder: Path,
    manifest: Manifest,
    provider: Provider,
    settings: DeviceSettings,
    *,
    threads: int | None,
) -> Backend:
    """Make the model ready on one provider; the files are looked at before and after."""
    estimate = estimate_memory(manifest, settings, "onnx")
    check_memory(estimate, probe_hardware().available_memory_bytes, settings.device)
    # A mapped file that is shorter than the engine believes ends the process: look again now.
    check_sizes(folder, manifest)
    stamps = read_stamps(folder, _FILES)
    try_once(folder)
    facts = _facts(folder, manifest)
    model = read_onnx(
        folder, accuracy_level=facts.accuracy_level, num_last_positions=MAX_SCORED_TOKENS
    )
    _check_shape(model, manifest, facts)
    session = create_session(model, provider, accuracy_level=facts.accuracy_level, threads=threads)
    if read_stamps(folder, _FILES) != stamps:
        raise PackageError(
            f"The package {str(folder)!r} was changed while it was being loaded.",
            "load it again when whatever writes there is done.",
            path=str(folder),
        )
    is_cpu = provider.name == CPU_PROVIDER
    backend = OnnxBackend(
        session,
        model=model,
        device=settings.device if is_cpu else provider.name,
        max_context_tokens=settings.max_context_tokens,
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
    )
    if not is_cpu:
        try:
            record = _record(folder, _ANSWERS, provider.name)
            check_answers(backend, manifest.golden, record, provider.name, compares_ways=True)
        except BaseException:
            backend.close()
            raise
    return backend


def _check_shape(model: OnnxModel, manifest: Manifest, facts: OnnxFacts) -> None:
    """Refuse a model of other sizes than the manifest's, or with room for fewer positions."""
    sizes = manifest.model
    pairs = {
        "layers": (model.num_layers, sizes.num_layers),
        "heads of keys": (model.num_kv_heads, sizes.num_kv_heads),
        "numbers in a head": (model.head_dim, sizes.head_dim),
        "vocabulary": (model.vocab_size, sizes.vocab_size),
        "portable": (model.is_portable, facts.is_portable),
    }
    problems = [
        f"{what}: {found}, expected {expected}"
        for what, (found, expected) in pairs.items()
        if found != expected
    ]
    if model.max_context_tokens is not None and model.max_context_tokens < facts.max_context_tokens:
        problems.append(
            f"positions: {model.max_context_tokens:,}, expected {facts.max_context_tokens:,}"
        )
    if problems:
        raise PackageError(
            f"{MODEL_ONNX!r} is not the decoder its manifest describes: {join_problems(problems)}.",
            "export the package again.",
        )


def _record(folder: Path, kind: str, key: str = "") -> Record:
    facts = {
        "package_hash": package_hash(folder),
        "onnxruntime": str(import_onnxruntime().__version__),
        "qwen-edge": importlib.metadata.version("qwen-edge"),
        "machine": platform.machine(),
    }
    return Record(kind, folder, facts, read_stamps(folder, _FILES), key)


def try_once(folder: Path) -> None:
    """Try the model in a process of its own, unless this version of the engine did before.

    Raises:
        PackageError: The process died, or the engine refused the model.

    State:
        A trial that ended well is remembered in the user's cache folder.
    """
    cache_dir = read_environment().cache_dir
    record = _record(folder, _TRIALS)
    if is_recorded(record, cache_dir):
        return
    _LOGGER.info("Trying the model in a process of its own; this happens once per package")
    started_s = time.monotonic()
    try_in_child(folder, timeout_s=_TRIAL_TIMEOUT_S)
    _LOGGER.info("Tried it in %.1f s", time.monotonic() - started_s)
    write_record(record, cache_dir)
