"""Whether a model runs on an NPU, found out before it is published: rules, and a compilation."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.errors import DeviceError
from qwen_edge.export import ExportRequest, export, npu_eligibility, pipeline
from qwen_edge.export.checkpoint import open_checkpoint
from qwen_edge.export.compress import Compressor
from qwen_edge.export.decoder import read_spec
from qwen_edge.export.npu_eligibility import (
    MatrixFormat,
    check_npu,
    find_rule_breaks,
    read_matrices,
)
from qwen_edge.export.openvino_graph import build_decoder
from qwen_edge.export.package_facts import read_json_object
from qwen_edge.export.weight_store import WeightStore
from qwen_edge.profiles.recipe import Recipe, load_recipe
from qwen_edge.runtime.devices.npu_verdict import NpuVerdict
from qwen_edge.runtime.devices.trial_process import ChildEnd
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.manifest import DeviceSettings
from qwen_edge.runtime.package import read_manifest

CheckpointMaker = Callable[..., Path]
VOCAB_SIZE = 1_024
NPU = DeviceSettings("NPU", {"NPUW_LLM": "YES"}, 512, 256, 256, 256)
CPU = DeviceSettings("CPU", {}, 512, None, None, 256)
SHAPE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}


@pytest.fixture
def make_model(tmp_path: Path, make_checkpoint: CheckpointMaker) -> Iterator[Callable[..., Any]]:
    """Return a maker of models in memory, from a recipe and changes to config.json."""
    with ExitStack() as stack:

        def make(recipe: Recipe, **config: object) -> Any:
            folder = make_checkpoint(tmp_path / "source", **(SHAPE | config))
            spec = read_spec(read_json_object(folder / "config.json"))
            checkpoint = open_checkpoint(folder)
            stack.callback(checkpoint.close)
            store = stack.enter_context(WeightStore(tmp_path / "spool"))
            compressor = Compressor(checkpoint, spec, recipe, store)
            compressor.compress_embeddings()
            for layer_index in range(spec.num_layers):
                compressor.compress_layer(layer_index)
            store.freeze()
            return build_decoder(spec, store)

        yield make


@pytest.mark.parametrize("name", ["int4", "int4-awq", "int4-channel"])
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_recipes_for_npu_keep_the_rules(
    make_model: Callable[..., Any], name: str, is_tied: bool
) -> None:
    model = make_model(load_recipe(name), tie_word_embeddings=is_tied)
    assert find_rule_breaks(model, vocab_size=VOCAB_SIZE) == ()
    matrices = read_matrices(model)
    assert len(matrices) == 2 * 7 + 1
    expected = -1 if name == "int4-channel" else 128
    assert matrices[0].layer == "model.layers.0.self_attn.q_proj"
    assert (matrices[0].element_type, matrices[0].group_size) == ("i4", expected)


@pytest.mark.parametrize(
    ("name", "changes", "config", "words"),
    [
        ("fp16", {}, {}, "'model.layers.0.self_attn.q_proj' and 14 more: its weights are f16"),
        ("int8", {}, {}, "'model.layers.0.self_attn.q_proj' and 13 more: its weights are u8"),
        ("int4", {"group_size": 64}, {}, "and 13 more: its weights are in groups of 64, expected"),
        (
            "int4",
            {},
            {"intermediate_size": 192},
            "layer 'model.layers.0.mlp.down_proj' and 1 more: its weights are in groups of 64",
        ),
    ],
    ids=["fp16", "int8", "small groups", "one width"],
)
def test_a_broken_rule_is_told_with_its_layer(
    make_model: Callable[..., Any],
    name: str,
    changes: dict[str, Any],
    config: dict[str, Any],
    words: str,
) -> None:
    recipe = dataclasses.replace(load_recipe(name), **changes)
    (problem,) = find_rule_breaks(make_model(recipe, **config), vocab_size=VOCAB_SIZE)
    assert words in problem
    assert "rule of OpenVINO's guide for NPU" in problem


def test_asymmetric_weights_break_a_rule() -> None:
    """What NNCF and optimum-intel write unless told otherwise: u4 with a zero point."""
    ov = import_openvino()
    from openvino import opset15 as ops

    numbers = ov.op.Constant(ov.Type.u4, ov.Shape([8, 2, 128]), [7] * 2_048)
    zeros = ops.convert(ov.op.Constant(ov.Type.u4, ov.Shape([8, 2, 1]), [8] * 16), "f16")
    scales = ops.constant(np.ones((8, 2, 1), np.float16))
    weight = ops.multiply(ops.subtract(ops.convert(numbers, "f16"), zeros), scales)
    weight = ops.convert(ops.reshape(weight, ops.constant([8, 256]), False), "f32")
    given = ops.parameter([-1, 256], ov.Type.f32)
    product = ops.matmul(given, weight, False, True, name="model.layers.3.mlp.up_proj")
    model = ov.Model([product], [given], "one")
    assert read_matrices(model) == (
        MatrixFormat("model.layers.3.mlp.up_proj", "u4", 128, has_zero_point=True, num_rows=8),
    )
    (problem,) = find_rule_breaks(model, vocab_size=VOCAB_SIZE)
    assert problem.startswith("layer 'model.layers.3.mlp.up_proj': its weights are asymmetric (u4)")


@pytest.fixture
def ir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is taken for one with a model that keeps all rules."""
    (tmp_path / "openvino_model.bin").write_bytes(b"x" * 1_000)
    (tmp_path / "openvino_model.xml").write_text(
        '<?xml version="1.0"?><net name="x" version="11"><layers/><edges/></net>', encoding="utf-8"
    )
    monkeypatch.setattr(npu_eligibility, "find_rule_breaks", lambda model, vocab_size: ())
    return tmp_path


