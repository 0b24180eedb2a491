"""Output: what goes where, and in which form."""

import io
import sys
from pathlib import Path
from types import MappingProxyType

import pytest

from qwen_edge.cli.answering import show_events
from qwen_edge.cli.output import Output, ReaderGoneError, show_error
from qwen_edge.errors import ResourceError, UsageError
from qwen_edge.runtime.events import Event
from qwen_edge.runtime.tools.tool_call import ToolCall


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_control_codes_of_a_model_are_written_out_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "a\x1b]0;title\x07\tb\nc\x9b31m"
    terminal, pipe = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    Output().model_text(text)
    monkeypatch.setattr(sys, "stdout", pipe)
    Output().model_text(text)
    assert terminal.getvalue() == "a\\x1b]0;title\\x07\tb\nc\\x9b31m"
    assert pipe.getvalue() == text


def test_results_go_to_standard_output_while_bars_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """rich used to take standard output over, so that `> file` got lines on the terminal."""
    terminal, pipe = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", pipe)
    out = Output()
    with out.steps(is_transient=True, has_results=True) as bars:
        bars("answer prompts", 0, 2)
        out.result_json_line({"line": 1})
        bars("answer prompts", 1, 2)
    assert pipe.getvalue() == '{"line": 1}\n'
    assert "answer prompts" in terminal.getvalue() and "line" not in terminal.getvalue()


def test_no_bars_where_a_person_sees_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    with Output().steps(is_transient=True, has_results=True) as bars:
        bars("answer prompts", 0, 2)
    assert terminal.getvalue() == ""


CALL = Event("tool_call", tool_call=ToolCall("call_1", "get_time", {"city": "Köln"}))
TALK = (Event("answer", "I look"), Event("answer", " it up."), CALL, Event("done"))
LINE = '{"id": "call_1", "name": "get_time", "arguments": {"city": "Köln"}}\n'


def test_a_person_sees_text_before_a_call_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    show_events(iter(TALK), Output(), may_call=True)
    assert terminal.getvalue() == f"I look it up.\n{LINE}"


def test_a_program_reads_calls_only(capsys: pytest.CaptureFixture[str]) -> None:
    show_events(iter(TALK), Output(), may_call=True)
    out, err = capsys.readouterr()
    assert (out, err) == (LINE, "I look it up.\n")


def test_an_error_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(UsageError("bad \x1b[2J name", "mend\nit"))
    assert capsys.readouterr().err == "Error: bad \\x1b[2J name\nFix: mend\n     it\n"


def test_json_knows_paths_mappings_and_data_classes(capsys: pytest.CaptureFixture[str]) -> None:
    facts = MappingProxyType({"path": Path("a"), "names": frozenset({"x"}), "pair": (1, 2)})
    Output().result_json(facts)
    assert '"path": "a"' in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_json_stays_json_on_an_old_console(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    import json

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    Output().result_json({"text": "ü 日本 \ud800"})
    assert json.loads(raw.getvalue().decode(encoding)) == {"text": "ü 日本 \ud800"}


class Broken(io.StringIO):
    """A stream that cannot be written to."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_a_broken_stdout_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError(32, "Broken pipe")))
    with pytest.raises(ReaderGoneError):
        Output().result("x")
    monkeypatch.setattr(sys, "stdout", Broken(OSError(28, "No space left on device")))
    with pytest.raises(ResourceError, match="No space left"):
        Output().result("x")


def test_a_broken_stderr_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(BrokenPipeError(32, "Broken pipe")))
    Output().notice("x")
    Output().faint("x")
    show_error(UsageError("x"))


def test_steps_without_a_terminal_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    with out.steps() as bars:
        for done in range(3):
            bars("hash", done, 2)
        bars("load", 0, 0)
    with out.steps(is_transient=True) as bars:
        bars("unseen", 0, 1)
    assert capsys.readouterr().err == "hash …\nload …\n"


def test_steps_on_a_terminal_are_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Output().steps() as bars:
        bars("fetch [a].bin", 1, 2)
        bars("fetch [a].bin", 2, 2)
        bars("load", 0, 0)
    assert "fetch [a].bin" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


def test_quiet_and_json_hold_their_tongue(capsys: pytest.CaptureFixture[str]) -> None:
    for out in (Output(is_quiet=True), Output(as_json=True)):
        out.notice("x")
        out.faint("x")
        with out.steps() as bars:
            bars("x", 0, 1)
    assert capsys.readouterr().err == ""
