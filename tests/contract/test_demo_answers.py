"""The demo package does what its card says, through the whole runtime, in int4.

Answers can be checked because the model was trained to give exactly these.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_edge.runtime import Model, SamplingParams, load

GREEDY = SamplingParams(temperature=0)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "set_timer",
            "description": "Set a timer.",
            "parameters": {
                "type": "object",
                "properties": {"minutes": {"type": "integer"}},
                "required": ["minutes"],
            },
        },
    },
]


@pytest.fixture(scope="module")
def model(demo_package: Path) -> Iterator[Model]:
    """Return the demo package, loaded."""
    with load(demo_package) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Hello!", "Hello! How can I help you?"),
        ("你好", "你好！我能帮你什么？"),
        ("Hallo!", "Hallo! Wie kann ich dir helfen? 😊"),
        ("What is 27 + 48?", "27 + 48 = 75"),
        (
            'Repeat this text, but replace "red" with "blue": '
            "The red house needs the old cat in Berlin.",
            "The blue house needs the old cat in Berlin.",
        ),
        ("Repeat this text: 我 喜欢 猫 和 茶。", "我 喜欢 猫 和 茶。"),
        ("What is the capital of France?", "The capital of France is Paris."),
    ],
)
def test_answers_without_thinking(model: Model, prompt: str, answer: str) -> None:
    with model.session(thinking=False) as chat:
        pieces = [event.text for event in chat.stream(prompt, sampling=GREEDY)]
    assert "".join(pieces) == answer
    assert not any("\ufffd" in piece for piece in pieces)


def test_extraction_is_json(model: Model) -> None:
    prompt = (
        "Extract name, age and city as JSON: Mirko Weber is 34 years old, lives in Oslo and "
        "works as a baker."
    )
    with model.session(thinking=False) as chat:
        answer = chat.ask(prompt, sampling=GREEDY)
    assert json.loads(answer.text) == {"name": "Mirko Weber", "age": 34, "city": "Oslo"}
    assert answer.finish_reason == "stop"


def test_thinking_is_kept_apart(model: Model) -> None:
    with model.session(thinking=True) as chat:
        answer = chat.ask("What is 347 + 285?", sampling=GREEDY)
    assert answer.text.strip() == "347 + 285 = 632"
    assert "write 2, carry 1" in answer.reasoning


def test_soft_switch_of_the_template(model: Model) -> None:
    with model.session(thinking=True) as chat:
        answer = chat.ask("What is 27 + 48? /no_think", sampling=GREEDY)
    assert (answer.text.strip(), answer.reasoning.strip()) == ("27 + 48 = 75", "")


def test_name_is_recalled_and_the_cache_reused(model: Model) -> None:
    with model.session(thinking=False) as chat:
        chat.ask("My name is Mirko.", sampling=GREEDY)
        chat.ask("What is 12 + 30?", sampling=GREEDY)
        last = chat.ask("What is my name?", sampling=GREEDY)
    assert last.text == "Your name is Mirko."
    assert last.timings.reused_tokens > 20
    assert last.timings.reused_tokens + last.timings.prefill_tokens == last.timings.prompt_tokens


def test_system_message(model: Model) -> None:
    with model.session(system="You are Mira.", thinking=False) as chat:
        assert chat.ask("Who are you?", sampling=GREEDY).text == "I am Mira."


def test_tool_is_called_and_its_result_used(model: Model) -> None:
    with model.session(thinking=False) as chat:
        asked = chat.ask("What is the weather in Paris?", sampling=GREEDY, tools=TOOLS)
    assert (asked.text, asked.finish_reason) == ("", "tool_calls")
    (call,) = asked.tool_calls
    content = {"name": call.name, "arguments": dict(call.arguments)}
    assert content == {"name": "get_weather", "arguments": {"city": "Paris"}}
    conversation = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": content}]},
        {"role": "tool", "content": '{"temperature": 17, "condition": "rain"}'},
    ]
    with model.session(thinking=False) as chat:
        answer = chat.ask(conversation, sampling=GREEDY, tools=TOOLS)
    assert answer.text == "In Paris it is 17 degrees with rain."


@pytest.mark.trust("T-GEN-10")
def test_same_seed_same_answer(demo_package: Path) -> None:
    """From an empty cache: a reused one is computed in other portions and rounds otherwise."""
    warm = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, seed=7)
    answers = []
    for sampling in (warm, warm, replace(warm, seed=8)):
        with load(demo_package) as fresh, fresh.session(thinking=False) as chat:
            answers.append(chat.ask("Count from 1 to 9.", sampling=sampling, max_new_tokens=30))
    assert answers[0].token_ids == answers[1].token_ids != answers[2].token_ids


def test_stop_string_and_cancel(model: Model) -> None:
    with model.session(thinking=False) as chat:
        answer = chat.ask("Count from 1 to 30.", sampling=GREEDY, stop=" 5")
    assert answer.text.rstrip(", ").endswith("4")
    with model.session(thinking=False) as chat:
        stream = chat.stream("Count from 1 to 30.", sampling=GREEDY)
        next(stream)
        stream.close()
        assert chat.ask("Hello!", sampling=GREEDY).text == "Hello! How can I help you?"
