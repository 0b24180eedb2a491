"""`qwen-edge export`: the only command that needs the export extra."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from qwen_edge.cli.export_options import export_options
from qwen_edge.cli.export_view import announce, conclude, explain_export
from qwen_edge.cli.extra import check_engines, missing_export_modules
from qwen_edge.cli.frontier_view import FrontierView
from qwen_edge.cli.output import Output
from qwen_edge.errors import MissingExtraError

# Measuring takes two seconds itself.
_WORTH_MEASURING_S = 10.0

if TYPE_CHECKING:
    from qwen_edge.export import PreparedExport


@click.command("export")
@click.argument("model", required=False)
@export_options
@click.option(
    "--explain", is_flag=True, help="Show every choice, its reason and the plan; write nothing."
)
@click.option("--quiet", is_flag=True, help="No progress, no notices.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: str | None,
    given: dict[str, Any],
    explain: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Turn MODEL into a model package, a folder that `run` and `chat` take.

    MODEL is a hub id (default: Qwen/Qwen3-4B), a folder with a checkpoint, or `demo`, a tiny
    model that comes with the program. The path of the package goes to standard output.

    \b
    Examples:
      qwen-edge export --profile core-ultra
      qwen-edge export Qwen/Qwen3-1.7B --profile core-ultra-npu --output ./my-model
      qwen-edge export ./my-fine-tune --explain
      qwen-edge export --format onnx
    """
    check_extra()
    from qwen_edge.export import ExportRequest, prepare_export

    out = Output(is_quiet=quiet, as_json=as_json)
    if model is not None:
        given["model"] = model
    request = ExportRequest(**given)
    prepared = prepare_export(request)
    check_extra(prepared.resolved.formats)
    if explain or not out.is_quiet:
        prepared = _with_measured_time(prepared)
    if explain:
        explain_export(out, prepared, as_json=as_json)
        return
    check_engines(prepared.resolved.formats)
    _carry_out(out, prepared, as_json=as_json)


def _carry_out(out: Output, prepared: "PreparedExport", *, as_json: bool) -> None:
    from qwen_edge.export import run_export

    announce(out, prepared)
    start = time.monotonic()
    view = FrontierView(out, is_read=as_json or not out.is_quiet)
    with out.steps() as bars:
        result = run_export(prepared, bars, view)
    seconds = time.monotonic() - start
    conclude(out, result, seconds, bandwidth=view.bandwidth, as_json=as_json)


def _with_measured_time(prepared: "PreparedExport") -> "PreparedExport":
    """Return an export whose seconds are this machine's, where they are many enough to matter."""
    from qwen_edge.export.resource_plan import measure_speeds

    plan = prepared.plan
    if plan.seconds < _WORTH_MEASURING_S:
        return prepared
    resolved = prepared.resolved
    speeds = measure_speeds(resolved.recipe, prepared.source, prepared.spec, resolved.output)
    return replace(prepared, plan=plan.with_speeds(speeds))


def check_extra(formats: Sequence[str] = ()) -> None:
    """Refuse to export where a package that exporting needs is not installed.

    Args:
        formats: What will be written, where that is known already.

    Raises:
        MissingExtraError: Names the first one that is missing.
    """
    missing = missing_export_modules(formats)
    if missing:
        extra = "export-onnx" if "onnx" in formats else "export"
        fix = f"pip install 'qwen-edge[{extra}]'"
        if missing[0].startswith("openvino"):  # which has no build for some systems
            fix += "\nor export for ONNX Runtime alone, with --format onnx"
        raise MissingExtraError(
            f"Exporting needs {missing[0]!r}, which is not installed.",
            fix,
            package=missing[0],
            missing=missing,
        )
