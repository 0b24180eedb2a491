"""Results that were kept: in the user's settings folder, or brought along by the package.

A result holds for the files of one model on one device of one machine, with one version of the
engine. What a person measured here goes before what a package brings. A file that cannot be used
costs speed, never an answer: it is passed over with a warning.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qwen_edge.errors import PackageError, UsageError
from qwen_edge.runtime.environment import CONFIG_DIR_VARIABLE, read_environment
from qwen_edge.runtime.files.opening import open_inside
from qwen_edge.runtime.files.replacing import write_atomically
from qwen_edge.runtime.files.writing import make_folder, remove_file
from qwen_edge.runtime.manifest import DeviceSettings, Manifest, PropertyValue
from qwen_edge.runtime.package import TUNED_NAME
from qwen_edge.runtime.schema import SchemaError
from qwen_edge.runtime.snapshots.binding import hash_files
from qwen_edge.runtime.tuning.candidate import (
    PREFILL_CHUNK,
    TUNABLE,
    describe_changes,
    find_change_problem,
)
from qwen_edge.runtime.tuning.machine import describe_engine, describe_machine, make_key
from qwen_edge.runtime.tuning.result import MachineFacts, Tuned, TunedFile

_LOGGER = logging.getLogger(__name__)
_FOLDER = "tuned"
_MAX_BYTES = 1 << 20  # a result has some 10 kB
_TUNE_AGAIN = "run `qwen-edge tune` again"


def apply_tuned(
    folder: Path, manifest: Manifest, settings: DeviceSettings
) -> tuple[DeviceSettings, str | None]:
    """Lay what was tuned on this machine over a package's settings.

    Args:
        folder: The package folder, checked.
        manifest: Its manifest.
        settings: The package's for one device.

    Returns:
        The settings to use, and a sentence about where they are from; None where nothing was
        tuned. Results for another version of the engine are not used, and the sentence says so.

    Raises:
        UsageError: The environment names a settings folder that cannot be meant.
    """
    settings_dir = read_environment().settings_dir
    is_brought = TUNED_NAME in manifest.files
    is_kept = settings_dir is not None and (settings_dir / _FOLDER).is_dir()
    if settings.device not in TUNABLE or not (is_brought or is_kept):
        return settings, None
    machine = describe_machine(settings.device)
    package_hash = hash_files(manifest, "openvino")
    found: list[tuple[Tuned, str]] = []
    if settings_dir is not None:
        kept = _read(_path_of(settings_dir, package_hash, settings.device, machine))
        found += [(result, "tuned here") for result in kept]
    if is_brought:
        found += [(result, "tuned, as the package brings it") for result in _brought(folder)]
    fitting = [
        (result, where)
        for result, where in found
        if (result.package_hash, result.device, result.machine)
        == (package_hash, settings.device, machine)
    ]
    engine = describe_engine()
    for result, where in fitting:
        if result.engine == engine:
            return _lay_over(result, settings, where)
    if fitting:
        return settings, f"tuned for {fitting[0][0].engine}, not {engine}: {_TUNE_AGAIN}"
    return settings, None


def make_settings_folder() -> Path:
    """Make the folder that results are kept in, and return it.

    Raises:
        UsageError: This system names none, or nothing may be written there.
    """
    path = _settings_dir() / _FOLDER
    try:
        make_folder(path)
    except OSError as error:
        raise UsageError(
            f"The settings folder {str(path)!r} cannot be made: {error.strerror or error}.",
            f"set {CONFIG_DIR_VARIABLE} to a folder that can be written",
            path=str(path),
        ) from error
    return path


def keep_tuned(tuned: Tuned) -> Path:
    """Write a result into the user's settings, in the place of an earlier one.

    Returns:
        Its file.

    Raises:
        UsageError: There is no settings folder, or nothing may be written there.
        ResourceError: The disk is full, or refuses to be written.
    """
    make_settings_folder()
    path = _path_of(_settings_dir(), tuned.package_hash, tuned.device, tuned.machine)
    write_atomically(path, lambda stream: stream.write(TunedFile((tuned,)).to_bytes()))
    return path


def find_kept(manifest: Manifest, device: str) -> Tuned | None:
    """Return what the user's settings hold for a package here, for any version of the engine."""
    settings_dir = read_environment().settings_dir
    if settings_dir is None:
        return None
    machine = describe_machine(device)
    kept = _read(_path_of(settings_dir, hash_files(manifest, "openvino"), device, machine))
    return kept[0] if kept else None


