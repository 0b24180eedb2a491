"""What the contract tests share: a package that answers by a table, and a tiny random decoder.

The table's answers can be foretold; the decoder is what `qwen_edge.export` builds, in both
formats from the same numbers, so its cache is a real one. Helpers come as fixtures, since test
modules cannot import each other.
"""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qwen_edge.errors import ContextFullError, DeviceError
from qwen_edge.export.checkpoint import open_checkpoint
from qwen_edge.export.compress import Compressor
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.onnx_files import write_onnx_model
from qwen_edge.export.openvino_graph import build_decoder
from qwen_edge.export.weight_store import WeightStore
from qwen_edge.profiles.providers import choose_provider
from qwen_edge.profiles.recipe import load_recipe
from qwen_edge.runtime.backends.backend import MAX_SCORED_TOKENS, Backend, CacheSnapshot
from qwen_edge.runtime.backends.compiling import compile_model
from qwen_edge.runtime.backends.fake import FakeBackend
from qwen_edge.runtime.backends.last_logits import keep_last_logits
from qwen_edge.runtime.backends.onnx import OnnxBackend
from qwen_edge.runtime.backends.onnx_file import OnnxModel, read_onnx
from qwen_edge.runtime.backends.onnx_session import CPU_PROVIDER, create_session
from qwen_edge.runtime.backends.openvino import OpenVinoBackend
from qwen_edge.runtime.backends.openvino_own_cache import OwnCacheBackend
from qwen_edge.runtime.backends.openvino_static import StaticOpenVinoBackend
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.golden import GOLDEN_PROPERTIES, answer_greedily
from qwen_edge.runtime.kernels import CacheShape, find_kernels, use_attention
from qwen_edge.runtime.manifest import ChatFacts, DeviceSettings, Manifest, OnnxFacts
from qwen_edge.runtime.package import hash_file, write_manifest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "export" / "qwen_edge" / "export" / "demo"
SAMPLE = Manifest.from_bytes((ROOT / "tests" / "data" / "manifest.json").read_bytes())
TABLE_VOCAB_SIZE = 1024
CPU = DeviceSettings("CPU", {"INFERENCE_PRECISION_HINT": "f32"}, 256, None, None, 32)

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
DECODER_VOCAB_SIZE = 64
MAX_PROMPT_TOKENS = 64
# Without the plugin's partitioning into parts: what is tested is the account of its cache.
NPU_ON_CPU: dict[str, str | int] = {
    "NPU_USE_NPUW": "YES",
    "NPUW_LLM": "YES",
    "NPUW_DEVICES": "CPU",
    "NPUW_ONLINE_PIPELINE": "NONE",
    "NPUW_LLM_PREFILL_HINT": "STATIC",
    "NPUW_LLM_OPTIMIZE_V_TENSORS": "NO",
    "NPUW_LLM_MAX_PROMPT_LEN": MAX_PROMPT_TOKENS,
    "NPUW_LLM_MIN_RESPONSE_LEN": 64,
    "INFERENCE_PRECISION_HINT": "f32",
}
# Prompts in chunks, of which the plugin keeps those that begin the next prompt too.
NPU_WITH_REUSE: dict[str, str | int] = {
    **NPU_ON_CPU,
    "NPUW_LLM_PREFILL_HINT": "DYNAMIC",
    "NPUW_LLM_PREFILL_ATTENTION_HINT": "STATIC",
    "NPUW_LLM_PREFILL_CHUNK_SIZE": 16,
    "NPUW_LLM_ENABLE_CONTINUOUS_PREFILL": "YES",
}
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": DECODER_VOCAB_SIZE,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
}

Fresh = Callable[[Sequence[int]], npt.NDArray[np.float32]]
Steps = list[tuple[str, int]]


