"""Quality inside an export: measured before the package is sealed, which a lost model never is.

Without a gate, or a budget for KL, the beginnings of the built-in texts are read, so that every
export can afford it; with one, or with a text of somebody's own, all of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_edge.errors import EdgeError, MissingExtraError, ParityError, UsageError
from qwen_edge.export.checkpoint import Checkpoint
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.quality.gate import is_lost, parse_gate
from qwen_edge.export.quality.texts import has_bound
from qwen_edge.export.request import ExportRequest
from qwen_edge.export.seal import Staging
from qwen_edge.export.text_files import PackageText
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.files.plain_name import QUALITY_REPORT
from qwen_edge.runtime.files.writing import write_text
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.quality_facts import QualityFacts

if TYPE_CHECKING:
    from qwen_edge.export.quality.assessment import Assessment
    from qwen_edge.export.quality.measure import Progress
    from qwen_edge.export.recipe_search.promise import BrokenBudget


@dataclass(frozen=True)
class SealedQuality:
    """What an export says of its quality.

    Args:
        facts: For the manifest; None where nothing was measured.
        notes: Why something was not, as sentences.
    """

    facts: QualityFacts | None
    notes: tuple[str, ...] = ()


def measure_staged(
    staging: Staging,
    manifest: Manifest,
    text: PackageText,
    reference: tuple[DecoderSpec, Checkpoint] | None,
    request: ExportRequest,
    report: "Progress",
    find_broken: "Callable[[QualityFacts], BrokenBudget | None] | None" = None,
) -> SealedQuality:
    """Measure a staged package, write its report, and refuse one that lost too much.

    Args:
        staging: The folder, with all model files; closed by nobody.
        manifest: What is known of the package so far.
        text: Its tokenizer and template.
        reference: The checkpoint; None where its architecture has no native graph.
        request: Gate, texts, and whether a loss is accepted.
        report: Told of every step.
        find_broken: Says what is wrong by the budget that its recipe was found for.

    Raises:
        ParityError: The package misses the gate or its budget, or has lost the model.
        EdgeError: As `assess`.

    State:
        Writes the report into the staging folder; of a refused package beside the target.
    """
    reason = _find_obstacle(manifest, reference, request)
    if reason is not None or reference is None:
        return SealedQuality(None, (f"What compression cost was not measured: {reason}.",))
    found = _measure(staging, manifest, text, reference, request, report)
    is_refused = is_lost(found.facts) and request.gate is None and not request.accept_loss
    if found.misses or is_refused:
        raise _refuse(staging.target, manifest, found)
    if find_broken is not None and (broken := find_broken(found.facts)) is not None:
        raise _refuse_broken(staging.target, manifest, found, broken)
    write_text(staging.folder / QUALITY_REPORT, found.report(manifest))
    return SealedQuality(found.facts, found.notes)


def _find_obstacle(
    manifest: Manifest,
    reference: tuple[DecoderSpec, Checkpoint] | None,
    request: ExportRequest,
) -> str | None:
    """Return why nothing is measured, or None.

    Raises:
        MissingExtraError: OpenVINO is not installed, and there is a gate or a text.
        UsageError: There is a gate or a text for what cannot be measured.
    """
    if request.skip_quality:
        return "--skip-quality"
    if reference is None:
        check_measurable(request, manifest.model.architecture)
        return (
            f"{manifest.model.architecture} has no native graph to run the checkpoint with, layer "
            "by layer"
        )
    try:
        import_openvino()
    except MissingExtraError as error:
        if request.gate is not None or request.quality_text is not None:
            raise
        return error.problem.rstrip(".")
    return None


def _measure(
    staging: Staging,
    manifest: Manifest,
    text: PackageText,
    reference: tuple[DecoderSpec, Checkpoint],
    request: ExportRequest,
    report: "Progress",
) -> "Assessment":
    # Not at the top: these need OpenVINO, and an export for ONNX alone does not.
    from qwen_edge.export.quality.assessment import accept_loss, assess, choose_texts
    from qwen_edge.export.quality.runs import StagedRuns

    contexts = [entry.max_context_tokens for entry in (*manifest.devices, manifest.onnx) if entry]
    choice = choose_texts(
        text.tokenizer,
        text.template,
        text.chat.thinking,
        own=request.quality_text,
        is_short=not has_bound(request),
        max_text_tokens=min(contexts),
    )
    vocab_size = manifest.model.vocab_size
    runs = StagedRuns(staging.folder, manifest.devices, manifest.onnx, manifest.golden, vocab_size)
    spec, checkpoint = reference
    found = assess(
        spec,
        checkpoint,
        staging.folder,
        choice,
        runs,
        has_openvino=bool(manifest.devices),
        gate=None if request.gate is None else parse_gate(request.gate),
        progress=lambda what, done, total: report(f"measure quality: {what}", done, total),
    )
    return accept_loss(found) if request.accept_loss else found


def _refuse(target: Path, manifest: Manifest, found: "Assessment") -> EdgeError:
    """Keep the report beside the target, and return the error that names it."""
    from qwen_edge.export.quality.assessment import lost_model, missed_gate

    outcome = _keep_report(target, manifest, found)
    error = missed_gate if found.misses else lost_model
    return error(found, f"The package {manifest.name!r}", outcome)


def _refuse_broken(
    target: Path, manifest: Manifest, found: "Assessment", broken: "BrokenBudget"
) -> EdgeError:
    """Do the same for a package that loses more than its budget allows."""
    outcome = _keep_report(target, manifest, replace(found, notes=(*found.notes, broken.problem)))
    return ParityError(
        f"The package {manifest.name!r} does not keep to its budget. {broken.problem} {outcome}",
        broken.fix,
        **broken.facts,
    )


def _keep_report(target: Path, manifest: Manifest, found: "Assessment") -> str:
    """Write the report beside the target; return what became of the package, as a sentence."""
    kept = target.with_name(f"{target.name}.{QUALITY_REPORT}")
    write_text(kept, found.report(manifest))
    return f"Nothing was sealed; the report is {str(kept)!r}."


def check_measurable(request: ExportRequest, architecture: str) -> None:
    """Refuse a gate for an architecture without a native graph, which cannot be measured.

    Args:
        request: What was asked for.
        architecture: For the message.

    Raises:
        UsageError: There is a gate, or a text.
    """
    if request.gate is not None or request.quality_text is not None:
        raise UsageError(
            f"The quality of {architecture} cannot be measured: it has no native "
            "graph to run the checkpoint with, layer by layer. Nothing was written.",
            "leave --gate and --quality-text away",
            field="gate",
        )
