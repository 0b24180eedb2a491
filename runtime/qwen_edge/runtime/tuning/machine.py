"""What a tuned result belongs to: this machine, its device and this engine."""

import hashlib
import json

from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.devices.probing import probe_devices
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.schema import to_json
from qwen_edge.runtime.tuning.result import MachineFacts


def describe_machine(device: str) -> MachineFacts:
    """Return the facts by which a machine and one of its devices are known again.

    Args:
        device: "CPU" needs no engine; others are asked for their name.
    """
    hardware = probe_hardware()
    name = hardware.cpu_name
    if device != "CPU":
        reports = {report.name.partition(".")[0]: report for report in reversed(probe_devices())}
        name = reports[device].full_name if device in reports else None
    return MachineFacts(
        os=hardware.os,
        architecture=hardware.architecture,
        cpu_name=hardware.cpu_name,
        num_physical_cores=hardware.num_physical_cores,
        num_logical_cores=hardware.num_logical_cores,
        isa_features=hardware.isa_features,
        device_name=name,
    )


def describe_engine() -> str:
    """Return engine and version, such as "OpenVINO 2026.4.1".

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    return f"OpenVINO {import_openvino().__version__}"


def make_key(package_hash: str, device: str, machine: MachineFacts) -> str:
    """Return 32 hex digits that name what a result is for; not the engine's version.

    Args:
        package_hash: See `snapshots.binding.hash_files`.
        device: "CPU" or "GPU".
        machine: What `describe_machine` returned.
    """
    facts = {"package": package_hash, "device": device, "machine": to_json(machine)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("utf-8")).hexdigest()[:32]
