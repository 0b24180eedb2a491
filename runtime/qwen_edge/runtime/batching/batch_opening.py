"""Open a package for many requests at once: paged on the CPU, in turns on everything else.

The paged engine has weights of its own in the engine's layout, as large as those of a model
loaded for one conversation: a process should hold one or the other, since the paged one serves
single conversations as well. The checks are those of `devices/opening.py`; `scheduler.py` takes
what comes out.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge.errors import DeviceError, PackageError, ResourceError, format_bytes
from qwen_edge.profiles.choose import AUTO, Choice
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.profiles.properties import KERNELS
from qwen_edge.runtime.backends.compiling import read_ir
from qwen_edge.runtime.backends.mapped_files import WEIGHT_FILES, MappedFiles
from qwen_edge.runtime.batching.batch_backend import BatchBackend
from qwen_edge.runtime.batching.openvino_paged import OpenVinoPagedEngine
from qwen_edge.runtime.batching.paged import PagedBatchBackend
from qwen_edge.runtime.batching.paged_model import compile_paged
from qwen_edge.runtime.batching.sequential import SequentialBatchBackend
from qwen_edge.runtime.devices.opening import open_backend
from qwen_edge.runtime.environment import read_environment
from qwen_edge.runtime.files.opening import inside
from qwen_edge.runtime.manifest import (
    MODEL_BIN,
    MODEL_XML,
    DeviceSettings,
    FormatName,
    Manifest,
)
from qwen_edge.runtime.package import check_sizes
from qwen_edge.runtime.records import read_stamps
from qwen_edge.runtime.resources.memory import check_memory, estimate_memory

_LOGGER = logging.getLogger(__name__)
CACHE_BYTES = 2 << 30
"""Most memory for blocks unless told otherwise: 25,000 tokens of Qwen3-4B."""

_FILES = (MODEL_XML, MODEL_BIN)


class _GuardedPaged(PagedBatchBackend):
    """A backend in blocks of a package whose files are guarded as long as it is open."""

    mapped: MappedFiles

    def close(self) -> None:
        """Release the engine, then the files. Calling it twice is harmless."""
        with self.mapped.changing():
            super().close()
        self.mapped.close()


class _GuardedSequential(SequentialBatchBackend):
    """The same for requests that take turns."""

    mapped: MappedFiles

    def close(self) -> None:
        """Release the engine, then the files. Calling it twice is harmless."""
        with self.mapped.changing():
            super().close()
        self.mapped.close()


@dataclass(frozen=True)
class OpenedBatch:
    """An empty batch backend, the format it runs, and its device's settings with the reason."""

    backend: BatchBackend
    name: FormatName
    choice: Choice[DeviceSettings]


def open_batch_backend(
    folder: Path,
    manifest: Manifest,
    *,
    backend: str = AUTO,
    device: str = AUTO,
    threads: int | None = None,
    cache_bytes: int | None = None,
    reuses_answers: bool = False,
) -> OpenedBatch:
    """Make a package ready for many requests.

    Args:
        folder: The package folder, already checked.
        manifest: What `read_manifest` returned for it.
        backend: "auto", "openvino" or "onnx"; with "onnx" requests take turns.
        device: "auto" and "CPU" run paged where the package may run on the CPU with OpenVINO;
            on other devices requests take turns.
        threads: CPU threads; None for the engine's choice.
        cache_bytes: Most memory for the caches of all requests, taken as needed; None for
            `CACHE_BYTES`, or what is available where that is less.
        reuses_answers: See `PagedBatchBackend`.

    Raises:
        EdgeError: As `open_backend`; ResourceError where memory cannot suffice.
    """
    settings = _find_cpu(manifest, backend=backend, device=device)
    mapped = MappedFiles(inside(folder, name) for name in WEIGHT_FILES if name in manifest.files)
    try:
        with mapped.changing():
            if settings is not None:
                try:
                    paged = _open_paged(
                        folder, manifest, settings, threads, cache_bytes, reuses_answers
                    )
                except DeviceError as error:
                    _LOGGER.warning("Requests will take turns: %s", error.problem)
                else:
                    paged.mapped = mapped
                    choice = Choice(settings, "requests share the steps of the CPU")
                    return OpenedBatch(paged, "openvino", choice)
            opened = open_backend(folder, manifest, backend=backend, device=device, threads=threads)
            turns = _GuardedSequential(opened.backend)
            turns.mapped = mapped
            return OpenedBatch(turns, opened.name, opened.choice)
    except BaseException:
        mapped.close()
        raise


def _find_cpu(manifest: Manifest, *, backend: str, device: str) -> DeviceSettings | None:
    """Return the settings to run paged with, or None where that is not asked for."""
    if backend not in (AUTO, "openvino") or device.lower() not in (AUTO, "cpu"):
        return None
    if "openvino" not in manifest.formats:
        return None
    return next((entry for entry in manifest.devices if entry.device == "CPU"), None)


def _open_paged(
    folder: Path,
    manifest: Manifest,
    settings: DeviceSettings,
    threads: int | None,
    cache_bytes: int | None,
    reuses_answers: bool,
) -> _GuardedPaged:
    """Compile for blocks; the files are looked at right before and right after."""
    cache_bytes = _choose_cache_bytes(manifest, settings, cache_bytes)
    check_sizes(folder, manifest)
    stamps = read_stamps(folder, _FILES)
    properties: dict[str, Any] = dict(settings.properties)
    properties.pop(KERNELS, None)  # the engine's own: rows are then the same in every company
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    model = read_ir(folder / MODEL_XML, records_dir=read_environment().cache_dir)
    compiled = compile_paged(model, properties)
    if read_stamps(folder, _FILES) != stamps:
        raise PackageError(
            f"The package {str(folder)!r} was changed while it was being loaded.",
            "load it again when whatever writes there is done.",
            path=str(folder),
        )
    return _GuardedPaged(
        OpenVinoPagedEngine(compiled),
        max_context_tokens=settings.max_context_tokens,
        cache_bytes=cache_bytes,
        reuses_answers=reuses_answers,
    )


def _choose_cache_bytes(
    manifest: Manifest, settings: DeviceSettings, wanted_bytes: int | None
) -> int:
    """Return how much memory the caches may have.

    Raises:
        ResourceError: There is not so much, or not enough for the model.
    """
    available = probe_hardware().available_memory_bytes
    estimate = estimate_memory(manifest, settings)
    check_memory(estimate, available, settings.device)
    if available is None:
        return wanted_bytes or CACHE_BYTES
    room = available - estimate.model_bytes
    if wanted_bytes is None:
        return min(CACHE_BYTES, room)
    if wanted_bytes > room:
        raise ResourceError(
            f"The model ({format_bytes(estimate.model_bytes)}) and a cache of "
            f"{format_bytes(wanted_bytes)} do not fit in the {format_bytes(available)} that are "
            "available.",
            "give the cache less memory, or close other programs.",
            needed_bytes=estimate.model_bytes + wanted_bytes,
            available_bytes=available,
        )
    return wanted_bytes
