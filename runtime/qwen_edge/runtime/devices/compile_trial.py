"""Compiling a package for a device in a process of its own, once per driver, with a time limit.

Compilers of GPUs and NPUs abort, never end, or make something that answers wrongly. The first
time a package meets a device, driver, engine or set of properties, a child compiles it and gives
its first golden tokens; how that went is remembered, a failure too, so that nobody waits for it
twice. What an NPU's compiler made is kept: this process then only loads it. `trial_process.py`
runs the child, `compile_cache.py` keeps the result.
"""

import dataclasses
import importlib.metadata
import json
import logging
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edge.errors import (
    DeviceError,
    EdgeError,
    MissingExtraError,
    PackageError,
    ParityError,
    ResourceError,
)
from qwen_edge.runtime.devices.compile_cache import (
    discard_cache_folder,
    prepare_cache_folder,
    seal_cache_folder,
)
from qwen_edge.runtime.devices.trial_process import (
    EXIT_DAMAGED,
    EXIT_MISSING,
    EXIT_NO_MEMORY,
    EXIT_REFUSED,
    EXIT_WRONG_ANSWER,
    KILLED,
    ChildEnd,
    be_expendable,
    run_trial,
)
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.environment import read_environment
from qwen_edge.runtime.golden import follow_tokens
from qwen_edge.runtime.manifest import (
    MODEL_BIN,
    MODEL_XML,
    DeviceSettings,
    GoldenTokens,
    Manifest,
)
from qwen_edge.runtime.package import package_hash
from qwen_edge.runtime.records import Record, read_finding, read_stamps, write_record
from qwen_edge.runtime.schema import read_dataclass, to_json

_LOGGER = logging.getLogger(__name__)
COMPILE_TIME_LIMIT_S = 600.0
"""Qwen3-4B for prompts of 8,192 tokens took 125 s on an NPU (openvino pull request 31917)."""
TRUSTED_DEVICES = ("CPU",)
"""Devices whose compiler is part of the engine that was tested: they are not tried first."""

_KIND = "compile-trials"
_PROBLEM, _WRONG = "problem", "wrong"
_DRIVER_PROPERTIES = {"NPU": "NPU_DRIVER_VERSION", "GPU": "GPU_DRIVER_VERSION"}
# As for providers of ONNX Runtime: later tokens may differ for reasons that are no fault, and a
# wrong token lies 0.3 to 1.3 of the distance from the largest logit to their mean below.
_NUM_CHECKED_TOKENS = 4
_TOLERANCE = 0.1
_ELSEWHERE = "run with --device CPU, or look for the cause with `qwen-edge doctor`."


@dataclass(frozen=True)
class CompileTask:
    """What a child is to do.

    Args:
        folder: The folder with the IR; needs no manifest.
        settings: What to compile it with.
        vocab_size: Of the model.
        golden: What it should answer; None to compile it only.
        cache_folder: For CACHE_DIR; None for no cache.
    """

    folder: str
    settings: DeviceSettings
    vocab_size: int
    golden: GoldenTokens | None = None
    cache_folder: str | None = None


def try_compile(
    folder: Path,
    manifest: Manifest,
    settings: DeviceSettings,
    *,
    time_limit_s: float = COMPILE_TIME_LIMIT_S,
) -> None:
    """Compile a package for a device in a child process, unless that is on record.

    Args:
        folder: The package folder, already checked.
        manifest: The folder's manifest.
        settings: The device's, with the properties it will run with.
        time_limit_s: Seconds after which the child is ended.

    Raises:
        DeviceError: The device refused the model, its compiler crashed or took too long; or it
            did so earlier. `facts` have `device`, `returncode` (None after the time limit),
            `last_line` and `is_remembered`.
        ParityError: What was compiled gives other tokens than the package was sealed with.
        PackageError: The model's files cannot be read.
        ResourceError: Memory did not suffice. Not remembered.

    State:
        Writes a record, and what was compiled, to the user's cache folder. Where no child can be
        started nothing is tried or remembered.
    """
    if settings.device in TRUSTED_DEVICES:
        return
    cache_dir = read_environment().cache_dir
    record = make_record(folder, settings)
    finding = read_finding(record, cache_dir)
    if finding is not None:
        if _PROBLEM in finding:
            raise _remembered(finding, settings.device, record, cache_dir)
        return
    _LOGGER.info(
        "Compiling for %s in a process of its own; this happens once per driver, and may take "
        "minutes",
        settings.device,
    )
    cache_folder = find_cache_folder(folder, settings)
    started_s = time.monotonic()
    end = run_task(_make_task(folder, manifest, settings, cache_folder), time_limit_s=time_limit_s)
    if end is None or not end.is_well:
        discard_cache_folder(cache_folder)
    if end is None:
        return
    _LOGGER.info("Compiled for %s in %.1f s", settings.device, time.monotonic() - started_s)
    if end.is_well:
        seal_cache_folder(cache_folder)
        write_record(record, cache_dir)
        return
    error = explain(end, settings.device)
    if isinstance(error, DeviceError | ParityError) and not end.was_stopped:
        found = {_PROBLEM: error.problem}
        if isinstance(error, ParityError):
            found[_WRONG] = "tokens"
        write_record(record, cache_dir, found)
    raise error


def _make_task(
    folder: Path, manifest: Manifest, settings: DeviceSettings, cache_folder: Path | None
) -> CompileTask:
    golden = manifest.golden
    return CompileTask(
        str(folder),
        settings,
        manifest.model.vocab_size,
        dataclasses.replace(golden, token_ids=golden.token_ids[:_NUM_CHECKED_TOKENS]),
        None if cache_folder is None else str(cache_folder),
    )


