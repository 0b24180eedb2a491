"""`qwen-edge chat` from a pipe, with a scripted model."""

import sys
from typing import Any

import pytest

from qwen_edge.cli.main import run


def test_each_line_is_a_message_and_answers_go_to_stdout(cli: Any, fake_package: Any) -> None:
    package = fake_package("First.", "Second.")
    outcome = cli("chat", package.folder, stdin="Hello\n\nAgain\n")
    assert (outcome.code, outcome.out) == (0, "First.\nSecond.\n")
    assert "/help lists commands" in outcome.err


def test_earlier_turns_are_remembered(cli: Any, fake_package: Any) -> None:
    package = fake_package("Hello Ada.", "Ada.")
    cli("chat", package.folder, "--system", "Be brief.", stdin="I am Ada\nWho am I?\n")
    model = package.models[0]
    asked = model.tokenizer.decode(model.backend.cached_ids)
    for text in ("Be brief.", "I am Ada", "Hello Ada.", "Who am I?"):
        assert asked.count(text) == 1


def test_new_forgets(cli: Any, fake_package: Any) -> None:
    package = fake_package("Hello Ada.", "Ada.")
    outcome = cli("chat", package.folder, stdin="I am Ada\n/new\nWho am I?\n")
    assert (outcome.code, outcome.out) == (0, "Hello Ada.\nHello Ada.\n")
    model = package.models[0]
    assert "I am Ada" not in model.tokenizer.decode(model.backend.cached_ids)
    assert "new conversation" in outcome.err


def test_thinking_is_switched(cli: Any, fake_package: Any) -> None:
    package = fake_package("Yes.")
    outcome = cli("chat", package.folder, stdin="/nothink\na\n/think\n/new\nb\n")
    assert (outcome.code, outcome.out) == (0, "Yes.\nYes.\n")
    assert outcome.err.index("thinking off") < outcome.err.index("thinking on")
    model = package.models[0]
    assert "<think>" not in model.tokenizer.decode(model.backend.cached_ids)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/help", "stop an answer"),
        ("/thnik", "There is no command '/thnik'. Did you mean '/think'?"),
        ("/frobnicate", "There is no command '/frobnicate'. /help lists the commands."),
        ("/", "There is no command '/'."),
    ],
)
def test_commands_that_answer_on_stderr(cli: Any, fake_package: Any, line: str, words: str) -> None:
    outcome = cli("chat", fake_package("Yes.").folder, stdin=f"{line}\n")
    assert (outcome.code, outcome.out) == (0, "")
    assert words in outcome.err


def test_a_path_is_a_message(cli: Any, fake_package: Any) -> None:
    outcome = cli("chat", fake_package("Names.").folder, stdin="/etc/hosts holds what?\n")
    assert (outcome.code, outcome.out) == (0, "Names.\n")


def test_exit_leaves(cli: Any, fake_package: Any) -> None:
    outcome = cli("chat", fake_package("No.").folder, "--quiet", stdin="/exit\nHello\n")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_a_full_context_ends_the_message_not_the_program(cli: Any, fake_package: Any) -> None:
    package = fake_package("Fine.", max_context_tokens=300)
    outcome = cli("chat", package.folder, stdin=f"{'x' * 400}\nHello\n")
    assert (outcome.code, outcome.out) == (0, "Fine.\n")
    assert "Error: The conversation needs" in outcome.err
    assert "Or type /new" in outcome.err


@pytest.mark.parametrize("line", [b"a\0b", b"bad \xff byte"], ids=["nul", "not-utf-8"])
def test_a_message_that_is_no_text_is_refused_alone(
    cli: Any, fake_package: Any, line: bytes
) -> None:
    outcome = cli("chat", fake_package("Fine.").folder, stdin=line + b"\nHello\n")
    assert (outcome.code, outcome.out) == (0, "Fine.\n")
    assert outcome.err.count("Error: The message") == 1


def test_options_are_checked_before_loading(cli: Any, fake_package: Any) -> None:
    package = fake_package("No.")
    outcome = cli("chat", package.folder, "--temperature", "-1", stdin="Hello\n")
    assert (outcome.code, outcome.out, package.models) == (2, "", [])
    assert "temperature is -1.0" in outcome.err


def test_the_model_is_closed(cli: Any, fake_package: Any) -> None:
    package = fake_package("Fine.")
    cli("chat", package.folder, stdin="Hello\n")
    assert package.models[0].is_closed


def test_a_line_that_the_terminal_garbled_is_refused_alone(
    fake_package: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without readline, Python decodes what was typed strictly."""
    lines = [UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "bad"), "Hello", EOFError()]

    def typed(prompt: str) -> str:
        line = lines.pop(0)
        if isinstance(line, Exception):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert run(["chat", fake_package("Fine.").folder]) == 0
    out, err = capsys.readouterr()
    assert out == "Fine.\n"
    assert "Error: The message is not text in utf-8: it holds the byte 0xe9." in err
