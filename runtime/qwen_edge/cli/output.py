"""The only place that prints: results to standard output, everything else to standard error.

Standard output stays clean enough to be piped; progress bars, notices and reasoning go to
standard error and disappear with `--quiet`. Every deliberate error becomes two lines here.
It does not decide exit codes; read `main.py` for those, and `progress.py` for the bars.
"""

import contextlib
import dataclasses
import errno
import io
import json
import logging
import os
import re
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from qwen_edge.cli.progress import StepBars
from qwen_edge.errors import EdgeError, ResourceError

# What texts of ours and of models often hold and old code pages lack.
_PLAIN_FORMS = str.maketrans(
    {"…": "...", "→": "->", "–": "-", "—": "-", "−": "-", "×": "x", "≥": ">=", "≤": "<="}
    | {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " "}
)
# All control characters but tab and line feed: a terminal would obey them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NOTICE_AFTER_S = 1.0  # a wait shorter than this needs no word
_MAX_TABLE_COLUMNS = 200


class ReaderGoneError(Exception):
    """Whoever read standard output has gone, as `head` does when it has enough.

    No OSError: click would take that for its own and end the program with 1.
    """


class Output:
    """Writes for one command.

    Args:
        is_quiet: Suppress notices and progress; errors stay.
        as_json: A program reads: notices and progress only where standard error is a terminal.
    """

    def __init__(self, *, is_quiet: bool = False, as_json: bool = False) -> None:
        self.is_quiet = is_quiet or (as_json and not _is_terminal(sys.stderr))
        self._faint_marks: tuple[str, str] | None = None

    @property
    def is_watched(self) -> bool:
        """Whether a person sees the result as it comes."""
        return _is_terminal(sys.stdout)

    def result(self, text: str, *, end: str = "\n") -> None:
        """Write what was asked for, at once."""
        _write_result(text + end)

    def model_text(self, text: str) -> None:
        """Write a piece of an answer; on a terminal without the codes that would steer it."""
        _write_result(_without_control(text) if _is_terminal(sys.stdout) else text)

    def result_json(self, data: object) -> None:
        """Write one JSON document as the result."""
        self.result(_to_json(data, sys.stdout, indent=2))

    def result_json_line(self, data: object) -> None:
        """Write one JSON document of a line as the result, or as one of many."""
        self.result(_to_json(data, sys.stdout))

    def notice(self, text: str = "", *, end: str = "\n") -> None:
        """Write something that helps a person but is not the result."""
        if not self.is_quiet:
            _write_aside(text + end)

    def prompt(self, text: str) -> None:
        """Write what invites a person to type; also with `--quiet`."""
        _write_aside(text)

    def faint(self, text: str) -> None:
        """Write streamed text that is not the answer, such as reasoning."""
        if self.is_quiet:
            return
        if not _is_terminal(sys.stderr):
            _write_aside(text)
            return
        if self._faint_marks is None:
            self._faint_marks = _find_faint_marks()
        start, end = self._faint_marks
        _write_aside(f"{start}{_without_control(text)}{end}")

    def table(self, columns: list[str], rows: list[list[str]]) -> None:
        """Write a table as the result; columns between tabs when it goes into a pipe."""
        if not _is_terminal(sys.stdout):
            self.result("\n".join("\t".join(row) for row in [columns, *rows]))
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*[Text(cell) for cell in row])
        width = min(shutil.get_terminal_size().columns, _MAX_TABLE_COLUMNS)
        text = io.StringIO()  # not the terminal itself: `result` knows what that can show
        Console(file=text, width=width, highlight=False).print(table)
        self.result("\n".join(line.rstrip() for line in text.getvalue().splitlines()))

    @contextlib.contextmanager
    def steps(self, *, is_transient: bool = False, has_results: bool = False) -> Iterator[StepBars]:
        """Draw one bar per step while the block runs.

        Args:
            is_transient: Wipe the bars away at the end.
            has_results: The block writes results. Where a person sees those, no bar is drawn.
        """
        is_in_the_way = has_results and self.is_watched
        is_drawn = not self.is_quiet and _is_terminal(sys.stderr) and not is_in_the_way
        bars = StepBars(self.notice, is_drawn=is_drawn, is_transient=is_transient)
        try:
            yield bars
        finally:
            bars.close()

    @contextlib.contextmanager
    def notice_if_slow(self, text: str) -> Iterator[None]:
        """Write a notice when the block takes longer than a second."""
        timer = threading.Timer(_NOTICE_AFTER_S, self.notice, [text])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


