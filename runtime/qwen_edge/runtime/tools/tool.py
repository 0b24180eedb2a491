"""What a model may call: a name, a description and a JSON schema of its arguments.

Tools come as function schemas in OpenAI's form, as typed Python functions, or as `Tool`s.
Everything is checked here, before a token is made; only whether a schema can be turned into a
grammar is found out later, in `call_grammar.py`. Read `python_functions.py` for functions.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen_edge.errors import UsageError, did_you_mean, join_problems
from qwen_edge.runtime.tools.python_functions import TypedFunction

MAX_TOOLS = 128  # OpenAI API reference, chat completions, `tools`
MAX_SCHEMA_DEPTH = 50  # below what a message may have, see chat.py
ToolChoice = str
"""What the answer has to be: "auto", "none", "required", or the name of a tool to be called."""

CHOICES = ("auto", "none", "required")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # OpenAI API reference, `function.name`
_FIX = (
    'pass tools like {"type": "function", "function": {"name": "get_time", "parameters": '
    '{"type": "object", "properties": {}}}}, or typed Python functions'
)


@dataclass(frozen=True)
class Tool:
    """One thing that a model may call.

    Args:
        name: 1 to 64 letters, digits, underscores and hyphens.
        description: What it does, for the model. May be empty.
        parameters: JSON schema of the arguments, which are an object. A copy is kept.
        function: Runs it: gets the arguments as keywords, returns JSON data or a text. None
            where the caller runs it.
        shown: What the model is shown, where that is not just the three fields above.

    Raises:
        UsageError: A part is not as described.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(
        default_factory=lambda: {"type": "object", "properties": {}}
    )
    function: Callable[..., object] | None = None
    shown: Mapping[str, object] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        problems = _find_problems(self.name, self.description, self.parameters)
        if self.function is not None and not callable(self.function):
            problems.append(f"its function is {type(self.function).__name__}, nothing to call")
        if problems:
            raise _refusal(repr(self.name), problems)
        # A later change of the caller's mapping must not change what was checked.
        object.__setattr__(self, "parameters", {"type": "object", **_copy(self.parameters)})
        if self.shown is not None:
            object.__setattr__(self, "shown", _copy(self.shown))

    @classmethod
    def from_function(cls, function: Callable[..., object]) -> "Tool":
        """Return a tool for a typed Python function; see `TypedFunction` for what it may take.

        Raises:
            UsageError: It is no function, or has a parameter that cannot be described.
        """
        typed = TypedFunction(function)
        return cls(typed.name, typed.description, typed.parameters, typed)

    @classmethod
    def from_schema(cls, schema: Mapping[str, object], where: str = "the tool") -> "Tool":
        """Return a tool for a function schema, with or without OpenAI's wrapping.

        Args:
            schema: `{"type": "function", "function": {...}}`, or the inner mapping alone.
            where: How an error calls it until its name is known.

        Raises:
            UsageError: It is malformed.
        """
        inner: object = schema.get("function", schema)
        kind = schema.get("type", "function")
        if not isinstance(inner, Mapping):
            raise _refusal(where, [f"its function is {type(inner).__name__}, no mapping"])
        if inner is not schema and kind != "function":
            raise _refusal(where, [f"its type is {kind!r}, expected 'function'"])
        name = inner.get("name")
        if name is None:
            raise _refusal(where, ["it has no name"])
        description, parameters = inner.get("description"), inner.get("parameters")
        # Shown as given: a model may make use of what is not known here, such as "strict".
        shown = schema if inner is not schema else {"type": "function", "function": schema}
        if not _is_plain(shown):
            too_deep = f"is nested more than {MAX_SCHEMA_DEPTH} deep"
            raise _refusal(repr(name), [f"it holds more than JSON data, or {too_deep}"])
        return cls(
            name,
            "" if description is None else description,
            {"type": "object", "properties": {}} if parameters is None else parameters,
            shown=shown,
        )

    def to_openai(self) -> dict[str, object]:
        """Return the function schema that the model is shown; the caller may change it."""
        if self.shown is not None:
            return _copy(self.shown)
        function: dict[str, object] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        function["parameters"] = _copy(self.parameters)
        return {"type": "function", "function": function}


