"""Whole decoder layers of ours compute what the engine's operators with our products do.

What may differ is float32 rounding in norms, angles and gates, which now and then rounds an
activation to another of its 8 bits.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qwen_edge.export import ExportRequest, export
from qwen_edge.runtime.backends.compiling import read_ir
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.kernels import (
    CACHE,
    CacheShape,
    KvCache,
    find_kernels,
    use_attention,
    use_kernels,
    use_layers,
)
from qwen_edge.runtime.manifest import MODEL_XML

pytestmark = pytest.mark.skipif(
    not find_kernels().names, reason=f"no kernels here: {find_kernels().reason}"
)
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
SHAPE = CacheShape(4, 2, 64)  # of the demo model
Rows = npt.NDArray[np.float32]


@pytest.fixture
def model(demo_package: Path) -> Any:
    return read_ir(demo_package / MODEL_XML)


def count(model: Any, kind: str) -> int:
    return sum(node.get_type_name() == kind for node in model.get_ops())


class Runner:
    """A model with a cache of ours."""

    def __init__(
        self, model: Any, shape: CacheShape, keeps_alive: object, threads: int = 0
    ) -> None:
        self._keeps_alive = keeps_alive
        path = find_kernels().path
        assert path is not None
        self._cache = KvCache(path, shape)
        properties = {**F32, "INFERENCE_NUM_THREADS": threads} if threads else F32
        compiled = import_openvino().Core().compile_model(model, "CPU", properties)
        self._request = compiled.create_infer_request()
        self.past = 0

    def __call__(self, ids: npt.NDArray[np.int64]) -> Rows:
        """Return the logits after each token."""
        positions = np.arange(self.past, self.past + ids.size)
        given = {
            "input_ids": ids[None],
            "position_ids": positions[None],
            CACHE: np.array([self._cache.number, self.past], np.int32),
        }
        result = np.array(self._request.infer(given)[0][0])
        self.past += ids.size
        return result


def make_layers(model: Any, kernels: str = "auto", threads: int = 0) -> Runner:
    layers = use_layers(model, find_kernels(), kernels=kernels)
    assert layers is not None
    rest = use_kernels(model, find_kernels(), kernels=kernels)
    assert rest.num_products == 1  # the head
    return Runner(model, layers.cache, (layers, rest), threads)


def make_parts(model: Any, kernels: str = "auto") -> Runner:
    """The engine's norms, angles and gates between our products and our attention."""
    shape = use_attention(model, find_kernels(), kernels=kernels)
    assert shape is not None
    return Runner(model, shape, use_kernels(model, find_kernels(), kernels=kernels))


def test_a_model_gets_one_operator_for_its_layers(model: Any) -> None:
    layers = use_layers(model, find_kernels())
    assert layers is not None
    assert layers.cache == SHAPE
    assert count(model, "DecoderLayers") == 1
    for kind in ("ScaledDotProductAttention", "Swish", "ReadValue", "Sqrt"):
        assert count(model, kind) == (kind == "Sqrt")  # that of the last norm
    names = {name for port in model.inputs for name in port.get_names()}
    assert names == {"input_ids", "position_ids", CACHE}


@pytest.mark.parametrize("kernels", find_kernels().names)
def test_layers_are_their_parts(demo_package: Path, kernels: str) -> None:
    layers = make_layers(read_ir(demo_package / MODEL_XML), kernels)
    parts = make_parts(read_ir(demo_package / MODEL_XML), kernels)
    ids = np.random.default_rng(0).integers(10, 900, 120)
    for begin, end in ((0, 1), (1, 4), (4, 60), (60, 61), (61, 75), (75, 120)):
        found, expected = layers(ids[begin:end]), parts(ids[begin:end])
        error, size = np.abs(found - expected), np.abs(expected).max()
        assert error.max() < (0.06 if begin else 1e-4) * size  # nothing rounded otherwise yet
        assert error.mean() < 0.005 * size


