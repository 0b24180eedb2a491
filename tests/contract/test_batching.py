"""Many sequences on a real engine: each gets, bit for bit, the logits it gets alone.

The demo model runs with the settings of its package, int4 weights, activations quantised as they
come and a cache of 8 bits, where a last bit that differs would be magnified at once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qwen_edge.errors import PackageError, ResourceError
from qwen_edge.profiles.choose import Choice
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.runtime.backends.compiling import read_ir
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.backends.openvino import OpenVinoBackend
from qwen_edge.runtime.batching import batch_opening
from qwen_edge.runtime.batching.batch_backend import Feed
from qwen_edge.runtime.batching.batch_opening import open_batch_backend
from qwen_edge.runtime.batching.batch_options import BatchOptions
from qwen_edge.runtime.batching.generate_batch import generate_batch
from qwen_edge.runtime.batching.openvino_paged import OpenVinoPagedEngine
from qwen_edge.runtime.batching.paged import PagedBatchBackend
from qwen_edge.runtime.batching.paged_model import compile_paged
from qwen_edge.runtime.batching.scheduler import ContinuousBatcher
from qwen_edge.runtime.batching.sequential import SequentialBatchBackend
from qwen_edge.runtime.decoding.constraint import Bitmask
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams
from qwen_edge.runtime.devices.opening import Opened
from qwen_edge.runtime.devices.openvino_opening import open_openvino_backend
from qwen_edge.runtime.manifest import MODEL_XML
from qwen_edge.runtime.package import read_manifest

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
LENGTHS = (1, 2, 32, 33, 65, 200)
# Without AVX-512 the engine's products of 96 rows and more add up in another order than those of
# 80 and fewer: there, no call of these tests has more.
STEP_TOKENS = 512 if "avx512f" in probe_hardware().isa_features else 64
NEW_TOKENS = 48  # more than a block

MakeBackend = Callable[..., PagedBatchBackend]


class Recorder(Sampler):
    """Takes the likeliest token, and keeps what it was taken from."""

    def __init__(self) -> None:
        super().__init__(SamplingParams(temperature=0))
        self.seen: list[npt.NDArray[np.float32]] = []

    def sample(self, logits: npt.NDArray[np.float32], mask: Bitmask | None = None) -> int:
        self.seen.append(logits.copy())
        return super().sample(logits, mask)


@pytest.fixture(scope="module")
def compiled_demo(demo_package: Path) -> Any:
    """Return the demo model over blocks, with its package's settings."""
    settings = next(d for d in read_manifest(demo_package).devices if d.device == "CPU")
    return compile_paged(read_ir(demo_package / MODEL_XML), settings.properties)


@pytest.fixture
def demo_single(demo_package: Path) -> Iterator[Any]:
    """Return the demo package's engine for one conversation."""
    single, _ = open_openvino_backend(demo_package, read_manifest(demo_package), device="CPU")
    yield single
    single.close()


@pytest.fixture(scope="module")
def make_backend(compiled_demo: Any) -> MakeBackend:
    """Return a maker of backends with so many blocks."""

    def make(num_blocks: int = 100, **options: bool) -> PagedBatchBackend:
        engine = OpenVinoPagedEngine(compiled_demo)
        return PagedBatchBackend(
            engine,
            max_context_tokens=2_048,
            cache_bytes=(num_blocks + 1) * engine.bytes_per_block,
            **options,
        )

    return make


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 1_000, length).tolist()


def answer(batcher: ContinuousBatcher, prompts: Sequence[Sequence[int]]) -> list[Recorder]:
    """Answer all prompts and return what each one's tokens were taken from."""
    recorders = [Recorder() for _ in prompts]
    for _, result in generate_batch(
        batcher,
        prompts,
        make_picker=lambda index: TokenPicker(recorders[index]),
        max_new_tokens=NEW_TOKENS,
    ):
        assert result.error is None
    return recorders


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Return prompts of many lengths, some with a common beginning."""
    made = [prompt_of(length, length) for length in LENGTHS]
    return [*made, [*made[-1][:150], 1, 2, 3], made[-1][:97]]


@pytest.fixture(scope="module")
def expected(make_backend: MakeBackend, prompts: list[list[int]]) -> list[npt.NDArray[np.float32]]:
    """Return the logits along each prompt's answer when it is alone, with nothing cached."""
    backend = make_backend(30)
    batcher = ContinuousBatcher(backend, BatchOptions(step_tokens=STEP_TOKENS))
    logits = []
    for prompt in prompts:
        backend.reset()
        logits.append(np.stack(answer(batcher, [prompt])[0].seen))
    return logits


