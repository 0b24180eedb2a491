"""For programs that start the server: where it is, when it is ready, and when to end.

A ready file says the address and the key to whoever may read it; the end of the parent process,
or of standard input, ends the server.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from qwen_edge.errors import UsageError
from qwen_edge.runtime.files.replacing import write_atomically
from qwen_edge.runtime.files.writing import remove_file

_POLL_S = 0.5


@dataclass(frozen=True)
class ReadyFacts:
    """What a program has to know of a server that it started.

    Args:
        url: Where it is, without a slash at the end.
        port: Part of it.
        pid: Process of the server.
        api_key: What requests have to bring, or None.
    """

    url: str
    port: int
    pid: int
    api_key: str | None

    def to_json(self) -> dict[str, object]:
        """Return the facts as JSON data."""
        return asdict(self)


class ReadyFile:
    """A file that is there while the server is ready.

    Args:
        path: Its folder must exist.

    Raises:
        UsageError: Its folder does not exist.

    State:
        An earlier file of this name is removed at once: it speaks of another server.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        if not self._path.parent.is_dir():
            raise UsageError(
                f"--ready-file is {str(path)!r}, whose folder does not exist.",
                "make the folder first",
                option="ready_file",
            )
        self.remove()

    def write(self, facts: ReadyFacts) -> None:
        """Write it whole, for this account only: it may hold the key.

        Raises:
            UsageError: Nothing may be written there.
            ResourceError: The disk is full.
        """
        content = json.dumps(facts.to_json()).encode("utf-8")
        before = os.umask(0o077)
        try:
            write_atomically(self._path, lambda stream: stream.write(content))
        finally:
            os.umask(before)

    def remove(self) -> None:
        """Remove it; harmless where it is not there."""
        try:
            remove_file(self._path)
        except OSError as error:
            raise UsageError(
                f"--ready-file is {str(self._path)!r}, where something else lies: "
                f"{error.strerror}.",
                "choose another name",
                option="ready_file",
            ) from error


def stop_with_parent(pid: int, stop: Callable[[], None]) -> None:
    """Call `stop` when a process is gone.

    Args:
        pid: The process.
        stop: Called in a thread of its own, once.

    Raises:
        UsageError: There is no such process now.
    """
    if not is_running(pid):
        raise UsageError(
            f"--parent-pid is {pid}, and there is no such process.",
            "give the number of the program that starts the server",
            option="parent_pid",
        )

    def watch() -> None:
        while is_running(pid):
            time.sleep(_POLL_S)
        stop()

    threading.Thread(target=watch, name="qwen-edge-parent", daemon=True).start()


def stop_with_stdin(stop: Callable[[], None]) -> None:
    """Call `stop` when standard input ends; what comes before is not looked at."""
    number = None if sys.stdin is None else sys.stdin.fileno()

    def watch() -> None:
        try:
            while number is not None and os.read(number, 4096):
                pass
        except OSError:
            pass  # closed under us: the end as well
        stop()

    threading.Thread(target=watch, name="qwen-edge-stdin", daemon=True).start()


def is_running(pid: int) -> bool:
    """Whether a process of this number exists and has not ended."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        return _is_running_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and only waits to be asked how; false where that is unknown."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return status.rpartition(b")")[2].split()[:1] == [b"Z"]


def _is_running_on_windows(pid: int) -> bool:
    """Ask Windows, where sending signal 0 would end the process."""
    import ctypes

    synchronize, wait_timeout = 0x0010_0000, 0x102
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    handle = kernel.OpenProcess(synchronize, False, pid)
    if not handle:
        return False
    try:
        return bool(kernel.WaitForSingleObject(handle, 0) == wait_timeout)
    finally:
        kernel.CloseHandle(handle)
