"""The batcher: who runs, who waits, and that nothing changes an answer.

The fake engine reads each context back from its blocks, so a wrong table, a block written twice
or a beginning of another request shows as a wrong token.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.errors import ContextFullError, DeviceError, ParityError, QueueFullError, UsageError
from qwen_edge.runtime.batching.batch_options import BatchOptions
from qwen_edge.runtime.decoding.constraint import Bitmask
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams

Make = Callable[..., Any]
Alone = Callable[..., list[int]]
GREEDY = SamplingParams(temperature=0)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(8, 64, length).tolist()


@pytest.mark.trust("T-GEN-10")
def test_answers_are_those_of_each_alone(make_any_bench: Make, alone: Alone) -> None:
    bench = make_any_bench()
    prompts = [prompt_of(length, length) for length in (1, 3, 4, 5, 8, 30)]
    handles = [bench.ask(prompt, 20) for prompt in prompts]
    answers = [list(handle.wait().token_ids) for handle in handles]
    assert answers == [alone(prompt, 20) for prompt in prompts]
    bench.check_nothing_leaked()


def test_sequences_share_steps(make_bench: Make) -> None:
    bench = make_bench()
    handles = [bench.ask(prompt_of(3, seed), 5) for seed in range(4)]
    for handle in handles:
        handle.wait()
    longest = max(len(handle.read()) for handle in handles)
    assert bench.batcher.statistics().num_steps == longest


def test_requests_join_and_leave_between_steps(make_bench: Make, alone: Alone) -> None:
    bench = make_bench(script=lambda ids: 9)
    first = bench.ask([1, 2], 9)
    bench.batcher.step()
    second = bench.ask([3], 2)
    bench.batcher.step()
    assert (len(first.read()), len(second.read())) == (2, 1)
    bench.batcher.step()
    assert (len(first.read()), second.is_done) == (3, True)
    assert second.result().finish_reason == "length"


def test_a_running_answer_gets_a_token_per_step_while_a_long_prompt_is_read(
    make_any_bench: Make,
) -> None:
    bench = make_any_bench(num_blocks=1_000, shared_step_tokens=64)
    short = bench.ask([5], 60, stops=False)
    bench.batcher.step()
    long = bench.ask(prompt_of(2_000), 2)
    num_steps = 0
    while not long.read() and not short.is_done:
        num_given = len(short.read())
        bench.batcher.step()
        num_steps += 1
        assert len(short.read()) == num_given + 1
    assert num_steps == -(-2_000 // 64)


def test_alone_a_prompt_is_read_in_long_pieces(make_bench: Make) -> None:
    bench = make_bench(num_blocks=300, step_tokens=512)
    bench.ask(prompt_of(1_000), 1).wait()
    assert bench.batcher.statistics().num_steps == 2


def test_a_common_beginning_is_computed_once(make_bench: Make, alone: Alone) -> None:
    bench = make_bench()
    common = prompt_of(40)
    for tail in ([8], [9, 10], []):
        assert list(bench.ask([*common, *tail]).wait().token_ids) == alone([*common, *tail])
    statistics = bench.batcher.statistics()
    # Of the last prompt, one whole block is computed again: its logits are needed.
    assert (statistics.prompt_tokens, statistics.hit_tokens) == (41 + 42 + 40, 40 + 36)


def test_a_beginning_that_is_being_computed_is_waited_for(make_bench: Make, alone: Alone) -> None:
    bench = make_bench(num_blocks=200, step_tokens=16)
    common = prompt_of(60)
    prompts = [[*common, tail] for tail in (8, 9, 10)]
    handles = [bench.ask(prompt) for prompt in prompts]
    answers = [list(handle.wait().token_ids) for handle in handles]
    assert answers == [alone(prompt) for prompt in prompts]
    assert bench.batcher.statistics().hit_tokens == 2 * 60
    assert bench.backend.num_blocks_cached >= 15


@pytest.mark.parametrize("reuses_answers", [False, True])
def test_a_prompt_may_go_on_from_an_answer(
    make_bench: Make, alone: Alone, reuses_answers: bool
) -> None:
    bench = make_bench(reuses_answers=reuses_answers)
    prompt = prompt_of(8)
    answer = list(bench.ask(prompt, 20).wait().token_ids)
    assert len(answer) >= 9
    handle = bench.ask([*prompt, *answer, 5])
    assert list(handle.wait().token_ids) == alone([*prompt, *answer, 5])
    assert handle.num_reused == ((8 + len(answer) - 1) // 4 * 4 if reuses_answers else 8)


def test_lack_of_memory_puts_the_youngest_back(make_any_bench: Make, alone: Alone) -> None:
    prompts = [prompt_of(8, seed) for seed in (1, 3, 4)]
    bench = make_any_bench(num_blocks=12)
    options = {"stops": False, "is_forced": True}
    handles = [bench.ask(prompt, 30, **options) for prompt in prompts]
    done: list[int] = []
    while len(done) < 3:
        num_given = len(handles[0].read())
        bench.batcher.step()
        # The oldest gets its token in every step, whoever else runs.
        assert handles[0].is_done or len(handles[0].read()) > num_given
        done += [i for i, handle in enumerate(handles) if handle.is_done and i not in done]
    assert done == [0, 1, 2]
    assert bench.batcher.statistics().num_preemptions > 1
    assert [list(handle.result().token_ids) for handle in handles] == [
        alone(prompt, 30, **options) for prompt in prompts
    ]
    bench.check_nothing_leaked()


def test_requests_begin_in_the_order_they_came(make_bench: Make) -> None:
    """A short one does not overtake a long one for which there is no room yet."""
    bench = make_bench(num_blocks=12)
    bench.ask(prompt_of(20, 1), 12, stops=False)
    long, short = bench.ask(prompt_of(30, 2), 2), bench.ask([9], 2)
    bench.batcher.step()
    bench.batcher.step()
    assert (long.read(), short.read()) == ((), ())
    short.wait()
    assert long.is_done


def test_one_that_was_put_back_keeps_its_place(make_bench: Make) -> None:
    bench = make_bench(num_blocks=9, max_running=2)
    handles = [bench.ask(prompt_of(8, seed), 16, stops=False) for seed in (1, 3, 4)]
    while not bench.batcher.statistics().num_preemptions:
        bench.batcher.step()
    assert [len(handle.read()) > 0 for handle in handles] == [True, True, False]
    handles[2].wait()
    assert handles[1].is_done


def test_room_is_left_for_answers_to_grow(make_bench: Make) -> None:
    bench = make_bench(num_blocks=4)
    bench.ask(prompt_of(7, 1), 9, stops=False)
    bench.batcher.step()
    bench.ask(prompt_of(7, 2), 9, stops=False)
    bench.batcher.step()
    assert bench.batcher.statistics().num_running == 1


def test_of_a_beginning_the_end_is_given_up_first(make_bench: Make) -> None:
    bench = make_bench(num_blocks=10)
    bench.ask(prompt_of(32), 1).wait()
    bench.ask(prompt_of(20, 1), 1).wait()
    assert bench.ask(prompt_of(32), 1).wait().timings.reused_tokens == 20


def test_what_can_never_fit_is_refused_with_both_numbers(make_any_bench: Make) -> None:
    bench = make_any_bench(num_blocks=4)
    assert len(bench.ask(prompt_of(10), 6).wait().tokens) > 0
    with pytest.raises(ContextFullError, match=r"up to 17 tokens.* may have 16 here") as caught:
        bench.ask(prompt_of(10), 7)
    assert caught.value.facts == {"needed_tokens": 17, "max_context_tokens": 16}


def test_the_queue_is_bounded(make_any_bench: Make) -> None:
    bench = make_any_bench(max_waiting=2)
    handles = [bench.ask([5]), bench.ask([6])]
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        bench.ask([9])
    bench.batcher.step()
    handles.append(bench.ask([9]))
    assert all(handle.wait().error is None for handle in handles)


@pytest.mark.parametrize("prompt_ids", [[], [64], [-1]])
def test_ids_outside_the_vocabulary_are_refused(
    make_any_bench: Make, prompt_ids: list[int]
) -> None:
    with pytest.raises(UsageError, match="prompt"):
        make_any_bench().ask(prompt_ids)


def test_a_cancelled_request_leaves_within_a_step(make_any_bench: Make) -> None:
    bench = make_any_bench()
    gone = bench.ask(prompt_of(9), 50, stops=False)
    other = bench.ask([5], 20, stops=False)
    bench.batcher.step()
    gone.cancel()
    bench.batcher.step()
    assert gone.result().finish_reason == "cancelled"
    assert bench.batcher.statistics().num_running == 1
    other.wait()
    bench.check_nothing_leaked()


def test_closing_the_iterator_cancels(make_any_bench: Make) -> None:
    bench = make_any_bench()
    handle = bench.ask([1, 2, 3], 50, stops=False)
    tokens = handle.iter_tokens()
    next(tokens)
    tokens.close()
    assert handle.result().finish_reason == "cancelled"
    bench.check_nothing_leaked()


@pytest.mark.trust("T-GEN-09")
def test_no_numbers_end_one_request_only(make_bench: Make, alone: Alone) -> None:
    def script(token_ids: Sequence[int]) -> int | None:
        return None if token_ids[0] == 1 and len(token_ids) == 5 else 9

    bench = make_bench(script=script)
    bad, good = bench.ask([1, 2], 10), bench.ask([3], 10)
    assert good.wait().token_ids == (9,) * 10
    result = bad.wait()
    assert isinstance(result.error, ParityError) and result.finish_reason is None
    assert result.token_ids == (9, 9, 9)
    with pytest.raises(ParityError):
        list(bad.iter_tokens())
    bench.check_nothing_leaked()


def test_a_failing_engine_ends_what_runs_and_nothing_else(make_bench: Make, alone: Alone) -> None:
    bench = make_bench(fail_at_call=[3], max_running=2)
    handles = [bench.ask([seed], 10) for seed in (1, 2, 4)]
    results = [handle.wait() for handle in handles]
    assert [isinstance(result.error, DeviceError) for result in results] == [True, True, False]
    assert list(results[2].token_ids) == alone([4], 10)
    assert list(bench.ask([1], 10).wait().token_ids) == alone([1], 10)
    bench.check_nothing_leaked()


def test_a_request_that_cannot_begin_does_not_stand_in_the_way(
    make_bench: Make, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    begin = bench.backend.begin

    def fail_once(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(bench.backend, "begin", begin)
        raise RuntimeError("a bug")

    monkeypatch.setattr(bench.backend, "begin", fail_once)
    bad, good = bench.ask([1]), bench.ask([5])
    assert isinstance(bad.wait().error, RuntimeError)
    assert list(good.wait().token_ids) == alone([5])


def test_an_interrupt_ends_what_runs_and_reaches_the_caller(
    make_bench: Make, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    run = bench.engine.run

    def interrupt(call: object) -> Any:
        monkeypatch.setattr(bench.engine, "run", run)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.engine, "run", interrupt)
    handle = bench.ask([5])
    with pytest.raises(KeyboardInterrupt):
        bench.batcher.step()
    assert isinstance(handle.result().error, DeviceError)
    assert list(bench.ask([5]).wait().token_ids) == alone([5])


def test_after_a_failure_nothing_of_before_is_reused(make_bench: Make) -> None:
    bench = make_bench(fail_at_call=[3])
    bench.ask(prompt_of(20), 10).wait()
    assert bench.ask(prompt_of(20), 1).wait().timings.reused_tokens == 0


class ForcedTail:
    """A constraint that wants three tokens after every 9."""

    def __init__(self) -> None:
        self._due: list[int] = [10, 11]

    def mask(self, remaining_tokens: int) -> Bitmask | None:
        return None

    def forced(self, remaining_tokens: int) -> Sequence[int]:
        return tuple(self._due)

    def advance(self, token_id: int) -> None:
        if self._due:
            assert token_id == self._due.pop(0)
        elif token_id == 9:
            self._due = [20, 21, 22]

    def count_valid(self, token_ids: Sequence[int]) -> int:
        return len(token_ids)


def test_forced_tokens_are_fed_together(make_bench: Make) -> None:
    bench = make_bench(script=lambda token_ids: 9)
    picker = TokenPicker(Sampler(GREEDY), ForcedTail())
    handle = bench.batcher.submit([1], picker, max_new_tokens=9)
    tokens = handle.wait().tokens
    assert [token.token_id for token in tokens] == [10, 11, 9, 20, 21, 22, 9, 20, 21]
    assert [token.is_forced for token in tokens[:5]] == [True, True, False, True, True]
    assert bench.batcher.statistics().num_steps == 3


def test_an_error_of_a_picker_ends_its_request_only(make_any_bench: Make, alone: Alone) -> None:
    class Broken(TokenPicker):
        def pick(self, logits: object, remaining_tokens: int) -> Any:
            raise UsageError("Nothing is allowed.", "allow something")

    bench = make_any_bench()
    bad = bench.batcher.submit([1], Broken(Sampler(GREEDY)), max_new_tokens=3)
    assert list(bench.ask([5], 6).wait().token_ids) == alone([5], 6)
    assert isinstance(bad.wait().error, UsageError)


def test_threads_share_steps(make_any_bench: Make, alone: Alone) -> None:
    bench = make_any_bench(max_running=4)
    answers: dict[int, list[int]] = {}

    def ask(seed: int) -> None:
        prompt = prompt_of(seed % 7 + 1, seed)
        tokens = bench.ask(prompt, 12).iter_tokens()
        answers[seed] = [token.token_id for token in tokens]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == {seed: alone(prompt_of(seed % 7 + 1, seed), 12) for seed in range(12)}
    bench.check_nothing_leaked()


def test_a_thread_may_make_all_steps(make_bench: Make, alone: Alone) -> None:
    bench = make_bench()
    thread = threading.Thread(target=bench.batcher.run, daemon=True)
    thread.start()
    is_told = threading.Event()
    handle = bench.batcher.submit(
        [5],
        TokenPicker(Sampler(GREEDY)),
        max_new_tokens=6,
        on_change=lambda: is_told.set() if handle.is_done else None,
    )
    assert is_told.wait(30)
    assert [token.token_id for token in handle.read()] == alone([5], 6)
    waiting = bench.ask([9], 200, stops=False)
    bench.batcher.close()
    thread.join(30)
    assert not thread.is_alive()
    assert waiting.result().finish_reason is not None
    with pytest.raises(UsageError, match="closed"):
        bench.ask([5])


def test_warming_up_leaves_nothing_behind(make_any_bench: Make, alone: Alone) -> None:
    bench = make_any_bench()
    handle = bench.ask([5], 9)
    bench.batcher.step()
    bench.batcher.warm_up()
    assert list(handle.wait().token_ids) == alone([5], 9)
    bench.check_nothing_leaked()
    bench.batcher.close()
    bench.batcher.warm_up()


def test_a_failure_while_warming_up_is_that_of_a_step(make_bench: Make, alone: Alone) -> None:
    bench = make_bench(fail_at_call=[1])
    bench.batcher.warm_up()
    assert list(bench.ask([5]).wait().token_ids) == alone([5])
    bench.check_nothing_leaked()


def test_close_ends_what_runs(make_any_bench: Make) -> None:
    bench = make_any_bench()
    handle = bench.ask([5], 30, stops=False)
    bench.batcher.step()
    bench.batcher.close()
    bench.batcher.close()
    assert handle.wait().finish_reason == "cancelled"
    statistics = bench.batcher.statistics()
    assert (statistics.num_running, statistics.num_waiting, statistics.num_blocks_used) == (0, 0, 0)
    with pytest.raises(UsageError, match="closed"):
        bench.batcher.step()


@pytest.mark.parametrize("field", ["max_running", "max_waiting", "step_tokens"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_options_are_checked(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=field):
        BatchOptions(**{field: value})  # type: ignore[arg-type]


Arrivals = st.lists(
    st.tuples(
        st.integers(0, 2),  # which of the beginnings
        st.integers(0, 9),  # how much of it
        st.integers(1, 12),  # own tokens
        st.integers(1, 16),  # new tokens
        st.integers(0, 6),  # steps before the next arrival
        st.integers(-20, 8),  # steps until it is cancelled, if at all
        st.booleans(),  # whether tokens are forced
    ),
    min_size=1,
    max_size=10,
)


@settings(max_examples=60, deadline=None)
@given(
    arrivals=Arrivals,
    num_blocks=st.integers(10, 20),
    budgets=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    max_running=st.integers(1, 5),
    reuses_answers=st.booleans(),
    paged=st.booleans(),
)
def test_law_nothing_changes_an_answer(
    arrivals: list[tuple[int, int, int, int, int, int, bool]],
    num_blocks: int,
    budgets: tuple[int, int],
    max_running: int,
    reuses_answers: bool,
    paged: bool,
    makers: tuple[Make, Make],
    alone: Alone,
) -> None:
    """Whoever comes and goes, each answer is that of its prompt alone, and no block is lost."""
    options: dict[str, Any] = {"step_tokens": budgets[0], "shared_step_tokens": budgets[1]}
    options |= {"num_blocks": num_blocks, "max_running": max_running}
    options |= {"reuses_answers": reuses_answers} if paged else {}
    bench = makers[0 if paged else 1](**options)
    asked: list[tuple[Any, list[int]]] = []
    cancelled: dict[int, list[Any]] = {}
    now = 0

    def step() -> None:
        nonlocal now
        for handle in cancelled.pop(now, []):
            handle.cancel()
        bench.batcher.step()
        now += 1
        statistics = bench.batcher.statistics()
        assert 0 <= statistics.num_blocks_used <= statistics.num_blocks == num_blocks
        assert statistics.num_running <= max_running
        if bench.engine is not None:
            assert len(bench.engine.blocks) <= num_blocks + 1

    for seed, (begin, share, own, num_new, pause, patience, forced) in enumerate(arrivals):
        prompt = [*prompt_of(9, begin)[:share], *prompt_of(own, 100 + seed)]
        handle = bench.ask(prompt, num_new, is_forced=forced)
        asked.append((handle, alone(prompt, num_new, is_forced=forced)))
        if patience >= 0:
            cancelled.setdefault(now + patience, []).append(handle)
        for _ in range(pause):
            step()
    for _ in range(2_000):
        if all(handle.is_done for handle, _ in asked):
            break
        step()
    for handle, expected in asked:
        result = handle.result()
        assert result.error is None
        if result.finish_reason == "cancelled":
            assert list(result.token_ids) == expected[: len(result.token_ids)]
        else:
            assert list(result.token_ids) == expected
    bench.check_nothing_leaked()
