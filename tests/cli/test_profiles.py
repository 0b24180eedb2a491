"""`qwen-edge profiles` and `profiles show`."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.profiles.profile import load_profile, profile_names
from qwen_edge.profiles.recipe import recipe_names


def test_the_list_names_every_profile(cli: Any) -> None:
    outcome = cli("profiles")
    assert outcome.code == 0
    header, *rows = outcome.out.splitlines()
    assert header.split("\t") == ["profile", "devices", "format", "recipe", "what for"]
    assert tuple(row.split("\t")[0] for row in rows) == profile_names()
    assert "For this machine: " in outcome.err


def test_the_list_as_json(cli: Any) -> None:
    outcome = cli("profiles", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    data = json.loads(outcome.out)
    assert tuple(entry["name"] for entry in data["profiles"]) == profile_names()
    assert data["fits_this_machine"]["value"] in profile_names()


@pytest.mark.parametrize("name", profile_names())
def test_show_prints_every_value_with_its_reason(cli: Any, name: str) -> None:
    outcome = cli("profiles", "show", name)
    assert (outcome.code, outcome.err) == (0, "")
    profile = load_profile(name)
    for entry in profile.devices:
        assert entry.reasons["device"] in outcome.out
        for key, value in entry.properties.items():
            assert f"  {key} = {value}\n      {entry.reasons[key]}" in outcome.out
        assert f"  max_context_tokens = {entry.max_context_tokens}\n" in outcome.out
    for recipe in recipe_names():
        assert recipe in outcome.out


@pytest.mark.parametrize("arguments", [["show", "core-ultra", "--json"], ["--json", "show"]])
def test_show_as_json(cli: Any, arguments: list[str]) -> None:
    outcome = cli("profiles", *arguments, *(["core-ultra"] if len(arguments) == 2 else []))
    assert (outcome.code, outcome.err) == (0, "")
    data = json.loads(outcome.out)
    assert data["name"] == "core-ultra"
    assert data["recipes"]["fp16"]["NPU"]["value"] is False
    assert data["recipes"]["fp16"]["NPU"]["reason"]
    assert [entry["device"] for entry in data["devices"]] == ["GPU", "CPU", "NPU"]


def test_show_marks_what_nobody_measured(cli: Any) -> None:
    outcome = cli("profiles", "show", "core-ultra")
    gpu, cpu = outcome.out.split("\nCPU: ")
    entry = load_profile("core-ultra").devices[0]
    num_values = len(entry.reasons) - 1
    assert gpu.count("[never measured on a GPU]") == num_values >= 5
    assert f"  Note: {entry.note}\n" in gpu
    assert "prefill_chunk_tokens = 512\n" in cpu
    assert cpu.split("\nNPU: ")[0].count("[never measured on a CPU]") == 1


def test_show_takes_a_file(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "mein Läptop.toml"
    path.write_text('extends = "core-ultra-cpu"\n', encoding="utf-8")
    outcome = cli("profiles", "show", path)
    assert (outcome.code, outcome.err) == (0, "")
    assert "CPU" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "problem", "fix"),
    [
        (["show", "core-ultr"], "'core-ultr'. Did you mean 'core-ultra'?", "core-ultra-npu"),
        (["show", "./none.toml"], "none.toml", ""),
        (["core-ultra"], "no command 'core-ultra'.", "qwen-edge profiles show core-ultra"),
        (["shwo"], "Did you mean 'show'?", "profiles show NAME"),
    ],
    ids=["typo", "no-file", "without-show", "typo-in-show"],
)
def test_refusals(cli: Any, arguments: list[str], problem: str, fix: str) -> None:
    outcome = cli("profiles", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    first, second = outcome.err.splitlines()[:2]
    assert first.startswith("Error: ") and problem in first
    assert second.startswith("Fix: ") and fix in second
