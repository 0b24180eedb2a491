"""Exports with a search and with calibration: what they write, say, keep and refuse."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import ParityError, ResourceError
from qwen_edge.export import ExportRequest, ExportResult, prepare_export, run_export
from qwen_edge.export.calibrated import driver, settling
from qwen_edge.export.calibrated.kept_work import SEARCH_KEPT
from qwen_edge.export.plan import check_plan
from qwen_edge.export.recipe_search.budget import Budget
from qwen_edge.export.recipe_search.promise import find_broken_budget
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.package import verify_package

CheckpointMaker = Callable[..., Path]
TEXT = "One after the other the boats came in, and nobody on the quay said a word about it. " * 30


class Stopped(BaseException):
    """What no one catches."""


@dataclass
class Job:
    """Exports of one checkpoint to one place, and what they told."""

    folder: Path
    checkpoint: Path
    calibration: Path
    quality: Path
    told: list[str] = field(default_factory=list)

    @property
    def kept(self) -> Path:
        """Where calibration keeps its work."""
        return self.folder / ".package.calibration"

    def run(self, *, stop_at: int | None = None, **options: Any) -> ExportResult:
        """Export; stop when so many layers are calibrated."""
        request: dict[str, Any] = {
            "recipe": "int4-gptq",
            "output": self.folder / "package",
            "calibration": self.calibration,
            "calibration_samples": 2,
            "skip_quality": True,
        }

        def report(what: str, done: int, total: int) -> None:
            if what == driver.STEP and stop_at is not None and done >= stop_at * total // 2:
                raise Stopped

        self.told = []
        prepared = prepare_export(
            ExportRequest(str(self.checkpoint), "generic-x86", **(request | options))
        )
        return run_export(prepared, report, lambda news: self.told.append(str(news)))


@pytest.fixture
def job(tmp_path: Path, make_checkpoint: CheckpointMaker) -> Job:
    checkpoint = make_checkpoint(tmp_path / "source", hidden_size=128, head_dim=32)
    calibration, quality = tmp_path / "calibration.txt", tmp_path / "quality.txt"
    calibration.write_text(TEXT, encoding="utf-8")
    quality.write_text(TEXT[::-1][:400], encoding="utf-8")
    return Job(tmp_path, checkpoint, calibration, quality)


def test_a_recipe_that_was_found_gives_the_same_package(job: Job) -> None:
    found = job.run(recipe="auto", budget="kl<=1000")
    names = {path.name for path in found.folder.iterdir()}
    assert {"recipe.toml", "frontier.html"} <= names
    report = verify_package(found.folder)
    assert (report.missing, report.extra, report.changed) == ((), (), ())
    card = (found.folder / "README.md").read_text(encoding="utf-8")
    assert "[frontier.html](frontier.html)" in card and "[recipe.toml](recipe.toml)" in card
    assert found.frontier is not None
    facts = found.manifest.calibration
    assert facts is not None and facts.expected_kl == found.frontier.chosen.kl
    size = found.manifest.weights.weights_bytes
    assert found.frontier.chosen.weights_bytes == pytest.approx(size, rel=0.005)
    assert "was not checked" in found.notes[-1] and "KL of 1000" in found.notes[-1]
    again = job.run(recipe=str(found.folder / "recipe.toml"), output=job.folder / "again")
    for name in ("openvino_model.bin", "openvino_model.xml"):
        assert again.manifest.files[name] == found.manifest.files[name]
    assert again.manifest.recipe == found.manifest.recipe
    assert "recipe.toml" not in again.manifest.files
    assert again.frontier is None and "recipe.toml" not in (again.folder / "README.md").read_text(
        encoding="utf-8"
    )


def test_what_breaks_its_budget_is_refused_and_kept(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget's own figures are replaced: a tiny random model loses next to nothing."""

    def find(search: Any, budget: Budget, quality: Any) -> Any:
        return find_broken_budget(search, replace(budget, kl=1e-12), quality)

    options: dict[str, Any] = {
        "recipe": "auto",
        "budget": "kl<=1000",
        "skip_quality": False,
        "quality_text": job.quality,
    }
    with monkeypatch.context() as patch:
        patch.setattr(settling, "find_broken_budget", find)
        with pytest.raises(ParityError, match="does not keep to its budget") as caught:
            job.run(**options)
    assert caught.value.facts["expected_kl"] < 1
    assert not (job.folder / "package").exists()
    report = (job.folder / "package.quality.html").read_text(encoding="utf-8")
    assert "the budget allows 1e-12" in report
    assert str(job.folder / "package.quality.html") in caught.value.problem
    assert repr(str(job.kept)) in job.told[-1]
    assert "--accept-loss" in job.told[-1]
    job.run(**options)
    assert job.told[0] == SEARCH_KEPT
    assert job.told[-1] == "All 2 layers are kept from an interrupted export."
    assert not job.kept.exists()
    assert not (job.folder / ".package.search.json").exists()


