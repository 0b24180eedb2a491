"""`qwen-edge chat` from a pipe, with a scripted model."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.cli.main import run
from qwen_edge.errors import ResourceError
from qwen_edge.runtime.session import Session


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


def test_undo_forgets_the_last_turn_and_says_when_there_is_none(
    cli: Any, fake_package: Any
) -> None:
    package = fake_package("Hello Ada.", "Ada.")
    outcome = cli("chat", package.folder, stdin="I am Ada\nWho?\n/undo\nWho am I?\n")
    assert (outcome.code, outcome.out) == (0, "Hello Ada.\nAda.\nAda.\n")
    assert conversation_of(package) == ["I am Ada", "Hello Ada.", "Who am I?", "Ada."]
    outcome = cli("chat", package.folder, stdin="/undo\n/retry\n")
    assert (outcome.code, outcome.out) == (0, "")
    assert "no turn to forget" in outcome.err and "no turn to answer anew" in outcome.err


def conversation_of(package: Any) -> list[str]:
    """Return the texts of a fake package's last conversation, as they were fed and answered."""
    model = package.models[-1]
    text = model.tokenizer.decode(model.backend.cached_ids)
    parts = re.split(r"(?:^|\n)(?:user|assistant)\n", text)
    return [part for part in parts if part]


def test_retry_answers_the_last_turn_with_another_seed(
    cli: Any, fake_package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []
    stream = Session.stream

    def spy(self: Session, prompt: Any, **options: Any) -> Any:
        seeds.append(options["sampling"]["seed"])
        return stream(self, prompt, **options)

    monkeypatch.setattr(Session, "stream", spy)
    package = fake_package("One.", "Two.")
    lines = "a\nb\n/retry\n/retry\n/undo\n/retry\n"
    outcome = cli("chat", package.folder, "--seed", "7", stdin=lines)
    assert (outcome.code, outcome.out) == (0, "One.\nTwo.\nTwo.\nTwo.\nOne.\n")
    assert seeds == [7, 7, 8, 9, 10]
    assert conversation_of(package) == ["a", "One."]


def test_retry_asks_again_what_was_refused(cli: Any, fake_package: Any) -> None:
    package = fake_package("Fine.", max_context_tokens=300)
    outcome = cli("chat", package.folder, stdin=f"Hello\n{'x' * 400}\n/retry\n")
    assert (outcome.code, outcome.out) == (0, "Fine.\n")
    assert outcome.err.count("Error: The conversation needs") == 2


def test_a_thinking_budget_does_not_keep_nothink_from_working(cli: Any, fake_package: Any) -> None:
    package = fake_package("Yes.")
    options = ("--thinking-budget", "100")
    outcome = cli("chat", package.folder, *options, stdin="/no_think\na\n")
    assert (outcome.code, outcome.out) == (0, "Yes.\n")
    assert "thinking off" in outcome.err and "Error" not in outcome.err


def test_a_saved_conversation_goes_on(cli: Any, fake_package: Any, tmp_path: Path) -> None:
    package = fake_package("Hello Ada.", "Ada.")
    path = tmp_path / "Gespräch mit Ada.qes"
    outcome = cli("chat", package.folder, "--system", "x", stdin=f"I am Ada\n/save {path}\n")
    assert outcome.code == 0
    assert f'--resume "{path}"' in outcome.err
    outcome = cli("chat", package.folder, "--resume", path, stdin="Who am I?\n/new\nHi\n")
    assert (outcome.code, outcome.out) == (0, "Ada.\nHello Ada.\n")
    assert "going on after 1 turn\n" in outcome.err
    reused = re.findall(r"computed, (\d+) reused", outcome.err)
    assert int(reused[0]) > len("system\nx")  # what was read before was not read again


def test_a_home_folder_is_found(
    cli: Any, fake_package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    cli("chat", fake_package("Yes.").folder, stdin="a\n/save ~/a.qes\n")
    assert (tmp_path / "a.qes").is_file()


def fill_disk(self: Session, path: Path) -> None:
    """Stand in for `Session.save`."""
    raise ResourceError("The disk filled up.", "free some space")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/save", "/save needs the path of a file."),
        ("/save /no/such/folder/a.qes", "does not exist"),
        (f"/save {__file__}", "exists and is no snapshot"),
        ("/save a.qes", "The disk filled up."),
    ],
    ids=["no-path", "no-folder", "another-file", "full-disk"],
)
def test_a_conversation_that_cannot_be_saved_goes_on(
    cli: Any, fake_package: Any, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    if "filled" in words:
        monkeypatch.setattr(Session, "save", fill_disk)
    outcome = cli("chat", fake_package("Yes.").folder, stdin=f"{line}\na\n")
    assert (outcome.code, outcome.out) == (0, "Yes.\n")
    assert outcome.err.count("Error: ") == 1 and words in outcome.err


def test_what_is_no_saved_conversation_is_refused(cli: Any, fake_package: Any) -> None:
    outcome = cli("chat", fake_package("No.").folder, "--resume", __file__, stdin="a\n")
    assert (outcome.code, outcome.out) == (3, "")
    assert "is no snapshot" in outcome.err and "\nFix: " in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resume", "no such file"], "there is no such file"),
        (["--resume", str(Path(__file__)), "--system", "x"], "the one of --resume has its own"),
    ],
)
def test_what_cannot_be_resumed_is_refused_before_loading(
    cli: Any, fake_package: Any, arguments: list[str], words: str
) -> None:
    package = fake_package("No.")
    outcome = cli("chat", package.folder, *arguments)
    assert (outcome.code, outcome.out, package.models) == (2, "", [])
    assert words in outcome.err and "\nFix: " in outcome.err


def test_what_the_model_cannot_do_ends_the_chat_before_the_first_message(
    cli: Any, fake_package: Any
) -> None:
    outcome = cli("chat", fake_package("No.").folder, "--regex", "[", stdin="a\nb\n")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("Error: ") == 1 and "unclosed character class" in outcome.err


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
