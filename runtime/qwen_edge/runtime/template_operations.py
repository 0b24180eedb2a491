"""Operations of chat templates that can make much from little, measured before they run.

It knows the budget and nothing of Jinja2's compiler; `template_sandbox.py` puts these in the
place of Jinja2's own filters and asks before operators and text methods.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.filters import do_indent, do_title

from qwen_edge.runtime.template_budget import (
    MAX_INTEGER_BITS,
    MAX_VALUE_ITEMS,
    Budget,
    LimitError,
)

_MAX_SEARCH_WORK = 2**26  # characters times characters, for methods that are not linear
_MAX_ATTRIBUTE_PARTS = 4  # of "a.b,c.d", each of which is looked up in every item
_SLOW_METHODS = frozenset({"lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"})


class MeasuredOperations:
    """Filters and checks that share one budget.

    Args:
        budget: Asked before each operation.
        getitem: Reads an attribute as a template may.

    State:
        Only that of the budget.
    """

    def __init__(self, budget: Budget, getitem: Callable[[Any, str], Any]) -> None:
        self._budget = budget
        self._getitem = getitem

    def check_product(self, left: Any, right: Any) -> None:
        """Measure a product before it is made, when one side is a text or a list."""
        for items, factor in ((left, right), (right, left)):
            if isinstance(items, str | list | tuple) and isinstance(factor, int) and factor > 1:
                if isinstance(items, str):
                    self._budget.check_chars(len(items) * factor)
                elif len(items) * factor > MAX_VALUE_ITEMS:
                    raise LimitError(f"it made a value of more than {MAX_VALUE_ITEMS:,} items")

    def check_text_call(self, text: str, method: str, args: Sequence[Any]) -> None:
        """Measure a text method before it runs, when it can multiply or is not linear."""
        if method == "join" and args:
            items = args[0]
            if not isinstance(items, str | list | tuple | dict):
                raise SecurityError("the text method join takes a list")
            num_chars = sum(len(item) for item in items if isinstance(item, str))
            self._budget.check_chars(num_chars + len(items) * len(text))
        elif method == "replace" and len(args) >= 2:
            self.check_replace(text, str(args[0]), str(args[1]))
        elif method in _SLOW_METHODS:
            width = max((len(arg) for arg in args if isinstance(arg, str)), default=0)
            if len(text) * width > _MAX_SEARCH_WORK:
                raise LimitError(f"its {method} would compare too many characters")

    def check_replace(self, text: str, old: str, new: str) -> None:
        """Measure the result of a replacement."""
        num_found = text.count(old)
        self._budget.check_chars(len(text) + num_found * max(0, len(new) - len(old)))

    def replace(self, value: object, old: object, new: object, count: int = -1) -> str:
        """Filter: replace a text within a text."""
        text, old_text, new_text = str(value), str(old), str(new)
        self.check_replace(text, old_text, new_text)
        return text.replace(old_text, new_text, -1 if count is None else count)

    def walk(self, value: Iterable[Any]) -> Iterator[Any]:
        """Yield the items that a filter goes through, looking at the clock at each.

        Also what seems one operation needs this, as putting items into a set: numbers can be
        chosen so that each is compared with all before it.
        """
        for position, item in enumerate(value):
            if position >= MAX_VALUE_ITEMS:
                raise LimitError(f"it went through more than {MAX_VALUE_ITEMS:,} items")
            self._budget.step()
            yield item

    def take(self, value: Iterable[Any]) -> list[Any]:
        """Return the items of what a filter is going to compare; one that recurs counts again."""
        items = list(self.walk(value))
        return self._budget.check(items)

    def check_attribute(self, name: object) -> None:
        """Measure the name of what a filter looks up in every item, as "a.b" or "a,b"."""
        if isinstance(name, str) and name.count(".") + name.count(",") >= _MAX_ATTRIBUTE_PARTS:
            raise LimitError(f"it names an attribute of over {_MAX_ATTRIBUTE_PARTS} parts")

    def title(self, value: object) -> str:
        """Filter: a text with capital initials, which Jinja2 makes word by word."""
        text = str(value)
        if len(text) > MAX_VALUE_ITEMS:
            raise LimitError(f"its title has more than {MAX_VALUE_ITEMS:,} characters")
        return do_title(text)

    def make_dict(self, value: Any = (), /, **named: Any) -> dict[Any, Any]:
        """Template function: a dict of pairs, of another dict, or of what is named."""
        found: dict[Any, Any] = {}
        for key, item in self.walk(value.items() if isinstance(value, dict) else value):
            found[key] = item
        return found | named

    def join(self, value: Iterable[Any], d: object = "", attribute: str | None = None) -> str:
        """Filter: join the items of a list."""
        separator = str(d)
        texts: list[str] = []
        num_chars = 0
        for item in value:
            found = item if attribute is None else self._getitem(item, attribute)
            texts.append(str(self._budget.check(found)))
            num_chars += len(texts[-1]) + len(separator)
            self._budget.check_chars(num_chars - len(separator))
        return separator.join(texts)

    def trim(self, value: object, chars: str | None = None) -> str:
        """Filter: remove characters, by default white space, at both ends."""
        text = str(value)
        self.check_text_call(text, "strip", [chars])
        return text.strip(chars)

    def indent(
        self, value: object, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        """Filter: indent the lines of a text."""
        text = str(value)
        num_chars = len(width) if isinstance(width, str) else int(width)
        self._budget.check_chars(len(text) + (text.count("\n") + 1) * max(0, num_chars))
        return str(do_indent(text, width, first, blank))

    def to_json(
        self,
        x: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: Sequence[str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Filter: JSON as Transformers writes it, counted while it is written."""
        self._budget.check(x)
        spaces = len(indent) if isinstance(indent, str) else int(indent or 0)
        if spaces > 16 or any(len(separator) > 16 for separator in separators or ()):
            raise LimitError("its tojson has an indent or separator of more than 16 characters")
        pair = (separators[0], separators[1]) if separators is not None else None
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys
        )
        chunks: list[str] = []
        num_chars = 0
        for chunk in encoder.iterencode(x):
            chunks.append(chunk)
            num_chars += len(chunk)
            self._budget.check_chars(num_chars)
        return "".join(chunks)


def is_small_power(base: Any, exponent: Any) -> bool:
    """Whether a power stays within the integer limit."""
    if not isinstance(base, int) or not isinstance(exponent, int):
        return True
    return base.bit_length() * max(0, exponent) <= MAX_INTEGER_BITS