def build_table_model(vocab_size: int) -> Any:
    """A "decoder" that always follows token n by n + 1; the other inputs count for nothing."""
    ov = import_openvino()
    from openvino import opset15 as ops

    types = {
        "input_ids": ([-1, -1], ov.Type.i64),
        "attention_mask": ([-1, -1], ov.Type.i64),
        "position_ids": ([-1, -1], ov.Type.i64),
        "beam_idx": ([-1], ov.Type.i32),
    }
    inputs = {name: ops.parameter(shape, kind, name) for name, (shape, kind) in types.items()}
    for name, node in inputs.items():
        node.output(0).set_names({name})
    table = np.roll(np.eye(vocab_size, dtype=np.float32), 1, axis=1) * 20
    logits = ops.gather(ops.constant(table), inputs["input_ids"], ops.constant(0))
    for name in ("attention_mask", "position_ids", "beam_idx"):
        axes = ops.constant(list(range(len(types[name][0]))))
        total = ops.reduce_sum(ops.convert(inputs[name], "f32"), axes)
        logits = ops.add(logits, ops.multiply(total, ops.constant(np.float32(0))))
    result = ops.result(logits)
    result.output(0).set_names({"logits"})
    return ov.Model([result], list(inputs.values()), "table")


@pytest.fixture
def make_table_model() -> Callable[[int], Any]:
    """Return a builder of table models of a given vocabulary."""
    return build_table_model


def seal_folder(
    folder: Path, devices: tuple[DeviceSettings, ...] = (CPU,), **facts: object
) -> None:
    """Write a manifest for whatever the folder holds, and let the files look old."""
    (folder / "manifest.json").unlink(missing_ok=True)
    files = {path.name: hash_file(path) for path in folder.iterdir()}
    changes: dict[str, Any] = {"files": files, "devices": devices, **facts}
    write_manifest(folder, dataclasses.replace(SAMPLE, **changes))
    old_ns = time.time_ns() - 60 * 10**9
    for path in folder.iterdir():
        os.utime(path, ns=(old_ns, old_ns))


