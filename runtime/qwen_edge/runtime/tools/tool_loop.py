"""Answers a prompt with as many rounds of tool calls as it takes, up to a bound."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qwen_edge.errors import ContextFullError, UsageError
from qwen_edge.runtime.chat import Message
from qwen_edge.runtime.tools.messages import build_result_message
from qwen_edge.runtime.tools.running import check_runnable, run_tool_calls
from qwen_edge.runtime.tools.tool import read_tools

if TYPE_CHECKING:
    from qwen_edge.runtime.events import Answer
    from qwen_edge.runtime.session import Prompt, Session
    from qwen_edge.runtime.tools.tool_call import ToolCall


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
    check_max_rounds(max_rounds)
    runnable = read_tools(tools)
    check_runnable(runnable)
    dropped: tuple[Message, ...] = ()
    notices: tuple[str, ...] = ()
    for number in range(max_rounds + 1):
        answer = session.ask(prompt, tools=runnable, **options)
        dropped += tuple(answer.dropped_messages)
        notices += answer.notices
        is_cut_off = answer.finish_reason == "length" and answer.is_call_cut_off
        if answer.finish_reason == "cancelled" or (not answer.tool_calls and not is_cut_off):
            _refuse_calls(session, answer.tool_calls, "not run: the answer was cancelled")
            return replace(answer, dropped_messages=dropped, notices=notices)
        if is_cut_off:
            _refuse_calls(session, answer.tool_calls, "not run: the answer was cut off")
            raise ContextFullError(
                "The answer was cut off in the middle of a tool call, after "
                f"{len(answer.token_ids):,} tokens.",
                "raise max_new_tokens, or start a new conversation",
                num_tokens=len(answer.token_ids),
            )
        if number == max_rounds:
            _refuse_calls(session, answer.tool_calls, "not run: too many rounds of calls")
            break
        try:
            results = run_tool_calls(answer.tool_calls, runnable)
        except BaseException:  # such as Ctrl-C: the conversation must go on all the same
            _refuse_calls(session, answer.tool_calls, "interrupted")
            raise
        session.add(*results)
        if session.is_cancelled:  # while the tools ran
            return replace(
                answer, finish_reason="cancelled", dropped_messages=dropped, notices=notices
            )
        prompt = None
        # A call that had to be made was made; what follows is the model's own choice.
        options["tool_choice"] = "auto"
    raise UsageError(
        f"The model still calls tools after {max_rounds} rounds of results.",
        "raise max_rounds, or look at session.messages for what it is trying",
        max_rounds=max_rounds,
    )


def check_max_rounds(max_rounds: object) -> None:
    """Raise UsageError unless this is a number of rounds: 0 or more."""
    if isinstance(max_rounds, bool) or not isinstance(max_rounds, int) or max_rounds < 0:
        raise UsageError(
            f"max_rounds is {max_rounds!r}; expected 0 or more rounds of results.",
            "pass max_rounds=8",
            option="max_rounds",
            value=max_rounds,
        )


def _refuse_calls(session: "Session", calls: "Sequence[ToolCall]", reason: str) -> None:
    """Answer calls that are not run: a conversation cannot go on behind an unanswered one."""
    if calls:
        text = json.dumps({"error": reason})
        session.add(*[build_result_message(call, text) for call in calls])
