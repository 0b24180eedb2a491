"""The command line. `main` is the program `qwen-edge`; each command is a module beside it."""

from qwen_edge.cli.main import main

__all__ = ["main"]
