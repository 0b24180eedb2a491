"""How fast this machine can go: bytes of memory read per second, and int8 products per second.

Decoding waits for memory, reading a prompt for arithmetic, so these two figures bound what any
program can do with a model here. Both are measured, since no table knows a laptop's memory or a
virtual machine's share. This module knows no model; `benchmark/work.py` counts what one needs.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen_edge.errors import MissingExtraError, ResourceError, format_bytes
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.backends.compiling import compile_model
from qwen_edge.runtime.engine import import_openvino

_MIN_BUFFER_BYTES = 256_000_000  # several times what the largest laptop processors cache
_CACHES_PER_BUFFER = 4
_LEAST_BUFFER_BYTES = 32_000_000
_AVAILABLE_SHARE = 4  # the buffer takes at most a quarter of what is available
_BLOCK_BYTES = 8_000_000  # half a millisecond: slow cores take fewer blocks than fast ones
_MIN_PASSES = 3
_CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# Rows as in a chunk of a prompt; deep enough that arithmetic, not moving the results, takes time.
_ROWS, _DEPTH, _WIDTH = 512, 4096, 4096
_LEVELS = 256
_RANGE = 4.0  # of the activations; those below lie within


@dataclass(frozen=True)
class Roofline:
    """What bounds a model's speed on this machine's CPU.

    Args:
        bandwidth_bytes_per_s: Bytes of memory that all cores together read per second.
        int8_macs_per_s: Multiply-accumulates of int8 numbers per second; None where the engine
            that does them is not installed.
    """

    bandwidth_bytes_per_s: float
    int8_macs_per_s: float | None

    def most_decode_tokens_per_s(self, bytes_per_token: float) -> float:
        """Return the tokens per second that memory allows.

        Args:
            bytes_per_token: Bytes that have to be read for a token; more than 0.
        """
        return self.bandwidth_bytes_per_s / bytes_per_token

    def most_prefill_tokens_per_s(self, macs_per_token: float) -> float | None:
        """Return the prompt tokens per second that arithmetic allows; None where unknown.

        Args:
            macs_per_token: Multiply-accumulates of a token; more than 0.
        """
        return None if self.int8_macs_per_s is None else self.int8_macs_per_s / macs_per_token


def measure_bandwidth(*, seconds: float = 1.0, threads: int | None = None) -> float:
    """Return how many bytes of memory the cores read per second, all together.

    Args:
        seconds: How long to read; at least three passes over the buffer are made.
        threads: Cores to read with; None for all that this process may use.

    Returns:
        Bytes per second of the fastest pass: what makes others slower is not the memory.

    Raises:
        ResourceError: There is no memory for a buffer that the caches do not hold.
        ValueError: `threads` is below 1.

    State:
        Takes a quarter of the available memory at most, 256 MB or four times the last cache,
        and gives it back. Filling it comes on top of `seconds`.

    Source:
        The rule of the best of several passes: STREAM, www.cs.virginia.edu/stream.
    """
    hardware = probe_hardware()
    num_threads = hardware.num_logical_cores if threads is None else threads
    if num_threads < 1:
        raise ValueError(f"threads is {threads}; pass at least 1")
    buffer = _make_buffer(choose_buffer_bytes(hardware.available_memory_bytes, read_cache_bytes()))
    block = _BLOCK_BYTES // buffer.itemsize
    blocks = [buffer[start : start + block] for start in range(0, buffer.size, block)]
    with ThreadPoolExecutor(num_threads, thread_name_prefix="qwen-edge-roofline") as pool:
        seconds_of_passes = _time_passes(
            lambda: _read_once(pool, num_threads, blocks), seconds=seconds
        )
    return buffer.nbytes / min(seconds_of_passes)


def measure_int8_throughput(*, seconds: float = 1.0, threads: int | None = None) -> float:
    """Return how many int8 multiply-accumulates OpenVINO's CPU plugin does per second.

    One matrix product is tried in both forms that the engine has fast kernels for: activations
    of int8 as the graph says, and int8 weights whose activations are quantised as they come.

    Args:
        seconds: How long to multiply, both forms together; each is run three times at least.
        threads: Cores to multiply with; None for the engine's choice.

    Returns:
        Multiply-accumulates per second of the fastest run of the faster form.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        DeviceError: Its CPU plugin refuses the product.

    State:
        Takes some 80 MB while it runs. Compiling, 0.2 s, comes on top of `seconds`.
    """
    rows = np.sin(np.arange(_ROWS * _DEPTH, dtype=np.float32)).reshape(_ROWS, _DEPTH)
    # No thought of accuracy: this is the most the machine can do, not what a model needs.
    properties: dict[str, str | int] = {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": _DEPTH,
        "INFERENCE_PRECISION_HINT": "f32",  # with bf16 the engine would not use int8
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = threads
    best = 0.0
    for build in (_build_quantised, _build_compressed):
        request = compile_model(build(), "CPU", properties).create_infer_request()
        multiply = _bind(request, rows)
        multiply()  # rearranges the weights
        seconds_of_runs = _time_passes(multiply, seconds=seconds / 2)
        best = max(best, _ROWS * _DEPTH * _WIDTH / min(seconds_of_runs))
    return best


def measure_roofline(*, seconds: float = 1.0, threads: int | None = None) -> Roofline:
    """Measure both bounds; without OpenVINO, memory only.

    Args:
        seconds: For each of the two.
        threads: As for `measure_bandwidth`.

    Raises:
        ResourceError: As `measure_bandwidth`.
        DeviceError: As `measure_int8_throughput`.
    """
    bandwidth = measure_bandwidth(seconds=seconds, threads=threads)
    try:
        return Roofline(bandwidth, measure_int8_throughput(seconds=seconds, threads=threads))
    except MissingExtraError:
        return Roofline(bandwidth, None)


def choose_buffer_bytes(available_bytes: int | None, cache_bytes: int | None) -> int:
    """Return how large a buffer has to be for its reading to be reading memory.

    Args:
        available_bytes: Memory that can be had without swapping; None when unknown.
        cache_bytes: Size of the processor's last cache; None when unknown.

    Raises:
        ResourceError: A quarter of what is available is less than 32 MB.
    """
    wanted = max(_MIN_BUFFER_BYTES, _CACHES_PER_BUFFER * (cache_bytes or 0))
    if available_bytes is None:
        return wanted
    allowed = available_bytes // _AVAILABLE_SHARE
    if allowed < _LEAST_BUFFER_BYTES:
        raise ResourceError(
            f"Measuring memory takes {format_bytes(_LEAST_BUFFER_BYTES * _AVAILABLE_SHARE)} of "
            f"it, but {format_bytes(available_bytes)} are available.",
            "close other programs.",
            available_bytes=available_bytes,
        )
    return min(wanted, allowed)


def read_cache_bytes(folder: Path = _CPU_CACHES) -> int | None:
    """Return the size of the processor's largest cache; None where the system does not tell.

    Args:
        folder: Where Linux describes the caches of a core, or a folder with copies.
    """
    sizes = []
    for path in folder.glob("index*/size"):
        try:
            text = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.endswith("K") and text[:-1].isdecimal():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes, default=None)


def _make_buffer(num_bytes: int) -> npt.NDArray[np.int64]:
    """Return memory that is really there: untouched pages would all be one page of zeros."""
    try:
        buffer = np.empty(num_bytes // 8, dtype=np.int64)
    except MemoryError as error:
        raise ResourceError(
            f"There is no memory for a buffer of {format_bytes(num_bytes)}.",
            "close other programs.",
            needed_bytes=num_bytes,
        ) from error
    buffer.fill(1)
    return buffer


def _read_once(
    pool: ThreadPoolExecutor, num_threads: int, blocks: list[npt.NDArray[np.int64]]
) -> None:
    """Read all blocks, each by whichever thread is free."""
    waiting = deque(blocks)

    def read() -> None:
        while True:
            try:
                block = waiting.popleft()
            except IndexError:
                return
            block.max()  # reads each byte once, and holds no lock of the interpreter

    for done in [pool.submit(read) for _ in range(num_threads)]:
        done.result()


def _time_passes(run: Callable[[], None], *, seconds: float) -> list[float]:
    """Return the seconds of each pass, of as many as there is time for."""
    passes: list[float] = []
    stop_s = time.perf_counter() + seconds
    while len(passes) < _MIN_PASSES or time.perf_counter() < stop_s:
        begun_s = time.perf_counter()
        run()
        passes.append(time.perf_counter() - begun_s)
    return passes


def _bind(request: Any, rows: npt.NDArray[np.float32]) -> Callable[[], None]:
    """Return what runs a request on the same rows again."""

    def run() -> None:
        request.infer([rows], share_inputs=True, share_outputs=True)

    return run


def _build_quantised() -> Any:
    """Return a product whose both sides are int8."""
    ov = import_openvino()
    ops = ov.opset15
    data = ops.parameter([_ROWS, _DEPTH], ov.Type.f32, name="rows")
    low, high = np.float32(-_RANGE), np.float32(_RANGE * (_LEVELS - 2) / _LEVELS)
    limits = [ops.constant(value) for value in (low, high, low, high)]
    quantised = ops.fake_quantize(data, *limits, _LEVELS)
    return ov.Model([ops.matmul(quantised, _weights(ov), False, True)], [data], "quantised")


def _build_compressed() -> Any:
    """Return a product of float rows and int8 weights, as models have them."""
    ov = import_openvino()
    ops = ov.opset15
    data = ops.parameter([_ROWS, _DEPTH], ov.Type.f32, name="rows")
    return ov.Model([ops.matmul(data, _weights(ov), False, True)], [data], "compressed")


def _weights(ov: Any) -> Any:
    """Return int8 weights [width, depth] with a scale for each row."""
    ops = ov.opset15
    values = (np.arange(_WIDTH * _DEPTH, dtype=np.uint32) * 2_654_435_761 >> 24).astype(np.uint8)
    whole = ops.constant(values.view(np.int8).reshape(_WIDTH, _DEPTH))
    scales = ops.constant(np.full((_WIDTH, 1), 0.001, np.float32))
    return ops.multiply(ops.convert(whole, ov.Type.f32), scales)
