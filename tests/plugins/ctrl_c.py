"""Ctrl-C at each line of the layer that writes files.

Python raises KeyboardInterrupt between two steps of its own, wherever it is. Here it comes where a
test wants it.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import qwen_edge.runtime.files

LAYER = str(Path(qwen_edge.runtime.files.__file__).parent)


class CtrlC:
    """Raises KeyboardInterrupt at the n-th call or line of the layer that writes.

    Args:
        number: From 1.

    State:
        `has_struck`: there were so many.
    """

    def __init__(self, number: int) -> None:
        self.has_struck = False
        self._left = number

    def __call__(self, frame: FrameType, event: str, argument: object) -> "CtrlC | None":
        del argument
        if not frame.f_code.co_filename.startswith(LAYER):
            return None
        if event in ("call", "line") and not self.has_struck:
            self._left -= 1
            if not self._left:
                self.has_struck = True
                raise KeyboardInterrupt
        return self


def strike_each(work: Callable[[], object], check: Callable[[], object]) -> int:
    """Do a piece of work with Ctrl-C at each of its lines, until it has no more; returns those."""
    number = 0
    while True:
        number += 1
        ctrl_c = CtrlC(number)
        sys.settrace(ctrl_c)
        try:
            work()
        except KeyboardInterrupt:
            assert ctrl_c.has_struck
        else:
            assert not ctrl_c.has_struck, f"Ctrl-C at line {number} of the work was lost"
            return number - 1
        finally:
            sys.settrace(None)
        check()