class LogHandler(logging.Handler):
    """Writes log records as lines like `Warning: …` to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a message that cannot be formatted is shown as it is."""
        try:
            text = self.format(record)
        except (TypeError, ValueError):
            text = str(record.msg)
        _write_aside(f"{record.levelname.capitalize()}: {text}\n")


def show_error(error: EdgeError, *, as_json: bool = False) -> None:
    """Write a deliberate error: what is wrong, and what to do; as JSON in one line."""
    if as_json:
        facts: dict[str, Any] = {"error": type(error).__name__, "problem": error.problem}
        facts |= {"fix": error.fix, "facts": error.facts, "exit_code": error.exit_code}
        _write_aside(_to_json(facts, sys.stderr) + "\n")
        return
    lines = [f"Error: {error.problem}"]
    if error.fix:
        lines.append("Fix: " + error.fix.replace("\n", "\n     "))
    _write_aside("\n".join(map(_without_control, lines)) + "\n")


def show_cancelled() -> None:
    """Write that the person stopped the program.

    A bar hides the terminal's cursor, and the program may end before it is wiped away.
    """
    if _is_terminal(sys.stderr):
        from rich.console import Console

        Console(stderr=True).show_cursor(True)
    _write_aside("Cancelled.\n")


def show_bug(error: BaseException) -> None:
    """Write an error that nobody foresaw, with its traceback."""
    _write_aside("".join(traceback.format_exception(error)))
    _write_aside("This is a bug in qwen-edge. Please report it with the text above.\n")


def _write_result(text: str) -> None:
    """Write to standard output.

    Raises:
        ReaderGoneError: The reader went away.
        ResourceError: It cannot be written to for another reason, such as a full disk.
    """
    stream = sys.stdout
    if stream is None:  # a window program on Windows, or closed by the shell with >&-
        raise ResourceError(
            "Standard output is closed; the result has no place to go.",
            "run it with an open standard output, for example > answer.txt",
        )
    try:
        _write(stream, text)
    except OSError as error:
        # Windows says EINVAL of a pipe without a reader.
        if error.errno == errno.EPIPE or (os.name == "nt" and error.errno == errno.EINVAL):
            raise ReaderGoneError from error
        raise ResourceError(
            f"Standard output cannot be written to: {error.strerror or error}.",
            "make room, or send it to another place",
        ) from error


def _write_aside(text: str) -> None:
    """Write to standard error. Where nobody can read it, nobody has to be told."""
    if sys.stderr is None:
        return
    try:
        _write(sys.stderr, text)
    except OSError:
        return


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        # A console with an old code page: show what it can, lose no character of the rest.
        encoding = stream.encoding or "ascii"
        plain = "".join(
            char if _fits(char, encoding) else char.translate(_PLAIN_FORMS) for char in text
        )
        stream.write(plain.encode(encoding, errors="backslashreplace").decode(encoding))
    stream.flush()


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _to_json(data: object, stream: TextIO | None, *, indent: int | None = None) -> str:
    """Return JSON whose every character the stream can take."""
    text = json.dumps(data, indent=indent, ensure_ascii=False, default=_to_plain)
    if _fits(text, getattr(stream, "encoding", None) or "ascii"):
        return text
    return json.dumps(data, indent=indent, ensure_ascii=True, default=_to_plain)


def _to_plain(value: object) -> object:
    """Return what JSON knows for what it does not: data classes, mappings, paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return list(value)
    return str(value)


def _without_control(text: str) -> str:
    """Return the text with control characters written out, such as `\\x1b`."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def _find_faint_marks() -> tuple[str, str]:
    """Return what switches a terminal to faint and back; empty where it should not be used.

    rich knows NO_COLOR, dumb terminals and the old console of Windows.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_dumb_terminal or console.no_color or console.legacy_windows:
        return "", ""
    return "\x1b[2m", "\x1b[0m"
