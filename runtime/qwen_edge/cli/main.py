"""The program: its group of commands, and the one place where errors become exit codes."""

import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Mapping
from types import MappingProxyType

import click

from qwen_edge.cli.interrupt import INTERRUPTED_EXIT_CODE, clean_up_when_ended, leave
from qwen_edge.cli.output import (
    LogHandler,
    Output,
    ReaderGoneError,
    show_bug,
    show_cancelled,
    show_error,
)
from qwen_edge.cli.refusals import to_usage_error
from qwen_edge.errors import EdgeError, UsageError, did_you_mean

BUG_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
READER_GONE_EXIT_CODE = 141  # 128 + SIGPIPE, as of any program whose `| head` had enough

# Name → (module, one line for the list). Modules are imported when their command runs.
_COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "export": ("qwen_edge.cli.export_command", "Turn a checkpoint into a model package."),
        "run": ("qwen_edge.cli.run_command", "Answer one prompt, streamed."),
        "chat": ("qwen_edge.cli.chat_command", "Hold a conversation in the terminal."),
        "serve": ("qwen_edge.cli.serve_command", "Serve programs and a chat page."),
        "bundle": ("qwen_edge.cli.bundle_command", "Make a folder for machines without Python."),
        "batch": ("qwen_edge.cli.batch_command", "Answer many prompts at a time."),
        "verify": ("qwen_edge.cli.verify_command", "Check a package's files and its answers."),
        "sign": ("qwen_edge.cli.sign_command", "Sign a package, for whoever trusts your key."),
        "quality": ("qwen_edge.cli.quality_command", "Measure what a package lost."),
        "bench": ("qwen_edge.cli.bench_command", "Measure how fast a package is here."),
        "tune": ("qwen_edge.cli.tune_command", "Find the fastest settings for this machine."),
        "profiles": ("qwen_edge.cli.profiles_command", "List profiles, or show one in full."),
        "doctor": ("qwen_edge.cli.doctor_command", "Tell whether this machine is fit, and why."),
    }
)


class _Commands(click.Group):
    """Imports a command's module only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which a person needs them."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one command, or None when there is none of this name."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; suggest the closest one for a typo."""
        name = args[0] if args else ""
        if not name.startswith("-") and name not in _COMMANDS:
            raise UsageError(
                f"There is no command {name!r}.{did_you_mean(name, _COMMANDS)}",
                f"use one of: {', '.join(_COMMANDS)}",
                command=name,
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list without importing any command."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value:
        return
    try:
        version = importlib.metadata.version("qwen-edge")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed: run from its sources)"
    Output().result(f"qwen-edge {version}")
    ctx.exit()


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the version and leave.",
)
@click.option(
    "--log-level",
    default="warning",
    show_default=True,
    help="How much to log, to standard error.",
    type=click.Choice(["debug", "info", "warning", "error"]),
)
def cli(log_level: str) -> None:
    """Qwen3 on a laptop without CUDA: export once, run anywhere.

    \b
    Examples:
      qwen-edge doctor
      qwen-edge export --profile core-ultra
      qwen-edge run ./qwen3-4b-core-ultra-int4 "Why is the sky blue?"
      qwen-edge chat ./qwen3-4b-core-ultra-int4
      qwen-edge batch ./qwen3-4b-core-ultra-int4 questions.txt > answers.jsonl

    Results go to standard output, everything else to standard error. Exit codes: 0 done, 2 wrong
    usage, 3 to 9 what went wrong (docs/errors.md), 70 a bug, 130 after Ctrl-C.
    """
    _start_logging(log_level.upper())


def main(arguments: list[str] | None = None) -> None:
    """Run the program and leave with its exit code.

    Args:
        arguments: Instead of the process's own.
    """
    clean_up_when_ended()
    leave(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command line and return the exit code.

    Args:
        arguments: Without the program's name.

    Returns:
        0; 2 for a wrong command line; an error's own code; 130 after Ctrl-C; 141 when the
        reader of standard output went away; 70 for a bug.
    """
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in options
    try:
        code = cli.main(arguments, prog_name="qwen-edge", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        Output().notice(error.format_message())
        return error.exit_code
    except click.ClickException as error:
        refusal = to_usage_error(error)
        show_error(refusal, as_json=as_json)
        return refusal.exit_code
    except EdgeError as error:
        show_error(error, as_json=as_json)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        show_cancelled()
        return INTERRUPTED_EXIT_CODE
    except ReaderGoneError:
        return READER_GONE_EXIT_CODE
    except Exception as error:
        # Python 3.11 wraps a Ctrl-C that comes while a class is made, as imports do.
        if isinstance(error.__cause__, KeyboardInterrupt):
            show_cancelled()
            return INTERRUPTED_EXIT_CODE
        show_bug(error)
        return BUG_EXIT_CODE


def _start_logging(level: str) -> None:
    """Send log records to standard error; again and again for tests that call `run`."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, LogHandler)]:
        root.removeHandler(handler)
    root.addHandler(LogHandler())
    root.setLevel(level)
