"""The data file of an ONNX model: the compressor's numbers in other layouts, nothing else."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.export import onnx_weights
from qwen_edge.export.compress import dequantise
from qwen_edge.export.onnx_transposed import TransposedWeights, transpose_int4
from qwen_edge.export.onnx_weights import BlockWeights, OnnxWeights
from qwen_edge.export.weight_store import Format, WeightStore

Matrix = tuple[Format, int, dict[str, npt.NDArray[Any]]]
"""Format, group size and stored arrays."""

# Format, group size, zero point. int4 in rows stands for a width that no group divides.
KINDS: tuple[tuple[Format, int, bool], ...] = (
    ("int4", 16, False),
    ("int4", 32, False),
    ("int4", 128, False),
    ("int4", 512, False),
    ("int4", -1, False),
    ("int4", 32, True),
    ("int4", 512, True),
    ("int4", -1, True),
    ("int8", -1, False),
    ("int8", -1, True),
)


def make_parts(
    kind: tuple[Format, int, bool], rows: int, width: int, seed: int
) -> dict[str, npt.NDArray[Any]]:
    """Return random stored arrays as `WeightStore.add` takes them, every integer possible."""
    fmt, group, has_zero = kind
    random = np.random.RandomState(seed)
    size = width // 2 if fmt == "int4" else width
    values = random.randint(0, 256, (rows, size)).astype(np.uint8)
    if fmt == "int8" and not has_zero:
        values = values.view(np.int8)
    shape = (rows, 1) if group == -1 else (rows, width // group, 1)
    scale = random.uniform(-0.1, 0.1, shape).astype(np.float16)
    levels = 16 if fmt == "int4" else 256
    zero = {"zero_point": random.randint(0, levels, shape).astype(np.uint8)} if has_zero else {}
    return {"values": values, "scale": scale} | zero


@contextlib.contextmanager
def open_weights(folder: Path, **matrices: Matrix) -> Iterator[OnnxWeights]:
    """Write matrices into `folder / "data"`; they can be read once this is closed."""
    with WeightStore(folder / "spool") as store:
        for name, (fmt, group, parts) in matrices.items():
            rows, size = parts["values"].shape
            shape = (rows, size * 2 if fmt == "int4" else size)
            store.add(name, fmt, shape, group, {key: [part] for key, part in parts.items()})
        store.freeze()
        with OnnxWeights(store, folder / "data") as weights:
            yield weights


def read_blocks(blocks: BlockWeights, width: int) -> npt.NDArray[np.float32]:
    """Return what MatMulNBits makes of its layout, float32 [out, width]."""
    packed = blocks.values.numpy()
    rows, num_blocks, _ = packed.shape
    if blocks.bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1)
    numbers = packed.reshape(rows, num_blocks, blocks.block_size).astype(np.float32)
    zero = np.full((rows, num_blocks), 1 << (blocks.bits - 1), np.uint8)
    if blocks.zero_points is not None:
        zero = blocks.zero_points.numpy()
        if blocks.bits == 4:
            zero = np.stack([zero & 15, zero >> 4], axis=-1).reshape(rows, -1)[:, :num_blocks]
    weights = (numbers - zero[:, :, None].astype(np.float32)) * blocks.scales.numpy()[:, :, None]
    return weights.reshape(rows, -1)[:, :width]


def by_input(tensor: Any, block_size: int) -> npt.NDArray[Any]:
    """Return [groups, out] with a row per input, or [out] as it is."""
    array: npt.NDArray[Any] = tensor.numpy()
    return np.repeat(array, block_size, axis=0) if block_size > 0 else array


kinds = st.sampled_from(KINDS)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=kinds, rows=st.integers(1, 7), factor=st.integers(1, 5), seed=st.integers(0, 99))
def test_both_layouts_hold_the_compressors_numbers(
    tmp_path: Path, kind: tuple[Format, int, bool], rows: int, factor: int, seed: int
) -> None:
    """Bit for bit, also for odd sizes and for widths that are no multiple of a block."""
    fmt, group, _ = kind
    width = group * factor if group > 0 else 2 * factor + 37 * (fmt == "int8")
    parts = make_parts(kind, rows, width, seed)
    expected = dequantise(parts, fmt)
    # A folder of its own: where a file is still mapped, Windows would not write it again.
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    with open_weights(folder, m=(fmt, group, parts)) as weights:
        blocks = weights.blocks("m")
        turned = TransposedWeights(weights).matrix("m")
    assert blocks.block_size in (16, 32, 64, 128, 256)  # what ONNX Runtime has kernels for
    np.testing.assert_array_equal(read_blocks(blocks, width), expected)
    values = turned.values.numpy().astype(np.float32)  # [in, out]
    if turned.zero_points is not None:
        values -= by_input(turned.zero_points, turned.block_size).astype(np.float32)
    assert turned.scales is not None
    scales = by_input(turned.scales, turned.block_size)
    np.testing.assert_array_equal((values * scales).T, expected)


@pytest.mark.parametrize("kind", [k for k in KINDS if k[0] == "int8"], ids=["symmetric", "zero"])
@pytest.mark.parametrize("width", [32, 40], ids=["blocks-fit", "padded"])
@pytest.mark.parametrize("is_head", [False, True], ids=["untied", "tied"])
def test_tables_hold_the_rows(
    tmp_path: Path, kind: tuple[Format, int, bool], width: int, is_head: bool
) -> None:
    """The embedding is the head's bytes where the layouts agree, a copy where they cannot."""
    parts = make_parts(kind, 50, width, seed=3)
    expected = dequantise(parts, "int8")
    with open_weights(tmp_path, e=("int8", -1, parts)) as weights:
        table, blocks = weights.table("e")
        transposed = TransposedWeights(weights)
        portable = transposed.table("e", is_head=is_head)
        matrix = transposed.matrix("e") if is_head else None
    assert (table.offset == blocks.values.offset) == (width == 32)
    zero = np.float32(128) if blocks.zero_points is None else blocks.zero_points.numpy()[:, :1]
    rows = (table.numpy().astype(np.float32) - zero) * blocks.scales.numpy()[:, :1]
    np.testing.assert_array_equal(rows, expected)
    values = portable.values.numpy().astype(np.float32)
    assert portable.is_transposed == is_head
    if matrix is not None:
        assert portable.values.offset == matrix.values.offset
        values = values.T
    if portable.zero_points is not None:
        values -= portable.zero_points.numpy()
    assert portable.scales is not None
    np.testing.assert_array_equal(values * portable.scales.numpy(), expected)


