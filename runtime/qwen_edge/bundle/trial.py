"""A bundle is started once before it is given away: a process of its own, in an empty environment.

It checks all its files and gives the package's golden tokens. Nothing is written.
"""

import json
import os
import subprocess
from pathlib import Path

from qwen_edge.errors import DeviceError

_TIME_LIMIT_S = 1800.0  # a slow disk and a large model; the engine's own limits come first
_KEPT = ("SYSTEMROOT", "WINDIR")  # without which nothing starts on Windows


def try_bundle(root: Path, program: str) -> int:
    """Let a finished bundle check itself.

    Args:
        root: Its folder.
        program: File name of its launcher.

    Returns:
        How many golden tokens it gave as recorded.

    Raises:
        DeviceError: It does not start, finds a fault or answers otherwise.
    """
    command = [str(root / program), "verify", "--json"]
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=root,
            timeout=_TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _failed(f"it was not done after {_TIME_LIMIT_S:,.0f} s") from None
    except OSError as error:
        raise _failed(f"it cannot be started ({error.strerror or error})") from error
    if done.returncode:
        raise _failed(_find_reason(done.stderr, done.returncode))
    found: int = json.loads(done.stdout)["golden_tokens"]
    return found


def _find_reason(errors: bytes, code: int) -> str:
    """Return what a program said that ended with an error."""
    lines = [line for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
    for line in reversed(lines):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and "problem" in said:
            return str(said["problem"]).rstrip(".")
    told = [line for line in lines if not line.startswith("This is a bug")]
    last = told[-1].strip() if told else "it said nothing"
    return f"it ended with code {code}: {last:.300}"


def _failed(reason: str) -> DeviceError:
    return DeviceError(
        f"The bundle was made and then tried, and does not work: {reason}. It was not kept.",
        "check `qwen-edge verify PACKAGE` and `qwen-edge doctor`, then report this",
        reason=reason,
    )
