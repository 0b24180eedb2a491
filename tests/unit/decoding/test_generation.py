"""The token loop: chunks, the law of the cache, stops, forced runs, drafts and failures."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.errors import ContextFullError, DeviceError, UsageError
from qwen_edge.runtime.backends.backend import Logits, LogitsRows
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.decoding.constraint import Bitmask
from qwen_edge.runtime.decoding.drafting import CallReport
from qwen_edge.runtime.decoding.generation import generate_tokens
from qwen_edge.runtime.decoding.picker import NewToken, TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams

VOCAB_SIZE = 32
PROMPT = [7, 8, 9]


def count_up(token_ids: Sequence[int]) -> int:
    """Say the number of ids so far, so that every position has its own token."""
    return len(token_ids)


def make_picker(temperature: float = 0.0, seed: int = 0) -> TokenPicker:
    params = SamplingParams(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
    return TokenPicker(Sampler(params))


def ids_of(tokens: Iterator[NewToken]) -> list[int]:
    return [token.token_id for token in tokens]


# One token at a time.


@given(num_prompt=st.integers(1, 40), num_new=st.integers(0, 20), chunk_tokens=st.integers(1, 50))
def test_ids_do_not_depend_on_the_chunks_and_no_forward_is_wasted(
    num_prompt: int, num_new: int, chunk_tokens: int
) -> None:
    backend = FakeBackend(count_up)
    tokens = generate_tokens(
        backend,
        [7] * num_prompt,
        picker=make_picker(),
        max_new_tokens=num_new,
        prefill_chunk_tokens=chunk_tokens,
    )
    assert ids_of(tokens) == list(range(num_prompt, num_prompt + num_new))
    num_chunks = -(-num_prompt // chunk_tokens)
    assert backend.num_forward_calls == num_chunks + max(0, num_new - 1)


def test_the_cache_is_one_token_behind_at_every_yield() -> None:
    backend = FakeBackend(count_up)
    tokens = generate_tokens(backend, [1, 2, 3], picker=make_picker(), max_new_tokens=5)
    for num_yields, _ in enumerate(tokens, start=1):
        assert backend.cached_tokens == 3 + num_yields - 1
    assert backend.cached_ids == [1, 2, 3, 3, 4, 5, 6]


def test_closing_leaves_the_cache_where_it_was() -> None:
    backend = FakeBackend(count_up)
    tokens = generate_tokens(backend, [1, 2], picker=make_picker(), max_new_tokens=100)
    assert ids_of(islice(tokens, 3)) == [2, 3, 4]
    assert backend.cached_ids == [1, 2, 2, 3]


@pytest.mark.parametrize("num_checks", [0, 1, 2, 3, 4])
def test_cancelling_is_seen_before_every_forward(num_checks: int) -> None:
    backend = FakeBackend(count_up)
    answers = iter([False] * num_checks + [True] * 99)
    tokens = generate_tokens(
        backend,
        [1] * 4,
        picker=make_picker(),
        max_new_tokens=9,
        prefill_chunk_tokens=2,
        is_cancelled=lambda: next(answers),
    )
    assert len(list(tokens)) <= max(0, num_checks - 2)
    assert backend.num_forward_calls == min(num_checks, 2) + max(0, num_checks - 3)


def test_an_endless_model_stops_at_the_limit() -> None:
    tokens = generate_tokens(FakeBackend([5]), [1], picker=make_picker(), max_new_tokens=12)
    assert ids_of(tokens) == [5] * 12


def test_stop_id_is_given_and_not_fed() -> None:
    backend = FakeBackend(count_up)
    tokens = generate_tokens(
        backend, [1], picker=make_picker(), max_new_tokens=12, stop_token_ids=[4, 9]
    )
    assert ids_of(tokens) == [1, 2, 3, 4]
    assert backend.cached_ids == [1, 1, 2, 3]


def test_a_device_error_passes_through() -> None:
    backend = FakeBackend([5], fail_at_call=3)
    tokens = generate_tokens(backend, [1], picker=make_picker(), max_new_tokens=12)
    assert ids_of(islice(tokens, 2)) == [5, 5]
    with pytest.raises(DeviceError):
        next(tokens)
    assert backend.cached_tokens == 0


def test_logits_reach_the_sampler_unchanged() -> None:
    seen: list[Logits] = []

    class Watching(Sampler):
        def sample(self, logits: Logits, mask: Bitmask | None = None) -> int:
            assert mask is None
            seen.append(logits)
            return 3

    picker = TokenPicker(Watching(SamplingParams(temperature=0.0)))
    backend = FakeBackend([5], vocab_size=8)
    assert ids_of(generate_tokens(backend, [1], picker=picker, max_new_tokens=1)) == [3]
    assert (seen[0].dtype, seen[0].shape) == (np.float32, (8,))


@pytest.mark.parametrize(("prompt_ids", "chunk_tokens"), [([], 1), ([1], 0)])
def test_nothing_to_feed_is_refused(prompt_ids: list[int], chunk_tokens: int) -> None:
    tokens = generate_tokens(
        FakeBackend([5]),
        prompt_ids,
        picker=make_picker(),
        max_new_tokens=1,
        prefill_chunk_tokens=chunk_tokens,
    )
    with pytest.raises(ValueError, match="pass at least"):
        next(tokens)


# Forced runs and drafts.


class Language(FakeBackend):
    """Says what depends on the last few tokens, with several likely ones at each place."""

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        before = list(self.cached_ids)
        super().forward_scored(token_ids, num_scored=num_scored)
        ends = range(len(token_ids) - num_scored + 1, len(token_ids) + 1)
        return np.stack([logits_after([*before, *token_ids[:end]]) for end in ends])


def logits_after(token_ids: Sequence[int]) -> Logits:
    seed = [token_id + 1 for token_id in token_ids[-3:]]
    logits: Logits = (np.random.default_rng(seed).random(VOCAB_SIZE) * 8).astype(np.float32)
    return logits


class Runs:
    """Some tokens are followed by runs that have to come; others are never allowed."""

    def __init__(self, runs: dict[int, tuple[int, ...]]) -> None:
        self._runs = runs
        self._due: tuple[int, ...] = ()

    def mask(self, remaining_tokens: int) -> Bitmask | None:
        assert not self._due, "asked where there is no choice"
        # An odd number is not allowed as the last token.
        return np.array([0x55555555 if remaining_tokens == 1 else -1], dtype=np.int32)

    def forced(self, remaining_tokens: int) -> Sequence[int]:
        assert remaining_tokens > 0
        return self._due

    def advance(self, token_id: int) -> None:
        if self._due:
            assert token_id == self._due[0]
            self._due = self._due[1:]
        else:
            self._due = self._runs.get(token_id, ())

    def count_valid(self, token_ids: Sequence[int]) -> int:
        due = self._due
        for index, token_id in enumerate(token_ids):
            if due and token_id != due[0]:
                return index
            due = due[1:] if due else self._runs.get(token_id, ())
        return len(token_ids)


class Prophet:
    """Knows the answer, and says it with mistakes; keeps a record of what it is told."""

    def __init__(self, answer: Sequence[int], script: Sequence[tuple[int, int | None]]) -> None:
        self._answer = list(answer)
        self._script = list(script)  # length of a draft, and the index of its mistake
        self._num_asked = 0
        self.told: list[int] = []
        self.calls: list[CallReport] = []
        self.num_closed = 0

    def begin(self, prompt_ids: Sequence[int]) -> None:
        raise AssertionError("the caller's to call")

    def propose(self, max_tokens: int) -> Sequence[int]:
        assert max_tokens >= 1
        length, mistake = self._script[self._num_asked % len(self._script)]
        self._num_asked += 1
        guesses = self._answer[len(self.told) : len(self.told) + length]
        guesses += [1] * (length - len(guesses))  # also more than was asked for
        if mistake is not None and mistake < length:
            guesses[mistake] += 1 if mistake % 3 else VOCAB_SIZE
        return guesses

    def extend(self, token_ids: Sequence[int]) -> None:
        self.told += token_ids

    def report(self, call: CallReport) -> None:
        assert 0 <= call.num_accepted <= call.num_drafted < call.num_fed
        self.calls.append(call)

    def close(self) -> None:
        self.num_closed += 1


scripts = st.lists(
    st.tuples(st.integers(0, 20), st.one_of(st.none(), st.integers(0, 8))), min_size=1, max_size=6
)
forced_runs = st.dictionaries(
    st.integers(0, VOCAB_SIZE - 1),
    st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20).map(tuple),
    max_size=6,
)


def start(
    backend: FakeBackend,
    runs: dict[int, tuple[int, ...]],
    drafter: Prophet | None = None,
    *,
    temperature: float = 1.0,
    max_new_tokens: int = 50,
    stop_token_ids: Sequence[int] = (),
) -> Generator[NewToken, None, None]:
    params = SamplingParams(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, seed=3)
    return generate_tokens(
        backend,
        PROMPT,
        picker=TokenPicker(Sampler(params), Runs(runs) if runs else None),
        max_new_tokens=max_new_tokens,
        stop_token_ids=stop_token_ids,
        drafter=drafter,
    )


@settings(max_examples=60, deadline=None)
@given(
    runs=forced_runs,
    script=scripts,
    temperature=st.sampled_from([0.0, 1.0]),
    max_new_tokens=st.integers(1, 50),
    num_stops=st.integers(0, 3),
    close_after=st.integers(0, 60),
)
def test_drafts_change_nothing_and_the_cache_is_a_beginning(
    runs: dict[int, tuple[int, ...]],
    script: list[tuple[int, int | None]],
    temperature: float,
    max_new_tokens: int,
    num_stops: int,
    close_after: int,
) -> None:
    options = {
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "stop_token_ids": range(num_stops),
    }
    plain = Language([0], vocab_size=VOCAB_SIZE)
    expected = list(start(plain, runs, **options))  # type: ignore[arg-type]
    answer = [token.token_id for token in expected]
    assert plain.cached_ids == [*PROMPT, *answer][: plain.cached_tokens]

    backend = Language([0], vocab_size=VOCAB_SIZE)
    prophet = Prophet(answer, script)
    tokens = start(backend, runs, prophet, **options)  # type: ignore[arg-type]
    given: list[NewToken] = []
    for token in islice(tokens, close_after):
        given.append(token)
        cached = backend.cached_ids
        assert cached == [*PROMPT, *answer][: len(cached)]
    tokens.close()
    assert given == expected[: len(given)]
    assert len(given) == min(close_after, len(expected))
    whole = [*PROMPT, *(token.token_id for token in given)]
    assert backend.cached_ids == whole[: backend.cached_tokens]
    assert prophet.told == answer[: len(prophet.told)]
    assert prophet.num_closed == (close_after > 0)
    assert backend.num_forward_calls <= plain.num_forward_calls


@settings(max_examples=20, deadline=None)
@given(script=scripts)
def test_reports_add_up(script: list[tuple[int, int | None]]) -> None:
    answer = ids_of(start(Language([0], vocab_size=VOCAB_SIZE), {}))
    backend = Language([0], vocab_size=VOCAB_SIZE)
    prophet = Prophet(answer, script)
    assert ids_of(start(backend, {}, prophet)) == answer == prophet.told
    calls = prophet.calls
    assert len(calls) == backend.num_forward_calls - 1  # the prompt's is not reported
    assert sum(call.num_fed for call in calls) == backend.num_forward_tokens - len(PROMPT)
    assert sum(1 + call.num_accepted for call in calls) == len(answer) - 1
    assert all(call.seconds > 0.0 <= call.draft_seconds for call in calls)


def test_right_guesses_save_calls_and_the_cache_runs_ahead() -> None:
    backend = FakeBackend(count_up)
    prophet = Prophet(list(range(3, 43)), [(15, None)])
    tokens = generate_tokens(
        backend, PROMPT, picker=make_picker(), max_new_tokens=33, drafter=prophet
    )
    assert ids_of(tokens) == list(range(3, 36))
    assert backend.num_forward_calls == 1 + 2  # the prompt; 1 given + 15 + 1; 15 + 1
    assert [call.num_fed for call in prophet.calls] == [16, 16]
    assert backend.cached_ids == [*PROMPT, *range(3, 35)]


def test_closing_within_a_burst_forgets_what_was_not_given() -> None:
    backend = FakeBackend(count_up)
    prophet = Prophet(list(range(3, 43)), [(8, None)])
    tokens = generate_tokens(
        backend, PROMPT, picker=make_picker(), max_new_tokens=33, drafter=prophet
    )
    assert ids_of(islice(tokens, 4)) == [3, 4, 5, 6]
    assert backend.cached_ids == [*PROMPT, *range(3, 12)]
    tokens.close()
    # Of the last token only the caller knows whether it was received.
    assert backend.cached_ids == [*PROMPT, 3, 4, 5]


def test_stop_id_among_the_guesses_and_among_forced_tokens() -> None:
    backend = FakeBackend(count_up)
    prophet = Prophet(list(range(3, 43)), [(8, None)])
    tokens = generate_tokens(
        backend,
        PROMPT,
        picker=make_picker(),
        max_new_tokens=33,
        drafter=prophet,
        stop_token_ids=[6],
    )
    assert ids_of(tokens) == [3, 4, 5, 6]
    assert [(call.num_fed, call.num_drafted) for call in prophet.calls] == [(3, 2)]
    assert backend.cached_ids == [*PROMPT, 3, 4, 5]
    backend = FakeBackend(count_up)
    picker = TokenPicker(Sampler(SamplingParams(temperature=0.0)), Runs({3: (10, 6, 11)}))
    tokens = generate_tokens(backend, PROMPT, picker=picker, max_new_tokens=33, stop_token_ids=[6])
    assert ids_of(tokens) == [3, 10, 6]
    assert backend.cached_ids == PROMPT


def test_forced_run_is_fed_in_one_call_and_cut_at_the_limit() -> None:
    run = tuple(range(40, 60))
    backend = FakeBackend(count_up)
    picker = TokenPicker(Sampler(SamplingParams(temperature=0.0)), Free({3: run}))
    tokens = list(generate_tokens(backend, PROMPT, picker=picker, max_new_tokens=23))
    assert [token.token_id for token in tokens] == [3, *run, 24, 25]
    assert [token.is_forced for token in tokens] == [False, *[True] * 20, False, False]
    assert backend.num_forward_calls == 3
    backend.reset()
    picker = TokenPicker(Sampler(SamplingParams(temperature=0.0)), Free({3: run}))
    tokens = list(generate_tokens(backend, PROMPT, picker=picker, max_new_tokens=5))
    assert [token.token_id for token in tokens][1:] == [40, 41, 42, 43]


def test_guess_that_a_constraint_rules_out_is_not_fed() -> None:
    backend = FakeBackend(count_up)
    prophet = Prophet(list(range(3, 60)), [(15, None)])
    picker = TokenPicker(Sampler(SamplingParams(temperature=0.0)), Free({5: (50, 51)}))
    tokens = generate_tokens(backend, PROMPT, picker=picker, max_new_tokens=6, drafter=prophet)
    assert ids_of(tokens) == [3, 4, 5, 50, 51, 8]
    assert [(call.num_fed, call.num_accepted) for call in prophet.calls] == [(3, 2), (2, 0)]


class Free(Runs):
    """Runs, and everything allowed beside them, in a vocabulary of any size."""

    def mask(self, remaining_tokens: int) -> Bitmask | None:
        del remaining_tokens
        return None


@pytest.mark.parametrize("script", [[(0, None)], [(15, None)], [(7, 4)]], ids=str)
@pytest.mark.parametrize("room", [1, 2, 9, 20])
def test_context_limit_is_met_at_the_same_token_with_drafts(
    script: list[tuple[int, int | None]], room: int
) -> None:
    """A draft for which there is no room would fail where a single token does not."""
    backend = FakeBackend(count_up, max_context_tokens=len(PROMPT) + room)
    prophet = Prophet(list(range(3, 60)), script)
    tokens = generate_tokens(
        backend, PROMPT, picker=make_picker(), max_new_tokens=100, drafter=prophet
    )
    given: list[int] = []
    with pytest.raises(ContextFullError):
        given.extend(token.token_id for token in tokens)
    assert given == list(range(3, 3 + room + 1))
    assert backend.cached_ids == [*PROMPT, *given[:-1]]


# Sampling.


class Likeliest:
    """Always guesses what is likeliest: whoever trusts it gives these tokens too often."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._sequence = list(PROMPT)

    def begin(self, prompt_ids: Sequence[int]) -> None:
        raise AssertionError("the caller's to call")

    def propose(self, max_tokens: int) -> Sequence[int]:
        sequence = list(self._sequence)
        for _ in range(max_tokens):
            sequence.append(int(np.argmax(logits_after(sequence)[: self._vocab_size])))
        return sequence[-max_tokens:]

    def extend(self, token_ids: Sequence[int]) -> None:
        self._sequence += token_ids

    def report(self, call: CallReport) -> None:
        pass

    def close(self) -> None:
        pass


