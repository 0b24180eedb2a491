"""Compression by recipe: which matrix gets what, AWQ folded in, and what the report says."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qwen_edge.errors import CheckpointError
from qwen_edge.export.array_weights import ArrayWeights
from qwen_edge.export.checkpoint import Checkpoint, open_checkpoint
from qwen_edge.export.compress import Compressor, TensorReport, dequantise
from qwen_edge.export.decoder import DecoderSpec, read_spec
from qwen_edge.export.openvino_graph import build_decoder
from qwen_edge.export.package_facts import read_json_object
from qwen_edge.export.quantise import quantise
from qwen_edge.export.weight_store import WeightStore
from qwen_edge.profiles.matrix_format import MatrixFormat
from qwen_edge.profiles.recipe import Recipe, load_recipe
from qwen_edge.runtime.engine import import_openvino

CheckpointMaker = Callable[..., Path]
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"


@dataclass
class Compressed:
    """A compressed checkpoint with everything that a test looks at."""

    spec: DecoderSpec
    checkpoint: Checkpoint
    store: WeightStore
    reports: dict[str, TensorReport]

    def parts(self, name: str) -> dict[str, npt.NDArray[Any]]:
        stored = self.store.tensors[name]
        pieces = {"values": stored.values, "scale": stored.scale, "zero_point": stored.zero_point}
        return {k: np.array(self.store.array(p)) for k, p in pieces.items() if p is not None}

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        return dequantise(self.parts(name), self.store.tensors[name].format)


Compress = Callable[[Path, Recipe], Compressed]


@pytest.fixture
def compress() -> Iterator[Compress]:
    """Compress a checkpoint folder by a recipe; the spool file lies in the folder."""
    with contextlib.ExitStack() as stack:

        def run(folder: Path, recipe: Recipe) -> Compressed:
            spec = read_spec(read_json_object(folder / "config.json"))
            checkpoint = open_checkpoint(folder)
            store = stack.enter_context(WeightStore(folder / f"spool-{recipe.name}"))
            compressor = Compressor(checkpoint, spec, recipe, store)
            compressor.compress_embeddings()
            for layer_index in range(spec.num_layers):
                compressor.compress_layer(layer_index)
            store.freeze()
            return Compressed(spec, checkpoint, store, {r.name: r for r in compressor.reports})

        yield run


def recipe(name: str = "int4", **changes: Any) -> Recipe:
    return replace(load_recipe(name), **changes)


@pytest.mark.parametrize(
    ("name", "layers", "embeddings"),
    [("fp16", "fp16", "fp16"), ("int8", "int8", "int8"), ("int4-awq", "int4", "int8")],
)
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_formats(
    name: str,
    layers: str,
    embeddings: str,
    is_tied: bool,
    tmp_path: Path,
    make_checkpoint: CheckpointMaker,
    compress: Compress,
) -> None:
    folder = make_checkpoint(tmp_path / "c", tie_word_embeddings=is_tied)
    done = compress(folder, recipe(name))
    heads = ["model.embed_tokens.weight"] + ([] if is_tied else ["lm_head.weight"])
    matrices = [n for i in range(2) for n in done.spec.linear_shapes(i)]
    assert list(done.reports) == heads + matrices
    assert {n: done.store.tensors[n].format for n in heads} == dict.fromkeys(heads, embeddings)
    assert {done.store.tensors[n].format for n in matrices} == {layers}
    assert set(done.store.vectors) == set(done.spec.tensor_shapes()) - {*heads, *matrices}
    limit = {"fp16": 1e-3, "int8": 0.02, "int4": 0.2}
    for report in done.reports.values():
        before = done.checkpoint.float32(report.name)
        assert report.num_values == before.size
        assert report.relative_rms_error < limit[report.format]
        if name == "int4-awq" and ".mlp." in report.name:
            continue  # AWQ's factors are in the stored values
        error = np.square(done.float32(report.name) - before).mean() / np.square(before).mean()
        assert error**0.5 < limit[report.format]


def test_int8_beside_int4_has_a_zero_point_and_a_symmetric_recipe_has_none(
    tmp_path: Path, make_checkpoint: CheckpointMaker, compress: Compress
) -> None:
    folder = make_checkpoint(tmp_path / "c")
    name = "model.embed_tokens.weight"
    assert compress(folder, recipe("int4")).store.tensors[name].zero_point is not None
    assert compress(folder, recipe("int8")).store.tensors[name].zero_point is not None
    symmetric = recipe("int8", symmetric=True)
    assert compress(folder, symmetric).store.tensors[name].zero_point is None


def test_a_width_that_the_group_does_not_divide_falls_back_alone(
    tmp_path: Path, make_checkpoint: CheckpointMaker, compress: Compress
) -> None:
    folder = make_checkpoint(tmp_path / "c", hidden_size=128, intermediate_size=192, head_dim=32)
    done = compress(folder, recipe("int4"))
    found = {n: (r.group_size, r.is_fallback) for n, r in done.reports.items() if r.is_fallback}
    assert found == {
        f"model.layers.{i}.mlp.down_proj.weight": (64, True) for i in range(2)
    }  # 192 = 3 * 64; all others are 128 wide
    others = [r for r in done.reports.values() if r.format == "int4" and not r.is_fallback]
    assert {r.group_size for r in others} == {128}
    assert done.parts("model.layers.0.mlp.down_proj.weight")["scale"].shape == (128, 3, 1)


@pytest.mark.parametrize(("width", "group"), [(192, 64), (96, 32), (80, -1)])
def test_which_group_size_is_taken_instead(
    width: int, group: int, tmp_path: Path, make_checkpoint: CheckpointMaker, compress: Compress
) -> None:
    folder = make_checkpoint(tmp_path / "c", intermediate_size=width)
    assert compress(folder, recipe("int4")).reports[DOWN].group_size == group


def test_an_odd_width_is_int8_and_is_reported(
    tmp_path: Path, make_checkpoint: CheckpointMaker, compress: Compress
) -> None:
    """Two int4 share a byte: a row of odd width ended in a reshape error."""
    folder = make_checkpoint(tmp_path / "c", intermediate_size=33)
    report = compress(folder, recipe("int4-awq")).reports[DOWN]
    assert (report.format, report.group_size, report.is_fallback) == ("int8", -1, True)
    assert report.relative_rms_error < 0.02


def test_blocks_of_rows_change_nothing(
    tmp_path: Path,
    make_checkpoint: CheckpointMaker,
    compress: Compress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_checkpoint(tmp_path / "c")
    whole = compress(folder, recipe("int4-awq"))
    spool = (folder / "spool-int4-awq").read_bytes()
    monkeypatch.setattr("qwen_edge.export.compress._BLOCK_VALUES", 7 * 64)
    pieces = compress(folder, recipe("int4-awq"))
    assert (folder / "spool-int4-awq").read_bytes() == spool
    assert pieces.reports == whole.reports


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "mlp-bias"])
def test_awq_leaves_the_function_as_it_was(
    bias: bool,
    tmp_path: Path,
    make_checkpoint: CheckpointMaker,
    compress: Compress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The factors are caught on their way to the rounding, and applied without it."""
    factors: list[dict[str, Any]] = []

    def catch(array: npt.NDArray[Any], *args: Any, **kwargs: Any) -> Any:
        factors.append(kwargs)
        return quantise(array, *args, **kwargs)

    monkeypatch.setattr("qwen_edge.export.compress.quantise", catch)
    kind = {"model_type": "llama", "mlp_bias": True} if bias else {}
    done = compress(make_checkpoint(tmp_path / "c", dtype="F32", **kind), recipe("int4-awq"))
    names = list(done.reports)
    original = {n: done.checkpoint.float32(n) for n in (UP, DOWN)}
    rows = factors[names.index(UP)]["row_factors"]
    columns = factors[names.index(DOWN)]["column_factors"]
    folded = {UP: original[UP] * rows[:, None], DOWN: original[DOWN] * columns}
    shift = folded_shift = np.zeros(128, np.float32)
    if bias:
        name = UP.replace("weight", "bias")
        shift, folded_shift = done.checkpoint.float32(name), done.store.vectors[name]
    random = np.random.RandomState(0)
    gate = random.standard_normal((5, 128)).astype(np.float32)
    x = random.standard_normal((5, 64)).astype(np.float32)
    expected = ((x @ original[UP].T + shift) * gate) @ original[DOWN].T
    found = ((x @ folded[UP].T + folded_shift) * gate) @ folded[DOWN].T
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(folded[UP] - original[UP]).max() > 0.1 * np.abs(original[UP]).max()