def read_tools(
    tools: "Sequence[Mapping[str, object] | Callable[..., object] | Tool]",
) -> tuple[Tool, ...]:
    """Return the tools that a caller offers, checked.

    Args:
        tools: Function schemas, typed Python functions and `Tool`s, mixed as wanted.

    Raises:
        UsageError: One is malformed, two have the same name, or there are too many.
    """
    if isinstance(tools, Mapping | str) or not isinstance(tools, Sequence):
        raise UsageError(f"tools is {type(tools).__name__}; expected a list of tools.", _FIX)
    if len(tools) > MAX_TOOLS:
        raise UsageError(
            f"There are {len(tools):,} tools; the limit is {MAX_TOOLS}.",
            "offer only the tools that this conversation needs",
            num_tools=len(tools),
        )
    read = tuple(_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools))
    names = [tool.name for tool in read]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"The tool {twice[0]!r} is there {names.count(twice[0])} times; a call could not "
            "say which one it means.",
            "give each tool a name of its own",
            names=twice,
        )
    return read


def read_tool_choice(choice: object, tools: Sequence[Tool]) -> ToolChoice:
    """Return a choice, checked against the tools.

    Args:
        choice: A `ToolChoice`, or OpenAI's `{"type": "function", "function": {"name": ...}}`.
            "auto", "none" and "required" keep their meaning where a tool has such a name.
        tools: What is offered.

    Raises:
        UsageError: It is no choice, or names a tool that is not offered.
    """
    names = [tool.name for tool in tools]
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        choice = name if name not in CHOICES else None
    if isinstance(choice, str) and choice in names:
        return choice
    if not isinstance(choice, str) or choice not in CHOICES:
        raise UsageError(
            f"tool_choice is {choice!r}; expected 'auto', 'none', 'required' or the name of a "
            f"tool.{did_you_mean(str(choice), [*CHOICES, *names])}",
            f"use one of: {', '.join([*CHOICES, *names])}",
            tool_choice=choice,
        )
    if choice == "required" and not tools:
        raise UsageError(
            "tool_choice is 'required', but there are no tools to choose from.",
            "pass tools, or leave tool_choice out",
            tool_choice=choice,
        )
    return choice


def _read_tool(tool: object, where: str) -> Tool:
    """Return one tool."""
    if isinstance(tool, Tool):
        return tool
    if isinstance(tool, Mapping):
        return Tool.from_schema(tool, where)
    if callable(tool):
        return Tool.from_function(tool)
    raise _refusal(where, [f"it is {type(tool).__name__}, no schema and no function"])


def _find_problems(name: object, description: object, parameters: object) -> list[str]:
    """Return what is wrong with the parts of a tool."""
    problems = []
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problems.append(
            "its name is not made of 1 to 64 letters from a to z, digits, underscores and hyphens"
        )
    if not isinstance(description, str):
        problems.append(f"its description is {type(description).__name__}, no text")
    elif not _is_plain(description):
        problems.append("its description holds a lone surrogate")
    if not isinstance(parameters, Mapping):
        problems.append(f"its parameters are {type(parameters).__name__}, no JSON schema")
    elif not _is_plain(parameters):
        problems.append(
            "its parameters hold more than JSON data, or are nested more than "
            f"{MAX_SCHEMA_DEPTH} deep"
        )
    else:
        problems += _find_schema_problems(_copy(parameters))
    return problems


def _find_schema_problems(schema: Mapping[str, object]) -> list[str]:
    """Return what is wrong with the outermost level of a parameters schema."""
    problems = []
    if schema.get("type", "object") != "object":
        problems.append(f"its parameters have the type {schema['type']!r}, expected 'object'")
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        problems.append(f"its properties are {type(properties).__name__}, no mapping")
    else:
        problems += [
            f"its parameter {key!r} is {type(value).__name__}, no JSON schema"
            for key, value in properties.items()
            if not isinstance(value, dict | bool)
        ]
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(item, str) for item in required):
        problems.append("its 'required' is not a list of texts")
    elif isinstance(properties, dict) and schema.get("additionalProperties") is False:
        missing = [key for key in required if key not in properties]
        problems += [f"it requires {key!r}, which it does not allow" for key in missing]
    return problems


def _is_plain(value: object) -> bool:
    """Whether a value is JSON data of bearable depth that can be encoded."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError):  # lone surrogates and cycles are ValueErrors
        return False
    level: list[Any] = [json.loads(text)]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    return not level


def _copy(value: Mapping[str, object]) -> dict[str, Any]:
    """Return a copy of JSON data that shares nothing."""
    copied: dict[str, Any] = json.loads(json.dumps(value))
    return copied


def _refusal(who: str, problems: Sequence[str]) -> UsageError:
    """Return the error for one tool."""
    return UsageError(f"The tool {who} cannot be used: {join_problems(problems)}.", _FIX, tool=who)
