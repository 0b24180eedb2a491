"""Write the exact versions that bundles are made of, with the hash of every wheel.

    python scripts/pin_requirements.py [--output FILE]

Needs `uv` (pip install uv) and the package index. Versions are those of the environment this runs
in: run it where all tests passed, and what was tested is what is pinned. One file is for all
systems and Pythons that the project is for; what only one of them needs says so behind a ";".
"""

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "runtime/qwen_edge/bundle/requirements.txt"
EXTRA = "serve"
# Visual Studio's C++ library, which a few machines with Windows do not have; see docs/bundle.md.
BESIDES = "msvc-runtime ; sys_platform == 'win32' and platform_machine == 'AMD64'\n"
HEADER = """\
# What bundles are made of: exact versions, each with the SHA-256 of its wheels on every system.
# Made by scripts/pin_requirements.py; do not edit. Used so, and the project without its own:
#
#   pip install --require-hashes -r runtime/qwen_edge/bundle/requirements.txt
#   pip install --no-deps .
--only-binary=:all:
"""


def list_installed() -> str:
    """Return what is installed here as constraints, but for the project itself."""
    found = {entry.name: entry.version for entry in importlib.metadata.distributions()}
    return "".join(f"{name}=={found[name]}\n" for name in sorted(found) if name != "qwen-edge")


def resolve(folder: Path) -> str:
    """Return the pinned requirements as uv writes them.

    Args:
        folder: For files that are not kept.
    """
    uv = shutil.which("uv")
    if uv is None:
        sys.exit("Error: this needs uv, which is not installed.\nFix: pip install uv")
    constraints, besides = folder / "constraints.txt", folder / "besides.in"
    constraints.write_text(list_installed(), encoding="utf-8")
    besides.write_text(BESIDES, encoding="utf-8")
    command = [uv, "pip", "compile", "--quiet"]
    command += ["--universal", "--generate-hashes", "--only-binary", ":all:"]
    command += ["--no-header", "--no-annotate", "--no-config", "--upgrade"]
    command += ["--python-version", _oldest_python(), "--constraints", str(constraints)]
    command += ["--extra", EXTRA, str(ROOT / "pyproject.toml"), str(besides)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"Error: uv did not find versions that fit: {done.stderr.strip()}")
    return done.stdout


def _oldest_python() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^requires-python = ">=([0-9.]+)"$', text, re.MULTILINE)
    assert found is not None
    return found[1]


def main() -> None:
    """Resolve and write; the last line printed is the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=TARGET, help="instead of the project's own")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        text = resolve(Path(folder))
    output.write_text(HEADER + text, encoding="utf-8", newline="\n")
    print(output)


if __name__ == "__main__":
    main()
