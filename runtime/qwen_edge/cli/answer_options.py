"""Options of `run`, `chat` and `batch` about the answer: how tokens are chosen, what may come.

What can be refused without the model is refused here, before seconds are spent on loading. How a
package is opened is in `options.py`.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Unpack

import click

from qwen_edge.cli.options import LoadOptions, check_load_flags
from qwen_edge.cli.texts import check_text, read_text_file
from qwen_edge.errors import UsageError, did_you_mean
from qwen_edge.runtime.decoding.sampling import SamplingParams

if TYPE_CHECKING:
    from qwen_edge.runtime.answer_options import AnswerOptions
    from qwen_edge.runtime.structured.output_format import OutputFormat
    from qwen_edge.runtime.text_model import TextModel
    from qwen_edge.runtime.tools.tool import Tool

# Field of SamplingParams → the option of its own.
_SAMPLING_OPTIONS = {
    "temperature": "--temperature", "top_p": "--top-p", "top_k": "--top-k", "min_p": "--min-p",
    "presence_penalty": "--presence-penalty", "repetition_penalty": "--repetition-penalty",
    "seed": "--seed", "num_logprobs": "--logprobs of `qwen-edge run`",
}  # fmt: skip


@dataclass(frozen=True)
class AnswerFlags:
    """How to answer; None means: the package's own default."""

    system: str | None
    thinking: bool | None
    thinking_budget: int | None
    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    seed: int | None
    sampling: tuple[str, ...]
    stop: tuple[str, ...]
    json_schema: str | None
    json_object: bool
    regex: str | None
    choice: tuple[str, ...]
    grammar: str | None
    on_overflow: str
    speculate: bool = True


_FLAGS = (
    click.option("--system", metavar="TEXT", help="System message."),
    click.option(
        "--think/--no-think",
        "thinking",
        default=None,
        help="Reason before answering, or answer at once. Default: the model's.",
    ),
    click.option(
        "--thinking-budget",
        type=int,
        metavar="N",
        help="Most tokens of reasoning; it is then closed and the answer begins.",
    ),
    click.option(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="Longest answer, reasoning included. Default: up to the end of the context.",
    ),
    click.option(
        "--stop", multiple=True, metavar="TEXT", help="Text that ends the answer. May be repeated."
    ),
    click.option(
        "--on-overflow",
        type=click.Choice(["refuse", "drop-oldest"]),
        default="refuse",
        show_default=True,
        help="When a conversation outgrows the context: refuse it, or drop its oldest turns and "
        "say so.",
    ),
    click.option(
        "--json-schema",
        metavar="FILE|JSON",
        help="JSON that this schema allows; a file, or the schema itself.",
    ),
    click.option("--json-object", is_flag=True, help="JSON: any object."),
    click.option("--regex", metavar="PATTERN", help="Text that this pattern matches as a whole."),
    click.option(
        "--choice", multiple=True, metavar="TEXT", help="One of these texts. Repeat it for each."
    ),
    click.option(
        "--grammar", metavar="FILE", help="Text of this grammar (Lark, as llguidance has it)."
    ),
    click.option(
        "--temperature",
        type=float,
        metavar="X",
        help="0 takes the likeliest token each time. Default of this and the next three: the "
        "package's.",
    ),
    click.option(
        "--top-p", type=float, metavar="X", help="Keep the likeliest tokens up to this sum."
    ),
    click.option(
        "--top-k",
        type=int,
        metavar="N",
        help="Keep this many of the likeliest tokens; 0 keeps all.",
    ),
    click.option(
        "--min-p",
        type=float,
        metavar="X",
        help="Drop tokens less likely than this share of the likeliest.",
    ),
    click.option(
        "--presence-penalty",
        type=float,
        metavar="X",
        help="Against loops, up to 2: makes every token that the answer holds less likely. "
        "Default: 0, off.",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="Above 1: makes every token that prompt or answer hold less likely. Default: 1, off.",
    ),
    click.option(
        "--seed", type=int, metavar="N", help="Same seed, same answer. Default: a fresh one."
    ),
    click.option(
        "--sampling",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any other setting of docs/python.md, such as typical_p=0.9 or dry_multiplier=0.8. "
        "May be repeated.",
    ),
)
speculate_option = click.option(
    "--speculate/--no-speculate",
    default=True,
    show_default=True,
    help="Guess ahead: the answer comes sooner and is the same.",
)


