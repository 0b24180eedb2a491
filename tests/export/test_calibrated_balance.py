"""AWQ's factors: the layer computes what it did, and a channel's size no longer matters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qwen_edge.export.array_weights import ArrayWeights, make_random_arrays
from qwen_edge.export.balance import Balance, balance_by_weights
from qwen_edge.export.calibrated.activations import read_layer
from qwen_edge.export.calibrated.balance import balance_layer
from qwen_edge.export.calibrated.compressor import CalibratedCompressor
from qwen_edge.export.calibrated.layer_record import LayerRecord
from qwen_edge.export.calibrated.moments import (
    ATTENTION_INPUT,
    ATTENTION_OUTPUT,
    MLP_INPUT,
    MLP_OUTPUT,
    SITES,
    Moments,
    Site,
)
from qwen_edge.export.checkpoint import open_checkpoint, widen
from qwen_edge.export.compress import SourceMatrix
from qwen_edge.export.decoder import DecoderSpec, layer_prefix, read_spec
from qwen_edge.export.quality.layerwise import run_layer
from qwen_edge.profiles.matrix_format import MatrixFormat
from qwen_edge.profiles.recipe import load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

Rows = npt.NDArray[np.float32]
Arrays = dict[str, Rows]
CheckpointMaker = Callable[..., Path]

FAMILIES = [
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True, "num_key_value_heads": 4}),
    ("qwen2", {"num_key_value_heads": 1}),
    ("llama", {"mlp_bias": True, "attention_bias": True}),
]
NAMES = ["qwen3", "qwen3-biases-no-groups", "qwen2-one-group", "llama-biases"]
INPUT_NORM, MLP_NORM = "input_layernorm.weight", "post_attention_layernorm.weight"


@dataclass(frozen=True)
class Layer:
    """One layer with lively weights, and texts that it reads."""

    spec: DecoderSpec
    arrays: Arrays
    texts: list[Rows] = field(default_factory=list)

    def run(self, arrays: Mapping[str, Rows]) -> list[Rows]:
        return run_layer(self.spec, ArrayWeights(arrays), 0, self.texts)

    def moments(self, arrays: Mapping[str, Rows], block: int = 16) -> dict[Site, Moments]:
        shapes = self.spec.linear_shapes(0)
        sums = {
            site: Moments(shapes[f"{layer_prefix(0)}{site.readers[0]}.weight"][1], block)
            for site in SITES
        }
        for _ in read_layer(self.spec, ArrayWeights(arrays), 0, self.texts, sums):
            pass
        return sums

    def balance(
        self,
        arrays: Mapping[str, Rows],
        moments: Mapping[Site, Moments] | None = None,
        group_sizes: Mapping[str, int] | None = None,
    ) -> Balance:
        names = self.spec.linear_shapes(0)
        sizes = dict.fromkeys(names, 16) if group_sizes is None else group_sizes
        weights = {name: arrays[name] for name in names}
        return balance_layer(self.spec, 0, weights, moments or self.moments(arrays), sizes)


@pytest.fixture
def make_layer(tiny_config: dict[str, Any]) -> Callable[..., Layer]:
    def make(family: str = "qwen3", **config: object) -> Layer:
        names = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}
        kind = {"model_type": family, "architectures": [f"{names[family]}ForCausalLM"]}
        spec = read_spec(tiny_config | kind | config)
        random = np.random.default_rng(1)
        sizes = np.exp(random.standard_normal(spec.hidden_size))
        texts = [
            (random.standard_normal((count, spec.hidden_size)) * sizes).astype(np.float32)
            for count in (30, 17)
        ]
        return Layer(spec, make_random_arrays(spec, seed=2), texts)

    return make


def apply(balance: Balance, arrays: Mapping[str, Rows]) -> Arrays:
    """Return all arrays multiplied as the balance says."""
    done = dict(arrays)
    for name, factors in balance.columns.items():
        done[name] = done[name] * factors
    for name, factors in balance.rows.items():
        done[name] = done[name] * (factors[:, None] if done[name].ndim == 2 else factors)
    for name, factors in balance.norms.items():
        done[name] = done[name] * factors
    return done


def error(found: list[Rows], expected: list[Rows]) -> float:
    a, b = np.concatenate(found), np.concatenate(expected)
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize(("family", "config"), FAMILIES, ids=NAMES)
def test_the_function_of_a_layer_stays(
    make_layer: Callable[..., Layer], family: str, config: Any
) -> None:
    layer = make_layer(family, **config)
    balance = layer.balance(layer.arrays)
    assert all(strength is not None for strength in balance.strengths.values())
    assert set(balance.strengths) == {site.name for site in SITES}
    assert set(balance.columns) == set(layer.spec.linear_shapes(0))
    prefix = layer_prefix(0)
    assert set(balance.norms) == {f"{prefix}.{INPUT_NORM}", f"{prefix}.{MLP_NORM}"}
    done = apply(balance, layer.arrays)
    for name, factors in balance.columns.items():
        assert factors.max() > 1.3 * factors.min()
        assert np.abs(done[name] / layer.arrays[name] - 1).max() > 0.1
    assert error(layer.run(done), layer.run(layer.arrays)) < 2e-5


@pytest.mark.parametrize(("family", "config"), FAMILIES, ids=NAMES)
def test_the_function_stays_without_data(
    make_layer: Callable[..., Layer], family: str, config: Any
) -> None:
    layer = make_layer(family, **config)

    def magnitude(name: str, row_factors: Rows | None) -> Rows:
        rows = 1 if row_factors is None else row_factors[:, None]
        found: Rows = np.abs(layer.arrays[name] * rows).mean(axis=0)
        return found

    names = layer.spec.linear_shapes(0)
    balance = balance_by_weights(layer.spec, 0, dict.fromkeys(names, True), magnitude)
    assert set(balance.sites) == set(SITES)
    done = apply(balance, layer.arrays)
    assert error(layer.run(done), layer.run(layer.arrays)) < 2e-5
    down = np.abs(done["model.layers.0.mlp.down_proj.weight"]).mean(axis=0)
    np.testing.assert_allclose(down, down[0], rtol=1e-5)  # all columns are as large


@pytest.mark.parametrize(("family", "config"), FAMILIES[::3], ids=NAMES[::3])
def test_one_site_alone_keeps_the_function(
    make_layer: Callable[..., Layer], family: str, config: Any
) -> None:
    layer = make_layer(family, **config)
    expected, moments = layer.run(layer.arrays), layer.moments(layer.arrays)
    shapes = layer.spec.linear_shapes(0)
    for site in SITES:
        names = [f"{layer_prefix(0)}{reader}.weight" for reader in site.readers]
        balance = layer.balance(layer.arrays, moments, dict.fromkeys(names, 16))
        assert set(balance.columns) == set(names)
        assert list(balance.strengths) == [site.name]
        assert error(layer.run(apply(balance, layer.arrays)), expected) < 2e-5
        # Those that are not rounded coarsely have no say in what is best for the others.
        quiet = dict(layer.arrays)
        for name in names[1:]:
            quiet[name] = quiet[name] * np.geomspace(1e-3, 1e3, shapes[name][1], dtype=np.float32)
        one = {names[0]: 16}
        a, b = (layer.balance(some, moments, one).columns for some in (layer.arrays, quiet))
        assert set(a) == set(names)
        for name in names:
            np.testing.assert_array_equal(a[name], b[names[0]])
    assert layer.balance(layer.arrays, moments, {}) == Balance()


def scale_channels(layer: Layer, place: str, strength: int) -> Arrays:
    """Return arrays of the same function, some channels multiplied where they are made."""
    spec, prefix, arrays = layer.spec, layer_prefix(0), dict(layer.arrays)
    random = np.random.default_rng(3)

    def draw(size: int) -> Rows:
        factors = np.ones(size, np.float32)
        chosen = random.choice(size, 4, replace=False)
        factors[chosen] = [strength, strength / 2, strength * 2, 1 / strength]
        return factors

    def put(made: list[str], used: list[str], factors: Rows, repeats: int = 1) -> None:
        for name in made:
            array = arrays[f"{prefix}.{name}"]
            arrays[f"{prefix}.{name}"] = array * (factors[:, None] if array.ndim == 2 else factors)
        heads = factors.reshape(-1, 1, spec.head_dim) if repeats > 1 else factors
        repeated = np.repeat(heads, repeats, axis=1).reshape(-1) if repeats > 1 else factors
        for name in used:
            arrays[f"{prefix}.{name}"] = arrays[f"{prefix}.{name}"] / repeated

    if place == "norms":
        readers = [f"self_attn.{part}_proj.weight" for part in "qkv"]
        put([INPUT_NORM], readers, draw(spec.hidden_size))
        put([MLP_NORM], ["mlp.gate_proj.weight", "mlp.up_proj.weight"], draw(spec.hidden_size))
    elif place == "values":
        size, repeats = spec.num_kv_heads * spec.head_dim, spec.num_heads // spec.num_kv_heads
        put(["self_attn.v_proj.weight"], ["self_attn.o_proj.weight"], draw(size), repeats)
    else:
        made = ["mlp.up_proj.weight"] + ["mlp.up_proj.bias"] * spec.has_mlp_bias
        put(made, ["mlp.down_proj.weight"], draw(spec.intermediate_size))
    return arrays


@pytest.mark.parametrize("place", ["norms", "values", "products"])
@pytest.mark.parametrize(
    ("family", "config"), [FAMILIES[0], ("llama", {"mlp_bias": True})], ids=["qwen3", "llama"]
)
def test_scaled_channels_are_unscaled(
    make_layer: Callable[..., Layer], family: str, config: Any, place: str
) -> None:
    """Training leaves channels that carry a thousand times more; what is rounded is the same.

    All of a projection's weights may be multiplied by one number: its scales take it up. Once
    `v_proj` and `up_proj` were looked at before their own outliers were undone, and a few of
    their rows decided for all that read the same.
    """
    layer = make_layer(family, **config)
    scaled = scale_channels(layer, place, 1 << 10)
    changed = [name for name in scaled if not np.array_equal(scaled[name], layer.arrays[name])]
    assert len(changed) == {"norms": 7, "values": 2, "products": 2 + layer.spec.has_mlp_bias}[place]
    assert error(layer.run(scaled), layer.run(layer.arrays)) < 2e-5
    before, after = layer.balance(layer.arrays), layer.balance(scaled)
    assert before.strengths == after.strengths
    expected, found = apply(before, layer.arrays), apply(after, scaled)
    for name in expected:
        ratio = found[name] / expected[name]
        assert ratio.min() == pytest.approx(ratio.max(), rel=0.02), name
        assert 0.7 < np.median(ratio) < 1.5, name


def test_channels_that_carry_nothing(make_layer: Callable[..., Layer]) -> None:
    """They stay finite, leave the others as they are, and are not blown up where they are made.

    A channel that calibration never saw may be used by another text, in float16.
    """
    layer = make_layer()
    prefix = layer_prefix(0)
    arrays = {name: array.copy() for name, array in layer.arrays.items()}
    arrays[f"{prefix}.{INPUT_NORM}"][::5] = 0
    for part in "qkv":
        arrays[f"{prefix}.self_attn.{part}_proj.weight"][:, 10] *= 1e6  # nothing is read there
    arrays[f"{prefix}.{MLP_NORM}"][7] = 0
    arrays[f"{prefix}.mlp.up_proj.weight"][3:9] = 0
    arrays[f"{prefix}.mlp.gate_proj.weight"][:, 11] = 0
    arrays[f"{prefix}.mlp.up_proj.weight"][:, 11] = 0
    arrays[f"{prefix}.self_attn.v_proj.weight"][4] = 0
    arrays[f"{prefix}.self_attn.o_proj.weight"][:, 5] = 0
    balance = layer.balance(arrays)
    used = {ATTENTION_INPUT: 1, MLP_INPUT: 0, MLP_OUTPUT: 0, ATTENTION_OUTPUT: 0}
    for site, channel in used.items():
        factors = balance.columns[f"{prefix}{site.readers[0]}.weight"]
        assert np.isfinite(factors).all()
        assert factors.min() > 0.9e-4
        assert 0.05 < factors[channel] < 20
    assert error(layer.run(apply(balance, arrays)), layer.run(arrays)) < 2e-5


def test_nothing_to_read_or_nothing_to_gain(make_layer: Callable[..., Layer]) -> None:
    layer = make_layer()
    empty = {site: Moments(real.width, 16) for site, real in layer.moments(layer.arrays).items()}
    for moments in empty.values():
        moments.close()
    nothing = layer.balance(layer.arrays, empty)
    assert not nothing.columns
    assert set(nothing.strengths.values()) == {None}
    # Weights on the levels of their grid lose nothing as they are.
    random = np.random.default_rng(4)
    exact = {
        name: random.choice(np.array([-8, 7, 3], np.float32) / 64, shape)
        for name, shape in layer.spec.linear_shapes(0).items()
    }
    for weight in exact.values():
        weight[:, ::16] = -8 / 64
    balance = layer.balance(exact, layer.moments(layer.arrays))
    assert not balance.columns
    assert set(balance.strengths.values()) == {None}


class Collector(CalibratedCompressor):
    """Keeps the weights as they would be rounded."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.arrays: Arrays = {}

    def _compress(self, matrix: SourceMatrix) -> None:
        wide = widen(matrix.array, matrix.dtype)
        if matrix.row_factors is not None:
            wide *= matrix.row_factors[:, None]
        if matrix.column_factors is not None:
            wide *= matrix.column_factors
        self.arrays[matrix.name] = wide