def run_task(task: CompileTask, *, time_limit_s: float) -> ChildEnd | None:
    """Carry a task out in a child process; None where none can be started."""
    return run_trial(__name__, [json.dumps(to_json(task))], time_limit_s=time_limit_s)


def explain(end: ChildEnd, device: str) -> EdgeError:
    """Return what it means that a child did not end well."""
    code, line = end.returncode, end.last_line
    facts: dict[str, Any] = {
        "device": device,
        "returncode": code,
        "last_line": line,
        "is_remembered": False,
    }
    if code == EXIT_MISSING:
        return MissingExtraError(f"{line}.", "pip install qwen-edge", package="openvino")
    if code == EXIT_DAMAGED:
        return PackageError(f"{line}.", "check the package with `qwen-edge verify`.", **facts)
    if code == EXIT_NO_MEMORY:
        return ResourceError(f"{line}.", "close other programs, or use a smaller model.", **facts)
    if code == EXIT_WRONG_ANSWER:
        return ParityError(f"{line}.", _ELSEWHERE, **facts)
    if code == EXIT_REFUSED:
        return DeviceError(f"{line}.", _ELSEWHERE, **facts)
    problem = f"Device {device!r} did not compile the model: {end.describe()}"
    if code == KILLED:
        return ResourceError(
            f"{problem}.", "close other programs, or use a smaller model.", **facts
        )
    said = f": {line}" if line and code is not None else ""
    return DeviceError(f"{problem}{said}.", _ELSEWHERE, **facts)


def find_cache_folder(folder: Path, settings: DeviceSettings) -> Path | None:
    """Return the folder for CACHE_DIR of this package on this device; None for no cache.

    State:
        See `prepare_cache_folder`.
    """
    facts = _facts(settings)
    sealed = package_hash(folder)
    return prepare_cache_folder(read_environment().cache_dir, sealed, settings.device, facts)


def make_record(folder: Path, settings: DeviceSettings) -> Record:
    """Return what a trial's finding holds for."""
    facts = {**_facts(settings), "package_hash": package_hash(folder)}
    properties = facts["properties"]
    stamps = read_stamps(folder, (MODEL_XML, MODEL_BIN))
    return Record(_KIND, folder, facts, stamps, f"{settings.device} {properties}")


def _facts(settings: DeviceSettings) -> dict[str, str]:
    """Return all that the result of compiling depends on besides the package."""
    return {
        "device": settings.device,
        "driver": probe_driver_version(settings.device),
        "openvino": str(import_openvino().__version__),
        "qwen-edge": importlib.metadata.version("qwen-edge"),
        "machine": platform.machine(),
        "properties": json.dumps(dict(settings.properties), sort_keys=True),
    }


def probe_driver_version(device: str) -> str:
    """Return the version of a device's driver as OpenVINO tells it, or an empty text.

    Args:
        device: "CPU", "GPU", "GPU.1" or "NPU".
    """
    name = _DRIVER_PROPERTIES.get(device.partition(".")[0])
    if name is None:
        return ""
    try:
        return str(import_openvino().Core().get_property(device, name))
    except (RuntimeError, TypeError, ValueError) as error:
        _LOGGER.debug("%s does not tell its driver's version: %s", device, error)
        return ""


def _remembered(
    finding: Mapping[str, str], device: str, record: Record, cache_dir: Path | None
) -> EdgeError:
    assert cache_dir is not None  # or there would be no finding
    kind = ParityError if _WRONG in finding else DeviceError
    return kind(
        f"{finding[_PROBLEM]} That was found out earlier, and holds until the package, the driver "
        "or OpenVINO changes.",
        f"run with --device CPU, or update the driver;\nto try it again as it is, delete "
        f"{str(record.path(cache_dir))!r}",
        device=device,
        is_remembered=True,
    )


def _carry_out(task: CompileTask) -> None:
    """Compile and run a model; what is wrong is raised, or ends the process."""
    # Imported here: it has this module at its top.
    from qwen_edge.runtime.devices.openvino_opening import compile_backend

    cache_folder = None if task.cache_folder is None else Path(task.cache_folder)
    backend = compile_backend(
        Path(task.folder),
        task.settings,
        vocab_size=task.vocab_size,
        cache_folder=cache_folder,
    )
    golden = task.golden
    if golden is None:
        return
    found = follow_tokens(backend, golden.prompt_ids, golden.token_ids, _TOLERANCE)
    if found != golden.token_ids:
        raise ParityError(
            f"Device {task.settings.device!r} computes wrongly here: to the package's own test "
            f"prompt it answers with tokens {found}, expected {golden.token_ids}."
        )


def main(arguments: Sequence[str]) -> int:
    """Be the child: carry out the task that is the only argument, as JSON.

    Returns:
        The exit code: 0 when it went well. The reason for another is the last line on stderr.
    """
    logging.basicConfig(format="%(message)s")
    be_expendable()
    try:
        _carry_out(read_dataclass(CompileTask, json.loads(arguments[0])))
    except EdgeError as error:
        _LOGGER.error("%s", error.problem)
        return _exit_code(error)
    return 0


def _exit_code(error: EdgeError) -> int:
    codes: dict[type[EdgeError], int] = {
        MissingExtraError: EXIT_MISSING,
        PackageError: EXIT_DAMAGED,
        ResourceError: EXIT_NO_MEMORY,
        ParityError: EXIT_WRONG_ANSWER,
    }
    return codes.get(type(error), EXIT_REFUSED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
