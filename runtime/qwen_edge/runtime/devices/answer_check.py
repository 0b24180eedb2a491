"""Does a device answer as the package was sealed? Asked once per package, device and driver.

GPUs and NPUs compute with kernels of their own, in many versions, and one that is wrong says
nothing: texts of exclamation marks and garbled long prompts were reported. So the first golden
tokens are asked for before anything else is. OpenVINO's devices were asked in a child already
(`compile_trial.py`), where one could be started; this is for the rest, and for ONNX Runtime's.
"""

import logging
from collections.abc import Sequence

import numpy as np

from qwen_edge.errors import ParityError
from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.environment import read_environment
from qwen_edge.runtime.golden import follow_tokens
from qwen_edge.runtime.manifest import GoldenTokens
from qwen_edge.runtime.records import Record, is_recorded, write_record

_LOGGER = logging.getLogger(__name__)
# How many golden tokens another device must give as well. They were computed in float32: later
# ones may differ for reasons that are no fault, a wrong kernel shows in the first few.
_NUM_CHECKED_TOKENS = 4
# How far an expected token may lie below the likeliest, as `follow_tokens` has it. Measured, demo
# model: kernels that round activations to int8 move logits by up to 0.025, a wrong token lies 0.3
# to 1.3 below.
_TOLERANCE = 0.1
# How far two kernels for the same may be apart. Measured, demo model: up to 0.013 where they round
# to int8 in other portions, 0.04 to 0.16 where one of them was wrong (WebGPU on SwiftShader).
_MAX_DIFFERENCE = 0.03


def check_answers(
    backend: Backend, golden: GoldenTokens, record: Record, name: str, *, compares_ways: bool
) -> None:
    """Refuse a device that answers otherwise than the package did when it was sealed.

    Args:
        backend: Empty.
        golden: The package's.
        record: Of a check that went well; it depends on all that may change the answer.
        name: Of the device, for messages.
        compares_ways: Whether to read the prompt token by token as well, and compare. It finds
            an error that is too small to change a token, and takes a step for each.

    Raises:
        ParityError: Another of the first golden tokens, or logits that are no numbers.
        EdgeError: As the backend's `forward`.

    State:
        The cache is empty afterwards. A check that went well is remembered in the user's cache
        folder, and not made again.
    """
    cache_dir = read_environment().cache_dir
    expected = golden.token_ids[:_NUM_CHECKED_TOKENS]
    num_tokens = len(golden.prompt_ids) + len(expected)
    if num_tokens > backend.max_context_tokens or is_recorded(record, cache_dir):
        return
    difference = _compare_ways(backend, golden.prompt_ids) if compares_ways else 0.0
    found = follow_tokens(backend, golden.prompt_ids, expected, _TOLERANCE)
    backend.reset()
    problem = None
    if found != expected:
        problem = f"it answers with tokens {found}, expected {expected}"
    elif difference > _MAX_DIFFERENCE:
        problem = (
            f"logits differ by {difference:.1%} of their range between reading it at once and "
            f"token by token, expected {_MAX_DIFFERENCE:.0%} at most"
        )
    if problem is not None:
        raise ParityError(
            f"{name} computes wrongly here: to the package's own test prompt {problem}.",
            "run with --device CPU, or update the driver.",
            device=name,
            found=found,
            expected=expected,
            difference=difference,
        )
    write_record(record, cache_dir)
    _LOGGER.info("%s answers the package's test prompt as it was sealed", name)


def _compare_ways(backend: Backend, prompt_ids: Sequence[int]) -> float:
    """Return how far reading a prompt at once is from reading it token by token.

    Two kernels do the two. The figure is a share of the distance from the largest logit to their
    mean.

    State:
        The cache is empty afterwards.
    """
    at_once = backend.forward(prompt_ids)
    backend.reset()
    stepped = [backend.forward([token_id]) for token_id in prompt_ids][-1]
    backend.reset()
    spread = float(at_once.max() - at_once.mean())
    return float(np.abs(at_once - stepped).max()) / spread if spread else 0.0
