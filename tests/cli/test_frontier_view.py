"""The table of a recipe search: aligned, with the chosen line marked, and as JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.cli import frontier_view
from qwen_edge.cli.frontier_view import FrontierView, frontier_json
from qwen_edge.cli.output import Output
from qwen_edge.errors import ResourceError
from qwen_edge.export.recipe_search.table import FrontierLine, FrontierTable

TABLE = FrontierTable(
    "auto-12345678",
    (
        FrontierLine(2_100_000_000, 0.08, 2_000_000_000, is_chosen=False),
        FrontierLine(2_612_000_000, 0.04, 2_500_000_000, is_chosen=True),
        FrontierLine(4_100_000_000, 0.0, 4_000_000_000, is_chosen=False),
    ),
    8_192,
)


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier_view, "_measure", lambda: 20e9)
    view = FrontierView(Output())
    view("Goes on.")
    view(TABLE)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "Goes on.",
        "What can be had, by about 8,192 tokens of calibration text:",
        "     weights        KL  tokens/s",
        "    2.100 GB      0.08      10.0  ########################",
        "  → 2.612 GB      0.04       8.0  ############",
        "    4.100 GB         0       5.0",
        "  KL: expected, weights alone. tokens/s: at most, by 20.0 GB/s of memory here and the "
        "bytes a token reads.",
        "  → is the recipe auto-12345678.",
    ]
    assert view.bandwidth == 20e9


def test_nobody_reads_it(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(frontier_view, "_measure", lambda: pytest.fail("measured for nobody"))
    FrontierView(Output(is_quiet=True), is_read=False)(TABLE)
    assert capsys.readouterr().err == ""


def test_a_machine_that_cannot_be_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: object) -> float:
        raise ResourceError("no memory")

    monkeypatch.setattr("qwen_edge.runtime.machine.roofline.measure_bandwidth", refuse)
    view = FrontierView(Output())
    view(TABLE)
    assert view.bandwidth is None
    assert "could not be measured" in capsys.readouterr().err
    assert frontier_json(TABLE, None)["bandwidth_bytes_per_s"] is None


def test_as_json() -> None:
    data = json.loads(json.dumps(frontier_json(TABLE, 20e9)))
    assert [line["most_tokens_per_s"] for line in data["lines"]] == [10.0, 8.0, 5.0]
    assert [line["is_chosen"] for line in data["lines"]] == [False, True, False]
    assert data["lines"][1]["weights_bytes"] == 2_612_000_000


def test_cancelled_work_is_named_before_the_end(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_edge.export.calibrated import driver

    real = driver._compress_layer

    def stop(*arguments: Any) -> None:
        if arguments[4] == 1:
            raise KeyboardInterrupt
        real(*arguments)

    text = tmp_path / "text.txt"
    text.write_text("The harbour was quiet, and the gulls sat on the wall. " * 60, encoding="utf-8")
    output = tmp_path / "package"
    line = ["export", "demo", "--recipe", "int4-awq-se", "--calibration", text, "--skip-quality"]
    line += ["--calibration-samples", "1", "--output", output, "--profile", "generic-x86"]
    with monkeypatch.context() as patch:
        patch.setattr(driver, "_compress_layer", stop)
        outcome = cli(*line)
    assert outcome.code == 130
    told, cancelled = [line for line in outcome.err.splitlines() if line][-2:]
    assert str(tmp_path / ".package.calibration") in told and "the same command goes on" in told
    assert cancelled == "Cancelled."
    outcome = cli(*line)
    assert outcome.code == 0
    assert "\nGoes on at layer 2 of 4, kept from an interrupted export.\n" in outcome.err