@pytest.mark.parametrize("kernels", find_kernels().names)
def test_a_token_is_the_same_to_the_bit_in_calls_of_any_size(model: Any, kernels: str) -> None:
    """Checking guesses chooses what single steps would have chosen."""
    layers = make_layers(model, kernels)
    ids = np.random.default_rng(1).integers(10, 900, 60)
    layers(ids[:40])
    alone = np.concatenate([layers(ids[i : i + 1]) for i in range(40, 56)])
    for size in (2, 3, 5, 8, 16):
        layers.past = 40
        assert np.array_equal(layers(ids[40 : 40 + size]), alone[:size])


@pytest.mark.parametrize("threads", [2, 5])  # fewer and more than there are
def test_the_same_with_any_number_of_threads(demo_package: Path, threads: int) -> None:
    alone = make_layers(read_ir(demo_package / MODEL_XML), threads=1)
    together = make_layers(read_ir(demo_package / MODEL_XML), threads=threads)
    ids = np.random.default_rng(4).integers(10, 900, 60)
    for begin, end in ((0, 40), (40, 41), (41, 50), (50, 60)):
        assert np.array_equal(alone(ids[begin:end]), together(ids[begin:end]))


def test_two_conversations_at_once(demo_package: Path) -> None:
    """Each has threads of its own, and may have those of the other when it waits."""
    runners = [make_layers(read_ir(demo_package / MODEL_XML)) for _ in range(3)]
    ids = np.random.default_rng(5).integers(10, 900, 80)
    expected = np.concatenate([runners[2](ids[i : i + 1]) for i in range(ids.size)])

    def run(runner: Runner) -> Rows:
        return np.concatenate([runner(ids[i : i + 1]) for i in range(ids.size)])

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(run, runners[:2]):
            assert np.array_equal(found, expected)


def weaken_angles(model: Any) -> Any:
    """Make a layer read cosines of its own."""
    ov = import_openvino()
    node = next(op for op in model.get_ops() if op.get_friendly_name().endswith("/cos_per_head"))
    readers = node.output(0).get_target_inputs()
    weakened = ov.opset15.multiply(node.output(0), np.float32(0.5)).output(0)
    for port in readers:
        if "layers.2." in port.get_node().get_friendly_name():
            port.replace_source_output(weakened)
    return model


def test_neighbours_with_the_same_angles_share_an_operator(demo_package: Path) -> None:
    changed = weaken_angles(read_ir(demo_package / MODEL_XML))
    layers = make_layers(changed)
    parts = make_parts(weaken_angles(read_ir(demo_package / MODEL_XML)))
    operators = [op for op in changed.get_ordered_ops() if op.get_type_name() == "DecoderLayers"]
    names = [op.get_friendly_name().split("/")[0] for op in operators]
    assert names == ["layers.0-1", "layers.2-2", "layers.3-3"]
    ids = np.random.default_rng(6).integers(10, 900, 20)
    found, expected = layers(ids), parts(ids)
    assert np.abs(found - expected).max() < 0.06 * np.abs(expected).max()


def mix(model: Any, other: Any, names: tuple[str, ...]) -> Any:
    """Give products of these names the weights that they have in another model."""
    others = {op.get_friendly_name(): op for op in other.get_ops()}
    for node in model.get_ops():
        name = node.get_friendly_name()
        if node.get_type_name() == "MatMul" and name.endswith(names):
            node.input(1).replace_source_output(others[name].input_value(1))
    return model


@pytest.mark.parametrize("rows", [1, 3, 9, 30])
def test_products_of_a_layer_may_have_different_bits(
    demo_package: Path, tmp_path: Path, rows: int
) -> None:
    """Some have zero points then and some have none."""
    request = ExportRequest(
        model="demo", profile="generic-x86", recipe="int8", output=tmp_path / "8", skip_quality=True
    )
    export(request)
    names = ("layers.1.mlp.down_proj", "layers.2.self_attn.k_proj", "layers.3.mlp.gate_proj")
    other = read_ir(tmp_path / "8" / MODEL_XML)
    layers = make_layers(mix(read_ir(demo_package / MODEL_XML), other, names))
    parts = make_parts(mix(read_ir(demo_package / MODEL_XML), other, names))
    plain = make_parts(read_ir(demo_package / MODEL_XML))
    ids = np.random.default_rng(7).integers(10, 900, 31)
    for runner in (layers, parts, plain):
        runner(ids[rows:])
    found, expected, unmixed = (runner(ids[:rows]) for runner in (layers, parts, plain))
    size = np.abs(expected).max()
    assert np.abs(found - expected).max() < 0.06 * size
    assert np.abs(unmixed - expected).max() > 0


