"""What running a package takes on this machine, asked before anything is loaded.

For each device the package has settings for: memory, the largest context that fits, and where it
can be measured here, time. `memory.py` and `run_time.py` own the formulas, docs/resources.md
explains them. Nothing is loaded and nothing is chosen: `devices/opening.py` does both, and looks at
memory once more when it does.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge.errors import EdgeError, ResourceError
from qwen_edge.profiles.choose import AUTO
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.profiles.properties import DEVICES, ENGINE_KERNELS, KERNELS
from qwen_edge.runtime.benchmark.work import count_work
from qwen_edge.runtime.devices.opening import choose_formats
from qwen_edge.runtime.machine.engine_speed import measure_engine
from qwen_edge.runtime.machine.speed import (
    MachineSpeed,
    find_cached_share,
    measure_machine,
    measure_reading,
)
from qwen_edge.runtime.manifest import (
    FORMAT_FILES,
    TOKENIZER_JSON,
    DeviceSettings,
    FormatName,
    Manifest,
    OnnxFacts,
)
from qwen_edge.runtime.resources.memory import MemoryEstimate, check_memory, estimate_memory
from qwen_edge.runtime.resources.run_time import RunTime, estimate_run_time

_CPU = "CPU"


@dataclass(frozen=True)
class DevicePlan:
    """What one of a package's models takes on one device of this machine.

    Args:
        format: Which model.
        device: Where.
        memory: What it takes.
        available_bytes: What can be had without swapping; None where the system does not tell.
        problem: Why it cannot run here; None where it can.
        time: Seconds; None where they are not measured.
    """

    format: FormatName
    device: str
    memory: MemoryEstimate
    available_bytes: int | None
    problem: str | None = None
    time: RunTime | None = None

    @property
    def context_tokens(self) -> int:
        """The largest context that fits; 0 where it cannot run."""
        return 0 if self.problem else self.memory.fitting_tokens(self.available_bytes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What does not fit comfortably."""
        return () if self.problem else self.memory.find_notes(self.available_bytes)

    def to_json(self) -> dict[str, Any]:
        """Return every figure, for programs."""
        memory = self.memory
        return {
            "format": self.format,
            "device": self.device,
            "problem": self.problem,
            "notes": list(self.notes),
            "available_bytes": self.available_bytes,
            "memory": {
                **dataclasses.asdict(memory),
                "min_bytes": memory.min_bytes,
                "max_bytes": memory.max_bytes,
            },
            "context_tokens": self.context_tokens,
            "max_context_tokens": memory.max_cache_tokens,
            "time": None if self.time is None else _time_json(self.time),
        }


def _time_json(time: RunTime) -> dict[str, float | None]:
    return {
        **dataclasses.asdict(time),
        "prompt_tokens_per_s": time.prompt_tokens_per_s,
        "answer_tokens_per_s": time.answer_tokens_per_s,
    }


def plan_memory(
    folder: Path,
    manifest: Manifest,
    *,
    backend: str = AUTO,
    device: str = AUTO,
    unusable: Mapping[str, str] | None = None,
) -> tuple[DevicePlan, ...]:
    """Plan a package on every device it has settings for, without times.

    Args:
        folder: For messages.
        manifest: The package's.
        backend: As for `load`: which of its models.
        device: As for `load`; a device that is named is planned alone.
        unusable: OpenVINO's devices that are not here → why.

    Returns:
        In the order in which they would be tried; empty where only the engine can tell, as for an
        execution provider.

    Raises:
        UsageError: The package does not hold what is asked for.
    """
    available = probe_hardware().available_memory_bytes
    plans = []
    for fmt in choose_formats(folder, manifest, backend=backend, device=device):
        for settings in _settings_of(manifest, fmt):
            if device.lower() not in (AUTO, settings.device.lower()):
                continue
            plan = make_device_plan(
                fmt, settings.device, estimate_memory(manifest, settings, fmt), available
            )
            reason = (unusable or {}).get(settings.device) if fmt == "openvino" else None
            plans.append(plan if reason is None else dataclasses.replace(plan, problem=reason))
    return tuple(plans)


def make_device_plan(
    fmt: FormatName, device: str, memory: MemoryEstimate, available_bytes: int | None
) -> DevicePlan:
    """Return a plan by memory alone; its problem says where that does not suffice.

    Args:
        fmt: Which model.
        device: Where.
        memory: What it takes.
        available_bytes: What can be had without swapping; None where the system does not tell.
    """
    problem = _find_memory_problem(memory, available_bytes, device)
    return DevicePlan(fmt, device, memory, available_bytes, problem)


