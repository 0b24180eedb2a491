"""The search: who is tried, who is out, what is chosen, and that two models are open at most."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from qwen_edge.errors import DeviceError, EdgeError, PackageError
from qwen_edge.runtime.manifest import PropertyValue
from qwen_edge.runtime.tuning.candidate import Axis, Candidate, Option
from qwen_edge.runtime.tuning.divergence import Divergence
from qwen_edge.runtime.tuning.race import Interval, RaceResult, Sample
from qwen_edge.runtime.tuning.search import Found, Search

BASE = Candidate({"a": 0, "b": 0}, 512)
EXACT = Candidate({"a": -1, "b": 0}, 512)
A = Axis("a", tuple(Option({"a": n}) for n in (1, 2, 3)))
B = Axis("b", tuple(Option({"b": n}) for n in (0, 1)))


@dataclass
class OpenCandidate:
    """A candidate that is open until it rests."""

    candidate: Candidate
    is_open: bool = True

    def prefill(self, token_ids: object) -> float:
        """Be a runner; the lab does not ask."""
        raise NotImplementedError

    def decode(self, num_tokens: int) -> float:
        """Be a runner; the lab does not ask."""
        raise NotImplementedError

    def rest(self) -> None:
        """Close."""
        self.is_open = False


@dataclass
class FakeLab:
    """Races by a formula of the settings, exactly; each step takes seconds of its own clock."""

    seconds_of: Callable[[Candidate], float]
    kl_of: Callable[[Candidate], float] = lambda candidate: 0.0
    error_of: Callable[[Candidate], EdgeError | None] = lambda candidate: None
    trial_s: float = 1.0
    now_s: float = 0.0
    runners: list[OpenCandidate] = field(default_factory=list)
    most_open: int = 0
    num_scored: int = 0
    races: list[tuple[Candidate, Candidate]] = field(default_factory=list)
    beside: list[OpenCandidate | None] = field(default_factory=list)

    def check(self, candidate: Candidate) -> None:
        """Refuse where the script says so."""
        error = self.error_of(candidate)
        if error is not None:
            raise error

    def open(self, candidate: Candidate, beside: OpenCandidate | None) -> OpenCandidate:
        """Open."""
        self.now_s += self.trial_s
        self.beside.append(beside)
        self.runners.append(OpenCandidate(candidate))
        self.most_open = max(self.most_open, sum(runner.is_open for runner in self.runners))
        return self.runners[-1]

    def resolve(self, runner: OpenCandidate) -> Mapping[str, str]:
        """Make 3 of "a" the same as 0: what the processor cannot do."""
        shown = {name: str(value) for name, value in runner.candidate.properties.items()}
        shown["chunk"] = str(runner.candidate.prefill_chunk_tokens)
        return shown | ({"a": "0"} if shown["a"] == "3" else {})

    def measure_divergence(self, runner: OpenCandidate) -> Divergence:
        """Return the scripted distance."""
        assert runner.is_open
        self.num_scored += 1
        mean = self.kl_of(runner.candidate)
        return Divergence(mean, mean, mean, 1.0, 10)

    def race(
        self, champion: OpenCandidate, challenger: OpenCandidate, deadline_s: float
    ) -> RaceResult:
        """Decide by the formula."""
        assert champion.is_open and challenger.is_open
        self.races.append((champion.candidate, challenger.candidate))
        before, after = map(self.seconds_of, (champion.candidate, challenger.candidate))
        gain = before / after
        outcome = "faster" if gain >= 1.01 else "not faster"
        samples = Sample(before, before), Sample(after, after)
        return RaceResult(outcome, Interval(gain, gain, gain), *samples, 3)  # type: ignore[arg-type]

    def clock(self) -> float:
        """Return the time."""
        return self.now_s


def search(lab: FakeLab, *axes: Axis, max_kl: float = 0.02, deadline_s: float = math.inf) -> Found:
    """Run a search and check what holds for all of them."""
    lines: list[str] = []
    found = Search(
        lab,
        base=BASE,
        exact=EXACT,
        max_kl=max_kl,
        deadline_s=deadline_s,
        race_s=100,
        report=lines.append,
    ).run(axes, lambda runner: Sample(lab.seconds_of(runner.candidate), 1))
    assert lab.most_open <= 2
    assert not [runner for runner in lab.runners if runner.is_open]
    assert lab.kl_of(found.chosen) <= max_kl
    keys = [attempt.candidate.key for attempt in found.attempts]
    assert len(set(keys)) >= len(keys) - 1  # only the proof at the end looks a second time
    return found


def by(**gains: float) -> Callable[[Candidate], float]:
    """Return seconds: 100, divided by the gains of the values like a1 that are set."""

    def seconds(candidate: Candidate) -> float:
        values = {f"{name}{value}" for name, value in candidate.properties.items()}
        return 100 / math.prod(gain for name, gain in gains.items() if name in values)

    return seconds


def set_to(**values: PropertyValue) -> Candidate:
    """Return the base with other values."""
    return Candidate({**BASE.properties, **values}, 512)


def verdicts(found: Found) -> list[str]:
    """Return what became of each."""
    return [attempt.verdict for attempt in found.attempts]


def test_the_fastest_of_one_axis_is_found() -> None:
    found = search(FakeLab(by(a1=1.1, a2=1.3)), A)
    assert found.chosen == set_to(a=2)
    assert found.gain == pytest.approx(1.3)
    assert verdicts(found) == ["package", "faster", "faster", "not faster"]


def test_axes_are_gone_through_again_until_nothing_changes() -> None:
    """b1 pays only once a is 2, and a is better at 1 then."""

    def seconds(candidate: Candidate) -> float:
        a, b = candidate.properties["a"], candidate.properties["b"]
        table = {(0, 0): 100, (1, 0): 99.5, (2, 0): 90, (2, 1): 80, (1, 1): 70}
        return table.get((int(a), int(b)), 120)

    found = search(FakeLab(seconds), A, B)
    assert found.chosen == set_to(a=1, b=1)
    assert found.gain == pytest.approx(100 / 70)


def test_nothing_beyond_the_budget_is_raced_or_chosen() -> None:
    lab = FakeLab(by(a1=1.1, a2=9), kl_of=lambda c: 0.19 if c.properties["a"] == 2 else 0.001)
    found = search(lab, A)
    assert found.chosen == set_to(a=1)
    assert all(set_to(a=2) not in pair for pair in lab.races)
    assert "too inexact" in verdicts(found)
    assert search(lab, A, max_kl=0.2).chosen == set_to(a=2)


def test_a_package_beyond_the_budget_is_left_for_exact_arithmetic() -> None:
    lab = FakeLab(
        by(a0=9, a1=2), kl_of=lambda c: {0: 0.1, 1: 0.01, -1: 0.0}.get(int(c.properties["a"]), 1)
    )
    found = search(lab, A)
    assert found.chosen == set_to(a=1)
    assert verdicts(found)[:2] == ["too inexact", "start"]
    assert found.gain == pytest.approx(2 / 9)
    assert lab.races[-1] == (BASE, set_to(a=1))


def test_exact_arithmetic_stays_where_nothing_else_is_allowed() -> None:
    found = search(FakeLab(by(a0=3), kl_of=lambda c: float(c.properties["a"] != -1)), A)
    assert found.chosen == EXACT


def test_what_the_engine_makes_the_same_of_is_not_measured() -> None:
    lab = FakeLab(by(a3=5))
    found = search(lab, Axis("a", (Option({"a": 3}),)))
    assert verdicts(found) == ["package", "same"]
    assert (lab.num_scored, lab.races) == (1, [])


def test_a_refusal_is_noted_and_the_search_goes_on() -> None:
    lab = FakeLab(
        by(a2=1.5),
        error_of=lambda c: DeviceError("Not here.") if c.properties["a"] == 1 else None,
    )
    found = search(lab, A)
    assert found.chosen == set_to(a=2)
    assert found.attempts[1].reason == "Not here."


def test_a_package_that_changes_meanwhile_ends_the_search() -> None:
    """Seen when a model was trained anew while it was tuned: every setting looked inexact."""
    lab = FakeLab(
        by(), error_of=lambda c: PackageError("Changed.") if c.properties["a"] == 2 else None
    )
    with pytest.raises(PackageError, match="Changed"):
        search(lab, A)


def test_several_steps_are_proved_against_the_package() -> None:
    lab = FakeLab(by(a1=1.2, b1=1.1))
    found = search(lab, Axis("a", A.options[:1]), B)
    assert lab.races[-1] == (BASE, set_to(a=1, b=1))
    assert found.gain == pytest.approx(1.32)
    single = FakeLab(by(a1=1.2))
    search(single, Axis("a", A.options[:1]))
    assert single.races == [(BASE, set_to(a=1))]


def test_steps_that_were_luck_are_taken_back() -> None:
    class Lucky(FakeLab):
        def race(
            self, champion: OpenCandidate, challenger: OpenCandidate, deadline_s: float
        ) -> RaceResult:
            is_proof = champion.candidate == BASE and challenger.candidate == set_to(a=1, b=1)
            self.seconds_of = by() if is_proof else by(a1=1.2, b1=1.2)
            return super().race(champion, challenger, deadline_s)

    found = search(Lucky(by(a1=1.2, b1=1.2)), Axis("a", A.options[:1]), B)
    assert (found.chosen, found.gain) == (BASE, 1.0)
    assert verdicts(found)[-1] == "not clear"


def test_when_time_is_up_the_rest_is_named() -> None:
    lab = FakeLab(by(a1=1.1, a2=1.3), trial_s=10)
    found = search(lab, A, deadline_s=35)
    assert found.chosen == set_to(a=1)
    assert found.not_tried == ("a=2", "a=3")
    assert lab.now_s <= 35


def test_numbers_that_are_known_are_not_scored_again() -> None:
    axis = Axis("chunk", (Option(prefill_chunk_tokens=256),))
    lab = FakeLab(lambda candidate: candidate.prefill_chunk_tokens)
    found = search(lab, axis)
    assert found.chosen.prefill_chunk_tokens == 256
    assert lab.num_scored == 1
    assert lab.beside[1] is lab.runners[0]  # and nothing was compiled again
