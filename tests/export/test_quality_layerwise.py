"""A checkpoint run layer by layer gives what the whole model gives, and Transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import qwen_edge.export
from qwen_edge.errors import PackageError
from qwen_edge.export import ExportRequest, export
from qwen_edge.export.checkpoint import open_checkpoint
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.openvino_graph import WeightSource, build_decoder, build_layer_model
from qwen_edge.export.quality.layerwise import (
    EXACT_PROPERTIES,
    CheckpointWeights,
    embed_texts,
    iterate_logits,
    run_checkpoint,
    run_layer,
)
from qwen_edge.export.quality.package_weights import PackageWeights
from qwen_edge.export.quality.statistics import compare_logits, summarise
from qwen_edge.runtime.engine import import_openvino

DEMO = Path(qwen_edge.export.__file__).parent / "demo"
Rows = npt.NDArray[np.float32]
TEXTS = [[5, 9, 200, 31, 77, 5, 640], list(range(20, 320)), [7]]
FAMILIES = [
    ("qwen3", {}),
    ("qwen2", {"tie_word_embeddings": False}),
    ("llama", {"rms_norm_eps": 0.05}),
]


def spec_of(folder: Path) -> DecoderSpec:
    return read_spec(json.loads((folder / "config.json").read_bytes()))


def layerwise_logits(folder: Path) -> list[Rows]:
    spec, checkpoint = spec_of(folder), open_checkpoint(folder)
    hidden = run_checkpoint(spec, checkpoint, TEXTS)
    return [np.concatenate(list(iterate_logits(spec, checkpoint, rows))) for rows in hidden]


def whole_logits(folder: Path, weights: WeightSource) -> list[Rows]:
    """The same from one graph of the whole model, computed exactly."""
    model = build_decoder(spec_of(folder), weights)
    exact = {**EXACT_PROPERTIES, "KV_CACHE_PRECISION": "f32"}
    compiled = import_openvino().Core().compile_model(model, "CPU", exact)
    results = []
    for text in TEXTS:
        inputs = {
            "input_ids": np.array([text]),
            "attention_mask": np.ones((1, len(text)), np.int64),
            "position_ids": np.arange(len(text))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        results.append(np.array(compiled.create_infer_request().infer(inputs)["logits"][0]))
    return results


@pytest.mark.parametrize(("family", "config"), FAMILIES)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_layer_by_layer_is_the_whole(
    tmp_path: Path, make_checkpoint: Callable[..., Path], family: str, config: Any, dtype: str
) -> None:
    folder = make_checkpoint(tmp_path / "tiny", family, dtype=dtype, **config)
    whole = whole_logits(folder, CheckpointWeights(open_checkpoint(folder)))
    for found, expected in zip(layerwise_logits(folder), whole, strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 2e-5 * max(np.abs(expected).max(), 1)


def test_kl_of_a_quantised_model_is_that_of_transformers(tmp_path: Path) -> None:
    """To a thousandth, as if the whole of both had been computed there."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    expected = layerwise_logits(DEMO)
    request = ExportRequest(
        model="demo", profile="generic-x86", recipe="int4", output=tmp_path / "p", skip_quality=True
    )
    export(request)
    found = whole_logits(DEMO, PackageWeights(tmp_path / "p"))
    for text, ours, quantised in zip(TEXTS, expected, found, strict=True):
        with torch.no_grad():
            theirs = model(torch.tensor([text])).logits[0].numpy()
        assert np.abs(ours - theirs).max() < 1e-3
        nothing = [None] * len(text)
        by_us = summarise([compare_logits(ours, quantised, nothing)]).mean_kl.value
        by_them = summarise([compare_logits(theirs, quantised, nothing)]).mean_kl.value
        assert by_us == pytest.approx(by_them, rel=1e-3)
        assert by_us > 1e-4


def test_a_layer_of_a_package_is_near_that_of_its_checkpoint(
    tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "qwen2", hidden_size=128, intermediate_size=256)
    request = ExportRequest(
        model=str(folder),
        profile="generic-x86",
        recipe="int8",
        output=tmp_path / "p",
        skip_quality=True,
    )
    export(request)
    spec, checkpoint = spec_of(folder), open_checkpoint(folder)
    hidden = embed_texts(checkpoint, TEXTS)
    expected = run_layer(spec, CheckpointWeights(checkpoint), 1, hidden)
    found = run_layer(spec, PackageWeights(tmp_path / "p"), 1, hidden)
    for ours, theirs in zip(found, expected, strict=True):
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert 1e-5 < error < 0.02


def test_each_layer_is_told(tmp_path: Path, tiny_checkpoint: Path) -> None:
    told: list[tuple[int, int]] = []
    run_checkpoint(
        spec_of(tiny_checkpoint),
        open_checkpoint(tiny_checkpoint),
        TEXTS,
        after_layer=lambda index, hidden: told.append((index, len(hidden))),
    )
    assert told == [(0, 3), (1, 3)]


def test_a_package_of_another_form_is_refused(demo_package: Path) -> None:
    weights = PackageWeights(demo_package)
    with pytest.raises(PackageError, match="no constant"):
        weights.vector("model.layers.0.other_norm.weight")
    with pytest.raises(PackageError, match="no constant"):
        build_layer_model(spec_of(DEMO), weights, 99)
