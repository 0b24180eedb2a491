"""Which products of a graph our kernels take over, and that the graph says the same afterwards."""

import numpy as np
import pytest

from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.kernels import find_kernels, use_kernels

ov = import_openvino()
ops = ov.opset15
pytestmark = pytest.mark.skipif(
    not find_kernels().names, reason=f"no kernels here: {find_kernels().reason}"
)
RNG = np.random.default_rng(0)
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def make_weights(
    kind: str, rows: int, columns: int, group: int = 128, *, zero_points: bool = False
) -> ov.Node:
    """Return the end of a decompression as NNCF writes it: float32 [rows, columns]."""
    bits = 4 if kind.endswith("4") else 8
    codes = RNG.integers(0, 256, rows * columns * bits // 8, dtype=np.uint8)
    is_row = group == columns and bits == 8
    shape = [rows, columns] if is_row else [rows, columns // group, group]
    data = codes if kind[0] == "u" or bits == 4 else codes.view(np.int8)
    tensor = ov.Tensor(getattr(ov.Type, kind), ov.Shape(shape))
    tensor.data[:] = data.view(tensor.data.dtype).reshape(tensor.data.shape)
    node = ops.convert(ov.op.Constant(tensor), "f16")
    scale_shape = [*shape[:-1], 1]
    if zero_points:
        zeros = ops.constant(RNG.integers(100, 150, scale_shape).astype(np.uint8))
        node = ops.subtract(node, ops.convert(zeros, "f16"))
    scales = (RNG.random(scale_shape) * 0.01 + 0.001).astype(np.float16)
    node = ops.multiply(node, ops.constant(scales))
    if not is_row:
        node = ops.reshape(node, np.array([rows, columns]), False)
    return ops.convert(node, "f32")


def build(*weights: ov.Node, columns: int = 256) -> ov.Model:
    parameter = ov.op.Parameter(ov.Type.f32, ov.PartialShape([-1, -1, columns]))
    products = [ops.matmul(parameter, one, False, True) for one in weights]
    return ov.Model(products, [parameter])


def run(model: ov.Model, activations: np.ndarray) -> list[np.ndarray]:
    results = ov.Core().compile_model(model, "CPU", EXACT)(activations)
    return [np.array(results[i]) for i in range(len(model.outputs))]


@pytest.mark.parametrize(
    ("kind", "group", "zero_points"),
    [
        ("i4", 128, False),
        ("i4", 32, False),
        ("i4", 256, False),
        ("i8", 256, False),
        ("i8", 128, False),
        ("u8", 256, True),
    ],
)
def test_the_graph_computes_the_same(kind: str, group: int, zero_points: bool) -> None:
    model = build(make_weights(kind, 96, 256, group, zero_points=zero_points))
    activations = RNG.standard_normal((1, 3, 256)).astype(np.float32)
    before = run(model, activations)[0]
    done = use_kernels(model, find_kernels())
    assert (done.num_products, done.num_left) == (1, 0)
    after = run(model, activations)[0]
    assert np.linalg.norm(after - before) < 0.01 * np.linalg.norm(before)
    assert not np.array_equal(after, before)  # it is another computation


def test_products_of_one_tensor_become_one_operator() -> None:
    model = build(*(make_weights("i4", rows, 256) for rows in (64, 33, 7)))
    activations = RNG.standard_normal((1, 20, 256)).astype(np.float32)
    before = run(model, activations)
    done = use_kernels(model, find_kernels())
    assert done.num_products == 3
    types = [node.get_type_name() for node in model.get_ops()]
    assert types.count("CompressedMatMul") == 1
    assert "MatMul" not in types
    for old, new in zip(before, run(model, activations), strict=True):
        assert old.shape == new.shape
        assert np.linalg.norm(new - old) < 0.01 * np.linalg.norm(old)


@pytest.mark.parametrize(
    ("kind", "columns", "group", "zero_points"),
    [("u4", 256, 128, True), ("i4", 96, 32, False), ("u8", 256, 128, True), ("i4", 256, 16, False)],
)
def test_what_does_not_fit_stays_with_the_engine(
    kind: str, columns: int, group: int, zero_points: bool
) -> None:
    model = build(make_weights(kind, 32, columns, group, zero_points=zero_points), columns=columns)
    activations = RNG.standard_normal((1, 3, columns)).astype(np.float32)
    before = run(model, activations)[0]
    done = use_kernels(model, find_kernels())
    assert (done.num_products, done.num_left) == (0, 1)
    assert np.array_equal(run(model, activations)[0], before)


def test_a_transposed_product_stays_with_the_engine() -> None:
    parameter = ov.op.Parameter(ov.Type.f32, ov.PartialShape([-1, -1, 128]))
    product = ops.matmul(parameter, make_weights("i4", 128, 256), False, False)
    done = use_kernels(ov.Model([product], [parameter]), find_kernels())
    assert (done.num_products, done.num_left) == (0, 1)


def test_products_of_two_computed_tensors_are_not_counted() -> None:
    left = ov.op.Parameter(ov.Type.f32, ov.PartialShape([-1, 8]))
    right = ov.op.Parameter(ov.Type.f32, ov.PartialShape([-1, 8]))
    model = ov.Model([ops.matmul(left, right, False, True)], [left, right])
    done = use_kernels(model, find_kernels())
    assert (done.num_products, done.num_left) == (0, 0)


def test_names_of_outputs_stay() -> None:
    model = build(make_weights("i4", 64, 256))
    model.outputs[0].get_tensor().set_names({"logits"})
    use_kernels(model, find_kernels())
    assert model.outputs[0].get_names() == {"logits"}


def test_weights_are_not_copied() -> None:
    model = build(make_weights("i4", 2048, 4096), columns=4096)
    done = use_kernels(model, find_kernels())
    operator = next(n for n in model.get_ops() if n.get_type_name() == "CompressedMatMul")
    read = operator.input_value(1).get_node().get_tensor_view().data
    held = next(item for item in done.keeps_alive if isinstance(item, np.ndarray))
    assert read.__array_interface__["data"][0] == held.__array_interface__["data"][0]


def test_kernels_that_the_processor_lacks_are_refused() -> None:
    model = build(make_weights("i4", 64, 256))
    with pytest.raises(RuntimeError, match="no kernels named riscv"):
        use_kernels(model, find_kernels(), kernels="riscv")
