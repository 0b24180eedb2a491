"""Running a package's golden tokens on every device and engine here, each in its own process.

What a person wants to know of a machine is which of its devices answer rightly, and a device that
hangs or crashes must not end the asking. A child opens the package as `load` does, on one device
and with the package's settings for it, follows the recorded answer, and says by its exit code and
its last line how it went. How a child is run is in `trial_process.py`; what golden tokens are, in
`golden.py`.
"""

import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwen_edge.errors import (
    DeviceError,
    EdgeError,
    MissingExtraError,
    ParityError,
    ResourceError,
    UsageError,
)
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.profiles.providers import load_providers
from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.backends.onnx_session import CPU_PROVIDER
from qwen_edge.runtime.devices.compile_trial import TRUSTED_DEVICES, make_record
from qwen_edge.runtime.devices.probing import KNOWN_DEVICES, DeviceReport
from qwen_edge.runtime.devices.providers import ProviderReport
from qwen_edge.runtime.devices.trial_process import (
    EXIT_DAMAGED,
    EXIT_MISSING,
    EXIT_NO_ENGINE,
    EXIT_NO_MEMORY,
    EXIT_REFUSED,
    EXIT_WRONG_ANSWER,
    ChildEnd,
    be_expendable,
    run_trial,
)
from qwen_edge.runtime.environment import CACHE_DIR_VARIABLE, read_environment
from qwen_edge.runtime.golden import GOLDEN_TOLERANCES, follow_tokens, run_golden_tokens
from qwen_edge.runtime.manifest import FORMAT_ENGINES, DeviceSettings, FormatName, Manifest
from qwen_edge.runtime.package import read_manifest
from qwen_edge.runtime.records import read_finding
from qwen_edge.runtime.resources.memory import check_memory, estimate_memory
from qwen_edge.runtime.schema import parse_json, read_dataclass, to_json
from qwen_edge.runtime.tuning.stored import apply_tuned

_LOGGER = logging.getLogger(__name__)
Way = Literal["sealed", "device"]
Verdict = Literal["right", "wrong", "refused", "crashed", "hung", "not run"]
# A device's own settings round more than the sealed answer was made with: activations to int8,
# caches to 8 bits, sums in f16. The tolerance is what was measured for such rounding.
_ROUNDED_TOLERANCE = GOLDEN_TOLERANCES["onnx"]
_VERDICTS: dict[int, Verdict] = {
    0: "right",
    EXIT_WRONG_ANSWER: "wrong",
    EXIT_REFUSED: "refused",
    EXIT_DAMAGED: "refused",
    EXIT_MISSING: "not run",
    EXIT_NO_ENGINE: "not run",
    EXIT_NO_MEMORY: "not run",
}


@dataclass(frozen=True)
class TrialTarget:
    """One way to run a package here.

    Args:
        format: Which of the package's models.
        device: "CPU", "GPU", "NPU" or an execution provider of ONNX Runtime.
        way: "sealed" for the CPU with the arithmetic of the export; "device" for what `run` does.
        why_not: Why it cannot be tried; None where it can.
        settings: What OpenVINO is to compile with; None for ONNX Runtime and for "sealed".
    """

    format: FormatName
    device: str
    way: Way
    why_not: str | None = None
    settings: DeviceSettings | None = None

    @property
    def engine(self) -> str:
        """The engine, as a person knows it."""
        return FORMAT_ENGINES[self.format]


@dataclass(frozen=True)
class TrialResult:
    """What became of the golden tokens in one way.

    Args:
        target: What was run.
        verdict: "right" where all came as recorded; "not run" where nothing can be said.
        detail: What was wrong, or why it was not run; empty for "right".
        load_s: Seconds until the model was ready; None where it was not.
        answer_s: Seconds for the prompt and all golden tokens; None where they did not come.
        remembered: Why `run` passes the device over, found at an earlier start; else None.
        record: The file in which that is remembered.
    """

    target: TrialTarget
    verdict: Verdict
    detail: str = ""
    load_s: float | None = None
    answer_s: float | None = None
    remembered: str | None = None
    record: Path | None = None

    @property
    def is_fault(self) -> bool:
        """True where a device that is here does not do what it should."""
        return self.verdict in ("wrong", "refused", "crashed", "hung")


