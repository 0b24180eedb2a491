"""`qwen-edge tune`: measure which settings run a package fastest here, and keep them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.interrupt import leave_soon
from qwen_edge.cli.options import find_package
from qwen_edge.cli.output import Output
from qwen_edge.errors import UsageError
from qwen_edge.profiles.choose import AUTO
from qwen_edge.runtime.tuning.budget import DEFAULT_MAX_KL, DEFAULT_TIME_LIMIT_S, check_budget
from qwen_edge.runtime.tuning.candidate import describe_changes
from qwen_edge.runtime.tuning.workload import DEFAULT_WORKLOAD, WORKLOADS, find_workload

if TYPE_CHECKING:
    from qwen_edge.runtime.manifest import Manifest
    from qwen_edge.runtime.tuning.result import Exactness, Speed, Trial, Tuned


@click.command("tune")
@click.argument("package")
@click.option(
    "--for",
    "workload_name",
    metavar="WORKLOAD",
    help=f"What to be fast at: {', '.join(WORKLOADS)}. Default: {DEFAULT_WORKLOAD}.",
)
@click.option(
    "--ratio",
    metavar="PROMPT:ANSWER",
    help="Tokens read to tokens written, in the place of --for, for example 4:1.",
)
@click.option(
    "--max-kl",
    type=float,
    default=DEFAULT_MAX_KL,
    show_default=True,
    metavar="X",
    help="How far from exact arithmetic the model's choices may move, in nats a token.",
)
@click.option(
    "--time-limit",
    type=float,
    default=DEFAULT_TIME_LIMIT_S,
    show_default=True,
    metavar="S",
    help="Seconds after which nothing new is begun.",
)
@click.option(
    "--device",
    metavar="DEVICE",
    default=AUTO,
    show_default=True,
    help="auto, CPU or GPU. auto: the first of the package's that can be tuned.",
)
@click.option(
    "--write-package", is_flag=True, help="Write the result into the package as well, for others."
)
@click.option(
    "--forget", is_flag=True, help="Measure nothing; remove what was tuned on this machine."
)
@click.option("--quiet", is_flag=True, help="No progress, no notices.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    package: str,
    workload_name: str | None,
    ratio: str | None,
    max_kl: float,
    time_limit: float,
    device: str,
    write_package: bool,
    forget: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Find the fastest settings for the folder PACKAGE on this machine, and keep them.

    Settings are compared in turn, round by round, until the difference is clear or the time is up.
    None is chosen whose answers are further than --max-kl from those of exact arithmetic (mean KL
    of the next token's probabilities, and two standard errors). Close other programs: what they
    take makes differences unclear.

    The result goes into your settings folder (QWEN_EDGE_CONFIG_DIR) and is used whenever the
    package is loaded here, with this version of the engine.

    \b
    Examples:
      qwen-edge tune ./qwen3-4b-core-ultra-int4
      qwen-edge tune ./qwen3-4b-core-ultra-int4 --for rag --time-limit 1800
      qwen-edge tune ./qwen3-4b-core-ultra-int4 --forget
    """
    from qwen_edge.runtime.package import read_manifest

    out = Output(is_quiet=quiet, as_json=as_json)
    workload = find_workload(workload_name, ratio)
    check_budget(max_kl, time_limit)
    folder = find_package(package)
    manifest = read_manifest(folder)
    if forget:
        _forget(folder, manifest, device, out, as_json=as_json)
        return
    _check_places(folder, write_package=write_package)
    with leave_soon():
        from qwen_edge.runtime.loading import check_package
        from qwen_edge.runtime.tuning.tune import tune_package

        check_package(folder, manifest, verify="first")
        out.notice(
            f"Tuning for {workload.name} ({workload.prompt_tokens:,} tokens read, "
            f"{workload.answer_tokens:,} written); up to {time_limit:,.0f} s …"
        )
        tuned = tune_package(
            folder,
            manifest,
            workload=workload,
            device=device,
            max_kl=max_kl,
            time_limit_s=time_limit,
            report=out.notice,
        )
    _keep(folder, tuned, out, write_package=write_package, as_json=as_json)


