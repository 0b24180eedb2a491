"""A child process that may crash or hang in the place of this one.

Engines and drivers have faults that end the process, or never come back. What may set one off is
done first by a module of ours, run as a program in a fresh interpreter (nothing is forked), which
says by its exit code how it went and by the last line on stderr why. What is tried, and what an
end means, is the caller's business: `backends/onnx_trial.py` and `compile_trial.py`.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_LOGGER = logging.getLogger(__name__)

# Exit codes of the child, none of which Python itself uses.
EXIT_REFUSED = 65
EXIT_MISSING = 66
EXIT_NO_ENGINE = 67
EXIT_NO_MEMORY = 68
EXIT_WRONG_ANSWER = 69
EXIT_DAMAGED = 70
_OWN_CODES = range(EXIT_REFUSED, EXIT_DAMAGED + 1)
KILLED = -9
"""SIGKILL: what Linux does when memory runs out; no code on Windows is negative."""
# Ctrl-C and the end of a session, here and as Windows writes them.
_STOPPED = (-signal.SIGINT, -signal.SIGTERM, 0xC000013A, 0x40010004)

_MAX_LINE_CHARACTERS = 300
_TAIL_CHUNKS, _CHUNK_BYTES = 4, 4096
# What an interpreter and its libraries need to start and to find temporary space.
_KEPT_VARIABLES = (
    "PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME", "TMPDIR",
    "SYSTEMROOT", "WINDIR", "USERPROFILE", "TEMP", "TMP", "NUMBER_OF_PROCESSORS",
    "PROCESSOR_ARCHITECTURE", "PATHEXT", "COMSPEC",
)  # fmt: skip
# How a person tells drivers which device to use: another one than here would prove nothing.
_KEPT_PREFIXES = ("ZE_", "ZES_", "OCL_", "NEO_", "ONEAPI_")


@dataclass(frozen=True)
class ChildEnd:
    """How a child ended.

    Args:
        returncode: Its exit code; negative for a signal; None where its time was up.
        last_line: The last line it wrote to stderr, printable and short.
        time_limit_s: The seconds it had.
    """

    returncode: int | None
    last_line: str
    time_limit_s: float

    @property
    def is_well(self) -> bool:
        """True where all it tried went well."""
        return self.returncode == 0

    @property
    def was_stopped(self) -> bool:
        """True where a person or the system ended it, which says nothing of what it tried."""
        return self.returncode in _STOPPED

    def describe(self) -> str:
        """Say in words how the child that tried a model ended."""
        tried = "a process that tried it first"
        code = self.returncode
        if code is None:
            return f"{tried} was not done after {self.time_limit_s:,.0f} s"
        if code in _OWN_CODES:
            return f"{tried} could not run it"
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = "an unknown signal"
            memory = ", as when memory runs out" if name == "SIGKILL" else ""
            return f"{tried} was ended by signal {-code} ({name}{memory})"
        if code >= 1 << 30:  # an NTSTATUS, such as 0xC0000005 for an access violation
            return f"{tried} was ended by Windows with code 0x{code:08X}"
        return f"{tried} ended with code {code}"


def run_trial(module: str, arguments: Sequence[str], *, time_limit_s: float) -> ChildEnd | None:
    """Run a module of ours in a child process.

    Args:
        module: Its full name; it is run as `python -m` does.
        arguments: What it gets. On Windows they may be 32,000 characters together.
        time_limit_s: Seconds after which the child is ended.

    Returns:
        How it ended. None where no child can be started: a frozen application, or one that embeds
        Python, may be its own `sys.executable`, and starting that would open the application a
        second time; a sandbox may forbid it.

    State:
        Changes nothing here. That no child was started is logged as a warning.
    """
    if not _has_interpreter():
        _LOGGER.warning("The model was not tried in a child process: there is no interpreter")
        return None
    try:
        return _run(module, arguments, time_limit_s)
    except OSError as error:
        _LOGGER.warning("The model was not tried in a child process: %s", error)
        return None


def be_expendable() -> None:
    """Be called by the child first: leave no core file, open no window, die first for memory.

    Ctrl-C reaches the child too; whether to stop is for its parent to say.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "win32":
        import msvcrt

        msvcrt.SetErrorMode(msvcrt.SEM_FAILCRITICALERRORS | msvcrt.SEM_NOGPFAULTERRORBOX)
    else:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # Linux only: whom to end when memory runs out
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _has_interpreter() -> bool:
    """Return whether `sys.executable` is a Python, and not an application that holds one."""
    stem = Path(sys.executable or "").stem.lower()
    return not getattr(sys, "frozen", False) and stem.startswith(("python", "pypy"))


def _run(module: str, arguments: Sequence[str], time_limit_s: float) -> ChildEnd:
    child = subprocess.Popen(
        # -P: a package of the current folder must not stand in for an installed one.
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=make_environment(),
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    tail: deque[bytes] = deque(maxlen=_TAIL_CHUNKS)
    assert child.stderr is not None
    reader = threading.Thread(target=_keep_tail, args=(child.stderr, tail), daemon=True)
    reader.start()
    returncode: int | None
    try:
        returncode = child.wait(time_limit_s)
    except subprocess.TimeoutExpired:
        returncode = None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        reader.join(timeout=5)
    return ChildEnd(returncode, find_last_line(b"".join(tail)), time_limit_s)


def make_environment() -> dict[str, str]:
    """Return the child's variables: few, and where this process finds its modules."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES)
    }
    # An empty entry is the current folder, which must not come before what is installed.
    entries = [entry for entry in sys.path if isinstance(entry, str) and entry]
    paths = [os.path.abspath(entry) for entry in entries]  # noqa: PTH100
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONUTF8": "1",
    }


def _keep_tail(stream: IO[bytes], tail: deque[bytes]) -> None:
    """Read all, so that the child never waits, and keep the end."""
    with stream:
        while chunk := os.read(stream.fileno(), _CHUNK_BYTES):
            tail.append(chunk)


def find_last_line(text: bytes) -> str:
    """Return the last line of a text that says something, printable and short."""
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    printable = "".join(character if character.isprintable() else "?" for character in last)
    return printable[:_MAX_LINE_CHARACTERS].rstrip(".: ")
