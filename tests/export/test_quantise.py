"""Quantised values: NNCF's, bit for bit; near the weights; the same on any number of threads."""

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qwen_edge.export import quantise as quantise_module
from qwen_edge.export.checkpoint import widen
from qwen_edge.export.compress import dequantise
from qwen_edge.export.quantise import NF4_LEVELS, Mode, mean_column_magnitude, quantise
from qwen_edge.export.weight_store import Format
from qwen_edge.runtime.engine import import_openvino

HASHES = Path(__file__).parents[1] / "data" / "quantise_hashes.json"
Stored = Callable[[npt.NDArray[Any], str], npt.NDArray[Any]]

needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None,
    reason="nncf, which only this comparison needs, is not installed; see the stored hashes",
)


def special_rows(width: int) -> npt.NDArray[np.float32]:
    """Return rows that have broken quantisers before."""
    random = np.random.RandomState(7)
    rows = random.standard_normal((24, width)).astype(np.float32) * 0.02
    rows[0] = 0
    rows[1] = -0.0
    rows[2] = 0.03125
    rows[3] = -0.03125
    rows[4] = 1e-40  # denormal
    rows[5] = random.standard_normal(width) * 1e-42
    rows[6, width // 2] = 60.0  # one outlier
    rows[7, 0] = -60.0
    rows[8] = np.abs(rows[8])
    rows[9] = -np.abs(rows[9])
    rows[10] = np.linspace(-8, 7, width)  # on and between the levels
    rows[11] = np.linspace(-7.5, 7.5, width)
    rows[12, ::2] = 0
    rows[13] = 1e-7  # below the smallest scale
    rows[14] *= 1e4
    rows[15] = np.where(np.arange(width) % 2, 0.5, -0.5)
    rows[16, 0], rows[16, 1] = 3.0, -3.0  # a tie of magnitudes
    rows[17, 0], rows[17, 1] = -3.0, 3.0
    return rows


def compress_with_nncf(
    array: npt.NDArray[Any], dtype: str, mode: Mode, group_size: int
) -> dict[str, npt.NDArray[Any]]:
    """Return the constants that NNCF makes of one matrix: values, scale, zero_point."""
    ov = import_openvino()
    import nncf

    ops = ov.opset15
    kind = {"BF16": ov.Type.bf16, "F16": ov.Type.f16, "F32": ov.Type.f32}[dtype]
    weight = ov.op.Constant(ov.Tensor(np.ascontiguousarray(array), ov.Shape(array.shape), kind))
    weight.set_friendly_name("w")
    wide = weight if dtype == "F32" else ops.convert(weight, ov.Type.f32)
    data = ops.parameter([-1, array.shape[1]], ov.Type.f32)
    model = ov.Model([ops.matmul(data, wide, False, True)], [data])
    options = {"group_size": group_size, "ratio": 1.0, "all_layers": True}
    model = nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode[mode.upper()],
        **({} if mode.startswith("int8") else options),
    )
    found = {}
    for node in model.get_ops():
        if node.get_type_name() != "Constant":
            continue
        name = node.get_friendly_name()
        if name == "w":
            found["values"] = np.array(node.get_tensor_view().data)
        elif name.endswith("/scale"):
            found["scale"] = np.array(node.get_data())
        elif "zero_point" in name:
            found["zero_point"] = zero_points(node)
    return found


def zero_points(constant: Any) -> npt.NDArray[np.uint8]:
    """Return a constant's zero points, one in a byte; 4 bits come two in a byte, low half first."""
    shape = tuple(constant.get_output_shape(0))
    stored = np.array(constant.get_tensor_view().data).reshape(-1)
    if constant.get_output_element_type(0).get_type_name() == "u4":
        stored = np.stack([stored & 15, stored >> 4], axis=-1).reshape(-1)
    numbers: npt.NDArray[np.uint8] = stored[: int(np.prod(shape))].reshape(shape)
    return numbers


