"""What a bundle starts: the program, with the bundle's own model where none is named.

`qwen-edge run "Hello"` in a bundle is `qwen-edge run MODEL "Hello"`. Nothing else differs, but
that `verify` checks the program's files as well, and that what makes packages is not there.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from qwen_edge.bundle.contents import MODEL_FOLDER
from qwen_edge.cli.interrupt import clean_up_when_ended, leave
from qwen_edge.cli.main import cli, run
from qwen_edge.cli.output import show_error
from qwen_edge.errors import EdgeError, UsageError

# <bundle>/lib/packages/qwen_edge/cli/bundled.pyc
ROOT = Path(__file__).parents[4]
_MAKERS = ("export", "bundle", "quality", "sign")
_PACKAGE_ARGUMENTS = frozenset({"package", "packages"})


@dataclass(frozen=True)
class _Line:
    """A command line, taken apart.

    Args:
        name: The command's, or None where there is none.
        after: Where what follows the command's name begins.
        positional: Those of its words that are no options and no values of options.
    """

    name: str | None
    after: int
    positional: tuple[str, ...]


def main() -> None:
    """Run the program and leave with its exit code."""
    clean_up_when_ended()
    leave(start(sys.argv[1:]))


def start(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Run one command line in a bundle and return the exit code.

    Args:
        arguments: Without the program's name.
        root: The bundle's folder.
    """
    try:
        line = _take_apart(arguments)
        completed = complete(arguments, root)
        if line.name == "verify" and len(completed) > len(arguments):
            _check_program(completed, root)
    except EdgeError as error:
        show_error(error, as_json="--json" in arguments)
        return error.exit_code
    return run(completed)


def complete(arguments: Sequence[str], root: Path) -> list[str]:
    """Return a command line with the bundle's model in it, where it names no package.

    Args:
        arguments: Without the program's name.
        root: The bundle's folder.

    Raises:
        UsageError: It asks for a command that needs more than a bundle has.
    """
    line = _take_apart(arguments)
    if line.name in _MAKERS:
        raise UsageError(
            f"A bundle runs its model; `{line.name}` is not in it.",
            "use qwen-edge where it is installed with pip",
            command=line.name,
        )
    command = _find_command(line.name)
    if command is None or not _lacks_package(command, line.positional):
        return list(arguments)
    model = str(root / MODEL_FOLDER)
    return [*arguments[: line.after], model, *arguments[line.after :]]


def _lacks_package(command: click.Command, positional: Sequence[str]) -> bool:
    """Return whether a command wants a package and its line names none."""
    wanted = [entry for entry in command.params if isinstance(entry, click.Argument)]
    if not wanted or wanted[0].name not in _PACKAGE_ARGUMENTS:
        return False
    if wanted[0].nargs == -1 or not positional:
        return not positional
    # `run MODEL PROMPT`, `run PROMPT`, `run MODEL` with the prompt piped in.
    is_package = (Path(positional[0]) / "manifest.json").is_file()
    return len(positional) < len(wanted) and not is_package


def _take_apart(arguments: Sequence[str]) -> _Line:
    """Find the command and its positional words, as click will."""
    before, at = _positional(cli, arguments, first_only=True)
    if not before:
        return _Line(None, len(arguments), ())
    command = _find_command(before[0])
    if command is None:
        return _Line(before[0], at, ())
    positional, _ = _positional(command, arguments[at:])
    return _Line(before[0], at, tuple(positional))


def _find_command(name: str | None) -> click.Command | None:
    if name is None:
        return None
    return cli.get_command(click.Context(cli), name)


def _positional(
    command: click.Command, words: Sequence[str], *, first_only: bool = False
) -> tuple[list[str], int]:
    """Return the words that are no options, and the place behind the last one looked at."""
    values = {
        text: 0 if entry.is_flag or entry.count else entry.nargs
        for entry in command.params
        if isinstance(entry, click.Option)
        for text in (*entry.opts, *entry.secondary_opts)
    }
    found: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word == "--":
            return found + list(words[index:]), len(words)
        if word.startswith("--"):
            index += 0 if "=" in word else values.get(word, 0)
        elif word.startswith("-") and len(word) > 1:
            # -n 5, or -n5 with the value in the same word
            index += values.get(word, 0)
        else:
            found.append(word)
            if first_only:
                break
    return found, index


def _check_program(arguments: Sequence[str], root: Path) -> None:
    """Check the bundle's own files; the model is checked by the command itself.

    Raises:
        PackageError: Files are missing, changed or were added.
    """
    from qwen_edge.bundle.sums import check_sums
    from qwen_edge.cli.output import Output

    out = Output(is_quiet="--quiet" in arguments, as_json="--json" in arguments)
    count = check_sums(root, without=f"{MODEL_FOLDER}/")
    out.notice(f"The program: {count:,} files, intact.")


if __name__ == "__main__":
    main()
