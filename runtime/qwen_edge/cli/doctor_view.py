"""How `doctor` is shown to a person: what the machine is first, then what to do about it."""

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen_edge.cli.doctor_engines import Finding
from qwen_edge.cli.doctor_machine import TOKEN_BYTES, MemoryBandwidth
from qwen_edge.cli.doctor_package import PackageReport, describe_way
from qwen_edge.cli.doctor_profiles import ProfileVerdict
from qwen_edge.cli.output import Output
from qwen_edge.errors import format_bytes
from qwen_edge.profiles.choose import Choice
from qwen_edge.profiles.hardware import Hardware

if TYPE_CHECKING:
    from qwen_edge.runtime.devices.golden_trial import TrialResult, TrialTarget

_LEVELS = ("problem", "note", "ok")
_INDENT = " " * 10
_MIN_COLUMNS = 60  # narrower terminals do better with their own line breaks
# Feature → how people write it.
_SPELLINGS = {
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx_vnni": "AVX2-VNNI",
    "avx_vnni_int8": "AVX2-VNNI-INT8",
    "avx_ne_convert": "AVX-NE-CONVERT",
    "asimddp": "DotProd",
    "i8mm": "I8MM",
    "sve": "SVE",
}


@dataclass(frozen=True)
class Overview:
    """What is shown above the findings."""

    hardware: Hardware
    python: str
    system: str
    versions: dict[str, str]
    bandwidth: MemoryBandwidth | None
    profiles: Sequence[ProfileVerdict]
    choice: Choice[str]
    package: PackageReport | None


def show(out: Output, overview: Overview, findings: Sequence[Finding]) -> None:
    """Write all of it: machine, profiles, package, findings."""
    hardware = overview.hardware
    rows = [
        ("system", f"{overview.system}, Python {overview.python}"),
        ("cpu", describe_cpu(hardware)),
        ("features", describe_features(hardware.isa_features)),
        ("memory", describe_memory(hardware, overview.bandwidth)),
        ("software", ", ".join(f"{n} {v}" for n, v in overview.versions.items()) or "nothing"),
    ]
    for name, text in rows:
        _write(out, f"{name:<9} {text}")
    _show_profiles(out, overview.profiles, overview.choice)
    if overview.package is not None:
        _show_package(out, overview.package)
    out.result("")
    for level in _LEVELS:
        for finding in findings:
            if finding.level == level:
                _show_finding(out, finding)
    num_problems = sum(finding.level == "problem" for finding in findings)
    if num_problems:
        out.result(f"\n{num_problems} {'problem' if num_problems == 1 else 'problems'} to mend.")
    else:
        out.result("\nNothing here needs mending.")


def _write(out: Output, text: str, indent: str = _INDENT) -> None:
    """Write a line; on a terminal broken at words, with what follows set in."""
    columns = shutil.get_terminal_size().columns
    if out.is_watched and columns >= _MIN_COLUMNS:
        text = textwrap.fill(
            text,
            columns,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    out.result(text)


def _show_finding(out: Output, finding: Finding) -> None:
    _write(out, f"{finding.level:<9} {finding.what}")
    if finding.fix:  # in one line, whatever its length: it is there to be copied
        out.result(f"{_INDENT}Fix: {finding.fix}")
    if finding.sources:
        out.result(f"{_INDENT}See: {finding.sources[0]}")


def _show_profiles(out: Output, profiles: Sequence[ProfileVerdict], choice: Choice[str]) -> None:
    out.result("\nprofiles, for Qwen3-4B")
    width = max((len(verdict.name) for verdict in profiles), default=0)
    for verdict in profiles:
        mark = "*" if verdict.name == choice.value else " "
        text = f"  {mark} {verdict.name:<{width}}  {verdict.describe()}"
        _write(out, text, " " * (width + 6))
    _write(out, f"  * fits: {choice.reason}", " " * (width + 6))
    out.result(f"    qwen-edge export --profile {choice.value}")


def _show_package(out: Output, report: PackageReport) -> None:
    out.result(f"\npackage {report.folder}, {report.num_golden_tokens} golden tokens")
    places = [_name_place(result.target) for result in report.results]
    width = max(map(len, places), default=0)
    for where, result in zip(places, report.results, strict=True):
        text = f"    {where:<{width}}  {result.verdict:<7}  {_describe_run(result)}".rstrip()
        _write(out, text, " " * (width + 15))


def _name_place(target: "TrialTarget") -> str:
    return f"{target.engine}, {target.device}, {describe_way(target)}"


def _describe_run(result: "TrialResult") -> str:
    if result.detail:
        return result.detail
    times = []
    if result.load_s is not None:
        times.append(f"ready after {result.load_s:.1f} s")
    if result.answer_s is not None:
        times.append(f"answered in {result.answer_s:.1f} s")
    return ", ".join(times)


def describe_cpu(hardware: Hardware) -> str:
    """Return name, model, cores and threads."""
    parts = [hardware.cpu_name or "CPU without a name"]
    model = hardware.cpu_model
    if model is not None:
        codename = f"{model.codename.replace('-', ' ').title()}, " if model.codename else ""
        parts[0] += f" ({codename}family {model.family} model {model.model})"
    if hardware.num_physical_cores is not None:
        kinds = f" ({hardware.core_kinds.describe()})" if hardware.core_kinds else ""
        parts.append(f"{hardware.num_physical_cores} cores{kinds}")
    parts.append(f"{hardware.num_logical_cores} threads")
    if hardware.cpu_quota_cores is not None:
        parts.append(f"limited to {hardware.cpu_quota_cores:g} cores' time")
    return ", ".join(parts)


def describe_features(features: Sequence[str]) -> str:
    """Return instruction sets as people write them."""
    told = [_SPELLINGS.get(name, name.replace("_", "-").upper()) for name in features]
    return ", ".join(told) or "no instruction set that engines look for"


def describe_memory(hardware: Hardware, bandwidth: MemoryBandwidth | None) -> str:
    """Return sizes and speed, and what the speed means for an answer."""
    total, available = hardware.memory_bytes, hardware.available_memory_bytes
    parts = ["size unknown" if total is None else format_bytes(total)]
    if available is not None:
        parts.append(f"{format_bytes(available)} available")
    if bandwidth is not None:
        most = bandwidth.bytes_per_s / TOKEN_BYTES
        busy = "while other programs kept the processor busy, " if bandwidth.is_busy else ""
        parts.append(
            f"{busy}read at {format_bytes(bandwidth.bytes_per_s)}/s: Qwen3-4B int4 on the CPU "
            f"writes at most {most:.1f} tokens/s"
        )
    return ", ".join(parts)
