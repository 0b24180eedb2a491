"""What a token costs, against counts made by hand."""

import dataclasses
import json
from pathlib import Path

import pytest

from qwen_edge.runtime.benchmark.work import ModelWork, count_work
from qwen_edge.runtime.manifest import FileFacts, Manifest, ModelFacts, OnnxFacts

MANIFEST = Path(__file__).parents[2] / "data" / "manifest.json"
EMBEDDING = 151_936 * 2_560
LAYER = 2_560 * (2 * 4_096 + 2 * 1_024 + 3 * 9_728)  # q and o, k and v, the MLP


@pytest.fixture
def manifest() -> Manifest:
    """Return a manifest of Qwen3-4B's shape, with both formats."""
    read = Manifest.from_bytes(MANIFEST.read_bytes())
    shape = {"num_layers": 36, "hidden_size": 2_560, "num_heads": 32, "num_kv_heads": 8}
    model = dataclasses.replace(
        read.model,
        **shape,
        head_dim=128,
        vocab_size=151_936,
        num_parameters=EMBEDDING + 36 * LAYER,
    )
    assert isinstance(model, ModelFacts)
    files = {**read.files, "openvino_model.bin": FileFacts(2_263_625_456, "0" * 64)}
    files["model.onnx.data"] = FileFacts(2_340_000_000, "0" * 64)
    return dataclasses.replace(
        read, model=model, files=files, onnx=OnnxFacts(21, False, 4096, 512, 4)
    )


def count(manifest: Manifest, folder: Path, *, is_tied: bool, fmt: str = "openvino") -> ModelWork:
    """Count the work of a package on the CPU."""
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": is_tied}))
    settings = next(entry for entry in manifest.devices if entry.device == "CPU")
    return count_work(folder, manifest, settings, fmt)  # type: ignore[arg-type]


def test_a_tied_head_is_read_and_multiplied_once(manifest: Manifest, tmp_path: Path) -> None:
    work = count(manifest, tmp_path, is_tied=True)
    assert work.weights_bytes == 2_263_625_456
    assert work.weight_macs == 36 * LAYER
    # Per layer and head, 128 products with the key and 128 with the value.
    assert work.attention_macs_per_token == 36 * 32 * 2 * 128
    assert 73_728 < work.cache_bytes_per_token < 73_728 * 4.1


def test_an_embedding_of_its_own_is_not_read(manifest: Manifest, tmp_path: Path) -> None:
    untied = dataclasses.replace(
        manifest,
        model=dataclasses.replace(manifest.model, num_parameters=2 * EMBEDDING + 36 * LAYER),
    )
    work = count(untied, tmp_path, is_tied=False)
    width = 1 if manifest.recipe.embedding == "int8" else 2
    assert work.weights_bytes == 2_263_625_456 - width * EMBEDDING
    assert work.weight_macs == 36 * LAYER


def test_the_format_decides_which_file_is_read(manifest: Manifest, tmp_path: Path) -> None:
    assert count(manifest, tmp_path, is_tied=True, fmt="onnx").weights_bytes == 2_340_000_000


def test_a_longer_context_costs_more() -> None:
    work = ModelWork(1_000, 10, 500, 4)
    assert work.decode_bytes(0) == 1_000
    assert work.decode_bytes(50) == 1_500
    # Tokens 1 to 3 see 1, 2 and 3 of them: 2 on average.
    assert work.prefill_macs(3) == 508
