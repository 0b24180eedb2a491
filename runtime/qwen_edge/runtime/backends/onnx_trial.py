"""Trying an ONNX model in a process of its own, before this one loads it.

`onnx_file.py` refuses what can be seen in a file. What cannot is a fault of the engine that some
file sets off, and that ends the process. Here this happens to a child: the same module, run as
a program, loads the model, computes three tokens and says by its exit code that all went well.
Only the CPU is tried. How a child is run is in `devices/trial_process.py`.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

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
from qwen_edge.runtime.devices.providers import import_onnxruntime
from qwen_edge.runtime.devices.trial_process import (
    EXIT_MISSING,
    EXIT_NO_ENGINE,
    EXIT_NO_MEMORY,
    EXIT_REFUSED,
    KILLED,
    ChildEnd,
    be_expendable,
    run_trial,
)

_MORE_MEMORY = "close other programs, or use a package of fewer bits."
_LOGGER = logging.getLogger(__name__)
_STEPS = (2, 1)  # tokens of a prompt, and one more
_ACCURACY_LEVEL = 4  # what packages are run with, unless numbers are to be compared


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
        Changes nothing here. Where no child can be started, the trial is left out, see `run_trial`;
        what `read_onnx` checks is then all that was checked.
    """
    folder = Path(folder)
    read_onnx(folder)
    end = run_trial(__name__, [str(folder)], time_limit_s=timeout_s)
    if end is not None and not end.is_well:
        raise _failure(folder, end)


def _failure(folder: Path, end: ChildEnd) -> EdgeError:
    """Return what the end of the child means: the package's fault, or this machine's."""
    returncode, last_line = end.returncode, end.last_line
    if returncode == EXIT_MISSING:
        return MissingExtraError(
            "Running ONNX models needs 'onnxruntime', which is not installed.",
            "pip install 'qwen-edge[onnx]'",
        )
    if returncode == EXIT_NO_ENGINE:
        return DeviceError(f"{last_line}.", "run `qwen-edge doctor`.")
    if returncode == EXIT_NO_MEMORY:
        return ResourceError(f"{last_line}.", _MORE_MEMORY)
    problem = f"The ONNX model in {str(folder)!r} was not loaded: {end.describe()}"
    if returncode is None:
        fix = "try again when the machine is less busy, or copy the package to a faster disk."
        return DeviceError(f"{problem}.", fix, path=str(folder))
    if returncode == KILLED:
        return ResourceError(f"{problem}.", _MORE_MEMORY, path=str(folder))
    return PackageError(
        f"{problem}{f': {last_line}' if last_line else ''}.",
        EXPORT_AGAIN,
        path=str(folder),
        returncode=returncode,
        last_line=last_line,
    )


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
    be_expendable()
    try:
        import_onnxruntime()
    except EdgeError as error:
        _LOGGER.error("%s", error.problem)
        return EXIT_MISSING if isinstance(error, MissingExtraError) else EXIT_NO_ENGINE
    try:
        _try(Path(arguments[0]))
    except EdgeError as error:
        _LOGGER.error("%s", error.problem)
        return EXIT_NO_MEMORY if isinstance(error, ResourceError) else EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