def check_fits(plans: Sequence[DevicePlan]) -> None:
    """Refuse a package for which memory suffices on none of its devices.

    Args:
        plans: What `plan_memory` returned.

    Raises:
        ResourceError: With both figures, of the device that needs least.
    """
    if not plans or any(plan.problem is None for plan in plans):
        return
    least = min(plans, key=lambda plan: plan.memory.min_bytes)
    check_memory(least.memory, least.available_bytes, least.device)


def add_times(
    folder: Path, manifest: Manifest, plans: Sequence[DevicePlan], *, threads: int | None = None
) -> tuple[DevicePlan, ...]:
    """Measure this machine for two seconds and say how long each plan takes, where it can be said.

    That is the CPU with OpenVINO: what a GPU or an NPU does is not measured, and neither is ONNX
    Runtime.

    Args:
        folder: The package.
        manifest: Its manifest.
        plans: What `plan_memory` returned.
        threads: CPU threads; None for the engine's choice.

    Returns:
        The same plans in the same order.
    """
    machine: MachineSpeed | None = None
    timed = []
    for plan in plans:
        if (plan.format, plan.device) != ("openvino", _CPU) or plan.problem is not None:
            timed.append(plan)
            continue
        machine = machine or measure_machine()
        settings = next(entry for entry in manifest.devices if entry.device == _CPU)
        try:
            time = _estimate_time(folder, manifest, settings, machine, threads)
        except EdgeError as error:  # the engine is missing, or refuses a setting
            timed.append(dataclasses.replace(plan, problem=error.problem))
            continue
        timed.append(dataclasses.replace(plan, time=time))
    return tuple(timed)


def _estimate_time(
    folder: Path,
    manifest: Manifest,
    settings: DeviceSettings,
    machine: MachineSpeed,
    threads: int | None,
) -> RunTime:
    properties = dict(settings.properties)
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    if not manifest.recipe.is_for_own_kernels:
        properties[KERNELS] = ENGINE_KERNELS
    engine = measure_engine(
        manifest.recipe.planned_weights,
        manifest.model.hidden_size,
        properties,
        chunk_tokens=settings.prefill_chunk_tokens,
    )
    unread_bytes, disk_bytes_per_s = _look_at_files(folder, manifest)
    tokenizer = manifest.files.get(TOKENIZER_JSON)
    return estimate_run_time(
        count_work(folder, manifest, settings, "openvino"),
        machine,
        engine,
        num_layers=manifest.model.num_layers,
        hidden_size=manifest.model.hidden_size,
        package_bytes=sum(facts.size_bytes for facts in manifest.files.values()),
        tokenizer_bytes=0 if tokenizer is None else tokenizer.size_bytes,
        unread_bytes=unread_bytes,
        disk_bytes_per_s=disk_bytes_per_s,
    )


def _look_at_files(folder: Path, manifest: Manifest) -> tuple[float, float | None]:
    """Return how many bytes of the model are not in memory, and how fast the disk gives them."""
    name = FORMAT_FILES["openvino"][1]
    path = folder / name
    unread = (1 - find_cached_share(path)) * manifest.files[name].size_bytes
    return unread, measure_reading(path) if unread > 0 else None


def _find_memory_problem(
    memory: MemoryEstimate, available_bytes: int | None, device: str
) -> str | None:
    if available_bytes is None or available_bytes >= memory.min_bytes:
        return None
    try:
        check_memory(memory, available_bytes, device)
    except ResourceError as error:
        return error.problem
    return None


def _settings_of(manifest: Manifest, fmt: FormatName) -> tuple[DeviceSettings, ...]:
    """Return the settings that a format has for OpenVINO's kinds of device."""
    if fmt == "openvino":
        return tuple(entry for entry in manifest.devices if entry.device in DEVICES)
    return () if manifest.onnx is None else (onnx_cpu_settings(manifest.onnx),)


def onnx_cpu_settings(onnx: OnnxFacts) -> DeviceSettings:
    """Return the settings of an ONNX model on the CPU.

    Which other provider ONNX Runtime has here only it can say; the CPU's is always there.
    """
    return DeviceSettings(_CPU, {}, onnx.max_context_tokens, None, None, onnx.prefill_chunk_tokens)
