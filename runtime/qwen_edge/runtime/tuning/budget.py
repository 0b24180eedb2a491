"""What tuning may cost: accuracy of the answers, and time of the person who waits."""

import math

from qwen_edge.errors import UsageError

DEFAULT_MAX_KL = 0.02
"""Nats a token, on top of what the weights cost: llama.cpp's Q5_K_M is 0.011 away from the
original model, its Q4_K_M 0.031.

Source: llama.cpp, perplexity/README.md, scoreboard of Llama 3 8B.
"""
DEFAULT_TIME_LIMIT_S = 900.0
"""Full size on two cores: some eight trials of one to two minutes each."""


def check_budget(max_kl: float, time_limit_s: float) -> None:
    """Refuse budgets that nothing could be measured with.

    Raises:
        UsageError: Naming the value and what it may be.
    """
    if not (math.isfinite(max_kl) and max_kl >= 0):
        raise UsageError(
            f"The KL budget is {max_kl}; expected 0 or more.",
            f"leave it out for {DEFAULT_MAX_KL}",
            option="max_kl",
        )
    if not (math.isfinite(time_limit_s) and time_limit_s > 0):
        raise UsageError(
            f"The time limit is {time_limit_s} s; expected more than 0.",
            f"leave it out for {DEFAULT_TIME_LIMIT_S:g}",
            option="time_limit_s",
        )
