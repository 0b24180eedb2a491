"""`qwen-edge batch` with a scripted model, and once with a real package."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def lines_of(text: str) -> dict[int, dict[str, Any]]:
    """Return the results by their line."""
    results = [json.loads(line) for line in text.splitlines()]
    return {result["line"]: result for result in results}


def test_each_line_gets_an_answer_with_its_number(
    cli: Any, fake_package: Any, tmp_path: Path
) -> None:
    path = tmp_path / "Fragen über alles.txt"
    path.write_text(
        "One?\n\n"
        '{"prompt": "{two}?"}\r\n'
        '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, '
        '{"role": "user", "content": "three?"}]\n'
        '{"messages": [{"role": "user", "content": "fo\\u2028ur?"}]}\n'
        "fi\u2028ve?",
        encoding="utf-8",
    )
    package = fake_package("First.", "Second.")
    outcome = cli("batch", package.folder, path, "--seed", "3", "--system", "Be brief.")
    assert outcome.code == 0
    answers = {line: result["answer"] for line, result in lines_of(outcome.out).items()}
    assert answers == {1: "First.", 3: "First.", 4: "Second.", 5: "First.", 6: "First."}
    assert all(result["finish_reason"] == "stop" for result in lines_of(outcome.out).values())
    assert "[5 prompts, 0 without an answer" in outcome.err
    assert package.models[0].batcher.is_closed


def test_prompts_come_from_standard_input_too(cli: Any, fake_package: Any) -> None:
    outcome = cli("batch", fake_package("Yes.").folder, "-", "--quiet", stdin="a\nb\n")
    assert (outcome.code, outcome.err) == (0, "")
    assert sorted(lines_of(outcome.out)) == [1, 2]


def test_what_cannot_be_answered_does_not_stop_the_others(cli: Any, fake_package: Any) -> None:
    package = fake_package("Yes.", max_context_tokens=300)
    outcome = cli("batch", package.folder, "-", stdin=f"a\n{'x' * 400}\nb\n")
    assert outcome.code == 2
    results = lines_of(outcome.out)
    assert (results[1]["answer"], results[3]["answer"]) == ("Yes.", "Yes.")
    assert "The conversation needs" in results[2]["error"] and results[2]["fix"]
    assert "Error: 1 of 3 prompts have no answer." in outcome.err


def test_oldest_turns_are_dropped_where_asked(cli: Any, fake_package: Any) -> None:
    turns = [{"role": role, "content": "x" * 60} for role in ("user", "assistant")] * 3
    line = json.dumps([*turns, {"role": "user", "content": "now?"}])
    package = fake_package("Yes.", max_context_tokens=300)
    assert cli("batch", package.folder, "-", stdin=line).code == 2
    outcome = cli("batch", package.folder, "-", "--on-overflow", "drop-oldest", stdin=line)
    assert outcome.code == 0
    assert lines_of(outcome.out)[1]["dropped_messages"] in (2, 4, 6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no prompts"),
        (" \n\n", "holds no prompts"),
        ("a\n{", "Line 2 begins like JSON and is none"),
        ("[" * 100_000, "Line 1 begins like JSON and is none"),
        ("{}", "Line 1 holds nothing."),
        ('{"promt": "x"}', "Line 1 holds 'promt'. Did you mean 'prompt'?"),
        ('{"prompt": "x", "messages": []}', 'holds both "prompt" and "messages"'),
        ('{"prompt": 3}', 'has no text as its "prompt"'),
        ('{"prompt": " "}', 'has no text as its "prompt"'),
        ('{"prompt": "a\\ud800"}', "Line 1: The text holds the lone surrogate"),
        ('{"messages": "x"}', 'has no list as its "messages"'),
        ("[]", "Line 1: The conversation is empty"),
        ('[{"role": "usr", "content": "x"}]', "Line 1: messages[0] has the role 'usr'"),
        ('[{"role": "assistant", "content": "x"}]', "Line 1: "),
        (b"gr\xfc\xdfe", "not text in UTF-8: byte 0xfc at position 2"),
        ("a\0b", "holds a NUL"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_file_that_is_wrong_is_refused_before_loading(
    cli: Any, fake_package: Any, tmp_path: Path, text: str | bytes, words: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    package = fake_package("No.")
    outcome = cli("batch", package.folder, path)
    assert (outcome.code, outcome.out, package.models) == (2, "", [])
    first, second = outcome.err.splitlines()[:2]
    assert first.startswith("Error: ") and words in first
    assert second.startswith("Fix: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no such file"], "cannot be read: No such file"),
        (["-", "--parallel", "0"], "--parallel: 0 is not in the range"),
        (["-", "--draft", "x"], "There is no option '--draft'"),
        (["-", "--temperature", "-1"], "temperature is -1.0"),
    ],
    ids=["file", "parallel", "draft", "sampling"],
)
def test_a_wrong_command_line_is_refused_before_loading(
    cli: Any, fake_package: Any, arguments: list[str], words: str
) -> None:
    package = fake_package("No.")
    outcome = cli("batch", package.folder, *arguments, stdin="a")
    assert (outcome.code, outcome.out, package.models) == (2, "", [])
    assert words in outcome.err


def test_what_the_model_cannot_do_is_told_once(cli: Any, fake_package: Any) -> None:
    outcome = cli("batch", fake_package("No.").folder, "-", "--regex", "[", stdin="a\nb\n")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("Error: ") == 1 and "unclosed character class" in outcome.err


def test_parallel_reaches_the_batcher(cli: Any, fake_package: Any) -> None:
    package = fake_package("Yes.")
    assert cli("batch", package.folder, "-", "--parallel", "3", stdin="a\n").code == 0
    assert package.options[0]["options"].max_running == 3


def test_lines_stay_json_on_an_old_console(
    program: Any, demo_package: Path, tmp_path: Path
) -> None:
    """The real engine, in a process: one answer each, the umlauts escaped."""
    path = tmp_path / "prompts.txt"
    path.write_text("Hello\nWhat is your name?\nSay ü\n", encoding="utf-8-sig")
    options = ("--no-think", "--max-new-tokens", "8", "--temperature", "0")
    form = ("--choice", "größer", "--choice", "kleiner")
    done = program("batch", demo_package, path, *options, *form, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    results = lines_of(done.stdout.decode("ascii"))
    assert sorted(results) == [1, 2, 3]
    assert {result["answer"] for result in results.values()} <= {"größer", "kleiner"}
    assert b"[3 prompts, 0 without an answer" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_keeps_the_lines_that_are_done(
    program_environment: dict[str, str], demo_package: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_edge.cli", "batch", str(demo_package), "-", "--no-think"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=program_environment,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"Hello\n" * 5_000)
    process.stdin.close()
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=20) == 130
    assert errors.endswith("\nCancelled.\n") and "Warning" not in errors
    assert 1 <= len(lines_of((first + rest).decode())) < 5_000
