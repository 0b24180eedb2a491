"""What Ctrl-C does: end the program soon, or only the answer that is being written.

Python sees Ctrl-C between two of its own steps only, and one step of the engine, such as a
long prompt or the first inference, takes seconds. Nothing here knows models or commands.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from qwen_edge.cli.output import show_cancelled

INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, what shells report for Ctrl-C
_GRACE_S = 0.7  # time for the usual way out, through every `finally`


def clean_up_when_ended() -> None:
    """Let SIGTERM and a closed terminal end the program as Ctrl-C does: through every `finally`.

    Else an export would leave its staging folder behind, as large as a package.
    """

    def end(signal_number: int, frame: FrameType | None) -> None:
        del frame
        sys.exit(128 + signal_number)

    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        # A program started with nohup ignores SIGHUP, and shall go on doing so.
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


@contextmanager
def leave_soon() -> Iterator[None]:
    """End the process soon after Ctrl-C, also while the engine is at work.

    The usual way, KeyboardInterrupt, gets its time first. Use it only around work that has
    nothing to clean up.

    State:
        See `_when_stuck`.
    """

    def end() -> None:
        show_cancelled()
        leave(INTERRUPTED_EXIT_CODE, at_once=True)

    with _when_stuck(end):
        yield


@contextmanager
def interrupts_call(stop: Callable[[], None], tell: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at Ctrl-C instead of raising KeyboardInterrupt wherever Python is.

    Args:
        stop: Must be short and must not print.
        tell: Called when the block goes on for a while after Ctrl-C.
    """

    def handle(signal_number: int, frame: FrameType | None) -> None:
        del signal_number, frame
        stop()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, handle)
    try:
        with _when_stuck(tell):
            yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _when_stuck(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` in a thread when the block is still running a moment after Ctrl-C.

    State:
        A thread waits for the signal while the block runs. In a thread that is not the main
        one, where no signal arrives, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    if os.name == "posix":
        os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    is_over = threading.Event()

    def watch() -> None:
        while received := os.read(reader, 1):
            if received[0] == signal.SIGINT and not is_over.wait(_GRACE_S):
                act()
        os.close(reader)

    threading.Thread(target=watch, name="qwen-edge-interrupt", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
        signal.set_wakeup_fd(previous)
        os.close(writer)


def leave(code: int, *, at_once: bool = False) -> None:
    """End the process.

    Python would wait for threads first; one of ours may be inside a long step of the engine,
    whose result nobody needs any more.

    Args:
        code: Exit code.
        at_once: Do not look for threads.
    """
    if not at_once and all(
        thread is threading.current_thread() or thread.daemon for thread in threading.enumerate()
    ):
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue
    os._exit(code)
