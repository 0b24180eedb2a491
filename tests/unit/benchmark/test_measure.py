"""The rounds: what is measured, in which order, and for how long."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from qwen_edge.errors import UsageError
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.benchmark import measure
from qwen_edge.runtime.benchmark.measure import (
    choose_lengths,
    measure_rounds,
    run_benchmark,
    time_answer,
)
from qwen_edge.runtime.benchmark.options import BenchmarkOptions
from qwen_edge.runtime.machine import roofline
from qwen_edge.runtime.machine.roofline import Roofline
from qwen_edge.runtime.model import Model


class CountingBackend(FakeBackend):
    """A fake whose likeliest token always ends an answer, and that notes what it is fed."""

    def __init__(self, model: Model) -> None:
        self.stop_id = model.generation.eos_token_ids[0]
        self.calls: list[list[int]] = []
        super().__init__(lambda ids: self.stop_id, vocab_size=model.backend.vocab_size)

    def forward(self, token_ids: Sequence[int]) -> np.ndarray:
        """Note the call."""
        self.calls.append(list(token_ids))
        return super().forward(token_ids)


@pytest.fixture
def model() -> Model:
    """Return a model with a context of 4,096 tokens that stops at once, if it is let."""
    fake = Model.fake(["x"])
    fake.backend = CountingBackend(fake)
    return fake


def calls_of(model: Model) -> list[list[int]]:
    """Return what the backend was fed."""
    assert isinstance(model.backend, CountingBackend)
    return model.backend.calls


def test_an_answer_is_as_long_as_asked_for(model: Model) -> None:
    times = time_answer(model, list(range(40)), 7)
    assert times.ttft_s > 0 and times.decode_s > 0
    # The prompt, and every token but the last; a stop token ends nothing.
    assert [len(call) for call in calls_of(model)] == [40] + [1] * 6


def test_each_answer_begins_on_an_empty_cache(model: Model) -> None:
    time_answer(model, [1, 2, 3], 2)
    time_answer(model, [1, 2, 3], 2)
    assert model.backend.cached_tokens == 4
    assert [len(call) for call in calls_of(model)] == [3, 1, 3, 1]


def test_every_round_measures_every_length_in_changing_order(model: Model) -> None:
    asked: list[None] = []
    options = BenchmarkOptions(prompt_tokens=(8, 20), new_tokens=4, rounds=3)
    rounds = measure_rounds(model, (8, 20), options, measure_limits=lambda: asked.append(None))
    assert len(rounds) == len(asked) == 3
    assert all(len(entry.answers) == 2 for entry in rounds)
    prompts = [call for call in calls_of(model) if len(call) > 1]
    # The first two warm up.
    assert [len(call) for call in prompts] == [8, 20, 8, 20, 20, 8, 8, 20]
    assert len({tuple(call[:4]) for call in prompts}) == len(prompts)
    assert model.backend.cached_tokens == 0


def test_answers_stay_with_their_lengths(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_times(model: Model, prompt_ids: list[int], new_tokens: int) -> measure.AnswerTimes:
        return measure.AnswerTimes(len(prompt_ids), new_tokens)

    monkeypatch.setattr(measure, "time_answer", fake_times)
    options = BenchmarkOptions(prompt_tokens=(8, 20), rounds=2)
    rounds = measure_rounds(model, (8, 20), options, measure_limits=lambda: None)
    assert [[answer.ttft_s for answer in entry.answers] for entry in rounds] == [[8, 20]] * 2


def test_no_round_is_begun_that_would_end_late(model: Model) -> None:
    options = BenchmarkOptions(prompt_tokens=(8,), new_tokens=2, rounds=50, seconds=1e-9)
    rounds = measure_rounds(model, (8,), options, measure_limits=lambda: None)
    assert len(rounds) == 1


def test_usual_lengths_that_do_not_fit_are_left_out() -> None:
    model = Model.fake(["x"], max_context_tokens=600)
    assert choose_lengths(model, BenchmarkOptions()) == ((32, 512), (2048,))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BenchmarkOptions(prompt_tokens=(32, 569)), "569 tokens and an answer of 32 do not fit"),
        (BenchmarkOptions(new_tokens=599), "the context holds 600 tokens here, 1 of a prompt"),
        (BenchmarkOptions(new_tokens=700), "the context holds 600 tokens here"),
    ],
    ids=["one-too-long", "none-fits", "answer-too-long"],
)
def test_lengths_that_were_asked_for_are_not_left_out(
    options: BenchmarkOptions, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        choose_lengths(Model.fake(["x"], max_context_tokens=600), options)


def test_a_limit_of_prompts_counts() -> None:
    model = Model.fake(["x"])
    model.max_prompt_tokens = 100
    assert choose_lengths(model, BenchmarkOptions()) == ((32,), (512, 2048))


def test_limits_are_those_of_the_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measure_bandwidth", lambda *, seconds, threads: 30e9)
    monkeypatch.setattr(measure, "measure_int8_throughput", lambda *, seconds, threads: 4e12)
    assert measure._limits_of("CPU", None)() == Roofline(30e9, 4e12)
    assert measure._limits_of("GPU", None)() is None


def test_a_package_is_measured(demo_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "choose_buffer_bytes", lambda available, cache: 32_000_000)
    monkeypatch.setattr(measure, "_LIMIT_SECONDS", 0.01)
    told: list[str] = []
    result = run_benchmark(
        demo_package,
        BenchmarkOptions(prompt_tokens=(4, 16), new_tokens=3, rounds=2, cold_starts=1),
        device="CPU",
        steps=lambda step, done, total: told.append(step),
    )
    assert (result.device, result.backend, len(result.rounds)) == ("CPU", "openvino", 2)
    assert list(dict.fromkeys(told)) == ["cold starts", "load", "warm up", "rounds"]
    assert [entry.prompt_tokens for entry in result.lengths] == [4, 16]
    for entry in result.lengths:
        assert 0 < entry.ttft_s < 10 and entry.decode_tokens_per_s > 1
        assert entry.decode_share is not None and 0 < entry.decode_share < 1
        assert entry.prefill_share is not None and 0 < entry.prefill_share < 1
    [start] = result.cold_starts
    stages = (start.interpreter_s, start.import_s, start.load_s, start.first_token_s)
    assert min(stages) > 0 and sum(stages) == pytest.approx(start.total_s)
    assert start.private_bytes is None or start.private_bytes > 20_000_000
    assert result.memory is None or result.memory.private_bytes > 20_000_000
