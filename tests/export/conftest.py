"""Fixtures of the export tests: tiny checkpoints, made of numpy arrays and the demo's tokenizer."""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import qwen_edge.export
from qwen_edge.export.array_weights import make_random_arrays
from qwen_edge.export.decoder import read_spec
from qwen_edge.runtime.text_tokenizer import TextTokenizer

DEMO = Path(qwen_edge.export.__file__).parent / "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

TensorWriter = Callable[[Path, Mapping[str, tuple[str, npt.NDArray[Any]]]], None]
CheckpointMaker = Callable[..., Path]
"""(folder, model_type="qwen3", dtype="BF16", shards=1, change=None, extra=None, **config)"""


def _stored(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Return float32 values as the bits of a stored dtype; BF16 is cut, not rounded."""
    if dtype == "BF16":
        return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype("<u2")
    return array.astype({"F16": "<f2", "F32": "<f4"}.get(dtype, array.dtype))


def _write_tensors(path: Path, tensors: Mapping[str, tuple[str, npt.NDArray[Any]]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, array) in tensors.items():
        end = offset + array.nbytes
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in tensors.values():
            file.write(array.tobytes())


@pytest.fixture(scope="session")
def write_tensors() -> TensorWriter:
    """Return a writer of safetensors files: (path, {name: (dtype word, stored array)})."""
    return _write_tensors


@pytest.fixture(scope="session")
def stored() -> Callable[[npt.NDArray[Any], str], npt.NDArray[Any]]:
    """Return the function that turns float32 values into the bits of BF16, F16 or F32."""
    return _stored


@pytest.fixture(scope="session")
def tiny_config() -> dict[str, Any]:
    """Return the config.json of a two-layer Qwen3 with the demo's vocabulary."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 1_024,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "eos_token_id": 1_000,
    }


@pytest.fixture(scope="session")
def make_checkpoint(tiny_config: dict[str, Any]) -> CheckpointMaker:
    """Return a maker of checkpoint folders.

    Its arguments: the folder, model_type, the stored dtype, the number of shards, `change`
    (called with the float32 arrays before they are stored), `extra` (stored tensors beside
    them) and changes to config.json.
    """

    def make(
        folder: Path,
        model_type: str = "qwen3",
        *,
        dtype: str = "BF16",
        shards: int = 1,
        change: Callable[[dict[str, npt.NDArray[np.float32]]], None] | None = None,
        extra: Mapping[str, tuple[str, npt.NDArray[Any]]] | None = None,
        **config: object,
    ) -> Path:
        names = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}
        architecture = {"architectures": [f"{names[model_type]}ForCausalLM"]}
        content = tiny_config | architecture | {"model_type": model_type} | config
        arrays = make_random_arrays(read_spec(content), seed=1)
        if change is not None:
            change(arrays)
        tensors = {name: (dtype, _stored(array, dtype)) for name, array in arrays.items()}
        tensors |= extra or {}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
        for name in TOKENIZER_FILES:
            shutil.copyfile(DEMO / name, folder / name)
        if shards == 1:
            _write_tensors(folder / "model.safetensors", tensors)
            return folder
        weight_map: dict[str, str] = {}
        for index in range(shards):
            name = f"model-{index + 1:05}-of-{shards:05}.safetensors"
            mine = dict(list(tensors.items())[index::shards])
            weight_map |= dict.fromkeys(mine, name)
            _write_tensors(folder / name, mine)
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        return folder

    return make


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, make_checkpoint: CheckpointMaker) -> Path:
    """Return a tiny Qwen3 checkpoint in one file, to be changed by a test."""
    return make_checkpoint(tmp_path / "tiny")


@pytest.fixture(scope="session")
def demo_tokenizer() -> TextTokenizer:
    """Return the demo model's tokenizer; tests must not change it."""
    return TextTokenizer.load(DEMO / "tokenizer.json")
