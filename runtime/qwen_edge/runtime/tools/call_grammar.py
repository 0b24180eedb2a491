"""The grammar of one call: the name of a tool, and arguments that fit that tool's schema.

Written out exactly as Qwen3's template renders a call, line breaks and spaces included, so that
a call in the conversation has the ids that it was generated with, and everything that is not a
choice can be forced. The tags are tokens and no part of it. Read `call_constraint.py` next.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen_edge.errors import UsageError
from qwen_edge.runtime.structured.output_format import OutputFormat
from qwen_edge.runtime.tools.tool import Tool

if TYPE_CHECKING:
    from qwen_edge.runtime.structured.grammar import Grammar, GrammarCompiler

# Around the name and the arguments; the template puts both into this text.
_BEGIN, _MIDDLE, _END = '\n{"name": "', '", "arguments": ', "}\n"
# Keywords beside which a closed object would not mean what was written, or nothing at all.
_COMPOSING = frozenset(
    {
        "$ref",
        "additionalProperties",
        "allOf",
        "anyOf",
        "dependentRequired",
        "dependentSchemas",
        "if",
        "minProperties",
        "not",
        "oneOf",
        "patternProperties",
        "propertyNames",
        "unevaluatedProperties",
    }
)


def compile_call_grammar(tools: Sequence[Tool], compiler: "GrammarCompiler") -> "Grammar":
    """Return the grammar of what stands between the tags.

    Args:
        tools: At least one.
        compiler: The model's.

    Raises:
        UsageError: The schema of a tool cannot be turned into a grammar; the error names it.
    """
    try:
        return compiler.compile(OutputFormat.lark(write_call_grammar(tools)))
    except UsageError as exc:
        problem = exc
    for tool in tools:
        try:
            compiler.compile(OutputFormat.lark(write_call_grammar([tool])))
        except UsageError as exc:
            raise type(exc)(
                f"The parameters of the tool {tool.name!r} cannot be kept to: {exc.problem}",
                exc.fix,
                tool=tool.name,
                **exc.facts,
            ) from exc
    raise problem  # each is fine, and all together are too much


def write_call_grammar(tools: Sequence[Tool]) -> str:
    """Return the grammar in llguidance's Lark notation.

    Source:
        llguidance 1.9, docs/syntax.md. The compiler sees to the schemas as to any other, also
        that they are written as `json.dumps` does, which is how the template writes arguments.
    """
    rules = [
        f"start: {json.dumps(_BEGIN)} call {json.dumps(_END)}",
        "call: " + " | ".join(f"call_{index}" for index in range(len(tools))),
    ]
    for index, tool in enumerate(tools):
        rules.append(f"call_{index}: {json.dumps(tool.name + _MIDDLE)} arguments_{index}")
        rules.append(f"arguments_{index}: %json {json.dumps(close_objects(tool.parameters))}")
    return "\n".join(rules)


def close_objects(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects have no other entries than those it names.

    In a JSON schema, an object that says nothing about further entries may have any. A model
    must not make up arguments, so such objects are closed, unless the schema is composed of
    parts that only together say what is allowed. What fits the result fits the schema.

    Args:
        schema: A JSON schema; not changed.
    """
    if _is_composed(schema):
        return dict(schema)
    return _close(schema)


def _close(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema with its objects closed, at every depth."""
    closed = dict(schema)
    properties = closed.get("properties")
    for key in ("properties", "$defs", "definitions"):
        if isinstance(closed.get(key), Mapping):
            closed[key] = {name: _close_any(part) for name, part in closed[key].items()}
    if "items" in closed:
        closed["items"] = _close_any(closed["items"])
    for key in ("prefixItems", "anyOf"):
        is_free = key != "anyOf" or properties is None
        if is_free and isinstance(closed.get(key), list):
            closed[key] = [_close_any(part) for part in closed[key]]
    required = closed.get("required")
    names = required if isinstance(required, list) else []
    is_whole = isinstance(properties, Mapping) and all(name in properties for name in names)
    if is_whole and not _COMPOSING & closed.keys():
        closed["additionalProperties"] = False
    return closed


def _close_any(schema: object) -> object:
    """Return a closed schema; one that is true, false or malformed stays."""
    return _close(schema) if isinstance(schema, Mapping) else schema


def _is_composed(schema: object) -> bool:
    """Whether several parts of a schema may describe the same object."""
    if isinstance(schema, Mapping):
        is_joined = "allOf" in schema or ("$ref" in schema and "properties" in schema)
        return is_joined or any(_is_composed(part) for part in schema.values())
    return isinstance(schema, list) and any(_is_composed(part) for part in schema)
