"""Follows the text of one JSON object as it comes, and cuts out its outermost values.

Strict JSON (RFC 8259) but for two things that are seen better in the whole text: repeated keys
and halves of characters; `call_parser.py` looks for these. Every character is looked at once,
nothing is recursive, and the first one that cannot belong to such an object breaks it.
"""

import re
from dataclasses import dataclass

MAX_DEPTH = 50  # of lists and objects in the outermost one; chat.py allows a little more
MAX_NUMBER_CHARS = 300  # Python itself refuses whole numbers of more than 4,300 digits
_MAX_KEY_CHARS = 64  # of an outermost key; those of a call are shorter

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_WORD = re.compile(r"[-+.0-9A-Za-z]*")
_VALUE = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false|null")
_HEX = frozenset("0123456789abcdefABCDEF")


@dataclass(frozen=True)
class Part:
    """A piece of an outermost value.

    Args:
        key: Its key as written, with quotes.
        text: The next piece, as written.
        is_end: Whether the value ends with it.
    """

    key: str
    text: str
    is_end: bool


class JsonScanner:
    """Reads one object.

    State:
        `is_broken` for good from the first character on that does not fit; `is_complete` from
        the closing brace on, after which only white space fits.
    """

    def __init__(self) -> None:
        self.is_broken = False
        self.is_complete = False
        self._closers: list[str] = []  # what closes each open list and object
        self._expects = self._read_start
        self._word: list[str] = []
        self._num_hex = 0
        self._is_key = False
        # What is being cut out: an outermost key, an outermost value, or nothing.
        self._cutting = ""
        self._cut_from = 0
        self._key = ""
        self._parts: list[Part] = []

    @property
    def is_in_text(self) -> bool:
        """Whether the next character stands between quotes, where it may be any."""
        return self._expects == self._read_text and not self.is_broken

    def push(self, text: str) -> list[Part]:
        """Read on; return the pieces of outermost values, in order.

        Args:
            text: Any text of any length.
        """
        self._parts, self._cut_from = [], 0
        if self._cutting == "key":
            # A key that is cut goes on where it was.
            held, self._key = self._key, ""
            text, start = held + text, len(held)
        else:
            start = 0
        position = start
        while position < len(text) and not self.is_broken:
            position = self._expects(text, position)
        if self._cutting == "key":
            self._key = text[self._cut_from :]
            self.is_broken = self.is_broken or len(self._key) > _MAX_KEY_CHARS
        elif self._cutting and not self.is_broken and self._cut_from < len(text):
            self._parts.append(Part(self._key, text[self._cut_from :], is_end=False))
        return self._parts

    def _read_start(self, text: str, position: int) -> int:
        """Read up to the opening brace."""
        position = self._skip_space(text, position)
        if text[position : position + 1] == "{":
            return self._open("}", position)
        return self._break(text, position)

    def _read_value(self, text: str, position: int) -> int:
        """Read the beginning of a value."""
        position = self._skip_space(text, position)
        first = text[position : position + 1]
        self._is_key = False
        if first and self._is_outermost() and not self._cutting:
            self._cutting, self._cut_from = "value", position
        if first == "{":
            return self._open("}", position)
        if first == "[":
            return self._open("]", position)
        if first == '"':
            self._expects = self._read_text
            return position + 1
        if first and first in "-0123456789tfn":
            self._expects, self._word = self._read_word, []
            return position
        return self._break(text, position)

    def _read_first_item(self, text: str, position: int) -> int:
        """Read the beginning of a list's first item, or the end of an empty list."""
        position = self._skip_space(text, position)
        if text[position : position + 1] == "]":
            return self._close(text, position)
        return self._read_value(text, position)

    def _read_key(self, text: str, position: int) -> int:
        """Read the beginning of a key."""
        position = self._skip_space(text, position)
        if text[position : position + 1] != '"':
            return self._break(text, position)
        self._expects, self._is_key = self._read_text, True
        if self._is_outermost():
            self._cutting, self._cut_from = "key", position
        return position + 1

    def _read_first_key(self, text: str, position: int) -> int:
        """Read the beginning of an object's first key, or the end of an empty object."""
        position = self._skip_space(text, position)
        if text[position : position + 1] == "}":
            return self._close(text, position)
        return self._read_key(text, position)

    def _read_colon(self, text: str, position: int) -> int:
        """Read what stands between a key and its value."""
        position = self._skip_space(text, position)
        if text[position : position + 1] != ":":
            return self._break(text, position)
        self._expects = self._read_value
        return position + 1

    def _read_comma(self, text: str, position: int) -> int:
        """Read what stands after a value."""
        position = self._skip_space(text, position)
        first = text[position : position + 1]
        if first == self._closers[-1]:
            return self._close(text, position)
        if first != ",":
            return self._break(text, position)
        self._expects = self._read_key if self._closers[-1] == "}" else self._read_value
        return position + 1

    def _read_text(self, text: str, position: int) -> int:
        """Read on between quotes."""
        match = _PLAIN.match(text, position)
        assert match is not None
        position = match.end()
        first = text[position : position + 1]
        if first == '"':
            return self._end_value(text, position + 1)
        if first == "\\":
            self._expects = self._read_escape
            return position + 1
        return self._break(text, position)

    def _read_escape(self, text: str, position: int) -> int:
        """Read what stands after a backslash."""
        if text[position] == "u":
            self._expects, self._num_hex = self._read_hex, 4
        elif text[position] in '"\\/bfnrt':
            self._expects = self._read_text
        else:
            return self._break(text, position)
        return position + 1

    def _read_hex(self, text: str, position: int) -> int:
        """Read one digit of a character's number."""
        if text[position] not in _HEX:
            return self._break(text, position)
        self._num_hex -= 1
        if not self._num_hex:
            self._expects = self._read_text
        return position + 1

    def _read_word(self, text: str, position: int) -> int:
        """Read on in a number, in true, false or null."""
        match = _WORD.match(text, position)
        assert match is not None
        self._word.append(match.group())
        is_long = sum(map(len, self._word)) > MAX_NUMBER_CHARS
        if match.end() == len(text) and not is_long:
            return match.end()
        if is_long or not _VALUE.fullmatch("".join(self._word)):
            return self._break(text, len(text) - 1)
        return self._end_value(text, match.end())

    def _read_rest(self, text: str, position: int) -> int:
        """Read what stands after the object."""
        return self._break(text, self._skip_space(text, position))

    def _is_outermost(self) -> bool:
        return len(self._closers) == 1

    def _open(self, closer: str, position: int) -> int:
        """Begin a list or an object."""
        self._closers.append(closer)
        self.is_broken = len(self._closers) > MAX_DEPTH + 1
        self._expects = self._read_first_key if closer == "}" else self._read_first_item
        return position + 1

    def _close(self, text: str, position: int) -> int:
        """End a list or an object."""
        self._closers.pop()
        if self._closers:
            self._is_key = False
            return self._end_value(text, position + 1)
        self.is_complete, self._expects = True, self._read_rest
        return position + 1

    def _end_value(self, text: str, position: int) -> int:
        """End a value or a key that stops before `position`."""
        self._expects = self._read_colon if self._is_key else self._read_comma
        if self._is_outermost():
            cut = text[self._cut_from : position]
            if self._is_key:
                self._key = cut
                self.is_broken = len(cut) > _MAX_KEY_CHARS
            else:
                self._parts.append(Part(self._key, cut, is_end=True))
            self._cutting = ""
        return position

    def _skip_space(self, text: str, position: int) -> int:
        match = _SPACE.match(text, position)
        assert match is not None
        return match.end()

    def _break(self, text: str, position: int) -> int:
        """Note that there is a character that does not fit, unless the text just ends here."""
        self.is_broken = position < len(text)
        return position