CASES: list[tuple[Mode, int]] = [
    ("int4_sym", 128),
    ("int4_sym", 64),
    ("int4_sym", 32),
    ("int4_sym", -1),
    ("int4_asym", 128),
    ("int4_asym", -1),
    ("nf4", 64),
    ("nf4", -1),
    ("int8_sym", -1),
    ("int8_asym", -1),
]
FORMATS: dict[Mode, Format] = {
    "int4_sym": "int4",
    "int4_asym": "int4",
    "nf4": "nf4",
    "int8_sym": "int8",
    "int8_asym": "int8",
}
IDS = [f"{mode}-{group}" for mode, group in CASES]


def check_equal(found: quantise_module.Quantised, expected: dict[str, npt.NDArray[Any]]) -> None:
    np.testing.assert_array_equal(
        found.values.reshape(-1).view(np.uint8), expected["values"].reshape(-1).view(np.uint8)
    )
    assert found.scale.shape == expected["scale"].shape
    np.testing.assert_array_equal(found.scale.view("<u2"), expected["scale"].view("<u2"))
    assert (found.zero_point is None) == ("zero_point" not in expected)
    if found.zero_point is not None:
        np.testing.assert_array_equal(found.zero_point, expected["zero_point"])


@needs_nncf
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(("mode", "group_size"), CASES, ids=IDS)
def test_equal_to_nncf(mode: Mode, group_size: int, dtype: str, stored: Stored) -> None:
    array = stored(special_rows(256), dtype)
    expected = compress_with_nncf(array, dtype, mode, group_size)
    check_equal(quantise(array, dtype, mode, group_size), expected)


@needs_nncf
@pytest.mark.parametrize(
    ("mode", "group_size"), [CASES[0], CASES[4], CASES[6], CASES[-1]], ids=lambda value: str(value)
)
def test_equal_to_nncf_at_the_shape_of_a_real_layer(
    mode: Mode, group_size: int, stored: Stored
) -> None:
    """Qwen3-4B's k_proj: many blocks, so all edges between them."""
    random = np.random.RandomState(3)
    array = stored(random.standard_normal((1_024, 2_560)).astype(np.float32) * 0.02, "BF16")
    expected = compress_with_nncf(array, "BF16", mode, group_size)
    check_equal(quantise(array, "BF16", mode, group_size), expected)


def digest(mode: Mode, group_size: int, dtype: str, stored: Stored) -> str:
    found = quantise(stored(special_rows(256), dtype), dtype, mode, group_size)
    done = hashlib.sha256(found.values.tobytes() + found.scale.tobytes())
    done.update(b"" if found.zero_point is None else found.zero_point.tobytes())
    return done.hexdigest()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(("mode", "group_size"), CASES, ids=IDS)
def test_stored_hashes(mode: Mode, group_size: int, dtype: str, stored: Stored) -> None:
    """The hashes were written where `test_equal_to_nncf` passed, with NNCF 3.4.0."""
    hashes = json.loads(HASHES.read_text(encoding="utf-8"))
    assert digest(mode, group_size, dtype, stored) == hashes[f"{mode} {group_size} {dtype}"]


