"""A checkpoint with outliers computes what it did before, and loses far more when rounded."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import qwen_edge.export
from qwen_edge.export.checkpoint import open_checkpoint
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.quality.layerwise import iterate_logits, run_checkpoint
from qwen_edge.export.quality.measure import measure_quality
from qwen_edge.export.quality.texts import QualityText
from qwen_edge.export.weight_store import WeightStore

DEMO = Path(qwen_edge.export.__file__).parent / "demo"
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
IDS = (5, 9, 200, 31, 77, 5, 640, *range(300, 340))
MakeStore = Callable[[Path, Path, str], tuple[DecoderSpec, WeightStore]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("make_outlier_checkpoint")
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture
def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return the script as a function of its arguments."""

    def call(source: Path, output: Path, *options: str) -> Path:
        monkeypatch.setattr(sys, "argv", ["make", str(source), str(output), *options])
        script.main()
        return output

    return call


def read_logits(folder: Path) -> npt.NDArray[np.float32]:
    spec = read_spec(json.loads((folder / "config.json").read_bytes()))
    checkpoint = open_checkpoint(folder)
    hidden = run_checkpoint(spec, checkpoint, [IDS])
    return np.concatenate(list(iterate_logits(spec, checkpoint, hidden[0])))


@pytest.mark.parametrize(
    ("family", "dtype", "config"),
    [
        ("qwen3", "BF16", {}),
        ("qwen3", "F16", {"attention_bias": True, "tie_word_embeddings": False}),
        ("qwen2", "F32", {"tie_word_embeddings": False}),
        ("llama", "BF16", {"mlp_bias": True}),
    ],
)
def test_the_function_stays(
    tmp_path: Path,
    make_checkpoint: Callable[..., Path],
    run: Callable[..., Path],
    family: str,
    dtype: str,
    config: Any,
) -> None:
    source = make_checkpoint(tmp_path / "tiny", family, dtype=dtype, shards=2, **config)
    output = run(source, tmp_path / "out", "--strength", "256", "--channels", "3")
    before, after = open_checkpoint(source), open_checkpoint(output)
    changed = {n for n in before.entries if not np.array_equal(before.float32(n), after.float32(n))}
    spec = read_spec(json.loads((source / "config.json").read_bytes()))
    kept = ("embed_tokens", "q_norm", "k_norm", "q_proj.bias", "k_proj.bias", "o_proj.bias")
    expected = [name for name in spec.tensor_shapes() if not any(part in name for part in kept)]
    expected = [n for n in expected if "gate_proj.bias" not in n and "down_proj.bias" not in n]
    if spec.is_tied:
        expected.remove("model.norm.weight")
    assert changed == set(expected)
    ratio = after.float32("model.layers.0.input_layernorm.weight") / before.float32(
        "model.layers.0.input_layernorm.weight"
    )
    assert sorted(set(ratio.tolist()) - {64, 128, 256}) == [1]
    assert (ratio > 1).sum() == 3
    np.testing.assert_allclose(read_logits(output), read_logits(source), rtol=1e-5, atol=1e-5)


def test_int4_breaks(
    tmp_path: Path, run: Callable[..., Path], compress_checkpoint: MakeStore
) -> None:
    losses = []
    for folder in (DEMO, run(DEMO, tmp_path / "out")):
        spec, store = compress_checkpoint(tmp_path / "spool", folder, "int4")
        with store:
            text = QualityText("own", "own", IDS)
            quality = measure_quality(spec, open_checkpoint(folder), store, [text])
        assert quality.weights is not None
        losses.append(quality.weights.total.mean_kl.value)
    plain, outliers = losses
    assert plain * 3 < outliers


def test_the_seed_decides_and_places_are_chosen(tmp_path: Path, run: Callable[..., Path]) -> None:
    def weights(folder: Path) -> bytes:
        return (folder / "model.safetensors").read_bytes()

    first = run(DEMO, tmp_path / "a", "--seed", "3", "--places", "mlp")
    assert weights(first) == weights(run(DEMO, tmp_path / "b", "--seed", "3", "--places", "mlp"))
    assert weights(first) != weights(run(DEMO, tmp_path / "c", "--seed", "4", "--places", "mlp"))
    before, after = open_checkpoint(DEMO), open_checkpoint(first)
    changed = {n for n in before.entries if not np.array_equal(before.raw(n), after.raw(n))}
    assert {name.split(".", 3)[-1] for name in changed} == {
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
    }
    for path in DEMO.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            assert (first / path.name).read_bytes() == path.read_bytes()


def test_what_would_not_be_exact_is_refused(
    tmp_path: Path, make_checkpoint: Callable[..., Path], run: Callable[..., Path]
) -> None:
    def change(arrays: dict[str, npt.NDArray[np.float32]]) -> None:
        arrays["model.layers.0.mlp.down_proj.weight"][:] = 2.0**-133  # bfloat16's smallest number

    source = make_checkpoint(tmp_path / "tiny", change=change)
    with pytest.raises(SystemExit, match=r"down_proj.weight cannot be scaled exactly in BF16"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--strength", "3"), "power of two"),
        (("--strength", "1"), "power of two"),
        (("--channels", "0"), "expected 1 or more"),
        (("--places", "head"), "invalid choice"),
    ],
)
def test_impossible_options_are_refused(
    tmp_path: Path,
    run: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    problem: str,
) -> None:
    with pytest.raises(SystemExit):
        run(DEMO, tmp_path / "out", *options)
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
