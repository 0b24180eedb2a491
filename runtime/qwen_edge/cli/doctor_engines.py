"""What `doctor` looks at of the engines: OpenVINO's devices, ONNX Runtime's providers, versions.

Engines are imported inside functions, and one that is missing is a finding, never an error.
"""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen_edge.errors import DeviceError, MissingExtraError

if TYPE_CHECKING:
    from qwen_edge.runtime.devices.drivers import Accelerator
    from qwen_edge.runtime.devices.probing import DeviceReport
    from qwen_edge.runtime.devices.providers import ProviderReport

# Distributions that each bring the same module `onnxruntime`, with other execution providers.
RUNTIMES = (
    "onnxruntime",
    "onnxruntime-directml",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-webgpu",
)
_DRIVER_FIX = {
    "GPU": "with an Intel GPU: install its driver (Linux: intel-opencl-icd), then run this again",
    "NPU": "with a Core Ultra: install the NPU driver (Linux: linux-npu-driver), then run this "
    "again",
}
_OLDEST_RUNTIME = (1, 30)
# What becomes of a provider that is here and was not chosen.
_USES = {
    "auto": "here as well, and {reason}",
    "ask": "here, and taken where it is asked for with --device; it {reason}",
    "never": "here, and refused; {reason}",
}
_SHOWN_PROPERTIES = {
    "DEVICE_ARCHITECTURE": "architecture",
    "GPU_DRIVER_VERSION": "driver",
    "NPU_DRIVER_VERSION": "driver",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: "ok", "note" (works, with a limit) or "problem".
        what: What was found, with figures.
        fix: One thing to do; empty when nothing is to be done.
        id: Of a known problem; empty for what was found otherwise.
        sources: Where a known problem was reported.
    """

    level: str
    what: str
    fix: str = ""
    id: str = ""
    sources: tuple[str, ...] = ()


def find_openvino_error() -> Finding | None:
    """Return why OpenVINO is installed and cannot be imported; None where it can, or is absent."""
    from qwen_edge.runtime.engine import import_openvino

    try:
        import_openvino()
    except MissingExtraError:
        return None  # `check_versions` says so
    except DeviceError as error:
        return Finding("problem", error.problem.rstrip("."), error.fix.partition(",")[0])
    return None


def tell_why_absent(report: "DeviceReport", accelerators: "Sequence[Accelerator] | None") -> str:
    """Return why a device cannot be used, in the shortest true words.

    Args:
        report: OpenVINO's reason.
        accelerators: What the system lists; None where it cannot tell.
    """
    reason = (report.reason or "").rstrip(".")
    if report.name not in _DRIVER_FIX or accelerators is None:
        return reason
    if all(entry.kind != report.name for entry in accelerators):
        return f"this machine has no {report.name} by Intel"
    # OpenVINO cannot tell one that is absent from one that it may not use.
    is_guess = reason.startswith(f"OpenVINO finds no {report.name}")
    return "it is built in, but OpenVINO cannot use it" if is_guess else reason


def shorten_reasons(
    reports: "Sequence[DeviceReport]", accelerators: "Sequence[Accelerator] | None"
) -> "list[DeviceReport]":
    """Return the reports with the words of `tell_why_absent`."""
    return [
        report
        if report.is_available
        else dataclasses.replace(report, reason=tell_why_absent(report, accelerators))
        for report in reports
    ]


def check_devices(
    reports: "Sequence[DeviceReport]",
    accelerators: "Sequence[Accelerator] | None",
    properties: Mapping[str, Mapping[str, str]],
) -> list[Finding]:
    """Tell which devices OpenVINO sees, with their drivers, and why the others are absent.

    Args:
        reports: What OpenVINO lists.
        accelerators: What the system lists; None where it cannot tell.
        properties: Device to what OpenVINO knows of it.
    """
    findings = []
    for report in reports:
        if report.is_available:
            facts = _describe_device(report, accelerators, properties.get(report.name, {}))
            findings.append(Finding("ok", f"{report.name}: {facts}"))
            continue
        # A known problem has a better fix where the system says that the device is there.
        fix = _DRIVER_FIX.get(report.name, "") if accelerators is None else ""
        why = tell_why_absent(report, accelerators)
        findings.append(Finding("note", f"{report.name}: {why}", fix))
    return findings


def _describe_device(
    report: "DeviceReport",
    accelerators: "Sequence[Accelerator] | None",
    properties: Mapping[str, str],
) -> str:
    """Return name, driver and architecture of a device that can be used."""
    kind = report.name.partition(".")[0]
    parts = {word: properties[key] for key, word in _SHOWN_PROPERTIES.items() if key in properties}
    for entry in accelerators or ():
        if entry.kind == kind and entry.driver_version is not None:
            parts["driver"] = entry.driver_version  # the engine tells but a part of an NPU's
            break
    kernel = next((e.kernel_driver for e in accelerators or () if e.kind == kind), None)
    if kernel is not None:
        parts["kernel driver"] = kernel
    if kind == "CPU":
        parts = {}  # its architecture says nothing that the name does not
    told = [f"{word} {value}" for word, value in parts.items()]
    return ", ".join([report.full_name or "a device without a name", *told])


def check_kernels() -> list[Finding]:
    """Tell which of our kernels run on this CPU, or why the engine's do."""
    from qwen_edge.runtime.kernels import find_kernels

    try:
        library = find_kernels()
    except (MissingExtraError, DeviceError):
        return []  # `check_versions` and `find_openvino_error` say so
    if library.names:
        others = f", and {', '.join(library.names[1:])}" if library.names[1:] else ""
        return [Finding("ok", f"own kernels for compressed weights: {library.names[0]}{others}")]
    return [
        Finding(
            "note",
            "no own kernels, so OpenVINO's compute compressed weights, which start slower and take "
            f"more memory: {library.reason}",
            library.fix or "",
        )
    ]


def check_providers(
    versions: Mapping[str, str], reports: "Sequence[ProviderReport]"
) -> list[Finding]:
    """Tell what ONNX Runtime has here, and which provider a model of its operators gets.

    Args:
        versions: Distribution to version, of those that are installed.
        reports: What ONNX Runtime has.
    """
    from qwen_edge.profiles.providers import NOT_HERE, choose_provider, load_providers

    installed = [name for name in RUNTIMES if name in versions]
    if not installed:
        what = "onnxruntime is not installed; only packages with an ONNX model need it"
        return [Finding("note", what, "pip install 'qwen-edge[onnx]'")]
    unusable = {entry.name: entry.reason for entry in reports if entry.reason is not None}
    known = load_providers()
    available = [entry.name for entry in known if entry.name not in unusable]
    if not available:  # one reason for all: it cannot be imported
        fix = f"pip install --force-reinstall {installed[0]}"
        return [Finding("problem", unusable[known[0].name].rstrip("."), fix)]
    try:
        choice = choose_provider(available, unusable=unusable)
    except DeviceError as error:
        return [Finding("problem", f"ONNX Runtime: {error.problem.rstrip('.')}")]
    named = " and ".join(f"{name} {versions[name]}" for name in installed)
    findings = [Finding("ok", f"{named}: --device auto takes {choice.reason}")]
    to_have = []
    for entry in known:
        reason = unusable.get(entry.name)
        is_for_others = entry.systems and platform.system() not in entry.systems
        if entry == choice.value or is_for_others:
            continue
        if reason == NOT_HERE:
            to_have.append(f"{entry.name} ({entry.device}: {entry.install})")
            continue
        what = reason or _USES[entry.fast.use].format(reason=entry.fast.reason)
        findings.append(Finding("note", f"{entry.name} ({entry.device}): {what}"))
    if to_have:
        what = "; ".join(to_have).replace("\n", ", ")
        findings.append(Finding("note", f"providers that could be added, for --device: {what}"))
    return findings


def check_versions(versions: Mapping[str, str]) -> list[Finding]:
    """Tell which versions do not fit together.

    Args:
        versions: Distribution to version, of those that are installed.
    """
    return [*_check_openvino(versions), *_check_runtimes(versions), *_check_torch(versions)]


def _check_openvino(versions: Mapping[str, str]) -> list[Finding]:
    core, converter = versions.get("openvino"), versions.get("openvino-tokenizers")
    if core is None:
        has_other = any(name in versions for name in RUNTIMES)
        rest = "; packages run by their ONNX model only" if has_other else ""
        return [
            Finding(
                "note" if has_other else "problem",
                f"openvino is not installed{rest}",
                "pip install qwen-edge; it has no build for Windows on ARM and Macs with Intel: "
                "there pip install 'qwen-edge[onnx]'",
            )
        ]
    if converter is None or converter.rpartition(".")[0] == core:
        return []
    return [
        Finding(
            "problem",
            f"openvino {core} and openvino-tokenizers {converter} differ; their "
            "binary interfaces must match to the patch",
            f"pip install openvino=={core} openvino-tokenizers=={core}.0",
        )
    ]


def _check_runtimes(versions: Mapping[str, str]) -> list[Finding]:
    """Tell where ONNX Runtime is there twice, or older than what was tested."""
    installed = [name for name in RUNTIMES if name in versions]
    if len(installed) > 1:
        named = " and ".join(f"{name} {versions[name]}" for name in installed)
        return [
            Finding(
                "problem",
                f"{named} bring the same module and overwrite each other's files",
                f"pip uninstall -y {' '.join(installed)}, then install the one that you want",
            )
        ]
    return [
        Finding(
            "note",
            f"{name} {versions[name]} is older than 1.30, the oldest that was tested",
            f"pip install --upgrade {name}",
        )
        for name in installed
        if _is_older(versions[name], _OLDEST_RUNTIME)
    ]


def _is_older(version: str, oldest: tuple[int, int]) -> bool:
    parts = version.split(".")[:2]
    return all(part.isdecimal() for part in parts) and tuple(map(int, parts)) < oldest


def _check_torch(versions: Mapping[str, str]) -> list[Finding]:
    torch, vision = versions.get("torch", ""), versions.get("torchvision", "")
    if not torch or not vision or ("+cpu" in torch) == ("+cpu" in vision):
        return []
    return [
        Finding(
            "problem",
            f"torchvision {vision} and torch {torch} are builds of two kinds, which "
            "breaks transformers ('operator torchvision::nms does not exist')",
            "pip uninstall -y torchvision",
        )
    ]
