"""Readers that break at their fourth case, each in its own way: for tests of the driver."""

import os
import signal

from lab import Lab, Reader, Target

from qwen_edge.errors import UsageError


def _divide() -> None:
    print(1 // 0)


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _never_end() -> None:
    while True:
        pass


def _take_all() -> None:
    bytearray(1 << 45)


def _say_nothing() -> None:
    raise UsageError("half of a character: \ud800", "none")


def _breaking(how: str) -> Target:
    def prepare(lab: Lab) -> Reader:
        seen: list[bytes] = []

        def read(data: bytes) -> None:
            seen.append(data)
            is_fourth = len(seen) == 5  # the first is none of the cases
            if is_fourth and lab.work.name == "0":  # a worker that starts later breaks at none
                _WAYS[how]()

        return read

    return Target(f"broken-by-{how}", lambda lab: [b"x"], (lambda rng, data: data,), prepare)


_WAYS = {
    "error": _divide,
    "signal": _crash,
    "time": _never_end,
    "memory": _take_all,
    "text": _say_nothing,
}
TARGETS = tuple(map(_breaking, _WAYS))
