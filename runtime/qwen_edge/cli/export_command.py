"""`qwen-edge export`: the only command that needs the export extra."""

import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.extra import check_engines, missing_export_modules
from qwen_edge.cli.output import Output
from qwen_edge.cli.plan_view import show_device_plans
from qwen_edge.errors import MissingExtraError, format_bytes
from qwen_edge.runtime.devices.npu_verdict import describe_verdict
from qwen_edge.runtime.schema import to_json

# Measuring takes two seconds itself.
_WORTH_MEASURING_S = 10.0

if TYPE_CHECKING:
    from qwen_edge.export import ExportResult, PreparedExport


@click.command("export")
@click.argument("model", required=False)
@click.option(
    "--profile",
    metavar="NAME",
    help="Profile, or a TOML file of your own. Default: the one for this machine.",
)
@click.option(
    "--recipe", metavar="NAME", help="Recipe, or a TOML file of your own. Default: the profile's."
)
@click.option(
    "--format",
    "fmt",
    metavar="NAME",
    help="openvino, onnx or both. Default: the profile's.",
)
@click.option(
    "--portable",
    is_flag=True,
    help="Write the ONNX form in standard operators, for programs without ONNX Runtime's own.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Package folder to write. Default: MODEL-PROFILE-WEIGHTS in the current folder.",
)
@click.option(
    "--revision", metavar="NAME", help="Branch, tag or commit of a hub id. Default: main."
)
@click.option(
    "--max-context-tokens",
    type=int,
    metavar="N",
    help="Upper bound for every device. Default: the profile's.",
)
@click.option("--force", is_flag=True, help="Replace an earlier package at the same place.")
@click.option("--offline", is_flag=True, help="Never connect; use what is on this machine.")
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The hub's cache folder. Default: the usual one.",
)
@click.option(
    "--warm-prompt",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text of a system message that is computed now, so that no start has to.",
)
@click.option(
    "--skip-npu-check",
    is_flag=True,
    help="Do not find out whether the model runs on an NPU, where the profile has one.",
)
@click.option(
    "--explain", is_flag=True, help="Show every choice, its reason and the plan; write nothing."
)
@click.option("--quiet", is_flag=True, help="No progress, no notices.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: str | None,
    profile: str | None,
    recipe: str | None,
    fmt: str | None,
    portable: bool,
    output: Path | None,
    revision: str | None,
    max_context_tokens: int | None,
    force: bool,
    offline: bool,
    cache_dir: Path | None,
    warm_prompt: Path | None,
    skip_npu_check: bool,
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
    request = ExportRequest(
        model=ExportRequest.model if model is None else model,
        profile=profile,
        recipe=recipe,
        format=fmt,
        portable=portable,
        output=output,
        revision=revision,
        max_context_tokens=max_context_tokens,
        force=force,
        offline=offline,
        cache_dir=cache_dir,
        warm_prompt=warm_prompt,
        skip_npu_check=skip_npu_check,
    )
    prepared = prepare_export(request)
    check_extra(prepared.resolved.formats)
    if explain or not out.is_quiet:
        prepared = _with_measured_time(prepared)
    if explain:
        _explain(out, prepared, as_json=as_json)
        return
    check_engines(prepared.resolved.formats)
    _carry_out(out, prepared, as_json=as_json)


def _carry_out(out: Output, prepared: "PreparedExport", *, as_json: bool) -> None:
    from qwen_edge.export import run_export

    _announce(out, prepared)
    start = time.monotonic()
    with out.steps() as bars:
        result = run_export(prepared, bars)
    _conclude(out, result, time.monotonic() - start, as_json=as_json)


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


def _announce(out: Output, prepared: "PreparedExport") -> None:
    resolved, plan = prepared.resolved, prepared.plan
    reasons = dict(resolved.origins)
    out.notice(f"{prepared.source.id} → {resolved.output}")
    out.notice(f"  profile  {resolved.profile.name} ({reasons['profile'].reason})")
    out.notice(f"  recipe   {resolved.recipe.name} ({reasons['recipe'].reason})")
    portable = ", portable" if resolved.request.portable else ""
    out.notice(f"  format   {reasons['format'].value}{portable} ({reasons['format'].reason})")
    out.notice(f"  plan     {_describe_plan(prepared)}")
    for notice in (*prepared.source.notices, *plan.notes):
        out.notice(f"  note     {notice}")
    if plan.download_bytes:
        out.notice(f"  download {format_bytes(plan.download_bytes)}")


def _describe_plan(prepared: "PreparedExport") -> str:
    plan = prepared.plan
    about = "" if plan.is_exact else ", estimated without config.json"
    return (
        f"about {plan.seconds:,.0f} s, {format_bytes(plan.memory_bytes)} of memory, "
        f"{format_bytes(plan.disk_bytes)} of disk for a package of "
        f"{format_bytes(plan.package_bytes)}{about}"
    )


def _show_plan(out: Output, prepared: "PreparedExport") -> None:
    """Write what the export takes, step by step, and what running the package will take here."""
    plan = prepared.plan
    out.result("\nPlan")
    out.result(f"  {_describe_plan(prepared)}")
    for phase in plan.phases:
        told = ", left out where memory does not suffice" if phase.is_optional else ""
        out.result(
            f"  {phase.name:<18} {phase.seconds:6.1f} s  {format_bytes(phase.memory_bytes)}{told}"
        )
    speeds = "measured on this machine" if plan.is_measured else "of a laptop with few cores"
    out.result(f"  seconds with the speeds {speeds}; without the download")
    if plan.devices:
        out.result("\nThe package on this machine, by its memory alone")
        show_device_plans(out, plan.devices)


def _plan_json(prepared: "PreparedExport") -> dict[str, object]:
    """Return every choice and the plan as `--explain --json` prints them."""
    resolved, plan = prepared.resolved, prepared.plan
    return {
        "request": dict(resolved.origins),
        "profile": resolved.profile.to_json(),
        "recipe": resolved.recipe.to_json(),
        "source": {
            "kind": prepared.source.kind,
            "id": prepared.source.id,
            "revision": prepared.source.revision,
            "files": {f.name: f.size_bytes for f in prepared.source.files},
        },
        "model": _describe_model(prepared),
        "plan": plan.to_json(),
    }


def _explain(out: Output, prepared: "PreparedExport", *, as_json: bool) -> None:
    resolved, plan = prepared.resolved, prepared.plan
    if as_json:
        out.result_json(_plan_json(prepared))
        return
    out.result("Request")
    _show_values(out, [(n, choice.value, choice.reason) for n, choice in resolved.origins])
    out.result(f"\nRecipe {resolved.recipe.name}: {resolved.recipe.summary}")
    values = resolved.recipe.to_manifest()
    reasons = resolved.recipe.reasons
    _show_values(out, [(n, v, reasons.get(n, "")) for n, v in values.items() if n != "name"])
    for entry in resolved.profile.devices if "openvino" in resolved.formats else ():
        out.result(f"\nDevice {entry.device}: {entry.reasons.get('device', '')}".rstrip(": "))
        _show_values(
            out,
            [
                (name, entry.properties.get(name, getattr(entry, name, "")), reason)
                for name, reason in entry.reasons.items()
                if name != "device"
            ],
        )
    if "onnx" in resolved.formats:
        onnx = resolved.profile.onnx
        out.result("\nONNX Runtime")
        rows = [(key, getattr(onnx, key), reason) for key, reason in onnx.reasons.items()]
        _show_values(out, list(rows))
    out.result("\nSource")
    out.result(
        f"  {prepared.source.id}, {len(prepared.source.files)} files, "
        f"{format_bytes(prepared.source.total_bytes)}, "
        f"{format_bytes(plan.download_bytes)} of it to be downloaded"
    )
    for notice in prepared.source.notices:
        out.result(f"  {notice}")
    spec = prepared.spec
    if spec is not None:
        out.result("\nModel")
        limit = spec.max_position_embeddings
        asked = resolved.request.max_context_tokens
        limit = limit if asked is None else min(limit, asked)
        out.result(
            f"  {spec.architecture}, {spec.num_layers} layers, {spec.num_parameters:,} parameters"
        )
        out.result(
            f"  no device gets more context than {limit:,} tokens, whatever its profile says"
        )
    _show_plan(out, prepared)
    out.result("\nNothing was downloaded or written.")


def _describe_model(prepared: "PreparedExport") -> dict[str, object] | None:
    """Return what config.json says; None where it is not on this machine yet."""
    spec = prepared.spec
    if spec is None:
        return None
    return {
        "architecture": spec.architecture,
        "num_layers": spec.num_layers,
        "num_parameters": spec.num_parameters,
        "max_context_tokens": spec.max_position_embeddings,
    }


def _show_values(out: Output, rows: list[tuple[str, object, str]]) -> None:
    """Write names with values, and under each the reason."""
    for name, value, reason in rows:
        shown = "not given" if value is None else value
        out.result(f"  {name} = {shown}")
        if reason:
            out.result(f"      {reason}")


def _conclude(out: Output, result: "ExportResult", seconds: float, *, as_json: bool) -> None:
    manifest = result.manifest
    if as_json:
        out.result_json(
            {
                "folder": str(result.folder),
                "name": manifest.name,
                "seconds": round(seconds, 2),
                "formats": list(manifest.formats),
                "weights_bytes": manifest.weights.weights_bytes,
                "bits": dict(manifest.weights.bits),
                "relative_rms_error": manifest.weights.relative_rms_error,
                "group_size_fallbacks": [
                    entry.tensor for entry in manifest.weights.group_size_fallbacks
                ],
                "npu": None if manifest.npu is None else to_json(manifest.npu),
            }
        )
        return
    out.notice(
        f"Done in {seconds:,.1f} s: {format_bytes(manifest.weights.weights_bytes)} of weights."
    )
    error = manifest.weights.relative_rms_error
    if error is not None:
        out.notice(
            f"Weights differ from the checkpoint's by {100 * error:.2f} % (RMS, sampled "
            "rows). What that does to answers was not measured."
        )
    fallbacks = manifest.weights.group_size_fallbacks
    if fallbacks:
        first = fallbacks[0]
        out.notice(
            f"{len(fallbacks):,} matrices have another group size than the recipe's, because "
            f"it does not divide their width; the first is {first.tensor} "
            f"({first.width:,} wide, group {first.group_size}). All are in the manifest."
        )
    if manifest.npu is not None:
        out.notice(f"NPU: {describe_verdict(manifest.npu)}.")
    out.result(str(result.folder))
    out.notice(f'Run it: qwen-edge run {_shell_path(result.folder)} "Hello!"')


def _shell_path(folder: Path) -> str:
    """Return a path as it is typed into a shell, relative where that is shorter."""
    try:
        text = str(folder.relative_to(Path.cwd()))
    except ValueError:
        text = str(folder)
    else:
        text = f".{os.sep}{text}"
    if os.name == "nt":
        return f'"{text}"' if " " in text else text
    return shlex.quote(text)