def drop_head_norms(model: Any) -> Any:
    """Make queries and keys go without norms, as Llama's do."""
    for node in model.get_ops():
        if node.get_friendly_name().endswith(("q_norm", "k_norm")):
            node.output(0).replace(node.input_value(1).get_node().input_value(0))
    model.validate_nodes_and_infer_types()
    return model


def test_heads_without_norms(demo_package: Path) -> None:
    layers = make_layers(drop_head_norms(read_ir(demo_package / MODEL_XML)))
    parts = make_parts(drop_head_norms(read_ir(demo_package / MODEL_XML)))
    normed = make_layers(read_ir(demo_package / MODEL_XML))
    ids = np.random.default_rng(3).integers(10, 900, 16)
    found, expected, other = layers(ids), parts(ids), normed(ids)
    size = np.abs(expected).max()
    assert np.abs(found - expected).max() < 0.06 * size
    assert np.abs(other - expected).max() > 0.2 * size  # so that the norms are what differs


@pytest.mark.parametrize("recipe", ["int8", "int4-channel"])
def test_weights_of_other_bits_and_groups(tmp_path: Path, recipe: str) -> None:
    package = tmp_path / recipe
    request = ExportRequest(
        model="demo", profile="generic-x86", recipe=recipe, output=package, skip_quality=True
    )
    export(request)
    layers = make_layers(read_ir(package / MODEL_XML))
    parts = make_parts(read_ir(package / MODEL_XML))
    ids = np.random.default_rng(2).integers(10, 900, 30)
    found, expected = layers(ids), parts(ids)
    assert np.abs(found - expected).max() < 0.06 * np.abs(expected).max()


def change_norm(model: Any) -> None:
    """Another epsilon in one of the norms."""
    ov = import_openvino()
    node = next(op for op in model.get_ops() if "q_norm/add_eps" in op.get_friendly_name())
    node.input(1).replace_source_output(ov.opset15.constant(np.float32(1e-3)).output(0))


def change_gate(model: Any) -> None:
    """Another function of the gate."""
    ov = import_openvino()
    node = next(op for op in model.get_ops() if op.get_type_name() == "Swish")
    gelu = ov.opset15.gelu(node.input_value(0), "erf")
    node.output(0).replace(gelu.output(0))


def change_angles(model: Any) -> None:
    """Neighbours rotated instead of halves."""
    ov = import_openvino()
    node = next(op for op in model.get_ops() if op.get_friendly_name().endswith("second_half"))
    node.input(3).replace_source_output(ov.opset15.constant(np.array([2], np.int64)).output(0))


def change_residual(model: Any) -> None:
    """Something between attention and the sum."""
    ov = import_openvino()
    node = next(op for op in model.get_ops() if op.get_friendly_name().endswith("o_proj"))
    scaled = ov.opset15.multiply(node.output(0), np.float32(0.5))
    for port in node.output(0).get_target_inputs():
        if port.get_node().get_name() != scaled.get_name():
            port.replace_source_output(scaled.output(0))


def watch_gate(model: Any) -> None:
    """A second reader of what is inside a layer."""
    ov = import_openvino()
    node = next(op for op in model.get_ops() if op.get_friendly_name().endswith("down_proj"))
    model.add_results([ov.opset15.result(node.output(0))])


@pytest.mark.parametrize(
    "change", [change_norm, change_gate, change_angles, change_residual, watch_gate]
)
def test_layers_of_another_form_stay(model: Any, change: Any) -> None:
    change(model)
    assert use_layers(model, find_kernels()) is None
    assert count(model, "ScaledDotProductAttention") == SHAPE.num_layers
