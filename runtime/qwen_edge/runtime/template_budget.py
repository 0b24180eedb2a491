"""What one rendering of a chat template may spend: time, characters, items.

It knows nothing of Jinja2; read `template_sandbox.py` for where it is asked.
"""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

MAX_RENDER_S = 1.0
MAX_STEP_S = 0.5
"""Most that counts between two looks at the clock. Whatever an operation may do takes less."""
MAX_OUTPUT_CHARS = 4 * 1024 * 1024
MAX_VALUE_ITEMS = 200_000
MAX_INTEGER_BITS = 1_024

_T = TypeVar("_T")


class LimitError(Exception):
    """A template went over a limit; the text completes "was stopped: ...".."""


class Budget:
    """What one rendering may still spend.

    Args:
        clock: Returns seconds; monotonic. The time that this thread computes, unless given: that
            the machine is busy, or was asleep, is not the template's fault. Nor is a single long
            gap: Python collects garbage in whatever thread is at work, in a program with many
            objects for more than a second.

    State:
        Only ever shrinks.
    """

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock
        self._looked_s = clock()
        self._seconds_left = MAX_RENDER_S
        self._chars_left = MAX_OUTPUT_CHARS

    def step(self) -> None:
        """Raise LimitError when the time is over."""
        now_s = self._clock()
        self._seconds_left -= min(now_s - self._looked_s, MAX_STEP_S)
        self._looked_s = now_s
        if self._seconds_left < 0:
            raise LimitError(f"it ran for more than {MAX_RENDER_S:g} s")

    def emit(self, num_chars: int) -> None:
        """Count characters written, whether shown or captured, and check the time."""
        self._chars_left -= num_chars
        self.check_chars(MAX_OUTPUT_CHARS - self._chars_left)

    def check_chars(self, num_chars: int) -> None:
        """Raise LimitError when a text of this length may not exist, or time is over."""
        self.step()
        if num_chars > MAX_OUTPUT_CHARS:
            raise LimitError(f"it made more than {MAX_OUTPUT_CHARS:,} characters")

    def check(self, value: _T) -> _T:
        """Return `value`; raise LimitError when it is too large or the time is over."""
        self.step()
        if isinstance(value, str):
            self.check_chars(len(value))
        elif isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
            raise LimitError(f"it made a number of more than {MAX_INTEGER_BITS:,} bits")
        elif isinstance(value, list | tuple | dict):
            self._check_items(value)
        return value

    def _check_items(self, value: Iterable[object]) -> None:
        """Count items and characters at every depth; a shared part counts each time."""
        num_items, num_chars = 0, 0
        stack: list[Iterable[object]] = [value]
        while stack:
            container = stack.pop()
            self.step()
            num_items += len(container) if isinstance(container, list | tuple | dict) else 0
            if num_items > MAX_VALUE_ITEMS:
                raise LimitError(f"it made a value of more than {MAX_VALUE_ITEMS:,} items")
            if isinstance(container, dict):
                stack.append(list(container.values()))
            for item in container:
                if isinstance(item, str):
                    num_chars += len(item)
                elif isinstance(item, list | tuple | dict):
                    stack.append(item)
        self.check_chars(num_chars)
