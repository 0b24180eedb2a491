"""The backend of fixed shapes, in the NPU plugin's own pipeline on the CPU.

The same law as for the growing cache, and the three things the plugin gets wrong without a word.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.errors import ContextFullError
from qwen_edge.runtime.backends.openvino_static import StaticOpenVinoBackend

VOCAB_SIZE = 64
MAX_PROMPT_TOKENS = 64
STATIC_TOLERANCE = 0.02  # the plugin keeps its cache in f16

Fresh = Callable[[Sequence[int]], npt.NDArray[np.float32]]
MakeStatic = Callable[[], StaticOpenVinoBackend]
Obey = Callable[[StaticOpenVinoBackend, list[tuple[str, int]], float], None]


def make_ids(count: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB_SIZE, count)]


actions = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.integers(1, 4)),
        st.tuples(st.just("feed"), st.integers(5, 60)),
        st.tuples(st.just("trim"), st.integers(0, 12)),
        st.tuples(st.just("trim share"), st.integers(0, 4)),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    min_size=2,
    max_size=16,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=actions)
def test_law_of_fixed_shapes(
    make_static: MakeStatic, obey: Obey, steps: list[tuple[str, int]]
) -> None:
    obey(make_static(), steps, STATIC_TOLERANCE)


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
