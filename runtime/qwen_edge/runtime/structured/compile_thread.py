"""Runs a compilation where it has room and an end: in a thread of its own.

The engine walks through rules and references by recursion. Measured with 8 MB of stack, a chain
of 1,600 references or 3,200 rules ends the process, and threads of some systems have 512 KB. It
cannot be stopped either, so who waits for it stops waiting. It knows nothing of grammars.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

STACK_BYTES = 64 * 1024 * 1024  # address space; only what is used becomes memory
_T = TypeVar("_T")
_stack_size_lock = threading.Lock()


class _Outcome(Generic[_T]):
    """What a piece of work came to."""

    def __init__(self, work: Callable[[], _T]) -> None:
        self._work = work
        self.value: _T | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Do the work and keep what it returns or raises."""
        try:
            self.value = self._work()
        except BaseException as error:
            self.error = error


def run_with_large_stack(work: Callable[[], _T], *, timeout_s: float) -> _T:
    """Return what some work returns, done in a thread with a large stack.

    Args:
        work: Raises what it likes; that is raised here.
        timeout_s: Longest time to wait.

    Raises:
        TimeoutError: It took longer. It goes on in the background until it ends by itself.
    """
    outcome = _Outcome(work)
    thread = threading.Thread(target=outcome.run, name="compile-grammar", daemon=True)
    # The size is one for the process: a thread that another one starts meanwhile has it too,
    # which does no harm.
    with _stack_size_lock:
        before = threading.stack_size()
        with contextlib.suppress(ValueError, RuntimeError):
            threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join(timeout_s)
    if thread.is_alive():
        raise TimeoutError
    if outcome.error is not None:
        raise outcome.error
    return outcome.value  # type: ignore[return-value]
