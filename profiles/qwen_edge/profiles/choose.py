"""Choose a profile for a machine and a device for a package, and say why.

A choice is a value with its reason, and the reason is printed. Nothing here touches hardware:
facts come from `hardware.py` and from the runtime's device probe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from qwen_edge.errors import DeviceError, UsageError, did_you_mean, join_problems
from qwen_edge.profiles.hardware import Hardware
from qwen_edge.profiles.properties import DEVICES

T_co = TypeVar("T_co", covariant=True)
AUTO = "auto"


@dataclass(frozen=True)
class Choice(Generic[T_co]):
    """A value and the reason for it, in one sentence for a person."""

    value: T_co
    reason: str


class HasDevice(Protocol):
    """Anything made for one device: a profile's device, or a manifest's entry."""

    @property
    def device(self) -> str:
        """OpenVINO's device type: CPU, GPU or NPU."""
        ...


DeviceT = TypeVar("DeviceT", bound=HasDevice)


def choose_profile(hardware: Hardware) -> Choice[str]:
    """Return the name of the catalog's profile that fits this machine best.

    Args:
        hardware: What `probe_hardware` found.
    """
    name = hardware.cpu_name or "a CPU without a name"
    if hardware.is_core_ultra:
        return Choice("core-ultra", f"this machine's CPU is {name}, an Intel Core Ultra")
    if hardware.is_x86:
        return Choice("generic-x86", f"this machine's CPU is {name}, not an Intel Core Ultra")
    return Choice(
        "generic-onnx",
        f"this machine's CPU is {name} ({hardware.architecture}), not an x86; ONNX Runtime is made "
        "for it",
    )


def choose_device(
    entries: Sequence[DeviceT],
    available: Sequence[str],
    requested: str = AUTO,
    *,
    unusable: Mapping[str, str] | None = None,
) -> Choice[DeviceT]:
    """Return the entry to run on: the requested one, or the first that can be used.

    Args:
        entries: In order of preference, for example a profile's devices.
        available: OpenVINO's `available_devices`, for example ("CPU", "GPU.0").
        requested: "auto", or "CPU", "GPU" or "NPU" in any case. Never falls back.
        unusable: Device → why it cannot be used although it may be present: a probe's finding,
            or the engine's refusal at an earlier try.

    Raises:
        UsageError: `requested` is no device at all.
        DeviceError: The requested device is absent, unusable or not in `entries`; or with
            "auto" no entry can be used.
    """
    refusals = dict(unusable or {})
    if requested.lower() == AUTO:
        return _choose_first(entries, available, refusals)
    wanted = requested.upper()
    if wanted not in DEVICES:
        hint = did_you_mean(wanted, DEVICES)
        fix = f"use one of: {AUTO}, {', '.join(DEVICES)}"
        raise UsageError(f"Unknown device {requested!r}.{hint}", fix, device=requested)
    listed = [entry.device for entry in entries]
    if wanted not in listed:
        raise DeviceError(
            f"Device {wanted!r} is not among those this was made for: {', '.join(listed)}.",
            f"run with --device {listed[0] if listed else AUTO}, or export with a profile for it",
            device=wanted,
            listed=tuple(listed),
        )
    problem = _find_refusal(wanted, available, refusals)
    if problem is not None:
        raise DeviceError(
            f"Device {wanted!r} was asked for and cannot be used: {problem}.",
            f"look for the cause with `qwen-edge doctor`, or run with --device {AUTO}",
            device=wanted,
            available=tuple(available),
        )
    entry = next(entry for entry in entries if entry.device == wanted)
    return Choice(entry, f"{wanted}, because it was asked for")


def _choose_first(
    entries: Sequence[DeviceT], available: Sequence[str], refusals: Mapping[str, str]
) -> Choice[DeviceT]:
    skipped: list[str] = []
    for entry in entries:
        problem = _find_refusal(entry.device, available, refusals)
        if problem is not None:
            skipped.append(f"{entry.device}: {problem}")
            continue
        if not skipped:
            return Choice(entry, f"{entry.device}, the first in order of preference")
        return Choice(
            entry, f"{entry.device}, the first that can be used; skipped {join_problems(skipped)}"
        )
    tried = join_problems(skipped) or "the list of devices is empty"
    raise DeviceError(
        f"No device can run this: {tried}.",
        "look for the cause with `qwen-edge doctor`",
        skipped=tuple(skipped),
        available=tuple(available),
    )


def _find_refusal(device: str, available: Sequence[str], refusals: Mapping[str, str]) -> str | None:
    """Return why a device cannot be used, or None."""
    if device in refusals:
        return refusals[device].rstrip(".")
    if any(name == device or name.startswith(f"{device}.") for name in available):
        return None
    seen = ", ".join(available) or "no device"
    return f"not found, OpenVINO sees {seen}"
