"""How long a program that starts from nothing takes to the first token of a short prompt.

The program is this module, run by a fresh interpreter: it imports the runtime, loads the package
as any program would, and asks for one token. The files are read through before, so that what is
measured is not the disk. `measure.py` asks for it while no model is loaded here, so that memory
holds one at a time.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qwen_edge.errors import DeviceError, EdgeError, ResourceError
from qwen_edge.errors import tree as error_classes
from qwen_edge.runtime.files.opening import inside

TIME_LIMIT_S = 600.0  # a slow disk, and a driver that compiles for minutes
_READ_BYTES = 16 << 20
_MARK = "qwen-edge-cold-start"
_MAX_LINE_CHARACTERS = 300


@dataclass(frozen=True)
class ColdStart:
    """One start from nothing, in seconds, and what the program then held.

    Args:
        total_s: From asking the system for a process to the first token.
        interpreter_s: Until Python ran our first line; part of the total, as all below.
        import_s: Importing the runtime.
        load_s: Checking the package, importing the engine, compiling.
        first_token_s: Rearranging weights, reading the prompt, choosing a token.
        private_bytes: The program's own memory at the end; None where the system does not tell.
    """

    total_s: float
    interpreter_s: float
    import_s: float
    load_s: float
    first_token_s: float
    private_bytes: int | None


def measure_cold_start(
    folder: Path,
    prompt_ids: Sequence[int],
    *,
    device: str,
    backend: str,
    threads: int | None,
    time_limit_s: float = TIME_LIMIT_S,
) -> ColdStart:
    """Start a program that loads a package and asks it for one token.

    Args:
        folder: The package.
        prompt_ids: Its prompt.
        device: As for `load`.
        backend: As for `load`.
        threads: As for `load`.
        time_limit_s: Seconds after which the program is ended.

    Raises:
        EdgeError: What the program was refused, of the same class and with the same words.
        DeviceError: It ended without a token, or was not done in time.
        ResourceError: No process could be started.
    """
    request = {
        "folder": str(folder.absolute()),
        "prompt_ids": list(prompt_ids),
        "device": device,
        "backend": backend,
        "threads": threads,
    }
    with tempfile.TemporaryFile() as log:
        begun_s = time.perf_counter()
        child = _start_child(request, log)
        told, total_s, is_late = _wait(child, begun_s, time_limit_s)
        if told is None:
            raise _ended_without_token(child.returncode, is_late, time_limit_s, log)
    if "problem" in told:
        raise _repeat_refusal(told)
    stages = {name: float(told[name]) for name in ("import_s", "load_s", "first_token_s")}
    return ColdStart(
        total_s=total_s,
        interpreter_s=max(total_s - sum(stages.values()), 0.0),
        private_bytes=told["private_bytes"],
        **stages,
    )


def read_through(folder: Path, names: Iterable[str]) -> None:
    """Read files once, so that the system has them in memory.

    Args:
        folder: Where they are.
        names: Their names; one that cannot be read is left out.
    """
    buffer = bytearray(_READ_BYTES)
    for name in names:
        try:
            with inside(folder, name).open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass
        except OSError:
            continue


def _start_child(request: Mapping[str, Any], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start the program; raise ResourceError where the system does not."""
    try:
        return subprocess.Popen(
            # -P: a module of the current folder must not stand in for an installed one.
            [sys.executable, "-P", "-m", __name__, json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=child_environment(),
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise ResourceError(
            f"No process can be started: {error.strerror or error}.",
            "leave the cold start out: --cold-starts 0",
        ) from error


def _wait(
    child: "subprocess.Popen[bytes]", begun_s: float, time_limit_s: float
) -> tuple[dict[str, Any] | None, float, bool]:
    """Return what the child told, when it did, and whether it had to be ended."""
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        child.kill()

    timer = threading.Timer(time_limit_s, end)
    timer.daemon = True
    timer.start()
    told, total_s = None, 0.0
    try:
        assert child.stdout is not None
        with child.stdout:
            for line in child.stdout:
                if told is None and (found := _parse(line)) is not None:
                    told, total_s = found, time.perf_counter() - begun_s
        child.wait()
    finally:
        timer.cancel()
        if child.poll() is None:
            child.kill()
            child.wait()
    return told, total_s, is_late.is_set()


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return our line's facts; None for what an engine may have written."""
    try:
        facts = json.loads(line)
    except ValueError:
        return None
    return facts[_MARK] if isinstance(facts, dict) and _MARK in facts else None


def _ended_without_token(
    returncode: int, is_late: bool, time_limit_s: float, log: IO[bytes]
) -> DeviceError:
    """Return the error of a child that told nothing."""
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    how = f"was not done after {time_limit_s:,.0f} s" if is_late else f"ended with {returncode}"
    told = f": {last[:_MAX_LINE_CHARACTERS].rstrip('.')}" if last else ""
    return DeviceError(
        f"The program that was started to measure a cold start {how}{told}.",
        "try `qwen-edge run PACKAGE Hello`, or leave the cold start out: --cold-starts 0",
        returncode=returncode,
    )


def _repeat_refusal(told: Mapping[str, Any]) -> EdgeError:
    """Return the error that the child raised."""
    kind = getattr(error_classes, str(told["error"]), EdgeError)
    error: EdgeError = kind(str(told["problem"]), str(told["fix"]))
    return error


def child_environment() -> dict[str, str]:
    """Return the child's variables: ours, and where this process finds its modules."""
    entries = [entry for entry in sys.path if isinstance(entry, str) and entry]
    paths = [os.path.abspath(entry) for entry in entries]  # noqa: PTH100
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUTF8": "1"}


def _start(request: Mapping[str, Any]) -> None:
    """Be the program: load, ask for a token, tell how long each step took."""
    begun_s = time.perf_counter()
    from qwen_edge.runtime.decoding.sampling import SamplingParams
    from qwen_edge.runtime.loading import load
    from qwen_edge.runtime.machine.process_memory import read_process_memory

    imported_s = time.perf_counter()
    where = {name: request[name] for name in ("device", "backend", "threads")}
    with load(request["folder"], **where) as model:
        loaded_s = time.perf_counter()
        greedy = SamplingParams(temperature=0)
        next(model.generate(request["prompt_ids"], sampling=greedy, max_new_tokens=1))
        answered_s = time.perf_counter()
        memory = read_process_memory()
        _tell(
            {
                "import_s": imported_s - begun_s,
                "load_s": loaded_s - imported_s,
                "first_token_s": answered_s - loaded_s,
                "private_bytes": None if memory is None else memory.private_bytes,
            }
        )


def _tell(facts: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps({_MARK: facts}).encode() + b"\n")
    sys.stdout.buffer.flush()


def main(arguments: Sequence[str]) -> int:
    """Be the program that starts from nothing; the only argument is JSON.

    Returns:
        The exit code. What is to be told is one line on standard output.
    """
    try:
        _start(json.loads(arguments[0]))
    except EdgeError as error:
        name = type(error).__name__
        _tell({"error": name, "problem": error.problem, "fix": error.fix})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
