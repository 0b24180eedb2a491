"""What `doctor` looks at of the engines: OpenVINO's devices, ONNX Runtime's providers, versions.

Engines are imported inside functions, and one that is missing is a finding, never an error.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from qwen_edge.errors import DeviceError, MissingExtraError
from qwen_edge.profiles.profile import Profile, load_profile, profile_names

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


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: "ok", "note" (works, with a limit) or "problem".
        what: What was found, with figures.
        fix: One thing to do; empty when nothing is to be done.
    """

    level: str
    what: str
    fix: str = ""


def check_devices() -> list[Finding]:
    """Tell which devices OpenVINO sees, and why the others are absent."""
    from qwen_edge.runtime.devices import probe_devices
    from qwen_edge.runtime.engine import import_openvino

    try:
        import_openvino()
    except MissingExtraError:
        pass  # `check_versions` says so; the devices below are absent for it
    except DeviceError as error:
        return [Finding("problem", error.problem.rstrip("."), error.fix.partition(",")[0])]
    findings = []
    for report in probe_devices():
        if report.is_available:
            findings.append(Finding("ok", f"{report.name}: {report.full_name}"))
        else:
            profiles = [
                name for name in profile_names() if _is_only_for(load_profile(name), report.name)
            ]
            fix = _DRIVER_FIX.get(report.name, "")
            unusable = f"; profile {', '.join(profiles)} cannot run here" if profiles else ""
            findings.append(Finding("note", f"{report.name}: {report.reason}{unusable}", fix))
    return findings


def _is_only_for(profile: Profile, device: str) -> bool:
    """Return whether a profile's packages run through OpenVINO and on this device alone."""
    is_openvino = profile.format == "openvino"
    return is_openvino and all(entry.device == device for entry in profile.devices)


def check_providers(versions: Mapping[str, str]) -> list[Finding]:
    """Tell what ONNX Runtime has here, and which provider a model of its operators gets.

    Args:
        versions: Distribution to version, of those that are installed.
    """
    from qwen_edge.profiles.providers import NOT_HERE, choose_provider, load_providers
    from qwen_edge.runtime.providers import probe_providers

    installed = [name for name in RUNTIMES if name in versions]
    if not installed:
        what = "onnxruntime is not installed; only packages with an ONNX model need it"
        return [Finding("note", what, "pip install 'qwen-edge[onnx]'")]
    unusable = {entry.name: entry.reason for entry in probe_providers() if entry.reason is not None}
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
