"""A checkpoint as tensors: exact widening, and every misfit in one error."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qwen_edge.errors import CheckpointError, UnsupportedArchitectureError
from qwen_edge.export.checkpoint import check_tensors, open_checkpoint, widen
from qwen_edge.export.decoder import read_spec

CheckpointMaker = Callable[..., Path]
EMBEDDING = "model.embed_tokens.weight"


def check(folder: Path) -> None:
    """Compare a folder's tensors with its config.json, as an export does."""
    spec = read_spec(json.loads((folder / "config.json").read_bytes()))
    check_tensors(open_checkpoint(folder), spec.tensor_shapes(), is_tied=spec.is_tied)


@given(hnp.arrays(np.uint16, st.integers(1, 40)))
def test_bfloat16_is_widened_exactly(bits: npt.NDArray[np.uint16]) -> None:
    wide = widen(bits, "BF16")
    np.testing.assert_array_equal(wide.view(np.uint32), bits.astype(np.uint32) << 16)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("shards", [1, 3])
def test_values_are_those_stored(
    dtype: str, shards: int, tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    kept: dict[str, npt.NDArray[np.float32]] = {}
    folder = make_checkpoint(tmp_path / "c", dtype=dtype, shards=shards, change=kept.update)
    checkpoint = open_checkpoint(folder)
    check(folder)
    error = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 0.0}[dtype]
    num_bytes = 0
    for name, expected in kept.items():
        checkpoint.check_finite(name)
        assert not checkpoint.raw(name).flags.writeable
        found = checkpoint.float32(name)
        assert found.dtype == np.float32
        assert np.all(np.abs(found - expected) <= error * np.abs(expected) + 1e-7 * (error > 0))
        num_bytes += expected.size * (4 if dtype == "F32" else 2)
    assert checkpoint.weights_bytes == num_bytes
    checkpoint.close()


def test_a_tensor_at_an_odd_offset(tmp_path: Path) -> None:
    """A header need not be a multiple of four bytes long."""
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (1 - len(header) % 2)
    assert len(header) % 2 == 1
    data = np.array([1.5, -2.5], "<f4").tobytes()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.float32("a").tolist() == [1.5, -2.5]
    checkpoint.check_finite("a")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.trust("T-EXP-18")
def test_a_value_that_is_no_number_is_named_with_its_place(
    dtype: str, value: float, tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"

    def spoil(arrays: dict[str, npt.NDArray[np.float32]]) -> None:
        arrays[name][3, 5] = value
        arrays[name][7, 1] = value

    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "c", dtype=dtype, change=spoil))
    with pytest.raises(CheckpointError, match=r"2 values that are NaN or infinite") as caught:
        checkpoint.check_finite(name)
    assert name in caught.value.problem
    assert "'model.safetensors'" in caught.value.problem
    assert caught.value.facts["first"] == [3, 5]


