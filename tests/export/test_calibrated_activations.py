"""What projections read: the sums are NumPy's, and the values are those of the whole decoder."""

import json
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edge.export.calibrated import moments as sums_module
from qwen_edge.export.calibrated.activations import read_layer
from qwen_edge.export.calibrated.moments import (
    ATTENTION_INPUT,
    ATTENTION_OUTPUT,
    MLP_INPUT,
    MLP_OUTPUT,
    SITES,
    Moments,
    Site,
)
from qwen_edge.export.checkpoint import Checkpoint, open_checkpoint
from qwen_edge.export.decoder import DecoderSpec, layer_prefix, read_spec
from qwen_edge.export.openvino_graph import build_decoder
from qwen_edge.export.quality.layerwise import (
    EXACT_PROPERTIES,
    CheckpointWeights,
    embed_texts,
    run_checkpoint,
    run_layer,
)
from qwen_edge.export.rope import inverse_frequencies
from qwen_edge.runtime.engine import import_openvino

Rows = npt.NDArray[np.float32]
Exact = npt.NDArray[np.float64]
CheckpointMaker = Callable[..., Path]

FAMILIES = [
    ("qwen3", {}),
    ("qwen2", {"num_key_value_heads": 1}),
    ("llama", {"mlp_bias": True, "attention_bias": True, "num_key_value_heads": 4}),
]
TEXTS = [[5, 9, 200, 31, 77, 5, 640], list(range(20, 70)), [7]]


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[Rows], int]:
    """Draw rows in pieces, and the channels whose products are wanted."""
    block = draw(st.sampled_from([1, 4, 8, 24]))
    lengths = draw(st.lists(st.integers(1, 90), max_size=8))
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    sizes = np.exp(2 * random.standard_normal(24))
    pieces = [random.standard_normal((length, 24)) * sizes for length in lengths]
    return [piece.astype(np.float32) for piece in pieces], block


