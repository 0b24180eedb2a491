"""`qwen-edge quality`: what a package lost beside its checkpoint, measured here."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qwen_edge.cli.export_command import check_extra
from qwen_edge.cli.export_options import adapter_option, gate_option
from qwen_edge.cli.interrupt import leave_soon
from qwen_edge.cli.options import device_option, find_package
from qwen_edge.cli.output import Output
from qwen_edge.errors import ResourceError, format_bytes
from qwen_edge.runtime.files.writing import write_text
from qwen_edge.runtime.quality_facts import READING_NAMES, describe_quality
from qwen_edge.runtime.schema import to_json

if TYPE_CHECKING:
    from qwen_edge.export.quality.assessment import Assessment
    from qwen_edge.export.source import FetchedSource
    from qwen_edge.runtime.manifest import Manifest


@click.command("quality")
@click.argument("package")
@click.option(
    "--reference",
    required=True,
    metavar="MODEL",
    help="The checkpoint to compare with: a hub id, a folder, or `demo`.",
)
@adapter_option
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Your own text. Default: the built-in ones.",
)
@device_option
@gate_option
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page with everything measured, plots included.",
)
@click.option("--revision", metavar="NAME", help="Branch, tag or commit of a hub id.")
@click.option("--offline", is_flag=True, help="Never connect; use what is on this machine.")
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The hub's cache folder. Default: the usual one.",
)
@click.option("--quiet", is_flag=True, help="No progress, no notices.")
@click.option("--json", "as_json", is_flag=True, help="Print everything measured as JSON.")
def command(
    package: str,
    reference: str,
    adapters: tuple[str, ...],
    text: Path | None,
    device: str,
    gate: str | None,
    report: Path | None,
    revision: str | None,
    offline: bool,
    cache_dir: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compare the folder PACKAGE with the checkpoint it was made from.

    Both read the same texts, the checkpoint layer by layer in float32, so that it need not fit
    into memory. Measured apart: the weights alone, the device's arithmetic as well, and the
    cache as well, which is how the package runs. Exit code 9: it misses --gate.

    \b
    Examples:
      qwen-edge quality ./qwen3-4b-core-ultra-int4 --reference Qwen/Qwen3-4B
      qwen-edge quality ./my-model --reference ./my-checkpoint --text letters.txt
      qwen-edge quality ./my-model --reference ./my-checkpoint --gate kl=0.05,top1=0.95
    """
    check_extra()
    from qwen_edge.export.quality.assessment import missed_gate
    from qwen_edge.export.quality.gate import parse_gate
    from qwen_edge.export.quality.sealed import SealedRequest, measure_sealed
    from qwen_edge.export.quality.texts import read_text
    from qwen_edge.runtime.loading import check_package
    from qwen_edge.runtime.package import read_manifest

    out = Output(is_quiet=quiet, as_json=as_json)
    bounds = None if gate is None else parse_gate(gate)
    if text is not None:
        read_text(text)
    if report is not None:
        _check_writable(report)
    folder = find_package(package)
    manifest = read_manifest(folder)
    merged = ", ".join(entry.name for entry in manifest.source.adapters)
    if merged and not adapters:
        out.notice(f"The package has adapters merged into it ({merged}); --adapter adds them here.")
    check_package(folder, manifest, verify="first")
    with leave_soon(), out.steps(is_transient=True) as bars:
        source = _find_reference(out, reference, revision, offline, cache_dir)
        request = SealedRequest(text, device, bounds, adapters)
        found = measure_sealed(folder, manifest, source, request, progress=bars)
    if report is not None:
        write_text(report, found.report(manifest))
        out.notice(f"Report: {report}")
    _show(out, found, manifest, source, as_json=as_json)
    if found.misses:
        raise missed_gate(found, f"The package {str(folder)!r}", "Nothing was changed.")


def _find_reference(
    out: Output, model: str, revision: str | None, offline: bool, cache_dir: Path | None
) -> "FetchedSource":
    from qwen_edge.export.source import fetch_source, resolve_source

    source = resolve_source(model, revision=revision, offline=offline, cache_dir=cache_dir)
    if source.download_bytes:
        out.notice(f"Download {format_bytes(source.download_bytes)} of {source.id}.")
    with out.steps(is_transient=True) as bars:
        return fetch_source(
            source, progress=lambda done, total, label: bars(f"fetch {label}", done, total)
        )


def _check_writable(report: Path) -> None:
    """Refuse a report that could not be written, before minutes of work.

    Raises:
        ResourceError: With the folder.
    """
    if report.is_dir() or not report.absolute().parent.is_dir():
        raise ResourceError(
            f"The report {str(report)!r} cannot be written: "
            + ("it is a folder." if report.is_dir() else "its folder does not exist."),
            "name a file in a folder that exists, such as --report quality.html",
            path=str(report),
        )


def _show(
    out: Output,
    found: "Assessment",
    manifest: "Manifest",
    source: "FetchedSource",
    *,
    as_json: bool,
) -> None:
    facts = found.facts
    if as_json:
        from qwen_edge.export.quality.facts import make_details

        out.result_json(
            {
                "name": manifest.name,
                "reference": {"id": source.id, "revision": source.revision},
                "quality": to_json(facts),
                "details": make_details(found.quality),
                "misses": list(found.misses),
                "notes": list(found.notes),
            }
        )
        return
    columns = ["reading", "KL", "KL p99", "top 1", "top 5", "perplexity"]
    rows = []
    for name, reading in facts.readings.items():
        ratio = "-" if reading.perplexity_ratio is None else f"x {reading.perplexity_ratio:.4g}"
        rows.append(
            [
                READING_NAMES[name],
                f"{reading.kl.value:.3g} ({reading.kl.low:.3g} to {reading.kl.high:.3g})",
                f"{reading.kl_p99.value:.3g}",
                f"{100 * reading.top1.value:.1f} %",
                f"{100 * reading.top5.value:.1f} %",
                ratio,
            ]
        )
    out.table(columns, rows)
    for note in found.notes:
        out.notice(note)
    out.notice(f"{manifest.name} beside {source.id}: {describe_quality(facts)}.")
    if facts.gate is not None and not found.misses:
        out.notice(f"It passes the gate {facts.gate}.")
