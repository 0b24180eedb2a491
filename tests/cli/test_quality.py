"""`qwen-edge quality`: what it prints, writes and refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import qwen_edge.export

DEMO = Path(qwen_edge.export.__file__).parent / "demo"
TEXT = "The lamp is on the table near the door, and the key is under the mat. " * 4


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "own.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def other_reference(tmp_path: Path, name: str, old: str, new: str) -> Path:
    """Return a copy of the demo checkpoint with one of its texts changed."""
    folder = tmp_path / "reference"
    shutil.copytree(DEMO, folder)
    content = (folder / name).read_text(encoding="utf-8")
    assert old in content
    (folder / name).write_text(content.replace(old, new, 1), encoding="utf-8")
    return folder


def test_a_table_a_report_and_a_gate(
    cli: Any, demo_package: Path, text: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    arguments = ("quality", str(demo_package), "--reference", "demo", "--text", str(text))
    outcome = cli(*arguments, "--report", str(report), "--gate", "kl=0,top1=0.1")
    assert outcome.code == 9
    rows = [line.split("\t") for line in outcome.out.splitlines()]
    assert [row[0] for row in rows] == [
        "reading",
        "weights alone",
        "and activations",
        "and cache: as it runs",
    ]
    assert all(len(row) == 6 for row in rows)
    assert "Error: The package" in outcome.err and "mean KL is" in outcome.err
    assert f"Report: {report}" in outcome.err
    page = report.read_text(encoding="utf-8")
    assert "Misses the gate" in page and "a text of somebody" in page
    passed = cli(*arguments, "--gate", "kl=2", "--json", "--device", "cpu")
    assert (passed.code, passed.err) == (0, "")
    data = json.loads(passed.out)
    assert data["reference"]["id"] == "demo"
    assert data["misses"] == [] and data["notes"] == []
    kl = data["quality"]["as_run"]["kl"]
    assert kl["low"] <= kl["value"] <= kl["high"]
    assert float(rows[3][1].split()[0]) == pytest.approx(kl["value"], rel=5e-3)
    assert len(data["details"]["layers"]) == 4
    assert data["details"]["readings"]["as_run"]["by_kind"]["own"]["num_positions"] > 64


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("config.json", '"rope_theta": 10000', '"rope_theta": 20000', "rope is"),
        ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05', "rms_norm_eps is 1e-05"),
        ("config.json", '"model_type": "qwen3"', '"model_type": "phi3"', "no native graph"),
        ("tokenizer.json", '"Q"', '"\\u0141"', "another vocabulary"),
    ],
)
def test_a_reference_of_another_kind_is_refused(
    cli: Any, demo_package: Path, tmp_path: Path, name: str, old: str, new: str, told: str
) -> None:
    folder = other_reference(tmp_path, name, old, new)
    outcome = cli("quality", str(demo_package), "--reference", str(folder))
    assert (outcome.code, outcome.out) == (2, "")
    assert told in outcome.err and "Fix: " in outcome.err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "reference is missing"),
        (("--reference", "demoo"), 2, "demo"),
        (("--reference", "demo", "--gate", "kl<1"), 2, "no figure 'kl<1'"),
        (("--reference", "demo", "--text", "nowhere.txt"), 2, "cannot be read"),
        (("--reference", "demo", "--device", "TPU"), 2, "TPU"),
        (("--reference", "demo", "--report", "nowhere/r.html"), 8, "does not exist"),
        (("--reference", "demo", "--revision", "main"), 2, "no revisions"),
        (("--reference", "org/model", "--offline"), 5, "Offline"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    cli: Any, demo_package: Path, arguments: tuple[str, ...], code: int, told: str
) -> None:
    outcome = cli("quality", str(demo_package), *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert told in outcome.err


def test_a_device_that_is_named_is_not_exchanged(
    cli: Any, demo_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is looked for first: at full size the layers take minutes."""
    monkeypatch.setattr("qwen_edge.export.quality.measure.run_layer", None)
    outcome = cli("quality", str(demo_package), "--reference", "demo", "--device", "GPU")
    assert outcome.code == 6
    assert "GPU" in outcome.err


def test_a_changed_package_is_refused(cli: Any, demo_package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(demo_package, folder)
    with (folder / "config.json").open("ab") as file:
        file.write(b" ")
    outcome = cli("quality", str(folder), "--reference", "demo")
    assert outcome.code == 3
    assert "config.json" in outcome.err