def test_awq_keeps_a_dead_channel_dead(
    tmp_path: Path, make_checkpoint: CheckpointMaker, compress: Compress
) -> None:
    def kill(arrays: dict[str, npt.NDArray[np.float32]]) -> None:
        arrays[DOWN][:, 3] = 0

    done = compress(make_checkpoint(tmp_path / "c", change=kill), recipe("int4-awq"))
    assert np.all(done.float32(DOWN)[:, 3] == 0)
    assert np.isfinite(done.float32(UP)).all()
    assert all(np.isfinite(r.relative_rms_error) for r in done.reports.values())


def test_outlying_channels_are_stored_as_any_others(
    tmp_path: Path, make_checkpoint: CheckpointMaker, compress: Compress
) -> None:
    """Channels that are scaled up, and what reads them down, come out of AWQ as they were."""

    def scale(arrays: dict[str, npt.NDArray[np.float32]]) -> None:
        prefix = UP.rpartition(".mlp")[0]
        arrays[f"{prefix}.input_layernorm.weight"][7] *= 64
        for name in ("q_proj", "k_proj", "v_proj"):
            arrays[f"{prefix}.self_attn.{name}.weight"][:, 7] /= 64
        arrays[f"{prefix}.post_attention_layernorm.weight"][9] *= 64
        for name in ("gate_proj", "up_proj"):
            arrays[f"{prefix}.mlp.{name}.weight"][:, 9] /= 64
        arrays[UP][11] *= 64
        arrays[DOWN][:, 11] /= 64
        width = arrays[f"{prefix}.self_attn.o_proj.weight"].shape[1]
        head_dim, num_kv = 16, arrays[f"{prefix}.self_attn.v_proj.weight"].shape[0] // 16
        repeats = width // head_dim // num_kv
        arrays[f"{prefix}.self_attn.v_proj.weight"][3] *= 64
        for head in range(repeats):
            arrays[f"{prefix}.self_attn.o_proj.weight"][:, head * head_dim + 3] /= 64

    plain = compress(make_checkpoint(tmp_path / "plain", dtype="F32"), recipe("int4-awq"))
    folder = make_checkpoint(tmp_path / "scaled", dtype="F32", change=scale)
    scaled = compress(folder, recipe("int4-awq"))
    assert not np.array_equal(plain.checkpoint.raw(DOWN), scaled.checkpoint.raw(DOWN))
    for name in plain.reports:
        before, after = plain.float32(name), scaled.float32(name)
        assert np.mean(np.abs(after - before) > 0.02 * np.abs(before).max()) < 2e-3, name


@pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="nncf, the reference, is not installed"
)
def test_awq_gives_what_nncf_gives(
    tmp_path: Path, make_checkpoint: CheckpointMaker, compress: Compress
) -> None:
    """Where NNCF has factors. From float32 weights; bfloat16 ones it rounds once more between."""
    import nncf

    folder = make_checkpoint(tmp_path / "c", dtype="F32")
    done = compress(folder, recipe("int4-awq", group_size=32))
    arrays = {n: done.checkpoint.float32(n) for n in done.checkpoint.entries}
    model = nncf.compress_weights(
        build_decoder(done.spec, ArrayWeights(arrays)),
        mode=nncf.CompressWeightsMode.INT4_SYM,
        ratio=1.0,
        group_size=32,
        awq=True,
    )
    names = {n for i in range(2) for n in done.spec.linear_shapes(i) if "down_proj" in n}
    compared = 0
    for node in model.get_ops():
        name = node.get_friendly_name()
        if node.get_type_name() != "Constant" or name not in names:
            continue
        theirs = np.array(node.get_tensor_view().data).reshape(-1).view(np.uint8)
        ours = done.parts(name)["values"].reshape(-1)
        differs = np.mean((theirs & 15) != (ours & 15)) / 2 + np.mean(theirs >> 4 != ours >> 4) / 2
        step = ((theirs & 15).astype(np.int8) - (ours & 15)) % 16
        assert set(np.unique(step)) <= {0, 1, 15}, name
        assert differs <= 1e-3, name
        compared += 1
    assert compared == len(names)