def test_padding_is_the_middle_and_meets_no_weight(tmp_path: Path) -> None:
    parts = make_parts(("int4", -1, False), 3, 10, seed=0)
    with open_weights(tmp_path, m=("int4", -1, parts)) as weights:
        blocks = weights.blocks("m")
    assert blocks.block_size == 16
    assert set(blocks.values.numpy()[:, 0, 5:].reshape(-1)) == {0x88}


def test_a_row_with_one_scale_is_cut_into_the_largest_block(tmp_path: Path) -> None:
    matrices: dict[str, Any] = {
        f"m{width}": ("int8", -1, make_parts(("int8", -1, True), 2, width, 0))
        for width in (256, 192, 96, 48, 50)
    }
    with open_weights(tmp_path, **matrices) as weights:
        sizes = {name: weights.blocks(name).block_size for name in matrices}
    assert sizes == {"m256": 128, "m192": 64, "m96": 32, "m48": 16, "m50": 16}


def test_tensors_begin_where_they_can_be_mapped(tmp_path: Path) -> None:
    """A large one where Windows can map it, the others at a cache line."""
    small = make_parts(("int8", -1, True), 3, 50, seed=1)
    large = make_parts(("int8", -1, True), 1024, 1040, seed=1)
    matrices: Any = {"a": ("int8", -1, small), "b": ("int8", -1, large), "c": ("int8", -1, small)}
    with open_weights(tmp_path, **matrices) as weights:
        found = [weights.blocks(name) for name in matrices]
    for blocks in found:
        assert blocks.zero_points is not None
        for tensor in (blocks.values, blocks.scales, blocks.zero_points):
            assert tensor.offset is not None and tensor.offset % 64 == 0
    assert found[1].values.offset is not None
    assert found[1].values.offset > 0 and found[1].values.offset % 65_536 == 0


def test_a_matrix_is_written_once(tmp_path: Path) -> None:
    parts = make_parts(("int8", -1, True), 4, 32, seed=1)
    with open_weights(tmp_path, m=("int8", -1, parts)) as weights:
        assert weights.blocks("m") is weights.blocks("m")
        transposed = TransposedWeights(weights)
        assert transposed.matrix("m") is transposed.matrix("m")


@pytest.mark.parametrize("block_values", [1, 100, 1 << 24])
def test_the_size_of_the_blocks_in_memory_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_values: int
) -> None:
    monkeypatch.setattr(onnx_weights, "_BLOCK_VALUES", block_values)
    matrices: Any = {
        "four": ("int4", 32, make_parts(("int4", 32, False), 9, 64, 1)),
        "eight": ("int8", -1, make_parts(("int8", -1, True), 9, 50, 2)),
    }
    with open_weights(tmp_path, **matrices) as weights:
        blocks = {name: weights.blocks(name) for name in matrices}
        turned = {name: TransposedWeights(weights).matrix(name) for name in matrices}
    for name, (fmt, _, parts) in matrices.items():
        width = 64 if name == "four" else 50
        np.testing.assert_array_equal(read_blocks(blocks[name], width), dequantise(parts, fmt))
    four = turned["four"].values.numpy().astype(np.int8)
    packed = matrices["four"][2]["values"]
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(9, -1).astype(np.int8)
    np.testing.assert_array_equal(four.T, np.where(halves > 7, halves - 16, halves))


def test_many_rows_are_turned_tile_by_tile() -> None:
    """More rows than a tile, and a last tile that is not full."""
    random = np.random.RandomState(0)
    numbers = random.randint(0, 16, (531, 6)).astype(np.uint8)  # [out, in]
    packed = numbers[:, 0::2] | (numbers[:, 1::2] << 4)
    turned = transpose_int4(packed)
    assert turned.shape == (3, 531)
    found = np.stack([turned & 15, turned >> 4], axis=-1).reshape(6, 531)
    np.testing.assert_array_equal(found, numbers.T)


def test_uncompressed_weights_stay_as_they_are(tmp_path: Path) -> None:
    values = np.random.RandomState(0).standard_normal((5, 7)).astype(np.float16)
    with open_weights(tmp_path, m=("fp16", -1, {"values": values})) as weights:
        half = weights.half("m")
        turned = TransposedWeights(weights).matrix("m")
    np.testing.assert_array_equal(half.numpy(), values)
    np.testing.assert_array_equal(turned.values.numpy(), values.T)
    assert turned.scales is None and turned.zero_points is None
