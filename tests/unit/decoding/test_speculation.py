"""Speculation on an engine that is simulated: what it gains, and that it never loses much.

A text is what the model would answer; the engine takes time by a table of costs, with noise. The
real ones are in `tests/contract/test_speculation.py`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from qwen_edge.errors import DeviceError, UsageError
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.decoding.draft_account import DraftAccount
from qwen_edge.runtime.decoding.draft_estimates import CALL_SIZES, CallCosts, HitRates
from qwen_edge.runtime.decoding.draft_model import DraftModel
from qwen_edge.runtime.decoding.drafting import CallReport
from qwen_edge.runtime.decoding.prompt_lookup import PromptLookup
from qwen_edge.runtime.decoding.speculation import Speculation, SpeculationStats, make_drafter

Costs = Callable[[int], float]
Noise = Callable[[random.Random], float]
STEP_S = 0.08


def table(sizes: Sequence[int], costs: Sequence[float]) -> Costs:
    return lambda num_tokens: float(np.interp(num_tokens, sizes, costs))


CURVES: dict[str, Costs] = {
    "own kernels": table([1, 2, 3, 4, 6, 8, 12, 16], [1, 1.08, 1.2, 1.4, 1.6, 1.75, 2.5, 3.2]),
    "measured": table([1, 2, 3, 4, 6, 8, 16], [1, 0.95, 0.95, 1.1, 1.25, 1.55, 2.9]),
    "small model": table([1, 2, 4, 8, 16], [1, 1.3, 1.6, 2.3, 3.6]),
    "dear second token": table([1, 2, 16], [1, 2, 2]),
    "nothing is saved": lambda num_tokens: float(num_tokens),
}
NOISES: dict[str, Noise] = {
    "exact": lambda _: 1.0,
    "30 %": lambda source: source.uniform(0.7, 1.3),
    "hiccups": lambda source: source.uniform(0.8, 1.2) * (4 if source.random() < 0.05 else 1),
}


@dataclass
class Simulation:
    """An engine and the model on it.

    Args:
        costs: Steps that a call of so many tokens takes.
        noise: Factor of the time that is reported.
        num_forced: Tokens that come without a choice after each chosen one.
        switch: Steps that a call takes more than the table says if the last had another size.
    """

    costs: Costs
    noise: Noise = NOISES["exact"]
    source: random.Random = field(default_factory=lambda: random.Random(1))
    num_forced: int = 0
    switch: float = 0.0

    def gain(self, drafter: Speculation, prompt: Sequence[int], text: Sequence[int]) -> float:
        """Return how many times as fast as single steps it is, by the true costs."""
        drafter.begin(prompt)
        drafter.extend(text[:1])
        place, pending, steps, plain_steps, last_size = 1, 1, 0.0, 0.0, 1
        while place < len(text):
            most = min(15, len(text) - place - 1)
            draft = list(drafter.propose(most)) if most else []
            num_right = 0
            while num_right < len(draft) and draft[num_right] == text[place + num_right]:
                num_right += 1
            num_fed = pending + len(draft)
            cost = self.costs(num_fed) + self.switch * (num_fed != last_size)
            last_size = num_fed
            steps += cost
            plain_steps += num_right * self.costs(1) + self.costs(pending)
            seconds = cost * STEP_S * self.noise(self.source)
            drafter.report(CallReport(num_fed, len(draft), num_right, seconds))
            pending = 1 + self.num_forced
            settled = text[place : place + num_right + pending]
            drafter.extend(settled)
            place += len(settled)
        drafter.close()
        return plain_steps / steps


def make_texts(source: random.Random) -> dict[str, tuple[list[int], list[int]]]:
    """Prompts and answers: the first ones copy, the last ones are to make drafts fail."""
    prompt = [source.randrange(50_000) for _ in range(600)]

    def fresh(count: int, vocab_size: int = 50_000) -> list[int]:
        return [source.randrange(vocab_size) for _ in range(count)]

    edited: list[int] = []
    for start in range(0, 400, 25):
        edited += [*prompt[start : start + 25], *fresh(2)]
    keys = [fresh(4) for _ in range(4)]
    extracted: list[int] = []
    for index in range(36):
        start = source.randrange(580)
        extracted += [*keys[index % 4], *prompt[start : start + 10], 7]
    return {
        "edited": (prompt, edited[:400]),
        "extracted": (prompt, extracted[:400]),
        "repeated": (prompt, [5, 6, 7, 8, 9] * 80),
        "fresh": (prompt, fresh(400)),
        "twelve tokens": (fresh(600, 12), fresh(400, 12)),
        "pairs that never go on as before": (
            [token for index in range(200) for token in (1, 2, 100 + index)],
            [token for index in range(140) for token in (1, 2, 400 + index)],
        ),
        "copied, then never again": (prompt, prompt[:100] + fresh(300, 12)),
    }


TEXTS = make_texts(random.Random(5))


def gain_of(text: str, curve: str, noise: str = "exact", seed: int = 1) -> float:
    engine = Simulation(CURVES[curve], NOISES[noise], random.Random(seed))
    return engine.gain(Speculation([PromptLookup()]), *TEXTS[text])


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(
    ("text", "curve", "least"),
    [
        ("edited", "measured", 3.0),
        ("extracted", "measured", 2.0),
        ("repeated", "measured", 4.0),
        ("edited", "small model", 2.2),
        ("extracted", "small model", 1.45),
        ("repeated", "dear second token", 3.5),
    ],
)
def test_copies_are_faster(text: str, curve: str, least: float, noise: str) -> None:
    slack = 1.0 if noise == "exact" else 0.9
    assert np.mean([gain_of(text, curve, noise, seed) for seed in (1, 2)]) > least * slack


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("text", TEXTS)
def test_nothing_is_much_slower(text: str, curve: str, noise: str) -> None:
    """3 % at most, and of these one step: 0.25 % of the 400 tokens."""
    least = 0.96 if noise == "hiccups" else 0.97
    assert gain_of(text, curve, noise) > least


def test_estimates_of_one_answer_serve_the_next() -> None:
    """An engine on which nothing is saved costs the most when it is new."""
    engine = Simulation(CURVES["nothing is saved"])
    drafter = Speculation([PromptLookup()])
    first = engine.gain(drafter, *TEXTS["twelve tokens"])
    second = engine.gain(drafter, *TEXTS["twelve tokens"])
    assert first < second
    assert second > 0.98
    engine = Simulation(CURVES["measured"])
    drafter = Speculation([PromptLookup()])
    prompt, text = TEXTS["edited"][0], TEXTS["edited"][1][:40]
    assert engine.gain(drafter, prompt, text) < engine.gain(drafter, prompt, text)


def test_what_earlier_texts_taught_soon_gives_way_to_the_next() -> None:
    """After copies that went well, a text that never goes on as before loses little."""
    engine = Simulation(CURVES["own kernels"])
    drafter = Speculation([PromptLookup()])
    assert engine.gain(drafter, *TEXTS["edited"]) > 3
    assert engine.gain(drafter, *TEXTS["extracted"]) > 2
    few = list(range(1000, 1012))
    source = random.Random(7)
    for least in (0.955, 0.98):
        text = source.choices(few, k=512)
        assert engine.gain(drafter, text[:400], text[400:]) > least


def test_engine_that_becomes_slow_at_long_calls_is_noticed() -> None:
    """As when the context grows; what was measured before must not count for ever."""
    is_slow = False

    def costs(num_tokens: int) -> float:
        return float(num_tokens) if is_slow else CURVES["measured"](num_tokens)

    engine = Simulation(costs)
    drafter = Speculation([PromptLookup()])
    assert engine.gain(drafter, *TEXTS["edited"]) > 3
    is_slow = True
    assert engine.gain(drafter, *TEXTS["twelve tokens"]) > 0.9
    assert engine.gain(drafter, *TEXTS["twelve tokens"]) > 0.97
    is_slow = False
    assert engine.gain(drafter, *TEXTS["edited"]) > 1.3
    assert engine.gain(drafter, *TEXTS["edited"]) > 2.5


def test_many_short_answers_lose_no_more_than_one_long_one() -> None:
    engine = Simulation(CURVES["nothing is saved"])
    drafter = Speculation([PromptLookup()])
    prompt, text = TEXTS["twelve tokens"]
    gains = [engine.gain(drafter, prompt, text[start : start + 20]) for start in range(0, 400, 20)]
    assert 1.0 / np.mean([1.0 / gain for gain in gains]) > 0.97


def test_single_step_after_a_longer_call_is_dear_and_the_draft_pays_for_it() -> None:
    """As on an engine that prepares itself anew for each size."""
    engine = Simulation(CURVES["measured"], switch=1.2)
    assert engine.gain(Speculation([PromptLookup()]), *TEXTS["edited"]) > 1.8
    assert engine.gain(Speculation([PromptLookup()]), *TEXTS["extracted"]) > 1.1
    engine = Simulation(CURVES["measured"], switch=2.0)
    for text in ("extracted", "twelve tokens", "pairs that never go on as before"):
        assert engine.gain(Speculation([PromptLookup()]), *TEXTS[text]) > 0.96


def test_forced_tokens_are_not_counted_as_the_cost_of_a_draft() -> None:
    engine = Simulation(CURVES["measured"], num_forced=1)
    assert engine.gain(Speculation([PromptLookup()]), *TEXTS["edited"]) > 3
    engine = Simulation(CURVES["measured"], num_forced=3)
    assert engine.gain(Speculation([PromptLookup()]), *TEXTS["repeated"]) > 3.5
    assert engine.gain(Speculation([PromptLookup()]), *TEXTS["twelve tokens"]) > 0.97


# Counts for the user.


def test_stats_are_those_of_the_answer() -> None:
    engine = Simulation(CURVES["measured"])
    drafter = Speculation([PromptLookup()])
    assert drafter.stats == SpeculationStats()
    gain = engine.gain(drafter, *TEXTS["edited"])
    stats = drafter.stats
    assert stats.num_calls + stats.num_accepted == len(TEXTS["edited"][1]) - 1
    assert stats.num_accepted < stats.num_proposed
    assert stats.num_draft_calls < stats.num_calls
    assert (stats.is_off, stats.off_reason) == (False, None)
    plain_s = STEP_S * (len(TEXTS["edited"][1]) - 1)
    assert stats.saved_s == pytest.approx(plain_s - plain_s / gain, rel=0.1)
    drafter.begin([1, 2, 3])
    assert drafter.stats == SpeculationStats()


def test_what_loses_is_off_and_says_why() -> None:
    drafter = Speculation([PromptLookup()])
    Simulation(CURVES["nothing is saved"]).gain(drafter, *TEXTS["twelve tokens"])
    stats = drafter.stats
    assert stats.is_off
    assert stats.off_reason in (
        f"drafts cost more time than they saved: {stats.num_accepted} of {stats.num_proposed} "
        "guesses were right",
        "longer calls cost more here than the guesses would have saved",
    )
    assert stats.saved_s < 0.0
    assert stats.num_draft_calls < 12


# Sources beside prompt lookup.


class Oracle:
    """Knows the text, guesses it right so often, and takes its time."""

    name = "the oracle"
    is_free = False

    def __init__(self, text: Sequence[int], hit_rate: float, blind_tokens: int = 0) -> None:
        self._text, self._hit_rate, self._blind_tokens = list(text), hit_rate, blind_tokens
        self._source = random.Random(2)
        self._place = 0
        self.num_to_prepare = 2
        self.num_asked = 0

    def begin(self, prompt_ids: Sequence[int]) -> None:
        self._place = 0

    def extend(self, token_ids: Sequence[int]) -> None:
        self._place += len(token_ids)

    def evidence(self) -> int:
        return 6

    def prepare(self) -> bool:
        self.num_to_prepare -= 1
        return self.num_to_prepare >= 0

    def propose(self, max_tokens: int) -> Sequence[int]:
        assert self.num_to_prepare < 0
        self.num_asked += 1
        guesses = self._text[self._place : self._place + max_tokens]
        hit_rate = self._hit_rate if self._place >= self._blind_tokens else 0.0
        return [guess if self._source.random() < hit_rate else guess + 1 for guess in guesses]

    def report(self, call: CallReport) -> None:
        pass

    def close(self) -> None:
        pass


def gain_with(sources: Sequence[object], text: str, guess_s: float) -> tuple[float, Speculation]:
    """Return the gain where each token of the oracle's takes so long."""
    drafter = Speculation(sources)  # type: ignore[arg-type]
    told = drafter.report
    spent = [0.0]

    def report(call: CallReport) -> None:
        is_oracle = drafter._plan is not None and drafter._plan.tried.source.name == "the oracle"
        draft_s = guess_s * call.num_drafted if is_oracle else 0.0
        spent[0] += draft_s
        told(CallReport(call.num_fed, call.num_drafted, call.num_accepted, call.seconds, draft_s))

    drafter.report = report  # type: ignore[method-assign]
    gain = Simulation(CURVES["measured"]).gain(drafter, *TEXTS[text])
    plain_s = STEP_S * (len(TEXTS[text][1]) - 1)
    return plain_s / (plain_s / gain + spent[0]), drafter