@pytest.mark.parametrize(
    ("num_blocks", "options"),
    [
        (100, BatchOptions(step_tokens=STEP_TOKENS)),
        (100, BatchOptions(max_running=3, step_tokens=64, shared_step_tokens=32)),
        (9, BatchOptions(max_running=12, step_tokens=STEP_TOKENS)),
    ],
    ids=["roomy", "small-steps", "little-memory"],
)
def test_logits_are_bit_for_bit_those_of_each_prompt_alone(
    make_backend: MakeBackend,
    prompts: list[list[int]],
    expected: list[npt.NDArray[np.float32]],
    num_blocks: int,
    options: BatchOptions,
) -> None:
    batcher = ContinuousBatcher(make_backend(num_blocks), options)
    recorders = answer(batcher, prompts)
    for prompt, recorder, logits in zip(prompts, recorders, expected, strict=True):
        difference = np.abs(np.stack(recorder.seen) - logits).max(axis=1)
        assert not difference.any(), (len(prompt), int(np.flatnonzero(difference)[0]))
    statistics = batcher.statistics()
    assert statistics.num_blocks_used == 0
    assert statistics.hit_tokens >= 128 + 96
    assert (statistics.num_preemptions > 0) == (num_blocks == 9)


def test_the_padding_is_needed(
    make_backend: MakeBackend, prompts: list[list[int]], expected: list[npt.NDArray[np.float32]]
) -> None:
    """Without it a single sequence is split among threads; if this fails, drop the padding."""
    backend = make_backend()
    if backend._engine.min_uniform_sequences < 2:
        pytest.skip("one thread cannot split anything")
    backend._engine.min_uniform_sequences = 0  # type: ignore[misc]
    recorder = answer(ContinuousBatcher(backend), [prompts[7]])[0]
    assert np.abs(np.stack(recorder.seen) - expected[7]).max() > 0


def test_the_tokens_are_those_of_the_engine_for_one(
    demo_single: Any, prompts: list[list[int]], expected: list[npt.NDArray[np.float32]]
) -> None:
    """Other kernels, other roundings: near, and the same token where it is not a tie."""
    for prompt, logits in zip(prompts, expected, strict=True):
        demo_single.reset()
        single = demo_single.forward(prompt)
        assert np.abs(single - logits[0]).max() < 0.5
        gap = np.diff(np.sort(single)[-2:])[0]
        assert gap < 0.5 or single.argmax() == logits[0].argmax()


def test_in_exact_arithmetic_the_golden_tokens_come_out(demo_package: Path) -> None:
    """The package's own check, computed when it was made, by the engine for one conversation."""
    golden = read_manifest(demo_package).golden
    engine = OpenVinoPagedEngine(
        compile_paged(read_ir(demo_package / MODEL_XML), golden.properties)
    )
    backend = PagedBatchBackend(
        engine, max_context_tokens=256, cache_bytes=20 * engine.bytes_per_block
    )
    batcher = ContinuousBatcher(backend)
    handle = batcher.submit(
        golden.prompt_ids, TokenPicker(Recorder()), max_new_tokens=len(golden.token_ids)
    )
    assert handle.wait().token_ids == tuple(golden.token_ids)


