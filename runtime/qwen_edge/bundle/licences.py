"""Licence texts: where they are for parts that have none with them.

Texts are copied as their makers published them. What a licence is called is what its makers say;
nothing is guessed, and a text that is nowhere to be found is named as missing.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.bundle.contents import UNKNOWN_LICENCE, LicenceText, Part
from qwen_edge.runtime.files.opening import inside
from qwen_edge.runtime.files.writing import make_folder, write_file, write_text
from qwen_edge.runtime.licence_names import is_licence_text
from qwen_edge.runtime.manifest import Manifest

FOLDER = "licences"
_APACHE = re.compile(r"apache.{0,20}(?:2\.0|software license)", re.IGNORECASE)
_COMMON = re.compile(r"/usr/share/common-licenses/([A-Za-z0-9.+-]*[A-Za-z0-9+])")
# How a library's file name begins → what it is called, and its licence by its own documentation.
_LIBRARIES = {
    "libstdc++": ("GCC's C++ library", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    "libgcc_s": ("GCC's run-time library", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    "libgfortran": ("GCC's Fortran library", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    "libpython": ("Python", "PSF-2.0"),
    "libcrypto.so.3": ("OpenSSL", "Apache-2.0"),
    "libssl.so.3": ("OpenSSL", "Apache-2.0"),
    "libz.so": ("zlib", "Zlib"),
    "libffi": ("libffi", "MIT"),
    "libexpat": ("Expat", "MIT"),
    "libmpdec": ("mpdecimal", "BSD-2-Clause"),
}


@dataclass(frozen=True)
class SystemPackage:
    """What this system's package manager says of a file.

    Args:
        name: The package it belongs to.
        version: That package's.
        texts: Its copyright file, and the common licences that this names.
    """

    name: str
    version: str | None
    texts: tuple[LicenceText, ...]


def describe_library(name: str) -> tuple[str, str]:
    """Return what a library of the system is called, and its licence or "unknown".

    Args:
        name: Its file name.
    """
    for start, facts in _LIBRARIES.items():
        if name.startswith(start):
            return facts
    return name.split(".so")[0], UNKNOWN_LICENCE


def find_system_package(path: Path, root: Path = Path("/")) -> SystemPackage | None:
    """Return the Debian package a file belongs to; None on other systems, or where none has it.

    Args:
        path: The file, with links followed.
        root: Instead of the system's own root, for tests.
    """
    aliases = {str(path), str(path).removeprefix("/usr"), f"/usr{path}"}
    for listing in sorted((root / "var/lib/dpkg/info").glob("*.list")):
        lines = listing.read_text(encoding="utf-8", errors="replace").splitlines()
        if aliases.isdisjoint(lines):
            continue
        name = listing.name.removesuffix(".list").split(":")[0]
        texts = _read_debian_texts(name, root)
        return SystemPackage(name, _read_debian_version(name, root), texts)
    return None


def _read_debian_texts(name: str, root: Path) -> tuple[LicenceText, ...]:
    try:
        content = (root / "usr/share/doc" / name / "copyright").read_bytes()
    except OSError:
        return ()
    texts = [LicenceText(f"{name}-copyright.txt", content)]
    for common in sorted(set(_COMMON.findall(content.decode("utf-8", "replace")))):
        path = root / "usr/share/common-licenses" / common
        if path.is_file():
            texts.append(LicenceText(f"{common}.txt", path.read_bytes()))
    return tuple(texts)


def _read_debian_version(name: str, root: Path) -> str | None:
    try:
        status = (root / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for paragraph in status.split("\n\n"):
        if paragraph.startswith(f"Package: {name}\n"):
            found = re.search(r"^Version: (.+)$", paragraph, re.MULTILINE)
            return found[1] if found else None
    return None


def is_apache(licence: str) -> bool:
    """Return whether a licence is Apache's, version 2, by what its makers call it."""
    return _APACHE.search(licence) is not None


def describe_model_licence(
    manifest: Manifest, folder: Path, apache: bytes | None
) -> tuple[LicenceText, ...]:
    """Return what is said of a model's licence: its source's own words, and its own texts.

    Args:
        manifest: The package's.
        folder: The package in the bundle.
        apache: The text of the Apache licence, given with models that are under it.
    """
    source = manifest.source
    lines = [
        f"The model {manifest.name!r} was made from {source.id!r}"
        + (f", commit {source.revision}." if source.revision else "."),
        f"Licence, as its source states it: {source.license}",
        *([f"Its name: {source.license_name}"] if source.license_name else []),
        *([f"Its text: {source.license_link}"] if source.license_link else []),
        *([f"Made for or from: {source.base_model}"] if source.base_model else []),
        *(f"Merged into it: {adapter.name}" for adapter in manifest.source.adapters),
    ]
    if source.license == UNKNOWN_LICENCE:
        lines.append("Its source does not say under which licence it may be used. Ask its makers.")
    texts = [LicenceText("LICENCE.txt", ("\n".join(lines) + "\n").encode())]
    own = [name for name in manifest.files if is_licence_text(name)]
    texts += [LicenceText(f"source/{name}", (folder / name).read_bytes()) for name in own]
    if apache is not None and not own and is_apache(source.license):
        texts.append(LicenceText("Apache-2.0.txt", apache))
    return tuple(texts)


def write_licences(root: Path, parts: list[Part]) -> list[str]:
    """Write the texts of all parts, one folder for each, with a list of them.

    Args:
        root: The bundle's folder.
        parts: All of them.

    Returns:
        Names of the parts that have no text.
    """
    missing, rows = [], []
    for part in parts:
        folder = inside(root / FOLDER, part.name)
        for text in part.texts:
            path = inside(folder, text.name)
            make_folder(path.parent)
            write_file(path, text.content)
        if not part.texts:
            missing.append(part.name)
        place = f"see {part.name}/" if part.texts else "its makers give no text with it"
        rows.append(f"{part.name} {part.version or ''}: {part.licence}; {place}")
    title = "What this folder is made of, and under which licence each part is:\n\n"
    make_folder(root / FOLDER)
    write_text(root / FOLDER / "README.txt", title + "\n".join(rows) + "\n")
    return missing
