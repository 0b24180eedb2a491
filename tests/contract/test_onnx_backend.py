"""What is special to the ONNX backend: whose memory is bound, and how the cache grows.

What it promises as every backend does is in `test_backends.py`.
"""

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qwen_edge.errors import ResourceError
from qwen_edge.runtime.backends import onnx_cache
from qwen_edge.runtime.backends.onnx import OnnxBackend
from qwen_edge.runtime.decoding.generation import generate_tokens
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams
from qwen_edge.runtime.golden import answer_greedily

ROOT = Path(__file__).parents[2]
VOCAB_SIZE = 64
TOLERANCE = 1e-4

Fresh = Callable[[Sequence[int]], npt.NDArray[np.float32]]
MakeOnnx = Callable[..., Path]
Open = Callable[..., OnnxBackend]


def make_ids(count: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB_SIZE, count)]


def continue_greedily(backend: OnnxBackend, prompt: list[int], num_tokens: int) -> list[int]:
    greedy = TokenPicker(Sampler(SamplingParams(temperature=0.0)))
    tokens = generate_tokens(backend, prompt, picker=greedy, max_new_tokens=num_tokens)
    return [token.token_id for token in tokens]


@pytest.fixture
def small_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a cache begin with 8 rows."""
    monkeypatch.setattr(onnx_cache, "FIRST_CAPACITY_TOKENS", 8)


@pytest.mark.usefixtures("small_start")
def test_cache_grows_by_doubling_without_changing_a_bit(
    make_onnx: MakeOnnx, open_onnx_model: Open
) -> None:
    backend = open_onnx_model(make_onnx(), max_context_tokens=50)
    cache: Any = backend._cache
    capacities = []
    grown = [
        backend.forward([token_id])
        for token_id in make_ids(50)
        if not capacities.append(cache.capacity)
    ]
    assert capacities[0] == 8
    assert list(dict.fromkeys([*capacities, cache.capacity])) == [8, 16, 32, 50]
    backend.trim(50)
    assert cache.capacity == 50
    at_once = [backend.forward([token_id]) for token_id in make_ids(50)]
    assert np.array_equal(grown, at_once)
    backend.reset()
    assert cache.capacity == 8


def test_context_shorter_than_the_first_capacity(
    make_onnx: MakeOnnx, open_onnx_model: Open
) -> None:
    cache: Any = open_onnx_model(make_onnx(), max_context_tokens=20)._cache
    assert cache.capacity == 20
    cache = open_onnx_model(make_onnx(), max_context_tokens=3000)._cache
    assert cache.capacity == 1024


@pytest.mark.usefixtures("small_start")
def test_prompt_of_many_chunks_grows_the_cache_at_once(
    make_onnx: MakeOnnx, open_onnx_model: Open, fresh: Fresh
) -> None:
    backend = open_onnx_model(make_onnx(), max_context_tokens=200, prefill_chunk_tokens=7)
    ids = make_ids(150)
    assert np.abs(backend.forward(ids) - fresh(ids)).max() < TOLERANCE


def test_rows_that_do_not_count_are_not_seen(make_onnx: MakeOnnx, open_onnx_model: Open) -> None:
    """Whatever lies behind the last row, even what is no number."""
    backend, clean = (open_onnx_model(make_onnx()) for _ in range(2))
    ids = make_ids(40)
    for one in (backend, clean):
        one.forward(ids[:20])
    for buffer in backend._cache._buffers:  # type: ignore[attr-defined]
        buffer[:, :, 20:] = np.nan
    for token_ids in (ids[20:21], ids[21:30], ids[30:31]):
        assert np.array_equal(backend.forward(token_ids), clean.forward(token_ids))


class CountingBinding:
    """An IO binding that remembers what was bound."""

    def __init__(self, binding: Any) -> None:
        self._binding = binding
        self._iobinding, self._session = binding._iobinding, binding._session
        self.bound: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.bound.append(name)
        self._binding.bind_ortvalue_input(name, value)


def test_decode_step_binds_nothing_but_the_mask(make_onnx: MakeOnnx, open_onnx_model: Open) -> None:
    backend = open_onnx_model(make_onnx())
    backend.forward(make_ids(10))
    binding = CountingBinding(backend._binding)
    backend._binding = binding
    backend.forward([1])
    assert binding.bound == ["input_ids", "attention_mask"]
    binding.bound.clear()
    for token_id in (2, 3, 4):
        backend.forward([token_id])
    assert binding.bound == ["attention_mask"] * 3


def test_only_the_host_s_own_provider_writes_in_place(
    make_onnx: MakeOnnx, open_onnx_model: Open
) -> None:
    """Elsewhere the engine copies what is bound: on WebGPU every step saw an empty cache."""

    class Foreign:
        def __init__(self, session: Any) -> None:
            self._session = session

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

        def get_providers(self) -> list[str]:
            return ["WebGpuExecutionProvider", "CPUExecutionProvider"]

    here = open_onnx_model(make_onnx())
    there = OnnxBackend(
        Foreign(here._session),
        model=here._model,
        device="GPU",
        max_context_tokens=80,
        prefill_chunk_tokens=16,
    )
    portable = open_onnx_model(make_onnx(is_portable=True))
    kinds = [type(backend._cache).__name__ for backend in (here, there, portable)]
    assert kinds == ["SharedCache", "GrowingCache", "GrowingCache"]
    binding = CountingBinding(there._binding)
    there._binding = there._cache._binding = binding  # type: ignore[attr-defined]
    there.forward([1])
    binding.bound.clear()
    there.forward([2])
    assert {"input_ids", "attention_mask", "past_key_values.1.value"} <= set(binding.bound)


def test_forgetting_in_a_portable_model_copies_once(
    make_onnx: MakeOnnx, open_onnx_model: Open, fresh: Fresh
) -> None:
    backend = open_onnx_model(make_onnx(is_portable=True))
    cache: Any = backend._cache
    ids = make_ids(40)
    backend.forward(ids)
    before = cache._values
    backend.trim(10)
    backend.trim(5)
    assert cache._values is before
    assert np.abs(backend.forward([1, 2]) - fresh([*ids[:25], 1, 2])).max() < TOLERANCE
    assert [value.shape()[2] for value in cache._values] == [27] * 4


def test_closing_lets_go_of_the_engine(make_onnx: MakeOnnx, open_onnx_model: Open) -> None:
    for is_portable in (False, True):
        backend = open_onnx_model(make_onnx(is_portable=is_portable))
        backend.forward([1, 2, 3])
        session = weakref.ref(backend._session)
        assert session() is not None
        backend.close()
        gc.collect()
        assert session() is None


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("Failed to allocate memory for requested buffer of size 9")],
    ids=["python", "engine"],
)
def test_memory_that_runs_out_is_said_to_be_memory(
    make_onnx: MakeOnnx,
    open_onnx_model: Open,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    backend = open_onnx_model(make_onnx())
    backend.forward([1, 2])

    def refuse(num_cached: int, num_rows: int) -> None:
        raise error

    monkeypatch.setattr(backend._cache, "prepare", refuse)
    with pytest.raises(ResourceError, match="at 3 tokens of context") as caught:
        backend.forward([3])
    assert caught.value.__cause__ is error
    assert backend.cached_tokens == 0


def test_both_engines_agree_in_int4(
    make_onnx: MakeOnnx, open_onnx_model: Open, fresh_int4: Fresh
) -> None:
    """The same integers and scales in both formats, both computed in float32."""
    for is_portable in (False, True):
        folder = make_onnx("int4", is_portable=is_portable)
        backend = open_onnx_model(folder, max_context_tokens=256, prefill_chunk_tokens=256)
        worst, largest = 0.0, 0.0
        for seed in range(8):
            ids = make_ids(40, seed)
            backend.reset()
            expected = fresh_int4(ids)
            worst = max(worst, float(np.abs(backend.forward(ids) - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
        print(f"portable={is_portable}: max |Δlogit| {worst:.1e} of {largest:.1f}")
        assert worst < 1e-5 * largest


def test_both_engines_say_the_same_64_tokens(
    make_onnx: MakeOnnx, open_onnx_model: Open, fresh_int4: Fresh
) -> None:
    folders = [make_onnx("int4", is_portable=is_portable) for is_portable in (False, True)]
    backends = [open_onnx_model(folder, max_context_tokens=100) for folder in folders]
    said: set[int] = set()
    for seed in range(6):
        prompt = make_ids(20, seed)
        ids = list(prompt)
        for _ in range(64):
            ids.append(int(fresh_int4(ids).argmax()))
        said.update(ids[20:])
        for backend in backends:
            backend.reset()
            assert continue_greedily(backend, prompt, 64) == ids[20:], seed
    assert len(said) > 5, "the tokens say nothing"


def test_two_engines_in_one_process_do_not_disturb_each_other(
    make_onnx: MakeOnnx, open_onnx_model: Open, fresh: Fresh
) -> None:
    one, other = open_onnx_model(make_onnx()), open_onnx_model(make_onnx(is_portable=True))
    mine: list[int] = []
    theirs: list[int] = []
    for token_id in make_ids(30):
        mine.append(token_id)
        theirs.append(VOCAB_SIZE - 1 - token_id)
        assert np.abs(one.forward(mine[-1:]) - fresh(mine)).max() < TOLERANCE
        assert np.abs(other.forward(theirs[-1:]) - fresh(theirs)).max() < TOLERANCE
    one.close()
    theirs.append(1)
    assert np.abs(other.forward([1]) - fresh(theirs)).max() < TOLERANCE


RUN_WITHOUT_OPENVINO = """
import sys
from pathlib import Path
sys.modules["openvino"] = None
from qwen_edge.runtime.decoding.generation import generate_tokens
from qwen_edge.runtime.golden import answer_greedily
from qwen_edge.runtime.decoding.picker import TokenPicker
from qwen_edge.runtime.decoding.sampling import Sampler, SamplingParams
print(answer_greedily(Path(sys.argv[1]), [1, 2, 3], 4, fmt="onnx"))
assert sys.modules["openvino"] is None
"""


def test_running_an_onnx_model_never_imports_openvino(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    """Nor does it leave anything behind: the engine keeps a device id unless told not to."""
    path = os.pathsep.join(str(ROOT / top) for top in ("runtime", "profiles"))
    hidden = ("XDG_", "ORT_", "QWEN_EDGE_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    done = subprocess.run(
        [sys.executable, "-B", "-c", RUN_WITHOUT_OPENVINO, str(make_onnx())],
        capture_output=True,
        text=True,
        env={**kept, "PYTHONPATH": path, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{answer_greedily(make_onnx(), [1, 2, 3], 4, fmt='onnx')}\n"
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


class InterruptedBinding:
    """An IO binding whose n-th bind is followed by Ctrl-C."""

    def __init__(self, binding: Any) -> None:
        self._binding = binding
        self.left = -1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)

    def bind_ortvalue_input(self, *arguments: Any) -> None:
        self._binding.bind_ortvalue_input(*arguments)
        self._count()

    def bind_ortvalue_output(self, *arguments: Any) -> None:
        self._binding.bind_ortvalue_output(*arguments)
        self._count()

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("small_start")
@pytest.mark.parametrize("what", ["grow", "prompt", "step", "reset", "restore"])
def test_ctrl_c_at_any_bind_leaves_a_backend_that_works(
    make_onnx: MakeOnnx, open_onnx_model: Open, fresh: Fresh, what: str
) -> None:
    """Found in review: half of the arrays were new, and short prompts were refused ever after."""
    backend = open_onnx_model(make_onnx(), max_context_tokens=64)
    inner: Any = backend
    interrupted = InterruptedBinding(inner._binding)
    inner._binding = inner._cache._binding = interrupted
    ids = make_ids(30)
    backend.forward(ids)
    snapshot = backend.snapshot()
    actions: dict[str, Callable[[], object]] = {
        "grow": lambda: backend.forward(make_ids(50)),
        "prompt": lambda: backend.forward([1, 2]),
        "step": lambda: backend.forward([3]),
        "reset": backend.reset,
        "restore": lambda: backend.restore(snapshot),
    }
    num_interrupts = 0
    for number in range(1, 20):
        backend.reset()
        if what != "grow":
            backend.forward(ids if what in {"reset", "restore"} else [7])
        interrupted.left = number
        try:
            actions[what]()
        except KeyboardInterrupt:
            num_interrupts += 1
        interrupted.left = -1
        backend.reset()
        for prompt in ([5], [1, 2, 3], ids):
            assert np.abs(backend.forward(prompt) - fresh(prompt)).max() < TOLERANCE, number
            backend.reset()
    assert num_interrupts >= 1
