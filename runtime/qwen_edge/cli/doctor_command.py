"""`qwen-edge doctor`: what this machine is, what will not work on it, and how to mend that."""

import importlib.metadata
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path

import click

from qwen_edge.cli.doctor_engines import (
    RUNTIMES,
    Finding,
    check_devices,
    check_providers,
    check_versions,
)
from qwen_edge.cli.extra import missing_export_modules
from qwen_edge.cli.output import Output
from qwen_edge.errors import EdgeError, format_bytes
from qwen_edge.profiles.choose import choose_profile
from qwen_edge.profiles.hardware import Hardware, probe_hardware

_PACKAGES = (
    "qwen-edge",
    "openvino",
    "openvino-tokenizers",
    *RUNTIMES,
    "onnxruntime-genai",
    "onnx",
    "onnx-ir",
    "tokenizers",
    "transformers",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "jinja2",
    "click",
    "rich",
    "torch",
    "torchvision",
    "optimum-intel",
)
# The full-size default package: 2.3 GB of weights, repacked once at load, and a small cache.
_RUN_BYTES = 3_500_000_000
_EXPORT_BYTES = 3_100_000_000


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(as_json: bool) -> None:
    """Look at this machine: processor, memory, devices, versions, known troubles.

    Exit code 1 when something will not work and can be mended; a "note" is only a limit.
    """
    out = Output(as_json=as_json)
    hardware = probe_hardware()
    versions = _versions()
    findings = [
        *_check_hardware(hardware),
        *(check_devices() if "openvino" in versions else ()),
        *check_providers(versions),
        *check_versions(versions),
        *_check_export(),
        _check_cache(),
        _check_disk(Path.cwd()),
    ]
    if as_json:
        out.result_json(
            {
                "hardware": asdict(hardware),
                "python": platform.python_version(),
                "versions": versions,
                "profile": asdict(choose_profile(hardware)),
                "findings": [asdict(finding) for finding in findings],
            }
        )
    else:
        _show(out, hardware, versions, findings)
    if any(finding.level == "problem" for finding in findings):
        raise click.exceptions.Exit(1)


def _show(
    out: Output, hardware: Hardware, versions: dict[str, str], findings: list[Finding]
) -> None:
    out.result(f"{hardware.os} {hardware.architecture}, Python {platform.python_version()}")
    out.result(
        f"{hardware.cpu_name or 'CPU without a name'}, {hardware.num_logical_cores} threads"
        f", {' '.join(hardware.isa_features) or 'no known instruction sets'}"
    )
    out.result(", ".join(f"{name} {version}" for name, version in versions.items()))
    out.result("")
    for finding in findings:
        out.result(f"{finding.level:<8} {finding.what}")
        if finding.fix:
            out.result(f"         Fix: {finding.fix}")
    choice = choose_profile(hardware)
    out.result(f"\nprofile  {choice.value}: {choice.reason}")


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _check_hardware(hardware: Hardware) -> list[Finding]:
    findings = []
    if not hardware.is_x86:
        findings.append(
            Finding(
                "note",
                f"{hardware.architecture} is not x86-64: no profile was made for it",
                "try --profile generic-x86; its settings are plain",
            )
        )
    elif "avx2" not in hardware.isa_features:
        findings.append(
            Finding(
                "problem",
                "the CPU reports no AVX2, which OpenVINO's int4 kernels need",
                "use a machine from 2013 or later, or switch AVX2 on in the virtual machine",
            )
        )
    total, available = hardware.memory_bytes, hardware.available_memory_bytes
    if total is None or available is None:
        findings.append(Finding("note", "the system does not tell how much memory it has"))
    elif available < _RUN_BYTES:
        findings.append(
            Finding(
                "problem" if total < _RUN_BYTES else "note",
                f"{format_bytes(available)} of {format_bytes(total)} memory are available; "
                f"Qwen3-4B int4 needs about {format_bytes(_RUN_BYTES)} to run",
                "close other programs, or use a smaller model, such as Qwen/Qwen3-1.7B",
            )
        )
    else:
        findings.append(
            Finding(
                "ok",
                f"{format_bytes(available)} of {format_bytes(total)} memory available: "
                f"enough to export ({format_bytes(_EXPORT_BYTES)}) and run "
                f"({format_bytes(_RUN_BYTES)}) Qwen3-4B int4",
            )
        )
    return findings


def _check_export() -> list[Finding]:
    missing = missing_export_modules()
    if not missing:
        return []
    return [
        Finding(
            "note",
            f"exporting is not installed ({', '.join(missing)} missing); packages run without it",
            "pip install 'qwen-edge[export]'",
        )
    ]


def _check_cache() -> Finding:
    from qwen_edge.runtime.environment import read_environment

    try:
        folder = read_environment().cache_dir
    except EdgeError as error:
        return Finding("problem", error.problem, error.fix)
    if folder is None:
        return Finding("note", "no cache folder: packages are hashed at every load")
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if existing.is_dir() and os.access(existing, os.W_OK):
        return Finding("ok", f"cache folder {folder}")
    return Finding(
        "note",
        f"the cache folder {str(folder)!r} cannot be written: packages are hashed at every load",
        "set QWEN_EDGE_CACHE_DIR to a folder that can be written",
    )


def _check_disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    needed = 15_000_000_000  # checkpoint of Qwen3-4B, its package, and the spool file
    if free < needed:
        return Finding(
            "note",
            f"{format_bytes(free)} of disk are free here; fetching and exporting "
            f"Qwen3-4B takes about {format_bytes(needed)}",
            "write elsewhere with --output and --cache-dir",
        )
    return Finding("ok", f"{format_bytes(free)} of disk free here")
