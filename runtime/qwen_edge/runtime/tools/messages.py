"""How calls and their results go back into a conversation, as Qwen3's template takes them.

Pure functions from data to messages; `chat.py` renders these.
"""

import json
from collections.abc import Mapping, Sequence

from qwen_edge.runtime.tools.tool_call import ToolCall


def build_call_message(
    text: str, calls: Sequence[ToolCall], *, reasoning: str = ""
) -> dict[str, object]:
    """Return the assistant's message with its calls.

    Args:
        text: What it said besides; may be empty.
        calls: In the order in which they were written. None for an ordinary message.
        reasoning: What it thought before.
    """
    message: dict[str, object] = {"role": "assistant", "content": text}
    # Kept apart: the template drops the reasoning of earlier turns. Given, if empty, it keeps the
    # template from taking an answer about `</think>` for reasoning.
    if reasoning or "</think>" in text:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [_describe_call(call) for call in calls]
    return message


def build_result_message(call: ToolCall, result: str) -> dict[str, object]:
    """Return the message with a call's result.

    Args:
        call: What was called.
        result: JSON text, or any text.
    """
    return {"role": "tool", "content": result, "tool_call_id": call.id, "name": call.name}


def _describe_call(call: ToolCall) -> dict[str, object]:
    """Return one entry of "tool_calls"."""
    arguments: Mapping[str, object] | str = dict(call.arguments)
    # The template writes data as `json.dumps` does and a text as it is. Where the model wrote
    # its arguments otherwise, its own text keeps the rendered conversation equal to what was
    # generated, so that nothing of it has to be computed again.
    if call.arguments_text and json.dumps(arguments, ensure_ascii=False) != call.arguments_text:
        arguments = call.arguments_text
    function = {"name": call.name, "arguments": arguments}
    return {"type": "function", "id": call.id, "function": function}
