"""`qwen-edge verify` on a real package, intact and damaged."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import DeviceError, MissingExtraError
from qwen_edge.runtime.manifest import MODEL_ONNX_DATA, Manifest, OnnxFacts
from qwen_edge.runtime.package import hash_file, read_manifest, write_manifest

GOLDEN = "qwen_edge.runtime.golden.run_golden_tokens"


@pytest.fixture
def package(demo_package: Path, tmp_path: Path) -> Path:
    """Return a copy of the demo package that a test may damage."""
    return Path(shutil.copytree(demo_package, tmp_path / "das Paket ü"))


@pytest.mark.trust("T-SUP-01")
def test_an_intact_package(cli: Any, demo_package: Path) -> None:
    outcome = cli("verify", demo_package)
    assert outcome.code == 0
    assert outcome.out.startswith(f"{demo_package}: ")
    assert ", intact, all " in outcome.out and len(outcome.out.splitlines()) == 1
    assert outcome.out.endswith(" golden tokens as recorded with OpenVINO\n")


def test_an_intact_package_as_json(cli: Any, demo_package: Path) -> None:
    outcome = cli("verify", demo_package, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    data = json.loads(outcome.out)
    assert data["num_files"] == len(list(demo_package.iterdir()))
    assert data["num_bytes"] == sum(path.stat().st_size for path in demo_package.iterdir())
    assert data["golden_tokens"] > 0
    assert data["formats"] == [
        {"format": "openvino", "golden_tokens": data["golden_tokens"], "not_run": None}
    ]
    assert len(data["package_hash"]) == 64


def test_files_only_does_not_run_the_model(
    cli: Any, demo_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr("qwen_edge.runtime.golden.run_golden_tokens", fail)
    outcome = cli("verify", demo_package, "--files-only", "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    assert "golden" not in outcome.out
    assert (
        json.loads(cli("verify", demo_package, "--files-only", "--json").out)["golden_tokens"]
        is None
    )


@pytest.mark.trust("T-SUP-01")
def test_one_flipped_bit_in_any_file_is_found(cli: Any, package: Path) -> None:
    names = sorted(path.name for path in package.iterdir() if path.name != "manifest.json")
    assert len(names) > 8
    for name in names:
        path = package / name
        before = path.read_bytes()
        middle = len(before) // 2
        path.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
        outcome = cli("verify", package)
        path.write_bytes(before)
        assert (outcome.code, outcome.out) == (3, ""), name
        assert f"'{name}' has other contents than were sealed" in outcome.err
        assert outcome.err.count("SHA-256") == 1
        assert "\nFix: copy the folder again" in outcome.err
    assert cli("verify", package, "--files-only").code == 0


@pytest.mark.trust("T-SUP-01")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "'config.json' is missing"),
        (lambda folder: (folder / "extra.txt").write_text("x"), "'extra.txt' is not listed"),
        (
            lambda folder: (folder / "openvino_model.bin").write_bytes(b"cut"),
            "'openvino_model.bin' is cut off at 3 bytes",
        ),
        (lambda folder: (folder / "manifest.json").unlink(), "'manifest.json' is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
    ],
    ids=["missing", "extra", "truncated", "no-manifest", "broken-manifest"],
)
def test_other_damage_is_named(
    cli: Any, package: Path, damage: Callable[[Path], object], words: str
) -> None:
    damage(package)
    outcome = cli("verify", package, "--files-only")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith("Error: ") or "\nError: " in outcome.err
    assert words in outcome.err
    assert "\nFix: " in outcome.err


@pytest.mark.trust("T-SUP-01")
def test_damage_as_json_lists_every_problem(cli: Any, package: Path) -> None:
    (package / "config.json").unlink()
    (package / "extra.txt").write_text("x")
    outcome = cli("verify", package, "--json")
    assert (outcome.code, outcome.out) == (3, "")
    [line] = outcome.err.splitlines()
    facts = json.loads(line)["facts"]
    assert facts["report"]["missing"] == ["config.json"]
    assert facts["report"]["extra"] == ["extra.txt"]
    assert len(facts["problems"]) == 2


@pytest.mark.trust("T-SUP-01")
def test_other_golden_tokens_are_a_parity_error(cli: Any, package: Path) -> None:
    path = package / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["golden"]["token_ids"][3] ^= 1
    wrong = manifest["golden"]["token_ids"][3]
    path.write_bytes(Manifest.from_json(manifest).to_bytes())
    outcome = cli("verify", package)
    assert (outcome.code, outcome.out) == (9, "")
    assert f"token 4 of {len(manifest['golden']['token_ids'])} golden tokens is " in outcome.err
    assert f"expected {wrong}" in outcome.err
    assert "\nFix: compare OpenVINO versions" in outcome.err
    error = json.loads(cli("verify", package, "--json").err.splitlines()[-1])
    assert error["exit_code"] == 9 and error["facts"]["expected"][3] == wrong


@pytest.fixture
def two_formats(package: Path) -> Path:
    """Return a package whose manifest names an ONNX model as well; the model is no real one."""
    manifest = read_manifest(package)
    for name in ("model.onnx", "model.onnx.data"):
        (package / name).write_bytes(name.encode())
    names = {path.name for path in package.iterdir()} - {"manifest.json"}
    both = dataclasses.replace(
        manifest,
        files={name: hash_file(package / name) for name in names},
        onnx=OnnxFacts(21, False, 4096, 512, 4),
    )
    write_manifest(package, both)
    return package


@pytest.fixture
def golden(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that replaces the run of golden tokens; it tells which were asked for.

    A format is given False when it answers otherwise, or the error that it raises.
    """

    def make(**formats: bool | Exception) -> list[str]:
        asked: list[str] = []

        def run(folder: Path, manifest: Manifest, *, fmt: str) -> tuple[int, ...]:
            assert folder.is_dir()
            asked.append(fmt)
            outcome = formats.get(fmt, True)
            if isinstance(outcome, Exception):
                raise outcome
            tokens = manifest.golden.token_ids
            return tokens if outcome else (tokens[0], tokens[1] ^ 1, *tokens[2:])

        monkeypatch.setattr(GOLDEN, run)
        return asked

    return make