class SmallLanguage(Language):
    """Has few words."""

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        return super().forward_scored(token_ids, num_scored=num_scored)[:, :4]


def test_sampled_answers_have_the_model_s_distribution() -> None:
    """Three tokens of four words: 64 answers, of which the chi-square statistic is taken."""
    expected = np.zeros((4, 4, 4))
    for ids in np.ndindex(4, 4, 4):
        chance = 1.0
        for index, token_id in enumerate(ids):
            logits = logits_after([*PROMPT, *ids[:index]])[:4].astype(np.float64) / 4.0
            chance *= float(np.exp(logits[token_id]) / np.exp(logits).sum())
        expected[ids] = chance
    counts = np.zeros((4, 4, 4))
    num_answers, backend = 3000, SmallLanguage([0], vocab_size=VOCAB_SIZE)
    for seed in range(num_answers):
        backend.reset()
        tokens = generate_tokens(
            backend,
            PROMPT,
            picker=make_picker(temperature=4.0, seed=seed),
            max_new_tokens=3,
            drafter=Likeliest(4),
        )
        counts[tuple(ids_of(tokens))] += 1
    assert backend.num_forward_calls < 2.8 * num_answers  # guesses were right now and then
    statistic = ((counts - num_answers * expected) ** 2 / (num_answers * expected)).sum()
    assert statistic < 128  # 63 degrees of freedom: by chance once in 400,000 times


