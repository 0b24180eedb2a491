"""Set up qwen-edge, export the demo model and talk with it: one command, a few minutes.

    python scripts/quickstart.py

Makes the virtual environment `.venv` beside this folder, installs the project with what
exporting needs (no torch), exports the embedded model `demo` with the profile that fits
this machine, holds a short conversation with it, and prints where everything lies.
"""

import argparse
import os
import sys
import time

from environment import ROOT, make_environment, run, say

PACKAGE = ROOT / "packages" / "demo"
# What the demo model was trained on; see export/qwen_edge/export/demo/README.md.
CONVERSATION = ("Hello!", "My name is Ada.", "What is my name?")


def main() -> None:
    """Set up, export, talk."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    python = make_environment(ROOT / ".venv", [["--editable", ".[export]"]])
    start = time.monotonic()
    PACKAGE.parent.mkdir(exist_ok=True)
    command = [str(python), "-m", "qwen_edge.cli"]
    run([*command, "export", "demo", "--output", str(PACKAGE), "--force"])
    talk = ROOT / "scripts" / "talk_to_package.py"
    run([str(python), str(talk), str(PACKAGE), *CONVERSATION])
    say(f"\nexport and conversation took {time.monotonic() - start:.1f} s")
    program = python.with_name("qwen-edge")
    shown = os.path.relpath(program)
    print(f"package:  {PACKAGE}")
    print(f"program:  {program}")
    print(f"next:     {shown} chat {os.path.relpath(PACKAGE)}")
    print(f"          {shown} export --explain     # Qwen/Qwen3-4B: what it would do and cost")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