def test_an_interrupted_calibration_is_gone_on_with(job: Job) -> None:
    whole = job.run(output=job.folder / "whole")
    assert job.told == []
    with pytest.raises(Stopped):
        job.run(stop_at=1)
    (told,) = job.told
    assert repr(str(job.kept)) in told and "kB" in told and "same command" in told
    assert "--accept-loss" not in told
    result = job.run()
    assert job.told == ["Goes on at layer 2 of 2, kept from an interrupted export."]
    assert result.manifest.files["openvino_model.bin"] == whole.manifest.files["openvino_model.bin"]
    assert not job.kept.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": "int4-awq-se"}, "another recipe"),
        ({"calibration_samples": 1}, "other calibration text"),
    ],
)
def test_work_that_does_not_fit_is_begun_anew(job: Job, change: dict[str, Any], words: str) -> None:
    with pytest.raises(Stopped):
        job.run(stop_at=1)
    with pytest.raises(Stopped):
        job.run(stop_at=0, **change)
    assert job.told[0] == (
        f"Earlier calibration in {str(job.kept)!r} was for {words}, so calibration starts anew."
    )


def test_work_of_another_name_is_left_alone(job: Job) -> None:
    with pytest.raises(Stopped):
        job.run(stop_at=1)
    before = {path.name: path.read_bytes() for path in job.kept.iterdir()}
    job.run(output=job.folder / "other", recipe="int4-awq-se")
    assert job.told == []
    job.run(output=job.folder / "other", recipe="int4", calibration=None, force=True)
    assert {path.name: path.read_bytes() for path in job.kept.iterdir()} == before


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Return a function that sets free memory and disk."""

    def limit(*, memory: int | None = None, disk: int | None = None) -> None:
        hardware = replace(probe_hardware(), available_memory_bytes=memory)
        monkeypatch.setattr("qwen_edge.export.plan.probe_hardware", lambda: hardware)
        if disk is not None:
            usage = type("Usage", (), {"free": disk})
            monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    yield limit


def test_phases_and_refusals_of_the_plan(job: Job, little: Callable[..., None]) -> None:
    output = job.folder / "package"

    def plan(**options: Any) -> Any:
        request = ExportRequest("demo", "generic-x86", output=output, **options)
        return prepare_export(request).plan

    plain, calibrated = plan(recipe="int4"), plan(recipe="int4-gptq")
    searched = plan(recipe="auto", budget="kl<=1")
    assert "calibrate and compress" not in [phase.name for phase in plain.phases]
    assert [phase.name for phase in calibrated.phases][:2] == ["start", "calibrate and compress"]
    assert [phase.name for phase in searched.phases][1:3] == [
        "measure sensitivity",
        "calibrate and compress",
    ]
    assert plain.seconds < calibrated.seconds < searched.seconds
    assert plain.disk_bytes + 2 * 4 * 16_000 * 256 < calibrated.disk_bytes
    assert plan(recipe="int4-awq-se").memory_bytes <= calibrated.memory_bytes
    little(memory=calibrated.memory_bytes)
    check_plan(calibrated, output, None)
    little(memory=calibrated.memory_bytes - 1)
    with pytest.raises(ResourceError, match="of memory") as caught:
        check_plan(calibrated, output, None)
    assert "--recipe int4-awq" in (caught.value.fix or "")
    little(memory=None, disk=calibrated.disk_bytes - 1)
    with pytest.raises(ResourceError, match="of free disk"):
        check_plan(calibrated, output, None)
    job.kept.mkdir()
    (job.kept / "layer-0.safetensors").write_bytes(b"x")  # what is there already is not needed
    check_plan(calibrated, output, None)


def test_a_full_size_calibration_fits_a_laptop() -> None:
    """Qwen3-4B with 65,536 tokens: an hour and a half on two cores, and no more than 4 GB."""
    from qwen_edge.export.calibration_plan import cost_of_calibration, count_work, kept_bytes
    from qwen_edge.export.resource_plan import NOMINAL, plan_phases

    prepared = prepare_export(ExportRequest("demo", "generic-x86", recipe="int4-gptq"))
    work = prepared.plan.work
    calibration = count_work(prepared.resolved.recipe, prepared.resolved.request, None)
    assert calibration is not None
    full = replace(
        work,
        num_weights=4_022_000_000,
        layer_weights=3_633_000_000,
        num_layers=36,
        hidden_size=2_560,
        layer_bytes=1_870_000_000,
        openvino_bytes=2_260_000_000,
        tokenizer_bytes=11_422_654,
        calibration=replace(calibration, num_tokens=65_536),
    )
    assert full.calibration is not None
    phases = {phase.name: phase for phase in plan_phases(full)}
    assert phases["calibrate and compress"].memory_bytes < 4e9
    cost = cost_of_calibration(full.calibration, full, products_per_s=140e9, slower=1.0)
    assert cost.seconds / 36 == pytest.approx(104, rel=0.1)
    assert kept_bytes(full.calibration, 2_560, 1_870_000_000) == pytest.approx(3.21e9, rel=0.01)
    searched = replace(full, calibration=replace(full.calibration, is_searched=True))
    phases = {phase.name: phase for phase in plan_phases(searched, NOMINAL)}
    assert phases["measure sensitivity"].memory_bytes < 4e9
