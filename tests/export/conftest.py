"""Fixtures of the export tests: tiny checkpoints, made of numpy arrays and the demo's tokenizer."""

import json
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from threadpoolctl import threadpool_limits

import qwen_edge.export
from qwen_edge.export.array_weights import make_random_arrays
from qwen_edge.export.checkpoint import open_checkpoint
from qwen_edge.export.compress import Compressor
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.weight_store import WeightStore
from qwen_edge.profiles.recipe import Recipe, load_recipe
from qwen_edge.runtime.devices.providers import import_onnxruntime
from qwen_edge.runtime.text_tokenizer import TextTokenizer

DEMO = Path(qwen_edge.export.__file__).parent / "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

TensorWriter = Callable[[Path, Mapping[str, tuple[str, npt.NDArray[Any]]]], None]
CheckpointMaker = Callable[..., Path]
"""(folder, model_type="qwen3", dtype="BF16", shards=1, change=None, extra=None, **config)"""
StoreMaker = Callable[[Path, Path, str], tuple[DecoderSpec, WeightStore]]
"""(spool file to create, checkpoint, recipe)"""


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


@pytest.fixture(scope="session")
def compress_checkpoint() -> StoreMaker:
    """Return a maker of frozen weight stores; who asks for one closes it."""

    def make(path: Path, checkpoint: Path, recipe: str | Recipe) -> tuple[DecoderSpec, WeightStore]:
        spec = read_spec(json.loads((checkpoint / "config.json").read_bytes()))
        store = WeightStore(path)
        opened = open_checkpoint(checkpoint)
        loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        compressor = Compressor(opened, spec, loaded, store)
        compressor.compress_embeddings()
        for layer_index in range(spec.num_layers):
            compressor.compress_layer(layer_index)
        opened.close()
        store.freeze()
        return spec, store

    return make


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Multiply small matrices on one thread: on a busy machine more of them wait for each other."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield


class OnnxRun:
    """One sequence in a bare ONNX Runtime loop on the CPU, without anything of the runtime's.

    The cache goes in and comes out as arrays. Both forms run in float32 by default, whatever
    the file says of accuracy: the fast one by its attribute, the portable one by a session
    option. `entries` are further session options.
    """

    def __init__(self, folder: Path, accuracy_level: int = 1, **entries: str) -> None:
        import onnx

        engine = import_onnxruntime()
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = accuracy_level
        options = engine.SessionOptions()
        options.intra_op_num_threads = 1
        entries = {
            "session.model_external_initializers_file_folder_path": str(folder),
            "session.qdq_matmulnbits_accuracy_level": str(accuracy_level),
            **entries,
        }
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        self.session = engine.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [output.name for output in self.session.get_outputs()]
        self.reset()

    def reset(self, mask: Iterable[int] = ()) -> None:
        """Forget all tokens; `mask` begins with what is given, over a cache full of noise."""
        self.mask = list(mask)
        random = np.random.RandomState(7)
        shapes = {
            value.name: (1, value.shape[1], len(self.mask), value.shape[3])
            for value in self.session.get_inputs()
            if value.name.startswith("past_key_values.")
        }
        self._cache = {
            name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
        }

    def forward(self, token_ids: Iterable[int]) -> npt.NDArray[np.float32]:
        """Read tokens; returns the last one's logits, float32 [vocab]."""
        ids = np.array([list(token_ids)], np.int64)
        self.mask += [1] * ids.size
        inputs = {"input_ids": ids, "attention_mask": np.array([self.mask], np.int64)}
        values = self.session.run(None, inputs | self._cache)
        found = dict(zip(self._outputs, values, strict=True))
        self._cache = {
            name: found[name.replace("past_key_values", "present")] for name in self._cache
        }
        logits: npt.NDArray[np.float32] = found["logits"]
        assert logits.shape[:2] == (1, 1)
        return logits[0, 0]


@pytest.fixture(scope="session")
def open_onnx() -> type[OnnxRun]:
    """Return what opens the ONNX model in a folder."""
    return OnnxRun
