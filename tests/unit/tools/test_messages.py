"""Calls and results as messages: rendered by Qwen3's template to what the model wrote."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from qwen_edge.runtime.chat import ChatTemplate
from qwen_edge.runtime.fake_model import make_fake_tokenizer
from qwen_edge.runtime.tools.messages import build_call_message, build_result_message
from qwen_edge.runtime.tools.tool_call import CallPiece, ToolCall

DATA = Path(__file__).parents[2] / "data"
Parse = Callable[[Iterable[str]], list[CallPiece]]
ASK = {"role": "user", "content": "Hi"}


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    """Return Qwen3's own template."""
    config = json.loads((DATA / "qwen3_tokenizer" / "tokenizer_config.json").read_text("utf-8"))
    return ChatTemplate(config["chat_template"], make_fake_tokenizer())


def test_messages() -> None:
    call = ToolCall("call_1", "search", {"query": "a"}, 0, '{"query": "a"}')
    assert build_call_message("Wait.", [call], reasoning="hm") == {
        "role": "assistant",
        "content": "Wait.",
        "reasoning_content": "hm",
        "tool_calls": [
            {
                "type": "function",
                "id": "call_1",
                "function": {"name": "search", "arguments": {"query": "a"}},
            }
        ],
    }
    assert build_result_message(call, "{}") == {
        "role": "tool",
        "content": "{}",
        "tool_call_id": "call_1",
        "name": "search",
    }
    assert build_call_message("Hi", []) == {"role": "assistant", "content": "Hi"}


@pytest.mark.parametrize(
    "arguments",
    [
        "{}",
        '{"query": "Köln", "n": [1, 2.5, null, true], "o": {"p": "\\n\\""}}',
        '{"query":"K\\u00f6ln"}',
        '{ "n": 1.50, "m": 1e5, "o": 0.10 }',
    ],
)
def test_a_conversation_is_rendered_as_it_was_generated(
    template: ChatTemplate, parse: Parse, arguments: str
) -> None:
    """What a turn wrote is in the cache; written otherwise it would be computed again."""
    wrote = [
        "Wait.",
        "\n",
        "<tool_call>",
        f'\n{{"name": "search", "arguments": {arguments}}}\n',
        "</tool_call>",
        "\n",
        "<tool_call>",
        '\n{"name": "get_time", "arguments": {}}\n',
        "</tool_call>",
    ]
    found = parse(wrote)
    text = "".join(piece for piece in found if isinstance(piece, str))
    calls = [piece for piece in found if isinstance(piece, ToolCall)]
    messages = [ASK, build_call_message(text, calls)]
    messages += [build_result_message(call, '{"ok": true}') for call in calls]
    # Reasoning of this turn would be rendered before it; see chat.py.
    rendered = template.render(messages, thinking=True)
    assert f"<|im_start|>assistant\n{''.join(wrote)}<|im_end|>\n" in rendered
    response = '<tool_response>\n{"ok": true}\n</tool_response>'
    assert f"<|im_start|>user\n{response}\n{response}<|im_end|>\n" in rendered