def test_draft_model_is_used_where_it_pays_and_beside_lookup() -> None:
    text = TEXTS["fresh"][1]
    gain, _ = gain_with([Oracle(text, 0.8)], "fresh", guess_s=0.15 * STEP_S)
    assert gain > 1.5
    gain, _ = gain_with([PromptLookup(), Oracle(text, 0.8)], "fresh", guess_s=0.15 * STEP_S)
    assert gain > 1.5
    copied = Oracle(TEXTS["repeated"][1], 0.8)
    gain, _ = gain_with([PromptLookup(), copied], "repeated", guess_s=0.15 * STEP_S)
    assert gain > 4
    assert copied.num_asked < 5


@pytest.mark.parametrize(("hit_rate", "share"), [(0.8, 1.5), (0.05, 0.1), (0.0, 0.3)])
def test_draft_model_that_loses_is_asked_rarely(hit_rate: float, share: float) -> None:
    oracle = Oracle(TEXTS["fresh"][1], hit_rate)
    gain, drafter = gain_with([oracle], "fresh", guess_s=share * STEP_S)
    assert gain > 0.97
    assert oracle.num_asked < 25
    assert drafter.stats.is_off


def test_draft_model_that_becomes_right_is_found_out() -> None:
    text = TEXTS["fresh"][1]
    oracle = Oracle(text, 0.95, blind_tokens=100)
    gain, _ = gain_with([oracle], "fresh", guess_s=0.1 * STEP_S)
    assert gain > 1.3


