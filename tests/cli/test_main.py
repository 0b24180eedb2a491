"""The program itself: help, version, unknown commands, bugs, logging."""

import json
import logging
import re
from typing import Any

import click
import pytest

from qwen_edge.cli.help_sections import SECTIONS
from qwen_edge.cli.main import _COMMANDS
from qwen_edge.cli.main import cli as group

PATHS = [[], *([name] for name in _COMMANDS), ["profiles", "show"]]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: " ".join(path) or "qwen-edge")
def test_help_reads_well(cli: Any, path: list[str]) -> None:
    """Help fits 100 columns, in ASCII for old consoles; every option has a sentence."""
    outcome = cli(*path, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert outcome.out.isascii()
    assert lines[0].startswith("Usage: qwen-edge")
    command: click.Command = group
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help and parameter.help.endswith("."), parameter.name


@pytest.mark.parametrize("command", ["run", "chat", "batch", "serve"])
def test_every_option_is_under_its_heading(cli: Any, command: str) -> None:
    """What belongs to no heading comes last, where only `--quiet` and its like should be."""
    text = cli(command, "--help").out
    own = ("Where it listens", "Started", "Served") if command == "serve" else ("The", "How")
    for heading in SECTIONS:
        assert (f"\n{heading}:\n" in text) or not heading.startswith((*own, "Where and"))
    rest = set(re.findall(r"^  -.*?--(\w+)|^  --(\w+)", text.split("What is shown:")[1], re.M))
    assert {"".join(pair) for pair in rest} <= {"logprobs", "explain", "quiet", "json", "help"}
    found = group.get_command(click.Context(group), command)
    assert found is not None
    options = [each for each in found.params if isinstance(each, click.Option)]
    assert [each.opts[0] for each in options if not re.search(rf"\s{each.opts[0]}\b", text)] == []


def test_help_uses_a_wide_terminal_up_to_100_columns(program: Any) -> None:
    done = program("run", "--help", env={"COLUMNS": "140"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert 80 < max(len(line) for line in done.stdout.decode().splitlines()) <= 100


@pytest.mark.parametrize("command", [name for name in _COMMANDS if name != "doctor"])
def test_every_command_shows_examples(cli: Any, command: str) -> None:
    assert "Examples:\n    qwen-edge" in cli(command, "--help").out


def test_the_default_model_in_the_help_is_the_real_one(cli: Any) -> None:
    from qwen_edge.export import ExportRequest

    assert f"(default: {ExportRequest.model})" in cli("export", "--help").out


def test_version(cli: Any) -> None:
    outcome = cli("--version")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("qwen-edge ")


def test_without_a_command_the_help_goes_to_stderr(cli: Any) -> None:
    outcome = cli()
    assert (outcome.code, outcome.out) == (2, "")
    assert "Commands:" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], "There is no command 'rnu'. Did you mean 'run'?"),
        (["frobnicate"], "There is no command 'frobnicate'."),
        ([""], "There is no command ''."),
        (["run"], "PACKAGE is missing."),
        (["--log-levle", "debug"], "'--log-levle'. Did you mean '--log-level'?"),
        (["--log-level", "loud", "doctor"], "--log-level: 'loud' is not one of"),
        (["verify", "a", "b"], "More arguments than expected: b."),
        (["doctor", "--json=1"], "--json"),
        (["run", "x", "--seed"], "--seed"),
    ],
    ids=lambda value: " ".join(value)[:30],
)
def test_a_wrong_command_line_is_refused(cli: Any, arguments: list[str], words: str) -> None:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    first, second = outcome.err.splitlines()[:2]
    assert first.startswith("Error: ") and words in first
    assert second.startswith("Fix: ") and len(second) > len("Fix: ")


@pytest.mark.parametrize(
    ("arguments", "fix"),
    [
        (["run", "x", "-5 + 3?"], 'run PACKAGE -- "-1 + 2?"'),
        (["run", "x", "y", "--log-level", "debug"], "qwen-edge --log-level … run"),
        (["run", "x", "y", "--frobnicate"], "see qwen-edge run --help"),
        (["run", "x", "y", "z"], "put a prompt of several words in quotes"),
        (["verify"], "write qwen-edge verify [OPTIONS] PACKAGE"),
    ],
    ids=["dash", "log-level", "unknown", "words", "missing"],
)
def test_the_fix_fits_the_mistake(cli: Any, arguments: list[str], fix: str) -> None:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert fix in outcome.err.splitlines()[1]


def test_a_bug_is_called_one(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("one by nought")

    monkeypatch.setattr("qwen_edge.cli.profiles_command.probe_hardware", fail)
    outcome = cli("profiles")
    assert (outcome.code, outcome.out) == (70, "")
    assert "ZeroDivisionError: one by nought" in outcome.err
    assert "This is a bug in qwen-edge." in outcome.err


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["plain", "wrapped"])
def test_an_interrupt_ends_with_130(
    is_wrapped: bool, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        if is_wrapped:
            raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen_edge.cli.profiles_command.probe_hardware", interrupt)
    outcome = cli("profiles")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.strip() == "Cancelled."


def test_warnings_are_logged_once_to_stderr(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):  # each run would add a handler
        cli("profiles", "--json")
    monkeypatch.setenv("QWEN_EDGE_PROFIL", "core-ultra")
    outcome = cli("doctor", "--json")
    assert outcome.err.count("Warning: QWEN_EDGE_PROFIL is not a variable we read.") == 1
    json.loads(outcome.out)


def test_the_log_level_is_obeyed(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def chatty() -> None:
        logging.getLogger("qwen_edge.test").info("here I am %s", "→")
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen_edge.cli.profiles_command.probe_hardware", chatty)
    assert "here I am" not in cli("profiles").err
    assert "Info: here I am →" in cli("--log-level", "info", "profiles").err
