"""The list of a bundle's parts: what was placed, with versions, licences, texts and hashes."""

from pathlib import Path

from qwen_edge.bundle.contents import MODEL_FOLDER, UNKNOWN_LICENCE, LicenceText, Part
from qwen_edge.bundle.distributions import LEFT_OUT, PROJECT, Distribution
from qwen_edge.bundle.licences import (
    SystemPackage,
    describe_library,
    describe_model_licence,
    find_system_package,
    is_apache,
)
from qwen_edge.bundle.program_files import INTERPRETER, Placed, Program
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.package import SIGNATURE_NAME, hash_file


def describe_parts(
    manifest: Manifest, program: Program, placed: Placed, root: Path, launchers: list[str]
) -> list[Part]:
    """Return the parts, the project first and the model last.

    Args:
        manifest: The package's.
        program: What the bundle was made of.
        placed: What was put where.
        root: The bundle's folder.
        launchers: Names of the files that are started; they are the project's own.
    """
    project = program.distributions[0]
    apache = next((text.content for text in project.texts), None)
    own = {name: hash_file(root / name).sha256 for name in launchers}
    parts = [
        _describe_distribution(entry, placed, root, apache, own if entry is project else {})
        for entry in program.distributions
    ]
    parts.append(_describe_interpreter(program, placed, root))
    parts += _describe_libraries(placed, root)
    model = {f"{MODEL_FOLDER}/{name}": facts.sha256 for name, facts in manifest.files.items()}
    signature = f"{MODEL_FOLDER}/{SIGNATURE_NAME}"
    if (root / signature).is_file():
        model[signature] = hash_file(root / signature).sha256
    parts.append(
        Part(
            MODEL_FOLDER,
            "model",
            manifest.source.revision,
            manifest.source.license,
            model,
            describe_model_licence(manifest, root / MODEL_FOLDER, apache),
            about=f"{manifest.name}, made from {manifest.source.id}",
        )
    )
    return parts


def _hash(placed: Placed, part: str, root: Path) -> dict[str, str]:
    own = {name: hash_file(root / name).sha256 for name in placed.files.get(part, ())}
    return {**own, **placed.zipped.get(part, {})}


def _describe_distribution(
    entry: Distribution, placed: Placed, root: Path, apache: bytes | None, own: dict[str, str]
) -> Part:
    texts = entry.texts
    if not texts and apache is not None and is_apache(entry.licence):
        # The text is the same for everybody; its makers left it out of their wheel.
        texts = (LicenceText("Apache-2.0.txt", apache),)
    missing = [name for name in entry.requirements if name in LEFT_OUT]
    return Part(
        entry.name,
        "program" if entry.name == PROJECT else "distribution",
        entry.version,
        entry.licence,
        {**_hash(placed, entry.name, root), **own},
        texts,
        purl=f"pkg:pypi/{entry.name}@{entry.version}",
        about=f"Without {' and '.join(missing)}" if missing else None,
    )


def _describe_interpreter(program: Program, placed: Placed, root: Path) -> Part:
    interpreter = program.interpreter
    texts: tuple[LicenceText, ...] = ()
    if interpreter.licence is not None:
        texts = (LicenceText("LICENSE.txt", interpreter.licence.read_bytes()),)
    else:
        package = find_system_package(interpreter.program)
        texts = package.texts if package is not None else ()
    return Part(
        INTERPRETER,
        "interpreter",
        interpreter.version,
        "PSF-2.0",
        _hash(placed, INTERPRETER, root),
        texts,
        purl=f"pkg:generic/python@{interpreter.version}",
    )


def _describe_libraries(placed: Placed, root: Path) -> list[Part]:
    """Return one part for each package of this system that libraries are from."""
    found: dict[str, tuple[SystemPackage | None, str, dict[str, str]]] = {}
    for library in placed.libraries:
        package = find_system_package(library.source)
        title, licence = describe_library(library.name)
        name = package.name if package is not None else title
        digests = found.setdefault(name, (package, licence, {}))[2]
        digests.update(_hash(placed, library.name, root))
    return [
        Part(
            name,
            "library",
            package.version if package is not None else None,
            licence or UNKNOWN_LICENCE,
            digests,
            package.texts if package is not None else (),
            about=f"{describe_library(Path(next(iter(digests))).name)[0]}, of this system",
        )
        for name, (package, licence, digests) in sorted(found.items())
    ]
