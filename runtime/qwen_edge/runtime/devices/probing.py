"""Which devices OpenVINO sees on this machine, and why the others are absent.

Asks the engine and changes nothing. It does not choose; see `qwen_edge.profiles` for that.
"""

import logging
from dataclasses import dataclass
from typing import Any

from qwen_edge.errors import EdgeError
from qwen_edge.runtime.engine import first_line, import_openvino

_LOGGER = logging.getLogger(__name__)
KNOWN_DEVICES = ("CPU", "GPU", "NPU")
"""Kinds of device a package may name, as OpenVINO writes them."""


@dataclass(frozen=True)
class DeviceReport:
    """One device. `reason` says why it cannot be used, or is None where it can."""

    name: str
    full_name: str
    reason: str | None = None

    @property
    def is_available(self) -> bool:
        """True where OpenVINO lists the device."""
        return self.reason is None


def probe_devices() -> tuple[DeviceReport, ...]:
    """Return every device OpenVINO lists, then the known kinds it does not list, with reasons.

    Never raises: where OpenVINO itself cannot be imported, every kind is absent for it.
    """
    try:
        core = import_openvino().Core()
        names = tuple(core.available_devices)
    except (EdgeError, RuntimeError) as error:
        reason = error.problem if isinstance(error, EdgeError) else first_line(error)
        return tuple(DeviceReport(name, "", reason) for name in KNOWN_DEVICES)
    reports = []
    for name in names:
        try:
            full_name = str(core.get_property(name, "FULL_DEVICE_NAME")).strip()
        except (RuntimeError, TypeError, ValueError) as error:
            _LOGGER.debug("%s does not tell its name: %s", name, error)
            full_name = ""
        reports.append(DeviceReport(name, full_name))
    kinds = {name.partition(".")[0] for name in names}
    absent = [kind for kind in KNOWN_DEVICES if kind not in kinds]
    return (*reports, *(DeviceReport(kind, "", _why_absent(core, kind)) for kind in absent))


def _why_absent(core: Any, kind: str) -> str:
    """Ask the plugin what it finds; where it cannot be loaded it says what is missing."""
    try:
        core.get_property(kind, "AVAILABLE_DEVICES")
    except (RuntimeError, TypeError, ValueError) as error:
        return first_line(error)
    return f"OpenVINO finds no {kind} here: there is none, or its driver is not installed"