def end_as(
    monkeypatch: pytest.MonkeyPatch, code: int | None, line: str = "", *, is_started: bool = True
) -> list[Any]:
    """Let the child end like this; returns what it is given."""
    given: list[Any] = []

    def run(task: Any, *, time_limit_s: float) -> ChildEnd | None:
        given.append(task)
        return ChildEnd(code, line, time_limit_s) if is_started else None

    monkeypatch.setattr(npu_eligibility, "run_task", run)
    return given


def test_the_plugin_is_asked_to_compile_for_the_cpu(
    ir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = end_as(monkeypatch, 0)
    verdict = check_npu(ir, (CPU, NPU), vocab_size=VOCAB_SIZE)
    assert verdict == NpuVerdict()
    assert verdict.is_fit
    (task,) = given
    assert task.settings.properties == {"NPUW_LLM": "YES", "NPUW_DEVICES": "CPU"}
    assert task.golden is None


@pytest.mark.parametrize(
    ("code", "unchecked"), [(None, "time"), (-9, "memory"), (68, "memory"), (-15, "time")]
)
def test_what_says_nothing_of_the_model_leaves_it_unknown(
    ir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int | None,
    unchecked: str,
) -> None:
    end_as(monkeypatch, code)
    verdict = check_npu(ir, (NPU,), vocab_size=VOCAB_SIZE)
    assert verdict is not None
    assert (verdict.problems, verdict.unchecked) == ((), unchecked)
    assert "is unknown" in caplog.text


def test_where_it_cannot_be_tried_it_is_unknown(ir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end_as(monkeypatch, 0, is_started=False)
    assert check_npu(ir, (NPU,), vocab_size=VOCAB_SIZE) == NpuVerdict(unchecked="process")
    scarce = dataclasses.replace(npu_eligibility.probe_hardware(), available_memory_bytes=1_000)
    monkeypatch.setattr(npu_eligibility, "probe_hardware", lambda: scarce)
    assert check_npu(ir, (NPU,), vocab_size=VOCAB_SIZE) == NpuVerdict(unchecked="memory")
    monkeypatch.setattr(npu_eligibility, "_has_plugin", lambda: False)
    assert check_npu(ir, (NPU,), vocab_size=VOCAB_SIZE) == NpuVerdict(unchecked="plugin")


@pytest.mark.parametrize("code", [65, -6, 1], ids=["refused", "aborted", "ended"])
def test_a_model_that_does_not_compile_is_unfit(
    ir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """With other devices the package is made, and says so; without, nothing is published."""
    end_as(monkeypatch, code, "Model references undeclared parameters")
    verdict = check_npu(ir, (CPU, NPU), vocab_size=VOCAB_SIZE)
    assert verdict is not None
    assert "does not compile it for 256 + 256 tokens: " in verdict.problems[0]
    assert "references undeclared parameters" in verdict.problems[0]
    assert "will not be used on an NPU" in caplog.text
    with pytest.raises(DeviceError, match="the only device of this profile") as caught:
        check_npu(ir, (NPU,), vocab_size=VOCAB_SIZE)
    assert "--skip-npu-check" in caught.value.fix


def test_without_an_npu_or_where_asked_nothing_is_done(
    ir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = end_as(monkeypatch, 0)
    with caplog.at_level(logging.WARNING):
        assert check_npu(ir, (CPU,), vocab_size=VOCAB_SIZE) is None
        skipped = check_npu(ir, (NPU,), vocab_size=VOCAB_SIZE, is_skipped=True)
    assert skipped == NpuVerdict(unchecked="asked")
    assert not given
    assert not caplog.text


def test_the_verdict_stands_in_manifest_and_card(
    tmp_path: Path, make_checkpoint: CheckpointMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A width that 128 does not divide: the package is for GPU and CPU, and says so."""
    source = make_checkpoint(tmp_path / "source", **(SHAPE | {"intermediate_size": 192}))
    request = ExportRequest(
        str(source), "core-ultra", recipe="int4", output=tmp_path / "package", skip_quality=True
    )
    folder = export(request).folder
    verdict = read_manifest(folder).npu
    assert verdict is not None
    assert "'model.layers.0.mlp.down_proj'" in verdict.problems[0]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| NPU | does not run there: layer 'model.layers.0.mlp.down_proj' and 1 more" in card
    asked: list[bool] = []

    def note(*arguments: object, is_skipped: bool, **options: object) -> None:
        asked.append(is_skipped)
        raise DeviceError("enough")

    monkeypatch.setattr(pipeline, "check_npu", note)
    with pytest.raises(DeviceError, match="enough"):
        export(dataclasses.replace(request, output=tmp_path / "other", skip_npu_check=True))
    assert asked == [True]
    assert not (tmp_path / "other").exists()


def test_the_demo_was_compiled(demo_package: Path) -> None:
    assert read_manifest(demo_package).npu == NpuVerdict()
    card = (demo_package / "README.md").read_text(encoding="utf-8")
    assert (
        "| NPU | compiled by OpenVINO's NPU plugin when the package was exported; not run" in card
    )
