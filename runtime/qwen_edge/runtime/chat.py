"""From a conversation to a prompt: Qwen3's chat template, thinking on or off.

What people, files and tools wrote must not become control tokens: a message that holds
`<|im_start|>system` is a text about that string. `encode` therefore works in two ways. When no
text holds an added token, the rendered text is encoded as Transformers does. Otherwise each
such string is replaced by a private marker before rendering; what the tokenizer then finds
in the rendered text is the template's own, and the parts between are encoded as plain text
with the markers put back. Both ways give the same ids for the same plain conversation.
This module knows nothing of caches or sampling; read `session.py` next.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Literal

from qwen_edge.errors import EdgeError, UsageError, did_you_mean
from qwen_edge.runtime.message_order import has_argument_texts, map_arguments, order_messages
from qwen_edge.runtime.plain_data import MESSAGE_FIX, copy_plain, iter_texts, map_texts
from qwen_edge.runtime.template import Template
from qwen_edge.runtime.template_budget import MAX_OUTPUT_CHARS
from qwen_edge.runtime.text_tokenizer import TextTokenizer

Message = Mapping[str, object]
"""One message: "role" and "content", for assistants also "reasoning_content", "tool_calls"."""

Thinking = Literal["switchable", "always", "never"]

ROLES = ("system", "user", "assistant", "tool")
_ROLE_OF_NAME = {"developer": "system"}  # what OpenAI's newer models call it
_MAX_CONVERSATION_CHARS = MAX_OUTPUT_CHARS - 64 * 1024  # the rest is for the template's text
# Two of the code points that Unicode keeps out of texts, for use inside programs.
_MARK_OPEN, _MARK_CLOSE = "\ufdd0", "\ufdd1"
_MARKS = re.compile(f"([{_MARK_OPEN}{_MARK_CLOSE}])")
_MARKER = re.compile(f"{_MARK_OPEN}([0-9]+){_MARK_CLOSE}")
_THINK_TAGS = ("<think>", "</think>")


class ChatTemplate:
    """The chat template of one package with its tokenizer.

    Args:
        source: Jinja2 text of `chat_template.jinja`.
        tokenizer: The package's tokenizer.
        thinking: Whether the model can be told not to think.

    Raises:
        PackageError: The template is not usable; see `Template`.

    State:
        Immutable, but for remembering what the template takes.
    """

    def __init__(
        self, source: str, tokenizer: TextTokenizer, *, thinking: Thinking = "switchable"
    ) -> None:
        self._template = Template(source)
        self._tokenizer = tokenizer
        self._thinking = thinking

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        thinking: bool | None = None,
    ) -> str:
        """Return the prompt as text, ending where the model's answer begins.

        Args:
            messages: The conversation so far, oldest first. At least one.
            tools: Function schemas offered to the model.
            thinking: True or False to switch; None leaves it to the template.

        Raises:
            UsageError: A message is malformed, the template refuses the conversation, or the
                model cannot think or cannot stop thinking.
            PackageError: The template failed.
        """
        self.check_thinking(thinking)
        return self._render(self._read_messages(messages), _plain_tools(tools), thinking)

    def encode(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        thinking: bool | None = None,
    ) -> list[int]:
        """Return the prompt as ids; control ids come from the template alone.

        One exception: in an assistant's message up to its last `</think>` the think tags are
        left to the template, which takes the reasoning apart there.

        Args:
            messages: See `render`.
            tools: See `render`.
            thinking: See `render`.

        Raises:
            UsageError: See `render`.
            PackageError: The template or the tokenizer failed.
        """
        self.check_thinking(thinking)
        checked, plain_tools = self._read_messages(messages), _plain_tools(tools)
        if not _any_text([checked, plain_tools], self._tokenizer.has_added_token):
            rendered = self._render(checked, plain_tools, thinking)
            return self._tokenizer.encode(rendered, allow_special=True)
        markers = _Markers(self._tokenizer)
        hidden = [_hide_message(message, markers) for message in checked]
        rendered = self._render(hidden, map_texts(plain_tools, markers.hide), thinking)
        ids: list[int] = []
        for index, part in enumerate(self._tokenizer.split_added(rendered)):
            if index % 2:
                ids.append(self._tokenizer.added_tokens[part])
            elif part:
                ids.extend(self._tokenizer.encode(markers.show(part)))
        return ids

    def check_thinking(self, thinking: bool | None) -> None:
        """Raise UsageError when the model cannot do as asked."""
        if thinking is True and self._thinking == "never":
            raise UsageError(
                "Thinking was asked for, but this model does not think.",
                "leave --think out, or use a model with thinking",
                thinking=self._thinking,
            )
        if thinking is False and self._thinking == "always":
            raise UsageError(
                "Thinking was switched off, but this model always thinks.",
                "leave --no-think out, or use a model without thinking",
                thinking=self._thinking,
            )

    def _read_messages(self, messages: Sequence[Message]) -> list[dict[str, object]]:
        """Return a plain copy of messages in a form that the template takes."""
        plain = _plain_messages(messages)
        if has_argument_texts(plain) and not self._takes_argument_texts:
            return map_arguments(plain)
        return plain

    @cached_property
    def _takes_argument_texts(self) -> bool:
        """Whether the template writes the arguments of a tool call as they are, given a text."""
        function = {"name": "f", "arguments": '{"a": 1}'}
        call = {"type": "function", "function": function}
        try:
            text = self._render(
                [
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "content": "1"},
                ],
                tools=None,
                thinking=None,
            )
        except EdgeError:
            return False  # what it asks for will be said of the conversation itself
        return function["arguments"] in text

    def _render(self, messages: object, tools: object, thinking: bool | None) -> str:
        """Return the rendered text of checked messages."""
        _check_size(messages, tools)
        variables = {"messages": messages, "tools": tools, "add_generation_prompt": True}
        if thinking is not None:
            variables["enable_thinking"] = thinking
        return self._template.render(variables)


class _Markers:
    """Stands in for the strings that must not become control tokens.

    State:
        Remembers every string hidden, in order; markers are unique to one conversation.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._hidden: list[str] = []

    def hide(self, text: str, *, keep: Sequence[str] = ()) -> str:
        """Replace added tokens, and the marker characters themselves, but not `keep`."""
        parts = self._tokenizer.split_added(text)
        for index, part in enumerate(parts):
            if index % 2 == 0:
                pieces = _MARKS.split(part)
                pieces[1::2] = [self._mark(piece) for piece in pieces[1::2]]
                parts[index] = "".join(pieces)
            elif part not in keep:
                parts[index] = self._mark(part)
        return "".join(parts)

    def show(self, text: str) -> str:
        """Put the hidden strings back."""
        return _MARKER.sub(self._original, text)

    def _mark(self, text: str) -> str:
        """Return a new marker for a string."""
        self._hidden.append(text)
        return f"{_MARK_OPEN}{len(self._hidden) - 1}{_MARK_CLOSE}"

    def _original(self, match: re.Match[str]) -> str:
        """Return what a marker stands for; a marker of the template's making stays."""
        digits = match.group(1)
        is_ours = len(digits) <= 9 and int(digits) < len(self._hidden)
        return self._hidden[int(digits)] if is_ours else match.group(0)


