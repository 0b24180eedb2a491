"""Drafts on real engines: the same tokens with and without, whatever is guessed.

Calls of several tokens run other kernels than single steps, so logits differ in their last bits;
greedy tokens can then differ only at a tie. How far they are apart is asserted here too.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import pytest

from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.backends.openvino import OpenVinoBackend
from qwen_edge.runtime.decoding.draft_model import DraftModel
from qwen_edge.runtime.decoding.drafting import CallReport, Drafter
from qwen_edge.runtime.decoding.generation import generate_tokens
from qwen_edge.runtime.decoding.picker import NewToken, TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams
from qwen_edge.runtime.decoding.speculation import make_drafter

VOCAB_SIZE = 64
NUM_NEW = 50


def make_ids(count: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB_SIZE, count)]


def start(
    backend: Backend,
    prompt: Sequence[int],
    drafter: Drafter | None = None,
    *,
    temperature: float = 0.0,
) -> Generator[NewToken, None, None]:
    params = SamplingParams(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, seed=4)
    if drafter is not None:
        drafter.begin(prompt)
    return generate_tokens(
        backend,
        prompt,
        picker=TokenPicker(Sampler(params)),
        max_new_tokens=NUM_NEW,
        drafter=drafter,
    )


def answer(*arguments: Any, **options: Any) -> list[int]:
    return [token.token_id for token in start(*arguments, **options)]


class Copier:
    """Guesses the answer it was given, with a mistake at every so many tokens."""

    def __init__(self, text: Sequence[int], period: int) -> None:
        self._text, self._period = list(text), period
        self._place = 0
        self.num_accepted = 0

    def begin(self, prompt_ids: Sequence[int]) -> None:
        self._place = 0

    def extend(self, token_ids: Sequence[int]) -> None:
        self._place += len(token_ids)

    def propose(self, max_tokens: int) -> Sequence[int]:
        places = range(self._place, min(self._place + max_tokens, len(self._text)))
        return [(self._text[place] + (place % self._period == 0)) % VOCAB_SIZE for place in places]

    def report(self, call: CallReport) -> None:
        self.num_accepted += call.num_accepted

    def close(self) -> None:
        pass


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
@pytest.mark.parametrize("period", [1, 2, 3, 5, 99], ids=lambda period: f"mistake-of-{period}")
def test_tokens_are_the_same_with_drafts(kind: Any, period: int, temperature: float) -> None:
    if kind.name == "openvino-static" and (temperature or period < 99):
        return  # no guess is ever asked for, and it takes a second to make
    prompt = make_ids(20)
    expected = answer(kind.make_apart(), prompt, temperature=temperature)
    backend, copier = kind.make(), Copier(expected, period)
    assert answer(backend, prompt, copier, temperature=temperature) == expected
    assert backend.cached_tokens == len(prompt) + NUM_NEW - 1
    if backend.max_scored_tokens > 1:
        assert (copier.num_accepted == 0) == (period == 1)
        assert period < 99 or copier.num_accepted > 40
    # What is left of rejected guesses is not seen by what comes later either.
    whole = [*prompt, *expected]
    logits = backend.forward([whole[-1]])
    assert np.abs(logits - kind.fresh(whole)).max() < kind.tolerance


def test_prompt_lookup_changes_no_token(kind: Any) -> None:
    """Random weights soon say the same again and again, which is what lookup is for."""
    backend = kind.make()
    drafter = make_drafter(backend)
    if kind.name == "openvino-static":
        assert drafter is None
        return
    assert drafter is not None
    for seed in (1, 2):
        prompt = make_ids(20, seed)
        expected = answer(kind.make_apart(), prompt)
        backend.reset()
        assert answer(backend, prompt, drafter) == expected


def test_closed_within_a_burst_the_cache_goes_on_rightly(kind: Any) -> None:
    if kind.name == "openvino-static":
        return  # has no bursts
    prompt = make_ids(20)
    expected = answer(kind.make_apart(), prompt)
    backend = kind.make()
    tokens = start(backend, prompt, Copier(expected, 99))
    for _ in range(6):
        next(tokens)
    tokens.close()
    cached = [*prompt, *expected][: backend.cached_tokens]
    assert len(prompt) < len(cached) < len(prompt) + 6
    logits = backend.forward([1])
    assert np.abs(logits - kind.fresh([*cached, 1])).max() < kind.tolerance


def test_draft_model_on_an_engine_of_its_own(
    kind: Any, compiled: Any, make_onnx: Callable[..., Any], open_onnx_model: Callable[..., Any]
) -> None:
    """The same weights on two engines: nearly all guesses are right, none changes a token."""
    if kind.name in ("fake", "openvino-static"):
        pytest.skip("has other weights, or scores one token at a time")
    if kind.name.startswith("onnx"):
        small: Backend = OpenVinoBackend(
            compiled, device="CPU", max_context_tokens=60, prefill_chunk_tokens=16
        )
    else:
        small = open_onnx_model(make_onnx(), max_context_tokens=60)
    backend = kind.make()
    drafter = make_drafter(backend, lookup=False, draft=DraftModel(small, min_probability=0.0))
    assert drafter is not None
    for seed in (1, 2):
        prompt = make_ids(20, seed)
        expected = answer(kind.make_apart(), prompt)
        backend.reset()
        assert answer(backend, prompt, drafter) == expected
    stats = drafter.stats
    assert stats.num_accepted <= stats.num_proposed
    if "int4" not in kind.name:
        assert stats.num_accepted == stats.num_proposed


@pytest.mark.parametrize("num_tokens", [2, 4, 16])
def test_batched_logits_are_near_those_of_single_steps(engine_kind: Any, num_tokens: int) -> None:
    """Measured: 0 to 5e-6 of logits of about 5, in float32 on both engines."""
    stepped, batched = engine_kind.make(), engine_kind.make()
    if batched.max_scored_tokens < num_tokens:
        return
    ids = make_ids(20 + num_tokens)
    stepped.forward(ids[:20])
    batched.forward(ids[:20])
    rows = batched.forward_scored(ids[20:], num_scored=num_tokens)
    steps = np.stack([stepped.forward([token_id]) for token_id in ids[20:]])
    assert np.abs(rows - steps).max() < 2e-5
