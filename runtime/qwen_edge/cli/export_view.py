"""What `qwen-edge export` writes: its plan, the explanation of its choices, and its result.

It decides nothing and imports nothing of the export; read `export_command.py` for the command.
"""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_edge.cli.frontier_view import frontier_json
from qwen_edge.cli.output import Output
from qwen_edge.cli.plan_view import show_device_plans
from qwen_edge.errors import format_bytes
from qwen_edge.runtime.devices.npu_verdict import describe_verdict
from qwen_edge.runtime.files.plain_name import FRONTIER_REPORT, RECIPE_FILE
from qwen_edge.runtime.quality_facts import describe_quality
from qwen_edge.runtime.schema import to_json

if TYPE_CHECKING:
    from qwen_edge.export import ExportResult, PreparedExport


def announce(out: Output, prepared: "PreparedExport") -> None:
    """Write what is going to be done, and why so."""
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
            f"  {phase.name:<22} {phase.seconds:6.1f} s  {format_bytes(phase.memory_bytes)}{told}"
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


def explain_export(out: Output, prepared: "PreparedExport", *, as_json: bool) -> None:
    """Write every choice with its reason, and the plan, as the result."""
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


def conclude(
    out: Output, result: "ExportResult", seconds: float, *, bandwidth: float | None, as_json: bool
) -> None:
    """Write what was exported and what it lost.

    Args:
        out: Where it is written.
        result: The package.
        seconds: How long it took.
        bandwidth: Bytes of memory per second, where a search made it worth measuring.
        as_json: For programs.
    """
    manifest = result.manifest
    table = result.frontier
    if as_json:
        out.result_json(_result_json(result, seconds, bandwidth))
        return
    out.notice(
        f"Done in {seconds:,.1f} s: {format_bytes(manifest.weights.weights_bytes)} of weights."
    )
    error = manifest.weights.relative_rms_error
    if error is not None:
        out.notice(
            f"Weights differ from the checkpoint's by {100 * error:.2f} % (RMS, sampled rows)."
        )
    if manifest.quality is not None:
        out.notice(f"Quality: {describe_quality(manifest.quality)}.")
        if manifest.quality.is_loss_accepted:
            out.notice("That is not the model it was; sealed because of --accept-loss.")
    if table is not None:
        out.notice(
            f"Its recipe, {table.recipe}, is {RECIPE_FILE} in the package; how it was found is in "
            f"{FRONTIER_REPORT}."
        )
    for note in result.notes:
        out.notice(note)
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


def _result_json(
    result: "ExportResult", seconds: float, bandwidth: float | None
) -> dict[str, object]:
    """Return what was exported, for programs."""
    manifest, table = result.manifest, result.frontier
    return {
        "folder": str(result.folder),
        "name": manifest.name,
        "seconds": round(seconds, 2),
        "formats": list(manifest.formats),
        "weights_bytes": manifest.weights.weights_bytes,
        "bits": dict(manifest.weights.bits),
        "relative_rms_error": manifest.weights.relative_rms_error,
        "group_size_fallbacks": [entry.tensor for entry in manifest.weights.group_size_fallbacks],
        "npu": None if manifest.npu is None else to_json(manifest.npu),
        "quality": None if manifest.quality is None else to_json(manifest.quality),
        "search": None if table is None else frontier_json(table, bandwidth),
        "notes": list(result.notes),
    }


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