# Failures.


class Refusing(Sampler):
    """Fails at one token."""

    def __init__(self, fail_at: int, error: BaseException) -> None:
        super().__init__(SamplingParams(temperature=0.0))
        self._left = fail_at
        self._error = error

    def sample(self, logits: Logits, mask: Bitmask | None = None) -> int:
        self._left -= 1
        if self._left == 0:
            raise self._error
        return super().sample(logits, mask)


@pytest.mark.parametrize("fail_at", [1, 2, 5, 9, 12])
@pytest.mark.parametrize("length", [0, 3, 15])
def test_tokens_before_a_refusal_are_given_with_drafts_too(fail_at: int, length: int) -> None:
    backend = FakeBackend(count_up)
    prophet = Prophet(list(range(3, 60)), [(length, None)])
    picker = TokenPicker(Refusing(fail_at, UsageError("Nothing is allowed.", "allow more.")))
    tokens = generate_tokens(backend, PROMPT, picker=picker, max_new_tokens=20, drafter=prophet)
    given: list[int] = []
    with pytest.raises(UsageError, match="Nothing is allowed"):
        given.extend(token.token_id for token in tokens)
    assert given == list(range(3, 3 + fail_at - 1))
    assert backend.cached_ids == [*PROMPT, *given][: backend.cached_tokens]
    assert prophet.num_closed == 1


