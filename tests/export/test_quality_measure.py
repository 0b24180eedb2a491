"""What an export of the demo model lost: by recipe, by part, by layer."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import qwen_edge.export
from qwen_edge.errors import CheckpointError
from qwen_edge.export import ExportRequest, export
from qwen_edge.export.checkpoint import open_checkpoint
from qwen_edge.export.decoder import read_spec
from qwen_edge.export.quality.layerwise import CheckpointWeights
from qwen_edge.export.quality.measure import Loss, Quality, measure_quality
from qwen_edge.export.quality.package_weights import PackageWeights
from qwen_edge.export.quality.runs import SealedRuns
from qwen_edge.export.quality.texts import QualityText, read_built_in
from qwen_edge.runtime.package import read_manifest
from qwen_edge.runtime.text_tokenizer import TextTokenizer

DEMO = Path(qwen_edge.export.__file__).parent / "demo"
TEXT = (
    "Copy these lines. The lamp is on the table near the door. The key is under the mat. "
    "A book about birds lies on the chair, and the letter that came today is still closed."
)


@pytest.fixture(scope="module")
def texts(demo_tokenizer: TextTokenizer) -> list[QualityText]:
    own = QualityText("own", "own", tuple(demo_tokenizer.encode(TEXT * 3)))
    code = next(text for text in read_built_in(demo_tokenizer) if text.kind == "code")
    return [own, QualityText("code", "code", code.token_ids[:120])]


def measure(recipe: str, texts: list[QualityText], folder: Path, *, run: bool = False) -> Quality:
    package = folder / recipe
    request = ExportRequest(
        model="demo", profile="generic-x86", recipe=recipe, output=package, skip_quality=True
    )
    export(request)
    spec = read_spec(json.loads((DEMO / "config.json").read_bytes()))
    checkpoint, weights = open_checkpoint(DEMO), PackageWeights(package)
    if not run:
        return measure_quality(spec, checkpoint, weights, texts)
    runs = SealedRuns(package, read_manifest(package))
    quality = measure_quality(
        spec, checkpoint, weights, texts, as_run=runs.as_run, activations=runs.activations
    )
    assert runs.notes == []
    return quality


def known(loss: Loss | None) -> Loss:
    assert loss is not None
    return loss


def test_fewer_bits_lose_more(tmp_path: Path, texts: list[QualityText]) -> None:
    losses = {name: measure(name, texts, tmp_path) for name in ("fp16", "int8", "int4")}
    kl = {name: known(quality.weights).total.mean_kl.value for name, quality in losses.items()}
    assert kl["fp16"] < 1e-5
    assert kl["fp16"] < kl["int8"] < kl["int4"] / 10
    for quality in losses.values():
        assert quality.activations is None
        assert quality.as_run is None
        assert len(quality.layers) == 4
    int4 = losses["int4"]
    assert all(0.01 < layer.alone < 0.3 for layer in int4.layers)
    assert int4.layers[-1].carried > int4.layers[-1].alone
    lost = known(int4.weights)
    assert lost.total.top1.value < 1
    assert set(lost.by_kind) == {"own", "code"}
    assert int4.num_tokens == lost.total.num_positions
    bands = lost.by_position
    assert sum(figures.num_positions for figures in bands.values()) == int4.num_tokens


def test_running_it_loses_a_little_more(tmp_path: Path, texts: list[QualityText]) -> None:
    quality = measure("int4", texts, tmp_path, run=True)
    assert quality.weights is not None
    assert quality.activations is not None
    assert quality.as_run is not None
    weights, as_run = quality.weights.total, quality.as_run.total
    assert as_run.num_positions == weights.num_positions
    assert as_run.mean_kl.value != weights.mean_kl.value
    assert as_run.mean_kl.value == pytest.approx(weights.mean_kl.value, rel=0.5)
    assert as_run.expected_perplexity == weights.expected_perplexity


def test_a_checkpoint_that_gives_no_numbers_is_named(
    tmp_path: Path, texts: list[QualityText], make_checkpoint: Callable[..., Path]
) -> None:
    def change(arrays: dict[str, npt.NDArray[np.float32]]) -> None:
        arrays["model.norm.weight"][:] = 3e38

    folder = make_checkpoint(tmp_path / "tiny", dtype="F32", change=change)
    spec = read_spec(json.loads((folder / "config.json").read_bytes()))
    checkpoint = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"text 'own'.*NaN or infinite"):
        measure_quality(spec, checkpoint, CheckpointWeights(checkpoint), texts)


def test_who_waits_is_told(tmp_path: Path, texts: list[QualityText]) -> None:
    told: list[tuple[str, int, int]] = []
    package = tmp_path / "p"
    request = ExportRequest(
        model="demo", profile="generic-x86", recipe="int8", output=package, skip_quality=True
    )
    export(request)
    spec = read_spec(json.loads((DEMO / "config.json").read_bytes()))
    measure_quality(
        spec,
        open_checkpoint(DEMO),
        PackageWeights(package),
        texts[1:],
        progress=lambda what, done, total: told.append((what, done, total)),
    )
    assert ("running layers", 0, 4) in told
    assert told[-1] == ("comparing weights", 1, 1)
    with pytest.raises(ValueError, match="no texts"):
        measure_quality(spec, open_checkpoint(DEMO), PackageWeights(package), [])