@pytest.mark.parametrize(("mode", "group_size"), CASES, ids=IDS)
def test_the_same_bits_on_any_number_of_threads(
    mode: Mode, group_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.RandomState(5).standard_normal((700, 512)).astype(np.float32)
    factors = np.linspace(0.5, 2.0, 512, dtype=np.float32)
    results = []
    for num_threads in (1, 2, 7):
        monkeypatch.setattr("os.cpu_count", lambda n=num_threads: n)
        done = quantise(array, "F32", mode, group_size, column_factors=factors)
        magnitude = mean_column_magnitude(array, "F32")
        results.append((done.values.tobytes(), done.scale.tobytes(), magnitude.tobytes()))
    assert results[0] == results[1] == results[2]


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.sampled_from([64, 128])),
        elements=st.floats(-1e3, 1e3, width=32),
    ),
    st.sampled_from([case for case in CASES if case[1] != 128]),
)
def test_never_further_off_than_half_a_level(
    array: npt.NDArray[np.float32], case: tuple[Mode, int]
) -> None:
    mode, group_size = case
    done = quantise(array, "F32", mode, group_size)
    parts = {"values": done.values, "scale": done.scale}
    if done.zero_point is not None:
        parts["zero_point"] = done.zero_point
    after = dequantise(parts, FORMATS[mode])
    groups = done.scale.reshape(array.shape[0], -1, 1).astype(np.float64)
    error = np.abs(after.astype(np.float64) - array).reshape(*groups.shape[:2], -1)
    bound = 0.5 * np.abs(groups)
    if mode == "nf4":
        bound = np.diff(NF4_LEVELS).max() * bound
    elif mode.endswith("_sym"):
        # The far end of a symmetric range has one level less: a whole one may be cut off.
        is_cut = array.reshape(error.shape) * -np.sign(groups) < 0
        largest = np.abs(array).reshape(error.shape).max(axis=-1, keepdims=True)
        levels = {"int4_sym": 7, "int8_sym": 127}[mode]
        is_cut &= np.abs(array.reshape(error.shape)) > (levels + 0.49) / (levels + 1) * largest
        bound = np.where(is_cut, np.abs(groups) * 1.0, bound)
    else:
        bound = bound * 2  # the zero point is rounded too
    # The scale is rounded to float16 (relative 2^-11, absolute 2^-25) after it was used.
    levels_used = {"int4_sym": 8, "int8_sym": 128, "int8_asym": 255, "int4_asym": 15, "nf4": 1}[
        mode
    ]
    slack = levels_used * (np.abs(groups) * 2.0**-10 + 2.0**-24)
    assert np.all(error <= bound + slack)


def test_factors_are_applied_before_rounding() -> None:
    random = np.random.RandomState(1)
    array = random.standard_normal((700, 512)).astype(np.float32)  # several blocks
    rows = random.uniform(0.5, 2, 700).astype(np.float32)
    columns = random.uniform(0.5, 2, 512).astype(np.float32)
    found = quantise(array, "F32", "int4_sym", 32, row_factors=rows, column_factors=columns)
    expected = quantise(array * rows[:, None] * columns, "F32", "int4_sym", 32)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.scale, expected.scale)


def test_inputs_are_left_alone(stored: Stored) -> None:
    array = stored(special_rows(64), "F32")
    before = array.copy()
    array.setflags(write=False)
    quantise(array, "F32", "int8_asym", column_factors=np.full(64, 3, np.float32))
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_scale_beyond_float16_is_infinite_without_a_warning(
    num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy's error settings are those of a thread: in the pool a warning was shown."""
    monkeypatch.setattr("os.cpu_count", lambda: num_threads)
    array = np.full((600, 512), 1e38, np.float32)
    done = quantise(array, "F32", "int4_sym", 128, column_factors=np.full(512, 100, np.float32))
    assert not np.isfinite(done.scale).any()
    assert np.isinf(mean_column_magnitude(array, "F32")).all()


def test_mean_magnitude(stored: Stored) -> None:
    array = stored(special_rows(96), "BF16")
    expected = np.abs(widen(array, "BF16").astype(np.float64)).mean(axis=0)
    np.testing.assert_allclose(mean_column_magnitude(array, "BF16"), expected, rtol=1e-6)


def test_odd_rows_and_one_row() -> None:
    for rows in (1, 3):
        done = quantise(np.ones((rows, 2), np.float32), "F32", "int4_sym")
        assert done.values.shape == (rows, 1)
        # NNCF takes equal ends as negative, so that one level of a positive constant is cut.
        assert done.values.tolist() == [[0x77]] * rows
        assert done.scale.tolist() == [[0.125]] * rows
