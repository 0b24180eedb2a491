"""How fast OpenVINO is here with weights of a certain kind and the settings of a package.

A model of a few matrices, as wide as the real one, is compiled and run for half a second: what
it takes to prepare weights at the first inference and to multiply a chunk of a prompt by them
says what the whole model will take. `run_time.py` draws the conclusion. A single row is measured as
well, but from the processor's cache: decoding mostly waits for memory, and not always.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.profiles.properties import KERNELS
from qwen_edge.runtime.backends.compiling import compile_model
from qwen_edge.runtime.backends.decoder_preparing import put_in_kernels
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.kernels import (
    AUTO,
    CacheShape,
    KvCache,
    are_used,
    build_attention,
    find_kernels,
    has_own_cache,
)
from qwen_edge.runtime.manifest import PropertyValue
from qwen_edge.runtime.recipe_facts import PlannedWeights

_PROBE_WEIGHTS = 24_000_000  # prepared in 0.1 s and multiplied by 512 rows in as much
_WIDENING = 3  # an MLP's matrices are about three times as wide as they are high
_GROUP = 128
_WARM_UP_ROWS = 16  # as backends/warming.py has it: a prompt, then a single token
_MIN_ROUNDS = 3
_ATTENTION_HEADS, _ATTENTION_WIDTH = 8, 128
_ATTENTION_KV_HEADS = 2
_STEPS = 10
_SCALE = 0.004  # keeps numbers finite through all matrices


@dataclass(frozen=True)
class EngineSpeed:
    """What OpenVINO's CPU plugin was measured to do.

    Args:
        prepared_weights_per_s: Weights that a first prompt and a first single token rearrange;
            infinity for our kernels, which use them as they are.
        multiplied_weights_per_s: Weights times rows of a prompt's chunk.
        stepped_weights_per_s: Weights that a single row is multiplied by, from the caches: the
            kernels of narrow matrices are slower than memory.
        attention_macs_per_s: Multiplications of attention over a prompt's chunk, half of them
            counted: those with tokens that came before.
        has_own_kernels: Whether weights were multiplied by our kernels.
        has_own_layers: Whether a package of ours has whole layers by them.
    """

    prepared_weights_per_s: float
    multiplied_weights_per_s: float
    stepped_weights_per_s: float
    attention_macs_per_s: float
    has_own_kernels: bool = False
    has_own_layers: bool = False


def measure_engine(
    weights: PlannedWeights,
    hidden_size: int,
    properties: Mapping[str, PropertyValue],
    *,
    chunk_tokens: int = 512,
    seconds: float = 0.3,
) -> EngineSpeed:
    """Measure the CPU plugin.

    Args:
        weights: How the model's matrices are stored.
        hidden_size: The model's; a multiple of 128, or it is rounded up to one.
        properties: What the model is compiled with.
        chunk_tokens: Tokens of a prompt per call.
        seconds: How long to multiply, at least three times.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        DeviceError: It refuses a property, or the CPU.
    """
    width = -(-hidden_size // _GROUP) * _GROUP
    num_pairs = max(1, round(_PROBE_WEIGHTS / (2 * _WIDENING * width * width)))
    num_weights = num_pairs * 2 * _WIDENING * width * width
    model, kept = _build_probe(weights, width, num_pairs)
    prepared = put_in_kernels(model, "CPU", properties)
    request = compile_model(model, "CPU", prepared.properties).create_infer_request()
    rows = [np.full((1, n, width), 0.5, np.float32) for n in (_WARM_UP_ROWS, 1, chunk_tokens)]

    def run(data: npt.NDArray[np.float32]) -> float:
        started_s = time.perf_counter()
        request.infer([data], share_inputs=True, share_outputs=True)
        return time.perf_counter() - started_s

    first_s = run(rows[0]) + run(rows[1])
    preparing_s = first_s - (run(rows[0]) + run(rows[1]))
    has_own_kernels = prepared.kernels is not None
    step_s = min(run(rows[1]) for _ in range(_STEPS))
    chunk_s = [run(rows[2])]  # the first call of a size allocates
    stop_s = time.perf_counter() + seconds
    while len(chunk_s) <= _MIN_ROUNDS or time.perf_counter() < stop_s:
        chunk_s.append(run(rows[2]))
    del kept
    return EngineSpeed(
        prepared_weights_per_s=(
            math.inf if has_own_kernels else num_weights / max(preparing_s, 1e-6)
        ),
        multiplied_weights_per_s=num_weights * chunk_tokens / float(np.median(chunk_s[1:])),
        stepped_weights_per_s=num_weights / step_s,
        attention_macs_per_s=_measure_attention(properties, prepared.properties, chunk_tokens),
        has_own_kernels=has_own_kernels,
        has_own_layers=has_own_kernels and has_own_cache(properties),
    )


def _measure_attention(
    properties: Mapping[str, PropertyValue],
    engine_properties: Mapping[str, PropertyValue],
    num_tokens: int,
) -> float:
    """Return the multiplications per second of attention over a prompt, ours or the engine's."""
    if are_used(properties) and has_own_cache(properties):
        attend = _own_attention(str(properties.get(KERNELS, AUTO)), engine_properties, num_tokens)
    else:
        attend = _engine_attention(engine_properties, num_tokens)
    seconds = []
    for _ in range(_MIN_ROUNDS + 1):
        started_s = time.perf_counter()
        attend()
        seconds.append(time.perf_counter() - started_s)
    pairs = num_tokens * (num_tokens + 1) / 2
    macs = 2 * _ATTENTION_HEADS * _ATTENTION_WIDTH * pairs
    return macs / float(np.median(seconds[1:]))


