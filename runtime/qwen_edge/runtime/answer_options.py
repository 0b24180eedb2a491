"""What can be asked for with an answer: the options of `Session.stream`, `ask` and `session`.

They are listed once, here. A session's own options are the defaults of its answers. This module
checks what can be checked without a model; `planning.py` does the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

from qwen_edge.errors import UsageError, did_you_mean
from qwen_edge.runtime.decoding.sampling import SamplingParams
from qwen_edge.runtime.limits import check_max_new_tokens
from qwen_edge.runtime.overflow import OnOverflow, check_on_overflow
from qwen_edge.runtime.stopping import check_stop_strings
from qwen_edge.runtime.structured.output_format import OutputFormat

if TYPE_CHECKING:
    from qwen_edge.runtime.tools.tool import Tool


_MAX_THINKING_BUDGET = 1_000_000


class AnswerOptions(TypedDict, total=False):
    """Keyword options of an answer. What is left out is the session's, or else the default.

    Args:
        sampling: How to choose tokens. A mapping such as `{"top_p": 0.9}` changes single settings
            of the package's for the mode the model will be in; None takes these as they are.
        max_new_tokens: At least one, reasoning included; None means up to the end of the
            context, which also ends the answer.
        thinking: Whether to think first; None leaves it to the model and to `/think` and
            `/no_think` in the messages.
        thinking_budget: Most tokens of reasoning; it is then closed and the answer begins.
        stop: Texts that end the answer; they are not shown. Reasoning may hold them.
        output: What the answer must look like; None for free text.
        tools: What the model may call: function schemas, typed Python functions or `Tool`s.
        tool_choice: "auto", "none", "required" or the name of a tool that has to be called.
        parallel_tool_calls: Whether one answer may hold several calls.
        on_overflow: "refuse" a conversation that does not fit the context, or "drop-oldest".
        speculate: Whether to guess ahead, for speed; the model still chooses every token.
    """

    sampling: SamplingParams | Mapping[str, Any] | None
    max_new_tokens: int | None
    thinking: bool | None
    thinking_budget: int | None
    stop: str | Sequence[str]
    output: OutputFormat | None
    tools: "Sequence[Mapping[str, object] | Callable[..., object] | Tool] | None"
    tool_choice: str
    parallel_tool_calls: bool
    on_overflow: OnOverflow
    speculate: bool


@dataclass(frozen=True)
class ResolvedOptions:
    """The options of one answer with every default filled in; see `AnswerOptions`."""

    sampling: SamplingParams | Mapping[str, Any] | None = None
    max_new_tokens: int | None = None
    thinking: bool | None = None
    thinking_budget: int | None = None
    stop: tuple[str, ...] = ()
    output: OutputFormat | None = None
    tools: "tuple[Mapping[str, object] | Callable[..., object] | Tool, ...]" = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    on_overflow: OnOverflow = "refuse"
    speculate: bool = True


# What an answer asks for itself goes before a session's default that contradicts it.
_OVERRULES: Mapping[str, tuple[str, ...]] = {
    "thinking": ("thinking_budget",),
    "output": ("tools", "tool_choice"),
    "tools": ("output",),
}


def resolve_options(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> ResolvedOptions:
    """Return the options of an answer, checked as far as that needs no model.

    Args:
        defaults: The session's options; None stands for the default here too.
        given: The answer's own; they win, but for None, which asks for the session's.

    Raises:
        UsageError: An option is unknown, of the wrong type, out of range, or contradicts
            another one.
    """
    known = [field.name for field in fields(ResolvedOptions)]
    for name in (*defaults, *given):
        if name not in known:
            raise UsageError(
                f"There is no option {name!r}.{did_you_mean(name, known)}",
                f"use one of: {', '.join(known)}",
                option=name,
            )
    own = {name: value for name, value in given.items() if value is not None}
    values = {name: value for name, value in defaults.items() if value is not None}
    for name, others in _OVERRULES.items():
        if name in own and (name != "thinking" or own[name] is False):
            for other in others:
                values.pop(other, None)
    values |= own
    stop = values.get("stop", ())
    values["stop"] = (stop,) if isinstance(stop, str) else _read_list("stop", stop, "texts")
    values["tools"] = _read_list("tools", values.get("tools", ()), "functions or their schemas")
    _check_types(values)
    options = ResolvedOptions(**values)
    check_stop_strings(options.stop)
    check_max_new_tokens(options.max_new_tokens)
    check_on_overflow(options.on_overflow)
    _check_together(options)
    return options


def _read_list(name: str, value: Any, what: str) -> tuple[Any, ...]:
    """Return a list as a tuple; raise UsageError for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise _refusal(name, value, f"expected a list of {what}", f"pass a list of {what}")
    return tuple(value)


_TYPES: Mapping[str, tuple[type, str]] = {
    "thinking": (bool, "True, False or None"),
    "thinking_budget": (int, "a whole number of tokens"),
    "output": (OutputFormat, "an OutputFormat, such as OutputFormat.json_schema({…})"),
    "tool_choice": (str, "'auto', 'none', 'required' or the name of a tool"),
    "parallel_tool_calls": (bool, "True or False"),
    "speculate": (bool, "True or False"),
}


def _check_types(values: Mapping[str, Any]) -> None:
    """Raise UsageError for a value of the wrong type."""
    for name, (kind, expected) in _TYPES.items():
        value = values.get(name)
        is_number_for_bool = kind is int and isinstance(value, bool)
        if value is not None and (not isinstance(value, kind) or is_number_for_bool):
            raise _refusal(name, value, f"expected {expected}", f"pass {expected} as {name}")
    _check_sampling(values.get("sampling"))
    budget = values.get("thinking_budget")
    if budget is not None and not 0 <= budget <= _MAX_THINKING_BUDGET:
        raise _refusal(
            "thinking_budget",
            budget,
            f"expected 0 to {_MAX_THINKING_BUDGET:,} tokens",
            "give a number in that range, or leave it out for no limit",
        )


def _check_sampling(sampling: object) -> None:
    """Raise UsageError unless these are settings, or names of settings with their values."""
    if sampling is None or isinstance(sampling, SamplingParams):
        return
    if not isinstance(sampling, Mapping):
        expected = "SamplingParams or a mapping of their fields"
        raise _refusal("sampling", sampling, f"expected {expected}", f"pass {expected} as sampling")
    known = [field.name for field in fields(SamplingParams)]
    for name in sampling:
        if name not in known:
            raise UsageError(
                f"sampling has no setting {name!r}.{did_you_mean(str(name), known)}",
                f"use some of: {', '.join(known)}",
                option="sampling",
                value=name,
            )
    SamplingParams(**sampling)


def _check_together(options: ResolvedOptions) -> None:
    """Raise UsageError for options that contradict each other."""
    if options.thinking_budget is not None and options.thinking is False:
        raise _refusal(
            "thinking_budget",
            options.thinking_budget,
            "but thinking is switched off",
            "leave one of the two out",
        )
    if options.output is not None and options.tools and options.tool_choice != "none":
        raise _refusal(
            "output",
            options.output.kind,
            "but the answer may also be a tool call, which has a form of its own",
            "ask for one of the two, or set tool_choice to 'none'",
        )
    if options.tool_choice not in ("auto", "none") and not options.tools:
        raise _refusal(
            "tool_choice",
            options.tool_choice,
            "but there are no tools to choose from",
            "pass tools, or leave tool_choice out",
        )


def _refusal(name: str, value: object, problem: str, fix: str) -> UsageError:
    return UsageError(f"{name} is {value!r}, {problem}.", fix, option=name, value=value)
