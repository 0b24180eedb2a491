"""Compiles modules; run as a program of its own by `bytecode.py`, with a list of them as input."""

import contextlib
import json
import py_compile
import sys


def main() -> None:
    """Compile what standard input names: [[source, target, name, optimisation], …]."""
    for source, target, name, optimisation in json.load(sys.stdin):
        with contextlib.suppress(py_compile.PyCompileError):
            py_compile.compile(
                source,
                target,
                dfile=name,
                doraise=True,
                optimize=optimisation,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )


if __name__ == "__main__":
    main()
