"""The machine's limits: what is read, how large the buffer is, and figures that can be."""

import platform
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.errors import MissingExtraError, ResourceError
from qwen_edge.runtime.backends.compiling import compile_model
from qwen_edge.runtime.machine import roofline
from qwen_edge.runtime.machine.roofline import Roofline, choose_buffer_bytes, read_cache_bytes

SMALL_BUFFER = 32_000_000


@pytest.fixture
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure with a buffer that takes no time to fill."""
    monkeypatch.setattr(roofline, "choose_buffer_bytes", lambda available, cache: SMALL_BUFFER)


@pytest.mark.usefixtures("small_buffer")
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_memory_is_read_at_a_speed_that_can_be(threads: int | None) -> None:
    figure = roofline.measure_bandwidth(seconds=0.01, threads=threads)
    assert 1e7 < figure < 1e13


@pytest.mark.usefixtures("small_buffer")
def test_no_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="threads is 0"):
        roofline.measure_bandwidth(seconds=0.01, threads=0)


class Block:
    """Counts how often it was read, and by whom."""

    def __init__(self) -> None:
        self.readers: list[int] = []

    def max(self) -> int:
        """Be read, for a while."""
        self.readers.append(threading.get_ident())
        time.sleep(0.002)
        return 0


def test_every_block_is_read_once_and_all_threads_read() -> None:
    blocks = [Block() for _ in range(20)]
    with roofline.ThreadPoolExecutor(3) as pool:
        roofline._read_once(pool, 3, blocks)  # type: ignore[arg-type]
    assert [len(block.readers) for block in blocks] == [1] * 20
    assert len({block.readers[0] for block in blocks}) == 3


def test_the_buffer_is_memory_and_not_one_page_of_zeros() -> None:
    buffer = roofline._make_buffer(SMALL_BUFFER)
    assert buffer.nbytes == SMALL_BUFFER
    assert int(buffer.min()) == 1


@given(
    available=st.none() | st.integers(128_000_000, 10**12),
    cache=st.none() | st.integers(0, 10**9),
)
def test_the_buffer_beats_the_cache_unless_memory_is_short(
    available: int | None, cache: int | None
) -> None:
    size = choose_buffer_bytes(available, cache)
    if available is not None:
        assert 32_000_000 <= size <= available // 4
    if available is None or size < available // 4:
        assert size >= 256_000_000 and size >= 4 * (cache or 0)


def test_too_little_memory_is_told_with_both_figures() -> None:
    with pytest.raises(ResourceError, match=r"128\.0 MB of it, but 100\.0 MB are available"):
        choose_buffer_bytes(100_000_000, None)


def test_the_largest_cache_counts(tmp_path: Path) -> None:
    for index, text in enumerate(["48K\n", "2048K\n", "307200K\n", "nonsense", "12M"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(text)
    assert read_cache_bytes(tmp_path) == 307_200 * 1024
    assert read_cache_bytes(tmp_path / "nothing") is None


def test_int8_products_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_DEPTH", 256)
    monkeypatch.setattr(roofline, "_WIDTH", 256)
    assert 1e8 < roofline.measure_int8_throughput(seconds=0.01, threads=1) < 1e15


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="kernels of x86")
def test_the_quantised_product_is_computed_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_WIDTH", 256)
    compiled = compile_model(roofline._build_quantised(), "CPU", {})
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [
        node["primitiveType"].astype(str)
        for node in nodes
        if node["layerType"].astype(str) == "FullyConnected"
    ]
    assert len(kinds) == 1 and kinds[0].endswith("i8"), kinds


def test_limits_follow_from_the_figures() -> None:
    roof = Roofline(30e9, 4e12)
    assert roof.most_decode_tokens_per_s(2.5e9) == 12
    assert roof.most_prefill_tokens_per_s(4e9) == 1_000
    assert Roofline(30e9, None).most_prefill_tokens_per_s(4e9) is None


@pytest.mark.usefixtures("small_buffer")
def test_without_openvino_there_is_the_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> float:
        raise MissingExtraError("OpenVINO is not installed.", "install it")

    monkeypatch.setattr(roofline, "measure_int8_throughput", refuse)
    measured = roofline.measure_roofline(seconds=0.01)
    assert measured.int8_macs_per_s is None
    assert measured.bandwidth_bytes_per_s > 0
