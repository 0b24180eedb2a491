"""Our attention gives what its rounded cache holds, for every processor's kernels.

The reference takes keys and values out of the cache itself, as `KvCache.read` gives them, and
computes in float64; that these are the rounded ones is tested apart.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.kernels import (
    CacheShape,
    KvCache,
    build_attention,
    find_kernels,
    use_attention,
)
from qwen_edge.runtime.kernels.kv_cache import BLOCK_TOKENS

pytestmark = pytest.mark.skipif(
    not find_kernels().names, reason=f"no kernels here: {find_kernels().reason}"
)
Floats = npt.NDArray[np.float32]
GROUP = 32
SCALE = 0.125


class Attention:
    """The operator alone in the engine, with a cache of one layer."""

    def __init__(
        self, kernels: str, *, heads: int, kv_heads: int, head_dim: int, by_row: bool = False
    ) -> None:
        self.by_row = by_row
        self.sizes = (heads, kv_heads, head_dim)
        shape = CacheShape(1, kv_heads, head_dim)
        model = build_attention(
            find_kernels(),
            num_heads=heads,
            shape=shape,
            scale=SCALE,
            kernels=kernels,
            values_by_row=by_row,
        )
        compiled = import_openvino().Core().compile_model(model, "CPU")
        self._request = compiled.create_infer_request()
        path = find_kernels().path
        assert path is not None
        self.cache = KvCache(path, shape)

    def __call__(self, rows: Sequence[Floats], past: int) -> Floats:
        """Return [rows, heads, head_dim] for queries, keys, values [heads, rows, head_dim]."""
        query, key, value = (one[None] for one in rows)
        if self.by_row:
            value = np.ascontiguousarray(value.swapaxes(1, 2))
        place = np.array([self.cache.number, past], np.int32)
        result = np.array(self._request.infer([query, key, value, place])[0])
        return result[0].reshape(query.shape[2], self.sizes[0], self.sizes[2])


def make_rows(seed: int, sizes: tuple[int, int, int], num_rows: int) -> tuple[Floats, ...]:
    heads, kv_heads, head_dim = sizes
    draw = np.random.default_rng(seed)
    return tuple(
        draw.standard_normal((count, num_rows, head_dim)).astype(np.float32)
        for count in (heads, kv_heads, kv_heads)
    )


def cut(rows: Sequence[Floats], begin: int, end: int) -> list[Floats]:
    return [np.ascontiguousarray(one[:, begin:end]) for one in rows]


def read_cache(cache: KvCache, num_tokens: int) -> tuple[npt.NDArray[np.float64], ...]:
    """Return keys and values [kv_heads, tokens, head_dim] as the cache has them."""
    head_dim = cache.shape.head_dim
    groups = head_dim // GROUP
    halves = np.split(cache.read(0, num_tokens), 2, axis=2)
    found = []
    for half, is_value in zip(halves, (False, True), strict=True):
        kv_heads, blocks, _ = half.shape
        codes = half[..., : head_dim * BLOCK_TOKENS].view(np.int8)
        order = (BLOCK_TOKENS, head_dim) if is_value else (head_dim, BLOCK_TOKENS)
        codes = codes.reshape(kv_heads, blocks, *order)
        codes = codes if is_value else codes.swapaxes(2, 3)
        bits = half[..., head_dim * BLOCK_TOKENS :].copy().view(np.uint16).astype(np.uint32) << 16
        scales = bits.view(np.float32).reshape(kv_heads, blocks, groups, BLOCK_TOKENS)
        spread = np.repeat(scales.swapaxes(2, 3), GROUP, axis=3)
        wide = codes.astype(np.float64) * spread
        found.append(wide.reshape(kv_heads, blocks * BLOCK_TOKENS, head_dim)[:, :num_tokens])
    return tuple(found)


def expect(query: Floats, cache: KvCache, past: int) -> npt.NDArray[np.float64]:
    heads, num_rows, head_dim = query.shape
    keys, values = read_cache(cache, past + num_rows)
    each = heads // keys.shape[0]
    result = np.zeros((num_rows, heads, head_dim))
    for head in range(heads):
        scores = query[head].astype(np.float64) @ keys[head // each].T * SCALE
        for row in range(num_rows):
            seen = scores[row, : past + row + 1]
            shares = np.exp(seen - seen.max())
            result[row, head] = shares @ values[head // each, : past + row + 1] / shares.sum()
    return result


@given(
    kernels=st.sampled_from(find_kernels().names or ("none",)),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1), (5, 5), (16, 2)]),
    head_dim=st.sampled_from([32, 64, 96, 128]),
    by_row=st.booleans(),
    calls=st.lists(st.sampled_from([1, 2, 3, 8, 9, 17, 70, 255, 300]), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_attention_is_that_over_the_rounded_cache(
    kernels: str,
    heads: tuple[int, int],
    head_dim: int,
    by_row: bool,
    calls: list[int],
    seed: int,
) -> None:
    attend = Attention(kernels, heads=heads[0], kv_heads=heads[1], head_dim=head_dim, by_row=by_row)
    rows = make_rows(seed, attend.sizes, sum(calls))
    past = 0
    for count in calls:
        now = cut(rows, past, past + count)
        found = attend(now, past)
        assert np.abs(found - expect(now[0], attend.cache, past)).max() < 1e-5
        past += count
    for kept, given_rows in zip(read_cache(attend.cache, past), rows[1:], strict=True):
        grouped = given_rows.reshape(*given_rows.shape[:2], -1, GROUP)
        step = np.abs(grouped).max(-1, keepdims=True) / 127 * (1 + 2**-7)
        error = np.abs(kept.reshape(grouped.shape) - grouped)
        assert (error <= step / 2 * 1.001).all()


@pytest.mark.parametrize("kernels", find_kernels().names)
def test_a_row_is_the_same_to_the_bit_among_others(kernels: str) -> None:
    """Checking guesses must choose what single steps would have chosen."""
    attend = Attention(kernels, heads=4, kv_heads=2, head_dim=64)
    rows = make_rows(3, attend.sizes, 300)
    together = attend(rows, 0)
    for sizes in ([1] * 300, [16] * 18 + [12], [100, 1, 199], [7, 250, 43]):
        past, found = 0, []
        for size in sizes:
            found.append(attend(cut(rows, past, past + size), past))
            past += size
        assert np.array_equal(np.concatenate(found), together)


@pytest.mark.parametrize("kernels", find_kernels().names)
def test_forgotten_tokens_leave_nothing(kernels: str) -> None:
    attend = Attention(kernels, heads=4, kv_heads=2, head_dim=32)
    rows, junk = make_rows(4, attend.sizes, 60), make_rows(5, attend.sizes, 300)
    expected = attend(rows, 0)
    attend.cache.clear()
    attend(cut(rows, 0, 40), 0)
    attend([one * np.float32(1e6) for one in junk], 40)
    assert np.array_equal(attend(cut(rows, 40, 60), 40), expected[40:])
    attend(cut(junk, 0, 40), 20)
    attend(cut(rows, 20, 60), 20)
    blocks = attend.cache.read(0, 60)
    attend.cache.clear()
    attend(rows, 0)
    assert np.array_equal(attend.cache.read(0, 60), blocks)


@pytest.mark.parametrize("kernels", find_kernels().names)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_no_number_stays_none_and_goes_with_the_cache(
    kernels: str, bad: float, place: int
) -> None:
    attend = Attention(kernels, heads=2, kv_heads=1, head_dim=32)
    rows = make_rows(6, attend.sizes, 20)
    good = [one.copy() for one in rows]
    rows[place][0, 19, 5] = bad
    assert not np.isfinite(attend(rows, 0)[19, 0]).all()
    attend.cache.clear()
    assert np.isfinite(attend(good, 0)).all()


@pytest.mark.parametrize("kernels", find_kernels().names)
@pytest.mark.parametrize("factor", [0.0, 1e-38, 1e-20, 1e4])
def test_extreme_numbers_give_finite_shares(kernels: str, factor: float) -> None:
    attend = Attention(kernels, heads=2, kv_heads=1, head_dim=32)
    rows = [one * np.float32(factor) for one in make_rows(7, attend.sizes, 50)]
    found = attend(rows, 0)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= np.abs(rows[2]).max() * 1.01


def test_caches_of_several_threads_do_not_meet() -> None:
    name = find_kernels().names[0]
    kinds = [Attention(name, heads=4, kv_heads=2, head_dim=64) for _ in range(3)]
    rows = [make_rows(seed, kinds[0].sizes, 200) for seed in range(3)]
    found: dict[int, Floats] = {}

    def run(index: int) -> None:
        found[index] = kinds[index](rows[index], 0)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, attend in enumerate(kinds):
        assert np.abs(found[index] - expect(rows[index][0], attend.cache, 0)).max() < 1e-5


@pytest.mark.parametrize("other", ["gone", "wider", "negative"])
def test_another_cache_is_refused_by_the_engine(other: str) -> None:
    """What a wrong number would reach is memory."""
    attend = Attention(find_kernels().names[0], heads=2, kv_heads=1, head_dim=32)
    rows, past = make_rows(8, attend.sizes, 3), 0
    path = find_kernels().path
    assert path is not None
    if other == "gone":
        attend.cache.close()
    elif other == "wider":
        attend.cache = KvCache(path, CacheShape(1, 1, 64))
    else:
        past = -1
    with pytest.raises(RuntimeError, match="cache"):
        attend(rows, past)


def test_a_cache_gives_and_takes_only_what_it_has() -> None:
    path = find_kernels().path
    assert path is not None
    cache = KvCache(path, CacheShape(2, 3, 64))
    assert cache.blocks_shape(17) == (3, 2, 2 * 16 * 68)
    with pytest.raises(ValueError, match="has not 5 tokens"):
        cache.read(1, 5)
    blocks = np.zeros(cache.blocks_shape(5), np.uint8)
    cache.write(1, 5, blocks)
    assert np.array_equal(cache.read(1, 5), blocks)
    for layer, count in ((2, 5), (1, 400)):
        with pytest.raises(ValueError, match="has not"):
            cache.read(layer, count)
    with pytest.raises(ValueError, match="expected uint8"):
        cache.write(0, 17, blocks)
    cache.clear()
    with pytest.raises(ValueError, match="has not 5 tokens"):
        cache.read(1, 5)


def make_decoder(*, has_state: bool = True, causal: bool = False, head_dim: int = 32) -> Any:
    """Return attention as our export writes it, of one layer; or nearly so."""
    ov = import_openvino()
    ops = ov.opset15
    shape = [1, 2, -1, head_dim]
    query, key = (ops.parameter(shape, ov.Type.f32, name=name) for name in ("q", "k"))
    mask_input = ops.parameter([-1, -1], ov.Type.i64, name="attention_mask")
    mask_input.output(0).set_names({"attention_mask"})
    rows = ops.unsqueeze(ops.convert(mask_input, "boolean"), np.int64(1))
    allowed = ops.logical_and(ops.less_equal(rows, rows), ops.unsqueeze(rows, np.int64(1)))
    mask = ops.select(allowed, np.float32(0), np.float32(-1e9))
    caches, sinks = [], []
    for name in ("key", "value") if has_state else ():
        info = ov.op.util.VariableInfo()
        info.data_shape, info.data_type = ov.PartialShape(shape), ov.Type.f32
        info.variable_id = name
        variable = ov.op.util.Variable(info)
        empty = ops.constant(np.zeros((1, 2, 0, head_dim), np.float32))
        both = ops.concat([ops.read_value(empty, variable), key], -2)
        caches.append(both)
        sinks.append(ops.assign(both, variable))
    inputs = caches or [key, key]
    attention = ops.scaled_dot_product_attention(query, *inputs, mask, causal=causal)
    turned = ops.transpose(attention, np.array([0, 2, 1, 3]))
    output = ops.reshape(turned, np.array([0, 0, 2 * head_dim]), special_zero=True)
    return ov.Model([ops.result(output)], sinks, [query, key, mask_input])


def test_attention_of_the_known_form_is_replaced() -> None:
    model = make_decoder()
    assert use_attention(model, find_kernels()) == CacheShape(1, 2, 32)
    names = {name for port in model.inputs for name in port.get_names()}
    assert "kv_cache" in names
    assert "attention_mask" not in names
    assert not model.get_sinks()
    assert not model.get_variables()


@pytest.mark.parametrize(
    "form", [{"has_state": False}, {"causal": True}, {"head_dim": 16}], ids=["state", "mask", "dim"]
)
def test_attention_of_another_form_stays(form: dict[str, Any]) -> None:
    model = make_decoder(**form)
    assert use_attention(model, find_kernels()) is None
    assert any(op.get_type_name() == "ScaledDotProductAttention" for op in model.get_ops())
