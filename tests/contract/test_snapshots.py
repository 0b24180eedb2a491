"""Snapshots of real engines: through a file and back, the logits are those of nothing having
happened. The tiny decoder stands in for the model; its caches are real ones, of every form that
the engines keep.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qwen_edge.errors import DeviceError, UsageError
from qwen_edge.runtime.backends import cache_variables
from qwen_edge.runtime.backends.backend import Backend, CacheSnapshot
from qwen_edge.runtime.backends.compiling import compile_model
from qwen_edge.runtime.backends.openvino import OpenVinoBackend
from qwen_edge.runtime.backends.openvino_own_cache import OwnCacheBackend
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.kernels import find_kernels, use_attention
from qwen_edge.runtime.parking import Parking, cut_snapshot
from qwen_edge.runtime.prefix_cache import PrefixCache
from qwen_edge.runtime.snapshots import SnapshotBinding, load_snapshot, save_snapshot

VOCAB_SIZE = 64
BINDING = SnapshotBinding("tiny", "a" * 64)
MAX_TOKENS = 700
F32 = {"INFERENCE_PRECISION_HINT": "f32"}

# Name → properties, and the type of the arrays that are kept; None where the machine decides.
CACHES: dict[str, tuple[dict[str, Any], str | None]] = {
    "u8": (F32 | {"KV_CACHE_PRECISION": "u8"}, "uint8"),
    "u8-in-groups": (
        F32 | {"KV_CACHE_PRECISION": "u8", "KEY_CACHE_GROUP_SIZE": 8, "VALUE_CACHE_GROUP_SIZE": 16},
        "uint8",
    ),
    "u8-dynamic-quantisation": (F32 | {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}, "uint8"),
    "own-choice": ({}, None),
    "f32": (F32 | {"KV_CACHE_PRECISION": "f32"}, "float32"),
    "f16": (F32 | {"KV_CACHE_PRECISION": "f16"}, None),
    "bf16": ({"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16"}, None),
}

MakeDecoder = Callable[..., Any]
Array = npt.NDArray[Any]


def make_ids(count: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB_SIZE, count)]


def make_openvino(compiled: Any) -> OpenVinoBackend:
    return OpenVinoBackend(
        compiled, device="CPU", max_context_tokens=MAX_TOKENS, prefill_chunk_tokens=64
    )


@pytest.fixture(scope="module")
def compile_tiny(make_decoder: MakeDecoder) -> Callable[[Mapping[str, Any]], Any]:
    """Return a compiler of the tiny decoder that remembers what it made."""
    made: dict[str, Any] = {}

    def compile_it(properties: Mapping[str, Any]) -> Any:
        key = str(sorted(properties.items()))
        if key not in made:
            made[key] = compile_model(make_decoder(), "CPU", properties)
        return made[key]

    return compile_it


@pytest.fixture(scope="module")
def make_own_cache(make_decoder: MakeDecoder) -> Callable[[], Backend]:
    """Return a maker of backends with keys and values in memory of ours."""
    library = find_kernels()
    if library.path is None:
        pytest.skip(f"no kernels here: {library.reason}")
    model = make_decoder(head_dim=32)
    shape = use_attention(model, library)
    assert shape is not None
    compiled = compile_model(model, "CPU", F32 | {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})
    limits = {"max_context_tokens": MAX_TOKENS, "prefill_chunk_tokens": 64}
    path = library.path
    return lambda: OwnCacheBackend(compiled, shape, path, device="CPU", **limits)


@pytest.fixture(params=[*CACHES, "own-cache", "onnx", "onnx-portable"])
def make_pair(
    request: pytest.FixtureRequest, compile_tiny: Any, make_onnx: Any, open_onnx_model: Any
) -> tuple[Callable[[], Backend], str | None]:
    """Return a maker of backends of each kind of cache, and what its arrays are kept as."""
    if request.param == "own-cache":
        return request.getfixturevalue("make_own_cache"), None
    if not request.param.startswith("onnx"):
        properties, dtype = CACHES[request.param]
        return lambda: make_openvino(compile_tiny(properties)), dtype
    folder = make_onnx(is_portable=request.param == "onnx-portable")
    return lambda: open_onnx_model(folder, max_context_tokens=MAX_TOKENS), "float32"


def go_on(backend: Backend, ids: Sequence[int]) -> list[Array]:
    """Return the logits of a prompt's part and of steps after it."""
    return [backend.forward(ids[:20]), *(backend.forward([token_id]) for token_id in ids[20:])]


