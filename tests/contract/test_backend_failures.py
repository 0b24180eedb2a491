"""What the OpenVINO backends do when the engine fails, gives no numbers or is interrupted."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qwen_edge.errors import DeviceError, ParityError
from qwen_edge.runtime.backends.compiling import compile_model
from qwen_edge.runtime.backends.openvino import OpenVinoBackend

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
EXACT_TOLERANCE = 1e-4
STATIC_TOLERANCE = 0.02  # the NPU plugin keeps its cache in f16

Fresh = Callable[[Sequence[int]], npt.NDArray[np.float32]]


def make_backend(compiled: Any) -> OpenVinoBackend:
    return OpenVinoBackend(compiled, device="CPU", max_context_tokens=80, prefill_chunk_tokens=16)


@pytest.mark.parametrize("poison", [np.nan, np.inf], ids=["nan", "infinite"])
def test_logits_that_are_no_numbers_are_refused(
    make_decoder: Callable[..., Any], poison: float
) -> None:
    backend = make_backend(compile_model(make_decoder(poison), "CPU", EXACT))
    with pytest.raises(ParityError, match="of 64 logits that are no finite numbers") as caught:
        backend.forward([1, 2])
    assert "qwen-edge verify" in caught.value.fix
    assert backend.cached_tokens == 0


class FailingRequest:
    """An infer request that fails once, before or after the engine did its work."""

    def __init__(self, request: Any, error: BaseException, *, is_late: bool) -> None:
        self._request = request
        self._error: BaseException | None = error
        self._is_late = is_late

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)

    def infer(self, *args: object, **options: object) -> None:
        error, self._error = self._error, None
        if error is None or self._is_late:
            self._request.infer(*args, **options)
        if error is not None:
            raise error


@pytest.mark.parametrize("is_late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("Exception from src/x.cpp:1:\nCL_OUT_OF_RESOURCES\n"), DeviceError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["engine", "ctrl-c"],
)
@pytest.mark.parametrize("kind", ["growing", "fixed"])
def test_failure_within_the_engine_empties_the_cache(
    request: pytest.FixtureRequest,
    fresh: Fresh,
    kind: str,
    error: BaseException,
    expected: type[BaseException],
    is_late: bool,
) -> None:
    """Whether the engine appended before it failed is unknown; the next answer is right."""
    backend: Any
    if kind == "growing":
        backend = make_backend(request.getfixturevalue("compiled"))
    else:
        backend = request.getfixturevalue("make_static")()
    ids = list(range(30))
    backend.forward(ids[:20])
    inner = backend._request
    inner._request = FailingRequest(inner._request, error, is_late=is_late)
    with pytest.raises(expected) as caught:
        backend.forward(ids[20:])
    if isinstance(caught.value, DeviceError):
        num_tokens = 30 if kind == "growing" else 21  # fixed shapes take one token a call
        assert f"stopped at {num_tokens} tokens of context: CL_OUT_OF_RESOURCES" in str(
            caught.value
        )
        assert caught.value.__cause__ is error
    assert backend.cached_tokens == 0
    tolerance = EXACT_TOLERANCE if kind == "growing" else STATIC_TOLERANCE
    assert np.abs(backend.forward(ids) - fresh(ids)).max() < tolerance
