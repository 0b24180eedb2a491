"""Reads requests of `/v1/chat/completions`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from qwen_edge.errors import UsageError, did_you_mean
from qwen_edge.runtime.answer_options import AnswerOptions
from qwen_edge.server.api.fields import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    Effort,
    JsonSchemaFormat,
    RequestFields,
    SamplingFields,
    StreamOptions,
    UnusedFields,
    read_schema_format,
    read_stop,
    read_thinking,
)

MAX_MESSAGES = 4_096


class ResponseFormat(RequestFields):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = Field(None, description="with type json_schema")
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="with type json_object; not OpenAI's"
    )


class TemplateSwitches(RequestFields):
    """What the chat template may be told."""

    enable_thinking: bool | None = Field(None, description="whether the model thinks first")


class ChatRequest(SamplingFields, UnusedFields):
    """A conversation to be answered."""

    model: str | None = Field(None, description="may be left out where one package is served")
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool | None = Field(None, description="send the answer as it is made")
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(None, ge=1, description="reasoning included")
    max_tokens: int | None = Field(None, ge=1, description="older name of max_completion_tokens")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="answers to be made")
    stop: str | list[str] | None = Field(None, description="texts that end the answer")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = Field(
        None, description="none does not think; minimal, low, medium think for a limited time"
    )
    think: bool | Effort | None = Field(None, description="Ollama's name for the same")
    thinking_budget: int | None = Field(None, description="most tokens of reasoning")
    chat_template_kwargs: TemplateSwitches | None = None
    store: Literal[False] | None = Field(None, description="nothing is stored")
    modalities: list[Literal["text"]] | None = Field(None, description="without effect")

    def conversation(self) -> list[dict[str, object]]:
        """Return the messages as the model takes them.

        Raises:
            UsageError: A message has a field that is unknown here.
        """
        return [_read_message(message, index) for index, message in enumerate(self.messages)]

    def options(self) -> AnswerOptions:
        """Return what is asked for.

        Raises:
            EdgeError: Fields contradict each other, or a schema is none.
        """
        switches = self.chat_template_kwargs
        enable = None if switches is None else switches.enable_thinking
        options = read_thinking(self.reasoning_effort, self.think, enable, self.thinking_budget)
        options["sampling"] = self.sampling(self._num_logprobs())
        options["stop"] = read_stop(self.stop)
        limit = read_token_limit(self.max_completion_tokens, self.max_tokens)
        if limit is not None:
            options["max_new_tokens"] = limit
        if self.response_format is not None:
            output = _read_format(self.response_format)
            if output is not None:
                options["output"] = output
        if self.tools:
            options["tools"] = self.tools
        if self.tool_choice is not None:
            options["tool_choice"] = read_tool_choice(self.tool_choice)
        if self.parallel_tool_calls is not None:
            options["parallel_tool_calls"] = self.parallel_tool_calls
        return options

    def includes_usage(self) -> bool:
        """Whether the stream ends with the counts.

        Raises:
            UsageError: It is no stream.
        """
        if self.stream_options is not None and not self.stream:
            raise UsageError(
                "stream_options were given, but stream is not true.",
                "leave them out, or ask for a stream",
                param="stream_options",
            )
        return self.stream_options is not None and self.stream_options.include_usage

    def _num_logprobs(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise UsageError(
                "top_logprobs was given, but logprobs is not true.",
                "set logprobs to true, or leave top_logprobs out",
                param="top_logprobs",
            )
        return (self.top_logprobs or 0) if self.logprobs else None


def read_token_limit(limit: int | None, older: int | None) -> int | None:
    """Return how many tokens an answer may have, from two names for it.

    Raises:
        UsageError: They contradict each other.
    """
    if limit is not None and older is not None and limit != older:
        raise UsageError(
            f"max_completion_tokens is {limit:,} and max_tokens is {older:,}.",
            "give one of the two",
            param="max_tokens",
        )
    return older if limit is None else limit


def read_tool_choice(choice: str | Mapping[str, Any]) -> str:
    """Return a tool choice as the library names it.

    Raises:
        UsageError: It is no function's name.
    """
    if isinstance(choice, str):
        return choice
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    if choice.get("type") != "function" or not isinstance(name, str):
        raise UsageError(
            f"tool_choice has the type {choice.get('type')!r:.60} and the name {name!r:.60}; "
            "expected a function's.",
            'give "auto", "none", "required" or {"type": "function", "function": {"name": …}}',
            param="tool_choice",
        )
    return name


def _read_format(given: ResponseFormat) -> Any:
    if given.type == "json_schema":
        if given.json_schema is None:
            raise UsageError(
                "response_format has the type json_schema and no json_schema.",
                'add "json_schema": {"name": …, "schema": {…}}',
                param="response_format.json_schema",
            )
        return read_schema_format(given.type, given.json_schema.schema_)
    if given.json_schema is not None or (given.schema_ is not None and given.type == "text"):
        raise UsageError(
            f"response_format has a schema, but the type {given.type!r}.",
            "set the type to json_schema",
            param="response_format.type",
        )
    return read_schema_format(given.type, given.schema_)


# Of each role; what clients send back of an answer and means nothing to a model is dropped.
_FIELDS: Mapping[str, Sequence[str]] = {
    "system": ("content",),
    "developer": ("content",),
    "user": ("content",),
    "assistant": ("content", "tool_calls", "reasoning_content"),
    "tool": ("content", "tool_call_id"),
}
_WITHOUT_EFFECT = ("name",)
_EMPTY_ONLY = ("refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning")


def _read_message(message: Mapping[str, Any], index: int) -> dict[str, object]:
    """Return one message; roles and contents are the library's to check."""
    role = message.get("role")
    known = _FIELDS.get(role, ()) if isinstance(role, str) else ()
    read: dict[str, object] = {"role": role}
    reasoning = message.get("reasoning")
    if role == "assistant" and isinstance(reasoning, str):
        message = {"reasoning_content": reasoning, **message, "reasoning": None}
    for name, value in message.items():
        if name in known:
            read[name] = value
        elif name not in ("role", *_WITHOUT_EFFECT) and not (name in _EMPTY_ONLY and not value):
            raise UsageError(
                f"messages[{index}] has the field {name!r}, which a message of the role "
                f"{role!r:.40} does not have here.{did_you_mean(name, known)}",
                "leave it out",
                param=f"messages[{index}].{name}",
            )
    return read
