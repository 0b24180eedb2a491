"""Try readers with damaged and invented inputs for longer than the tests do.

    python scripts/fuzz.py --minutes 20 [--target NAME] [--seed N] [--package FOLDER]

Exports the demo model, or takes a package of it, and gives every target of `tests/trust/fuzz/`
inputs of new seeds until the time is over. What breaks one is kept in `tests/trust/fuzz/found/`,
where the tests try it again at every run. Prints one line of JSON a target; ends with 1 where
anything failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_DRIVER = ROOT / "tests" / "trust" / "fuzz" / "driver.py"
_FIRST_SEED = 1_000  # the tests' own are smaller


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Lines)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long; default 20")
    parser.add_argument("--target", action="append", default=[], help="one target; may be repeated")
    parser.add_argument("--seed", type=int, default=_FIRST_SEED, help="the first of the seeds")
    parser.add_argument("--package", type=Path, help="a package of the demo model, with an IR")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-package-") as folder:
        package = args.package or _export(Path(folder) / "demo")
        words = ["--package", str(package), "--minutes", str(args.minutes)]
        words += ["--seed", str(args.seed)]
        words += [word for name in args.target for word in ("--target", name)]
        return subprocess.run([sys.executable, str(_DRIVER), *words], env=_environment()).returncode


class _Lines(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the module's docstring."""


def _environment() -> dict[str, str]:
    """Return the environment with this project's packages, installed or not."""
    paths = [str(ROOT / name) for name in ("export", "runtime", "profiles")]
    paths += [path for path in (os.environ.get("PYTHONPATH"),) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _export(output: Path) -> Path:
    """Export the demo model in a process of its own, and return its package."""
    words = ["demo", "--profile", "core-ultra", "--output", str(output), "--skip-quality"]
    command = [sys.executable, "-m", "qwen_edge.cli", "export", *words]
    subprocess.run(command, check=True, env=_environment(), stdout=sys.stderr)
    return output


if __name__ == "__main__":
    sys.exit(main())
