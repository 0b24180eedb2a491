"""`doctor --package`: run a package's golden tokens on every device and engine here, and judge.

Each run is a process of its own with a time limit; see `qwen_edge.runtime.devices.golden_trial`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_edge.cli.doctor_engines import Finding
from qwen_edge.errors import PackageError

if TYPE_CHECKING:
    from qwen_edge.cli.progress import StepBars
    from qwen_edge.runtime.devices.golden_trial import TrialResult, TrialTarget
    from qwen_edge.runtime.devices.probing import DeviceReport
    from qwen_edge.runtime.devices.providers import ProviderReport
    from qwen_edge.runtime.manifest import Manifest


@dataclass(frozen=True)
class PackageReport:
    """What became of a package here.

    Args:
        folder: The package.
        num_golden_tokens: How many tokens each run was to give.
        results: One for every device and engine; empty where the files are damaged.
        findings: What a person should know of them.
    """

    folder: Path
    num_golden_tokens: int
    results: "tuple[TrialResult, ...]"
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, object]:
        """Return the report for programs, without the findings."""
        return {
            "folder": str(self.folder),
            "golden_tokens": self.num_golden_tokens,
            "results": [
                {
                    "engine": result.target.engine,
                    "device": result.target.device,
                    "settings": describe_way(result.target),
                    "verdict": result.verdict,
                    "detail": result.detail,
                    "load_s": result.load_s,
                    "answer_s": result.answer_s,
                    "remembered_failure": result.remembered,
                }
                for result in self.results
            ],
        }


def try_package(
    folder: Path,
    manifest: "Manifest",
    devices: "Sequence[DeviceReport]",
    providers: "Sequence[ProviderReport]",
    *,
    time_limit_s: float,
    bars: "StepBars",
) -> PackageReport:
    """Check a package's files and run its golden tokens in every way there is here.

    Args:
        folder: The package.
        manifest: Its manifest.
        devices: What OpenVINO lists.
        providers: What ONNX Runtime has.
        time_limit_s: Seconds for each run.
        bars: Shows what is being done.
    """
    from qwen_edge.runtime.devices.golden_trial import list_targets, run_target

    num_tokens = len(manifest.golden.token_ids)
    damage = _check_files(folder, manifest, bars)
    if damage is not None:
        return PackageReport(folder, num_tokens, (), (damage,))
    results = []
    for target in list_targets(folder, manifest, devices, providers):
        step = f"golden tokens: {target.engine}, {target.device}, {describe_way(target)}"
        if target.why_not is None:
            bars(step, 0, 0)
        results.append(run_target(folder, target, time_limit_s=time_limit_s))
        if target.why_not is None:
            bars(step, 1, 1)
    return PackageReport(folder, num_tokens, tuple(results), tuple(judge_results(folder, results)))


def _check_files(folder: Path, manifest: "Manifest", bars: "StepBars") -> Finding | None:
    """Hash the files, unless a record says that they were; return what is wrong with them."""
    from qwen_edge.runtime.devices.golden_trial import find_cache_dir
    from qwen_edge.runtime.verified import check_verified

    total = sum(facts.size_bytes for facts in manifest.files.values())
    hashed = 0

    def report(num_bytes: int) -> None:
        nonlocal hashed
        hashed += num_bytes
        bars("check files", hashed, total)

    try:
        check_verified(folder, manifest, cache_dir=find_cache_dir(), progress=report)
    except PackageError as error:
        return Finding("problem", error.problem.rstrip("."), error.fix.rstrip("."))
    return None


def describe_way(target: "TrialTarget") -> str:
    """Return which settings a run has, for a table."""
    return "as sealed" if target.way == "sealed" else "as `run` does"


def judge_results(folder: Path, results: "Sequence[TrialResult]") -> list[Finding]:
    """Return what the results of all runs mean for whoever wants to use the package."""
    right = [result for result in results if result.verdict == "right"]
    usable = [result for result in right if result.target.way == "device"]
    findings = [_judge_fault(folder, result, usable) for result in results if result.is_fault]
    findings += [_judge_memory(result) for result in usable if result.remembered is not None]
    if usable:
        names = ", ".join(f"{result.target.device} ({result.target.engine})" for result in usable)
        findings.append(Finding("ok", f"the package answers as it was sealed on {names}"))
    elif not findings:
        reasons = {result.detail: None for result in results}
        findings.append(
            Finding(
                "problem",
                f"nothing here can run the package: {'; '.join(reasons)}",
                "see the devices above, or export for this machine with --format both",
            )
        )
    return findings


def _judge_memory(result: "TrialResult") -> Finding:
    """Tell of a device that failed once, is passed over since, and answers rightly now."""
    return Finding(
        "note",
        f"{result.target.device} answers rightly now, but `run` passes it over for what happened "
        f"earlier: {(result.remembered or '').rstrip('.')}",
        f"delete {result.record}",
    )


def _judge_fault(folder: Path, result: "TrialResult", usable: "Sequence[TrialResult]") -> Finding:
    target = result.target
    where = f"{target.device} with {target.engine}"
    words: Mapping[str, str] = {
        "wrong": "does not answer as the package was sealed",
        "refused": "refuses the package",
        "crashed": "ends the process that runs the package",
        "hung": "does not come back",
    }
    others = [entry for entry in usable if entry.target.device != target.device]
    if target.way == "sealed":
        fix = (
            f"qwen-edge verify {folder}; if the files are intact, reinstall the engine: "
            "pip install --force-reinstall "
            + ("openvino" if target.format == "openvino" else "onnxruntime")
        )
    elif others:
        fix = f"qwen-edge run {folder} --device {others[0].target.device}"
        if target.device in ("GPU", "NPU"):
            fix += ", and update the driver"
    else:
        fix = f"qwen-edge verify {folder}; then report this with the output of doctor --json"
    return Finding("problem", f"{where} {words[result.verdict]}: {result.detail}", fix)
