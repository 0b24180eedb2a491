"""The order of a conversation: which message may follow which, and which result is which call's.

Takes what clients of OpenAI's interface send and gives what Qwen's template reads: one system
message at the beginning, tool calls whose arguments are a JSON object, and the results of
parallel calls in the order of the calls, since the template writes them without their ids. It
knows nothing of templates or tokens; `chat.py` checks each message for itself first.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile

from qwen_edge.errors import UsageError
from qwen_edge.runtime.plain_data import copy_plain

PlainMessage = dict[str, object]

_CALL_FIX = (
    'pass calls like {"id": "call_1", "type": "function", "function": {"name": "f", '
    '"arguments": "{}"}}'
)
_RESULT_FIX = (
    'follow a message with tool calls by one {"role": "tool", "tool_call_id": …, "content": …} '
    "for each call"
)
_ARGUMENTS_DEPTH = 4
_MAX_SHOWN_CHARS = 60


def order_messages(
    messages: Sequence[PlainMessage], *, is_complete: bool = True
) -> list[PlainMessage]:
    """Return a conversation in the template's form.

    Args:
        messages: Plain, with known roles; contents are texts. At least one.
        is_complete: Whether it is to be answered now. Otherwise it may end with any message,
            and the last tool calls may wait for results.

    Returns:
        New messages; giving them in again changes nothing.

    Raises:
        UsageError: A message cannot stand where it stands, a tool call is broken, or there is
            nothing to answer. The error names the message.
    """
    system = list(takewhile(lambda message: message["role"] == "system", messages))
    ordered = _join_system(system)
    index = len(system)
    while index < len(messages):
        message, where = messages[index], f"messages[{index}]"
        _check_place(message, where)
        calls = _read_calls(message, where)
        ordered.append(_with_calls(message, calls))
        index += 1
        if calls:
            results = list(takewhile(lambda item: item["role"] == "tool", messages[index:]))
            is_waiting = not is_complete and index + len(results) == len(messages)
            ordered += _match_results(calls, results, index, may_wait=is_waiting)
            index += len(results)
    if is_complete:
        _check_last(messages)
    return ordered


def map_arguments(messages: Sequence[PlainMessage]) -> list[PlainMessage]:
    """Return messages in which arguments that are JSON texts are mappings.

    For templates that would write a text as a JSON string. Calls that are broken stay.
    """
    mapped: list[PlainMessage] = []
    for index, message in enumerate(messages):
        try:
            calls = [
                _with_arguments(call, _read_arguments(_arguments_of(call), f"messages[{index}]"))
                for call in _read_calls(message, f"messages[{index}]")
            ]
        except UsageError:
            mapped.append(message)
        else:
            mapped.append(_with_calls(message, calls))
    return mapped


def has_argument_texts(messages: Sequence[PlainMessage]) -> bool:
    """Whether the arguments of any tool call are a text."""
    calls = [message.get("tool_calls") for message in messages]
    lists = [items for items in calls if isinstance(items, list)]
    return any(isinstance(_arguments_of(call), str) for items in lists for call in items)


def _arguments_of(call: object) -> object:
    """Return the arguments of a tool call in either form."""
    function = call.get("function") or call if isinstance(call, dict) else None
    return function.get("arguments") if isinstance(function, dict) else None


def _join_system(messages: Sequence[PlainMessage]) -> list[PlainMessage]:
    """Return the system messages of the beginning as one, or none."""
    if len(messages) < 2:
        return [dict(message) for message in messages]
    texts = [str(message["content"]) for message in messages]
    return [{**messages[0], "content": "\n\n".join(text for text in texts if text)}]


def _check_place(message: PlainMessage, where: str) -> None:
    """Raise UsageError for a message that cannot come after what was before it."""
    if message["role"] == "system":
        raise UsageError(
            f"{where} is a system message after the conversation has begun; expected it before "
            "all others.",
            "put it first, or make it a user message",
            role="system",
        )
    if message["role"] == "tool":
        raise UsageError(
            f"{where} is a tool's result, but no tool call comes before it; expected an "
            "assistant message with 'tool_calls'.",
            _RESULT_FIX,
            role="tool",
        )


def _check_last(messages: Sequence[PlainMessage]) -> None:
    """Raise UsageError when there is nothing to answer."""
    role, where = messages[-1]["role"], f"messages[{len(messages) - 1}]"
    if role == "assistant":
        raise UsageError(
            f"{where}, the last one, is the assistant's; expected a user message or the result "
            "of a tool. Going on with the text of an unfinished answer is not supported.",
            "leave the last message out, or add a user message",
            role=role,
        )
    if role == "system":
        raise UsageError(
            f"{where}, the last one, is a system message; expected a user message to answer.",
            'add a message like {"role": "user", "content": "Hello"}',
            role=role,
        )


def _with_calls(message: PlainMessage, calls: Sequence[PlainMessage]) -> PlainMessage:
    """Return a copy of a message with these tool calls in the place of its own."""
    plain = {key: value for key, value in message.items() if key != "tool_calls"}
    if calls:
        plain["tool_calls"] = list(calls)
    return plain


def _read_calls(message: PlainMessage, where: str) -> list[PlainMessage]:
    """Return the tool calls of a message, checked."""
    calls = message.get("tool_calls") or []
    if message.get("function_call") is not None:
        raise UsageError(f"{where} has a 'function_call'; expected 'tool_calls'.", _CALL_FIX)
    if calls and message["role"] != "assistant":
        raise UsageError(
            f"{where} has tool calls and the role {message['role']!r}; expected 'assistant'.",
            _CALL_FIX,
            role=message["role"],
        )
    if not isinstance(calls, list):
        raise UsageError(
            f"{where} has tool_calls of type {type(calls).__name__}; expected a list.", _CALL_FIX
        )
    read = [_read_call(call, f"{where}['tool_calls'][{i}]") for i, call in enumerate(calls)]
    ids = [call["id"] for call in read if call.get("id") is not None]
    for index, call_id in enumerate(ids):
        if call_id in ids[:index]:
            raise UsageError(f"{where} has two tool calls with the id {call_id!r}.", _CALL_FIX)
    return read


def _read_call(call: object, where: str) -> PlainMessage:
    """Return one tool call, checked; arguments that are a text stay one.

    A template writes that text as it is. So the model's own call keeps its form, and what was
    computed of it need not be computed again.
    """
    function = call.get("function") or call if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise UsageError(f"{where} is {_show(call)}; expected a mapping.", _CALL_FIX)
    if call.get("type") not in (None, "function"):
        raise UsageError(f"{where} has the type {call['type']!r}; expected 'function'.", _CALL_FIX)
    if not isinstance(call.get("id"), str | None):
        raise UsageError(f"{where} has the id {_show(call['id'])}; expected a text.", _CALL_FIX)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{where} has the name {_show(name)}; expected a text.", _CALL_FIX)
    given = function.get("arguments")
    arguments = _read_arguments(given, where)
    return _with_arguments(call, given if isinstance(given, str) and given else arguments)


def _with_arguments(call: PlainMessage, arguments: object) -> PlainMessage:
    """Return a copy of a tool call with these arguments."""
    function = call.get("function")
    if not isinstance(function, dict):
        return {**call, "arguments": arguments}
    return {**call, "function": {**function, "arguments": arguments}}


def _read_arguments(arguments: object, where: str) -> Mapping[str, object]:
    """Return the arguments of a call; a missing or empty text stands for none."""
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as exc:
            raise UsageError(
                f"{where} has arguments that are not JSON: {_show(arguments)}: {exc}.",
                "pass the arguments as the model gave them, or as a mapping",
            ) from exc
        # As deep as the same mapping would lie inside its message.
        arguments = copy_plain(arguments, f"{where}['arguments']", _ARGUMENTS_DEPTH)
    if not isinstance(arguments, dict):
        raise UsageError(
            f"{where} has the arguments {_show(arguments)}; expected a JSON object.", _CALL_FIX
        )
    return arguments


def _match_results(
    calls: Sequence[PlainMessage],
    results: Sequence[PlainMessage],
    start: int,
    *,
    may_wait: bool,
) -> list[PlainMessage]:
    """Return the results of parallel tool calls in the order of the calls.

    A result without an id, and every result where the calls have none, belongs to the first
    call that has no other.

    Args:
        calls: Of one assistant message.
        results: The messages after it.
        start: Index of the first of them, for error messages.
        may_wait: Whether calls may be without a result; the results then stay in their order,
            and none is taken for another call's when the others come.
    """
    indices = {call["id"]: i for i, call in enumerate(calls) if call.get("id") is not None}
    placed: dict[int, PlainMessage] = {}
    unnamed: list[tuple[str, PlainMessage]] = []
    for offset, result in enumerate(results):
        where, call_id = f"messages[{start + offset}]", result.get("tool_call_id")
        if call_id is None or not indices:
            unnamed.append((where, result))
        elif not isinstance(call_id, str) or call_id not in indices:
            known = ", ".join(repr(known) for known in indices)
            raise UsageError(
                f"{where} answers the tool call {_show(call_id)}; expected one of {known}.",
                _RESULT_FIX,
                tool_call_id=call_id,
            )
        elif indices[call_id] in placed:
            raise UsageError(
                f"{where} is a second result of the tool call {call_id!r}; expected one.",
                _RESULT_FIX,
                tool_call_id=call_id,
            )
        else:
            placed[indices[call_id]] = result
    left = [i for i in range(len(calls)) if i not in placed]
    if len(unnamed) > len(left):
        raise UsageError(
            f"{unnamed[len(left)][0]} is one result too many; expected {len(calls)}, one for "
            "each tool call.",
            _RESULT_FIX,
        )
    placed |= {i: result for i, (_, result) in zip(left, unnamed, strict=False)}
    if may_wait and len(placed) < len(calls):
        return [dict(result) for result in results]
    _check_all_answered(calls, placed, start - 1)
    return [dict(placed[i]) for i in range(len(calls))]


def _check_all_answered(
    calls: Sequence[PlainMessage], placed: Mapping[int, PlainMessage], index: int
) -> None:
    """Raise UsageError when a tool call has no result."""
    for i, call in enumerate(calls):
        if i not in placed:
            function = call.get("function") or call
            assert isinstance(function, dict)
            call_id = "" if call.get("id") is None else f" with the id {call['id']!r}"
            raise UsageError(
                f"messages[{index}] calls the tool {function['name']!r}{call_id}, and no result "
                "follows; expected one for each call.",
                _RESULT_FIX,
                tool_call_id=call.get("id"),
            )


def _show(value: object) -> str:
    """Return a value for an error message, cut short."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}…"