@pytest.mark.parametrize("method", ["begin", "extend", "evidence", "prepare", "propose", "close"])
def test_failing_source_is_left_out_and_the_others_go_on(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompt, text = TEXTS["repeated"]
    oracle = Oracle(text, 1.0)

    def fail(*_: object) -> None:
        raise DeviceError("It broke.", "ask again.")

    monkeypatch.setattr(oracle, method, fail)
    drafter = Speculation([PromptLookup(), oracle])
    assert Simulation(CURVES["measured"]).gain(drafter, prompt, text) > 3.5
    assert "the oracle failed: It broke." in caplog.text
    assert drafter.stats.off_reason == "the oracle failed: It broke."
    assert not drafter.stats.is_off
    alone = Speculation([oracle])
    assert Simulation(CURVES["measured"]).gain(alone, prompt, text) > 0.97
    assert alone.stats.is_off
    monkeypatch.undo()
    oracle.num_to_prepare = 0
    assert Simulation(CURVES["measured"]).gain(alone, prompt, text) > 3
    assert not alone.stats.is_off


# Estimates.


def test_costs_begin_with_a_prior_and_follow_what_is_measured() -> None:
    costs = CallCosts()
    for seconds in (9.0, 0.1, 0.1, 0.1):  # the first one prepares the engine
        costs.observe(1, seconds)
    assert costs.is_ready
    assert costs.seconds(1) == 0.1
    assert [round(costs.seconds(size) * 10, 3) for size in CALL_SIZES] == [
        *(1.0, 0.95, 0.95, 1.1, 1.25, 1.55, 2.2, 2.9)
    ]
    assert costs.seconds(7) == pytest.approx(0.14)
    assert costs.seconds(32) > costs.seconds(24) > costs.seconds(16)
    for _ in range(40):
        for size in (2, 4):
            costs.observe(size, 0.1 * size)
    assert costs.seconds(2) == pytest.approx(0.2, rel=0.1)
    assert costs.seconds(4) == pytest.approx(0.4, rel=0.1)
    assert costs.seconds(8) > 0.5  # not measured: taken after smaller ones
    for _ in range(300):
        costs.observe(1, 0.1)
    assert costs.seconds(2) == pytest.approx(0.095)  # forgotten, so that it is tried again


def test_single_calls_that_were_slow_by_chance_are_corrected_by_longer_ones() -> None:
    costs = CallCosts()
    for seconds in (0.1, 0.5, 0.5, 0.1):
        costs.observe(1, seconds)
    assert costs.seconds(1) == 0.5
    for _ in range(3):
        costs.observe(2, 0.11)
    assert costs.seconds(1) < 0.3


def test_single_calls_after_longer_ones_are_counted_apart() -> None:
    costs = CallCosts()
    for _ in range(12):
        costs.observe(1, 0.1)
    assert costs.return_seconds() == 0.0
    for _ in range(4):
        for num_tokens, seconds in ((4, 0.11), (1, 0.17), (1, 0.1), (40, 3.0), (1, 0.17)):
            costs.observe(num_tokens, seconds)
    assert costs.seconds(1) == 0.1
    assert costs.return_seconds() == pytest.approx(0.07)
    account = DraftAccount(costs)
    account.book(CallReport(4, 3, 1, 0.11), draft_seconds=0.02)
    before = account.read(has_sources=True).saved_s
    assert before == pytest.approx(0.2 - costs.seconds(4) - 0.02, abs=0.01)
    account.count_call(CallReport(4, 3, 1, 0.11))
    account.count_call(CallReport(1, 0, 0, 0.17))
    account.count_call(CallReport(1, 0, 0, 0.1))
    assert account.read(has_sources=True).saved_s == pytest.approx(before - 0.07)


def test_hit_rates_are_kept_by_evidence() -> None:
    rates = HitRates()
    priors = [rates.chance(evidence) for evidence in (1, 2, 4, 8, 32)]
    assert priors == sorted(priors)
    for _ in range(30):
        rates.observe(2, is_right=False)
        rates.observe(20, is_right=True)
    assert rates.chance(2) < 0.06
    assert rates.chance(20) > 0.97
    assert rates.chance(8) == priors[3]
    before = rates.chance(2)
    rates.fade()
    assert before < rates.chance(2) < priors[1]


# What the session asks for.


class OneScore(FakeBackend):
    """As a device whose models are cut to the last position."""

    @property
    def max_scored_tokens(self) -> int:
        return 1


def test_factory() -> None:
    backend, draft = FakeBackend([1]), DraftModel(FakeBackend([1]))
    assert make_drafter(backend, lookup=False) is None
    assert make_drafter(OneScore([1])) is None
    for options in ({}, {"draft": draft}, {"lookup": False, "draft": draft}):
        assert isinstance(make_drafter(backend, **options), Speculation)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="saves nothing here") as caught:
        make_drafter(OneScore([1]), draft=draft)
    assert "--device CPU" in caught.value.fix