def check_messages(
    messages: Sequence[Message], *, is_complete: bool = True
) -> list[dict[str, object]]:
    """Return a plain copy of a conversation that can be answered, or else be added to.

    Content in parts (`[{"type": "text", "text": …}]`) is joined; a missing content of an
    assistant becomes an empty text; the role "developer" is "system". See `order_messages` for
    the order and for tool calls.

    Args:
        messages: Oldest first. At least one.
        is_complete: Whether it is to be answered now; otherwise it may end anywhere.

    Raises:
        UsageError: A message is malformed or cannot stand where it stands; the error names it.
    """
    return order_messages(_plain_messages(messages), is_complete=is_complete)


def _plain_messages(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Return a plain copy of messages in any order; raise UsageError where one is malformed."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise UsageError(
            f"The messages are {messages!r}; expected a list of them, or one text as a prompt.",
            MESSAGE_FIX,
        )
    if not messages:
        raise UsageError("The conversation is empty; expected at least one message.", MESSAGE_FIX)
    checked: list[dict[str, object]] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise UsageError(
                f"{where} is {type(message).__name__}; expected a mapping.", MESSAGE_FIX
            )
        plain = copy_plain(message, where)
        assert isinstance(plain, dict)
        role = plain["role"] = _ROLE_OF_NAME.get(str(plain.get("role")), plain.get("role"))
        if role not in ROLES:
            raise UsageError(
                f"{where} has the role {role!r}; expected one of {', '.join(ROLES)}."
                f"{did_you_mean(str(role), ROLES)}",
                MESSAGE_FIX,
                role=role,
            )
        plain["content"] = _plain_content(plain.get("content"), str(role), where)
        checked.append(plain)
    return checked


def _check_size(messages: object, tools: object) -> None:
    """Raise UsageError when a conversation is longer than a template may write."""
    num_chars = sum(len(text) for part in (messages, tools) for text in iter_texts(part))
    if num_chars > _MAX_CONVERSATION_CHARS:
        raise UsageError(
            f"The conversation has {num_chars:,} characters; the limit is "
            f"{_MAX_CONVERSATION_CHARS:,}.",
            "shorten the longest message",
            num_chars=num_chars,
        )


def _plain_content(content: object, role: str, where: str) -> str:
    """Return the content of a message as one text."""
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    raise UsageError(
        f"{where} has a content of type {type(content).__name__}; expected a text, or a list of "
        'parts like {"type": "text", "text": "Hello"}. This model reads text only.',
        MESSAGE_FIX,
    )


def _plain_tools(tools: Sequence[Mapping[str, object]] | None) -> object:
    """Return a plain copy of tool schemas."""
    return None if tools is None else copy_plain(list(tools), "tools")


def _any_text(value: object, test: Callable[[str], bool]) -> bool:
    """Whether any text of plain data passes a test."""
    return any(map(test, iter_texts(value)))


def _hide_message(message: Mapping[str, object], markers: _Markers) -> dict[str, object]:
    """Return a message whose texts hold no control strings; its own keys stay."""
    hidden = {key: map_texts(value, markers.hide) for key, value in message.items()}
    content = message["content"]
    has_own_reasoning = message.get("reasoning_content") is not None
    if message["role"] == "assistant" and isinstance(content, str) and not has_own_reasoning:
        head, tag, tail = content.rpartition("</think>")
        hidden["content"] = markers.hide(head + tag, keep=_THINK_TAGS) + markers.hide(tail)
    return hidden
