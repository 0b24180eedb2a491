"""What the contract tests share: a package that answers by a table, and a tiny random decoder.

The table's answers can be foretold; the decoder is what `qwen_edge.export` builds, so its cache
is a real one. Helpers come as fixtures, since test modules cannot import each other.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qwen_edge.errors import ContextFullError, DeviceError
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.openvino_graph import build_decoder
from qwen_edge.runtime.backends.backend import Backend
from qwen_edge.runtime.backends.compiling import compile_model
from qwen_edge.runtime.backends.last_logits import keep_last_logits
from qwen_edge.runtime.backends.openvino import OpenVinoBackend
from qwen_edge.runtime.backends.openvino_static import StaticOpenVinoBackend
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.manifest import DeviceSettings, Manifest
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
CONFIG = {
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


def seal_folder(folder: Path, devices: tuple[DeviceSettings, ...] = (CPU,)) -> None:
    """Write a manifest for whatever the folder holds, and let the files look old."""
    (folder / "manifest.json").unlink(missing_ok=True)
    files = {path.name: hash_file(path) for path in folder.iterdir()}
    write_manifest(folder, dataclasses.replace(SAMPLE, files=files, devices=devices))
    old_ns = time.time_ns() - 60 * 10**9
    for path in folder.iterdir():
        os.utime(path, ns=(old_ns, old_ns))


@pytest.fixture
def seal() -> Callable[..., None]:
    """Return a function (folder, devices) that seals a changed package again."""
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


class RandomWeights:
    """Seeded weights, large enough that every token counts; a norm may be poisoned."""

    def __init__(self, spec: DecoderSpec, poison: float) -> None:
        import_openvino()
        self._rng = np.random.default_rng(0)
        self._shapes = spec.tensor_shapes()
        self._poison = poison

    def linear(self, name: str) -> Any:
        from openvino import opset15 as ops

        values = self._rng.standard_normal(self._shapes[name]) * 0.3
        return ops.constant(values.astype(np.float32), name=name).output(0)

    embedding = linear

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        values = np.ones(self._shapes[name], dtype=np.float32)
        return values * self._poison if name == "model.norm.weight" else values

    def activation_scale(self, name: str) -> None:
        return None


def build_tiny_decoder(poison: float = 1.0) -> Any:
    spec = read_spec(CONFIG)
    return build_decoder(spec, RandomWeights(spec, poison))


@pytest.fixture(scope="session")
def make_decoder() -> Callable[..., Any]:
    """Return a builder of tiny decoders whose last norm is multiplied by an argument."""
    return build_tiny_decoder


@pytest.fixture(scope="session")
def compiled() -> Any:
    """Return the tiny decoder compiled for exact arithmetic, its head cut."""
    model = build_tiny_decoder()
    assert keep_last_logits(model)
    return compile_model(model, "CPU", EXACT)


@pytest.fixture(scope="session")
def compiled_static() -> Any:
    """Return the tiny decoder in the NPU plugin's pipeline of fixed shapes, on the CPU."""
    try:
        return compile_model(build_tiny_decoder(), "NPU", NPU_ON_CPU)
    except DeviceError as error:
        pytest.skip(f"this build of OpenVINO has no NPU plugin: {error.problem}")


@pytest.fixture(scope="session")
def make_static(compiled_static: Any) -> Callable[[], StaticOpenVinoBackend]:
    """Return a maker of backends of fixed shapes: 64 tokens of prompt, 128 of context."""

    def make() -> StaticOpenVinoBackend:
        return StaticOpenVinoBackend(
            compiled_static,
            device="NPU",
            max_prompt_tokens=MAX_PROMPT_TOKENS,
            max_context_tokens=128,
        )

    return make


@pytest.fixture(scope="session")
def fresh(compiled: Any) -> Fresh:
    """Return logits of tokens fed at once to an empty cache, for comparison."""
    reference = OpenVinoBackend(
        compiled, device="CPU", max_context_tokens=256, prefill_chunk_tokens=256
    )

    def logits_of(token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        reference.reset()
        return reference.forward(token_ids)

    return logits_of


def make_ids(count: int, seed: int = 1) -> list[int]:
    return [
        int(token) for token in np.random.default_rng(seed).integers(0, DECODER_VOCAB_SIZE, count)
    ]


def follow(backend: Backend, steps: Steps, fresh: Fresh, tolerance: float) -> None:
    """Follow the steps on the backend and compare after every one that gives logits."""
    backend.reset()
    sequence: list[int] = []
    source = iter(make_ids(4096, seed=len(steps)))
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
        elif action == "reset":
            backend.reset()
            sequence.clear()
        else:
            share = amount if action == "trim" else len(sequence) * amount // 4
            count = min(share, len(sequence))
            backend.trim(count)
            del sequence[len(sequence) - count :]
        assert backend.cached_tokens == len(sequence)


@pytest.fixture(scope="session")
def obey(fresh: Fresh) -> Callable[[Backend, Steps, float], None]:
    """Return a function that checks the law of the cache over steps on a backend."""

    def check(backend: Backend, steps: Steps, tolerance: float) -> None:
        follow(backend, steps, fresh, tolerance)

    return check