FORMATS = {
    "layers.*.mlp.down_proj": MatrixFormat("int8", False, -1),
    "layers.1.mlp.down_proj": MatrixFormat("int4", False, 32),
    "layers.0.self_attn.q_proj": MatrixFormat("nf4", True, -1),
    "layers.1.self_attn.q_proj": MatrixFormat("nf4", True, 32),
    "layers.0.self_attn.k_proj": MatrixFormat("int8", True, -1),
    "layers.0.self_attn.v_proj": MatrixFormat("fp16", True, -1),
    "layers.1.self_attn.v_proj": MatrixFormat("int4", False, -1),
}


def test_every_matrix_has_the_format_that_the_recipe_says(
    tmp_path: Path, make_checkpoint: CheckpointMaker, compress: Compress
) -> None:
    """Stored so, computed so by the engine, and near the weights; the others as ever."""
    ov = import_openvino()
    mixed = recipe("int4", group_size=64, matrices=FORMATS)
    folder = make_checkpoint(tmp_path / "c")
    done, plain = compress(folder, mixed), compress(folder, replace(mixed, matrices={}, name="p"))
    limit = {"fp16": 1e-3, "int8": 0.02, "int4": 0.2, "nf4": 0.2}
    for name, report in done.reports.items():
        wanted = mixed.matrix_format(name)
        stored = done.store.tensors[name]
        assert (stored.format, stored.group_size) == (wanted.weights, wanted.group_size)
        has_zero = wanted.weights in ("int4", "int8") and not wanted.symmetric
        assert (stored.zero_point is not None) == has_zero
        assert not report.is_fallback
        assert report.relative_rms_error < limit[wanted.weights]
        if not mixed.is_exception(name):
            assert report == plain.reports[name]
        weights = done.float32(name)
        model = ov.Model([ov.opset15.result(done.store.linear(name))], [])
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        found = ov.Core().compile_model(model, "CPU", exact)([])[0]
        np.testing.assert_allclose(found, weights, atol=2e-3 * np.abs(weights).max())


@pytest.mark.parametrize(
    ("key", "found", "is_balanced"),
    [
        ("layers.*.mlp.down_proj", MatrixFormat("int8", False, -1), False),
        ("layers.*.mlp.up_proj", MatrixFormat("fp16", True, -1), True),
        ("layers.*.mlp.up_proj", MatrixFormat("int8", False, -1), True),
    ],
    ids=["down-int8", "up-fp16", "up-int8"],
)
def test_awq_and_exceptions_agree(
    key: str,
    found: MatrixFormat,
    is_balanced: bool,
    tmp_path: Path,
    make_checkpoint: CheckpointMaker,
    compress: Compress,
) -> None:
    """Where `down_proj` has 8 bits nothing is balanced; factors reach any format of `up_proj`."""
    done = compress(make_checkpoint(tmp_path / "c"), recipe("int4-awq", matrices={key: found}))
    up, down = (done.checkpoint.float32(name) for name in (UP, DOWN))
    magnitude = np.abs(down).mean(axis=0) if is_balanced else np.ones(down.shape[1])
    magnitude /= np.exp(np.median(np.log(magnitude)))
    norm = f"{UP.rpartition('.mlp')[0]}.post_attention_layernorm.weight"
    columns = done.checkpoint.float32(norm) / done.store.vectors[norm]  # for `gate_proj`'s sake
    expected = up * magnitude[:, None] * columns
    error = np.square(done.float32(UP) - expected).mean() / np.square(expected).mean()
    assert error**0.5 < (0.02 if key.endswith("up_proj") else 0.2)


