"""Trying an ONNX model in a process of its own, before this one loads it.

`onnx_file.py` refuses what can be seen in a file. What cannot is a fault of the engine that some
file sets off, and that ends the process. Here this happens to a child: the same module, run as
a program, loads the model, computes three tokens and says by its exit code that all went well.
Only the CPU is tried. The child is a fresh interpreter, nothing is forked.
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
from pathlib import Path
from typing import IO

from qwen_edge.errors import (
    DeviceError,
    EdgeError,
    MissingExtraError,
    PackageError,
    ResourceError,
)
from qwen_edge.profiles.providers import load_providers
from qwen_edge.runtime.backends.backend import MAX_SCORED_TOKENS
from qwen_edge.runtime.backends.onnx import OnnxBackend
from qwen_edge.runtime.backends.onnx_file import read_onnx
from qwen_edge.runtime.backends.onnx_proto import EXPORT_AGAIN
from qwen_edge.runtime.backends.onnx_session import CPU_PROVIDER, create_session
from qwen_edge.runtime.providers import import_onnxruntime

_MORE_MEMORY = "close other programs, or use a package of fewer bits."
_KILLED = -9  # SIGKILL: what Linux does when memory runs out; no code on Windows is negative
_LOGGER = logging.getLogger(__name__)
# None that Python itself uses.
_EXIT_REFUSED, _EXIT_MISSING, _EXIT_NO_ENGINE, _EXIT_NO_MEMORY = 65, 66, 67, 68
_STEPS = (2, 1)  # tokens of a prompt, and one more
_ACCURACY_LEVEL = 4  # what packages are run with, unless numbers are to be compared
_MAX_LINE_CHARACTERS = 300
_TAIL_CHUNKS, _CHUNK_BYTES = 4, 4096
# What an interpreter and its libraries need to start and to find temporary space.
_KEPT_VARIABLES = (
    "PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME", "TMPDIR",
    "SYSTEMROOT", "WINDIR", "USERPROFILE", "TEMP", "TMP", "NUMBER_OF_PROCESSORS",
    "PROCESSOR_ARCHITECTURE", "PATHEXT", "COMSPEC",
)  # fmt: skip


def try_in_child(folder: Path | str, *, timeout_s: float) -> None:
    """Load the ONNX model of a package and run it on three tokens, in a child process.

    The file is read and checked here first, so that what can be said of it is said well.

    Args:
        folder: The package folder.
        timeout_s: Seconds after which the child is ended. Loading 4 billion parameters from a
            slow disk can take a minute.

    Raises:
        PackageError: `read_onnx` refuses the model, or the child did, or died; the text has the
            last line it wrote.
        MissingExtraError: ONNX Runtime is not installed.
        DeviceError: ONNX Runtime is installed and cannot be imported, or it took too long.
        ResourceError: Memory did not suffice, or the system ended the child as if it did not.

    State:
        Changes nothing here. Where no child can be started, the trial is left out and a warning
        logged: a frozen application, or one that embeds Python, may be its own
        `sys.executable`, and starting that would open the application a second time; a sandbox
        may forbid it. What `read_onnx` checks is then all that was checked.
    """
    folder = Path(folder)
    read_onnx(folder)
    if not _has_interpreter():
        _LOGGER.warning("The model was not tried in a child process: there is no interpreter")
        return
    try:
        returncode, last_line = _run_child(folder, timeout_s)
    except OSError as error:
        _LOGGER.warning("The model was not tried in a child process: %s", error)
        return
    if returncode != 0:
        raise _failure(folder, returncode, last_line, timeout_s)


def _failure(folder: Path, returncode: int | None, last_line: str, timeout_s: float) -> EdgeError:
    """Return what the end of the child means: the package's fault, or this machine's."""
    if returncode == _EXIT_MISSING:
        return MissingExtraError(
            "Running ONNX models needs 'onnxruntime', which is not installed.",
            "pip install 'qwen-edge[onnx]'",
        )
    if returncode == _EXIT_NO_ENGINE:
        return DeviceError(f"{last_line}.", "run `qwen-edge doctor`.")
    if returncode == _EXIT_NO_MEMORY:
        return ResourceError(f"{last_line}.", _MORE_MEMORY)
    how = _describe(returncode, timeout_s)
    problem = f"The ONNX model in {str(folder)!r} was not loaded: {how}"
    if returncode is None:
        fix = "try again when the machine is less busy, or copy the package to a faster disk."
        return DeviceError(f"{problem}.", fix, path=str(folder))
    if returncode == _KILLED:
        return ResourceError(f"{problem}.", _MORE_MEMORY, path=str(folder))
    return PackageError(
        f"{problem}{f': {last_line}' if last_line else ''}.",
        EXPORT_AGAIN,
        path=str(folder),
        returncode=returncode,
        last_line=last_line,
    )


def _has_interpreter() -> bool:
    """Return whether `sys.executable` is a Python, and not an application that holds one."""
    stem = Path(sys.executable or "").stem.lower()
    return not getattr(sys, "frozen", False) and stem.startswith(("python", "pypy"))


def _run_child(folder: Path, timeout_s: float) -> tuple[int | None, str]:
    """Return the child's exit code, None after a time-out, and the last line it wrote."""
    child = subprocess.Popen(
        # -P: a package of the current folder must not stand in for an installed one.
        [sys.executable, "-P", "-m", __name__, str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_environment(),
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    tail: deque[bytes] = deque(maxlen=_TAIL_CHUNKS)
    assert child.stderr is not None
    reader = threading.Thread(target=_keep_tail, args=(child.stderr, tail), daemon=True)
    reader.start()
    returncode: int | None
    try:
        returncode = child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        returncode = None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        reader.join(timeout=5)
    return returncode, _last_line(b"".join(tail))


def _environment() -> dict[str, str]:
    """Return the child's variables: few, and where this process finds its modules."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
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


def _last_line(text: bytes) -> str:
    lines = [line.strip() for line in text.decode("utf-8", "replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    printable = "".join(character if character.isprintable() else "?" for character in last)
    return printable[:_MAX_LINE_CHARACTERS].rstrip(".: ")


def _describe(returncode: int | None, timeout_s: float) -> str:
    """Say in words how the child that tried a model ended."""
    tried = "a process that tried it first"
    if returncode is None:
        return f"{tried} was not done after {timeout_s:,.0f} s"
    if returncode == _EXIT_REFUSED:
        return f"{tried} could not run it"
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = "an unknown signal"
        memory = ", as when memory runs out" if name == "SIGKILL" else ""
        return f"{tried} was ended by signal {-returncode} ({name}{memory})"
    if returncode >= 1 << 30:  # an NTSTATUS, such as 0xC0000005 for an access violation
        return f"{tried} was ended by Windows with code 0x{returncode:08X}"
    return f"{tried} ended with code {returncode}"


def _be_expendable() -> None:
    """Leave no core file and open no window when this process dies, and die first."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.SetErrorMode(msvcrt.SEM_FAILCRITICALERRORS | msvcrt.SEM_NOGPFAULTERRORBOX)
    else:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # Linux only: whom to end when memory runs out
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _try(folder: Path) -> None:
    """Load and run the model as the backend does; what is wrong is raised, or ends the process."""
    model = read_onnx(folder, accuracy_level=_ACCURACY_LEVEL, num_last_positions=MAX_SCORED_TOKENS)
    provider = next(entry for entry in load_providers() if entry.name == CPU_PROVIDER)
    backend = OnnxBackend(
        create_session(model, provider, accuracy_level=_ACCURACY_LEVEL),
        model=model,
        device=provider.device,
        max_context_tokens=sum(_STEPS),
        prefill_chunk_tokens=max(_STEPS),
    )
    for num_tokens in _STEPS:
        backend.forward([0] * num_tokens)


def main(arguments: Sequence[str]) -> int:
    """Be the child: try the model in the folder that is the only argument.

    Returns:
        The exit code: 0 when it ran. The reason for another is the last line on stderr.
    """
    logging.basicConfig(format="%(message)s")
    _be_expendable()
    try:
        import_onnxruntime()
    except EdgeError as error:
        _LOGGER.error("%s", error.problem)
        return _EXIT_MISSING if isinstance(error, MissingExtraError) else _EXIT_NO_ENGINE
    try:
        _try(Path(arguments[0]))
    except EdgeError as error:
        _LOGGER.error("%s", error.problem)
        return _EXIT_NO_MEMORY if isinstance(error, ResourceError) else _EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