def test_exact_arithmetic_gives_the_same_logits(
    make_decoder: Callable[..., Any], fresh: Callable[..., npt.NDArray[np.float32]]
) -> None:
    """In float32 the tiny decoder over blocks agrees with the one that has a state."""
    engine = OpenVinoPagedEngine(compile_paged(make_decoder(), EXACT))
    backend = PagedBatchBackend(
        engine, max_context_tokens=256, cache_bytes=20 * engine.bytes_per_block
    )
    ids = [int(token) for token in np.random.default_rng(3).integers(0, 64, 100)]
    sequences = [backend.begin(ids[:length], max_reused=0) for length in (70, 33, 1)]
    for size, sequence in zip((70, 33, 1), sequences, strict=True):
        assert backend.reserve(sequence, size)
    rows = backend.step([Feed(sequences[0], ids[:70], True), Feed(sequences[1], ids[:33], True)])
    assert np.abs(rows[0] - fresh(ids[:70])).max() < 1e-4
    assert np.abs(rows[1] - fresh(ids[:33])).max() < 1e-4
    twin = backend.fork(sequences[1])
    for sequence, size in ((sequences[1], 1), (twin, 2)):
        assert backend.reserve(sequence, size)
    rows = backend.step([Feed(sequences[1], [5], True), Feed(twin, [6, 7], True)])
    assert np.abs(rows[0] - fresh([*ids[:33], 5])).max() < 1e-4
    assert np.abs(rows[1] - fresh([*ids[:33], 6, 7])).max() < 1e-4
    rows = backend.step([Feed(sequences[2], ids[:1], False)])
    assert rows.shape == (0, 64)


def test_memory_grows_as_it_is_needed_and_not_beyond(make_backend: MakeBackend) -> None:
    backend = make_backend(38)
    engine = backend._engine
    for length, num_blocks in ((40, 16), (600, 32), (1_200, 39)):
        sequence = backend.begin(prompt_of(length), max_reused=0)
        assert backend.reserve(sequence, length)
        backend.step([Feed(sequence, prompt_of(length), True)])
        assert backend.cache_bytes == num_blocks * engine.bytes_per_block
        backend.free(sequence)
    assert not backend.reserve(backend.begin([1], max_reused=0), 39 * 32)


def test_a_model_without_a_state_is_refused(make_table_model: Callable[[int], Any]) -> None:
    with pytest.raises(PackageError, match="many sequences at once"):
        compile_paged(make_table_model(64), EXACT)


def test_taking_turns_changes_no_bit(compiled: Any) -> None:
    single = OpenVinoBackend(
        compiled, device="CPU", max_context_tokens=256, prefill_chunk_tokens=64
    )
    batcher = ContinuousBatcher(SequentialBatchBackend(single, max_sequences=3))
    prompts = [[token % 64 for token in prompt_of(length, length)] for length in (40, 7, 33)]
    alone = [np.stack(answer(batcher, [prompt])[0].seen) for prompt in prompts]
    answer(batcher, [[1]])  # nothing of the last prompt is left to go on from
    together = answer(batcher, prompts)
    for logits, recorder in zip(alone, together, strict=True):
        assert np.array_equal(np.stack(recorder.seen), logits)
    batcher.close()


def test_opening_chooses_by_device_and_memory(
    demo_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(demo_package)
    opened = open_batch_backend(demo_package, manifest, threads=1)
    assert opened.choice.value.device == "CPU"
    assert opened.backend._engine.min_uniform_sequences == 1  # type: ignore[attr-defined]
    with pytest.raises(ResourceError, match="do not fit in the"):
        open_batch_backend(demo_package, manifest, cache_bytes=1 << 50)
    with pytest.raises(ResourceError, match="holds 0 blocks"):
        open_batch_backend(demo_package, manifest, cache_bytes=1)
    no_cpu = replace(manifest, devices=tuple(replace(d, device="GPU") for d in manifest.devices))
    monkeypatch.setattr(batch_opening, "open_backend", lambda *_, **__: open_fake(manifest))
    taken = open_batch_backend(demo_package, no_cpu, device="GPU")
    assert isinstance(taken.backend, SequentialBatchBackend)


def open_fake(manifest: Any) -> Any:
    return Opened(FakeBackend([1]), "openvino", Choice(manifest.devices[0], "as told"))