def test_every_format_is_run(cli: Any, two_formats: Path, golden: Any) -> None:
    asked = golden()
    outcome = cli("verify", two_formats)
    assert outcome.code == 0
    assert outcome.out.endswith(" as recorded with OpenVINO and ONNX Runtime\n")
    assert asked == ["openvino", "onnx"]
    formats = json.loads(cli("verify", two_formats, "--json").out)["formats"]
    assert [entry["format"] for entry in formats] == ["openvino", "onnx"]
    assert all(entry["golden_tokens"] > 0 and entry["not_run"] is None for entry in formats)


@pytest.mark.parametrize("backend", ["openvino", "ONNX"])
def test_a_named_backend_is_run_alone(
    cli: Any, two_formats: Path, golden: Any, backend: str
) -> None:
    asked = golden()
    outcome = cli("verify", two_formats, "--backend", backend, "--json")
    assert asked == [backend.lower()]
    assert [entry["format"] for entry in json.loads(outcome.out)["formats"]] == asked


def test_each_format_that_answers_otherwise_is_named(
    cli: Any, two_formats: Path, golden: Any
) -> None:
    golden(onnx=False)
    outcome = cli("verify", two_formats)
    assert (outcome.code, outcome.out) == (9, "")
    assert "token 2 of " in outcome.err and "here with ONNX Runtime" in outcome.err
    assert "OpenVINO" not in outcome.err.split("Error: ")[1]
    golden(openvino=False, onnx=False)
    error = json.loads(cli("verify", two_formats, "--json").err.splitlines()[-1])
    assert sorted(error["facts"]["got"]) == ["onnx", "openvino"]
    assert error["fix"].startswith("compare OpenVINO and ONNX Runtime versions")


def test_an_engine_that_is_not_installed_is_named_and_left_out(
    cli: Any, two_formats: Path, golden: Any
) -> None:
    golden(onnx=MissingExtraError("ONNX Runtime is not installed.", "pip install it"))
    outcome = cli("verify", two_formats)
    assert outcome.code == 0
    assert outcome.out.endswith("OpenVINO; ONNX Runtime not run: ONNX Runtime is not installed\n")
    [_, onnx] = json.loads(cli("verify", two_formats, "--json").out)["formats"]
    assert onnx == {
        "format": "onnx",
        "golden_tokens": None,
        "not_run": "ONNX Runtime is not installed",
    }


@pytest.mark.parametrize("arguments", [[], ["--backend", "onnx"]], ids=["none-left", "named"])
def test_without_any_engine_nothing_is_called_verified(
    cli: Any, two_formats: Path, golden: Any, arguments: list[str]
) -> None:
    error = MissingExtraError("It is not installed.", "pip install it")
    golden(openvino=error, onnx=error)
    outcome = cli("verify", two_formats, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert "Error: It is not installed." in outcome.err


def test_a_format_the_package_does_not_hold_is_refused(cli: Any, demo_package: Path) -> None:
    outcome = cli("verify", demo_package, "--backend", "onnx")
    assert (outcome.code, outcome.out) == (2, "")
    assert "holds the model for openvino only" in outcome.err
    outcome = cli("verify", demo_package, "--backend", "onx")
    assert (outcome.code, outcome.out) == (2, "")
    assert "backend is 'onx'. Did you mean 'onnx'?" in outcome.err


def test_an_engine_that_fails_does_not_keep_the_other_from_being_tried(
    cli: Any, two_formats: Path, golden: Any
) -> None:
    asked = golden(openvino=DeviceError("OpenVINO could not be imported.", "install it again"))
    outcome = cli("verify", two_formats)
    assert asked == ["openvino", "onnx"]
    assert (outcome.code, outcome.out) == (6, "")
    assert "Error: OpenVINO could not be imported." in outcome.err


def test_a_hard_link_is_found_without_running_the_model(
    cli: Any, two_formats: Path, tmp_path: Path
) -> None:
    """ONNX Runtime would follow it; nothing else in the file tells where its bytes belong."""
    (tmp_path / "elsewhere").hardlink_to(two_formats / MODEL_ONNX_DATA)
    outcome = cli("verify", two_formats, "--files-only")
    assert (outcome.code, outcome.out) == (3, "")
    assert "'model.onnx.data' is a hard link" in outcome.err
