"""The grammar of one call: the name of a tool, and arguments that fit that tool's schema.

Written out exactly as Qwen3's template renders a call, line breaks and spaces included, so that
a call in the conversation has the ids that it was generated with, and everything that is not a
choice can be forced. The tags are tokens and no part of it. Read `call_constraint.py` next.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwen_edge.errors import UsageError
from qwen_edge.runtime.structured.output_format import OutputFormat
from qwen_edge.runtime.tools.tool import Tool

if TYPE_CHECKING:
    from qwen_edge.runtime.structured.grammar import Grammar, GrammarCompiler

# Around the name and the arguments; the template puts both into this text.
_BEGIN, _MIDDLE, _END = '\n{"name": "', '", "arguments": ', "}\n"


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
    if len(tools) == 1:
        raise _name_tool(tools[0], problem) from problem
    for tool in tools:
        try:
            compiler.compile(OutputFormat.lark(write_call_grammar([tool])))
        except UsageError as exc:
            raise _name_tool(tool, exc) from exc
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
        rules.append(f"arguments_{index}: %json {json.dumps(tool.parameters)}")
    return "\n".join(rules)


def _name_tool(tool: Tool, error: UsageError) -> UsageError:
    """Return the error of a grammar with the name of the tool that it is about."""
    return type(error)(
        f"The parameters of the tool {tool.name!r} cannot be kept to: {error.problem}",
        error.fix,
        tool=tool.name,
        **error.facts,
    )
