"""`qwen-edge bench`: options, the table, the JSON, and one real run."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.runtime.benchmark import measure
from qwen_edge.runtime.benchmark.cold_start import ColdStart
from qwen_edge.runtime.benchmark.figures import AnswerTimes, BenchmarkResult, LengthFigures, Round
from qwen_edge.runtime.machine.process_memory import ProcessMemory
from qwen_edge.runtime.machine.roofline import Roofline

RESULT = BenchmarkResult(
    model="some-model",
    backend="openvino",
    device="CPU",
    device_reason="CPU: first of the package's devices",
    new_tokens=32,
    left_out=(2048,),
    cold_starts=(ColdStart(6.0, 0.1, 0.2, 1.0, 4.7, 10**9),),
    load_s=1.0,
    loaded_memory=ProcessMemory(2 * 10**9, 10**9),
    memory=ProcessMemory(3 * 10**9, 10**9),
    lengths=(LengthFigures(512, 6.4, 80.0, 12.0, 0.07, 0.94),),
    roofline=Roofline(29e9, 4e12),
    rounds=(Round((AnswerTimes(6.4, 2.58),), Roofline(29e9, 4e12)),),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the measuring; return what it was asked for, each time."""
    calls: list[dict[str, Any]] = []

    def run(folder: Path, options: object, **others: object) -> BenchmarkResult:
        calls.append({"folder": folder, "options": options, **others})
        return RESULT

    monkeypatch.setattr(measure, "run_benchmark", run)
    return calls


def test_a_person_gets_a_table_and_a_few_lines(
    cli: Any, demo_package: Path, asked: list[dict[str, Any]]
) -> None:
    outcome = cli("bench", demo_package)
    assert outcome.code == 0
    header, row, empty, *facts = outcome.out.splitlines()
    assert header.split("\t")[0] == "prompt tokens"
    assert row.split("\t") == ["512", "6.4 s", "80.0", "7%", "12.0", "94%"]
    assert empty == "" and facts[0].startswith("Cold start: 6.0 s")
    assert (
        outcome.err
        == "some-model: device CPU: first of the package's devices (backend openvino).\n"
    )
    [call] = asked
    assert (call["device"], call["backend"], call["threads"]) == ("auto", "auto", None)


def test_options_arrive(cli: Any, demo_package: Path, asked: list[dict[str, Any]]) -> None:
    arguments = ["--prompt-tokens", "8, 1_6", "--new-tokens", "4", "--rounds", "2"]
    arguments += ["--seconds", "9", "--cold-starts", "0", "--device", "cpu", "--threads", "1"]
    assert cli("bench", demo_package, *arguments, "--quiet").err == ""
    [call] = asked
    options = call["options"]
    assert options.prompt_tokens == (8, 16)
    assert (options.new_tokens, options.rounds, options.cold_starts) == (4, 2, 0)
    assert (options.seconds, call["device"], call["threads"]) == (9.0, "CPU", 1)


def test_a_program_gets_everything_as_json(
    cli: Any, demo_package: Path, asked: list[dict[str, Any]]
) -> None:
    outcome = cli("bench", demo_package, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    data = json.loads(outcome.out)
    assert data["lengths"][0]["decode_tokens_per_s"] == 12.0
    assert data["roofline"] == {"bandwidth_bytes_per_s": 29e9, "int8_macs_per_s": 4e12}
    assert data["cold_start"]["total_s"] == data["cold_starts"][0]["total_s"] == 6.0
    assert data["memory"]["private_bytes"] == 3 * 10**9
    assert data["rounds"][0]["answers"] == [{"ttft_s": 6.4, "decode_s": 2.58}]
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt-tokens", "32,x"], "--prompt-tokens is '32,x'; expected whole numbers"),
        (["--prompt-tokens", "0"], "prompt_tokens is 0; expected a whole number from 1"),
        (["--rounds", "0"], "rounds is 0"),
        (["--new-tokens", "many"], "--new-tokens"),
        (["--device", "GPX"], "Did you mean 'GPU'?"),
        (["--threads", "0"], "threads is 0"),
    ],
    ids=["text", "zero", "rounds", "new", "device", "threads"],
)
def test_what_cannot_be_measured_is_refused_at_once(
    cli: Any,
    demo_package: Path,
    asked: list[dict[str, Any]],
    arguments: list[str],
    words: str,
) -> None:
    outcome = cli("bench", demo_package, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err and "Fix: " in outcome.err
    assert not asked


def test_a_folder_that_is_none(cli: Any, tmp_path: Path) -> None:
    outcome = cli("bench", tmp_path / "nothing")
    assert (outcome.code, outcome.out) == (3, "")
    assert "There is no folder" in outcome.err


def test_a_length_that_does_not_fit_is_refused(cli: Any, demo_package: Path) -> None:
    arguments = ["--prompt-tokens", "1000000", "--cold-starts", "0", "--device", "CPU"]
    outcome = cli("bench", demo_package, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert "A prompt of 1,000,000 tokens and an answer of 32 do not fit" in outcome.err
