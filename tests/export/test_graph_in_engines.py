"""The native graph in other people's hands: OpenVINO GenAI and the NPU plugin.

The NPU pipeline runs here without an NPU: its plugin cuts the model up, makes it static and
hands the parts to the CPU plugin. It folds layers that repeat at least five times
(NPUW_ONLINE_KEEP_BLOCKS), and 2026.4.1 refuses most models with fewer, whoever made them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.export.array_weights import ArrayWeights, make_random_arrays
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.openvino_graph import build_decoder
from qwen_edge.runtime.engine import import_openvino

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
EXACT |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
NPU_ON_CPU = {"NPU_USE_NPUW": "YES", "NPUW_LLM": "YES", "NPUW_DEVICES": "CPU"}
GROUP = 128
NUM_STEPS = 24


class Int4Weights(ArrayWeights):
    """Projections int4 symmetric in groups of 128, embedding and head int8 per row."""

    def linear(self, name: str) -> Any:
        """Return the float32 output of a decompression subgraph."""
        if name == "lm_head.weight":
            return self.embedding(name)
        return self._compressed(name, levels=7, group=GROUP)

    def embedding(self, name: str) -> Any:
        """Return the float32 output of a decompression subgraph."""
        return self._compressed(name, levels=127, group=self._arrays[name].shape[1])

    def _compressed(self, name: str, *, levels: int, group: int) -> Any:
        ov = import_openvino()
        ops = ov.opset15
        array = self._arrays[name]
        grouped = array.reshape(len(array), -1, group)
        scale = np.abs(grouped).max(axis=2, keepdims=True) / levels
        values = np.rint(grouped / scale).astype(np.int8)
        if levels == 127:  # per row: two dimensions
            values, scale = values.reshape(array.shape), scale.reshape(-1, 1)
        kind = ov.Type.i8 if levels == 127 else ov.Type.i4
        node = ops.convert(ops.constant(values, dtype=kind, name=name), ov.Type.f16)
        node = ops.multiply(node, ops.constant(scale.astype(np.float16)))
        if levels != 127:
            node = ops.reshape(node, np.array(array.shape, np.int64), False)
        return ops.convert(node, ov.Type.f32).output(0)


def make_spec(model_type: str = "qwen3", **changes: object) -> DecoderSpec:
    """Return a small architecture with five layers and widths that groups of 128 divide."""
    config: dict[str, object] = {
        "model_type": model_type,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 256,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "rope_theta": 10_000.0,
    }
    return read_spec(config | changes)


def build(spec: DecoderSpec, weights: str) -> Any:
    """Build with random weights, "fp16" or "int4"."""
    arrays = make_random_arrays(spec, 0)
    if weights == "fp16":
        halves = {name: array.astype(np.float16) for name, array in arrays.items()}
        return build_decoder(spec, ArrayWeights(halves))
    return build_decoder(spec, Int4Weights(arrays))


def generate(compiled: Any, prompt_ids: Any, num_steps: int) -> tuple[Any, list[int]]:
    """Generate greedily; logits of every step, float32 [steps, vocab], and tokens."""
    request = compiled.create_infer_request()
    rows: list[Any] = []
    ids, total = prompt_ids, 0
    for _ in range(num_steps):
        positions = np.arange(total, total + ids.shape[1])[None]
        total += ids.shape[1]
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": positions,
            "beam_idx": np.zeros(1, np.int32),
        }
        rows.append(request.infer(inputs)["logits"][0, -1].copy())
        ids = np.array([[rows[-1].argmax()]])
    return np.stack(rows), [int(row.argmax()) for row in rows]


def make_prompt(length: int) -> Any:
    """Return random token ids, int64 [1, length]."""
    return np.random.RandomState(length).randint(0, 256, (1, length)).astype(np.int64)


@pytest.mark.parametrize(
    ("model_type", "changes", "weights"),
    [
        ("qwen3", {}, "fp16"),
        ("qwen3", {}, "int4"),
        ("qwen3", {"tie_word_embeddings": False, "num_key_value_heads": 1}, "int4"),
        ("qwen2", {}, "int4"),
        ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": False}, "int4"),
    ],
    ids=["qwen3-fp16", "qwen3", "qwen3-one-kv-head", "qwen2", "llama-no-sharing"],
)
def test_npu_plugin_compiles_with_its_defaults(
    model_type: str, changes: dict[str, object], weights: str
) -> None:
    """No option but those that send the parts to the CPU; the values' cache is transposed.

    The plugin transposes the values where it recognises the attention, and says so in the
    shapes it writes into the exported model.
    """
    model = build(make_spec(model_type, **changes), weights)
    compiled = import_openvino().Core().compile_model(model, "NPU", NPU_ON_CPU)
    exported = compiled.export_model()
    blob = exported.getvalue() if hasattr(exported, "getvalue") else bytes(exported)
    num_kv_heads = changes.get("num_key_value_heads", 2)
    # 1,024 prompt tokens and 128 answer tokens by default, less the one being computed.
    assert f"[1,{num_kv_heads},1151,64]".encode() in blob  # keys
    assert f"[1,{num_kv_heads},64,1151]".encode() in blob  # values


@pytest.mark.parametrize(
    ("length", "options"),
    [(37, {}), (1500, {"NPUW_LLM_MAX_PROMPT_LEN": "2048"})],
    ids=["one-chunk", "two-chunks"],
)
def test_npu_pipeline_computes_what_the_cpu_computes(length: int, options: dict[str, str]) -> None:
    """Static shapes, left padding and a float16 cache cost less than 0.02 of the logits."""
    model = build(make_spec(), "fp16")
    core = import_openvino().Core()
    prompt = make_prompt(length)
    expected, tokens = generate(core.compile_model(model, "CPU", EXACT), prompt, NUM_STEPS)
    on_npu = NPU_ON_CPU | options | {"INFERENCE_PRECISION_HINT": "f32"}
    logits, npu_tokens = generate(core.compile_model(model, "NPU", on_npu), prompt, NUM_STEPS)
    difference = np.abs(logits - expected).max()
    print(f"{length} tokens: max |Δ| {difference:.1e}, logits up to {np.abs(expected).max():.1f}")
    assert npu_tokens == tokens
    assert difference < 0.02


@pytest.mark.parametrize(
    ("device", "options", "weights"),
    [
        ("CPU", {"ATTENTION_BACKEND": "PA"}, "int4"),
        ("CPU", {"ATTENTION_BACKEND": "SDPA"}, "fp16"),
        ("NPU", {"NPU_USE_NPUW": "YES", "NPUW_DEVICES": "CPU"}, "fp16"),
        ("NPU", {"NPU_USE_NPUW": "YES", "NPUW_DEVICES": "CPU"}, "int4"),
    ],
    ids=["paged", "stateful", "npu-fp16", "npu"],
)
def test_genai_generates_the_same_tokens(
    tmp_path: Path, device: str, options: dict[str, str], weights: str
) -> None:
    """A folder with our IR opens in LLMPipeline and gives the tokens of our own loop."""
    genai = pytest.importorskip("openvino_genai", reason="openvino-genai is another program")
    ov = import_openvino()
    model = build(make_spec(), weights)
    ov.save_model(model, tmp_path / "openvino_model.xml", compress_to_fp16=False)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    prompt = make_prompt(21)
    compiled = ov.Core().compile_model(model, "CPU", EXACT)
    logits, tokens = generate(compiled, prompt, NUM_STEPS)
    settings = {"INFERENCE_PRECISION_HINT": "f32"} if device == "NPU" else EXACT
    pipeline = genai.LLMPipeline(tmp_path, device, **settings, **options)
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = NUM_STEPS, True, False
    config.set_eos_token_id(0)
    answer = pipeline.generate(ov.Tensor(prompt), config).tokens[0]
    leads = np.sort(logits)[:, -1] - np.sort(logits)[:, -2]
    print(f"{device}: smallest lead of the best token {leads.min():.4f}")
    assert answer == tokens