@pytest.mark.parametrize("fail_at", [1, 2, 5])
def test_ctrl_c_within_a_burst_leaves_a_beginning(fail_at: int) -> None:
    backend = FakeBackend(count_up)
    prophet = Prophet(list(range(3, 60)), [(15, None)])
    picker = TokenPicker(Refusing(fail_at, KeyboardInterrupt()))
    tokens = generate_tokens(backend, PROMPT, picker=picker, max_new_tokens=20, drafter=prophet)
    given: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        given.extend(token.token_id for token in tokens)
    assert given == ([3] if fail_at > 1 else [])
    assert backend.cached_ids == [*PROMPT, *given]
    assert prophet.num_closed == 1


def test_engine_that_fails_at_a_draft_leaves_nothing() -> None:
    backend = FakeBackend(count_up, fail_at_call=2)
    prophet = Prophet(list(range(3, 60)), [(15, None)])
    tokens = generate_tokens(
        backend, PROMPT, picker=make_picker(), max_new_tokens=20, drafter=prophet
    )
    assert next(tokens).token_id == 3
    with pytest.raises(DeviceError):
        next(tokens)
    assert backend.cached_ids == []
    assert prophet.num_closed == 1


def test_cancelled_prefill_closes_the_drafter() -> None:
    backend = FakeBackend(count_up)
    prophet = Prophet([], [(1, None)])
    tokens = generate_tokens(
        backend,
        PROMPT,
        picker=make_picker(),
        max_new_tokens=9,
        drafter=prophet,
        is_cancelled=lambda: True,
    )
    assert list(tokens) == []
    assert (prophet.num_closed, backend.cached_tokens) == (1, 0)


