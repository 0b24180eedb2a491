"""The backend of fixed shapes, in the NPU plugin's own pipeline on the CPU.

The three things the plugin gets wrong without a word; what the backend promises as every backend
does is in `test_backends.py`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from qwen_edge.errors import ContextFullError
from qwen_edge.runtime.backends.openvino_static import StaticOpenVinoBackend

VOCAB_SIZE = 64
MAX_PROMPT_TOKENS = 64
STATIC_TOLERANCE = 0.02  # the plugin keeps its cache in f16

Fresh = Callable[[Sequence[int]], npt.NDArray[np.float32]]
MakeStatic = Callable[[], StaticOpenVinoBackend]


def make_ids(count: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB_SIZE, count)]


def test_single_token_after_a_conversation(make_static: MakeStatic, fresh: Fresh) -> None:
    """The plugin takes a lone first token for the next of the old conversation, whose rows it
    then still sees: logits were 4 of 3 off."""
    backend = make_static()
    backend.forward(make_ids(40))
    backend.forward([1])
    backend.reset()
    assert np.abs(backend.forward([5]) - fresh([5])).max() < STATIC_TOLERANCE
    assert np.abs(backend.forward([6]) - fresh([5, 6])).max() < STATIC_TOLERANCE


def test_prompt_beyond_the_prompt_model(make_static: MakeStatic, fresh: Fresh) -> None:
    backend = make_static()
    ids = make_ids(MAX_PROMPT_TOKENS + 20)
    assert np.abs(backend.forward(ids) - fresh(ids)).max() < STATIC_TOLERANCE


def test_to_the_last_row(make_static: MakeStatic, fresh: Fresh) -> None:
    """One row of the compiled cache is for the token in the making: 127 of 128 can be kept."""
    backend = make_static()
    ids = make_ids(backend.max_context_tokens)
    assert backend.max_context_tokens == 127
    assert np.abs(backend.forward(ids) - fresh(ids)).max() < STATIC_TOLERANCE
    with pytest.raises(ContextFullError):
        backend.forward([1])
    backend.trim(3)
    again = [*ids[:-3], 1, 2, 3]
    assert np.abs(backend.forward([1, 2, 3]) - fresh(again)).max() < STATIC_TOLERANCE
