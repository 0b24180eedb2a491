"""Reads docstrings in Google style: what a function does, and what its arguments mean.

It knows text only. `python_functions.py` and `parameter_types.py` ask for it.
"""

import inspect
import re
from dataclasses import dataclass, field

_PARAMETER_SECTIONS = frozenset({"Args", "Arguments", "Parameters", "Attributes"})
# Sections of the style guide and those that documentation tools know besides.
_OTHER_SECTIONS = frozenset(
    {"Example", "Examples", "Note", "Notes", "Raises", "References", "Returns"}
    | {"Source", "State", "Todo", "Warning", "Warnings", "Yields"}
)
_ENTRY = re.compile(r"(\w+)\s*(?:\([^)]*\))?:\s*(.*)")  # "name: text" or "name (type): text"


@dataclass(frozen=True)
class Docstring:
    """What a docstring says.

    Args:
        description: Everything before the first section, each paragraph on one line.
        parameters: Name → meaning, from "Args:" or "Attributes:".
    """

    description: str = ""
    parameters: dict[str, str] = field(default_factory=dict)


def read_docstring(text: str | None) -> Docstring:
    """Return what a docstring says; any text is accepted.

    Args:
        text: As written, with the indentation of the source; None for no docstring.
    """
    lines = inspect.cleandoc(text or "").splitlines()
    description: list[str] = []
    parameters: dict[str, str] = {}
    section: str | None = None
    entry_indent, name = 0, ""
    for line in lines:
        indent = len(line) - len(line.lstrip())
        header = line.rstrip().removesuffix(":")
        if header != line.rstrip() and header in _PARAMETER_SECTIONS | _OTHER_SECTIONS:
            section, entry_indent, name = header, 0, ""
        elif section is None:
            description.append(line)
        elif section in _PARAMETER_SECTIONS and line.strip():
            entry_indent = entry_indent or indent
            entry = _ENTRY.fullmatch(line.strip())
            if entry and indent <= entry_indent:
                name = entry.group(1)
                parameters[name] = entry.group(2).strip()
            elif name:
                parameters[name] = f"{parameters[name]} {line.strip()}".strip()
    return Docstring(_join_paragraphs(description), parameters)


def _join_paragraphs(lines: list[str]) -> str:
    """Return text with one line per paragraph and no blank lines."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip())
    return "\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip())
