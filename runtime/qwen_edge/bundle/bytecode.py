"""Python modules as a bundle holds them: compiled, without their sources.

A bundle may lie where nothing can be written, so everything is compiled beforehand. That happens
in a fresh interpreter with fixed hashes, because what a compiled module looks like depends on
what its interpreter did before: the same sources give the same bytes every time. File names in
it are those within the bundle, not those of the machine it was made on.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_edge.errors import ResourceError

_CHILD = Path(__file__).with_name("compiling.py")


@dataclass(frozen=True)
class Module:
    """One module to be compiled.

    Args:
        source: Its text, on this machine.
        target: The compiled file to be; its folder exists.
        name: What tracebacks call it.
        keeps_texts: Docstrings and assertions stay.
    """

    source: Path
    target: Path
    name: str
    keeps_texts: bool


def compile_modules(modules: Sequence[Module]) -> None:
    """Compile modules; those whose source is none, such as templates of code, are left out.

    Raises:
        ResourceError: The interpreter could not be started or was ended.
    """
    jobs = [
        [str(module.source), str(module.target), module.name, 0 if module.keeps_texts else 2]
        for module in modules
    ]
    # Not -I, which would take the seed away as well.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-s", "-P", "-S", "-B", str(_CHILD)],
        input=json.dumps(jobs).encode(),
        capture_output=True,
        env={**kept, "PYTHONHASHSEED": "0"},
        check=False,
    )
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
        raise ResourceError(
            f"Python modules could not be compiled: {lines[-1]:.300}.",
            "check the free space of the disk, then bundle again",
            returncode=done.returncode,
        )
