"""Which installed Python packages go into a bundle, and which of their files.

The list follows from what the project requires, so that what a new version of a package needs
comes along by itself. What is left out by name says why. Nothing is imported to find out.
"""

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from qwen_edge.bundle.contents import UNKNOWN_LICENCE, LicenceText
from qwen_edge.errors import MissingExtraError, UsageError

PROJECT = "qwen-edge"
_OUR_PACKAGES = ("errors", "profiles", "runtime", "cli", "bundle")
SERVER_PACKAGE = "server"
SERVER_REQUIREMENTS = ("starlette", "uvicorn", "pydantic", "prometheus-client")
"""Those of the extra `serve`."""
LEFT_OUT = {
    "huggingface-hub": "tokenizers fetches from the hub with it; a bundle's files are all there",
    "openvino-telemetry": "reports every start; see `runtime/engine.py`",
    "pygments": "rich colours source code with it",
    "markdown-it-py": "rich shows Markdown with it",
}
# Files nobody reads at run time, of any distribution.
_LEFT_OUT_FILES = (
    "*.py[cio]", "*.pyi", "*.px[di]", "*.pyx", "*.h", "*.hpp", "*.c", "*.cpp", "*.inl", "*.a",
    "*.lib", "*.cmake", "*.pc", "*.stamp", "*.md", "*.rst", "*/LICENSE*", "*/py.typed",
    "*/tests/*", "*/test/*", "*/conftest.py", "*/__pycache__/*",
)  # fmt: skip
# And of those that are large: what the runtime never imports.
_LEFT_OUT_OF = {
    "numpy": (
        "numpy/f2py/*", "numpy/_pyinstaller/*", "numpy/distutils/*", "numpy/testing/*",
        "numpy/doc/*", "numpy/_core/include/*", "numpy/_core/lib/*", "numpy/_core/_simd.*",
        "numpy/_core/*_tests.*", "numpy/random/lib/*", "numpy/random/_examples/*", "numpy/core/*",
    ),
    "openvino": (
        "openvino/libs/*",  # by device, see `systems.py`
        "openvino/include/*", "openvino/cmake/*", "openvino/tools/*", "openvino/torch/*",
        "openvino/frontend/[a-z]*/*", "openvino/preprocess/torchvision/*",
    ),
    "tokenizers": ("tokenizers/tools/*",),
    "pydantic": ("pydantic/v1/*", "pydantic/mypy.py", "pydantic/_hypothesis_plugin.py"),
    "anyio": ("anyio/_backends/_trio.py", "anyio/pytest_plugin.py"),
    "starlette": ("starlette/testclient.py",),
}  # fmt: skip
# What nobody would look up in a program that has no Python prompt.
WITHOUT_DOCSTRINGS = frozenset({"numpy", "openvino"})
_LICENCE_FILE = re.compile(r"(?:licen[cs]e|copying|notice|authors|third)", re.IGNORECASE)
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_REINSTALL = "pip install --force-reinstall {name}, then bundle again"


@dataclass(frozen=True)
class ChosenFile:
    """A file to be copied: from where, and its name below the folder of packages."""

    source: Path
    name: str


@dataclass(frozen=True)
class Distribution:
    """One installed Python package, as far as a bundle wants it.

    Args:
        name: Normalised, such as "jinja2".
        version: As installed.
        licence: What its metadata state.
        files: Modules, libraries and data, without metadata.
        metadata: Header of its METADATA, and the name of the folder that it belongs into.
        texts: Licence texts that came with it.
        requirements: Names of what it requires without extras.
    """

    name: str
    version: str
    licence: str
    files: tuple[ChosenFile, ...]
    metadata: tuple[str, str]
    texts: tuple[LicenceText, ...]
    requirements: tuple[str, ...]

    @property
    def is_pure(self) -> bool:
        """Whether it is Python modules and nothing else, so that a zip can hold it."""
        return all(file.name.endswith(".py") for file in self.files)


