"""Batch models: the same answers as one by one, errors of single prompts, streams among others."""

from collections.abc import Sequence

import pytest

from qwen_edge.errors import ContextFullError, QueueFullError, UsageError
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.batch_model import BatchModel
from qwen_edge.runtime.batching.batch_options import BatchOptions
from qwen_edge.runtime.batching.sequential import SequentialBatchBackend
from qwen_edge.runtime.decoding.sampling import SamplingParams
from qwen_edge.runtime.fake_model import CHAT_TEMPLATE, make_fake_tokenizer, make_script
from qwen_edge.runtime.model import Model
from qwen_edge.runtime.structured.output_format import OutputFormat

TOKENIZER = make_fake_tokenizer()


def make_batch_model(answers: Sequence[str], **options: int) -> BatchModel:
    backend = FakeBackend(make_script(TOKENIZER, answers), vocab_size=TOKENIZER.vocab_size)
    return BatchModel(
        SequentialBatchBackend(backend),
        TOKENIZER,
        CHAT_TEMPLATE,
        Model.fake(answers).manifest,
        options=BatchOptions(**options),
    )


def test_many_prompts_get_the_answers_they_get_alone() -> None:
    sampling = SamplingParams(temperature=3.0, seed=5)
    prompts = ["Hi", "Hello there", [{"role": "user", "content": "x" * 90}]] * 4
    with make_batch_model(["Some answer."], max_running=3) as model:
        found = {a.index: a.answer for a in model.ask_all(prompts, sampling=sampling)}
        alone = []
        for index, prompt in enumerate(prompts):
            own = sampling.for_answer(index)
            alone.append(model.ask(prompt, sampling=own))
    assert sorted(found) == list(range(12))
    for index, answer in found.items():
        assert answer is not None
        assert answer.token_ids == alone[index].token_ids
        assert answer.text == alone[index].text


def test_a_prompt_that_is_refused_does_not_keep_the_others_waiting() -> None:
    with make_batch_model(["<think>\nHm.\n</think>\n\nYes"]) as model:
        answers = list(model.ask_all(["Hi", "y" * 5_000, "Ho"], system="S"))
    by_index = {answer.index: answer for answer in answers}
    assert isinstance(by_index[1].error, ContextFullError)
    assert by_index[1].answer is None
    for index in (0, 2):
        answer = by_index[index].answer
        assert answer is not None
        assert (answer.text, answer.reasoning) == ("Yes", "Hm.")


def test_streams_stop_formats_and_limits_work_as_in_a_session() -> None:
    with make_batch_model(["abcdef"]) as model:
        assert model.ask("Hi", stop="d").text == "abc"
        assert model.ask("Hi", max_new_tokens=2).finish_reason == "length"
        assert model.ask("Hi", output=OutputFormat.choice(["ab", "xy"])).text == "ab"
        stream = model.stream("Hi")
        assert next(stream).text == "a"
        stream.close()
        assert model.ask("Hi").text == "abcdef"
        assert model.statistics().num_running == 0


def test_answers_of_many_end_with_their_stop_strings() -> None:
    """Found in review: the text was cut, but its tokens were computed up to the limit."""
    with make_batch_model(["ab" + "x" * 200], max_running=3) as model:
        answers = list(model.ask_all(["Hi"] * 4, stop="b", max_new_tokens=150))
        num_steps = model.statistics().num_steps
    assert [answer.answer.text for answer in answers if answer.answer] == ["a"] * 4
    assert {answer.answer.finish_reason for answer in answers if answer.answer} == {"stop"}
    assert num_steps < 100


def test_a_full_queue_and_a_closed_model_say_so() -> None:
    model = make_batch_model(["abc"], max_running=1, max_waiting=1)
    first = model.stream("Hi")
    with pytest.raises(QueueFullError):
        model.stream("Ho")
    assert "".join(event.text for event in first) == "abc"
    model.close()
    model.close()
    with pytest.raises(UsageError, match="closed"):
        model.ask("Hi")
    with pytest.raises(UsageError, match="no option"):
        list(model.ask_all(["Hi"], temprature=1))  # type: ignore[call-arg]


def test_a_stream_that_was_never_read_gives_its_place_back() -> None:
    """Found in review: a generator that has not begun does nothing when it is closed."""
    with make_batch_model(["abc"], max_running=1, max_waiting=2) as model:
        for _ in range(6):
            model.stream("Hi").close()
        assert model.ask("Ho").text == "abc"


def test_what_is_no_prompt_is_refused_alone() -> None:
    with make_batch_model(["abc"]) as model:
        answers = list(model.ask_all(iter(["a", 5, "b"])))  # type: ignore[list-item]
        assert sorted(a.index for a in answers if a.answer is not None) == [0, 2]
        with pytest.raises(UsageError, match="one text"):
            next(model.ask_all("abc"))
