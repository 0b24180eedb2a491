"""Reads requests of `/v1/responses`: items in the place of messages."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from qwen_edge.errors import UsageError
from qwen_edge.runtime.answer_options import AnswerOptions
from qwen_edge.server.api.chat_request import MAX_MESSAGES, read_tool_choice
from qwen_edge.server.api.fields import (
    MAX_TOP_LOGPROBS,
    Effort,
    RequestFields,
    SamplingFields,
    UnusedFields,
    read_schema_format,
    read_thinking,
)

LOGPROBS = "message.output_text.logprobs"


class TextFormat(RequestFields):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, description="without effect")
    description: str | None = Field(None, description="without effect")
    strict: bool | None = Field(None, description="without effect: schemas are always kept to")
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextSettings(RequestFields):
    """How the text of the answer is to be."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = Field(None, description="without effect")


class ReasoningSettings(RequestFields):
    """How the model is to think."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="without effect: the reasoning itself is sent"
    )


class ResponsesStreamOptions(RequestFields):
    """How a stream is written."""

    include_obfuscation: bool | None = Field(None, description="never done")


class ResponsesRequest(SamplingFields, UnusedFields):
    """A conversation in items to be answered."""

    model: str | None = Field(None, description="may be left out where one package is served")
    input: str | list[dict[str, Any]] = Field(description="a text, or items")
    instructions: str | None = Field(None, description="put before all else as system message")
    previous_response_id: str | None = Field(None, description="a stored response to go on from")
    max_output_tokens: int | None = Field(None, ge=1, description="reasoning included")
    stream: bool | None = Field(None, description="send the answer as it is made")
    stream_options: ResponsesStreamOptions | None = None
    tools: list[dict[str, Any]] | None = Field(None, description="functions")
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: ReasoningSettings | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        Field(None, description="reasoning is sent as it is, never encrypted")
    )
    store: bool | None = Field(
        None, description="keep it in memory to go on from; true if left out"
    )
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto leaves out the oldest messages where all do not fit"
    )
    background: Literal[False] | None = Field(None, description="not supported")

    def new_messages(self) -> list[dict[str, object]]:
        """Return the items of this request as messages.

        Raises:
            UsageError: An item is of a kind that is not known here, or malformed.
        """
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        if len(self.input) > MAX_MESSAGES:
            raise UsageError(
                f"input has {len(self.input):,} items; the limit is {MAX_MESSAGES:,}.",
                "leave the oldest out",
                param="input",
            )
        reader = _ItemReader()
        for index, item in enumerate(self.input):
            reader.add(item, f"input[{index}]")
        return reader.finish()

    def options(self) -> AnswerOptions:
        """Return what is asked for.

        Raises:
            EdgeError: Fields contradict each other, or a schema is none.
        """
        effort = None if self.reasoning is None else self.reasoning.effort
        options = read_thinking(effort, None, None, None)
        wants_logprobs = self.top_logprobs is not None or LOGPROBS in (self.include or ())
        options["sampling"] = self.sampling((self.top_logprobs or 0) if wants_logprobs else None)
        if self.max_output_tokens is not None:
            options["max_new_tokens"] = self.max_output_tokens
        given = None if self.text is None else self.text.format
        if given is not None:
            if given.type == "json_schema" and given.schema_ is None:
                raise UsageError(
                    "text.format has the type json_schema and no schema.",
                    'add "schema": {…}',
                    param="text.format.schema",
                )
            output = read_schema_format(given.type, given.schema_)
            if output is not None:
                options["output"] = output
        if self.tools:
            options["tools"] = [_read_tool(tool, i) for i, tool in enumerate(self.tools)]
        if self.tool_choice is not None:
            options["tool_choice"] = read_tool_choice(self.tool_choice)
        if self.parallel_tool_calls is not None:
            options["parallel_tool_calls"] = self.parallel_tool_calls
        if self.truncation == "auto":
            options["on_overflow"] = "drop-oldest"
        return options

    @property
    def wants_logprobs(self) -> bool:
        """Whether the tokens of the answer are to be told with their probabilities."""
        return self.top_logprobs is not None or LOGPROBS in (self.include or ())


class _ItemReader:
    """Gathers items into messages: what an assistant thought, said and called is one.

    State:
        `_open` is the assistant's message that further items may still belong to.
    """

    def __init__(self) -> None:
        self._messages: list[dict[str, object]] = []
        self._open: dict[str, Any] | None = None

    def add(self, item: Mapping[str, Any], where: str) -> None:
        """Take in the next item."""
        kind = item.get("type", "message")
        if kind == "reasoning":
            self._assistant(is_new=True)["reasoning_content"] = _join_parts(
                item.get("content") or item.get("summary") or [], f"{where}.content"
            )
        elif kind == "function_call":
            self._add_call(item, where)
        elif kind == "function_call_output":
            self._close()
            self._messages.append(_read_result(item, where))
        elif kind == "message":
            self._add_message(item, where)
        else:
            raise UsageError(
                f"{where} has the type {kind!r:.60}; expected message, reasoning, function_call or "
                "function_call_output.",
                "leave it out",
                param=where,
            )

    def finish(self) -> list[dict[str, object]]:
        """Return all messages."""
        self._close()
        return self._messages

    def _add_message(self, item: Mapping[str, Any], where: str) -> None:
        role, content = item.get("role"), item.get("content")
        if content is None or role not in ("system", "developer", "user", "assistant"):
            raise UsageError(
                f"{where} has the role {role!r:.40} and a content of type "
                f"{type(content).__name__}; expected a message.",
                'give {"role": "user", "content": "…"}',
                param=where,
            )
        text = content if isinstance(content, str) else _join_parts(content, f"{where}.content")
        if role != "assistant":
            self._close()
            self._messages.append({"role": role, "content": text})
            return
        is_new = self._open is not None and bool(
            self._open["content"] or "tool_calls" in self._open
        )
        self._assistant(is_new=is_new)["content"] = text

    def _add_call(self, item: Mapping[str, Any], where: str) -> None:
        name, call_id = item.get("name"), item.get("call_id")
        if not isinstance(name, str) or not isinstance(call_id, str):
            raise UsageError(
                f"{where} has the name {name!r:.60} and the call_id {call_id!r:.60}; expected "
                "texts.",
                "give the call as the response had it",
                param=where,
            )
        function = {"name": name, "arguments": item.get("arguments", "")}
        calls = self._assistant(is_new=False).setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": function})

    def _assistant(self, *, is_new: bool) -> dict[str, Any]:
        if is_new:
            self._close()
        if self._open is None:
            self._open = {"role": "assistant", "content": ""}
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            self._messages.append(self._open)
            self._open = None


_PART_TYPES = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


def _join_parts(parts: object, where: str) -> str:
    """Return the text of content parts.

    Raises:
        UsageError: One is no text.
    """
    texts = []
    for index, part in enumerate(parts if isinstance(parts, list) else [parts]):
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or part.get("type") not in _PART_TYPES:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise UsageError(
                f"{where}[{index}] is {kind!r:.60}; expected a text. This model reads text only.",
                'give {"type": "input_text", "text": "…"}',
                param=where,
            )
        texts.append(text)
    return "".join(texts)


def _read_result(item: Mapping[str, Any], where: str) -> dict[str, object]:
    output = item.get("output")
    if isinstance(output, list):
        output = _join_parts(output, f"{where}.output")
    if not isinstance(output, str):
        output = json.dumps(output, ensure_ascii=False)
    return {"role": "tool", "tool_call_id": item.get("call_id"), "content": output}


_TOOL_FIELDS: Sequence[str] = ("type", "name", "description", "parameters", "strict")


def _read_tool(tool: Mapping[str, Any], index: int) -> dict[str, object]:
    """Return a tool as the chat interface has it."""
    unknown = [name for name in tool if name not in _TOOL_FIELDS]
    if tool.get("type") != "function" or unknown:
        shown = f"the field {unknown[0]!r:.40}" if unknown else f"the type {tool.get('type')!r:.40}"
        raise UsageError(
            f"tools[{index}] has {shown}; expected a function. Tools that a server runs itself "
            "are not offered here.",
            'give {"type": "function", "name": …, "parameters": {…}}',
            param=f"tools[{index}]",
        )
    function = {name: value for name, value in tool.items() if name != "type" and value is not None}
    return {"type": "function", "function": function}