@pytest.mark.parametrize("method", ["propose", "report", "extend", "close"])
@pytest.mark.parametrize("error", [DeviceError("It broke.", "ask again."), ZeroDivisionError("x")])
def test_failing_drafter_is_left_out_and_the_answer_unharmed(
    method: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = FakeBackend(count_up)
    prophet = Prophet(list(range(3, 60)), [(4, 2)])
    fail_after(prophet, method, error, monkeypatch, num_calls=0 if method == "close" else 1)
    tokens = generate_tokens(
        backend, PROMPT, picker=make_picker(), max_new_tokens=20, drafter=prophet
    )
    assert ids_of(tokens) == list(range(3, 23))
    expected = "did not close" if method == "close" else "Speculation is off for the rest"
    assert expected in caplog.text
    assert (
        "It broke." if isinstance(error, DeviceError) else "ZeroDivisionError: x"
    ) in caplog.text
    assert backend.cached_ids == [*PROMPT, *range(3, 22)]
    assert prophet.num_closed == (method != "close")


def fail_after(
    prophet: Prophet, method: str, error: Exception, patch: pytest.MonkeyPatch, *, num_calls: int
) -> None:
    real: Callable[..., object] = getattr(prophet, method)
    left = [num_calls]

    def call(*arguments: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return real(*arguments)

    patch.setattr(prophet, method, call)


def test_ctrl_c_in_a_drafter_ends_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend(count_up)
    prophet = Prophet(list(range(3, 60)), [(4, None)])

    def interrupt(max_tokens: int) -> Sequence[int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(prophet, "propose", interrupt)
    tokens = generate_tokens(
        backend, PROMPT, picker=make_picker(), max_new_tokens=20, drafter=prophet
    )
    with contextlib.suppress(KeyboardInterrupt):
        assert ids_of(tokens) == []
    assert prophet.num_closed == 1
    assert backend.cached_ids == PROMPT
