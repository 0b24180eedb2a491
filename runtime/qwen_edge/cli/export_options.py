"""Options of `export`: their names, and what each says of itself.

Parameters are named as the fields of `ExportRequest`, which owns every default: an option that was
not given leaves the field alone. Read `export_command.py` for the command.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

adapter_option = click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="DIR[=WEIGHT]",
    help="LoRA folder that is merged into the checkpoint; by half with =0.5. May be repeated.",
)
gate_option = click.option(
    "--gate",
    metavar="TEXT",
    help='What may be lost at most, such as "kl=0.05,top1=0.95".',
)
_OPTIONS = (
    click.option(
        "--profile",
        metavar="NAME",
        help="Profile, or a TOML file of your own. Default: the one for this machine.",
    ),
    click.option(
        "--recipe",
        metavar="NAME",
        help="Recipe, or a TOML file of your own. Default: the profile's.",
    ),
    click.option(
        "--budget",
        metavar="TEXT",
        help='What `--recipe auto` has to keep to, such as "size<=2.6GB,kl<=0.03".',
    ),
    adapter_option,
    click.option(
        "--calibration",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Text or conversations that calibrated recipes read. Default: built-in ones.",
    ),
    click.option(
        "--calibration-samples",
        type=int,
        metavar="N",
        help="How many samples of at most 512 tokens they read. Default: 128.",
    ),
    click.option(
        "--format",
        metavar="NAME",
        help="openvino, onnx or both. Default: the profile's.",
    ),
    click.option(
        "--portable",
        is_flag=True,
        help="Write the ONNX form in standard operators, for programs without ONNX Runtime's own.",
    ),
    click.option(
        "--output",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Package folder to write. Default: MODEL-PROFILE-WEIGHTS in the current folder.",
    ),
    click.option(
        "--revision", metavar="NAME", help="Branch, tag or commit of a hub id. Default: main."
    ),
    click.option(
        "--max-context-tokens",
        type=int,
        metavar="N",
        help="Upper bound for every device. Default: the profile's.",
    ),
    click.option("--force", is_flag=True, help="Replace an earlier package at the same place."),
    click.option("--offline", is_flag=True, help="Never connect; use what is on this machine."),
    click.option(
        "--cache-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The hub's cache folder. Default: the usual one.",
    ),
    click.option(
        "--warm-prompt",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Text of a system message that is computed now, so that no start has to.",
    ),
    click.option(
        "--skip-npu-check",
        is_flag=True,
        help="Do not find out whether the model runs on an NPU, where the profile has one.",
    ),
    gate_option,
    click.option(
        "--quality-text",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Your own text to measure the loss with. Default: built-in ones.",
    ),
    click.option(
        "--accept-loss",
        is_flag=True,
        help="Seal the package even where compression has cost the model its abilities.",
    ),
    click.option("--skip-quality", is_flag=True, help="Do not measure what compression costs."),
)


def export_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a request to a command; it receives those given as `given`."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        values = {name: kwargs.pop(name) for name in names}
        given = {name: value for name, value in values.items() if _is_given(value)}
        function(*args, given=given, **kwargs)

    decorated: Callable[..., None] = wrapper
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    names = _find_names()
    return decorated


def _find_names() -> list[str]:
    """Return the names under which click hands the options over."""
    command = click.Command("export")
    for option in _OPTIONS:
        option(command)
    return [parameter.name for parameter in command.params if parameter.name]


def _is_given(value: object) -> bool:
    return value is not None and value is not False and value != ()