@pytest.mark.parametrize("has_holes", [False, True], ids=["", "holes"])
def test_through_a_file_nothing_has_happened(
    make_pair: tuple[Callable[[], Backend], str | None], has_holes: bool, tmp_path: Path
) -> None:
    """Not nearly: each logit is the same number as without saving and loading."""
    make, dtype = make_pair
    backend, other = make(), make()
    ids, junk = make_ids(90), make_ids(30, seed=2)
    backend.forward(ids[:40])
    if has_holes:
        backend.forward(junk)
        backend.trim(25)
        backend.trim(5)
    for token_id in ids[40:60]:
        backend.forward([token_id])
    path = tmp_path / "snapshot"
    save_snapshot(path, backend.snapshot(), binding=BINDING)
    expected = go_on(backend, ids[60:])
    backend.forward(junk)
    loaded = load_snapshot(path, binding=BINDING, max_tokens=MAX_TOKENS).cache
    found = {array.dtype.name for array in loaded.arrays if array.ndim == 4}
    assert dtype is None or found == {dtype}
    for restored in (other, backend):  # another of its kind, and itself with other contents
        restored.restore(loaded)
        assert restored.cached_tokens == 60
        assert np.array_equal(go_on(restored, ids[60:]), expected)


def test_snapshot_of_a_restored_cache_is_the_same(
    make_pair: tuple[Callable[[], Backend], str | None],
) -> None:
    """So nothing creeps in, however often a conversation is put aside and taken up."""
    make, _ = make_pair
    backend = make()
    backend.forward(make_ids(50))
    first = backend.snapshot()
    backend.reset()
    backend.restore(first)
    again = backend.snapshot()
    assert len(again.arrays) == len(first.arrays)
    for found, expected in zip(again.arrays, first.arrays, strict=True):
        assert np.array_equal(found, expected)


def test_cut_snapshot_is_that_of_tokens_never_fed(
    make_pair: tuple[Callable[[], Backend], str | None],
) -> None:
    make, _ = make_pair
    backend = make()
    ids = make_ids(90)
    for token_id in ids[:60]:
        backend.forward([token_id])
    snapshot = backend.snapshot()
    backend.trim(25)
    expected = go_on(backend, ids[35:70])
    backend.restore(cut_snapshot(snapshot, 35))
    assert backend.cached_tokens == 35
    found = go_on(backend, ids[35:70])
    # A cache with holes has more rows, and sums of other order.
    assert np.abs(np.array(found) - np.array(expected)).max() < 1e-4


def test_quantised_cache_takes_a_byte_and_its_limits(compile_tiny: Any) -> None:
    """Of Qwen3-4B, with rows of 128: 78 kB per token."""
    backend = make_openvino(compile_tiny(CACHES["u8"][0]))
    backend.forward(make_ids(300))
    backend.trim(200)
    num_bytes = sum(array.nbytes for array in backend.snapshot().arrays[1:])
    assert num_bytes == 100 * 2 * 2 * 2 * (16 + 8)  # layers, keys and values, heads


@pytest.mark.parametrize(
    ("name", "value"), [("KV_CACHE_PRECISION", "f32"), ("DYNAMIC_QUANTIZATION_GROUP_SIZE", 64)]
)
def test_snapshot_of_other_settings_is_refused(compile_tiny: Any, name: str, value: object) -> None:
    """The engine's own choice counts as well, which no package names."""
    u8 = make_openvino(compile_tiny(CACHES["u8"][0]))
    changed = CACHES["u8"][0] | {name: value}
    other = make_openvino(compile_tiny(changed))
    u8.forward([1, 2, 3])
    other.forward([4])
    with pytest.raises(UsageError, match=f"was made with {name} ") as caught:
        other.restore(u8.snapshot())
    assert "restore it where it was taken" in caught.value.fix
    assert other.cached_tokens == 1
    assert u8.snapshot().settings["engine"] == f"OpenVINO {import_openvino().__version__}"


def test_own_cache_takes_34_bytes_for_32_numbers(make_own_cache: Callable[[], Backend]) -> None:
    """Of Qwen3-4B 78 kB per token, in blocks of 16 tokens."""
    backend = make_own_cache()
    backend.forward(make_ids(300))
    backend.trim(200)
    num_bytes = sum(array.nbytes for array in backend.snapshot().arrays)
    assert num_bytes == 112 * 2 * 2 * 2 * 34  # layers, keys and values, heads


def test_own_cache_refuses_what_is_not_its_own(
    make_own_cache: Callable[[], Backend], compile_tiny: Any
) -> None:
    backend = make_own_cache()
    backend.forward(make_ids(20))
    snapshot = backend.snapshot()
    first, *rest = snapshot.arrays
    bad: list[tuple[Array, ...]] = [
        tuple(rest),
        (first[:, :1], *rest),
        (first[:, :, :-1], *rest),
        (first.astype(np.int8), *rest),
        (),
    ]
    for arrays in bad:
        with pytest.raises(UsageError, match="does not fit this model"):
            backend.restore(dataclasses.replace(snapshot, arrays=arrays))
        assert backend.cached_tokens == 20
    changed = {**snapshot.settings, "cache": "another form"}
    with pytest.raises(UsageError, match="was made with cache another form"):
        backend.restore(dataclasses.replace(snapshot, settings=changed))
    with pytest.raises(UsageError, match="it is of kind"):
        make_openvino(compile_tiny(CACHES["u8"][0])).restore(snapshot)