@dataclass(frozen=True)
class TrialTask:
    """What a child is told: a target in a folder, and where records are kept."""

    folder: str
    format: FormatName
    device: str
    way: Way
    settings: DeviceSettings | None = None
    cache_dir: str | None = None


def list_targets(
    folder: Path,
    manifest: Manifest,
    devices: Sequence[DeviceReport],
    providers: Sequence[ProviderReport],
) -> tuple[TrialTarget, ...]:
    """Return every way to run a package on the devices here, with why the others cannot be tried.

    Args:
        folder: The package.
        manifest: Its manifest.
        devices: What OpenVINO lists, and why it does not list the others.
        providers: What ONNX Runtime has, and why not the others.
    """
    targets: list[TrialTarget] = []
    if "openvino" in manifest.formats:
        absent = {report.name: report.reason for report in devices if report.reason is not None}
        why_no_cpu = absent.get("CPU")
        targets.append(TrialTarget("openvino", "CPU", "sealed", why_no_cpu))
        for entry in manifest.devices:
            settings = _find_settings(folder, manifest, entry)
            why_not = absent.get(entry.device)
            targets.append(TrialTarget("openvino", entry.device, "device", why_not, settings))
        listed = [entry.device for entry in manifest.devices]
        for name in KNOWN_DEVICES:
            if name not in listed and name not in absent:
                why = "here, but the package has no settings for it; export with a profile that has"
                targets.append(TrialTarget("openvino", name, "device", why))
    if "onnx" in manifest.formats:
        targets += _list_providers(manifest, providers)
    return tuple(targets)


def _find_settings(folder: Path, manifest: Manifest, entry: DeviceSettings) -> DeviceSettings:
    """Return what `run` would compile with: the package's settings, or what was tuned here."""
    try:
        return apply_tuned(folder, manifest, entry)[0]
    except UsageError as error:  # a variable that cannot be meant, which `doctor` reports
        _LOGGER.debug("The package's own settings are tried: %s", error)
        return entry


def find_cache_dir() -> Path | None:
    """Return the user's cache folder; None where there is none, or its variable is wrong."""
    try:
        return read_environment().cache_dir
    except UsageError:
        return None


def _list_providers(manifest: Manifest, providers: Sequence[ProviderReport]) -> list[TrialTarget]:
    """Return the providers that are here; those that are not are no news, but the CPU's is."""
    is_portable = manifest.onnx is not None and manifest.onnx.is_portable
    verdicts = {entry.name: entry.verdict(is_portable) for entry in load_providers()}
    targets = []
    cpu = next((report for report in providers if report.name == CPU_PROVIDER), None)
    if cpu is not None:
        targets.append(TrialTarget("onnx", "CPU", "sealed", cpu.reason))
    for report in providers:
        if report.reason is not None and report != cpu:
            continue
        verdict = verdicts[report.name]
        why_not = report.reason or (verdict.reason if verdict.use == "never" else None)
        targets.append(TrialTarget("onnx", report.name, "device", why_not))
    return targets


def run_target(folder: Path, target: TrialTarget, *, time_limit_s: float) -> TrialResult:
    """Run the golden tokens in one way, in a child process.

    Args:
        folder: The package; its files should have been checked.
        target: What to run.
        time_limit_s: Seconds after which the child is ended. An NPU may compile for minutes.

    State:
        Changes nothing here; the child may write records to the user's cache folder.
    """
    if target.why_not is not None:
        return TrialResult(target, "not run", target.why_not.rstrip("."))
    cache_dir = find_cache_dir()
    task = TrialTask(
        str(folder),
        target.format,
        target.device,
        target.way,
        target.settings,
        None if cache_dir is None else str(cache_dir),
    )
    end = run_trial(__name__, [json.dumps(to_json(task))], time_limit_s=time_limit_s)
    if end is None:
        return TrialResult(target, "not run", "no process can be started here")
    result = _read_end(target, end)
    return _add_remembered(folder, result, cache_dir)


def _add_remembered(folder: Path, result: TrialResult, cache_dir: Path | None) -> TrialResult:
    """Add what an earlier start found out about this package on this device."""
    settings = result.target.settings
    if settings is None or cache_dir is None or settings.device in TRUSTED_DEVICES:
        return result
    try:
        record = make_record(folder, settings)
    except EdgeError as error:  # the files changed meanwhile
        _LOGGER.debug("Nothing is looked up: %s", error)
        return result
    problem = (read_finding(record, cache_dir) or {}).get("problem")
    if problem is None:
        return result
    return dataclasses.replace(result, remembered=problem, record=record.path(cache_dir))