def answer_flags(function: Callable[..., None]) -> Callable[..., None]:
    """Add the shared options to a command; it receives them as one `flags`."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        names = AnswerFlags.__dataclass_fields__.keys() & kwargs.keys()
        flags = AnswerFlags(**{name: kwargs.pop(name) for name in names})
        function(*args, flags=flags, **kwargs)

    decorated: Callable[..., None] = wrapper
    for flag in reversed(_FLAGS):
        decorated = flag(decorated)
    return decorated


def check_flags(
    package: str, load: LoadOptions, flags: AnswerFlags, **more: "Unpack[AnswerOptions]"
) -> None:
    """Refuse what no model could do, before one is loaded.

    Args:
        package: Folder of the package.
        load: How to open it.
        flags: How to answer.
        **more: Options of one command only.

    Raises:
        UsageError: A value is out of range, a file cannot be read, or two options contradict
            each other.
        PackageError: There is no such package.
    """
    from qwen_edge.runtime.answer_options import resolve_options

    check_load_flags(package, load)
    if load.draft is not None and not flags.speculate:
        raise UsageError(
            "--draft names a model that guesses ahead, and --no-speculate forbids guessing.",
            "leave one of the two out",
        )
    for name, text in (
        ("--system", flags.system),
        ("--regex", flags.regex),
        *(("--stop", text) for text in flags.stop),
        *(("--choice", text) for text in flags.choice),
    ):
        if text is not None:
            check_text(name, text)
    resolve_options({}, {**_plain_options(flags), "sampling": given_sampling(flags), **more})


def options_of(flags: AnswerFlags, *, thinking: bool | None) -> "AnswerOptions":
    """Return the options of an answer; sampling settings that were not given are the package's.

    Args:
        flags: Checked.
        thinking: The mode asked for; in a conversation it may change.

    Raises:
        UsageError: See `check_flags`.
    """
    options = _plain_options(flags)
    options["sampling"] = given_sampling(flags)
    options["thinking"] = thinking
    if thinking is False:
        options["thinking_budget"] = None  # there is nothing to be limited
    return options


def check_with_model(model: "TextModel", options: "AnswerOptions", system: str | None) -> None:
    """Refuse what this model cannot do, before the first prompt.

    Args:
        model: Opened.
        options: As for each answer.
        system: System message of each conversation.

    Raises:
        UsageError: Such as a schema that has no grammar.
        EdgeError: As `plan_answer`.
    """
    from qwen_edge.runtime.answer_options import resolve_options
    from qwen_edge.runtime.planning import plan_answer

    messages = [] if system is None else [{"role": "system", "content": system}]
    plan_answer(model, [*messages, {"role": "user", "content": "?"}], resolve_options({}, options))


def _plain_options(flags: AnswerFlags) -> "AnswerOptions":
    """Return every option but the sampling."""
    return {
        "thinking": flags.thinking,
        "thinking_budget": flags.thinking_budget,
        "max_new_tokens": flags.max_new_tokens,
        "stop": flags.stop,
        "output": _read_output(flags),
        "on_overflow": "drop-oldest" if flags.on_overflow == "drop-oldest" else "refuse",
        "speculate": flags.speculate,
    }


def given_sampling(flags: AnswerFlags) -> dict[str, Any]:
    """Return the sampling settings that were given."""
    values = {name: getattr(flags, name, None) for name in _SAMPLING_OPTIONS}
    given = {name: value for name, value in values.items() if value is not None}
    return given | dict(map(_read_setting, flags.sampling))


def _read_setting(text: str) -> tuple[str, Any]:
    """Return the name and the value of `NAME=VALUE`; the value is JSON."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    known = [field.name for field in fields(SamplingParams)]
    if name in _SAMPLING_OPTIONS:
        raise UsageError(
            f"--sampling {text!r}: {name} has an option of its own.",
            f"use {_SAMPLING_OPTIONS[name]}",
        )
    if not equals or name not in known:
        others = [other for other in known if other not in _SAMPLING_OPTIONS]
        problem = "expected NAME=VALUE" if not equals else f"there is no setting {name!r}"
        raise UsageError(
            f"--sampling {text!r}: {problem}.{did_you_mean(name, others)}",
            f"use one of: {', '.join(others)}",
            option=name,
        )
    data = _parse_json(f"--sampling {text!r}", value, "write the value as JSON: 0.9 or [1, 2]")
    if name == "logit_bias" and isinstance(data, dict):  # names of JSON are texts, ids are not
        data = {int(key) if key.isdecimal() else key: bias for key, bias in data.items()}
    return name, data


