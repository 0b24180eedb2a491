"""`qwen-edge doctor`: what this machine is, what will not work on it, and how to mend that."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.doctor_engines import (
    Finding,
    check_devices,
    check_kernels,
    check_providers,
    check_versions,
    find_openvino_error,
    shorten_reasons,
)
from qwen_edge.cli.doctor_machine import (
    MemoryBandwidth,
    check_cache,
    check_disk,
    check_export,
    check_hardware,
    list_versions,
    measure_memory,
)
from qwen_edge.cli.doctor_package import PackageReport, try_package
from qwen_edge.cli.doctor_profiles import judge_profiles
from qwen_edge.cli.doctor_view import Overview, show
from qwen_edge.cli.interrupt import leave_soon
from qwen_edge.cli.options import find_package
from qwen_edge.cli.output import Output
from qwen_edge.errors import EdgeError, UsageError
from qwen_edge.profiles.choose import choose_profile
from qwen_edge.profiles.hardware import probe_hardware

if TYPE_CHECKING:
    from qwen_edge.runtime.devices.providers import ProviderReport
    from qwen_edge.runtime.machine.facts import Probes
    from qwen_edge.runtime.machine.known_problems import Facts
    from qwen_edge.runtime.manifest import Manifest

# An NPU's compiler may take 10 minutes, and the model is then loaded as well.
_TIME_LIMIT_S = 900.0


@click.command("doctor")
@click.option(
    "--package",
    metavar="PACKAGE",
    help="Also run this package's golden tokens on every device and engine here, each in a process "
    "of its own, and tell which are right.",
)
@click.option(
    "--time-limit",
    type=float,
    metavar="S",
    default=_TIME_LIMIT_S,
    show_default=True,
    help="With --package: seconds for each device.",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(package: str | None, time_limit: float, as_json: bool) -> None:
    """Look at this machine: processor, memory, devices, drivers, versions, known troubles.

    Tells what each profile would do here and why not, and for each problem a command that mends
    it. Takes about 2 s, most of them to measure memory. Exit code 1 when something will not work
    and can be mended; a "note" is only a limit.

    \b
    Examples:
      qwen-edge doctor
      qwen-edge doctor --package ./qwen3-4b-core-ultra-int4
      qwen-edge doctor --json > machine.json
    """
    if not time_limit > 0:
        raise UsageError(
            f"--time-limit is {time_limit:g}, expected more than 0 seconds.", "for example 300"
        )
    folder, manifest = _open_package(package)
    out = Output(as_json=as_json)
    with leave_soon():
        probes, bandwidth, broken = _probe()
        providers = _probe_providers()
        report = None
        if folder is not None and manifest is not None:
            with out.steps(is_transient=True) as bars:
                report = try_package(
                    folder,
                    manifest,
                    shorten_reasons(probes.devices, probes.accelerators),
                    providers,
                    time_limit_s=time_limit,
                    bars=bars,
                )
    facts = _collect_facts(probes, folder, manifest)
    findings = [
        *check_hardware(probes.hardware),
        *_check_devices(probes, broken),
        *check_kernels(),
        *check_providers(probes.versions, providers),
        *check_versions(probes.versions),
        *_check_known(facts, broken),
        *check_export(),
        check_cache(),
        check_disk(Path.cwd()),
        *(report.findings if report else ()),
    ]
    _write(out, probes, bandwidth, providers, facts, findings, report, as_json=as_json)
    if any(finding.level == "problem" for finding in findings):
        raise click.exceptions.Exit(1)


def _open_package(package: str | None) -> "tuple[Path | None, Manifest | None]":
    """Return the package's folder and manifest; what is no package is refused before all else."""
    from qwen_edge.runtime.package import read_manifest

    if package is None:
        return None, None
    folder = find_package(package)
    return folder, read_manifest(folder)


