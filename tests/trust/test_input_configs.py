"""A config.json that lies, or weights that do: named before anything is made of them."""

import json
import shutil
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import qwen_edge.export
from qwen_edge.errors import CheckpointError, EdgeError, UnsupportedArchitectureError
from qwen_edge.export import ExportRequest, export
from qwen_edge.export.decoder import read_spec

DEMO = Path(qwen_edge.export.__file__).parent / "demo"
CONFIG: dict[str, Any] = json.loads((DEMO / "config.json").read_bytes())
BASES: dict[str, dict[str, Any]] = {
    "qwen3": CONFIG,
    "qwen2": CONFIG | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "llama": CONFIG | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
}
ABSENT = object()
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class Lie:
    """One field of a config.json, what it is made to be, and the words that the refusal must have.

    Without words they are the field's name and its value.
    """

    field: str
    value: object
    told: str = ""
    base: str = "qwen3"

    @property
    def id(self) -> str:
        """Return what the test is called."""
        value = "absent" if self.value is ABSENT else repr(self.value)[:30]
        return f"{self.field}={value}"


LIES = [
    *(Lie(field, value) for field in SIZES for value in (0, -1, 10**9, ABSENT)),
    *(Lie(field, value) for field in SIZES for value in ("64", 2.5, True, [64], 10**400)),
    Lie("num_attention_heads", 7, "'num_attention_heads' is 7 … 'num_key_value_heads'"),
    Lie("num_key_value_heads", 3, "'num_key_value_heads', 3"),
    Lie("num_key_value_heads", 0),
    Lie("num_key_value_heads", 8_192),
    Lie("head_dim", 33),
    Lie("head_dim", 0),
    Lie("head_dim", 1 << 40),
    Lie("rms_norm_eps", -1.0),
    Lie("rms_norm_eps", "1e-6"),
    Lie("rope_theta", 0),
    Lie("rope_theta", -1e4),
    Lie("rope_theta", 1e300),
    Lie("rope_scaling", "yarn"),
    Lie("rope_scaling", {"rope_type": "junk", "factor": 2.0}, "rotary … 'junk'"),
    Lie("rope_scaling", {"rope_type": "yarn", "factor": -4.0}, "'factor' is -4.0"),
    Lie("rope_scaling", {"rope_type": "yarn", "factor": 1e30}, "'factor' is 1e+30"),
    Lie("rope_scaling", {"rope_type": "linear"}, "'factor' is missing"),
    Lie("partial_rotary_factor", 0.25),
    Lie("tie_word_embeddings", "yes"),
    Lie("tie_word_embeddings", 1),
    Lie("attention_bias", "no", base="llama"),
    Lie("mlp_bias", 7, base="llama"),
    Lie("hidden_act", "gelu"),
    Lie("hidden_act", ["silu"]),
    Lie("use_sliding_window", True, base="qwen2", told="'use_sliding_window'"),
    Lie("layer_types", ["sliding_attention"] * 4, "'layer_types'"),
    Lie("quantization_config", {"quant_method": "gptq"}, "quant_method 'gptq'"),
    Lie("model_type", ABSENT),
    Lie("model_type", 7),
    Lie("model_type", "mamba", "architecture … 'mamba'"),
    Lie("architectures", ["GPT2LMHeadModel"], "architecture … 'GPT2LMHeadModel'"),
]


def lying(lie: Lie) -> dict[str, Any]:
    config = dict(BASES[lie.base])
    if lie.field == "use_sliding_window":
        config |= {"sliding_window": 128, "max_window_layers": 0}
    config[lie.field] = lie.value
    if lie.value is ABSENT:
        del config[lie.field]
    return config


@pytest.mark.trust("T-IN-14")
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.id)
def test_a_lie_is_named_with_its_value_and_costs_nothing(lie: Lie) -> None:
    config = lying(lie)
    tracemalloc.start()
    try:
        with pytest.raises((CheckpointError, UnsupportedArchitectureError)) as caught:
            read_spec(config)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    problem = caught.value.problem
    value = "missing" if lie.value is ABSENT else repr(lie.value)[:40]
    for words in lie.told.split(" … ") if lie.told else (repr(lie.field), value):
        assert words in problem
    assert caught.value.fix
    assert len(problem) < 500
    assert peak_bytes < 1_000_000


def make_source(folder: Path, **config: object) -> Path:
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"):
        shutil.copyfile(DEMO / name, folder / name)
    (folder / "config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    return folder


WEIGHTS_DIFFER = {
    "vocab_size": (CONFIG["vocab_size"] - 1, "model.embed_tokens.weight"),
    "num_hidden_layers": (CONFIG["num_hidden_layers"] + 1, "layers."),
    "intermediate_size": (CONFIG["intermediate_size"] * 2, "mlp."),
    "head_dim": (CONFIG["head_dim"] * 2, "self_attn."),
}


@pytest.mark.trust("T-IN-14")
@pytest.mark.parametrize("field", WEIGHTS_DIFFER)
def test_sizes_that_the_weights_have_not(field: str, tmp_path: Path) -> None:
    value, tensors = WEIGHTS_DIFFER[field]
    source = make_source(tmp_path / "source", **{field: value})
    with pytest.raises(CheckpointError, match=r"do not fit its config\.json") as caught:
        export(ExportRequest(str(source), "generic-x86", output=tmp_path / "p", skip_quality=True))
    assert tensors in caught.value.problem
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.trust("T-IN-14")
@pytest.mark.parametrize(
    ("layers", "width"), [(1_024, 1 << 18), (1_024, 64), (1, 1 << 18)], ids=["both", "deep", "wide"]
)
def test_the_largest_config_of_all_allocates_nothing_of_its_size(
    layers: int, width: int, tmp_path: Path
) -> None:
    """Within the bounds, but beside the demo's weights; its tensors would have petabytes."""
    source = make_source(
        tmp_path / "source", num_hidden_layers=layers, hidden_size=width, intermediate_size=width
    )
    tracemalloc.start()
    try:
        with pytest.raises(EdgeError) as caught:
            export(ExportRequest(str(source), "generic-x86", output=tmp_path / "p"))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "needs" in caught.value.problem or "do not fit" in caught.value.problem
    assert peak_bytes < 40_000_000
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
