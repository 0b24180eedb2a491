"""Many prompts in one call: results as they finish, each with its own tokens or its own error."""

from collections.abc import Callable
from typing import Any

import pytest

from qwen_edge.errors import ContextFullError, UsageError
from qwen_edge.runtime.batching.generate_batch import generate_batch
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams

Make = Callable[..., Any]


def sampled(index: int) -> TokenPicker:
    return TokenPicker(Sampler(SamplingParams(temperature=2.0, top_k=0, seed=index)))


def greedy(index: int) -> TokenPicker:
    return TokenPicker(Sampler(SamplingParams(temperature=0)))


@pytest.mark.parametrize("make_picker", [greedy, sampled])
def test_tokens_are_those_of_one_by_one(
    make_any_bench: Make, make_picker: Callable[[int], TokenPicker]
) -> None:
    prompts = [[length] * length for length in range(1, 20)]
    options: dict[str, Any] = {"make_picker": make_picker, "max_new_tokens": 40}
    options["stop_token_ids"] = [7]
    together = dict(generate_batch(make_any_bench().batcher, prompts, **options))
    one_by_one = {}
    for index, prompt in enumerate(prompts):
        options["make_picker"] = lambda _, index=index: make_picker(index)
        ((_, one_by_one[index]),) = generate_batch(make_any_bench().batcher, [prompt], **options)
    assert {index: result.token_ids for index, result in together.items()} == {
        index: result.token_ids for index, result in one_by_one.items()
    }
    assert {result.finish_reason for result in together.values()} == {"stop", "length"}


def test_results_come_as_they_finish(make_bench: Make) -> None:
    bench = make_bench(script=lambda token_ids: 7 if len(token_ids) > 12 else 9)
    prompts = [[1] * length for length in (1, 12, 6)]
    results = generate_batch(
        bench.batcher, prompts, make_picker=greedy, max_new_tokens=20, stop_token_ids=[7]
    )
    assert [index for index, _ in results] == [1, 2, 0]


def test_a_refused_prompt_does_not_keep_the_others(make_bench: Make) -> None:
    bench = make_bench(num_blocks=5, script=lambda token_ids: 9)
    prompts = [[1], [1] * 30, [99], [2]]
    results = dict(generate_batch(bench.batcher, prompts, make_picker=greedy, max_new_tokens=3))
    assert [type(results[index].error) for index in range(4)] == [
        type(None),
        ContextFullError,
        UsageError,
        type(None),
    ]
    assert results[3].token_ids == (9, 9, 9)


def test_a_full_queue_is_waited_for(make_bench: Make) -> None:
    bench = make_bench(max_waiting=1, max_running=2, script=lambda token_ids: 9)
    other = bench.ask([5], 4, stops=False)
    prompts = [[seed] for seed in range(7)]
    results = dict(generate_batch(bench.batcher, prompts, make_picker=greedy, max_new_tokens=3))
    assert {result.token_ids for result in results.values()} == {(9, 9, 9)}
    assert len(results) == 7
    assert other.wait().finish_reason == "length"


def test_closing_cancels_what_is_not_done(make_bench: Make) -> None:
    bench = make_bench(script=lambda token_ids: 7 if token_ids[0] == 1 else 9)
    results = generate_batch(
        bench.batcher, [[1], [2], [3]], make_picker=greedy, max_new_tokens=50, stop_token_ids=[7]
    )
    assert next(results)[0] == 0
    assert bench.batcher.statistics().num_running == 2
    results.close()
    bench.check_nothing_leaked()
