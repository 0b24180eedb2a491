"""Runs the calls of an answer with the Python functions behind them.

One call after the other, in order. Whatever goes wrong in a call is told to the model, which may
correct itself; only what the model cannot help, such as a tool without a function, is an error.
"""

import dataclasses
import json
import logging
import traceback
from collections.abc import Sequence
from enum import Enum

from qwen_edge.errors import UsageError, join_problems
from qwen_edge.runtime.tools.messages import build_result_message
from qwen_edge.runtime.tools.parameter_types import ArgumentError
from qwen_edge.runtime.tools.tool import Tool
from qwen_edge.runtime.tools.tool_call import ToolCall

_LOGGER = logging.getLogger(__name__)
_MAX_ERROR_CHARS = 1_000


def check_runnable(tools: Sequence[Tool]) -> None:
    """Raise UsageError when a tool has no function to be run."""
    without = [repr(tool.name) for tool in tools if tool.function is None]
    if without:
        raise UsageError(
            f"There is nothing to run for the tool {join_problems(without)}: it came as a schema.",
            "pass a typed Python function, or Tool(..., function=...), or run the calls yourself",
            tools=without,
        )


def run_tool_calls(calls: Sequence[ToolCall], tools: Sequence[Tool]) -> list[dict[str, object]]:
    """Return one message with the result of each call, in order.

    A result that is a text is given as it is, anything else as JSON text. Where the arguments
    do not fit, the function raises, or its result has no JSON form, the result is
    `{"error": "..."}`.

    Args:
        calls: Of one answer.
        tools: Those it was offered.

    Raises:
        UsageError: A tool that is called has no function; nothing was run.

    State:
        Whatever the functions change.
    """
    called = {call.name for call in calls}
    check_runnable([tool for tool in tools if tool.name in called])
    functions = {tool.name: tool for tool in tools}
    return [build_result_message(call, _run(call, functions.get(call.name))) for call in calls]


def _run(call: ToolCall, tool: Tool | None) -> str:
    """Return the result of one call as text."""
    if tool is None or tool.function is None:
        return _describe_error(f"there is no tool {call.name!r}")
    try:
        result = tool.function(**call.arguments)
        text = result if isinstance(result, str) else _to_json(result)
        return text.encode("utf-8", errors="replace").decode("utf-8")
    except ArgumentError as exc:
        return _describe_error(str(exc))
    except Exception as exc:
        _LOGGER.info("The tool %r raised.", call.name, exc_info=True)
        return _describe_error("".join(traceback.format_exception_only(exc)).strip())


def _to_json(result: object) -> str:
    """Return the JSON text of a result."""
    return json.dumps(result, ensure_ascii=False, allow_nan=False, default=_to_data)


def _to_data(value: object) -> object:
    """Return JSON data for what `json` does not know; raise TypeError for everything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"the result holds {type(value).__name__}, which has no JSON form")


def _describe_error(problem: str) -> str:
    """Return a result that tells the model what went wrong."""
    problem = problem.encode("utf-8", errors="replace").decode("utf-8")
    return json.dumps({"error": problem[:_MAX_ERROR_CHARS]}, ensure_ascii=False)
