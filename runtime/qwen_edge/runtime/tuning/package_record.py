"""Writing a result into a package, which stays a whole package at every instant.

`tuned.json` is listed in the manifest like every other file. Three steps: the manifest stops
listing it, the file is exchanged, the manifest lists it again. Between them it is a file that
nobody lists and nobody opens, which `package.py` lets pass by its name.
"""

from dataclasses import replace
from pathlib import Path

from qwen_edge.errors import PackageError, UsageError
from qwen_edge.runtime.files.opening import open_inside
from qwen_edge.runtime.files.replacing import write_atomically
from qwen_edge.runtime.manifest import MANIFEST_NAME, Manifest
from qwen_edge.runtime.package import TUNED_NAME, check_sizes, hash_file, read_manifest
from qwen_edge.runtime.schema import SchemaError
from qwen_edge.runtime.tuning.machine import make_key
from qwen_edge.runtime.tuning.result import Tuned, TunedFile
from qwen_edge.runtime.tuning.stored import read_results

_MOST_RESULTS = 32


def write_into_package(folder: Path, tuned: Tuned) -> None:
    """Add a result to a package, in the place of one for the same device of the same machine.

    Args:
        folder: The package folder.
        tuned: Measured with its files.

    Raises:
        PackageError: The folder is not as it was sealed, or holds another model.
        UsageError: Nothing may be written there.
        ResourceError: The disk is full, or refuses to be written.

    State:
        The package's hash is another afterwards; the next load hashes its files again.
    """
    manifest = read_manifest(folder)
    check_sizes(folder, manifest)
    results = (tuned, *_others(folder, manifest, tuned))[:_MOST_RESULTS]
    files = {name: facts for name, facts in manifest.files.items() if name != TUNED_NAME}
    try:
        if TUNED_NAME in manifest.files:
            _write_manifest(folder, replace(manifest, files=files))
        path = folder / TUNED_NAME
        write_atomically(path, lambda stream: stream.write(TunedFile(results).to_bytes()))
        files[TUNED_NAME] = hash_file(path)
        _write_manifest(folder, replace(manifest, files=files))
    except UsageError as error:
        raise UsageError(
            f"The package cannot be changed: {error.problem}",
            "leave out --write-package; the result is kept in your own settings",
            path=str(folder),
        ) from error


def _others(folder: Path, manifest: Manifest, tuned: Tuned) -> list[Tuned]:
    """Return the results that the package holds already, but for those that are replaced."""
    if TUNED_NAME not in manifest.files:
        return []
    try:
        found = read_results(open_inside(folder, TUNED_NAME))
    except (OSError, SchemaError, PackageError):
        return []  # of no use to anybody
    key = make_key(tuned.package_hash, tuned.device, tuned.machine)
    return [
        result
        for result in found
        if result.package_hash == tuned.package_hash
        and make_key(result.package_hash, result.device, result.machine) != key
    ]


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    text = manifest.to_bytes()
    write_atomically(folder / MANIFEST_NAME, lambda stream: stream.write(text))