def test_a_width_that_an_exceptions_group_does_not_divide(
    tmp_path: Path, make_checkpoint: CheckpointMaker, compress: Compress
) -> None:
    exceptions = {
        "layers.0.mlp.down_proj": MatrixFormat("nf4", True, 128),
        "layers.1.mlp.down_proj": MatrixFormat("int4", False, -1),
    }
    mixed = recipe("int8", matrices=exceptions)
    reports = compress(make_checkpoint(tmp_path / "c", intermediate_size=96), mixed).reports
    found = {name: r for name, r in reports.items() if "down_proj" in name}
    assert [(r.format, r.group_size, r.is_fallback) for r in found.values()] == [
        ("nf4", 32, True),
        ("int4", -1, False),
    ]
    odd = compress(make_checkpoint(tmp_path / "odd", intermediate_size=33), mixed).reports
    assert [(r.format, r.is_fallback) for n, r in odd.items() if "down_proj" in n] == [
        ("int8", True),
        ("int8", True),
    ]


def test_values_beyond_float16(
    tmp_path: Path, make_checkpoint: CheckpointMaker, compress: Compress
) -> None:
    def stretch(arrays: dict[str, npt.NDArray[np.float32]]) -> None:
        arrays[DOWN][5, 5] = -70_000.0

    folder = make_checkpoint(tmp_path / "c", change=stretch)
    with pytest.raises(CheckpointError, match=r"more than float16 can") as caught:
        compress(folder, recipe("fp16"))
    assert DOWN in caught.value.problem
    assert "--recipe int8" in caught.value.fix
    compress(folder, recipe("int8"))


def test_scales_beyond_float16(
    tmp_path: Path, make_checkpoint: CheckpointMaker, compress: Compress
) -> None:
    def stretch(arrays: dict[str, npt.NDArray[np.float32]]) -> None:
        arrays[DOWN][5, 5] = 1e30

    folder = make_checkpoint(tmp_path / "c", change=stretch)
    for name in ("int4", "int8", "int4-awq"):
        with pytest.raises(CheckpointError, match=r"their scale does not fit float16"):
            compress(folder, recipe(name))


@pytest.mark.parametrize("name", ["model.norm.weight", DOWN, "model.embed_tokens.weight"])
@pytest.mark.trust("T-EXP-18")
def test_nan_anywhere_is_found(
    name: str, tmp_path: Path, make_checkpoint: CheckpointMaker, compress: Compress
) -> None:
    def spoil(arrays: dict[str, npt.NDArray[np.float32]]) -> None:
        arrays[name].reshape(-1)[2] = np.nan

    with pytest.raises(CheckpointError, match=r"NaN or infinite") as caught:
        compress(make_checkpoint(tmp_path / "c", change=spoil), recipe())
    assert caught.value.facts["tensor"] == name


def test_dequantise_is_what_openvino_computes(
    tmp_path: Path, make_checkpoint: CheckpointMaker, compress: Compress
) -> None:
    ov = import_openvino()
    done = compress(make_checkpoint(tmp_path / "c", intermediate_size=96), recipe("int4-awq"))
    for name in (UP, DOWN, "model.embed_tokens.weight"):
        model = ov.Model([ov.opset15.result(done.store.linear(name))], [])
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        found = ov.Core().compile_model(model, "CPU", exact)([])[0]
        scale = np.abs(done.float32(name)).max()
        np.testing.assert_allclose(found, done.float32(name), atol=2e-3 * scale)
