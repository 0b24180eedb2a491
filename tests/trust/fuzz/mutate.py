"""Makes damaged and invented inputs out of good ones: bytes, JSON, XML, and texts put together.

The same random numbers make the same input on every machine. It knows nothing of what reads
them; `targets.py` says which of these a reader gets.
"""

import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Change = Callable[[Random, bytes], bytes]

_BYTES = (0x00, 0x01, 0x20, 0x22, 0x2C, 0x2D, 0x30, 0x5B, 0x5D, 0x7B, 0x7D, 0x7F, 0x80, 0xC3, 0xFF)
_NUMBERS = (0, 1, 7, 8, 127, 128, 255, 256, 0x7FFF, 0xFFFF, 1 << 24, (1 << 31) - 1, 1 << 31)
_LARGE = ((1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 16, (1 << 64) - 1)
_PIECES = (
    b"\x00" * 16, b"\xff" * 8, b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\\ud800",
    b'"', b"\\", b"{", b"[", b"}", b"]", b",", b":", b"null", b"NaN", b"1e999", b"-1", b"9" * 400,
    b"[" * 2_000, b'{"a":' * 2_000, b"../../etc/passwd", b"/dev/zero", b"%s%n", b"\r\n", b"<!--",
    b"a" * 5_000, b"\xe2\x80\xae", b"\x1b[2J", b"-0", b"1" * 5_000, b"(a+)+$", b"<", b"&", b">",
)  # fmt: skip
_VALUES: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: True, lambda: False, lambda: 0, lambda: -1, lambda: 1, lambda: 1 << 31,
    lambda: 1 << 63, lambda: 1 << 64, lambda: 10**400, lambda: -(10**30), lambda: 0.5,
    lambda: -0.0, lambda: 1e308, lambda: 1e-320, lambda: "", lambda: "0", lambda: "\x00",
    lambda: "..", lambda: "../x", lambda: "/dev/zero", lambda: "C:\\x", lambda: "\ud800",
    lambda: "a" * 5_000, lambda: "\u202e\x1b[2J", lambda: "(a+)+$", lambda: "(", list,
    dict, lambda: [None], lambda: [[]], lambda: {"": None}, lambda: [1] * 300,
    lambda: [1 << 62, 1 << 62], lambda: [-1, 5], lambda: {"a": {"b": {"c": []}}}, lambda: [{}],
    lambda: _nested(40), lambda: _nested(600), lambda: 1e999, lambda: "<|im_start|>",
    lambda: _DEEP_LIST, lambda: _DEEP_OBJECT,
)  # fmt: skip
# What `json` cannot write, because it is nested too deeply: put in afterwards.
_DEEP_LIST, _DEEP_OBJECT = "@deep list@", "@deep object@"
_DEEP = {
    _DEEP_LIST: "[" * 100_000 + "]" * 100_000,
    _DEEP_OBJECT: '{"a":' * 3_000 + "1" + "}" * 3_000,
}


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


# Bytes