@pytest.mark.parametrize(
    ("kept", "family", "config"),
    [("int8", *FAMILIES[0]), ("fp16", *FAMILIES[2]), ("int8", *FAMILIES[3])],
)
def test_the_compressor_puts_factors_on_all_that_a_site_feeds(
    make_checkpoint: CheckpointMaker,
    make_layer: Callable[..., Layer],
    tmp_path: Path,
    kept: Any,
    family: str,
    config: Any,
) -> None:
    """Matrices that are kept at more bits are multiplied, too: they read the same."""

    def change(arrays: Arrays) -> None:
        for name in arrays:
            if "v_proj" in name or "up_proj" in name:
                size = len(arrays[name])
                factors = np.geomspace(0.1, 10, size, dtype=np.float32)
                arrays[name] *= factors[:, None] if arrays[name].ndim == 2 else factors

    folder = make_checkpoint(tmp_path / "tiny", family, change=change, **config)
    layer = make_layer(family, **config)
    exception = MatrixFormat(kept, symmetric=False, group_size=-1)
    exceptions = ("layers.*.self_attn.k_proj", "layers.*.mlp.up_proj")
    recipe = replace(
        load_recipe("int4-awq-se"), group_size=32, matrices=dict.fromkeys(exceptions, exception)
    )
    record, checkpoint = LayerRecord(), open_checkpoint(folder)
    compressor = Collector(checkpoint, layer.spec, recipe, record)
    moments = compressor.make_moments(0)
    arrays = {name: checkpoint.float32(name) for name in layer.spec.layer_shapes(0)}
    expected = list(read_layer(layer.spec, ArrayWeights(arrays), 0, layer.texts, moments))
    compressor.compress_with(0, moments)
    found = compressor.arrays | record.vectors
    assert found.keys() == arrays.keys()
    changed = {name for name in arrays if not np.array_equal(found[name], arrays[name])}
    ends = ("_proj.weight", "layernorm.weight", "v_proj.bias", "up_proj.bias")
    assert changed == {name for name in arrays if name.endswith(ends)}
    assert error(layer.run(found), expected) < 2e-5
    # What GPTQ then rounds against is what the changed layer's projections read.
    changed_moments = compressor.make_moments(0)
    for _ in read_layer(layer.spec, ArrayWeights(found), 0, layer.texts, changed_moments):
        pass
    for site, summed in changed_moments.items():
        size = np.abs(summed.products).max()
        np.testing.assert_allclose(moments[site].products / size, summed.products / size, atol=1e-5)