def _forget(folder: Path, manifest: "Manifest", device: str, out: Output, *, as_json: bool) -> None:
    """Remove what was kept for this package here, on every device or the one that is named."""
    from qwen_edge.runtime.tuning.candidate import TUNABLE
    from qwen_edge.runtime.tuning.stored import forget_tuned

    listed = {entry.device for entry in manifest.devices} & TUNABLE.keys()
    wanted = sorted(listed) if device.lower() == AUTO else [device.upper()]
    gone = [name for name in wanted if forget_tuned(manifest, name)]
    if as_json:
        out.result_json({"folder": str(folder), "forgotten": gone})
    elif gone:
        out.result(f"{folder}: forgot what was tuned on {' and '.join(gone)}")
    else:
        out.result(f"{folder}: nothing was tuned here")


def _check_places(folder: Path, *, write_package: bool) -> None:
    """Refuse, before minutes are spent, what could not be written at the end."""
    from qwen_edge.runtime.tuning.stored import make_settings_folder

    make_settings_folder()
    if write_package and not os.access(folder, os.W_OK):
        raise UsageError(
            f"{str(folder)!r} cannot be written to.",
            "leave out --write-package; the result is kept in your own settings",
            path=str(folder),
        )


def _keep(folder: Path, tuned: "Tuned", out: Output, *, write_package: bool, as_json: bool) -> None:
    from qwen_edge.runtime.tuning.package_record import write_into_package
    from qwen_edge.runtime.tuning.stored import keep_tuned

    path = keep_tuned(tuned)
    if write_package:
        write_into_package(folder, tuned)
    if as_json:
        from qwen_edge.runtime.schema import to_json

        written = str(folder) if write_package else None
        out.result_json({**to_json(tuned), "kept_in": str(path), "written_into": written})
        return
    columns = ["settings", "prefill", "decode", "times as fast", "KL", "verdict"]
    out.table(columns, [_row(trial, tuned.before) for trial in tuned.trials])
    out.result(f"\n{_describe(tuned)}")
    for note in _notes(tuned):
        out.notice(f"Note: {note}")
    out.notice(f"Kept in {path}" + (f" and in {folder}." if write_package else "."))


def _row(trial: "Trial", before: "Speed") -> list[str]:
    speed = trial.speed if trial.verdict != "package" else before
    figures = ["", ""]
    if speed is not None:
        figures = [f"{speed.prefill_tokens_per_s:.1f}", f"{speed.decode_tokens_per_s:.2f}"]
    gain = ""
    if trial.gain is not None:
        gain = f"{trial.gain:.3f} ({trial.gain_low:.3f} to {trial.gain_high:.3f})"
    exactness = "" if trial.exactness is None else f"{trial.exactness.mean:.5f}"
    name = describe_changes(trial.changes) or "the package's own"
    told = trial.verdict if trial.gain is not None or not trial.reason else trial.reason
    return [name, *figures, gain, exactness, told]


def _describe(tuned: "Tuned") -> str:
    before, after = tuned.before, tuned.after
    budget = f"KL {_kl(tuned.exactness)}, budget {tuned.max_kl:g}"
    if not tuned.changes:
        return (
            f"{tuned.device}, {tuned.workload.name}: the package's own settings are kept, none was "
            f"clearly faster ({after.prefill_tokens_per_s:.1f} tokens/s read, "
            f"{after.decode_tokens_per_s:.2f} written; {budget})"
        )
    return (
        f"{tuned.device}, {tuned.workload.name}: {describe_changes(tuned.changes)}\n"
        f"{tuned.gain:.2f} times as fast: read {before.prefill_tokens_per_s:.1f} -> "
        f"{after.prefill_tokens_per_s:.1f} tokens/s, written {before.decode_tokens_per_s:.2f} -> "
        f"{after.decode_tokens_per_s:.2f}; {budget} (before: {_kl(tuned.base_exactness)})"
    )


def _kl(exactness: "Exactness") -> str:
    return f"{exactness.mean:.5f}"


def _notes(tuned: "Tuned") -> list[str]:
    """Return what a person should know besides."""
    notes = []
    if tuned.is_untrained:
        notes.append(
            "this model predicts text no better than chance, as random weights do; the KL "
            "above says nothing about what the settings cost a trained one"
        )
    if tuned.base_exactness.upper > tuned.max_kl:
        notes.append(
            f"the package's own settings are beyond the budget (KL {_kl(tuned.base_exactness)})"
        )
    if tuned.not_tried:
        notes.append(
            f"the time did not suffice for {'; '.join(tuned.not_tried)} (--time-limit gives more)"
        )
    return notes
