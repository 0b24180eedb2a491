"""Write LoRA adapters as peft saves them, and the weights that its own merge makes of a model.

The tests compare `qwen_edge.export.adapters` with these figures on machines without torch. The
model's weights are not stored: they come from a seeded generator. Needs torch, transformers and
peft (0.21.2), which nothing else here does:

    pip install peft==0.21.2
    python scripts/make_adapter_goldens.py

Writes tests/data/adapter_goldens.npz.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / top) for top in ("export", "runtime", "profiles")]

from qwen_edge.export.array_weights import make_random_arrays  # noqa: E402
from qwen_edge.export.decoder import EMBEDDING_NAME, HEAD_NAME, read_spec  # noqa: E402
from qwen_edge.export.tensor_files import read_header  # noqa: E402

GOLDEN_PATH = ROOT / "tests" / "data" / "adapter_goldens.npz"
_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "eos_token_id": 1,
}
_ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_LAYER_ONE = r"model\.layers\.1\.(self_attn\.[qk]_proj|mlp\.(gate|down)_proj)"


@dataclass(frozen=True)
class Case:
    """One model with its adapters.

    Args:
        loras: Arguments of `LoraConfig`, one mapping per adapter.
        weights: Of the adapters.
        dtype: The model's.
        adapter_dtype: What the adapters are stored as.
        model_type: "qwen3" or "qwen2".
        is_tied: Embedding and head are one matrix.
        has_faithful_merge: peft's merge computes what its model does before the merge. It does not
            where a tied matrix is adapted on one side: expected is then what the model does.
    """

    loras: tuple[dict[str, Any], ...]
    weights: tuple[float, ...] = (1.0,)
    dtype: str = "BF16"
    adapter_dtype: str = "F32"
    model_type: str = "qwen3"
    is_tied: bool = False
    has_faithful_merge: bool = True

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        return {
            **_SIZES,
            "model_type": self.model_type,
            "architectures": [_ARCHITECTURES[self.model_type]],
            "tie_word_embeddings": self.is_tied,
        }


CASES: dict[str, Case] = {
    "defaults": Case(({},)),
    "bf16-adapter": Case(({"target_modules": ["q_proj", "down_proj"]},), adapter_dtype="BF16"),
    "f16": Case(({"target_modules": "all-linear", "r": 3, "lora_alpha": 5},), dtype="F16"),
    "patterns": Case(
        (
            {
                "target_modules": "all-linear",
                "use_rslora": True,
                "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 5},
                "alpha_pattern": {"model.layers.0.self_attn.k_proj": 3, "down_proj": 20},
            },
        ),
        dtype="F32",
    ),
    "layers": Case(
        ({"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1]},), dtype="F32"
    ),
    "expression": Case(({"target_modules": _LAYER_ONE, "exclude_modules": ["k_proj"]},)),
    "dora": Case(({"target_modules": ["q_proj", "up_proj"], "use_dora": True},)),
    "head-and-embedding": Case(({"target_modules": ["embed_tokens", "lm_head", "v_proj"]},)),
    "dora-embedding": Case(
        ({"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},), dtype="F32"
    ),
    "saved": Case(
        (
            {
                "target_modules": ["q_proj"],
                "modules_to_save": ["lm_head", "embed_tokens", "post_attention_layernorm"],
            },
        ),
    ),
    "biases": Case(({"bias": "all"},), model_type="qwen2"),
    "lora-biases": Case(({"bias": "lora_only"},), model_type="qwen2", dtype="F32"),
    "own-bias": Case(({"lora_bias": True},), model_type="qwen2"),
    "tokens": Case(({"trainable_token_indices": [3, 7, 39]},), is_tied=True),
    "two": Case(
        ({"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["v_proj"], "r": 2}),
        weights=(0.75, -0.5),
        dtype="F32",  # in a smaller one peft rounds the sum of the adapters before it multiplies
    ),
    "half": Case(({"target_modules": ["gate_proj"]},), weights=(0.5,), dtype="F32"),
    "tied-embedding": Case(
        ({"target_modules": ["embed_tokens", "q_proj"]},), is_tied=True, has_faithful_merge=False
    ),
    "tied-head": Case(
        ({"target_modules": ["lm_head"]},), is_tied=True, dtype="F32", has_faithful_merge=False
    ),
    "tied-saved-head": Case(
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},), is_tied=True
    ),
}


def main() -> None:
    """Make every case and write them to one file."""
    stored: dict[str, npt.NDArray[Any]] = {}
    for seed, (name, case) in enumerate(CASES.items()):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for key, array in _Maker(case, Path(folder), seed).run().items():
                stored[f"{name}/{key}"] = array
        print(name, file=sys.stderr)
    np.savez_compressed(GOLDEN_PATH, **stored)  # type: ignore[arg-type]
    print(GOLDEN_PATH.stat().st_size, "bytes", file=sys.stderr)


@dataclass
class _Maker:
    """One case under way.

    Args:
        case: What to make.
        folder: For files in passing.
        seed: Of the adapters' weights.
    """

    case: Case
    folder: Path
    seed: int
    stored: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def run(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays to be stored."""
        description = {
            "config": self.case.config,
            "dtype": self.case.dtype,
            "weights": self.case.weights,
        }
        self.stored["case"] = _text(description)
        for index, lora in enumerate(self.case.loras):
            self._make_adapter(index, lora)
        merged = self._merge() if self.case.has_faithful_merge else self._apply()
        before = _state(self._load_model())
        for name, tensor in merged.items():
            is_new = name not in before or not _same(before[name], tensor)
            if is_new:
                # peft keeps modules that were trained whole in float32.
                self.stored[f"expected/{name}"] = _bits(tensor.to(before[EMBEDDING_NAME].dtype))
        return self.stored

    def _load_model(self) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(**self.case.config)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        arrays = make_random_arrays(read_spec(self.case.config), seed=1)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.case.is_tied:
            tensors[HEAD_NAME] = tensors[EMBEDDING_NAME]
        model.load_state_dict(tensors)
        kinds = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
        return model.to(kinds[self.case.dtype])

    def _make_adapter(self, index: int, lora: Mapping[str, Any]) -> None:
        import torch
        from peft import LoraConfig, get_peft_model

        given = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **lora}
        model = get_peft_model(self._load_model(), LoraConfig(**given))
        generator = torch.Generator().manual_seed(100 * self.seed + index)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter += (0.3 * noise).to(parameter.dtype)
        if self.case.adapter_dtype == "BF16":
            model = model.to(torch.bfloat16)
        place = self.folder / str(index)
        model.save_pretrained(str(place), save_embedding_layers=False)
        config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
        self.stored[f"adapter/{index}/config"] = _text(config)
        weights = place / "adapter_model.safetensors"
        data = weights.read_bytes()
        dtypes = {}
        for entry in read_header(weights):
            part = data[entry.offset_bytes : entry.offset_bytes + entry.size_bytes]
            kind = {"F32": "<f4", "BF16": "<u2", "F16": "<f2"}[entry.dtype]
            array = np.frombuffer(part, kind).reshape(entry.shape)
            self.stored[f"adapter/{index}/tensor/{entry.name}"] = array
            dtypes[entry.name] = entry.dtype
        self.stored[f"adapter/{index}/dtypes"] = _text(dtypes)

    def _open(self) -> Any:
        from peft import PeftModel

        model = PeftModel.from_pretrained(self._load_model(), self.folder / "0", "a0")
        for index in range(1, len(self.case.loras)):
            model.load_adapter(self.folder / str(index), f"a{index}")
        return model

    def _merge(self) -> dict[str, Any]:
        """Return the weights after peft's own merge."""
        model = self._open()
        if self.case.weights != (1.0,):
            names = [f"a{index}" for index in range(len(self.case.loras))]
            model.add_weighted_adapter(names, list(self.case.weights), "all", "cat")
            model.set_adapter("all")
        return _state(model.merge_and_unload())

    def _apply(self) -> dict[str, Any]:
        """Return the weights that the adapted model computes with before any merge."""
        model = self._open()
        expected = _state(self._load_model())
        for name, module in model.get_base_model().named_modules():
            if hasattr(module, "get_delta_weight"):
                delta = module.get_delta_weight("a0")
                before = module.get_base_layer().weight.data.clone()
                # As Embedding.merge and Linear.merge round.
                delta = delta.to(before.dtype) if "embed" in name else delta
                before += delta
                expected[f"{name}.weight"] = before
        return expected


def _state(model: Any) -> dict[str, Any]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _same(first: Any, second: Any) -> bool:
    return first.dtype == second.dtype and bool((first == second).all())


def _bits(tensor: Any) -> npt.NDArray[Any]:
    import torch

    if tensor.dtype == torch.bfloat16:
        bits: npt.NDArray[Any] = tensor.view(torch.int16).numpy().view(np.uint16)
        return bits
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def _text(content: object) -> npt.NDArray[Any]:
    return np.frombuffer(json.dumps(content, sort_keys=True).encode(), np.uint8)


if __name__ == "__main__":
    main()