def change_bytes(rng: Random, data: bytes) -> bytes:
    """Damage bytes in one to six places."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        data = rng.choice(_BYTE_CHANGES)(rng, data)
    return data


def _flip(rng: Random, data: bytes) -> bytes:
    if not data:
        return b"\x00"
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _set(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.choice(_BYTES)]) + data[at + 1 :]


def _cut_end(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _cut_middle(rng: Random, data: bytes) -> bytes:
    start, stop = _range(rng, data)
    return data[:start] + data[stop:]


def _double(rng: Random, data: bytes) -> bytes:
    start, stop = _range(rng, data)
    times = rng.choice((2, 2, 3, 50)) if stop - start < 200 else 2
    return data[:start] + data[start:stop] * times + data[stop:]


def _swap(rng: Random, data: bytes) -> bytes:
    start, stop = _range(rng, data)
    middle = (start + stop) // 2
    return data[:start] + data[middle:stop] + data[start:middle] + data[stop:]


def _insert(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_PIECES) + data[at:]


def _insert_noise(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]


def _number(rng: Random, data: bytes) -> bytes:
    """Write a number at the edge of what its width holds."""
    width = rng.choice((1, 2, 4, 8, 8))
    value = rng.choice(_NUMBERS + _LARGE) & ((1 << 8 * width) - 1)
    at = rng.choice((0, rng.randrange(len(data) + 1)))
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


def _digits(rng: Random, data: bytes) -> bytes:
    """Put another number in the place of one in a text."""
    places = [at for at in range(len(data)) if data[at : at + 1].isdigit()]
    if not places:
        return _insert(rng, data)
    start = stop = rng.choice(places)
    while data[stop : stop + 1].isdigit():
        stop += 1
    value = rng.choice(_NUMBERS + _LARGE + (-1, -(1 << 63), 10**30))
    return data[:start] + str(value).encode() + data[stop:]


def _range(rng: Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    length = rng.choice((1, 2, 4, 16, 64, 1_000, 20_000))
    return start, min(len(data), start + rng.randrange(length + 1))


_BYTE_CHANGES: tuple[Change, ...] = (
    _flip, _flip, _set, _cut_end, _cut_middle, _double, _swap, _insert, _insert_noise, _number,
    _digits, _digits,
)  # fmt: skip


# JSON


def change_json(rng: Random, data: bytes) -> bytes:
    """Change values, keys and structure of a JSON text in one to four places."""
    try:
        root = [json.loads(data)]
    except (ValueError, RecursionError):
        return change_bytes(rng, data)
    try:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            _change_place(rng, root)
        text = _write_json(rng, root[0])
    except RecursionError:  # nested values within nested values
        return change_bytes(rng, data)
    return change_bytes(rng, text) if rng.random() < 0.08 else text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value, wide lists by a part of their entries."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack and len(found) < 4_000:
        item = stack.pop()
        if isinstance(item, dict):
            keys: list[Any] = list(item)
        elif isinstance(item, list):
            keys = list(range(len(item)))
        else:
            continue
        for key in keys[:60]:
            found.append((item, key))
            stack.append(item[key])
    return found


def _change_place(rng: Random, root: list[Any]) -> None:
    places = _places(root)
    container, key = rng.choice(places)
    value = container[key]
    kind = rng.randrange(9)
    if kind == 0 and container is not root:
        del container[key]
    elif kind == 1 and isinstance(container, list) and container is not root:
        container.insert(key, value)
    elif kind == 2 and isinstance(container, dict):
        container[rng.choice(("", "x", key + "x", key.upper(), "../" + key, "a" * 300))] = value
    elif kind == 3:
        other, other_key = rng.choice(places)
        container[key] = json.loads(json.dumps(other[other_key]))
    elif kind == 4:
        container[key] = [value]
    elif kind == 5 and isinstance(value, int | float) and not isinstance(value, bool):
        container[key] = rng.choice(
            (-value, value + 1, value - 1, value * 2, value * 10**6, str(value))
        )
    elif kind == 6 and isinstance(value, str):
        container[key] = _change_text(rng, value)
    elif isinstance(value, str) and value[:1] in ("{", "[") and rng.random() < 0.8:
        container[key] = change_json(rng, value.encode()).decode("utf-8", "replace")
    else:
        container[key] = rng.choice(_VALUES)()


def _change_text(rng: Random, text: str) -> str:
    return change_bytes(rng, text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")


def _write_json(rng: Random, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7)
    for name, deep in _DEEP.items():
        text = text.replace(f'"{name}"', deep)
    if rng.random() < 0.06 and text.startswith("{") and len(text) > 2:  # a key that is there twice
        key = next(iter(value))
        text = f"{{{json.dumps(key)}: {json.dumps(rng.choice(_VALUES)())}, {text[1:]}"
    kind = rng.randrange(40)
    if kind == 0:
        return text.encode("utf-16", "surrogatepass")
    if kind == 1:
        return b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass")
    if kind == 2:
        return (text + rng.choice((" {}", "x", "\x00", "]"))).encode("utf-8", "surrogatepass")
    return text.encode("utf-8", "surrogatepass")


def change_lines(rng: Random, data: bytes) -> bytes:
    """Change one line of a file with a JSON text on each, or the bytes of all."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = change_json(rng, lines[at])
    return b"\n".join(lines)


# Safetensors: eight bytes with the header's length, a JSON text, numbers


def change_safetensors(rng: Random, data: bytes) -> bytes:
    """Change the header as JSON and keep its length right; now and then change that too."""
    (length,) = struct.unpack("<Q", data[:8])
    header = change_json(rng, data[8 : 8 + length])
    body = data[8 + length :]
    if rng.random() < 0.15:
        body = change_bytes(rng, body)
    told = len(header)
    if rng.random() < 0.1:
        told = rng.choice((*_NUMBERS, *_LARGE, told + 1, told - 1)) & ((1 << 64) - 1)
    return struct.pack("<Q", told) + header + body


# Texts of a language, put together from pieces that mean something in it


def make_text(pieces: Sequence[str], most: int) -> Change:
    """Return a maker of texts of random pieces, which looks at no seed."""

    def make(rng: Random, data: bytes) -> bytes:
        count = rng.randrange(1, rng.choice((4, 12, most)))
        chosen = [rng.choice(pieces) for _ in range(count)]
        if rng.random() < 0.15:
            chosen *= rng.choice((2, 20, 200))
        return "".join(chosen).encode("utf-8", "surrogatepass")

    return make


def add_key(entries: Sequence[str]) -> Change:
    """Return a change that writes one more entry at the end of a JSON object."""

    def change(rng: Random, data: bytes) -> bytes:
        start = data.rstrip()[:-1]
        return start + b", " + rng.choice(entries).rstrip(",").encode() + b"}"

    return change


def put_in(pieces: Sequence[str]) -> Change:
    """Return a change that puts pieces into a text at a few places."""

    def change(rng: Random, data: bytes) -> bytes:
        for _ in range(rng.choice((1, 2, 4))):
            at = rng.randrange(len(data) + 1)
            data = data[:at] + rng.choice(pieces).encode("utf-8", "surrogatepass") + data[at:]
        return data

    return change
