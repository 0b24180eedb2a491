"""Write the reference pages that are made from the program itself.

docs/cli.md from the help texts, docs/errors.md from the error classes, docs/profiles.md from
the catalog. `--check` writes nothing and ends with 1 when a page is not current.

    python scripts/write_docs.py [--check]
"""

import argparse
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from qwen_edge.cli.main import cli
from qwen_edge.errors import EdgeError
from qwen_edge.profiles.legality import legality
from qwen_edge.profiles.profile import Profile, load_profile, profile_names
from qwen_edge.profiles.recipe import load_recipe, recipe_names

DOCS = Path(__file__).resolve().parent.parent / "docs"
HELP_COLUMNS = 96
MADE_BY = "<!-- Made by scripts/write_docs.py; do not edit. -->"


def main() -> int:
    """Write or check every page and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    is_check = parser.parse_args().check
    stale = []
    for name, text in make_pages().items():
        path = DOCS / name
        is_current = path.is_file() and path.read_text(encoding="utf-8") == text
        if not is_current:
            stale.append(name)
            if not is_check:
                path.write_text(text, encoding="utf-8", newline="\n")
    for name in stale:
        print(f"docs/{name}: {'not current' if is_check else 'written'}")
    if is_check and stale:
        print("Fix: python scripts/write_docs.py", file=sys.stderr)
        return 1
    return 0


def make_pages() -> dict[str, str]:
    """Return the text of every page by its file name."""
    return {"cli.md": cli_page(), "errors.md": errors_page(), "profiles.md": profiles_page()}


def cli_page() -> str:
    """Return the help of every command, as `--help` prints it."""
    lines = [
        MADE_BY,
        "# The command line",
        "",
        "Results go to standard output; progress, notices, reasoning and errors go to standard",
        "error. `--json` makes the result one JSON document, and an error one line of JSON as the",
        "last line of standard error. A refusal is always `Error: …` and mostly `Fix: …`.",
        "",
    ]
    for path, command in _commands(cli, "qwen-edge"):
        lines += [f"## `{path}`", "", "```text", _help(command, path), "```", ""]
    lines += [
        "## Exit codes",
        "",
        "| code | meaning |",
        "| --- | --- |",
        "| 0 | done |",
        "| 1 | `doctor` found a problem |",
        "| 2 to 9 | refused or failed; see [errors](errors.md) |",
        "| 70 | a bug in qwen-edge, with its traceback |",
        "| 130 | stopped with Ctrl-C |",
        "| 141 | the reader of standard output went away, as `head` does when it has enough |",
        "",
        "## Environment variables",
        "",
        "| variable | meaning |",
        "| --- | --- |",
        "| `QWEN_EDGE_PROFILE` | profile of an export when `--profile` is not given |",
        "| `QWEN_EDGE_RECIPE` | recipe of an export when `--recipe` is not given |",
        "| `QWEN_EDGE_CACHE_DIR` | where it is remembered which packages were hashed on this "
        "machine; an absolute path |",
        "",
    ]
    return "\n".join(lines)


def errors_page() -> str:
    """Return the tree of errors and what each class means."""
    doc = inspect.cleandoc(importlib.import_module("qwen_edge.errors").__doc__ or "")
    start = doc.index("EdgeError  ")
    tree = "\n".join(line.removeprefix("    ") for line in doc[start:].split("\n\n")[0].split("\n"))
    lines = [
        MADE_BY,
        "# Errors",
        "",
        "Every error raised on purpose is a class of `qwen_edge.errors`. It says what is wrong",
        "(`problem`) and what to do (`fix`), and keeps the figures for programs (`facts`). The",
        "command line prints both texts and ends with the class's exit code. Any other exception",
        "is a bug; the command line then ends with 70.",
        "",
        "```text",
        tree,
        "```",
        "",
        "| class | exit code | meaning |",
        "| --- | --- | --- |",
    ]
    for error in _error_classes(EdgeError):
        meaning = (inspect.getdoc(error) or "").splitlines()[0]
        lines.append(f"| `{error.__name__}` | {error.exit_code} | {meaning} |")
    return "\n".join([*lines, ""])


def profiles_page() -> str:
    """Return every profile of the catalog with the reason for every value."""
    profiles = [load_profile(name) for name in profile_names()]
    lines = [
        MADE_BY,
        "# Profiles",
        "",
        "What a kind of machine is given, each value with its reason. How to write your own is in",
        "[recipes and legality](recipes-and-legality.md).",
        "",
        "| profile | devices | recipe | what for |",
        "| --- | --- | --- | --- |",
    ]
    for profile in profiles:
        devices = ", ".join(entry.device for entry in profile.devices)
        lines.append(
            f"| [`{profile.name}`](#{profile.name}) | {devices} | `{profile.recipe}` "
            f"| {profile.summary} |"
        )
    for profile in profiles:
        lines += ["", *_profile_section(profile)]
    return "\n".join([*lines, ""])


def _profile_section(profile: Profile) -> Iterator[str]:
    yield f"## {profile.name}"
    yield ""
    yield f"Recipe `{profile.recipe}`: {profile.recipe_reason}."
    for entry in profile.devices:
        yield ""
        yield f"**{entry.device}**: {entry.reasons.get('device', '')}"
        yield ""
        yield "| setting | value | why |"
        yield "| --- | --- | --- |"
        for key, reason in entry.reasons.items():
            if key != "device":
                value = entry.properties.get(key, getattr(entry, key, ""))
                yield f"| `{key}` | `{value}` | {_cell(reason)} |"
    yield ""
    yield "| recipe | " + " | ".join(entry.device for entry in profile.devices) + " |"
    yield "| --- |" + " --- |" * len(profile.devices)
    for recipe in map(load_recipe, recipe_names()):
        marks = ["yes" if legality(recipe, e.device).value else "no" for e in profile.devices]
        yield f"| `{recipe.name}` | {' | '.join(marks)} |"


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, group
    ctx = click.Context(group, info_name=path)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _help(command: click.Command, path: str) -> str:
    ctx = click.Context(
        command,
        info_name=path,
        terminal_width=HELP_COLUMNS,
        help_option_names=["-h", "--help"],
    )
    return command.get_help(ctx).rstrip()


def _error_classes(error: type[EdgeError]) -> Iterator[type[EdgeError]]:
    yield error
    for child in error.__subclasses__():
        if child.__module__.startswith("qwen_edge.errors"):
            yield from _error_classes(child)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