def _read_end(target: TrialTarget, end: ChildEnd) -> TrialResult:
    if end.returncode is None:
        return TrialResult(target, "hung", f"not done after {end.time_limit_s:g} s")
    verdict = _VERDICTS.get(end.returncode)
    if verdict is None:
        said = f": {end.last_line}" if end.last_line else ""
        how = end.describe().removeprefix("a process that tried it first ")
        return TrialResult(target, "crashed", f"it {how}{said}")
    told = _parse_line(end.last_line)
    detail = "" if verdict == "right" else str(told.get("problem") or end.last_line)
    return TrialResult(
        target, verdict, detail, load_s=told.get("load_s"), answer_s=told.get("answer_s")
    )


def _parse_line(line: str) -> dict[str, Any]:
    """Return what the child said in JSON; empty where an engine had the last word."""
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def main(arguments: Sequence[str]) -> int:
    """Be the child: a `TrialTask` in JSON is the only argument.

    Returns:
        The exit code: 0 when the answer was right. The last line on stderr says more.
    """
    logging.basicConfig(format="%(message)s")
    be_expendable()
    task = read_dataclass(TrialTask, parse_json(arguments[0].encode("utf-8")))
    if task.cache_dir is not None:
        os.environ[CACHE_DIR_VARIABLE] = task.cache_dir  # few variables reach a child
    try:
        return _answer(task)
    except EdgeError as error:
        _LOGGER.error("%s", error.problem.rstrip("."))
        return _find_exit_code(error)


def _find_exit_code(error: EdgeError) -> int:
    if isinstance(error, MissingExtraError):
        return EXIT_MISSING
    if isinstance(error, ResourceError):
        return EXIT_NO_MEMORY
    if isinstance(error, ParityError):
        return EXIT_WRONG_ANSWER
    return EXIT_REFUSED if isinstance(error, DeviceError) else EXIT_DAMAGED


def _answer(task: TrialTask) -> int:
    """Run the golden tokens, write a line about it, and return the exit code."""
    folder = Path(task.folder)
    manifest = read_manifest(folder)
    golden = manifest.golden
    started_s = time.perf_counter()
    if task.way == "sealed":
        tokens = run_golden_tokens(folder, manifest, fmt=task.format)
        times = {"answer_s": time.perf_counter() - started_s}
    else:
        backend = _open(folder, manifest, task)
        loaded_s = time.perf_counter()
        try:
            tokens = follow_tokens(backend, golden.prompt_ids, golden.token_ids, _ROUNDED_TOLERANCE)
        finally:
            backend.close()
        times = {"load_s": loaded_s - started_s, "answer_s": time.perf_counter() - loaded_s}
    told: dict[str, object] = {name: round(value, 3) for name, value in times.items()}
    is_right = tokens == golden.token_ids
    if not is_right:
        told["problem"] = _describe_difference(tokens, golden.token_ids)
    _LOGGER.error("%s", json.dumps(told))
    return 0 if is_right else EXIT_WRONG_ANSWER


def _open(folder: Path, manifest: Manifest, task: TrialTask) -> Backend:
    """Make the model ready as `run` does, but from scratch: what was remembered is not asked."""
    if task.settings is None:
        from qwen_edge.runtime.devices.opening import open_format

        return open_format("onnx", folder, manifest, device=task.device, threads=None)[0]
    from qwen_edge.runtime.devices.openvino_opening import check_verdict, compile_backend

    check_verdict(manifest, task.device)
    estimate = estimate_memory(manifest, task.settings)
    check_memory(estimate, probe_hardware().available_memory_bytes, task.device)
    return compile_backend(folder, task.settings, vocab_size=manifest.model.vocab_size)


def _describe_difference(tokens: Sequence[int], expected: Sequence[int]) -> str:
    pairs = zip(tokens, expected, strict=True)
    index = next(i for i, (got, wanted) in enumerate(pairs) if got != wanted)
    return f"token {index + 1} of {len(expected)} is {tokens[index]}, expected {expected[index]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