@given(drawn=splits())
def test_sums_are_those_of_all_rows_together(drawn: tuple[list[Rows], int]) -> None:
    pieces, block = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums_module, "_ROWS_AT_ONCE", 64)
        moments = Moments(24, block)
        for piece in pieces:
            moments.add(piece)
        moments.close()
    rows = np.concatenate([np.zeros((0, 24)), *pieces])
    count = max(len(rows), 1)
    assert moments.num_rows == len(rows)
    np.testing.assert_allclose(moments.magnitude, np.abs(rows).sum(axis=0) / count, rtol=1e-5)
    assert moments.products.shape == (24 // block, block, block)
    expected = rows.T @ rows / count
    size = np.sqrt(np.diagonal(expected))
    for index, found in enumerate(moments.products):
        part = slice(index * block, (index + 1) * block)
        unsure = 1e-5 * np.outer(size[part], size[part])
        assert (np.abs(found - expected[part, part]) <= unsure).all()
    for group in (-1, 1, 2, 4, 8, 12, 24):
        if block % max(group, 1):
            continue
        side = max(group, 1)
        smaller = moments.products_of(group)
        assert smaller.shape == (24 // side, side, side)
        for index, found in enumerate(smaller):
            start = index * side
            inner, first = moments.products[start // block], start % block
            expected_block = inner[first : first + side, first : first + side]
            np.testing.assert_array_equal(found, expected_block)


def test_rows_are_summed_before_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is bounded, so that texts of any length fit."""
    monkeypatch.setattr(sums_module, "_ROWS_AT_ONCE", 256)
    moments = Moments(64, 8)
    rows = np.ones((100, 64), np.float32)
    tracemalloc.start()
    for _ in range(400):
        moments.add(rows)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 5 * 256 * rows[0].nbytes < 400 * rows.nbytes
    rows[:] = 7  # was not kept as a view
    moments.close()
    assert moments.num_rows == 40_000
    np.testing.assert_array_equal(moments.products, np.ones((8, 8, 8)))
    np.testing.assert_array_equal(moments.magnitude, np.ones(64))


class Recorder(Moments):
    """Keeps the rows themselves."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        self.rows: list[Rows] = []

    def add(self, rows: Rows) -> None:
        """Keep them, and sum up as usual."""
        self.rows.append(rows)
        super().add(rows)


def open_tiny(folder: Path) -> tuple[DecoderSpec, Checkpoint]:
    return read_spec(json.loads((folder / "config.json").read_bytes())), open_checkpoint(folder)


def record(
    spec: DecoderSpec, checkpoint: Checkpoint, layer_index: int, hidden: list[Rows]
) -> tuple[dict[Site, Recorder], list[Rows]]:
    shapes = spec.linear_shapes(layer_index)
    prefix = layer_prefix(layer_index)
    found = {site: Recorder(shapes[f"{prefix}{site.readers[0]}.weight"][1]) for site in SITES}
    weights = CheckpointWeights(checkpoint)
    return found, list(read_layer(spec, weights, layer_index, iter(hidden), found))


class ExactLayer:
    """One decoder layer in float64, written out by hand."""

    def __init__(self, spec: DecoderSpec, checkpoint: Checkpoint, layer_index: int) -> None:
        self.spec = spec
        prefix = layer_prefix(layer_index) + "."
        self.tensors = {
            name.removeprefix(prefix): checkpoint.float32(name).astype(np.float64)
            for name in spec.layer_shapes(layer_index)
        }

    def norm(self, rows: Exact, name: str) -> Exact:
        mean = np.square(rows).mean(axis=-1, keepdims=True)
        done: Exact = rows / np.sqrt(mean + self.spec.rms_norm_eps) * self.tensors[f"{name}.weight"]
        return done

    def project(self, rows: Exact, name: str) -> Exact:
        done: Exact = rows @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", 0)
        return done

    def heads(self, rows: Exact, letter: str) -> Exact:
        """Return [heads, tokens, head_dim], turned by the tokens' positions."""
        spec = self.spec
        parts = self.project(rows, f"self_attn.{letter}_proj").reshape(len(rows), -1, spec.head_dim)
        if letter == "v":
            return parts.transpose(1, 0, 2)
        if spec.has_qk_norm:
            parts = self.norm(parts, f"self_attn.{letter}_norm")
        frequencies = np.asarray(inverse_frequencies(spec.rope, spec.head_dim), np.float64)
        angles = np.outer(np.arange(len(rows)), frequencies)[None]
        first, second = np.split(parts.transpose(1, 0, 2), 2, axis=-1)
        return np.concatenate(
            [
                first * np.cos(angles) - second * np.sin(angles),
                second * np.cos(angles) + first * np.sin(angles),
            ],
            axis=-1,
        )

    def run(self, rows: Exact) -> tuple[dict[Site, Exact], Exact]:
        spec = self.spec
        normed = self.norm(rows, "input_layernorm")
        query, key, value = (self.heads(normed, letter) for letter in "qkv")
        repeats = spec.num_heads // spec.num_kv_heads
        key, value = (np.repeat(each, repeats, axis=0) for each in (key, value))
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(spec.head_dim)
        scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        attended = (shares @ value).transpose(1, 0, 2).reshape(len(rows), -1)
        middle = rows + self.project(attended, "self_attn.o_proj")
        read = self.norm(middle, "post_attention_layernorm")
        gate = self.project(read, "mlp.gate_proj")
        product = gate / (1 + np.exp(-gate)) * self.project(read, "mlp.up_proj")
        sites = {
            ATTENTION_INPUT: normed,
            ATTENTION_OUTPUT: attended,
            MLP_INPUT: read,
            MLP_OUTPUT: product,
        }
        return sites, middle + self.project(product, "mlp.down_proj")


@pytest.mark.parametrize(("family", "config"), FAMILIES)
def test_sites_are_those_of_a_layer_written_by_hand(
    tmp_path: Path, make_checkpoint: CheckpointMaker, family: str, config: Any
) -> None:
    spec, checkpoint = open_tiny(make_checkpoint(tmp_path / "tiny", family, **config))
    hidden = [rows * 3 for rows in embed_texts(checkpoint, TEXTS)]
    found, outputs = record(spec, checkpoint, 1, hidden)
    layer = ExactLayer(spec, checkpoint, 1)
    for text, (rows, output) in enumerate(zip(hidden, outputs, strict=True)):
        sites, expected = layer.run(rows.astype(np.float64))
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)
        for site, values in sites.items():
            assert found[site].rows[text].shape == values.shape
            np.testing.assert_allclose(found[site].rows[text], values, rtol=1e-4, atol=1e-4)
    for moments in found.values():
        rows = np.concatenate(moments.rows)
        assert moments.num_rows == len(rows) == sum(map(len, TEXTS))
        np.testing.assert_allclose(moments.magnitude, np.abs(rows).mean(axis=0), rtol=1e-4)


def test_sites_are_those_of_the_whole_decoder(
    tmp_path: Path, make_checkpoint: CheckpointMaker
) -> None:
    """And what a layer gives is what it gives when nothing is asked of it."""
    folder = make_checkpoint(tmp_path / "tiny", num_hidden_layers=3)
    spec, checkpoint = open_tiny(folder)
    weights = CheckpointWeights(checkpoint)  # the graph borrows its arrays
    model = build_decoder(spec, weights)
    nodes = [f"{layer_prefix(2)}{site.node}" for site in SITES]
    model.add_outputs([(node, 0) for node in nodes])
    exact = {**EXACT_PROPERTIES, "KV_CACHE_PRECISION": "f32"}
    compiled = import_openvino().Core().compile_model(model, "CPU", exact)
    hidden = embed_texts(checkpoint, TEXTS)
    for layer_index in range(2):
        hidden = run_layer(spec, CheckpointWeights(checkpoint), layer_index, hidden)
    found, outputs = record(spec, checkpoint, 2, hidden)
    last = run_checkpoint(spec, checkpoint, TEXTS)
    for index, text in enumerate(TEXTS):
        inputs: Mapping[str, Any] = {
            "input_ids": np.array([text]),
            "attention_mask": np.ones((1, len(text)), np.int64),
            "position_ids": np.arange(len(text))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        values = compiled.create_infer_request().infer(inputs)
        for number, site in enumerate(SITES, 1):
            np.testing.assert_allclose(
                found[site].rows[index], values[number][0], rtol=1e-4, atol=1e-4
            )
        np.testing.assert_allclose(outputs[index], last[index], rtol=1e-5, atol=1e-5)


def test_sites_that_are_not_wanted(tmp_path: Path, make_checkpoint: CheckpointMaker) -> None:
    spec, checkpoint = open_tiny(make_checkpoint(tmp_path / "tiny"))
    hidden = embed_texts(checkpoint, TEXTS)
    everything, expected = record(spec, checkpoint, 0, hidden)
    for wanted in ((), (MLP_OUTPUT,), (MLP_INPUT, ATTENTION_OUTPUT)):
        sums = {site: Recorder(everything[site].width) for site in wanted}
        weights = CheckpointWeights(checkpoint)
        for found, output in zip(
            read_layer(spec, weights, 0, iter(hidden), sums), expected, strict=True
        ):
            np.testing.assert_allclose(found, output, rtol=1e-6, atol=1e-6)
        for site, moments in sums.items():
            for found, rows in zip(moments.rows, everything[site].rows, strict=True):
                np.testing.assert_allclose(found, rows, rtol=1e-6, atol=1e-6)


def test_texts_are_read_one_at_a_time(tmp_path: Path, make_checkpoint: CheckpointMaker) -> None:
    """So that they can come from a file, and what a layer gives go into one."""
    spec, checkpoint = open_tiny(make_checkpoint(tmp_path / "tiny"))
    events: list[str] = []

    def texts() -> Any:
        for number, rows in enumerate(embed_texts(checkpoint, TEXTS)):
            events.append(f"in {number}")
            yield rows

    for number, _ in enumerate(read_layer(spec, CheckpointWeights(checkpoint), 0, texts(), {})):
        events.append(f"out {number}")
    assert events == ["in 0", "out 0", "in 1", "out 1", "in 2", "out 2"]


def test_every_projection_has_one_site(tiny_config: dict[str, Any]) -> None:
    spec = read_spec(tiny_config)
    readers = [f"{layer_prefix(0)}{reader}.weight" for site in SITES for reader in site.readers]
    assert sorted(readers) == sorted(spec.linear_shapes(0))
    for site in SITES:
        widths = {spec.linear_shapes(0)[f"{layer_prefix(0)}{r}.weight"][1] for r in site.readers}
        assert len(widths) == 1
