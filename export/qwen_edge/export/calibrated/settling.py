"""Before a calibrated export compresses anything: its texts, its formats, its unfinished work."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.export.adapters.opening import Adapter
from qwen_edge.export.calibrated.calibration import (
    Calibration,
    describe_inputs,
    open_calibration,
    search_path,
)
from qwen_edge.export.calibrated.kept_work import SEARCH_KEPT, describe_earlier
from qwen_edge.export.calibrated.work_folder import open_work_folder
from qwen_edge.export.calibration_texts import CalibrationText, read_calibration
from qwen_edge.export.checkpoint import Checkpoint
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.recipe_search.budget import Budget, parse_budget
from qwen_edge.export.recipe_search.candidates import legal_candidates, needs_search
from qwen_edge.export.recipe_search.package_files import write_search_files
from qwen_edge.export.recipe_search.promise import BrokenBudget, find_broken_budget
from qwen_edge.export.recipe_search.search import SearchResult, search_recipe
from qwen_edge.export.recipe_search.sensitivity import Report
from qwen_edge.export.recipe_search.table import FrontierTable, make_table
from qwen_edge.export.request import ExportRequest, ResolvedRequest
from qwen_edge.export.source import FetchedSource
from qwen_edge.export.text_files import PackageText
from qwen_edge.runtime.quality_facts import QualityFacts
from qwen_edge.runtime.recipe_facts import CalibrationFacts

Tell = Callable[[str | FrontierTable], None]
"""Told at once what a person should know: sentences, and what a search found."""


@dataclass(frozen=True)
class Settled:
    """A calibrated export with nothing left open.

    Args:
        calibration: Recipe, texts, and where unfinished work lies.
        facts: What the manifest says of it.
        search: How the recipe was found; None where it was given.
        notes: What a person should be told: sentences.
        budget: What the recipe was found for; None without one.
        table: What the search could choose from; None without one.
        spec: The decoder.
    """

    calibration: Calibration
    facts: CalibrationFacts
    search: SearchResult | None
    notes: tuple[str, ...]
    budget: Budget | None
    table: FrontierTable | None
    spec: DecoderSpec

    def write_files(self, folder: Path, name: str) -> None:
        """Write what the package says of the search, where there was one.

        Args:
            folder: The staging folder.
            name: The package's.
        """
        if self.search is not None:
            write_search_files(folder, name, self.search, self.spec, self.facts)

    def find_notes(self, quality: QualityFacts | None) -> tuple[str, ...]:
        """Return what a person should be told at the end: sentences.

        Args:
            quality: What was measured; None where nothing was.
        """
        if quality is not None or self.budget is None or self.budget.kl is None:
            return self.notes
        unchecked = (
            f"Whether it keeps to the budget's KL of {self.budget.kl:g} was not checked, because "
            "nothing was measured."
        )
        return (*self.notes, unchecked)

    def find_broken_budget(self, quality: QualityFacts) -> BrokenBudget | None:
        """Return what is wrong with a package that was measured, or None.

        Args:
            quality: What was measured.
        """
        if self.search is None or self.budget is None:
            return None
        return find_broken_budget(self.search, self.budget, quality)


def settle_calibration(
    resolved: ResolvedRequest,
    source: FetchedSource,
    reference: tuple[DecoderSpec, Checkpoint],
    adapters: tuple[Adapter, ...],
    text: PackageText,
    report: Report,
    tell: Tell,
) -> Settled:
    """Read the texts, and find the recipe where it has to be found.

    Args:
        resolved: The request.
        source: The checkpoint's files.
        reference: The checkpoint, adapters merged.
        adapters: What is merged.
        text: The package's tokenizer and template.
        report: Told of every layer that is measured.
        tell: Told what is kept of earlier work, and what a search found.

    Raises:
        BudgetError: No choice of formats keeps to the budget.
        OutputFolderError: Something that is not ours lies where work is kept.
        UsageError: The calibration text is of no use.

    State:
        Keeps what a search measured beside the target; see `calibration.discard_work`.
    """
    request, recipe = resolved.request, resolved.recipe
    spec, checkpoint = reference
    read = _read_text(request, text)
    target = Path(resolved.output).absolute()
    inputs = describe_inputs(source, adapters, read)
    budget = None if request.budget is None else parse_budget(request.budget)
    found, table = None, None
    if needs_search(recipe):
        found = search_recipe(
            spec,
            checkpoint,
            recipe,
            legal_candidates(recipe, resolved.profile, resolved.formats),
            read,
            budget,
            search_path(target),
            json.dumps([inputs, recipe.to_manifest()], sort_keys=True),
            report,
        )
        recipe, table = found.recipe, make_table(found, spec)
        if found.is_kept:
            tell(SEARCH_KEPT)
        tell(table)
    calibration = open_calibration(recipe, read, target, inputs)
    work = open_work_folder(spec, calibration)
    if (earlier := describe_earlier(work, calibration.key, spec.num_layers)) is not None:
        tell(earlier)
    facts = _describe(read, found)
    return Settled(calibration, facts, found, read.notes, budget, table, spec)


def _read_text(request: ExportRequest, text: PackageText) -> CalibrationText:
    return read_calibration(
        request.calibration,
        text.tokenizer,
        text.chat_template,
        text.chat.thinking,
        max_samples=request.calibration_samples,
    )


def _describe(read: CalibrationText, found: SearchResult | None) -> CalibrationFacts:
    return CalibrationFacts(
        source=read.source,
        sha256=read.sha256,
        num_samples=len(read.samples),
        num_tokens=read.num_tokens,
        expected_kl=None if found is None else found.point.kl,
    )
