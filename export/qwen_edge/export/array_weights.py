"""Weights held in memory as numpy arrays: the simplest `WeightSource`.

For models small enough not to care: the tests, their golden figures, and anyone who made the
weights in Python. `weight_store.py` is the one for real checkpoints.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.runtime.engine import import_openvino

if TYPE_CHECKING:
    import openvino as ov
else:
    ov = import_openvino()


class ArrayWeights:
    """Hands arrays to the graph builder as they are.

    Args:
        arrays: Tensor name -> float32 or float16, named and shaped as
            `DecoderSpec.tensor_shapes` says. Copied into the graph.
        scales: Projection name -> float32 [in], what multiplies its input.
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        scales: Mapping[str, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        self._arrays = arrays
        self._scales = scales or {}

    def linear(self, name: str) -> Any:
        """Return a projection's weight, float32 [out, in]."""
        array = self._arrays[name]
        constant = ov.op.Constant(np.ascontiguousarray(array))
        constant.set_friendly_name(name)
        if array.dtype == np.float32:
            return constant.output(0)
        widened = ov.opset15.convert(constant, ov.Type.f32)
        widened.set_friendly_name(f"{name}/convert")
        return widened.output(0)

    def embedding(self, name: str) -> Any:
        """Return the embedding table, float32 [vocab, hidden]."""
        return self.linear(name)

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """Return a norm weight or bias, float32 [size]."""
        return self._arrays[name].astype(np.float32)

    def activation_scale(self, name: str) -> npt.NDArray[np.float32] | None:
        """Return what multiplies the input of a projection, or None."""
        return self._scales.get(name)


def make_random_arrays(spec: DecoderSpec, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return random weights that make a lively model: spread logits, no dead norms.

    Args:
        spec: The architecture.
        seed: From 0 to 2**32 - 1.

    Returns:
        Name -> float32 in the shapes of `spec.tensor_shapes`. Norm weights lie in 0.5 to
        1.5, matrices keep the size of what passes through them, biases are small.

    Source:
        `RandomState` is the one numpy generator whose stream is promised never to change
        (NEP 19), so golden figures need no stored weights.
    """
    random = np.random.RandomState(seed)
    arrays = {}
    for name, shape in spec.tensor_shapes().items():
        if name.endswith("norm.weight"):
            array = random.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            array = random.standard_normal(shape) * 0.2
        else:
            array = random.standard_normal(shape) * shape[1] ** -0.5
        arrays[name] = array.astype(np.float32)
    return arrays