def _probe() -> "tuple[Probes, MemoryBandwidth | None, Finding | None]":
    """Ask the machine everything once.

    Returns:
        What was found; how fast memory is; and why OpenVINO cannot be imported.
    """
    from qwen_edge.runtime.devices import drivers, probing
    from qwen_edge.runtime.machine.facts import Probes

    hardware = probe_hardware()
    bandwidth = measure_memory(hardware)
    is_sound = bandwidth is not None and not bandwidth.is_busy
    versions = list_versions()
    has_engine = "openvino" in versions
    broken = find_openvino_error() if has_engine else None
    reports = probing.probe_devices()
    properties: dict[str, dict[str, str]] = {}
    if has_engine and broken is None:
        for report in reports:
            if report.is_available:
                properties[report.name] = _read_properties(report.name)
    return (
        Probes(
            hardware=hardware,
            versions=versions,
            devices=reports,
            accelerators=drivers.probe_accelerators(),
            openvino_error=broken.what if broken else None,
            properties=properties,
            bandwidth_bytes_per_s=bandwidth.bytes_per_s if bandwidth and is_sound else None,
        ),
        bandwidth,
        broken,
    )


def _read_properties(device: str) -> dict[str, str]:
    from qwen_edge.runtime.devices.drivers import read_engine_properties

    try:
        return read_engine_properties(device)
    except EdgeError:
        return {}


def _probe_providers() -> "tuple[ProviderReport, ...]":
    from qwen_edge.runtime.devices import providers

    return providers.probe_providers()


def _check_devices(probes: "Probes", broken: Finding | None) -> list[Finding]:
    """Tell of OpenVINO's devices; where it is broken or missing, that is told elsewhere."""
    if broken is not None or "openvino" not in probes.versions:
        return []
    return check_devices(probes.devices, probes.accelerators, probes.properties)


def _collect_facts(probes: "Probes", folder: Path | None, manifest: "Manifest | None") -> "Facts":
    from qwen_edge.runtime.machine.facts import collect_facts, package_facts

    facts: Facts = collect_facts(probes)
    if folder is not None and manifest is not None:
        facts = {**facts, **package_facts(manifest, folder, probes.versions)}
    return facts


def _check_known(facts: "Facts", broken: Finding | None) -> list[Finding]:
    """Return the known problems; a broken OpenVINO is told once, with the best fix there is."""
    from qwen_edge.runtime.machine.known_problems import find_known_problems

    found = [
        Finding(entry.level, entry.what, entry.fix, entry.id, entry.sources)
        for entry in find_known_problems(facts)
    ]
    is_explained = any(finding.id.startswith("openvino-without") for finding in found)
    return found if broken is None or is_explained else [broken, *found]


def _write(
    out: Output,
    probes: "Probes",
    bandwidth: MemoryBandwidth | None,
    providers: "Sequence[ProviderReport]",
    facts: "Mapping[str, object]",
    findings: Sequence[Finding],
    report: PackageReport | None,
    *,
    as_json: bool,
) -> None:
    hardware = probes.hardware
    choice = choose_profile(hardware)
    profiles = judge_profiles(hardware, probes.devices, probes.accelerators, providers)
    if as_json:
        devices = [
            {**asdict(entry), "properties": probes.properties.get(entry.name, {})}
            for entry in probes.devices
        ]
        accelerators = probes.accelerators
        out.result_json(
            {
                "hardware": asdict(hardware),
                "memory_bandwidth": None if bandwidth is None else asdict(bandwidth),
                "python": platform.python_version(),
                "versions": probes.versions,
                "devices": devices,
                "accelerators": None if accelerators is None else list(accelerators),
                "providers": list(providers),
                "profile": asdict(choice),
                "profiles": [verdict.to_json() for verdict in profiles],
                "package": report.to_json() if report else None,
                "facts": dict(facts),
                "findings": [asdict(finding) for finding in findings],
            }
        )
        return
    overview = Overview(
        hardware=hardware,
        python=platform.python_version(),
        system=_name_system(hardware.architecture),
        versions=dict(probes.versions),
        bandwidth=bandwidth,
        profiles=profiles,
        choice=choice,
        package=report,
    )
    show(out, overview, findings)


def _name_system(architecture: str) -> str:
    """Return the system with its version: "Linux 6.17.0 x86_64", "Windows 10.0.26100 AMD64"."""
    # On Windows the release is only "10" or "11"; the version has the build.
    version = platform.version() if platform.system() == "Windows" else platform.release()
    return f"{platform.system()} {version} {architecture}"