def _own_attention(
    kernels: str, properties: Mapping[str, PropertyValue], num_tokens: int
) -> Callable[[], object]:
    library = find_kernels()
    assert library.path is not None
    shape = CacheShape(1, _ATTENTION_KV_HEADS, _ATTENTION_WIDTH)
    model = build_attention(
        library, num_heads=_ATTENTION_HEADS, shape=shape, scale=_SCALE, kernels=kernels
    )
    request = compile_model(model, "CPU", properties).create_infer_request()
    cache = KvCache(library.path, shape)
    heads = (_ATTENTION_HEADS, _ATTENTION_KV_HEADS, _ATTENTION_KV_HEADS)
    rows = [np.full((1, count, num_tokens, _ATTENTION_WIDTH), 0.1, np.float32) for count in heads]

    def attend() -> object:
        place = np.array([cache.number, 0], np.int32)  # which lives as long as this function
        return request.infer([*rows, place], share_inputs=True, share_outputs=True)

    return attend


def _engine_attention(
    properties: Mapping[str, PropertyValue], num_tokens: int
) -> Callable[[], object]:
    """The cache that a decoder has is left out: a prompt is computed before it is rounded."""
    ov = import_openvino()
    ops = ov.opset15
    shape = [1, _ATTENTION_HEADS, -1, _ATTENTION_WIDTH]
    inputs = [ops.parameter(shape, ov.Type.f32, name=name) for name in "qkv"]
    mask = ops.parameter([1, 1, -1, -1], ov.Type.f32, name="mask")
    attention = ops.scaled_dot_product_attention(*inputs, mask)
    model = ov.Model([attention], [*inputs, mask], "attention")
    request = compile_model(model, "CPU", properties).create_infer_request()
    shape[2] = num_tokens
    row = np.full(shape, 0.1, np.float32)
    causal = np.triu(np.full((1, 1, num_tokens, num_tokens), -1e4, np.float32), 1)
    given = [row, row, row, causal]
    return lambda: request.infer(given, share_inputs=True, share_outputs=True)


def _build_probe(weights: PlannedWeights, width: int, num_pairs: int) -> tuple[Any, list[Any]]:
    """Return a chain of matrices that widen and narrow, and what must live as long as it."""
    ov = import_openvino()
    ops = ov.opset15
    generator = np.random.default_rng(0)
    kept: list[Any] = []
    data = ops.parameter([1, -1, width], ov.Type.f32, name="rows")
    node = data
    for _ in range(num_pairs):
        for shape in ((_WIDENING * width, width), (width, _WIDENING * width)):
            matrix = _weights_node(ov, weights, shape, generator, kept)
            node = ops.matmul(node, matrix, False, True)
    return ov.Model([node], [data], "probe"), kept


def _weights_node(
    ov: Any,
    weights: PlannedWeights,
    shape: tuple[int, int],
    generator: np.random.Generator,
    kept: list[Any],
) -> Any:
    """Return random weights with the nodes that widen them, as packages have them."""
    ops = ov.opset15
    rows, width = shape
    if weights == "fp16":
        halves = generator.standard_normal(shape, np.float32).astype(np.float16) * np.float16(0.02)
        return ops.convert(_constant(ov, halves, shape, ov.Type.f16, kept), ov.Type.f32)
    if weights == "int8":
        whole = generator.integers(-128, 128, shape, np.int8)
        values = _constant(ov, whole, shape, ov.Type.i8, kept)
        scale_shape: tuple[int, ...] = (rows, 1)
    else:
        packed = generator.integers(0, 256, (rows, width // 2), np.uint8)
        grouped = (rows, width // _GROUP, _GROUP)
        values = _constant(ov, packed, grouped, ov.Type.i4, kept)
        scale_shape = (rows, width // _GROUP, 1)
    scale = np.full(scale_shape, _SCALE / (1 if weights == "int4" else 16), np.float16)
    wide = ops.multiply(ops.convert(values, ov.Type.f16), ops.constant(scale))
    if weights == "int4":
        wide = ops.reshape(wide, np.array(shape, np.int64), special_zero=False)
    return ops.convert(wide, ov.Type.f32)


def _constant(
    ov: Any, array: npt.NDArray[Any], shape: tuple[int, ...], kind: Any, kept: list[Any]
) -> Any:
    """Return a constant that borrows an array's memory."""
    flat = array.reshape(-1)
    tensor = ov.Tensor(flat, ov.Shape(list(shape)), kind)
    kept += [flat, tensor]
    return ov.op.Constant(tensor, True)