def forget_tuned(manifest: Manifest, device: str) -> bool:
    """Remove what the user's settings hold for a package on this machine.

    Returns:
        Whether there was something.

    Raises:
        UsageError: There is no settings folder, or the file cannot be removed.
    """
    machine = describe_machine(device)
    path = _path_of(_settings_dir(), hash_files(manifest, "openvino"), device, machine)
    try:
        return remove_file(path)
    except OSError as error:
        raise UsageError(
            f"{str(path)!r} cannot be removed: {error.strerror or error}.",
            "remove it by hand",
            path=str(path),
        ) from error


def read_results(path: Path) -> tuple[Tuned, ...]:
    """Return the results in a file.

    Raises:
        SchemaError: It is too large, no such file, or one of a newer version.
        OSError: It cannot be read.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise SchemaError([f"it has more than {_MAX_BYTES:,} bytes"])
    return TunedFile.from_bytes(path.read_bytes()).results


def _lay_over(
    tuned: Tuned, settings: DeviceSettings, where: str
) -> tuple[DeviceSettings, str | None]:
    problem = _find_problem(tuned.changes, settings)
    if problem is not None:
        _LOGGER.warning("Tuned settings are not used: %s. Fix: %s", problem, _TUNE_AGAIN)
        return settings, None
    if not tuned.changes:
        return settings, f"{where} for {tuned.workload.name}: the package's settings are best"
    properties = {k: v for k, v in tuned.changes.items() if k != PREFILL_CHUNK}
    chunk = int(tuned.changes.get(PREFILL_CHUNK, settings.prefill_chunk_tokens))
    changed = replace(
        settings,
        properties={**settings.properties, **properties},
        prefill_chunk_tokens=min(chunk, settings.max_context_tokens),
    )
    told = describe_changes(tuned.changes)
    return changed, f"{where} for {tuned.workload.name}: {told}, {tuned.gain:.2f} times as fast"


def _find_problem(changes: Mapping[str, PropertyValue], settings: DeviceSettings) -> str | None:
    problems = [find_change_problem(settings.device, name, changes[name]) for name in changes]
    return next((problem for problem in problems if problem is not None), None)


def _path_of(settings_dir: Path, package_hash: str, device: str, machine: MachineFacts) -> Path:
    return settings_dir / _FOLDER / f"{make_key(package_hash, device, machine)}.json"


def _settings_dir() -> Path:
    settings_dir = read_environment().settings_dir
    if settings_dir is None:
        raise UsageError(
            "This system names no folder for settings.",
            f"set {CONFIG_DIR_VARIABLE} to the absolute path of a folder",
            variable=CONFIG_DIR_VARIABLE,
        )
    return settings_dir


def _brought(folder: Path) -> tuple[Tuned, ...]:
    try:
        return _read(open_inside(folder, TUNED_NAME))
    except PackageError as error:
        _LOGGER.warning("Tuned settings are not used: %s", error.problem)
        return ()


def _read(path: Path) -> tuple[Tuned, ...]:
    """Return the results in a file; none where it does not exist or cannot be used."""
    try:
        return read_results(path)
    except FileNotFoundError:
        return ()
    except (OSError, SchemaError) as error:
        _LOGGER.warning("%s is not used: %s. Fix: %s", path, error, _TUNE_AGAIN)
        return ()
