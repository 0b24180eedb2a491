"""Several devices behind one backend: the tokens are those of one device that never fails."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import (
    ContextFullError,
    DeviceError,
    EdgeError,
    ParityError,
    ResourceError,
    UsageError,
)
from qwen_edge.runtime.backends.backend import Backend, LogitsRows
from qwen_edge.runtime.backends.failover import FailoverBackend
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.backends.seats import Candidate, Loaded
from qwen_edge.runtime.devices.trying import Refusal

VOCAB_SIZE = 64
NEVER = 10**9


def next_token(token_ids: Sequence[int]) -> int:
    """Depends on every id before it."""
    return zlib.crc32(np.array(token_ids, np.int32).tobytes()) % VOCAB_SIZE


class Device(FakeBackend):
    """A fake that stops for good at a call, and may score one token a call only."""

    def __init__(
        self,
        *,
        dies_at: int = NEVER,
        context: int = 64,
        scored: int = 16,
        error: EdgeError | None = None,
    ) -> None:
        super().__init__(next_token, vocab_size=VOCAB_SIZE, max_context_tokens=context)
        self.dies_at = dies_at
        self.error = error or DeviceError("Device 'X' stopped.", "ask again")
        self._scored = scored

    @property
    def max_scored_tokens(self) -> int:
        return self._scored

    def forward_scored(self, token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        if self.num_forward_calls + 1 >= self.dies_at and not self.is_closed:
            self.num_forward_calls += 1
            self.cached_ids.clear()
            raise self.error
        return super().forward_scored(token_ids, num_scored=num_scored)


Make = Callable[[], Backend]


@dataclass
class Source:
    """Devices of a script: each is made, or refused, anew at every load."""

    devices: dict[Candidate, Make]
    refused: dict[str, str] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)

    @property
    def candidates(self) -> Sequence[Candidate]:
        return [entry for entry in self.devices if entry.name not in self.refused]

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        return tuple(Refusal("openvino", name, text) for name, text in self.refused.items())

    def load(self, candidate: Candidate, reason: str) -> Loaded[str]:
        self.loads.append(candidate.name)
        make = next(make for entry, make in self.devices.items() if entry.name == candidate.name)
        return Loaded(make(), f"{candidate.name}, {reason}")

    def refuse(self, candidate: Candidate, problem: str) -> None:
        self.refused[candidate.name] = problem


def open_on(*devices: tuple[Candidate, Make]) -> tuple[FailoverBackend[str], Source]:
    source = Source(dict(devices))
    first, make = devices[0]
    return FailoverBackend(source, first, Loaded(make(), first.name)), source


def gpu(**facts: int | EdgeError | None) -> tuple[Candidate, Make]:
    return Candidate("GPU", 64), lambda: Device(**facts)  # type: ignore[arg-type]


def cpu(context: int = 64, **facts: int) -> tuple[Candidate, Make]:
    return Candidate("CPU", context), lambda: Device(context=context, **facts)


def refusing(name: str, error: EdgeError, context: int = 64) -> tuple[Candidate, Make]:
    def refuse() -> Backend:
        raise error

    return Candidate(name, context), refuse


def expect(ids: Sequence[int], num_rows: int) -> list[int]:
    """Return the favoured ids after the last tokens of a sequence."""
    return [next_token(ids[: len(ids) - num_rows + 1 + row]) for row in range(num_rows)]


STEPS = st.lists(
    st.tuples(st.sampled_from(["feed", "score", "trim", "reset", "route"]), st.integers(1, 12)),
    max_size=25,
)
DEATHS = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from([1, 16]), st.integers(20, 64)), max_size=3
)


@given(STEPS, DEATHS)
def test_whatever_stops_the_tokens_are_those_of_the_whole_sequence(
    steps: list[tuple[str, int]], deaths: list[tuple[int, int, int]]
) -> None:
    """All but the last device die, with various limits; the last holds most."""
    devices = [
        (
            Candidate(f"D{index}", context),
            lambda dies=dies, scored=scored, context=context: Device(
                dies_at=dies, scored=scored, context=context
            ),
        )
        for index, (dies, scored, context) in enumerate(deaths)
    ]
    backend, _ = open_on(*devices, cpu())
    sequence: list[int] = []
    source = iter(int(n) for n in np.random.default_rng(1).integers(0, VOCAB_SIZE, 999))
    for action, amount in steps:
        if action == "trim":
            amount = min(amount, len(sequence))
            backend.trim(amount)
            del sequence[len(sequence) - amount :]
        elif action == "reset":
            backend.reset()
            sequence.clear()
        elif action == "route":
            backend.route(5 * amount)
            sequence = list(backend.cached_ids)
        else:
            new = [next(source) for _ in range(min(amount, 64 - len(sequence)))]
            if not new:
                continue
            rows = min(len(new), backend.max_scored_tokens) if action == "score" else 1
            sequence += new
            logits = backend.forward_scored(new, num_scored=rows)
            assert [int(row.argmax()) for row in logits] == expect(sequence, rows)
        assert backend.cached_tokens == len(sequence)
        assert list(backend.cached_ids) == sequence


def test_another_device_reads_the_sequence_and_it_is_said() -> None:
    backend, source = open_on(gpu(dies_at=3), cpu())
    backend.forward([1, 2, 3])
    backend.forward([4])
    assert backend.take_notices() == ()
    assert int(backend.forward([5]).argmax()) == next_token([1, 2, 3, 4, 5])
    assert (backend.place, backend.places, source.loads) == ("CPU", ("CPU",), ["CPU"])
    assert backend.where == "CPU, because GPU stopped"
    assert backend.take_notices() == (
        "Device 'X' stopped. CPU goes on from there, and answers from now on.",
    )
    assert backend.take_notices() == ()
    assert backend.refusals == (
        Refusal("openvino", "GPU", "it stopped in the middle: Device 'X' stopped"),
    )


@pytest.mark.parametrize("error", [ParityError("NaN.", "x"), ResourceError("No memory.", "x")])
def test_wrong_numbers_and_lack_of_memory_are_no_reason_to_try_the_same_again(
    error: EdgeError,
) -> None:
    backend, _ = open_on(gpu(dies_at=2, error=error), cpu())
    backend.forward([1])
    backend.forward([2])
    assert backend.place == "CPU"
    alone, source = open_on(gpu(dies_at=1, error=error))
    with pytest.raises(type(error)):
        alone.forward([1])
    assert source.loads == []


def test_scores_of_one_call_are_made_in_several_where_a_device_gives_one_only() -> None:
    backend, _ = open_on(gpu(dies_at=2), cpu(scored=1))
    backend.forward([1, 2])
    rows = backend.forward_scored([3, 4, 5, 6], num_scored=3)
    assert [int(row.argmax()) for row in rows] == expect([1, 2, 3, 4, 5, 6], 3)
    assert backend.max_scored_tokens == 1


def test_a_device_that_was_trimmed_and_left_goes_on_from_what_it_holds() -> None:
    npu = (Candidate("NPU", 40, 16), lambda: Device(context=40, dies_at=3))
    backend, _ = open_on(npu, cpu())
    backend.route(20)
    backend.forward([1, 2, 3, 4])
    backend.trim(2)
    backend.route(3)
    for ids in ([1, 2], [7]):
        backend.forward(ids)
    assert int(backend.forward([8]).argmax()) == next_token([1, 2, 7, 8])
    assert (backend.place, backend.cached_ids) == ("CPU", (1, 2, 7, 8))


def test_wrong_numbers_where_nothing_else_can_be_loaded_are_told_and_tried_anew() -> None:
    error = ParityError("NaN.", "x")
    refusal = DeviceError("No.", "x")
    dies = iter([2, NEVER])
    first = (Candidate("GPU", 64), lambda: Device(dies_at=next(dies), error=error))
    backend, source = open_on(first, refusing("CPU", refusal))
    backend.forward([1])
    with pytest.raises(ParityError):
        backend.forward([2])
    assert (backend.cached_tokens, backend.places) == (0, ())
    assert int(backend.forward([3]).argmax()) == next_token([3])
    assert source.loads == ["CPU", "GPU"]
    assert backend.take_notices() == ("NaN. GPU was set up again and goes on from there.",)


def test_the_only_device_is_set_up_again_once_an_answer() -> None:
    backend, source = open_on(gpu(dies_at=3))
    backend.forward([1, 2])
    backend.forward([3])
    assert int(backend.forward([4]).argmax()) == next_token([1, 2, 3, 4])
    assert source.loads == ["GPU"]
    assert backend.take_notices() == (
        "Device 'X' stopped. GPU was set up again and goes on from there.",
    )
    with pytest.raises(DeviceError, match="stopped"):  # its third call: it read, answered, and …
        backend.forward([5])
    assert backend.cached_tokens == 0
    backend.route(2)
    backend.forward([1])
    assert source.loads == ["GPU", "GPU"]


def test_a_device_that_cannot_be_set_up_again_is_asked_at_the_next_answer() -> None:
    made: list[Device] = []

    def make() -> Backend:
        if len(made) == 1:
            made.append(Device())
            raise DeviceError("The driver is gone.", "x")
        made.append(Device(dies_at=2 if not made else NEVER))
        return made[-1]

    backend, source = open_on((Candidate("GPU", 64), make))
    backend.forward([1])
    for _ in range(2):  # nothing is tried anew within the answer
        with pytest.raises(DeviceError, match="Device 'X' stopped"):
            backend.forward([2])
    assert (source.loads, backend.cached_tokens, backend.places) == (["GPU"], 0, ())
    assert made[0].is_closed
    backend.trim(0)
    backend.reset()
    backend.route(3)
    assert int(backend.forward([1, 2]).argmax()) == next_token([1, 2])


def test_a_device_that_refuses_is_passed_over_in_the_middle() -> None:
    refusal = DeviceError("Device 'NPU' refused the model.", "x")
    backend, source = open_on(gpu(dies_at=2), refusing("NPU", refusal), cpu())
    backend.forward([1])
    backend.forward([2])
    assert (backend.place, source.loads) == ("CPU", ["NPU", "CPU"])
    assert [entry.device for entry in backend.refusals] == ["NPU", "GPU"]


def test_a_device_that_stops_while_it_reads_is_passed_over() -> None:
    second = (Candidate("NPU", 64), lambda: Device(dies_at=1))
    backend, source = open_on(gpu(dies_at=2), second, cpu())
    backend.forward([1])
    assert int(backend.forward([2]).argmax()) == next_token([1, 2])
    assert (backend.place, source.loads) == ("CPU", ["NPU", "CPU"])
    assert backend.places == ("CPU",)


def test_prompts_go_where_they_fit_and_each_device_keeps_its_cache() -> None:
    npu = (Candidate("NPU", 40, 16), lambda: Device(context=40))
    backend, source = open_on(npu, cpu())
    assert (backend.max_context_tokens, backend.max_prompt_tokens) == (64, None)
    backend.route(3)
    backend.forward([1, 2, 3])
    backend.route(20)
    assert (backend.place, backend.cached_ids) == ("CPU", ())
    assert backend.take_notices() == (
        "NPU takes prompts of up to 16 tokens, and this one has 20: CPU answers it.",
    )
    backend.forward([9] * 20)
    backend.route(4)
    assert (backend.place, backend.cached_ids) == ("NPU", (1, 2, 3))
    assert backend.take_notices() == ()
    backend.route(24)
    assert (backend.place, len(backend.cached_ids), source.loads) == ("CPU", 20, ["CPU"])


@pytest.mark.parametrize(
    ("num_prompt", "num_new", "place"),
    [(10, None, "NPU"), (10, 30, "NPU"), (10, 31, "CPU"), (16, 24, "NPU"), (17, None, "CPU")],
)
def test_a_length_that_was_asked_for_counts(
    num_prompt: int, num_new: int | None, place: str
) -> None:
    npu = (Candidate("NPU", 40, 16), lambda: Device(context=40))
    backend, _ = open_on(npu, cpu())
    backend.route(num_prompt, num_new)
    assert backend.place == place


def test_a_prompt_that_leaves_hardly_any_room_goes_where_there_is_more() -> None:
    backend, _ = open_on(cpu(context=40), (Candidate("GPU", 60), lambda: Device(context=60)))
    backend.route(30)
    assert backend.place == "CPU"
    backend.route(31)
    assert backend.place == "GPU"
    assert "CPU holds 40 tokens with the answer, and this one has 31" in backend.take_notices()[0]
    backend.route(59)
    assert backend.place == "GPU"  # tight, and nowhere is more


def test_the_limits_of_a_device_are_known_exactly_once_it_is_loaded() -> None:
    npu = (Candidate("NPU", 40, 16), lambda: Device(context=40))
    backend, _ = open_on(npu, (Candidate("CPU", 64), lambda: Device(context=50)))
    assert backend.max_context_tokens == 64
    backend.route(20)
    assert (backend.place, backend.max_context_tokens) == ("CPU", 50)


def test_an_answer_that_outgrows_its_device_goes_on_elsewhere() -> None:
    backend, _ = open_on(
        (Candidate("NPU", 6, 4), lambda: Device(context=5)),  # one row is not for the cache
        cpu(),
    )
    backend.forward([1, 2, 3])
    backend.forward([4])
    backend.forward([5])
    assert backend.place == "NPU"
    assert int(backend.forward([6]).argmax()) == next_token([1, 2, 3, 4, 5, 6])
    assert backend.place == "CPU"
    assert backend.take_notices() == (
        "The conversation outgrew the 5 tokens of NPU. CPU goes on from there.",
    )
    assert [entry.device for entry in backend.refusals] == []


def test_where_memory_does_not_hold_it_twice_the_first_is_released() -> None:
    npu_device = Device(context=40)
    full = ResourceError("Running this model on CPU takes about 2 GB.", "close programs")

    def make_cpu() -> Backend:
        if not npu_device.is_closed:
            raise full
        return Device()

    backend, source = open_on(
        (Candidate("NPU", 40, 16), lambda: npu_device), (Candidate("CPU", 64), make_cpu)
    )
    backend.route(20)
    assert (backend.place, backend.places, source.loads) == ("CPU", ("CPU",), ["CPU", "CPU"])
    assert "memory does not hold the model on two devices" in backend.refusals[0].problem
    backend.route(3)
    assert backend.place == "CPU"  # going to and fro would load it each time


def test_where_nothing_takes_a_prompt_the_rest_goes_on() -> None:
    full = ResourceError("Running this model on CPU takes about 2 GB.", "close programs")
    backend, source = open_on(
        (Candidate("NPU", 40, 16), lambda: Device(context=40)), refusing("CPU", full)
    )
    backend.forward([1])
    with pytest.raises(ContextFullError) as caught:
        backend.route(20)
    assert caught.value.problem == (
        "The conversation needs 20 tokens, but NPU takes prompts of up to 16, and no other device "
        "can take over (CPU: Running this model on CPU takes about 2 GB)."
    )
    assert caught.value.facts["max_prompt_tokens"] == 16
    assert (backend.max_context_tokens, backend.max_prompt_tokens) == (40, 16)
    assert source.loads == ["CPU", "CPU"]  # the second time with the first device released
    backend.route(3)
    assert int(backend.forward([1, 2, 3]).argmax()) == next_token([1, 2, 3])


def test_an_answer_without_more_room_anywhere_ends() -> None:
    backend, _ = open_on(cpu(context=4), refusing("GPU", DeviceError("No.", "x")))
    backend.forward([1, 2, 3, 4])
    with pytest.raises(ContextFullError):
        backend.forward([5])
    assert backend.place == "CPU"
    assert backend.cached_ids == (1, 2, 3, 4)
    assert "fills the 4 tokens of CPU, and no other device can go on" in backend.take_notices()[0]


def test_snapshots_are_those_of_the_device_in_use() -> None:
    backend, _ = open_on(gpu(), cpu())
    backend.forward([1, 2, 3])
    taken = backend.snapshot()
    backend.reset()
    backend.restore(taken)
    assert backend.cached_ids == (1, 2, 3)
    with pytest.raises(ContextFullError):
        other, _ = open_on(cpu(context=2))
        other.restore(taken)
    assert int(backend.forward([4]).argmax()) == next_token([1, 2, 3, 4])


def test_closing_releases_every_device() -> None:
    made: list[Device] = []

    def make(context: int) -> Make:
        def build() -> Backend:
            made.append(Device(context=context))
            return made[-1]

        return build

    backend, _ = open_on((Candidate("NPU", 40, 16), make(40)), (Candidate("CPU", 64), make(64)))
    backend.route(20)
    assert len(made) == 2
    backend.close()
    backend.close()
    assert all(device.is_closed for device in made)
    assert backend.cached_tokens == 0
    for call in (lambda: backend.forward([1]), lambda: backend.route(1), backend.snapshot):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_control_c_within_a_call_leaves_no_tokens_behind() -> None:
    device = Device()
    backend, _ = open_on((Candidate("CPU", 64), lambda: device))
    backend.forward([1, 2])

    def interrupt(token_ids: Sequence[int], *, num_scored: int) -> LogitsRows:
        device.cached_ids.clear()
        raise KeyboardInterrupt

    device.forward_scored = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        backend.forward([3])
    del device.forward_scored
    assert backend.cached_ids == ()
    assert int(backend.forward([7]).argmax()) == next_token([7])
