"""`qwen-edge verify` on a real package, intact and damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def package(demo_package: Path, tmp_path: Path) -> Path:
    """Return a copy of the demo package that a test may damage."""
    return Path(shutil.copytree(demo_package, tmp_path / "das Paket ü"))


def test_an_intact_package(cli: Any, demo_package: Path) -> None:
    outcome = cli("verify", demo_package)
    assert outcome.code == 0
    assert outcome.out.startswith(f"{demo_package}: ")
    assert ", intact, all " in outcome.out and len(outcome.out.splitlines()) == 1


def test_an_intact_package_as_json(cli: Any, demo_package: Path) -> None:
    outcome = cli("verify", demo_package, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    data = json.loads(outcome.out)
    assert data["num_files"] == len(list(demo_package.iterdir()))
    assert data["num_bytes"] == sum(path.stat().st_size for path in demo_package.iterdir())
    assert data["golden_tokens"] > 0
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


def test_other_golden_tokens_are_a_parity_error(cli: Any, package: Path) -> None:
    path = package / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["golden"]["token_ids"][3] ^= 1
    wrong = manifest["golden"]["token_ids"][3]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    outcome = cli("verify", package)
    assert (outcome.code, outcome.out) == (9, "")
    assert f"token 4 of {len(manifest['golden']['token_ids'])} golden tokens is " in outcome.err
    assert f"expected {wrong}" in outcome.err
    assert "\nFix: compare OpenVINO versions" in outcome.err
    error = json.loads(cli("verify", package, "--json").err.splitlines()[-1])
    assert error["exit_code"] == 9 and error["facts"]["expected"][3] == wrong
