"""Find and read the TOML files of the catalogs, and those that a person wrote.

Owns the step from a name or a path to a parsed table, and the refusals on the way. It knows
nothing of what the keys mean: `table.py` takes values out, `profile.py` and `recipe.py` give
them meaning.
"""

import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from qwen_edge.errors import UsageError, did_you_mean, format_bytes
from qwen_edge.profiles.table import TableReader

MAX_FILE_BYTES = 1_000_000  # a profile has 2 kB; more than this is some other file
MAX_NAME_CHARS = 64
OWN_FILE_REASON = "your profile file"


@dataclass(frozen=True)
class Catalog:
    """One folder of TOML files that ships with the package.

    Args:
        folder: Folder beside this module.
        noun: What one file describes, for messages.
        option: The command line's option that takes a name or a path.
        unknown_error: Raised when neither a name nor a file fits.
    """

    folder: str
    noun: str
    option: str
    unknown_error: type[UsageError]

    def names(self) -> tuple[str, ...]:
        """Return the names of all entries, sorted."""
        files = resources.files("qwen_edge.profiles").joinpath(self.folder).iterdir()
        stems = (file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))
        return tuple(sorted(stems))


@dataclass(frozen=True)
class TomlFile:
    """A parsed TOML file.

    Args:
        name: The catalog name, or the file's name without its ending.
        label: How to call the file in messages.
        is_own: True for a person's own file, False for one of the catalog.
        table: The parsed content.
    """

    name: str
    label: str
    is_own: bool
    table: dict[str, object]


def load_toml(catalog: Catalog, name_or_path: str | Path) -> TomlFile:
    """Read the catalog entry of this name, or the file at this path.

    A text with a path separator, or one that ends in `.toml`, is a path.

    Args:
        catalog: Where names are looked up.
        name_or_path: `core-ultra`, or `./my-laptop.toml`.

    Raises:
        UsageError: The catalog's `unknown_error` when there is nothing of this name or at this
            path; `UsageError` when the file cannot be read or is not TOML.
    """
    if _is_path(name_or_path):
        return _load_own(catalog, Path(name_or_path))
    name = str(name_or_path)
    names = catalog.names()
    if name not in names:
        raise _unknown_name(catalog, name, names)
    file = resources.files("qwen_edge.profiles").joinpath(catalog.folder, f"{name}.toml")
    label = f"{catalog.noun} {name!r} of the catalog"
    return TomlFile(name, label, False, _parse(file.read_bytes(), label))


def own_name(reader: TableReader, file: TomlFile, taken: tuple[str, ...]) -> str:
    """Return the name of an entry: its catalog name, its `name` key, or its file's name."""
    if not file.is_own:
        return file.name
    name = reader.plain_text("name") or file.name
    if name in taken:
        reader.problems.append(
            f"its name {name!r} belongs to the catalog. Write another one: name = 'my-{name}'"
        )
    return name


def name_problems(name: str) -> list[str]:
    """Return why a name is not fit for a manifest and a table, or an empty list."""
    if not name.strip() or len(name) > MAX_NAME_CHARS or not name.isprintable():
        return [f"name {name[:MAX_NAME_CHARS]!r} is not 1 to {MAX_NAME_CHARS} printable characters"]
    if re.search(r"[/\\]", name):
        return [f"name {name!r} has a path separator; write a plain name"]
    return []


def _is_path(name_or_path: str | Path) -> bool:
    if isinstance(name_or_path, Path):
        return True
    has_separator = "/" in name_or_path or "\\" in name_or_path
    return has_separator or name_or_path.lower().endswith(".toml")


def _unknown_name(catalog: Catalog, name: str, names: tuple[str, ...]) -> UsageError:
    hint = did_you_mean(name.lower(), names)
    fix = f"use one of: {', '.join(names)}"
    if _is_regular_file(Path(f"{name}.toml")):
        fix += f"\nor your own file: {catalog.option} ./{name}.toml"
    elif _is_regular_file(Path(name)):
        fix += f"\nor your own file: {catalog.option} ./{name}"
    problem = f"Unknown {catalog.noun} {name!r}.{hint}"
    return catalog.unknown_error(problem, fix, name=name, known=names)


def _is_regular_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or a NUL character
        return False


def _load_own(catalog: Catalog, path: Path) -> TomlFile:
    label = repr(str(path))
    if not _is_regular_file(path):
        raise _not_a_file(catalog, path)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        fix = "make the file readable for your user, or give another one"
        raise UsageError(f"{label} cannot be read: {reason}.", fix, path=str(path)) from exc
    if len(content) > MAX_FILE_BYTES:
        limit = format_bytes(MAX_FILE_BYTES)
        raise UsageError(
            f"{label} is larger than {limit}; a {catalog.noun} file has a few kB.",
            f"give the path of a {catalog.noun} in TOML",
            path=str(path),
        )
    return TomlFile(path.stem, label, True, _parse(content, label))


def _not_a_file(catalog: Catalog, path: Path) -> UsageError:
    """Say why `path` is no file: missing, a folder, or a device."""
    names = catalog.names()
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError):
        is_folder, exists = False, False
    if is_folder:
        what = "is a folder, not a TOML file"
    elif exists:
        what = "is not a regular file"
    else:
        what = "does not exist"
    hint = did_you_mean(path.stem.lower(), names)
    return catalog.unknown_error(
        f"The {catalog.noun} file {str(path)!r} {what}.{hint}",
        f"give the path of a TOML file, or use one of: {', '.join(names)}",
        path=str(path),
        known=names,
    )


def _parse(content: bytes, label: str) -> dict[str, object]:
    try:
        text = content.decode("utf-8-sig")  # Windows editors write the mark at the start
    except UnicodeDecodeError as exc:
        raise UsageError(
            f"{label} is not UTF-8 text (byte {exc.start:,}).",
            "save it as UTF-8; in PowerShell: Set-Content -Encoding utf8",
        ) from exc
    try:
        return tomllib.loads(text)
    except ValueError as exc:  # TOMLDecodeError, or a number of thousands of digits
        raise UsageError(
            f"{label} is not TOML: {exc}.",
            'write KEY = value, texts in double quotes; for example recipe = "int4-awq"',
        ) from exc
    except RecursionError as exc:
        raise UsageError(
            f"{label} is not a settings file: its values are nested too deeply.",
            "write KEY = value, one per line",
        ) from exc
