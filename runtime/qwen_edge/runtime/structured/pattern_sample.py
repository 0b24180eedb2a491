"""Writes a short text that a regular expression matches, to know how such texts end.

A text that is begun can often be ended like one that is known: `@a.aa` after the first part of
an address. It covers what patterns in schemas are made of; where it is wrong or gives up, only a
way to the end is found later, for the engine checks every text. Read `shortest.py` for its use.
"""

import re

# Of the formats that the engine enforces.
FORMAT_SAMPLES = {
    "date": "2000-01-01",
    "time": "00:00:00Z",
    "date-time": "2000-01-01T00:00:00Z",
    "duration": "P1D",
    "email": "a@a.aa",
    "hostname": "a",
    "ipv4": "0.0.0.0",
    "ipv6": "::",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "uri": "a:a",
}
MAX_SAMPLE_CHARACTERS = 256
_ESCAPES = {"d": "0", "w": "a", "s": " ", "D": "a", "W": "-", "S": "a", "n": "\n", "t": "\t"}
_NO_TEXT = frozenset("^$")
_NO_TEXT_ESCAPES = frozenset("bBAzZ")
_GROUP_OPTIONS = re.compile(r"\?(?::|P?<\w+>)")
_QUANTIFIER = re.compile(r"(?:[*?]|(\+)|\{(\d+)(?:,\d*)?\})\??")
_CANDIDATES = "a0A-_. @/:bcdefghijklmnopqrstuvwxyz123456789" + "".join(map(chr, range(33, 127)))


class _TooDifficultError(Exception):
    """The pattern has something that is not read here."""


def sample_pattern(pattern: str) -> str | None:
    """Return a short text that a pattern matches, None where none was found.

    Args:
        pattern: Within the limits of `pattern_limits.py`.
    """
    try:
        text, position = _read_options(pattern, 0)
    except (_TooDifficultError, re.error, IndexError):
        return None
    is_whole = position == len(pattern)
    return text if is_whole and len(text) <= MAX_SAMPLE_CHARACTERS else None


def _read_options(pattern: str, position: int) -> tuple[str, int]:
    """Return the shortest of the alternatives from here on, and where they end."""
    options = [""]
    while position < len(pattern) and pattern[position] != ")":
        if pattern[position] == "|":
            options.append("")
            position += 1
            continue
        item, position = _read_item(pattern, position)
        quantifier = _QUANTIFIER.match(pattern, position)
        if quantifier:
            position = quantifier.end()
            item *= 1 if quantifier[1] else int(quantifier[2] or 0)
        options[-1] += item
        if len(options[-1]) > MAX_SAMPLE_CHARACTERS:
            raise _TooDifficultError
    return min(options, key=len), position


def _read_item(pattern: str, position: int) -> tuple[str, int]:
    """Return a text for one item, and where the item ends."""
    character = pattern[position]
    if character == "(":
        options = _GROUP_OPTIONS.match(pattern, position + 1)
        if not options and pattern[position + 1] == "?":
            raise _TooDifficultError
        text, end = _read_options(pattern, options.end() if options else position + 1)
        if pattern[end] != ")":
            raise _TooDifficultError
        return text, end + 1
    if character == "[":
        end = position + 2 if pattern[position + 1] != "^" else position + 3
        while pattern[end] != "]":
            end += 2 if pattern[end] == "\\" else 1
        return _sample_class(pattern[position : end + 1]), end + 1
    if character == "\\":
        escaped = pattern[position + 1]
        if escaped in _NO_TEXT_ESCAPES:
            return "", position + 2
        if escaped.isalnum() and escaped not in _ESCAPES:
            raise _TooDifficultError
        return _ESCAPES.get(escaped, escaped), position + 2
    if character in _NO_TEXT:
        return "", position + 1
    return "a" if character == "." else character, position + 1


def _sample_class(text: str) -> str:
    """Return a character of a class such as `[^@]`."""
    found = re.compile(text)
    for character in _CANDIDATES + text[1:-1]:
        if found.fullmatch(character):
            return str(character)
    raise _TooDifficultError