def normalise(name: str) -> str:
    """Return a distribution's name as names are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find_distributions(*, with_server: bool) -> list[Distribution]:
    """Return all that a bundle needs, the project itself first, then by name.

    Args:
        with_server: With what the server needs.

    Raises:
        MissingExtraError: What the server needs is not installed.
        UsageError: The project or a requirement is not installed as a package with a list of files.
    """
    project = _find(PROJECT)
    names = set(_requirements(project))
    if with_server:
        _check_server()
        names |= set(SERVER_REQUIREMENTS)
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = sorted(names)
    while waiting:
        name = waiting.pop()
        if name in found or name in LEFT_OUT:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name in names:
                raise _not_installed(name) from None
            continue  # of another system or an older Python, else it would be installed
        waiting += _requirements(found[name])
    chosen = [_describe(name, found[name]) for name in sorted(found)]
    return [_describe_project(project, with_server=with_server), *chosen]


def _find(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise _not_installed(name) from None


def _not_installed(name: str) -> UsageError:
    return UsageError(
        f"Bundling needs {name!r} as an installed package, which it is not here.",
        f"pip install {'qwen-edge' if name == PROJECT else name}",
        package=name,
    )


def _check_server() -> None:
    """Refuse to bundle a server that is not there."""
    missing = [name for name in SERVER_REQUIREMENTS if not _is_installed(name)]
    if importlib.util.find_spec(f"qwen_edge.{SERVER_PACKAGE}") is None:
        missing.append("qwen_edge.server")
    if missing:
        raise MissingExtraError(
            f"A bundle holds the server, which needs {missing[0]!r}; that is not installed.",
            "pip install 'qwen-edge[serve]', or bundle with --without-server",
            package=missing[0],
            missing=tuple(missing),
        )


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _requirements(distribution: importlib.metadata.Distribution) -> list[str]:
    """Return what a distribution requires without extras, on whatever system."""
    names = []
    for text in distribution.requires or ():
        _, _, marker = text.partition(";")
        match = _REQUIREMENT.match(text)
        if match and "extra" not in marker:
            names.append(normalise(match[1]))
    return names


def _describe(name: str, distribution: importlib.metadata.Distribution) -> Distribution:
    if distribution.files is None:
        raise UsageError(
            f"The installed {name!r} has no list of its files (RECORD), so it cannot be copied.",
            _REINSTALL.format(name=name),
            package=name,
        )
    files, texts = [], []
    for path in sorted(distribution.files, key=str):
        posix = PurePosixPath(path).as_posix()
        source = Path(str(distribution.locate_file(path)))
        folder = posix.split("/")[0]
        if folder.endswith(".dist-info"):
            text = _licence_name(posix)
            if text and source.is_file():
                texts.append(LicenceText(text, source.read_bytes()))
        elif _is_wanted(name, posix):
            files.append(ChosenFile(source, posix))
    missing = [file.name for file in files if not file.source.is_file()]
    if missing:
        raise UsageError(
            f"The installed {name!r} lacks {missing[0]!r}, which its list of files names.",
            _REINSTALL.format(name=name),
            package=name,
        )
    return Distribution(
        name,
        distribution.version,
        read_licence(distribution.metadata),
        tuple(files),
        _metadata(name, distribution),
        tuple(texts),
        tuple(sorted(_requirements(distribution))),
    )


def _describe_project(
    distribution: importlib.metadata.Distribution, *, with_server: bool
) -> Distribution:
    """Describe ourselves by where our packages are: an editable install lists no files."""
    packages = [*_OUR_PACKAGES, *([SERVER_PACKAGE] if with_server else [])]
    files = []
    for package in packages:
        spec = importlib.util.find_spec(f"qwen_edge.{package}")
        if spec is None or spec.origin is None:
            raise _not_installed(PROJECT)
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*")):
            name = f"qwen_edge/{package}/{path.relative_to(folder).as_posix()}"
            if path.is_file() and _is_wanted(PROJECT, name):
                files.append(ChosenFile(path, name))
    texts = [
        LicenceText(text, Path(str(distribution.locate_file(path))).read_bytes())
        for path in distribution.files or ()
        if ".dist-info/" in path.as_posix() and (text := _licence_name(path.as_posix()))
    ]
    return Distribution(
        PROJECT,
        distribution.version,
        read_licence(distribution.metadata),
        tuple(files),
        _metadata(PROJECT, distribution),
        tuple(texts),
        tuple(sorted(_requirements(distribution))),
    )


def _is_wanted(name: str, path: str) -> bool:
    if path.startswith("../"):  # programs beside the interpreter
        return False
    patterns: Iterable[str] = (*_LEFT_OUT_FILES, *_LEFT_OUT_OF.get(name, ()))
    return not any(fnmatch(path, pattern) for pattern in patterns)


def _licence_name(path: str) -> str | None:
    """Return the name of a licence text below a part's folder; None for other metadata."""
    _, _, inside = path.partition("/")
    if inside.startswith("licenses/"):
        return inside.removeprefix("licenses/")
    return inside if _LICENCE_FILE.match(inside) and "/" not in inside else None


def _metadata(name: str, distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    """Return the folder and the header of METADATA: what asks for a version reads nothing else."""
    text = distribution.read_text("METADATA") or f"Name: {name}\nVersion: {distribution.version}\n"
    header = text.replace("\r\n", "\n").split("\n\n")[0]
    escaped = name.replace("-", "_")
    return f"{escaped}-{distribution.version}.dist-info", header + "\n"


def read_licence(metadata: importlib.metadata.PackageMetadata) -> str:
    """Return the licence that metadata state, or "unknown"; nothing is guessed from texts."""
    for expression in metadata.get_all("License-Expression") or ():
        return str(expression)
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in metadata.get_all("Classifier") or ()
        if text.startswith("License :: ") and text != "License :: OSI Approved"
    ]
    for stated in metadata.get_all("License") or ():
        if stated and len(stated) < 40 and "\n" not in stated:
            return str(stated)
    return " OR ".join(classifiers) or UNKNOWN_LICENCE
