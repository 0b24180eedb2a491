"""Options that `run` and `chat` share, what they come to, and how a package is opened.

What can be refused without the model is refused here, before seconds are spent on loading.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_edge.errors import PackageError, UsageError, did_you_mean
from qwen_edge.profiles.choose import AUTO
from qwen_edge.runtime.sampling import SamplingParams

if TYPE_CHECKING:
    from qwen_edge.cli.output import Output
    from qwen_edge.runtime.events import Timings
    from qwen_edge.runtime.model import Model

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "min_p", "seed")


@dataclass(frozen=True)
class AnswerOptions:
    """How to load a package and answer with it; None means: the package's own default."""

    backend: str
    device: str
    threads: int | None
    system: str | None
    thinking: bool | None
    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    stop: tuple[str, ...]


def _read_backend(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Return a backend in small letters; suggest the closest one for a typo."""
    del ctx, parameter
    from qwen_edge.runtime.loading import check_load_options

    check_load_options(value.lower(), None, "first")
    return value.lower()


def _read_device(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Return a device or provider as its engine writes it; suggest the closest for a typo."""
    del ctx, parameter
    from qwen_edge.runtime.opening import find_device_name

    return find_device_name(value)


backend_option = click.option(
    "--backend",
    metavar="NAME",
    default=AUTO,
    show_default=True,
    callback=_read_backend,
    help="auto, openvino or onnx: which of the package's models. A named one is never replaced.",
)
_OPTIONS = (
    backend_option,
    click.option(
        "--device",
        metavar="DEVICE",
        default=AUTO,
        show_default=True,
        callback=_read_device,
        help="auto, CPU, GPU or NPU, or an execution provider of ONNX Runtime. A named one never "
        "falls back to another.",
    ),
    click.option(
        "--threads",
        type=int,
        metavar="N",
        help="CPU threads. Default: the engine's choice.",
    ),
    click.option("--system", metavar="TEXT", help="System message."),
    click.option(
        "--think/--no-think",
        "thinking",
        default=None,
        help="Reason before answering, or answer at once. Default: the model's.",
    ),
    click.option(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="Longest answer, reasoning included. Default: up to the end of the context.",
    ),
    click.option(
        "--temperature",
        type=float,
        metavar="X",
        help="0 takes the likeliest token each time. Default of this and the next three: "
        "the package's.",
    ),
    click.option(
        "--top-p", type=float, metavar="X", help="Keep the likeliest tokens up to this sum."
    ),
    click.option(
        "--top-k",
        type=int,
        metavar="N",
        help="Keep this many of the likeliest tokens; 0 keeps all.",
    ),
    click.option(
        "--min-p",
        type=float,
        metavar="X",
        help="Drop tokens less likely than this share of the likeliest.",
    ),
    click.option(
        "--seed", type=int, metavar="N", help="Same seed, same answer. Default: a fresh one."
    ),
    click.option(
        "--stop", multiple=True, metavar="TEXT", help="Text that ends the answer. May be repeated."
    ),
)


def answer_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the shared options to a command; it receives them as one `options`."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        names = AnswerOptions.__dataclass_fields__
        options = AnswerOptions(**{name: kwargs.pop(name) for name in names})
        function(*args, options=options, **kwargs)

    decorated: Callable[..., None] = wrapper
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def check_answer_options(options: AnswerOptions) -> None:
    """Refuse what no model could do, before one is loaded.

    Raises:
        UsageError: A value is out of range; the text names it.
    """
    from qwen_edge.runtime.limits import check_max_new_tokens
    from qwen_edge.runtime.loading import check_load_options
    from qwen_edge.runtime.stopping import check_stop_strings

    replace(SamplingParams(), **_given_sampling(options))
    check_load_options(options.backend, options.threads, "first")
    check_max_new_tokens(options.max_new_tokens)
    check_stop_strings(options.stop)
    for name, text in (("--system", options.system), *(("--stop", t) for t in options.stop)):
        if text is not None:
            check_text(name, text)


def check_text(name: str, text: str) -> None:
    """Refuse a text from the command line that is none.

    Args:
        name: What it is called, such as "the prompt".
        text: As Python made it of the bytes that were typed.

    Raises:
        UsageError: It holds bytes that were not UTF-8, or a NUL.
    """
    nul = text.find("\0")
    if nul >= 0:
        raise UsageError(
            f"{name} holds a NUL at character {nul:,}; expected text.",
            "give text, not the contents of a binary file",
            position=nul,
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        # Python keeps an undecodable byte 0xNN of the command line as U+DCNN.
        what = f"the byte {code - 0xDC00:#04x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"
        raise UsageError(
            f"{name} is not UTF-8 text: it holds {what} at character {error.start:,}.",
            "use a terminal with UTF-8, or pipe the text in: "
            "iconv -f latin1 -t utf-8 FILE | qwen-edge run PACKAGE",
            position=error.start,
        ) from error


def sampling_of(options: AnswerOptions, model: "Model", thinking: bool | None) -> SamplingParams:
    """Return the package's sampling with what the person gave put over it.

    Raises:
        UsageError: A value is out of range.
    """
    return replace(model.sampling_defaults(thinking), **_given_sampling(options))


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


def load_model(package: str, options: AnswerOptions, out: "Output") -> "Model":
    """Load a package, with a bar while its files are hashed for the first time.

    Raises:
        EdgeError: As `qwen_edge.runtime.load`.
    """
    from qwen_edge.runtime.loading import load
    from qwen_edge.runtime.package import read_manifest

    folder = find_package(package)
    total = sum(facts.size_bytes for facts in read_manifest(folder).files.values())
    with out.steps(is_transient=True) as bars:
        hashed = 0

        def report(num_bytes: int) -> None:
            nonlocal hashed
            hashed += num_bytes
            bars("check files", hashed, total)

        bars("load", 0, 0)
        model = load(
            folder,
            device=options.device,
            backend=options.backend,
            threads=options.threads,
            progress=report,
        )
    choice = model.device_choice
    if choice is not None:
        out.notice(f"Device {choice.reason} (backend {model.backend_name}).")
    return model


def describe_timings(timings: "Timings", finish_reason: str | None) -> str:
    """Return one line of figures for a finished answer."""
    parts = [f"{timings.decode_tokens:,} token{'' if timings.decode_tokens == 1 else 's'}"]
    if timings.decode_tokens_per_s is not None:
        parts.append(f"{timings.decode_tokens_per_s:,.1f} tokens/s")
    if timings.ttft_s is not None:
        reused = f", {timings.reused_tokens:,} reused" if timings.reused_tokens else ""
        parts.append(
            f"first after {timings.ttft_s:.2f} s "
            f"({timings.prefill_tokens:,} prompt tokens computed{reused})"
        )
    if finish_reason == "length":
        parts.append("cut off by the length limit")
    elif finish_reason == "cancelled":
        parts.append("stopped by you")
    return ", ".join(parts)


def _given_sampling(options: AnswerOptions) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in _SAMPLING_FIELDS}
    return {name: value for name, value in values.items() if value is not None}


def _is_package(path: Path) -> bool:
    return (path / "manifest.json").is_file()
