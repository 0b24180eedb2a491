"""Cutting the logits to the last positions: equal values, wherever the head is found."""

from typing import Any

import numpy as np
import pytest

from qwen_edge.runtime.backends.last_logits import keep_last_logits
from qwen_edge.runtime.engine import import_openvino

HIDDEN, VOCAB = 4, 7


def build_head(*, with_tail: bool = False, output: str = "logits") -> Any:
    """Return a model of a head alone: hidden [b, s, 4] -> logits [b, s, 7]."""
    ov = import_openvino()
    ops = ov.opset15
    hidden = ops.parameter(ov.PartialShape([-1, -1, HIDDEN]), ov.Type.f32, name="hidden")
    weight = np.random.RandomState(0).standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    node = ops.matmul(ops.multiply(hidden, np.float32(2.0)), weight, False, True, name="lm_head")
    if with_tail:
        # Soft-capped logits with a bias, as other models have them.
        node = ops.add(node, np.full((1, 1, VOCAB), 0.5, np.float32))
        node = ops.multiply(ops.tanh(ops.divide(node, np.float32(3.0))), np.float32(3.0))
    result = ops.result(node)
    result.get_output_tensor(0).set_names({output})
    return ov.Model([result], [hidden], "head")


def run(model: Any, hidden: Any) -> Any:
    """Compute the logits."""
    compiled = import_openvino().Core().compile_model(model, "CPU")
    return compiled([hidden])[0]


@pytest.mark.parametrize("with_tail", [False, True], ids=["plain", "with-tail"])
@pytest.mark.parametrize("num_positions", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 6])
def test_last_positions_are_those_of_the_full_model(
    with_tail: bool, num_positions: int, length: int
) -> None:
    """Same numbers, fewer rows; a short input keeps all it has."""
    hidden = np.random.RandomState(1).standard_normal((2, length, HIDDEN)).astype(np.float32)
    full = run(build_head(with_tail=with_tail), hidden)
    model = build_head(with_tail=with_tail)
    assert keep_last_logits(model, num_positions)
    cut = run(model, hidden)
    assert cut.shape == (2, min(length, num_positions), VOCAB)
    np.testing.assert_allclose(cut, full[:, -num_positions:], rtol=1e-5)


def test_only_the_head_is_cut() -> None:
    """The slice stands right before the matrix product: the head's work is what is saved."""
    model = build_head()
    keep_last_logits(model)
    head = next(node for node in model.get_ops() if node.get_friendly_name() == "lm_head")
    assert head.input_value(0).get_node().get_type_name() == "Slice"
    assert head.input_value(0).get_node().get_friendly_name() == "lm_head/last_positions"


def test_model_without_logits_is_left_alone() -> None:
    """No output of that name, or no matrix product behind it: nothing changes."""
    ov = import_openvino()
    assert not keep_last_logits(build_head(output="scores"))
    hidden = ov.opset15.parameter(ov.PartialShape([-1, -1, HIDDEN]), ov.Type.f32)
    result = ov.opset15.result(ov.opset15.relu(hidden))
    result.get_output_tensor(0).set_names({"logits"})
    model = ov.Model([result], [hidden], "no_head")
    num_nodes = len(model.get_ops())
    assert not keep_last_logits(model)
    assert len(model.get_ops()) == num_nodes


def test_no_positions_is_an_error() -> None:
    """Zero would silently mean all of them."""
    with pytest.raises(ValueError, match="num_positions is 0"):
        keep_last_logits(build_head(), 0)