def _read_output(flags: AnswerFlags) -> "OutputFormat | None":
    """Return what the answer must look like, or None for anything."""
    from qwen_edge.runtime.structured.output_format import OutputFormat

    given = {
        "--json-schema": flags.json_schema is not None,
        "--json-object": flags.json_object,
        "--regex": flags.regex is not None,
        "--choice": bool(flags.choice),
        "--grammar": flags.grammar is not None,
    }
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise UsageError(
            f"{' and '.join(names)} were given; an answer has one form.", "keep one of them"
        )
    if flags.json_schema is not None:
        return OutputFormat.json_schema(_read_schema(flags.json_schema))
    if flags.json_object:
        return OutputFormat.json_object()
    if flags.regex is not None:
        return OutputFormat.regex(flags.regex)
    if flags.choice:
        return OutputFormat.choice(flags.choice)
    if flags.grammar is not None:
        return OutputFormat.lark(read_text_file("--grammar", flags.grammar))
    return None


def _read_schema(given: str) -> dict[str, object]:
    """Return a schema from a file, or from the text itself where it is an object."""
    text = given if given.lstrip().startswith("{") else read_text_file("--json-schema", given)
    schema = _parse_json(
        "--json-schema", text, 'give a file that holds a schema, or one like \'{"type": "object"}\''
    )
    if not isinstance(schema, dict):
        raise UsageError(
            f"--json-schema is a JSON {type(schema).__name__}; expected an object.",
            'a schema is an object, such as \'{"type": "object"}\'',
        )
    return schema


def read_tools_file(name: str) -> tuple["Tool", ...]:
    """Return the tools of a JSON file: a list of OpenAI function schemas.

    Raises:
        UsageError: It cannot be read, is no JSON, or holds something else.
    """
    from qwen_edge.runtime.tools.tool import read_tools

    where = f"--tools {name!r}"
    tools = _parse_json(where, read_text_file("--tools", name), "give a list of function schemas")
    if not isinstance(tools, list) or not tools:
        found = "an empty list" if tools == [] else f"a JSON {type(tools).__name__}"
        raise UsageError(
            f"{where} holds {found}; expected a list of functions.",
            'put the functions in a list: [{"type": "function", "function": {…}}]',
            path=name,
        )
    return read_tools(tools)


def _parse_json(where: str, text: str, fix: str) -> Any:
    """Return JSON data, or raise UsageError."""
    try:
        return json.loads(text)
    except ValueError as error:  # also of a number without end
        raise UsageError(f"{where} is no JSON: {error}.", fix) from error
    except RecursionError as error:
        raise UsageError(f"{where} is nested too deeply to be read.", fix) from error
