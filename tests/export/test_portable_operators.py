"""The form in standard ONNX operators: what it sees, and that other programs run it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from qwen_edge.export.onnx_files import write_onnx_model
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.golden import GOLDEN_PROPERTIES

CheckpointMaker = Callable[..., Path]
StoreMaker = Callable[..., Any]

PROMPT = [3, 141, 59, 265, 358, 97, 932, 384, 626, 433]
# Between engines: sums in another order. Logits are about 3.
MAX_DIFFERENCE = 1e-4
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_checkpoint: CheckpointMaker,
    compress_checkpoint: StoreMaker,
) -> Iterator[Path]:
    """Return a tiny int4 model with a tied head and YaRN, in standard operators."""
    folder = tmp_path_factory.mktemp("portable")
    checkpoint = make_checkpoint(folder / "checkpoint", rope_scaling=YARN)
    spec, store = compress_checkpoint(folder / "spool", checkpoint, "int4")
    with store:
        write_onnx_model(spec, store, folder, max_context_tokens=128, is_portable=True)
    yield folder


@pytest.fixture(scope="module")
def run(folder: Path, open_onnx: Any) -> Any:
    """Return the model opened in ONNX Runtime."""
    return open_onnx(folder)


def start_inputs(folder: Path, token_ids: list[int]) -> dict[str, npt.NDArray[Any]]:
    """Return the inputs of a first call, with an empty cache."""
    config = json.loads((folder / "checkpoint" / "config.json").read_bytes())
    shape = (1, config["num_key_value_heads"], 0, config["head_dim"])
    inputs: dict[str, npt.NDArray[Any]] = {
        "input_ids": np.array([token_ids]),
        "attention_mask": np.ones((1, len(token_ids)), np.int64),
    }
    for index in range(config["num_hidden_layers"]):
        for part in ("key", "value"):
            inputs[f"past_key_values.{index}.{part}"] = np.zeros(shape, np.float32)
    return inputs


def test_operators_are_standard_and_every_shape_can_be_inferred(folder: Path) -> None:
    path = folder / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    assert {node.domain for node in model.graph.node} == {""}


def test_the_reference_evaluator_computes_the_same(folder: Path, run: Any) -> None:
    """The meaning of the file by the standard's own implementation, integers and all."""
    run.reset()
    found = run.forward(PROMPT)
    evaluator = ReferenceEvaluator(str(folder / "model.onnx"))
    expected = evaluator.run(["logits"], start_inputs(folder, PROMPT))[0][0, 0]
    difference = np.abs(found - expected).max()
    print(f"reference evaluator: max |Δ| {difference:.1e} of {np.abs(expected).max():.1f}")
    assert difference < MAX_DIFFERENCE


def test_another_engine_runs_it(folder: Path, run: Any) -> None:
    """OpenVINO's ONNX front end knows nothing of ONNX Runtime's operators."""
    run.reset()
    found = run.forward(PROMPT)
    core = import_openvino().Core()
    compiled = core.compile_model(folder / "model.onnx", "CPU", dict(GOLDEN_PROPERTIES))
    expected = compiled(start_inputs(folder, PROMPT))["logits"][0, 0]
    difference = np.abs(found - expected).max()
    print(f"OpenVINO: max |Δ| {difference:.1e}")
    assert difference < MAX_DIFFERENCE


def test_pieces_give_what_the_whole_gives(run: Any) -> None:
    run.reset()
    whole = run.forward(PROMPT)
    run.reset()
    for piece in (PROMPT[:4], PROMPT[4:5], PROMPT[5:]):
        last = run.forward(piece)
    assert np.abs(whole - last).max() < MAX_DIFFERENCE


@pytest.mark.parametrize("place", [1, 4, 9])
def test_a_hole_in_the_mask_is_never_seen(run: Any, place: int) -> None:
    """Tokens taken back leave no trace: neither in the attention nor in the positions."""
    run.reset()
    expected = run.forward(PROMPT)
    run.reset()
    run.forward(PROMPT[:place])
    run.forward([700, 701, 702])
    seen = run.forward(PROMPT[place:])
    run.reset()
    run.forward(PROMPT[:place])
    run.forward([700, 701, 702])
    run.mask[place : place + 3] = [0, 0, 0]
    found = run.forward(PROMPT[place:])
    assert np.abs(found - expected).max() < MAX_DIFFERENCE
    assert np.abs(seen - expected).max() > 0.1  # they do count where the mask keeps them


def test_left_padding_is_never_seen(run: Any) -> None:
    """Whatever the cache holds there; the positions begin behind it."""
    run.reset()
    expected = run.forward(PROMPT)
    run.reset(mask=[0] * 5)
    assert np.abs(run.forward(PROMPT) - expected).max() < MAX_DIFFERENCE


def test_sequences_of_a_batch_do_not_see_each_other(folder: Path, run: Any) -> None:
    """The shorter one is padded on the left, with rows that have nothing to attend to."""
    run.reset()
    short = run.forward(PROMPT[:6])
    run.reset()
    long = run.forward(PROMPT)
    inputs = {
        name: np.concatenate([value, value]) for name, value in start_inputs(folder, PROMPT).items()
    }
    inputs["input_ids"][0] = [5] * 4 + PROMPT[:6]
    inputs["attention_mask"][0, :4] = 0
    logits = run.session.run(["logits"], inputs)[0]
    assert np.abs(logits[0, 0] - short).max() < MAX_DIFFERENCE
    assert np.abs(logits[1, 0] - long).max() < MAX_DIFFERENCE


@pytest.mark.parametrize("recipe", ["int8", "fp16"])
def test_other_recipes_give_what_the_fast_form_gives(
    tmp_path: Path,
    make_checkpoint: CheckpointMaker,
    compress_checkpoint: StoreMaker,
    open_onnx: Any,
    recipe: str,
) -> None:
    """An untied embedding is looked up by rows, and widths need not fit a block."""
    checkpoint = make_checkpoint(
        tmp_path / "checkpoint", hidden_size=72, intermediate_size=90, tie_word_embeddings=False
    )
    spec, store = compress_checkpoint(tmp_path / "spool", checkpoint, recipe)
    logits = {}
    with store:
        for name in ("fast", "portable"):
            (tmp_path / name).mkdir()
            is_portable = name == "portable"
            write_onnx_model(
                spec, store, tmp_path / name, max_context_tokens=64, is_portable=is_portable
            )
            logits[name] = open_onnx(tmp_path / name).forward(PROMPT)
    assert np.abs(logits["fast"] - logits["portable"]).max() < MAX_DIFFERENCE
