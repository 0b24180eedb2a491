"""The official client against a real server with the demo model: its documented calls."""

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from pydantic import BaseModel

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": PARAMETERS,
    },
}
FLAT_TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather of a city.",
    "parameters": PARAMETERS,
    "strict": True,
}
RESULT = '{"temperature": 17, "condition": "rain"}'
TOLD = "In Paris it is 17 degrees with rain."
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]


class Person(BaseModel):
    """What is read out of a text."""

    name: str
    age: int


EXTRACT = "Extract: Anna is 31 years old."


@pytest.fixture(scope="module")
def client(served: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served}/v1", api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_models_are_listed_and_found(client: openai.OpenAI, model: str) -> None:
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-5")
    assert caught.value.code == "model_not_found"


@pytest.mark.trust("T-SRV-13")
def test_an_answer_with_its_thoughts_and_counts(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0)
    message = answer.choices[0].message
    assert message.content == PARIS
    assert message.reasoning_content == message.reasoning == "I answer the question."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0
    again = client.chat.completions.create(
        model=model,
        messages=[
            *CAPITAL,
            {"role": "assistant", "content": PARIS},
            {"role": "user", "content": "And once more: what is the capital of France?"},
        ],
    )
    assert again.usage.prompt_tokens_details.cached_tokens is not None


@pytest.mark.parametrize(
    "switch",
    [
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"extra_body": {"think": False}},
        {"reasoning_effort": "none"},
    ],
    ids=["template", "think", "effort"],
)
def test_thinking_is_switched_off_by_any_of_its_names(
    client: openai.OpenAI, model: str, switch: Any
) -> None:
    answer = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0, **switch)
    assert answer.choices[0].message.content == PARIS
    assert not hasattr(answer.choices[0].message, "reasoning_content")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.trust("T-SRV-13", "T-GEN-10")
def test_a_stream_joined_is_the_whole_answer(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=CAPITAL, temperature=0)
    stream = client.chat.completions.create(
        model=model,
        messages=CAPITAL,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == PARIS
    thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    assert "".join(thoughts) == whole.choices[0].message.reasoning_content
    assert sum(bool(delta.content) for delta in deltas) > 3, "it came in one piece"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.trust("T-GEN-10")
def test_several_answers_with_a_seed_are_the_same_again(client: openai.OpenAI, model: str) -> None:
    def ask(seed: int, **options: Any) -> list[str]:
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Tell me something"}],
            n=3,
            seed=seed,
            temperature=5,
            max_tokens=12,
            reasoning_effort="none",
            extra_body={"top_k": 0, "top_p": 1.0},
            **options,
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = ask(7)
    assert len(set(first)) == 3
    assert ask(7) == first
    assert ask(-7) != first


def test_texts_that_end_an_answer_and_a_limit(client: openai.OpenAI, model: str) -> None:
    def ask(**options: Any) -> Any:
        answer = client.chat.completions.create(
            model=model, messages=CAPITAL, temperature=0, reasoning_effort="none", **options
        )
        return answer.choices[0].message.content, answer.choices[0].finish_reason

    assert ask(stop=" France") == ("The capital of", "stop")
    assert ask(stop=["xyz", "Paris"]) == ("The capital of France is ", "stop")
    assert ask(max_tokens=2) == ("The capital", "length")
    assert ask(max_completion_tokens=2) == ("The capital", "length")


def test_log_probabilities_belong_to_the_text(client: openai.OpenAI, model: str) -> None:
    request: Any = {
        "model": model,
        "messages": CAPITAL,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    answer = client.chat.completions.create(**request)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == PARIS
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in content)
    streamed = [
        token
        for chunk in client.chat.completions.create(**request, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in content]


def test_a_bias_changes_what_comes(client: openai.OpenAI, model: str) -> None:
    token = client.completions.create(
        model=model, prompt="The capital", max_tokens=1, logprobs=0, temperature=0
    )
    assert token.choices[0].logprobs is not None
    answer = client.chat.completions.create(
        model=model,
        messages=CAPITAL,
        temperature=0,
        reasoning_effort="none",
        max_tokens=3,
        logit_bias={"42": 100},
    )
    plain = client.chat.completions.create(
        model=model, messages=CAPITAL, temperature=0, reasoning_effort="none", max_tokens=3
    )
    assert answer.choices[0].message.content != plain.choices[0].message.content


@pytest.mark.trust("T-SRV-13")
def test_a_tool_is_called_and_its_result_answered(client: openai.OpenAI, model: str) -> None:
    first = client.chat.completions.create(
        model=model, messages=WEATHER, tools=[TOOL], temperature=0
    )
    call = first.choices[0].message.tool_calls[0]
    assert first.choices[0].finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Paris"},
    )
    second = client.chat.completions.create(
        model=model,
        messages=[
            *WEATHER,
            first.choices[0].message.to_dict(),
            {"role": "tool", "tool_call_id": call.id, "content": RESULT},
        ],
        tools=[TOOL],
        temperature=0,
    )
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content == TOLD


def test_a_streamed_call_joined_is_the_call(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model,
        messages=WEATHER,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        temperature=0,
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    call = final.choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_tools_may_be_forbidden(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=WEATHER, tools=[TOOL], tool_choice="none", temperature=0
    )
    assert answer.choices[0].message.tool_calls is None


@pytest.mark.trust("T-SRV-13")
def test_schemas_are_kept_to(client: openai.OpenAI, model: str) -> None:
    parsed = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": EXTRACT}],
        response_format=Person,
        temperature=0,
    )
    assert parsed.choices[0].message.parsed == Person(name="Anna", age=31)
    free = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": EXTRACT}],
        response_format={"type": "json_object"},
        temperature=0,
    )
    assert isinstance(json.loads(free.choices[0].message.content), dict)


