"""From a request to a sealed package, step by step.

Plan, check, fetch, open, compress, build, write, try, seal: `export` reads like that list.
Every step is a module of its own; this one owns their order, the progress that a person
sees, and the promise that a failure leaves the target as it was.
"""

import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_edge.export import package_facts as facts
from qwen_edge.export.adapters.facts import adapter_facts
from qwen_edge.export.adapters.opening import Adapter
from qwen_edge.export.calibrated.calibration import discard_work
from qwen_edge.export.compress import TensorReport
from qwen_edge.export.front_end import (
    FrontEnd,
    ModelFormats,
    Progress,
    open_front_end,
    read_native_spec,
)
from qwen_edge.export.genai_config import build_genai_config, write_genai_config
from qwen_edge.export.golden import check_golden_tokens, measure_golden_tokens
from qwen_edge.export.gpu_check import check_gpu
from qwen_edge.export.licence_files import copy_licence_texts
from qwen_edge.export.model_card import FILE_NAME as CARD_NAME
from qwen_edge.export.model_card import write_model_card
from qwen_edge.export.npu_eligibility import check_npu
from qwen_edge.export.out_of_memory import telling_of_memory
from qwen_edge.export.plan import check_plan
from qwen_edge.export.prepare import PreparedExport, prepare_export
from qwen_edge.export.quality.sealing import SealedQuality, measure_staged
from qwen_edge.export.quality.texts import read_own
from qwen_edge.export.recipe_choice import fit_recipe
from qwen_edge.export.request import ExportRequest, ResolvedRequest
from qwen_edge.export.seal import Staging, check_target, publish, stage
from qwen_edge.export.source import FetchedSource, fetch_source
from qwen_edge.export.text_files import PackageText, write_text_files
from qwen_edge.export.warm_prompt import (
    check_has_cpu,
    find_common_ids,
    write_warm_prompt,
)
from qwen_edge.runtime.devices.npu_verdict import NpuVerdict
from qwen_edge.runtime.files.writing import copy_file, write_text
from qwen_edge.runtime.manifest import (
    DeviceSettings,
    FileFacts,
    GenerationFacts,
    GoldenTokens,
    Manifest,
    OnnxFacts,
    ProfileFacts,
)
from qwen_edge.runtime.package import hash_file, write_manifest

if TYPE_CHECKING:
    from qwen_edge.export.calibrated.settling import Settled, Tell
    from qwen_edge.export.recipe_search.table import FrontierTable


def _silent(step: str, done: int, total: int) -> None:
    del step, done, total


def _unheard(news: object) -> None:
    del news


@dataclass(frozen=True)
class ExportResult:
    """A sealed package.

    Args:
        folder: Where it lies.
        manifest: What it says of itself.
        reports: What became of every matrix.
        notes: What a person should be told: sentences.
        frontier: What a search for its recipe found; None without one.
    """

    folder: Path
    manifest: Manifest
    reports: tuple[TensorReport, ...]
    notes: tuple[str, ...] = ()
    frontier: "FrontierTable | None" = None


def export(request: ExportRequest, progress: Progress | None = None) -> ExportResult:
    """Export a model into a package folder.

    Args:
        request: What to export, and how.
        progress: Told about every step; None for silence.

    Returns:
        The sealed package.

    Raises:
        EdgeError: Any refusal; the target is as it was before.

    State:
        Writes the package folder, and the hub's cache for a hub id.
    """
    return run_export(prepare_export(request), progress)


def run_export(
    prepared: PreparedExport, progress: Progress | None = None, tell: "Tell | None" = None
) -> ExportResult:
    """Carry out a prepared export. See `export`.

    Args:
        prepared: What is to be done.
        progress: Told about every step; None for silence.
        tell: Told at once what a person should know while it goes on; None for silence.
    """
    with telling_of_memory(prepared.plan):
        return _run_export(prepared, progress or _silent, tell or _unheard)


def _run_export(prepared: PreparedExport, report: Progress, tell: "Tell") -> ExportResult:
    resolved = prepared.resolved
    output = Path(os.path.abspath(resolved.output))  # noqa: PTH100 – a link must stay one
    check_target(output, force=resolved.request.force)
    cache = prepared.source.folder if prepared.source.download_bytes else None
    check_plan(prepared.plan, output, cache)
    source = fetch_source(
        prepared.source, progress=lambda done, total, label: report(f"fetch {label}", done, total)
    )
    config = facts.read_json_object(source.folder / "config.json")
    resolved = fit_recipe(resolved, read_native_spec(config))
    front_end = open_front_end(source.folder, config, resolved.recipe, prepared.adapters)
    try:
        if prepared.spec is None:  # the first look at what was fetched
            model = front_end.model
            check_gpu(resolved, model, context_limit=model.max_context_tokens)
        generation = facts.generation_facts(source.folder, config, front_end.model.vocab_size)
        with stage(output, force=resolved.request.force) as staging:
            work = _Work(
                resolved,
                source,
                front_end,
                front_end.config,
                generation,
                staging,
                report,
                prepared.warm_prompt,
                prepared.adapters,
                tell=tell,
            )
            result = work.run()
            publish(staging)
            discard_work(output)
    finally:
        front_end.close()
    # Before a download nobody could know them.
    notices = front_end.notices if prepared.spec is None else ()
    return replace(result, folder=output, notes=(*notices, *result.notes))


