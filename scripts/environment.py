"""Virtual environments for the scripts beside this file; standard library only.

The scripts run on a machine that has nothing but Python and a package index. Each makes an
environment of its own, installs into it what is not there yet, and runs the rest there.
"""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_STAMP = "qwen-edge-installed"
# Packages report to their makers unless told otherwise; scripts of this project never do.
_QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "NNCF_CI": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def check_python() -> None:
    """Leave with a message when this Python is too old."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this runs before pip has checked
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"Error: Python {found} is too old; 3.11 or later is needed.")


def make_environment(folder: Path, requirements: Sequence[Sequence[str]]) -> Path:
    """Make a virtual environment and install into it, unless it is there and current.

    Args:
        folder: The environment.
        requirements: Arguments of one `pip install` call each, in order.

    Returns:
        The environment's Python.
    """
    check_python()
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    text = repr(requirements) + (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = hashlib.sha256(text.encode()).hexdigest()
    stamp = folder / _STAMP
    if python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    start = time.monotonic()
    say(f"making the environment {folder.name} …")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    for arguments in requirements:
        say(f"pip install {' '.join(arguments)}")
        run([str(python), "-m", "pip", "install", "--quiet", *arguments])
    stamp.write_text(wanted, encoding="utf-8")
    say(f"environment ready after {time.monotonic() - start:.0f} s")
    return python


def run(command: Sequence[str]) -> None:
    """Run a command from the repository's root; leave with its exit code when it fails."""
    done = subprocess.run(list(command), cwd=ROOT, env={**os.environ, **_QUIET}, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def say(text: str) -> None:
    """Write a line of progress to standard error."""
    print(text, file=sys.stderr, flush=True)
