"""`qwen-edge export`: what it explains, refuses and writes."""

import importlib
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.cli.export_command import check_extra
from qwen_edge.cli.export_view import _shell_path
from qwen_edge.errors import MissingExtraError
from qwen_edge.export import ExportRequest
from qwen_edge.profiles.profile import load_profile


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder of one's own."""
    folder = tmp_path / "hier ü"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_explain_shows_every_field_with_its_origin_and_writes_nothing(
    cli: Any, empty_folder: Path, isolated_machine: Path
) -> None:
    before = sorted(isolated_machine.rglob("*"))
    outcome = cli("export", "demo", "--profile", "core-ultra", "--explain")
    assert (outcome.code, outcome.err) == (0, "")
    for entry in fields(ExportRequest):
        assert f"\n  {entry.name} = " in outcome.out
    assert "\n  profile = core-ultra\n      flag --profile\n" in outcome.out
    assert "\n  recipe = int4-awq\n      profile core-ultra: " in outcome.out
    assert "\n  revision = not given\n      default\n" in outcome.out
    for device in load_profile("core-ultra").devices:
        assert f"\nDevice {device.device}: {device.reasons['device']}\n" in outcome.out
        for name, value in device.properties.items():
            assert f"  {name} = {value}\n      {device.reasons[name]}\n" in outcome.out
    assert "\nPlan\n  about " in outcome.out
    assert outcome.out.endswith("Nothing was downloaded or written.\n")
    assert list(empty_folder.iterdir()) == []
    assert sorted(isolated_machine.rglob("*")) == before


def test_explain_as_json(cli: Any, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN_EDGE_RECIPE", "int4")
    outcome = cli("export", "demo", "--explain", "--json", "--max-context-tokens", "1000")
    assert (outcome.code, outcome.err) == (0, "")
    data = json.loads(outcome.out)
    assert list(data["request"]) == [entry.name for entry in fields(ExportRequest)]
    assert data["request"]["recipe"] == {
        "value": "int4",
        "reason": "environment QWEN_EDGE_RECIPE",
    }
    assert data["request"]["max_context_tokens"]["reason"] == "flag --max-context-tokens"
    assert all(choice["reason"] for choice in data["request"].values())
    assert data["plan"]["package_bytes"] > 0
    assert data["source"]["kind"] == "embedded"
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["demo", "--profile", "core-ulta"], 2, "'core-ulta'. Did you mean 'core-ultra'?"),
        (["demo", "--recipe", "int4-qwa"], 2, "'int4-qwa'. Did you mean 'int4-awq'?"),
        (["demo", "--profile", "core-ultra", "--recipe", "fp16"], 2, "fp16"),
        (["demoo"], 2, "Did you mean 'demo'?"),
        ([""], 2, "The model is an empty text"),
        (["./nothing here"], 2, "There is no folder './nothing here'"),
        (["demo", "--max-context-tokens", "0"], 2, "max_context_tokens is 0"),
        (["demo", "--max-context-tokens", "many"], 2, "'many' is not a whole number"),
        (["demo", "--revision", "main"], 2, "has no revisions"),
        (["--offline"], 5, "Offline, and the cache holds nothing of 'Qwen/Qwen3-4B'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refusals_write_nothing(
    cli: Any, empty_folder: Path, arguments: list[str], code: int, words: str
) -> None:
    outcome = cli("export", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    lines = outcome.err.splitlines()
    assert lines[0].startswith("Error: ") and words in outcome.err
    assert any(line.startswith("Fix: ") for line in lines)
    error = json.loads(cli("export", *arguments, "--json").err)
    assert error["exit_code"] == code and words in error["problem"]
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize("module", ["transformers", "openvino_tokenizers", "qwen_edge.export"])
def test_a_light_installation_says_what_to_install(
    cli: Any, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as caught:
        check_extra(("openvino",))
    assert caught.value.facts["package"] == module
    outcome = cli("export", "demo")
    assert (outcome.code, outcome.out) == (2, "")
    is_openvino = module.startswith("openvino")
    other = "     or export for ONNX Runtime alone, with --format onnx\n" if is_openvino else ""
    assert outcome.err == (
        f"Error: Exporting needs {module!r}, which is not installed.\n"
        f"Fix: pip install 'qwen-edge[export]'\n{other}"
    )


def test_an_export_prints_the_folder_and_the_next_command(
    cli: Any, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen_edge.export.quality.assessment.SHORT_TOKENS", 120)
    arguments = ("export", "demo", "--profile", "generic-x86", "--output", "mein Modell")
    outcome = cli(*arguments)
    assert outcome.code == 0
    folder = empty_folder / "mein Modell"
    assert outcome.out == f"{folder}\n"
    assert "Run it: qwen-edge run './mein Modell' \"Hello!\"" in outcome.err
    assert "profile  generic-x86 (flag --profile)" in outcome.err
    assert "Quality: KL " in outcome.err and "as it runs on CPU with OpenVINO" in outcome.err
    assert [path.name for path in empty_folder.iterdir()] == ["mein Modell"]
    again = cli(*arguments)
    assert (again.code, again.out) == (2, "")
    assert "--force" in again.err
    forced = cli(*arguments, "--force", "--json", "--skip-quality")
    assert (forced.code, forced.err) == (0, "")
    data = json.loads(forced.out)
    assert data["folder"] == str(folder)
    assert sum(data["bits"].values()) > 0
    assert data["quality"] is None and "--skip-quality" in data["notes"][0]


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell's quotes")
@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("plain", "./plain"),
        ("two words", "'./two words'"),
        ("it's $HOME", "'./it'\"'\"'s $HOME'"),
        ("..", None),
    ],
)
def test_a_path_is_shown_as_it_is_typed(path: str, shown: str | None) -> None:
    folder = Path.cwd() / path
    assert _shell_path(folder) == (shown or _shell_path(folder.absolute()))
    assert _shell_path(Path("/elsewhere")) == "/elsewhere"


@pytest.mark.parametrize("module", ["onnx", "onnx_ir", "onnxruntime", "openvino"])
def test_a_broken_engine_is_met_before_any_work(
    cli: Any, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """Found by a first user: it was met at the last step, after minutes."""

    def fail(name: str, *arguments: object) -> object:
        if name == module:
            raise ImportError("DLL load failed")
        return real(name, *arguments)

    real = importlib.import_module
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(importlib, "import_module", fail)
    outcome = cli("export", "demo", "--format", "both", "--output", "package")
    assert outcome.code in {2, 6}
    assert "compress" not in outcome.err
    assert module.partition("_")[0].lower() in outcome.err.lower().replace(" ", "")
    assert "DLL load failed" in outcome.err
    assert list(empty_folder.iterdir()) == []


def test_explain_tells_what_is_chosen_for_each_format(cli: Any) -> None:
    onnx = cli("export", "demo", "--format", "onnx", "--explain").out
    assert "ONNX Runtime" in onnx and "accuracy_level = 4" in onnx
    assert "KV_CACHE_PRECISION" not in onnx
    openvino = cli("export", "demo", "--format", "openvino", "--explain").out
    assert "accuracy_level" not in openvino and "PERFORMANCE_HINT" in openvino
