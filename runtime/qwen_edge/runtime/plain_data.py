"""Data of texts, numbers, lists and mappings, as JSON has it: checked copies and their texts.

What programs hand in may be any object; what goes on from here is plain. It knows nothing of
messages; read `chat.py` for who uses it.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from qwen_edge.errors import UsageError
from qwen_edge.runtime.text_tokenizer import check_encodable

MESSAGE_FIX = 'pass messages like {"role": "user", "content": "Hello"}'
_MAX_DEPTH = 64


def copy_plain(value: object, where: str, depth: int = 0) -> object:
    """Return a copy of data in dicts and lists; raise UsageError for anything else.

    Args:
        value: Mappings become dicts with texts as keys, other sequences lists.
        where: How an error message calls it.
        depth: How deep it lies in what is copied.
    """
    if depth > _MAX_DEPTH:
        raise UsageError(f"{where} is nested more than {_MAX_DEPTH} deep.", "flatten it")
    if isinstance(value, str):
        check_encodable(value)
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where} is {value}, which JSON cannot write.", "give a finite number")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {
            str(copy_plain(str(key), where)): copy_plain(item, f"{where}[{key!r}]", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [copy_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise UsageError(
        f"{where} is of type {type(value).__name__}; expected plain data: texts, numbers, lists "
        "and mappings.",
        MESSAGE_FIX,
    )


def iter_texts(value: object) -> list[str]:
    """Return all texts of plain data, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in iter_texts(part)]
    if isinstance(value, list):
        return [text for item in value for text in iter_texts(item)]
    return []


def map_texts(value: object, change: Callable[[str], str]) -> object:
    """Return plain data with every text changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [map_texts(item, change) for item in value]
    return value
