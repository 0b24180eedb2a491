"""Sessions: several answers, edits, branches, budgets, formats, tools, overflow, probabilities."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import ContextFullError, UsageError
from qwen_edge.runtime.decoding.sampling import SamplingParams
from qwen_edge.runtime.loading import load
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.structured.output_format import OutputFormat

GREEDY = SamplingParams(temperature=0.0)
SUM_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def test_several_answers_leave_the_conversation_alone_and_compute_the_prompt_once() -> None:
    model = Model.fake(["abc"])
    chat = model.session(system="S")
    answers = chat.ask_several("Hi", n=3, sampling=SamplingParams(temperature=2.0, seed=1))
    assert len(answers) == 3
    assert len({answer.token_ids for answer in answers}) == 3  # each has its own seed
    assert chat.messages == ({"role": "system", "content": "S"},)
    assert [answer.timings.prefill_tokens for answer in answers][1:] == [1, 1]
    chat.add({"role": "user", "content": "Hi"}, answers[1].message)
    assert chat.messages[-1]["content"] == answers[1].text
    with pytest.raises(UsageError, match="n is 0"):
        chat.ask_several("Hi", n=0)


def test_turns_can_be_forgotten_edited_and_branched() -> None:
    chat = Model.fake(["one", "two", "three"]).session()
    chat.ask("a")
    chat.ask("b")
    branch = chat.branch()
    chat.rollback()
    assert [message["content"] for message in chat.messages] == ["a", "one"]
    assert len(branch.messages) == 4
    assert branch.ask("c").text == "three"
    assert branch.edit(2, "again").text == "two"
    assert [message["content"] for message in branch.messages] == ["a", "one", "again", "two"]
    with pytest.raises(UsageError, match="1 turns"):
        chat.rollback(2)
    with pytest.raises(UsageError, match="user messages are at"):
        chat.edit(1, "x")
    assert len(chat.messages) == 2


def test_a_budget_ends_the_thought_and_the_answer_follows() -> None:
    model = Model.fake(["<think>\n" + "m" * 400 + "\n</think>\n\nHello"])
    chat = model.session(sampling=GREEDY)
    answer = chat.ask("Hi", thinking_budget=200, max_new_tokens=600)
    assert answer.reasoning.startswith("m" * 190)
    assert "Considering the limited time" in answer.reasoning
    assert answer.text != ""
    assert 200 < answer.timings.reasoning_tokens < 400
    assert answer.timings.forced_tokens > 50  # a token of this model is a byte
    with pytest.raises(UsageError, match="thinking is switched off"):
        chat.ask("Hi", thinking_budget=5, thinking=False)


def test_a_limit_on_the_answer_ends_the_thought_in_time() -> None:
    model = Model.fake(["<think>\n" + "m" * 900])
    answer = model.session(sampling=GREEDY).ask("Hi", max_new_tokens=800)
    assert answer.finish_reason == "length"
    assert answer.text != ""


def test_a_format_is_kept_after_the_thought() -> None:
    model = Model.fake(["<think>\nyes?\n</think>\n\nno way"])
    chat = model.session(sampling=GREEDY, output=OutputFormat.choice(["yes", "no"]))
    answer = chat.ask("Hi")
    assert (answer.reasoning, answer.text, answer.finish_reason) == ("yes?", "no", "stop")
    assert answer.timings.forced_tokens >= 2


def test_a_bad_format_is_refused_and_the_session_goes_on() -> None:
    chat = Model.fake(["Hello"]).session()
    with pytest.raises(UsageError):
        chat.stream("Hi", output=OutputFormat.regex("("))
    assert chat.messages == ()
    assert chat.ask("Hi").text == "Hello"


def test_functions_are_called_and_their_results_answered() -> None:
    chat = Model.fake([SUM_CALL, "It is 3."]).session(sampling=GREEDY)
    answer = chat.ask_with_tools("1 + 2?", tools=[add])
    assert answer.text == "It is 3."
    roles = [message["role"] for message in chat.messages]
    assert roles == ["user", "assistant", "tool", "assistant"]
    assert chat.messages[2]["content"] == "3"


def test_calls_come_as_events() -> None:
    chat = Model.fake(["Wait. " + SUM_CALL]).session(sampling=GREEDY)
    events = list(chat.stream("1 + 2?", tools=[add]))
    kinds = [event.kind for event in events]
    assert kinds[0] == "answer"
    assert kinds[-2:] == ["tool_call", "done"]
    assert events[-1].finish_reason == "tool_calls"
    call = events[-2].tool_call
    assert call is not None
    assert (call.name, dict(call.arguments)) == ("add", {"a": 1, "b": 2})
    deltas = [event.tool_call_delta for event in events if event.tool_call_delta]
    assert "".join(delta.arguments_text for delta in deltas) == '{"a": 1, "b": 2}'


def test_a_call_that_is_cut_off_is_text_and_an_error_where_it_was_to_be_run() -> None:
    chat = Model.fake([SUM_CALL]).session(sampling=GREEDY)
    answer = chat.ask("1 + 2?", tools=[add], max_new_tokens=30)
    assert (answer.tool_calls, answer.finish_reason) == ((), "length")
    assert answer.is_call_cut_off
    assert answer.text.startswith("<tool_call>")
    chat.rollback()
    with pytest.raises(ContextFullError, match="in the middle of a tool call"):
        chat.ask_with_tools("1 + 2?", tools=[add], max_new_tokens=30)
    chat.rollback()
    assert chat.ask("Hi", tools=[add], tool_choice="none").finish_reason == "stop"


def test_a_model_that_never_stops_calling_is_stopped() -> None:
    chat = Model.fake([SUM_CALL]).session(sampling=GREEDY)
    with pytest.raises(UsageError, match="still calls tools after 2 rounds"):
        chat.ask_with_tools("1 + 2?", tools=[add], max_rounds=2)
    assert chat.messages[-1]["role"] == "tool"


@pytest.mark.parametrize("tools", [[add, add], [lambda x: x], [{"name": "bad name"}]])
def test_bad_tools_are_refused_before_the_first_token(tools: list[object]) -> None:
    chat = Model.fake(["Hello"]).session()
    with pytest.raises(UsageError):
        chat.stream("Hi", tools=tools)  # type: ignore[arg-type]
    assert chat.ask("Hi").text == "Hello"


def test_old_turns_are_dropped_when_asked_and_reported() -> None:
    chat = Model.fake(["a" * 60], max_context_tokens=600).session(on_overflow="drop-oldest")
    assert chat.ask("q" * 40).dropped_messages == ()
    sizes = [len(chat.messages)]
    dropped = 0
    for _ in range(8):
        answer = chat.ask("q" * 40)
        dropped += len(answer.dropped_messages)
        sizes.append(len(chat.messages))
    assert dropped > 0
    assert max(sizes) < 24
    assert chat.messages[0]["role"] == "user"
    with pytest.raises(ContextFullError, match=r"719.*599"):
        chat.ask("q" * 700)
    with pytest.raises(ContextFullError):
        chat.ask("q" * 500, on_overflow="refuse")


def test_probabilities_come_with_the_ids() -> None:
    chat = Model.fake(["abc"]).session()
    sampling = dataclasses.replace(GREEDY, num_logprobs=2)
    events = list(chat.stream("Hi", sampling=sampling))
    for event in events:
        assert len(event.logprobs) == len(event.token_ids)
    first = events[0].logprobs[0]
    assert first is not None
    assert first.top[0] == (events[0].token_ids[0], pytest.approx(first.logprob))
    assert chat.ask("Hi").logprobs == ()


def test_stop_ids_of_the_caller_end_the_answer() -> None:
    chat = Model.fake(["abc"]).session()
    sampling = dataclasses.replace(GREEDY, stop_token_ids=[ord("b")])
    answer = chat.ask("Hi", sampling=sampling)
    assert (answer.text, answer.finish_reason) == ("a", "stop")


def test_guessing_ahead_changes_nothing_but_the_calls() -> None:
    text = "the cat sat on the mat and the cat sat on the mat and the cat sat on the mat"
    counts = []
    for speculate in (False, True):
        model = Model.fake([text])
        answer = model.session(speculate=speculate).ask("Hi")
        assert answer.text == text
        assert (answer.speculation is not None) == speculate
        counts.append(len(answer.token_ids))
    assert counts[0] == counts[1]


def test_a_thought_leaves_room_for_the_shortest_whole_answer() -> None:
    """Found in review: a quarter of the limit is less than some schemas need."""
    schema = {
        "type": "object",
        "properties": {f"number_{index}": {"type": "integer"} for index in range(6)},
        "required": [f"number_{index}" for index in range(6)],
        "additionalProperties": False,
    }
    model = Model.fake(["<think>\n" + "m" * 3_000])
    output = OutputFormat.json_schema(schema)
    answer = model.session(sampling=GREEDY).ask("Hi", output=output, max_new_tokens=300)
    assert set(json.loads(answer.text)) == set(schema["properties"])  # type: ignore[call-overload]
    assert answer.reasoning.startswith("mmm")


def test_a_conversation_goes_on_after_calls_that_were_not_run() -> None:
    """Found in review: an unanswered call made every later question an error."""
    chat = Model.fake([SUM_CALL + "\n" + SUM_CALL, "Hello"]).session(sampling=GREEDY)
    with pytest.raises(ContextFullError):
        chat.ask_with_tools("?", tools=[add], max_new_tokens=len(SUM_CALL) - 15)
    assert chat.ask("Hi").text == "Hello"

    def interrupted(a: int, b: int) -> int:
        """Add two numbers."""
        raise KeyboardInterrupt

    interrupted.__name__ = "add"
    chat = Model.fake([SUM_CALL, "Hello"]).session(sampling=GREEDY)
    with pytest.raises(KeyboardInterrupt):
        chat.ask_with_tools("?", tools=[interrupted])
    assert chat.ask("Hi").text == "Hello"


def test_cancelling_while_a_tool_runs_ends_the_rounds() -> None:
    chat = Model.fake([SUM_CALL]).session(sampling=GREEDY)

    def cancelling(a: int, b: int) -> int:
        """Add two numbers."""
        chat.cancel()
        return a + b

    cancelling.__name__ = "add"
    answer = chat.ask_with_tools("1 + 2?", tools=[cancelling])
    assert answer.finish_reason == "cancelled"
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool"]
    assert chat.ask("Hi").finish_reason is not None


def test_the_conversation_is_changed_by_no_one_else() -> None:
    chat = Model.fake(["Hello"]).session(sampling=GREEDY)
    chat.ask("Hi")
    chat.messages[0]["content"] = "Bye"
    assert chat.messages[0]["content"] == "Hi"


def test_calls_are_run_as_often_as_said() -> None:
    calls = []

    def count(a: int, b: int) -> int:
        """Add two numbers."""
        calls.append((a, b))
        return a + b

    count.__name__ = "add"
    for max_rounds, expected in ((0, 0), (2, 2)):
        calls.clear()
        chat = Model.fake([SUM_CALL]).session(sampling=GREEDY)
        with pytest.raises(UsageError, match="still calls tools"):
            chat.ask_with_tools("?", tools=[count], max_rounds=max_rounds)
        assert len(calls) == expected
    for wrong in (-1, "3", True):
        with pytest.raises(UsageError, match="max_rounds"):
            chat.ask_with_tools("?", tools=[count], max_rounds=wrong)  # type: ignore[arg-type]


def test_the_conversation_is_not_changed_under_an_answer() -> None:
    chat = Model.fake(["abc"]).session()
    stream = chat.stream("Hi")
    next(stream)
    for change in (chat.rollback, lambda: chat.add({"role": "user", "content": "x"})):
        with pytest.raises(UsageError, match="An answer is being made"):
            change()
    for event in stream:
        if event.kind == "done":
            chat.rollback()
    assert chat.messages == ()


def test_an_answers_own_wish_goes_before_a_default_that_contradicts_it() -> None:
    model = Model.fake(["yes"])
    assert model.session(thinking_budget=5).ask("Hi", thinking=False).text == "yes"
    output = OutputFormat.choice(["yes", "no"])
    assert model.session(output=output).ask("Hi", tools=[add]).text == "yes"
    assert model.session(tools=[add]).ask("Hi", output=output).text == "yes"


def test_a_loaded_session_takes_options(tmp_path: Path) -> None:
    model = Model.fake(["abc", "def"])
    chat = model.session(system="S")
    chat.ask("Hi")
    chat.save(tmp_path / "saved")
    restored = model.load_session(tmp_path / "saved", max_new_tokens=2)
    assert restored.messages == chat.messages
    assert restored.ask("Ho").text == "de"


@pytest.mark.parametrize("prompt", [5, b"Hi", {"role": "user"}, [5]])
def test_what_is_no_prompt_is_refused(prompt: object) -> None:
    chat = Model.fake(["abc"]).session()
    with pytest.raises(UsageError):
        chat.ask(prompt)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "keys"), [({}, ["a"]), ({"additionalProperties": True}, ["a", "b"])]
)
def test_an_answer_has_the_entries_its_schema_names(more: dict[str, bool], keys: list[str]) -> None:
    """A small model would go on with entries of its own until the limit."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, **more}
    chat = Model.fake(['{"a": 1, "b": 2}']).session(sampling=GREEDY)
    answer = chat.ask("Hi", output=OutputFormat.json_schema(schema), thinking=False)
    assert [*json.loads(answer.text)] == keys


def test_what_is_no_path_or_no_list_of_ids_is_refused() -> None:
    model = Model.fake(["abc"])
    chat = model.session()
    refused: list[Any] = [
        lambda: chat.save(5),  # type: ignore[arg-type]
        lambda: model.load_session(None),  # type: ignore[arg-type]
        lambda: load(5),  # type: ignore[arg-type]
        lambda: model.generate("hello"),  # type: ignore[arg-type]
        lambda: model.generate([1.5]),  # type: ignore[list-item]
        lambda: model.session(system=5),  # type: ignore[arg-type]
    ]
    for call in refused:
        with pytest.raises(UsageError):
            call()
    assert chat.ask("Hi").text == "abc"
