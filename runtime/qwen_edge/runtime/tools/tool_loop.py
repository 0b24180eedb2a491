"""Answers a prompt with as many rounds of tool calls as it takes, up to a bound."""

from typing import TYPE_CHECKING, Any

from qwen_edge.errors import ContextFullError, UsageError
from qwen_edge.runtime.tools.running import check_runnable, run_tool_calls
from qwen_edge.runtime.tools.tool import read_tools

if TYPE_CHECKING:
    from qwen_edge.runtime.events import Answer
    from qwen_edge.runtime.session import Prompt, Session


def ask_with_tools(
    session: "Session", prompt: "Prompt", *, tools: Any, max_rounds: int, **options: Any
) -> "Answer":
    """Return the answer to a prompt after running the calls it takes; see the session's method.

    Args:
        session: Asked, and told the results.
        prompt: As for `Session.stream`.
        tools: Python functions, or tools with one.
        max_rounds: Most times that results are given back.
        **options: As for `Session.stream`.
    """
    runnable = read_tools(tools)
    check_runnable(runnable)
    for _ in range(max_rounds + 1):
        answer = session.ask(prompt, tools=runnable, **options)
        if answer.finish_reason == "length" and answer.is_call_cut_off:
            raise ContextFullError(
                "The answer was cut off in the middle of a tool call, after "
                f"{len(answer.token_ids):,} tokens.",
                "raise max_new_tokens, or start a new conversation",
                num_tokens=len(answer.token_ids),
            )
        if not answer.tool_calls or answer.finish_reason == "cancelled":
            return answer
        session.add(*run_tool_calls(answer.tool_calls, runnable))
        prompt = None
        # A call that had to be made was made; what follows is the model's own choice.
        options["tool_choice"] = "auto"
    raise UsageError(
        f"The model still calls tools after {max_rounds} rounds of results.",
        "raise max_rounds, or look at session.messages for what it is trying",
        max_rounds=max_rounds,
    )
