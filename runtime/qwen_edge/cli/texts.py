"""Text that comes from outside: the command line, files and standard input.

What is no text is refused here, with what to do about it. What a text means is for the commands.
"""

import sys
from pathlib import Path

from qwen_edge.cli.output import Output
from qwen_edge.errors import ContextFullError, UsageError, format_bytes

# No context holds as much: 262,144 tokens of 60 bytes each.
MAX_INPUT_BYTES = 16_000_000
_CONVERT_FIX = "convert it first, for example: iconv -f latin1 -t utf-8 notes.txt"


def check_text(name: str, text: str) -> None:
    """Refuse a text from the command line that is none.

    Args:
        name: What it is called, such as "the prompt".
        text: As Python made it of the bytes that were typed.

    Raises:
        UsageError: It holds bytes that were not UTF-8, or a NUL.
    """
    nul = text.find("\0")
    if nul >= 0:
        raise UsageError(
            f"{name} holds a NUL at character {nul:,}; expected text.",
            "give text, not the contents of a binary file",
            position=nul,
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        # Python keeps an undecodable byte 0xNN of the command line as U+DCNN.
        what = f"the byte {code - 0xDC00:#04x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}"
        raise UsageError(
            f"{name} is not UTF-8 text: it holds {what} at character {error.start:,}.",
            "use a terminal with UTF-8, or pipe the text in: "
            "iconv -f latin1 -t utf-8 FILE | qwen-edge run PACKAGE",
            position=error.start,
        ) from error


def read_text_file(option: str, name: str, *, max_bytes: int = MAX_INPUT_BYTES) -> str:
    """Return the text of a file that was named on the command line.

    Args:
        option: Which option or argument named it.
        name: Its path.
        max_bytes: More is refused.

    Raises:
        UsageError: There is none, it cannot be read, is too large or no text.
    """
    where = f"{option} {name!r}"
    try:
        with Path(name).open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"{where} cannot be read: {reason}.", "check the path", path=name
        ) from error
    if len(data) > max_bytes:
        raise UsageError(
            f"{where} holds more than {format_bytes(max_bytes)}.",
            "give a smaller file",
            path=name,
        )
    return _decode(where, data)


def read_standard_input(out: Output, fix: str, *, max_bytes: int = MAX_INPUT_BYTES) -> str:
    """Return what was piped in; empty at a terminal, or where there is no standard input.

    Args:
        out: Says what is waited for.
        fix: What to do where it is too much.
        max_bytes: More is refused.

    Raises:
        UsageError: It is no text.
        ContextFullError: It is too much.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return ""
    with out.notice_if_slow("Reading standard input to its end (with < /dev/null none is read) …"):
        # Bytes, so that a console's code page does not decide what a pipe holds.
        data = sys.stdin.buffer.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ContextFullError(
            f"Standard input holds more than {format_bytes(max_bytes)}, and so more than can be "
            "answered.",
            fix,
            max_input_bytes=max_bytes,
        )
    return _decode("Standard input", data)


def _decode(where: str, data: bytes) -> str:
    """Return bytes as text: UTF-8, or UTF-16 with the mark that PowerShell begins files with."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = f": byte {data[error.start]:#04x} at position {error.start:,}"
        raise UsageError(
            f"{where} is not text in UTF-8{byte if encoding != 'utf-16' else ''}.",
            _CONVERT_FIX,
            position=error.start,
        ) from error
    check_text(where, text)
    return text
