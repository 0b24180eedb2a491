"""Workloads: names, ratios, and what an answer costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import UsageError
from qwen_edge.runtime.tuning.workload import WORKLOADS, find_workload


def test_chat_is_meant_where_nothing_is_said() -> None:
    assert find_workload() is WORKLOADS["chat"]


def test_unknown_name_is_refused_with_the_closest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'agent'"):
        find_workload("agnet")


def test_name_and_ratio_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="Both"):
        find_workload("chat", "4:1")


@pytest.mark.parametrize("text", ["", "4", "4:", "0:1", "1:0", "-4:1", "4:1:2", "a:b", "1e9:1"])
def test_what_is_no_ratio_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected prompt tokens to answer tokens"):
        find_workload(None, text)


@given(st.integers(1, 999_999), st.integers(1, 999_999))
def test_a_ratio_reads_and_writes_at_least_one_token(prompt: int, answer: int) -> None:
    workload = find_workload(None, f"{prompt}:{answer}")
    assert workload.prompt_tokens >= 1 and workload.answer_tokens >= 1
    assert workload.prompt_tokens + workload.answer_tokens == 640
    assert abs(workload.prompt_tokens / 640 - prompt / (prompt + answer)) < 1 / 640


def test_four_to_one_is_what_an_agent_does() -> None:
    ratio, agent = find_workload(None, "4:1"), WORKLOADS["agent"]
    assert (ratio.prompt_tokens, ratio.answer_tokens) == (agent.prompt_tokens, agent.answer_tokens)


def test_an_answer_takes_the_time_of_its_tokens() -> None:
    assert WORKLOADS["agent"].seconds(0.01, 0.1) == pytest.approx(512 * 0.01 + 128 * 0.1)


def test_measured_prompts_leave_half_the_context_for_answers() -> None:
    assert WORKLOADS["rag"].measured_prompt_tokens(256) == 128
    assert WORKLOADS["rag"].measured_prompt_tokens(32_768) == 1024
    assert WORKLOADS["chat"].measured_prompt_tokens(32_768) == 128
