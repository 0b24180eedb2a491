"""Our kernels give the numbers that their rounding allows, for every kind of weights and processor.

The reference rounds activations as the kernels do and multiplies in float64, so what may differ is
the order of sums alone.
"""

import importlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.kernels import find_kernels

pytestmark = pytest.mark.skipif(
    not find_kernels().names, reason=f"no kernels here: {find_kernels().reason}"
)
FEW = 16  # rows up to which weights are unpacked on the way
GROUP = 32  # columns whose activations share a scale
STEP = 128  # columns
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Matrix:
    """Weights as bytes, and the numbers they stand for, float64 [rows, columns]."""

    parts: tuple[npt.NDArray[np.uint8], ...]
    bits: int
    values: npt.NDArray[np.float64]
    scaled: npt.NDArray[np.float32]  # bfloat16 where tiles multiply: rounded once more


def make_matrix(
    seed: int, *, bits: int, zero_points: bool, rows: int, columns: int, group: int
) -> Matrix:
    draw = np.random.default_rng(seed)
    scales = ((draw.random((rows, columns // group)) + 0.2) * 0.01).astype(np.float16)
    codes = draw.integers(0, 256, (rows, columns * bits // 8), dtype=np.uint8)
    if bits == 4:
        whole = np.stack([codes & 15, codes >> 4], -1).reshape(rows, columns).astype(np.int64)
        whole = np.where(whole > 7, whole - 16, whole)
    else:
        whole = (codes if zero_points else codes.view(np.int8)).astype(np.int64)
    parts = [codes, scales.view(np.uint8)]
    if zero_points:
        zeros = draw.integers(90, 170, (rows, 1), dtype=np.uint8)
        whole -= zeros.astype(np.int64)
        parts.append(zeros)
    spread = np.repeat(scales.astype(np.float64), group, axis=1)
    return Matrix(tuple(parts), bits, whole * spread, to_bfloat16(whole * spread))


def to_bfloat16(values: npt.NDArray[np.float64]) -> Floats:
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def multiply(matrices: list[Matrix], activations: Floats, kernels: str) -> list[Floats]:
    """Run the operator alone in the engine."""
    ov = import_openvino()
    factory = importlib.import_module("openvino.utils.node_factory").NodeFactory()
    factory.add_extension(str(find_kernels().path))
    columns = activations.shape[-1]
    parameter = ov.op.Parameter(ov.Type.f32, ov.PartialShape([-1, -1, columns]))
    inputs = [parameter.output(0)]
    for matrix in matrices:
        for part in matrix.parts:
            constant = ov.op.Constant(ov.Tensor(part, shared_memory=True), True)
            inputs.append(constant.output(0))
    has_zero_points = len(matrices[0].parts) == 3
    attributes = {"bits": matrices[0].bits, "zero_points": has_zero_points, "kernels": kernels}
    operator = factory.create("CompressedMatMul", inputs, attributes)
    model = ov.Model(operator.outputs(), [parameter])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(activations)
    return [np.array(results[i]) for i in range(len(matrices))]


def round_activations(activations: Floats, bits: int) -> npt.NDArray[np.float64]:
    """Round to 8 bits in groups, as float32 arithmetic does it.

    With 8-bit weights a group is 16 columns of the one half of a step, and 16 of the other.
    """
    if bits == 8:
        steps = activations.reshape(*activations.shape[:-1], -1, 2, STEP // GROUP, GROUP // 2)
        ordered = np.ascontiguousarray(steps.swapaxes(-3, -2)).reshape(activations.shape)
        rounded = round_activations(ordered, 4)
        apart = rounded.reshape(*activations.shape[:-1], -1, STEP // GROUP, 2, GROUP // 2)
        return apart.swapaxes(-3, -2).reshape(activations.shape)
    grouped = activations.reshape(*activations.shape[:-1], -1, GROUP)
    most = np.abs(grouped).max(-1, keepdims=True)
    factor = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    scale = (most / np.float32(127)).astype(np.float64)
    return (np.rint(grouped * factor) * scale).reshape(activations.shape)


def expect(matrix: Matrix, activations: Floats, kernels: str) -> npt.NDArray[np.float64]:
    if kernels == "amx" and activations.shape[1] > FEW:
        rounded = to_bfloat16(activations.astype(np.float64)).astype(np.float64)
        return rounded @ matrix.scaled.astype(np.float64).T
    return round_activations(activations, matrix.bits) @ matrix.values.T


@given(
    kernels=st.sampled_from(find_kernels().names or ("none",)),
    kind=st.sampled_from([(4, False), (8, False), (8, True)]),
    group=st.sampled_from([32, 64, 128, 256, 0]),
    steps=st.integers(1, 12),
    rows=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    num_tokens=st.sampled_from([1, 2, 3, 4, 5, 7, 9, 16, 17, 31, 33, 64, 70]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=120, deadline=None)
def test_products_are_those_of_rounded_activations(
    kernels: str,
    kind: tuple[int, bool],
    group: int,
    steps: int,
    rows: list[int],
    num_tokens: int,
    seed: int,
) -> None:
    bits, zero_points = kind
    columns = steps * STEP
    is_row = zero_points or group == 0 or columns % group or (bits == 8 and group % STEP)
    per_group = columns if is_row else group
    matrices = [
        make_matrix(
            seed + i,
            bits=bits,
            zero_points=zero_points,
            rows=count,
            columns=columns,
            group=per_group,
        )
        for i, count in enumerate(rows)
    ]
    draw = np.random.default_rng(seed)
    activations = draw.standard_normal((1, num_tokens, columns)).astype(np.float32)
    activations *= np.float32(10.0) ** draw.integers(-3, 3)
    for matrix, result in zip(matrices, multiply(matrices, activations, kernels), strict=True):
        wanted = expect(matrix, activations, kernels)
        size = np.abs(activations).max() * np.abs(matrix.values).max() * np.sqrt(columns)
        assert np.abs(result - wanted).max() <= 2e-5 * size


@pytest.mark.parametrize("kernels", find_kernels().names)
@pytest.mark.parametrize(
    ("bits", "zero_points", "group"),
    [(4, False, 128), (4, False, 32), (8, False, 896), (8, True, 896)],
)
def test_a_row_is_the_same_to_the_bit_among_others(
    kernels: str, bits: int, zero_points: bool, group: int
) -> None:
    columns = 896  # seven steps: with the widest vectors half a period is left
    matrix = make_matrix(
        1, bits=bits, zero_points=zero_points, rows=70, columns=columns, group=group
    )
    draw = np.random.default_rng(2)
    activations = draw.standard_normal((1, 80, columns)).astype(np.float32)
    many = multiply([matrix], activations, kernels)[0]
    few = multiply([matrix], activations[:, :FEW], kernels)[0]
    for num_tokens in (1, 2, 3, 4, 5, 8, 9, 15):
        alone = multiply([matrix], activations[:, :num_tokens], kernels)[0]
        assert np.array_equal(alone, few[:, :num_tokens])
    for num_tokens in (17, 32, 33, 79):
        alone = multiply([matrix], activations[:, :num_tokens], kernels)[0]
        assert np.array_equal(alone, many[:, :num_tokens])
    if kernels != "amx":  # whose tiles compute otherwise
        assert np.array_equal(few, many[:, :FEW])


@pytest.mark.parametrize("kernels", find_kernels().names)
@pytest.mark.parametrize("num_tokens", [3, 40])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_none_and_in_its_row(
    kernels: str, num_tokens: int, bad: float
) -> None:
    matrix = make_matrix(3, bits=4, zero_points=False, rows=40, columns=256, group=128)
    activations = np.ones((1, num_tokens, 256), np.float32)
    activations[0, 1, 77] = bad
    result = multiply([matrix], activations, kernels)[0]
    assert not np.isfinite(result[0, 1]).any()
    assert np.isfinite(np.delete(result, 1, axis=1)).all()


@pytest.mark.parametrize("kernels", find_kernels().names)
@pytest.mark.parametrize("value", [0.0, 1e-38, 1e-44, 3e38])
def test_extreme_activations_give_finite_products(kernels: str, value: float) -> None:
    matrix = make_matrix(4, bits=4, zero_points=False, rows=33, columns=256, group=128)
    small = Matrix(matrix.parts, 4, matrix.values * 0, matrix.scaled)
    activations = np.zeros((1, 2, 256), np.float32)
    activations[..., 5] = value
    result = multiply([small], activations, kernels)[0]
    assert np.isfinite(result).all()
    assert np.abs(result).max() <= abs(value) * np.abs(matrix.values).max() * 1.01