@pytest.mark.trust("T-SRV-13")
def test_texts_are_gone_on_with(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt=["Hello", "Bye"], n=2, max_tokens=3, temperature=0, logprobs=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text
    stream = client.completions.create(
        model=model, prompt="Hello", max_tokens=3, temperature=0, stream=True
    )
    joined = "".join(chunk.choices[0].text for chunk in stream)
    assert joined == answer.choices[0].text


@pytest.mark.trust("T-SRV-13")
def test_a_response_and_the_next_one(client: openai.OpenAI, model: str) -> None:
    first = client.responses.create(
        model=model,
        input="What is the capital of France?",
        instructions="Be brief.",
        temperature=0,
        metadata={"a": "b"},
    )
    assert (first.status, first.output_text, first.metadata) == ("completed", PARIS, {"a": "b"})
    assert first.usage.output_tokens_details.reasoning_tokens > 0
    assert client.responses.retrieve(first.id).output_text == PARIS
    second = client.responses.create(
        model=model, input="Thank you!", previous_response_id=first.id, temperature=0
    )
    assert second.usage.input_tokens > first.usage.input_tokens - 10
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    unstored = client.responses.create(model=model, input="Hello", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


@pytest.mark.trust("T-SRV-13")
def test_a_streamed_response_joined_is_the_response(client: openai.OpenAI, model: str) -> None:
    with client.responses.stream(
        model=model, input="What is the capital of France?", temperature=0
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == PARIS
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts) == PARIS
    assert len(texts) > 3
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"


def test_a_response_calls_a_tool_and_reads_its_result(client: openai.OpenAI, model: str) -> None:
    items: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.responses.create(model=model, input=items, tools=[FLAT_TOOL], temperature=0)
    call = next(item for item in first.output if item.type == "function_call")
    assert json.loads(call.arguments) == {"city": "Paris"}
    items += [item.to_dict() for item in first.output]
    items.append(
        {
            "type": "function_call_output",
            "call_id": call.call_id,
            "output": RESULT,
        }
    )
    second = client.responses.create(model=model, input=items, tools=[FLAT_TOOL], temperature=0)
    assert second.output_text == TOLD


def test_a_response_keeps_to_a_schema_and_to_a_limit(client: openai.OpenAI, model: str) -> None:
    parsed = client.responses.parse(model=model, input=EXTRACT, text_format=Person, temperature=0)
    assert parsed.output_parsed == Person(name="Anna", age=31)
    cut = client.responses.create(
        model=model, input="What is the capital of France?", max_output_tokens=16
    )
    assert cut.status in ("completed", "incomplete")
    short = client.responses.create(
        model=model,
        input="What is the capital of France?",
        max_output_tokens=2,
        reasoning={"effort": "none"},
    )
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.trust("T-SRV-13")
@pytest.mark.parametrize(
    ("call", "param"),
    [
        (lambda c, m: c.chat.completions.create(model=m, messages=[]), "messages"),
        (
            lambda c, m: c.chat.completions.create(
                model=m, messages=CAPITAL, extra_body={"foo": 1}
            ),
            "foo",
        ),
        (
            lambda c, m: c.chat.completions.create(
                model=m,
                messages=[
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:"}}],
                    }
                ],
            ),
            "messages",
        ),
        (
            lambda c, m: c.chat.completions.create(model=m, messages=CAPITAL, temperature=-1),
            "temperature",
        ),
        (
            lambda c, m: c.chat.completions.create(
                model=m, messages=CAPITAL, logit_bias={"999999": 1}
            ),
            "logit_bias",
        ),
        (
            lambda c, m: c.responses.create(model=m, input="x", tools=[{"type": "web_search"}]),
            "tools[0]",
        ),
        (lambda c, m: c.completions.create(model=m, prompt="x", echo=True), "echo"),
    ],
    ids=["empty", "unknown", "image", "range", "bias", "hosted tool", "unsupported"],
)
def test_what_is_wrong_is_named(
    client: openai.OpenAI, model: str, call: Callable[[Any, str], Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        call(client, model)
    assert caught.value.param == param
    body: Any = caught.value.body
    assert body["fix"]


@pytest.mark.trust("T-GEN-08")
def test_a_conversation_that_does_not_fit_has_a_code_of_its_own(
    client: openai.OpenAI, model: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "word " * 9_000}]
        )
    assert caught.value.code == "context_length_exceeded"
