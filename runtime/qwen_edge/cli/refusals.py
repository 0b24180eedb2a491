"""Turns click's refusals of a command line into ours: what is wrong, and what to do.

So a wrong option reads like every other refusal, also as JSON.
"""

import re

import click

from qwen_edge.errors import UsageError

# click's words → ours, which say what was expected.
_WORDS = (
    (" is not a valid integer.", "is not a whole number."),
    (" is not a valid float.", "is not a number."),
)


def to_usage_error(error: click.ClickException) -> UsageError:
    """Return the same refusal with a fix.

    Args:
        error: What click raised.
    """
    ctx = getattr(error, "ctx", None)
    program = ctx.command_path if ctx is not None else "qwen-edge"
    problem, fix = error.format_message(), f"see {program} --help"
    if isinstance(error, click.MissingParameter) and ctx is not None:
        problem = f"{error.param.human_readable_name if error.param else 'An argument'} is missing."
        fix = f"write {_usage(ctx)}"
    elif isinstance(error, click.NoSuchOption):
        near = getattr(error, "possibilities", None) or []
        problem = f"There is no option {error.option_name!r}."
        if near:
            problem += f" Did you mean {near[0]!r}?"
        fix = _fix_option(error.option_name, ctx) or fix
    elif isinstance(error, click.BadParameter) and error.param is not None:
        name = error.param.opts[0] if error.param.param_type_name == "option" else ""
        problem = f"{name or error.param.human_readable_name}: {_reword(error.message)}"
    elif ctx is not None and "unexpected extra argument" in problem:
        extra = re.sub(r"^.*\((.*)\)\.?$", r"\1", problem)
        problem = f"More arguments than expected: {extra}."
        is_run = ctx.info_name == "run"
        fix = "put a prompt of several words in quotes" if is_run else f"write {_usage(ctx)}"
    return UsageError(problem, fix)


def _fix_option(name: str, ctx: click.Context | None) -> str:
    """Return what to do about an option that is no option of this command."""
    if ctx is None:
        return ""
    parent = ctx.parent
    if parent is not None and any(name in option.opts for option in parent.command.params):
        return f"write it before the command: {parent.command_path} {name} … {ctx.info_name}"
    if ctx.info_name == "run" and not name.startswith("--"):
        return 'write -- before a prompt that begins with a dash: run PACKAGE -- "-1 + 2?"'
    return ""


def _usage(ctx: click.Context) -> str:
    return ctx.get_usage().removeprefix("Usage: ").replace("\n", " ")


def _reword(message: str) -> str:
    for theirs, ours in _WORDS:
        message = message.replace(theirs, f" {ours}")
    return message