@pytest.fixture
def seal() -> Callable[..., None]:
    """Return a function (folder, devices, facts by name) that seals a changed package again."""
    return seal_folder


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give one test a cache folder of its own."""
    monkeypatch.setenv("QWEN_EDGE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path: Path, cache_dir: Path) -> Path:
    """Return a sealed package whose model answers n with n + 1."""
    assert not cache_dir.exists()
    folder = tmp_path / "my päckage 测试"
    folder.mkdir()
    ov = import_openvino()
    ov.save_model(
        build_table_model(TABLE_VOCAB_SIZE), folder / "openvino_model.xml", compress_to_fp16=False
    )
    config = json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "chat_template.jinja").write_text(config["chat_template"], encoding="utf-8")
    (folder / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())
    (folder / "config.json").write_bytes((DEMO / "config.json").read_bytes())
    seal_folder(folder)
    return folder


def make_tiny_arrays(spec: DecoderSpec, poison: float = 1.0) -> dict[str, npt.NDArray[Any]]:
    """Seeded weights, large enough that every token counts; the last norm may be poisoned.

    Matrices are float16, so that both formats hold the very same numbers.
    """
    rng = np.random.default_rng(0)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, shape in spec.tensor_shapes().items():
        if len(shape) == 1:
            arrays[name] = np.ones(shape, dtype=np.float32)
        else:
            arrays[name] = (rng.standard_normal(shape) * 0.3).astype(np.float16)
    arrays["model.norm.weight"] *= np.float32(poison)
    return arrays


class TinyWeights:
    """Hands the tiny weights to OpenVINO's graph."""

    def __init__(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        import_openvino()
        self._arrays = arrays

    def linear(self, name: str) -> Any:
        from openvino import opset15 as ops

        return ops.constant(self._arrays[name].astype(np.float32), name=name).output(0)

    embedding = linear

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        return np.asarray(self._arrays[name], dtype=np.float32)

    def activation_scale(self, name: str) -> None:
        return None


def build_tiny_decoder(poison: float = 1.0, head_dim: int = 16) -> Any:
    spec = read_spec(CONFIG | {"head_dim": head_dim})
    return build_decoder(spec, TinyWeights(make_tiny_arrays(spec, poison)))


@pytest.fixture(scope="session")
def make_decoder() -> Callable[..., Any]:
    """Return a builder of tiny decoders whose last norm is multiplied by an argument."""
    return build_tiny_decoder


@pytest.fixture(scope="session")
def compiled() -> Any:
    """Return the tiny decoder compiled for exact arithmetic, its head cut."""
    model = build_tiny_decoder()
    assert keep_last_logits(model, MAX_SCORED_TOKENS)
    return compile_model(model, "CPU", EXACT)


def compile_static(properties: dict[str, str | int], poison: float = 1.0) -> Any:
    """Compile the tiny decoder in the NPU plugin's pipeline of fixed shapes, on the CPU."""
    try:
        return compile_model(build_tiny_decoder(poison), "NPU", properties)
    except DeviceError as error:
        pytest.skip(f"this build of OpenVINO has no NPU plugin: {error.problem}")


def make_static_on(compiled: Any) -> StaticOpenVinoBackend:
    """Make a backend of fixed shapes: 64 tokens of prompt, 128 of context."""
    return StaticOpenVinoBackend(
        compiled, device="NPU", max_prompt_tokens=MAX_PROMPT_TOKENS, max_context_tokens=128
    )


@pytest.fixture(scope="session")
def make_static() -> Callable[[], StaticOpenVinoBackend]:
    """Return a maker of backends of fixed shapes that read every prompt from its start."""
    return functools.partial(make_static_on, compile_static(NPU_ON_CPU))


@pytest.fixture(scope="session")
def make_reusing() -> Callable[[], StaticOpenVinoBackend]:
    """Return a maker of backends of fixed shapes that go on from chunks of 16 tokens."""
    return functools.partial(make_static_on, compile_static(NPU_WITH_REUSE))


@pytest.fixture(scope="session")
def fresh(compiled: Any) -> Fresh:
    """Return logits of tokens fed at once to an empty cache, for comparison."""
    return fresh_on(compiled)


def fresh_on(compiled: Any) -> Fresh:
    reference = OpenVinoBackend(
        compiled, device="CPU", max_context_tokens=256, prefill_chunk_tokens=256
    )

    def logits_of(token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        reference.reset()
        return reference.forward(token_ids)

    return logits_of


# ONNX models of the tiny decoder.


@pytest.fixture(scope="session")
def tiny_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., WeightStore]]:
    """Return a maker of stores of the tiny weights: (recipe "fp16" or "int4", poison)."""
    spec = read_spec(CONFIG)
    with contextlib.ExitStack() as stack:

        def make(recipe: str = "fp16", poison: float = 1.0) -> WeightStore:
            folder = tmp_path_factory.mktemp("tiny")
            store = stack.enter_context(WeightStore(folder / "spool"))
            arrays = make_tiny_arrays(spec, poison)
            if recipe == "fp16":  # written directly, since a checkpoint must be finite
                for name, array in arrays.items():
                    if array.ndim == 1:
                        store.add_vector(name, array)
                    else:
                        store.add(name, "fp16", array.shape, -1, {"values": [array]})
            else:
                from safetensors.numpy import save_file

                (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
                save_file(arrays, folder / "model.safetensors")
                compressor = Compressor(open_checkpoint(folder), spec, load_recipe(recipe), store)
                compressor.compress_embeddings()
                for layer_index in range(spec.num_layers):
                    compressor.compress_layer(layer_index)
            store.freeze()
            return store

        yield make


MakeOnnx = Callable[..., Path]


@pytest.fixture(scope="session")
def make_onnx(
    tmp_path_factory: pytest.TempPathFactory, tiny_stores: Callable[..., WeightStore]
) -> MakeOnnx:
    """Return a maker of folders with the tiny decoder as ONNX: (recipe, poison, is_portable)."""
    made: dict[tuple[object, ...], Path] = {}

    def make(recipe: str = "fp16", poison: float = 1.0, *, is_portable: bool = False) -> Path:
        key = (recipe, str(poison), is_portable)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("onnx")
            write_onnx_model(
                read_spec(CONFIG),
                tiny_stores(recipe, poison),
                made[key],
                max_context_tokens=4096,
                is_portable=is_portable,
            )
        return made[key]

    return make


def open_session(folder: Path) -> tuple[Any, OnnxModel]:
    """Make a session for the CPU that computes in float32; two cores need no third thread."""
    model = read_onnx(folder, accuracy_level=1, num_last_positions=MAX_SCORED_TOKENS)
    provider = choose_provider([CPU_PROVIDER]).value
    return create_session(model, provider, accuracy_level=1, threads=1), model


def make_onnx_backend(session: Any, model: OnnxModel, **options: int) -> OnnxBackend:
    limits = {"max_context_tokens": 80, "prefill_chunk_tokens": 16} | options
    return OnnxBackend(session, model=model, device="CPU", **limits)


def open_onnx(folder: Path, **options: int) -> OnnxBackend:
    session, model = open_session(folder)
    return make_onnx_backend(session, model, **options)


@pytest.fixture(scope="session")
def open_onnx_model() -> Callable[..., OnnxBackend]:
    """Return a function (folder, max_context_tokens, prefill_chunk_tokens) that opens a model."""
    return open_onnx


ONNX_FACTS = OnnxFacts(
    opset=21,
    is_portable=False,
    max_context_tokens=256,
    prefill_chunk_tokens=32,
    accuracy_level=4,
)


@pytest.fixture
def onnx_package(tmp_path: Path, cache_dir: Path, make_onnx: MakeOnnx) -> Path:
    """Return a sealed package whose only model is the tiny decoder as ONNX, int4."""
    assert not cache_dir.exists()
    folder = tmp_path / "my öнnx 测试"
    shutil.copytree(make_onnx("int4"), folder)
    (folder / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    model = dataclasses.replace(
        SAMPLE.model,
        num_layers=CONFIG["num_hidden_layers"],
        num_kv_heads=CONFIG["num_key_value_heads"],
        head_dim=CONFIG["head_dim"],
        vocab_size=CONFIG["vocab_size"],
    )
    prompt_ids = tuple(make_ids(20))
    golden = dataclasses.replace(
        SAMPLE.golden,
        prompt_ids=prompt_ids,
        token_ids=answer_greedily(folder, prompt_ids, 12, fmt="onnx"),
        properties={},
    )
    seal_folder(
        folder,
        (),
        onnx=ONNX_FACTS,
        model=model,
        golden=golden,
        generation=dataclasses.replace(SAMPLE.generation, eos_token_ids=(0,)),
        chat=ChatFacts("never", None, None),
    )
    return folder


class ForeignSession:
    """A session that says another provider runs it, as one with memory of its own does."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return ["SomeGpuExecutionProvider", CPU_PROVIDER]


# The kinds of backend, for tests of what all of them promise.


@dataclass(frozen=True)
class Kind:
    """One kind of backend.

    Args:
        name: For test ids.
        make: Maker of backends: (max_context_tokens, prefill_chunk_tokens).
        make_apart: Maker of backends that may be used side by side.
        fresh: Logits of tokens fed at once to an empty cache.
        tolerance: How far the logits, of about 5, may be from those.
        make_poisoned: As `make`, with a last norm multiplied by its argument; None where there
            are no weights.
        break_engine: (backend, error, is_late): lets the engine raise once, before or after its
            work; None where there is no engine.
        engine_error: What the engine raises, with the words that must reach the user.
        fed_at_once: Most tokens of one call of the engine in the middle of a conversation.
    """

    name: str
    make: Callable[..., Any]
    make_apart: Callable[[], Any]
    fresh: Fresh
    tolerance: float
    make_poisoned: Callable[[float], Any] | None = None
    break_engine: Callable[[Any, BaseException, bool], None] | None = None
    engine_error: str = ""
    fed_at_once: int = 16


class FailingCall:
    """Stands in for an object of the engine, one of whose methods fails once."""

    def __init__(self, inner: Any, method: str, error: BaseException, *, is_late: bool) -> None:
        self._inner = inner
        self._method = method
        self._error: BaseException | None = error
        self._is_late = is_late

    def __getattr__(self, name: str) -> Any:
        if name != self._method:
            return getattr(self._inner, name)

        def call(*args: object, **options: object) -> Any:
            error, self._error = self._error, None
            if error is not None and not self._is_late:
                raise error
            result = getattr(self._inner, name)(*args, **options)
            if error is not None:
                raise error
            return result

        return call


def break_openvino(backend: Any, error: BaseException, is_late: bool) -> None:
    request = backend._request
    request._request = FailingCall(request._request, "infer", error, is_late=is_late)


def break_onnx(backend: Any, error: BaseException, is_late: bool) -> None:
    backend._session = FailingCall(backend._session, "run_with_iobinding", error, is_late=is_late)


def make_fake_kind(_: pytest.FixtureRequest) -> Kind:
    def next_token(cached_ids: Sequence[int]) -> int:
        return (sum(cached_ids) + len(cached_ids)) % DECODER_VOCAB_SIZE

    def make(max_context_tokens: int = 80, prefill_chunk_tokens: int = 16) -> FakeBackend:
        del prefill_chunk_tokens
        return FakeBackend(
            next_token, vocab_size=DECODER_VOCAB_SIZE, max_context_tokens=max_context_tokens
        )

    return Kind("fake", make, make, lambda ids: make(4096).forward(ids), tolerance=1e-9)


def make_openvino_kind(request: pytest.FixtureRequest) -> Kind:
    def make_on(compiled: Any, **options: int) -> OpenVinoBackend:
        limits = {"max_context_tokens": 80, "prefill_chunk_tokens": 16, "min_holes_to_compact": 4}
        return OpenVinoBackend(compiled, device="CPU", **(limits | options))

    compiled = request.getfixturevalue("compiled")
    return Kind(
        "openvino",
        lambda **options: make_on(compiled, **options),
        lambda: make_on(compiled),
        request.getfixturevalue("fresh"),
        tolerance=1e-4,  # sums of other order
        make_poisoned=lambda poison: make_on(
            compile_model(build_tiny_decoder(poison), "CPU", EXACT)
        ),
        break_engine=break_openvino,
        engine_error="Exception from src/x.cpp:1:\nCL_OUT_OF_RESOURCES\n",
    )


def make_own_cache_kind(_: pytest.FixtureRequest) -> Kind:
    """Attention by our kernels, whose heads are a multiple of 32 wide."""
    library = find_kernels()
    if library.path is None:
        pytest.skip(f"no kernels here: {library.reason}")

    @functools.cache
    def compile_tiny(poison: float) -> tuple[Any, CacheShape]:
        model = build_tiny_decoder(poison, head_dim=32)
        assert keep_last_logits(model, MAX_SCORED_TOKENS)
        shape = use_attention(model, library)
        assert shape is not None
        return compile_model(model, "CPU", EXACT), shape

    def make(poison: float = 1.0, **options: int) -> OwnCacheBackend:
        limits = {"max_context_tokens": 80, "prefill_chunk_tokens": 16} | options
        assert library.path is not None
        return OwnCacheBackend(*compile_tiny(poison), library.path, device="CPU", **limits)

    reference = make(max_context_tokens=256, prefill_chunk_tokens=256)

    def fresh(token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        reference.reset()
        return reference.forward(token_ids)

    return Kind(
        "openvino-own-cache",
        make,
        make,
        fresh,
        tolerance=0.05,  # the engine's sums of other order may round a key or a value otherwise
        make_poisoned=lambda poison: make(poison),
        break_engine=break_openvino,
        engine_error="Exception from src/x.cpp:1:\nCL_OUT_OF_RESOURCES\n",
    )


def make_static_kind(
    request: pytest.FixtureRequest,
    maker: str = "make_static",
    properties: dict[str, str | int] = NPU_ON_CPU,
    fed_at_once: int = 16,
) -> Kind:
    make_backend = request.getfixturevalue(maker)

    def make(**_: int) -> StaticOpenVinoBackend:
        backend: StaticOpenVinoBackend = make_backend()
        return backend

    def make_poisoned(poison: float = 1.0) -> StaticOpenVinoBackend:
        return make_static_on(compile_static(properties, poison))

    return Kind(
        "openvino-static",
        make,
        make_poisoned,  # the requests of one compiled model have one cache: the plugin's way
        request.getfixturevalue("fresh"),
        tolerance=0.02,  # the plugin keeps its cache in f16
        make_poisoned=make_poisoned,
        break_engine=break_openvino,
        engine_error="Exception from src/x.cpp:1:\nCL_OUT_OF_RESOURCES\n",
        fed_at_once=fed_at_once,
    )


def make_onnx_kind(
    request: pytest.FixtureRequest,
    recipe: str = "fp16",
    *,
    is_portable: bool = False,
    is_foreign: bool = False,
) -> Kind:
    make_folder: MakeOnnx = request.getfixturevalue("make_onnx")

    @functools.cache
    def session_of(poison: float) -> tuple[Any, OnnxModel]:
        session, model = open_session(make_folder(recipe, poison, is_portable=is_portable))
        return (ForeignSession(session) if is_foreign else session), model

    def make(**options: int) -> OnnxBackend:
        return make_onnx_backend(*session_of(1.0), **options)

    fresh: Fresh = request.getfixturevalue("fresh" if recipe == "fp16" else "fresh_int4")
    return Kind(
        f"onnx-{recipe}",
        make,
        make,
        fresh,  # of the other engine, from the same numbers
        tolerance=1e-4,
        make_poisoned=lambda poison: make_onnx_backend(*session_of(poison)),
        break_engine=break_onnx,
        engine_error="[ONNXRuntimeError] : 1 : FAIL : CL_OUT_OF_RESOURCES",
    )


KINDS: dict[str, Callable[[pytest.FixtureRequest], Kind]] = {
    "fake": make_fake_kind,
    "openvino": make_openvino_kind,
    "openvino-own-cache": make_own_cache_kind,
    "openvino-static": make_static_kind,
    "openvino-static-reuse": lambda request: make_static_kind(
        request,
        "make_reusing",
        NPU_WITH_REUSE,
        fed_at_once=1,  # before a prompt is continued one token is stepped
    ),
    "onnx": make_onnx_kind,
    "onnx-int4": lambda request: make_onnx_kind(request, "int4"),
    "onnx-portable": lambda request: make_onnx_kind(request, is_portable=True),
    "onnx-portable-int4": lambda request: make_onnx_kind(request, "int4", is_portable=True),
    "onnx-other-provider": lambda request: make_onnx_kind(request, is_foreign=True),
}


@pytest.fixture(scope="session", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    """Return each kind of backend in turn."""
    return KINDS[request.param](request)


@pytest.fixture(scope="session", params=[name for name in KINDS if name != "fake"])
def engine_kind(request: pytest.FixtureRequest) -> Kind:
    """Return each kind of backend in turn that has an engine."""
    return KINDS[request.param](request)


@pytest.fixture(
    scope="session",
    params=[name for name in KINDS if name != "fake" and not name.endswith(("-int4", "-reuse"))],
)
def poisoned_kind(request: pytest.FixtureRequest) -> Kind:
    """Return each kind of backend in turn whose weights may be made to give no numbers."""
    return KINDS[request.param](request)


@pytest.fixture(scope="session")
def fresh_int4(tiny_stores: Callable[..., WeightStore]) -> Fresh:
    """Return logits of the tiny decoder in int4, computed by OpenVINO in float32."""
    model = build_decoder(read_spec(CONFIG), tiny_stores("int4"))
    assert keep_last_logits(model)
    return fresh_on(compile_model(model, "CPU", GOLDEN_PROPERTIES))


def make_ids(count: int, seed: int = 1) -> list[int]:
    return [
        int(token) for token in np.random.default_rng(seed).integers(0, DECODER_VOCAB_SIZE, count)
    ]


def follow(backend: Backend, steps: Steps, fresh: Fresh, tolerance: float) -> None:
    """Follow the steps on the backend and compare after every one that gives logits."""
    backend.reset()
    sequence: list[int] = []
    source = iter(make_ids(4096, seed=len(steps)))
    taken: list[tuple[CacheSnapshot, list[int]]] = [(backend.snapshot(), [])]
    for action, amount in steps:
        if action == "feed":
            new = [next(source) for _ in range(amount)]
            if len(sequence) + amount > backend.max_context_tokens:
                with pytest.raises(ContextFullError):
                    backend.forward(new)
            else:
                sequence += new
                difference = np.abs(backend.forward(new) - fresh(sequence)).max()
                assert difference < tolerance, (action, amount, len(sequence))
        elif action == "score":
            count = min(amount, backend.max_context_tokens - len(sequence))
            if count:
                sequence += [next(source) for _ in range(count)]
                rows = min(count, backend.max_scored_tokens)
                scored = backend.forward_scored(sequence[-count:], num_scored=rows)
                assert scored.shape == (rows, backend.vocab_size)
                for row in (0, rows - 1):
                    expected = fresh(sequence[: len(sequence) - rows + 1 + row])
                    assert np.abs(scored[row] - expected).max() < tolerance, (row, amount)
        elif action == "reset":
            backend.reset()
            sequence.clear()
        elif action == "snapshot":
            taken.append((backend.snapshot(), list(sequence)))
        elif action == "restore":
            snapshot, old = taken[amount % len(taken)]
            backend.restore(snapshot)
            sequence = list(old)
        else:
            share = amount if action == "trim" else len(sequence) * amount // 4
            count = min(share, len(sequence))
            backend.trim(count)
            del sequence[len(sequence) - count :]
        assert backend.cached_tokens == len(sequence)


@pytest.fixture(scope="session")
def obey() -> Callable[[Backend, Steps, Fresh, float], None]:
    """Return a function that checks the law of the cache over steps on a backend."""
    return follow
