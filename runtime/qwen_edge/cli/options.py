"""Options about the package: which model is opened, where it runs, and what guesses ahead.

What can be refused without the model is refused here, before seconds are spent on loading. How
an answer is made is in `answer_options.py`.
"""

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_edge.errors import PackageError, UsageError, did_you_mean
from qwen_edge.profiles.choose import AUTO

if TYPE_CHECKING:
    from qwen_edge.cli.output import Output
    from qwen_edge.profiles.choose import Choice
    from qwen_edge.runtime.batch_model import BatchModel
    from qwen_edge.runtime.manifest import DeviceSettings
    from qwen_edge.runtime.model import Model
    from qwen_edge.runtime.package import Progress

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class LoadOptions:
    """How to open a package."""

    backend: str
    device: str
    threads: int | None
    draft: str | None = None


def _read_backend(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Return a backend in small letters; suggest the closest one for a typo."""
    del ctx, parameter
    from qwen_edge.runtime.loading import check_load_options

    check_load_options(value.lower(), None, "first")
    return value.lower()


def _read_device(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Return a device or provider as its engine writes it; suggest the closest for a typo."""
    del ctx, parameter
    from qwen_edge.runtime.devices.opening import find_device_name

    return find_device_name(value)


backend_option = click.option(
    "--backend",
    metavar="NAME",
    default=AUTO,
    show_default=True,
    callback=_read_backend,
    help="auto, openvino or onnx: which of the package's models. A named one is never replaced.",
)
device_option = click.option(
    "--device",
    metavar="DEVICE",
    default=AUTO,
    show_default=True,
    callback=_read_device,
    help="auto, CPU, GPU or NPU, or an execution provider of ONNX Runtime. A named one never "
    "falls back to another.",
)
_OPTIONS = (
    backend_option,
    device_option,
    click.option(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads. Default: the engine's choice.",
    ),
)
draft_option = click.option(
    "--draft",
    metavar="PACKAGE",
    help="A smaller package of the same vocabulary that guesses ahead: the answer comes sooner and "
    "is the same.",
)


def load_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the shared options to a command; it receives them as one `load`."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        names = LoadOptions.__dataclass_fields__.keys() & kwargs.keys()
        options = LoadOptions(**{name: kwargs.pop(name) for name in names})
        function(*args, load=options, **kwargs)

    decorated: Callable[..., None] = wrapper
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def check_load_flags(package: str, options: LoadOptions) -> None:
    """Refuse what could not be opened, before anything is.

    Raises:
        UsageError: A value is out of range, or the draft is the package itself.
        PackageError: There is no such package, or no such draft package.
    """
    from qwen_edge.runtime.loading import check_load_options

    check_load_options(options.backend, options.threads, "first")
    folder = find_package(package)
    draft = options.draft
    if draft is not None and find_package(draft).resolve() == folder.resolve():
        raise UsageError(
            "--draft is the package itself, which guesses as slowly as it answers.",
            "give a smaller package of the same vocabulary, or leave --draft out",
            path=options.draft,
        )


def find_package(package: str) -> Path:
    """Return the path of a package folder; say what was likely meant where there is none.

    Raises:
        PackageError: There is nothing at this path.
    """
    path = Path(package)
    try:
        if path.exists():
            return path
    except OSError:
        return path  # whoever reads it next says what the system has against it
    try:
        near = [entry.name for entry in path.parent.iterdir() if _is_package(entry)]
    except (OSError, ValueError):
        near = []
    name = did_you_mean(path.name, near)
    if not name and (package == "demo" or _HUB_ID.fullmatch(package)):
        raise PackageError(
            f"There is no folder {package!r}. It reads like the name of a model; a package is "
            "made from one first.",
            f"qwen-edge export {package}",
            path=package,
        )
    raise PackageError(
        f"There is no folder {package!r}.{name}",
        "check the path, or make a package with `qwen-edge export --output DIR`",
        path=package,
    )


def load_model(package: str, options: LoadOptions, out: "Output") -> "Model":
    """Load a package, with a bar while its files are hashed for the first time.

    Raises:
        EdgeError: As `qwen_edge.runtime.load`.
    """
    from qwen_edge.runtime.loading import load

    folder = find_package(package)
    _check_fits(folder, options)
    with _loading(folder, out) as report:
        model = load(
            folder,
            device=options.device,
            backend=options.backend,
            threads=options.threads,
            draft=None if options.draft is None else find_package(options.draft),
            progress=report,
        )
    _tell_choice(model.device_choice, model.backend_name, out)
    return model


def load_batch_model(
    package: str, options: LoadOptions, parallel: int | None, out: "Output"
) -> "BatchModel":
    """Load a package to answer many prompts at a time; see `load_model`.

    Raises:
        EdgeError: As `qwen_edge.runtime.load_batch`.
    """
    from qwen_edge.runtime.batching.batch_options import BatchOptions
    from qwen_edge.runtime.loading import load_batch

    folder = find_package(package)
    _check_fits(folder, options)
    batch_options = BatchOptions() if parallel is None else BatchOptions(max_running=parallel)
    with _loading(folder, out) as report:
        model = load_batch(
            folder,
            device=options.device,
            backend=options.backend,
            threads=options.threads,
            options=batch_options,
            progress=report,
        )
    _tell_choice(model.device_choice, model.backend_name, out)
    return model


def _check_fits(folder: Path, options: LoadOptions) -> None:
    """Refuse a package that has no room in memory, before its files are hashed.

    Raises:
        ResourceError: With what it takes and what is available.
    """
    from qwen_edge.runtime.package import read_manifest
    from qwen_edge.runtime.resources.plan import check_fits, plan_memory

    manifest = read_manifest(folder)
    with suppress(UsageError):  # what the package does not hold is refused by whoever loads it
        check_fits(plan_memory(folder, manifest, backend=options.backend, device=options.device))


@contextmanager
def _loading(folder: Path, out: "Output") -> "Iterator[Progress]":
    """Show a bar for the time of loading; gives what counts hashed bytes."""
    from qwen_edge.runtime.package import read_manifest

    total = sum(facts.size_bytes for facts in read_manifest(folder).files.values())
    with out.steps(is_transient=True) as bars:
        hashed = 0

        def report(num_bytes: int) -> None:
            nonlocal hashed
            hashed += num_bytes
            bars("check files", hashed, total)

        bars("load", 0, 0)
        yield report


def _tell_choice(
    choice: "Choice[DeviceSettings] | None", backend_name: str | None, out: "Output"
) -> None:
    if choice is None:
        return
    device, reason = choice.value.device, choice.reason
    told = reason if reason.startswith(device) else f"{device}: {reason}"
    out.notice(f"Device {told} (backend {backend_name}).")


def _is_package(path: Path) -> bool:
    return (path / "manifest.json").is_file()