def test_the_largest_finite_values_are_fine(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    def stretch(arrays: dict[str, npt.NDArray[np.float32]]) -> None:
        arrays[EMBEDDING][0, :2] = [3.3e38, -3.3e38]

    open_checkpoint(make_checkpoint(tmp_path / "c", change=stretch)).check_finite(EMBEDDING)


def test_every_misfit_stands_in_one_error(
    tmp_path: Path, make_checkpoint: CheckpointMaker, write_tensors: Callable[..., None]
) -> None:
    folder = make_checkpoint(tmp_path / "c")
    checkpoint = open_checkpoint(folder)
    tensors: dict[str, tuple[str, npt.NDArray[Any]]] = {
        name: (entry.dtype, np.array(checkpoint.raw(name)))
        for name, entry in checkpoint.entries.items()
    }
    del tensors["model.norm.weight"]
    tensors["model.layers.9.mlp.up_proj.weight"] = ("BF16", np.zeros((2, 2), "<u2"))
    tensors["model.layers.0.mlp.up_proj.weight"] = ("BF16", np.zeros((2, 2), "<u2"))
    tensors["model.layers.1.mlp.up_proj.weight"] = ("F8_E4M3", np.zeros((128, 64), np.uint8))
    write_tensors(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"in 4 places") as caught:
        check(folder)
    assert caught.value.facts["problems"] == [
        "'model.norm.weight' is missing",
        "'model.layers.9.mlp.up_proj.weight' is not part of this architecture",
        "'model.layers.0.mlp.up_proj.weight' has shape [2, 2], expected [128, 64]",
        "'model.layers.1.mlp.up_proj.weight' has dtype F8_E4M3, expected BF16, F16 or F32",
    ]
    assert "quantised checkpoint" in caught.value.fix


@pytest.mark.parametrize(
    ("dtype", "width"), [("F8_E4M3", 1), ("I8", 1), ("I64", 8), ("F64", 8), ("U32", 4)]
)
def test_dtypes_that_cannot_be_read(
    dtype: str,
    width: int,
    tmp_path: Path,
    make_checkpoint: CheckpointMaker,
    write_tensors: Callable[..., None],
) -> None:
    folder = make_checkpoint(tmp_path / "c", shards=2)
    shard = "model-00001-of-00002.safetensors"
    mine = [e for e in open_checkpoint(folder).entries.values() if e.path.name == shard]
    write_tensors(
        folder / shard,
        {
            e.name: (dtype, np.zeros((*e.shape, width), np.uint8).view(f"<u{width}")[..., 0])
            for e in mine
        },
    )
    with pytest.raises(CheckpointError, match=rf"dtype {dtype}, expected BF16, F16 or F32"):
        check(folder)


def test_rotary_frequencies_of_old_files_are_passed_over(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", np.ones(8, "<f4"))}
    check(make_checkpoint(tmp_path / "c", "llama", extra=extra))


def _head(folder: Path, make: CheckpointMaker, head: tuple[str, npt.NDArray[Any]]) -> Path:
    return make(folder, extra={"lm_head.weight": head})


def test_a_tied_head_that_equals_the_embedding(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    stored = np.array(open_checkpoint(make_checkpoint(tmp_path / "a")).raw(EMBEDDING))
    check(_head(tmp_path / "b", make_checkpoint, ("BF16", stored)))
    stored[1_023, 63] ^= 1
    other = _head(tmp_path / "c", make_checkpoint, ("BF16", stored))
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' differs from the embedding"):
        check(other)


@pytest.mark.parametrize(
    "head",
    [
        ("F32", np.zeros((1_024, 64), "<f4")),
        ("I8", np.zeros((1_024, 64), np.int8)),
        ("BF16", np.zeros((), "<u2")),
        ("BF16", np.zeros((0,), "<u2")),
        ("BF16", np.zeros((2, 2, 2), "<u2")),
    ],
    ids=["float32", "int8", "scalar", "empty", "three-axes"],
)
def test_a_tied_head_of_another_kind(
    head: tuple[str, npt.NDArray[Any]], tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    """An int8 head was passed over, and two scalars ended in an IndexError."""
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' differs"):
        check(_head(tmp_path / "c", make_checkpoint, head))


def test_an_embedding_without_axes_beside_a_head(
    tmp_path: Path, make_checkpoint: CheckpointMaker, write_tensors: Callable[..., None]
) -> None:
    folder = make_checkpoint(tmp_path / "c")
    scalar, head = ("BF16", np.zeros((), "<u2")), ("BF16", np.zeros((1_024, 64), "<u2"))
    write_tensors(folder / "model.safetensors", {EMBEDDING: scalar, "lm_head.weight": head})
    with pytest.raises(CheckpointError, match=r"has shape \[\], expected \[1024, 64\]|is missing"):
        check(folder)


def test_an_untied_model_needs_its_head(tmp_path: Path, make_checkpoint: CheckpointMaker) -> None:
    folder = make_checkpoint(tmp_path / "c")
    config = json.loads((folder / "config.json").read_bytes()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' is missing"):
        check(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "gpt2"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quant_method 'fp8'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quant_method 'gptq'"),
    ],
    ids=["architecture", "fp8", "gptq"],
)
@pytest.mark.trust("T-IN-14")
def test_models_without_a_graph(
    change: dict[str, object], expected: str, tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    folder = make_checkpoint(tmp_path / "c")
    config = json.loads((folder / "config.json").read_bytes()) | change
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedArchitectureError) as caught:
        check(folder)
    assert expected in caught.value.problem
    assert caught.value.fix
