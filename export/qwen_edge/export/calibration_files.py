"""A calibration file as documents: plain texts and conversations, checked but not yet tokens.

What may be in a file is what people train and fine-tune with: plain text, or JSON with one
document a line, as a conversation, a text, or a prompt with its completion. It knows nothing of
tokens and templates; read `calibration_texts.py` for what becomes of the documents.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.errors import UsageError, format_bytes, join_problems
from qwen_edge.runtime.chat import check_messages
from qwen_edge.runtime.text_tokenizer import check_encodable
from qwen_edge.runtime.tools.tool import read_tools

MAX_FILE_BYTES = 128_000_000  # 30 million tokens, several hundred times what is read of them
_LINES = (".jsonl", ".ndjson")
_SHAPES = (
    'write each document as {"messages": [{"role": "user", "content": "…"}, …]}, '
    '{"prompt": "…", "completion": "…"} or {"text": "…"}'
)
Object = dict[str, object]


@dataclass(frozen=True)
class Document:
    """One text or conversation.

    Args:
        where: Its place in the file, "line 3" or "entry 3"; empty for a file of plain text.
        text: What is read of it without a chat template; None for what needs one.
        messages: What a chat template writes, as `check_messages` gives it; None for plain text.
        tools: Function schemas that the conversation offers, or None.
    """

    where: str
    text: str | None
    messages: tuple[Object, ...] | None = None
    tools: tuple[Object, ...] | None = None


def read_documents(path: Path) -> tuple[list[Document], str]:
    """Read a person's file.

    Args:
        path: ".jsonl" and ".ndjson" hold a document a line, ".json" a list of them, any other
            file plain text.

    Returns:
        The documents in their order, and the SHA-256 of the file's bytes in hex.

    Raises:
        UsageError: The file cannot be read, is no text, or a document is malformed.
    """
    raw = _read_bytes(path)
    content = _decode(raw, path)
    digest = hashlib.sha256(raw).hexdigest()
    suffix = path.suffix.lower()
    if suffix in _LINES:
        return parse_lines(content, path.name), digest
    if suffix == ".json":
        return _parse_list(content, path.name), digest
    return [Document("", content)], digest


def parse_lines(content: str, name: str) -> list[Document]:
    """Return the documents of a text with one JSON object a line; empty lines are left out.

    Args:
        content: The text, with "\\n" between the lines.
        name: How errors call the file.

    Raises:
        UsageError: Lines are malformed; the error names them.
    """
    documents: list[Document] = []
    problems: list[str] = []
    # Not `splitlines`: JSON texts may hold U+2028 and its like as they are.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number:,}"
        try:
            documents.append(_read_document(json.loads(line), where))
        except (ValueError, RecursionError) as error:
            problems.append(f"{where} is not JSON ({_json_problem(error)})")
        except UsageError as error:
            problems.append(f"{where}: {error.problem.rstrip('.')}")
    _refuse(problems, name)
    return documents


def _parse_list(content: str, name: str) -> list[Document]:
    """Return the documents of a JSON list; raise UsageError for those that are malformed."""
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        place = f"line {error.lineno:,}: " if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(
            f"The calibration file {name!r} is not JSON ({place}{_json_problem(error)}).",
            "write a list of documents, or name a file of one document a line '.jsonl'",
        ) from error
    if not isinstance(entries, list):
        raise UsageError(
            f"The calibration file {name!r} is a JSON {_kind(entries)}; expected a list.", _SHAPES
        )
    documents: list[Document] = []
    problems: list[str] = []
    for number, entry in enumerate(entries, 1):
        where = f"entry {number:,}"
        try:
            documents.append(_read_document(entry, where))
        except UsageError as error:
            problems.append(f"{where}: {error.problem.rstrip('.')}")
    _refuse(problems, name)
    return documents


def _read_document(entry: object, where: str) -> Document:
    """Return one document; raise UsageError that says what is wrong with it."""
    if not isinstance(entry, dict):
        raise UsageError(f"it is a JSON {_kind(entry)}; expected an object", _SHAPES)
    tools = _read_tools(entry.get("tools"))
    messages = entry.get("messages")
    prompt, completion = entry.get("prompt"), entry.get("completion")
    if messages is not None:
        return Document(where, None, _read_messages(messages), tools)
    if isinstance(prompt, list) and isinstance(completion, list):
        return Document(where, None, _read_messages([*prompt, *completion]), tools)
    if isinstance(prompt, str) and isinstance(completion, str):
        pair = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
        ]
        return Document(where, prompt + completion, _read_messages(pair), tools)
    text = entry.get("text")
    if isinstance(text, str):
        check_encodable(text)
        return Document(where, text)
    keys = ", ".join(repr(key)[:40] for key in list(entry)[:6]) or "nothing"
    raise UsageError(
        "it has no 'messages', no text as 'text', and no 'prompt' and 'completion' of one kind; "
        f"found {keys}",
        _SHAPES,
    )


def _read_messages(messages: object) -> tuple[Object, ...]:
    if not isinstance(messages, list):
        raise UsageError(f"its messages are a JSON {_kind(messages)}; expected a list", _SHAPES)
    return tuple(check_messages(messages, is_complete=False))


def _read_tools(tools: object) -> tuple[Object, ...] | None:
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise UsageError("its tools are no list of function schemas", _SHAPES)
    return tuple(tool.to_openai() for tool in read_tools(tools)) or None


def _refuse(problems: Sequence[str], name: str) -> None:
    if problems:
        places = "1 place" if len(problems) == 1 else f"{len(problems):,} places"
        raise UsageError(
            f"The calibration file {name!r} cannot be read in {places}: {join_problems(problems)}.",
            _SHAPES,
            problems=list(problems),
        )


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UsageError(
                f"The calibration file {path.name!r} has {format_bytes(size)}; at most "
                f"{format_bytes(MAX_FILE_BYTES)} are read, and some hundred samples are taken.",
                "give a part of it that holds something of everything",
                size_bytes=size,
            )
        return path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"The calibration file {str(path)!r} cannot be read: {error.strerror}.",
            "name a file of plain text ('.txt', '.md') or of conversations ('.jsonl', '.json')",
        ) from error


def _decode(raw: bytes, path: Path) -> str:
    """Return the text of a file, with "\\n" at the ends of lines."""
    if not raw.strip():
        raise UsageError(
            f"The calibration file {path.name!r} is empty.",
            "name a file with some thousand words of what the model is used for",
        )
    if b"\0" in raw:
        raise UsageError(
            f"The calibration file {path.name!r} has a NUL at byte {raw.index(0):,}: it is a "
            "binary file, or a text in UTF-16.",
            "name a file of plain text or JSON in UTF-8",
        )
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The calibration file {path.name!r} is not UTF-8 (byte {error.start:,} is "
            f"0x{raw[error.start]:02X}), so what it says cannot be known.",
            "save it as UTF-8",
        ) from error
    return content.replace("\r\n", "\n")


def _kind(value: object) -> str:
    """Return what JSON calls a value."""
    names = {dict: "object", list: "list", str: "text", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _json_problem(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno:,}"
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)[:100]
