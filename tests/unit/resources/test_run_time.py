"""Seconds from speeds: what they grow with, and what they do not."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.runtime.benchmark.work import ModelWork
from qwen_edge.runtime.machine.engine_speed import EngineSpeed
from qwen_edge.runtime.machine.speed import MachineSpeed
from qwen_edge.runtime.resources.run_time import RunTime, estimate_run_time

WORK = ModelWork(2_263_000_000, 84_787, 3_633_000_000, 294_912)
MACHINE = MachineSpeed(29e9, 1.5e9, 68e6)
ENGINE = EngineSpeed(0.33e9, 330e9, 60e9, 82e9)


def estimate(
    machine: MachineSpeed = MACHINE,
    engine: EngineSpeed = ENGINE,
    *,
    unread_bytes: float = 0.0,
    disk_bytes_per_s: float | None = None,
) -> RunTime:
    return estimate_run_time(
        WORK,
        machine,
        engine,
        num_layers=36,
        hidden_size=2560,
        package_bytes=2_286_000_000,
        tokenizer_bytes=11_422_654,
        unread_bytes=unread_bytes,
        disk_bytes_per_s=disk_bytes_per_s,
    )


def test_the_full_size_is_near_what_was_measured() -> None:
    """Two cores: 54 to 62 tokens/s of a prompt, 84 to 135 ms a token, 9 to 12 s to prepare."""
    time = estimate()
    assert 40 < time.prompt_tokens_per_s < 80
    assert 6 < time.answer_tokens_per_s < 10
    assert 12 < time.load_s < 22
    assert time.hash_s == pytest.approx(2_286 / 1_500)


def test_layers_of_ours_are_near_what_was_measured() -> None:
    """Two cores: 110 to 170 tokens/s of a prompt, 74 to 95 ms a token, 1.3 s to start."""
    time = estimate(engine=EngineSpeed(math.inf, 700e9, 200e9, 160e9, True, True))
    assert 130 < time.prompt_tokens_per_s < 200
    assert 10.5 < time.answer_tokens_per_s < 13.5
    assert 1.2 < time.load_s < 2.5


@pytest.mark.parametrize("field", ["memory_bytes_per_s", "hash_bytes_per_s", "loops_per_s"])
def test_a_slower_machine_takes_longer(field: str) -> None:
    slower = dataclasses.replace(MACHINE, **{field: getattr(MACHINE, field) / 2})
    fast, slow = estimate(), estimate(slower)
    assert slow.load_s + slow.hash_s + slow.step_s > fast.load_s + fast.hash_s + fast.step_s


def test_arithmetic_decides_prompts_and_both_decide_answers() -> None:
    slow_engine = estimate(engine=EngineSpeed(0.33e9, 165e9, 45e9, 41e9))
    assert slow_engine.prompt_s(512) > 1.5 * estimate().prompt_s(512)
    assert estimate().step_s < slow_engine.step_s < 1.3 * estimate().step_s
    slow_memory = estimate(dataclasses.replace(MACHINE, memory_bytes_per_s=14.5e9))
    assert slow_memory.prompt_s(512) == estimate().prompt_s(512)
    assert slow_memory.step_s_per_token == 2 * estimate().step_s_per_token


def test_a_kernel_that_is_slower_than_memory_decides_the_step() -> None:
    """Measured: Qwen3-0.6B decodes at 43 ms a token where its 383 MB take 15 to be read."""
    assert estimate(engine=EngineSpeed(0.33e9, 330e9, 20e9, 82e9)).step_s > 3_633 / 20_000


def test_files_that_are_not_in_memory_are_read_at_the_speed_of_their_disk() -> None:
    assert estimate().read_s is None
    assert estimate(unread_bytes=2e9, disk_bytes_per_s=5e8).read_s == 4.0
    assert estimate(unread_bytes=2e9).read_s is None


@given(prompt=st.integers(1, 30_000), new=st.integers(1, 2_000), more=st.integers(1, 2_000))
def test_more_tokens_take_longer_and_later_ones_longest(prompt: int, new: int, more: int) -> None:
    time = estimate()
    whole = time.answer_s(prompt, new + more)
    assert whole > time.answer_s(prompt, new) > time.prompt_s(prompt)
    later = whole - time.answer_s(prompt, new)
    first = time.answer_s(prompt, more) - time.prompt_s(prompt)
    assert later >= first * (1 - 1e-9)


def test_our_kernels_read_ahead_so_that_the_slower_of_two_counts() -> None:
    fast = dataclasses.replace(ENGINE, has_own_kernels=True)
    assert estimate(engine=fast).step_s < estimate().step_s
    slow = dataclasses.replace(fast, stepped_weights_per_s=20e9)
    assert estimate(engine=slow).step_s > 3_633 / 20_000