@dataclass(frozen=True)
class _Work:
    """One export under way, in its staging folder."""

    resolved: ResolvedRequest
    source: FetchedSource
    front_end: FrontEnd
    config: dict[str, Any]
    generation: GenerationFacts
    staging: Staging
    report: Progress
    warm_prompt: str | None = None
    adapters: tuple[Adapter, ...] = ()
    settled: "Settled | None" = None
    tell: "Tell" = _unheard

    def run(self) -> ExportResult:
        """Write every file of the package but force none to the disk yet."""
        # Conversion and compression share no data, and compression leaves Python's lock free.
        with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as pool:
            text_done = pool.submit(self._write_text)
            if self.resolved.recipe.is_calibrated:
                # Running layers needs OpenVINO, which is not installed wherever ONNX is written.
                from qwen_edge.export.calibrated.kept_work import telling_what_is_kept

                work = self._settle(text_done)
                with telling_what_is_kept(self.staging.target, self.tell):
                    return work._go_on(text_done)
            return self._go_on(text_done)

    def _go_on(self, text_done: "Future[PackageText]") -> ExportResult:
        reports = self._write_model(text_done)
        self.report("convert tokenizer", 0, 1)
        text = text_done.result()
        self.report("convert tokenizer", 1, 1)
        return self._finish(reports, text)

    def _settle(self, text_done: "Future[PackageText]") -> "_Work":
        """Return the work with its calibration text read, and with all formats chosen."""
        reference = self.front_end.reference
        if reference is None:  # optimum-intel calibrates with texts of its own
            return self
        from qwen_edge.export.calibrated.settling import settle_calibration

        settled = settle_calibration(
            self.resolved,
            self.source,
            reference,
            self.adapters,
            text_done.result(),
            self.report,
            self.tell,
        )
        resolved = replace(self.resolved, recipe=settled.calibration.recipe)
        return replace(self, resolved=resolved, settled=settled)

    def _finish(self, reports: tuple[TensorReport, ...], text: PackageText) -> ExportResult:
        """Write what follows from the model, measure it, and say what it is."""
        folder = self.staging.folder
        told = self._copy_small_files()
        if (onnx := self._onnx) is not None:
            self._write_genai_config(onnx, text)
        manifest = self._describe(reports, text)
        quality = self._measure(manifest, text)
        manifest = replace(manifest, quality=quality.facts)
        if self.settled is not None:
            self.settled.write_files(folder, manifest.name)
        card = write_model_card(manifest, self.resolved.formats)
        write_text(folder / CARD_NAME, card)
        names = sorted(path.name for path in folder.iterdir())
        files: dict[str, FileFacts] = {}
        for done, name in enumerate(names):
            self.report("hash files", done, len(names))
            files[name] = hash_file(folder / name)
        self.report("hash files", len(names), len(names))
        manifest = replace(manifest, files=files)
        write_manifest(folder, manifest)
        if self.warm_prompt is not None:
            # It is bound to the files above, and computed by the package that they already are.
            warm = write_warm_prompt(folder, manifest, self.warm_prompt, text.warm_ids, self.report)
            manifest = replace(manifest, files=dict(sorted((files | warm).items())))
            write_manifest(folder, manifest)
        settled = self.settled
        notes = (*told, *quality.notes, *(settled.find_notes(quality.facts) if settled else ()))
        table = settled.table if settled else None
        return ExportResult(folder, manifest, reports, notes, table)

    def _write_model(self, text_done: "Future[PackageText]") -> tuple[TensorReport, ...]:
        def report(step: str, done: int, total: int) -> None:
            if text_done.done():
                text_done.result()  # its refusal need not wait for the last layer
            self.report(step, done, total)

        formats = ModelFormats(self._devices or None, self._onnx)
        calibration = None if self.settled is None else self.settled.calibration
        return self.front_end.write_model(self.staging.folder, formats, report, calibration)

    def _write_text(self) -> PackageText:
        text = write_text_files(
            self.source.folder,
            self.staging.folder,
            vocab_size=self.front_end.model.vocab_size,
            for_openvino="openvino" in self.resolved.formats,
        )
        if (own := self.resolved.request.quality_text) is not None:
            read_own(own, text.tokenizer)  # one that is too short is refused before the work
        if self.warm_prompt is None:
            return text
        devices, onnx = self._devices, self._onnx
        check_has_cpu(self.resolved.formats, devices, onnx)
        bounds = [entry.max_context_tokens for entry in (*devices, onnx) if entry is not None]
        warm_ids = find_common_ids(
            text.chat_template, self.warm_prompt, max_context_tokens=min(bounds)
        )
        return replace(text, warm_ids=warm_ids)

    def _copy_small_files(self) -> tuple[str, ...]:
        """Copy what goes along as it is; returns what a person should be told."""
        name = "generation_config.json"
        path = self.source.folder / name
        if path.is_file():
            copy_file(path, self.staging.folder / name)
        text = json.dumps(self.config, indent=2, sort_keys=True) + "\n"
        write_text(self.staging.folder / "config.json", text)
        source = self.source
        return copy_licence_texts(source.folder, self.staging.folder, stated=source.license)

    def _write_genai_config(self, onnx: OnnxFacts, text: PackageText) -> None:
        given = self.source.folder / "generation_config.json"
        configs = [facts.read_json_object(given)] if given.is_file() else []
        content = build_genai_config(
            self.front_end.model, onnx, self.generation, text.tokenizer, [*configs, self.config]
        )
        write_genai_config(self.staging.folder, content)

    @property
    def _context_limit(self) -> int:
        """Return the context that model and request allow at most."""
        asked = self.resolved.request.max_context_tokens
        limit = self.front_end.model.max_context_tokens
        return limit if asked is None else min(asked, limit)

    @property
    def _devices(self) -> tuple[DeviceSettings, ...]:
        """Return the profile's devices where the IR is written, fitted to the model."""
        if "openvino" not in self.resolved.formats:
            return ()
        num_layers = self.front_end.model.num_layers
        return facts.device_settings(self.resolved.profile, self._context_limit, num_layers)

    @property
    def _onnx(self) -> OnnxFacts | None:
        """Return how the ONNX form is written, where it is."""
        if "onnx" not in self.resolved.formats:
            return None
        is_portable = self.resolved.request.portable
        return facts.onnx_facts(self.resolved.profile, self._context_limit, is_portable=is_portable)

    def _describe(self, reports: tuple[TensorReport, ...], text: PackageText) -> Manifest:
        folder, resolved = self.staging.folder, self.resolved
        devices, onnx = self._devices, self._onnx
        golden = self._try(text)
        npu = self._check_npu(devices)
        bounds = [entry.max_context_tokens for entry in (*devices, onnx) if entry is not None]
        return Manifest(
            name=resolved.name,
            model=replace(self.front_end.model, max_context_tokens=max(bounds)),
            source=facts.source_facts(
                self.source, self._source_files(), adapter_facts(self.adapters, self.report)
            ),
            profile=ProfileFacts(resolved.profile.name, resolved.recipe.name),
            recipe=facts.recipe_facts(resolved.recipe),
            weights=self.front_end.describe_weights(folder, reports),
            devices=devices,
            generation=self.generation,
            chat=text.chat,
            golden=golden,
            tools=facts.tool_versions(resolved.formats),
            files={},
            onnx=onnx,
            npu=npu,
            calibration=None if self.settled is None else self.settled.facts,
        )

    def _measure(self, manifest: Manifest, text: PackageText) -> SealedQuality:
        """Compare the package with its checkpoint; refuse one that lost too much."""
        return measure_staged(
            self.staging,
            manifest,
            text,
            self.front_end.reference,
            self.resolved.request,
            self.report,
            self.settled.find_broken_budget if self.settled else None,
        )

    def _check_npu(self, devices: tuple[DeviceSettings, ...]) -> NpuVerdict | None:
        """Find out whether the model runs on an NPU, where the package has settings for one."""
        if not any(entry.device == "NPU" for entry in devices):
            return None
        self.report("check for NPU", 0, 1)
        verdict = check_npu(
            self.staging.folder,
            devices,
            vocab_size=self.front_end.model.vocab_size,
            is_skipped=self.resolved.request.skip_npu_check,
        )
        self.report("check for NPU", 1, 1)
        return verdict

    def _try(self, text: PackageText) -> GoldenTokens:
        """Run the package in every format it has; all must give the same tokens."""
        formats = self.resolved.formats
        self.report("try the package", 0, len(formats))
        golden = measure_golden_tokens(
            self.staging.folder, text.tokenizer, text.template, text.chat.thinking, formats[0]
        )
        self.report("try the package", 1, len(formats))
        for done, name in enumerate(formats[1:], 2):
            check_golden_tokens(self.staging.folder, golden, name)
            self.report("try the package", done, len(formats))
        return golden

    def _source_files(self) -> dict[str, FileFacts]:
        files = {}
        for done, (name, file) in enumerate(sorted(self.source.files.items())):
            self.report("hash source", done, len(self.source.files))
            known = file.sha256
            files[name] = (
                FileFacts(file.size_bytes, known) if known else hash_file(self.source.folder / name)
            )
        self.report("hash source", len(self.source.files), len(self.source.files))
        return files