def test_damaged_limits_and_masks_are_refused(compile_tiny: Any) -> None:
    backend = make_openvino(compile_tiny(CACHES["u8"][0]))
    backend.forward([1, 2, 3])
    snapshot = backend.snapshot()
    mask, values, limits, *rest = snapshot.arrays
    bad: list[tuple[Array, ...]] = [
        (mask.astype(np.int64), values, limits, *rest),
        (mask * 2, values, limits, *rest),
        (mask[:2], values, limits, *rest),
        (mask, values, *rest),
        (mask, values, limits[:, :, :2], *rest),
        (mask, values, limits[..., :1], *rest),
        (mask, values, np.repeat(limits, 2, axis=3), *rest),
        (mask, values.astype(np.int32), limits, *rest),
        (mask, values[:, :, :2], limits, *rest),
        (mask, limits, values, *rest),
        (mask, values, limits),
        (values, limits, mask, *rest),
    ]
    for arrays in bad:
        with pytest.raises(UsageError, match="does not fit this model"):
            backend.restore(dataclasses.replace(snapshot, arrays=arrays))
        assert backend.cached_tokens == 3


def test_quantised_rows_do_not_go_into_another_cache(compile_tiny: Any) -> None:
    backend = make_openvino(compile_tiny(CACHES["u8"][0]))
    other = make_openvino(compile_tiny(CACHES["f32"][0]))
    backend.forward([1, 2, 3])
    settings = other.snapshot().settings
    with pytest.raises(UsageError, match="those of a quantised cache"):
        other.restore(dataclasses.replace(backend.snapshot(), settings=settings))


def test_cache_that_does_not_come_back_to_the_bit_is_computed_anew(
    compile_tiny: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine that quantises otherwise than the one this was made for: slower, never wrong."""
    backend = make_openvino(compile_tiny(CACHES["u8"][0]))
    ids = make_ids(60)
    backend.forward(ids[:50])
    snapshot = backend.snapshot()
    expected = go_on(backend, ids[20:])
    given = cache_variables.unpack_rows

    def slightly_wrong(packed: Any, *, is_for_engine: bool) -> Array:
        return given(packed, is_for_engine=is_for_engine) * np.float32(1 + is_for_engine / 64)

    monkeypatch.setattr(cache_variables, "unpack_rows", slightly_wrong)
    backend.restore(snapshot)
    assert backend.cached_tokens == 50
    assert "did not come back to the bit" in caplog.text
    assert np.array_equal(go_on(backend, ids[20:]), expected)


@pytest.mark.parametrize("key", ["KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION"])
def test_cache_of_four_bits_is_never_touched(compile_tiny: Any, key: str) -> None:
    """OpenVINO gives it out without its scales, and ends the process when it gets it back."""
    backend = OpenVinoBackend(
        compile_tiny(F32 | {key: "u4"}),
        device="CPU",
        max_context_tokens=80,
        prefill_chunk_tokens=64,
        min_holes_to_compact=4,
    )
    ids = make_ids(60)
    backend.forward(ids)
    with pytest.raises(DeviceError, match="a cache of u4 has no readable form"):
        backend.snapshot()
    backend.trim(50)
    backend.forward([1])
    assert (backend.num_holes, backend.num_compactions) == (0, 1)
    arrays = (np.ones(1, np.uint8),)
    snapshot = CacheSnapshot("openvino", VOCAB_SIZE, (1,), arrays)
    settings = OpenVinoBackend.snapshot(make_openvino(compile_tiny(F32 | {key: "u4"}))).settings
    with pytest.raises(UsageError, match="has no readable form"):
        backend.restore(dataclasses.replace(snapshot, settings=settings))


def test_conversations_that_take_turns_have_the_logits_of_their_own(
    make_pair: tuple[Callable[[], Backend], str | None],
) -> None:
    """Put aside and brought back by the prefix cache: greedy tokens as from a fresh prefill."""
    make, _ = make_pair
    backend, fresh = make(), make()
    cache = PrefixCache(backend, Parking())
    said = {"one": make_ids(300), "two": make_ids(320, seed=2)}
    kept = []
    for number in range(6):
        name = ("one", "two")[number % 2]
        said[name] += make_ids(3, seed=number)
        num_kept = cache.begin(said[name], owner=name)
        logits = backend.forward(said[name][num_kept:])
        kept.append(num_kept)
        fresh.reset()
        expected = fresh.forward(said[name])
        assert np.abs(logits - expected).max() < 0.15
        assert logits.argmax() == expected.argmax()
    assert kept == [0, 0, 303, 323, 306, 326]
