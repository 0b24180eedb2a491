"""Hostile ONNX files, really given to the loader: the calling process lives and says why not.

Each is refused when it is read, before any engine sees it. Some are also given to a child that
checks nothing, to see that its end stays its own.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from trust_rows import Cases

from qwen_edge.errors import PackageError
from qwen_edge.runtime.backends import onnx_trial
from qwen_edge.runtime.backends.onnx_file import read_onnx
from qwen_edge.runtime.backends.onnx_trial import try_in_child

MakeOnnx = Callable[..., Path]
TIMEOUT_S = 60.0


@pytest.fixture
def copy_demo(tmp_path: Path, onnx_demo: MakeOnnx) -> MakeOnnx:
    """Return a function (is_portable) that copies the demo's two files, to be changed."""

    def copy(*, is_portable: bool = False) -> Path:
        demo = onnx_demo("int4", is_portable=is_portable)
        return Path(shutil.copytree(demo, tmp_path / "package"))

    return copy


def nest_functions(folder: Path) -> None:
    """Let 20,000 functions call each other; ONNX Runtime 1.31 enters one from the other."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.opset_import.append(onnx.helper.make_opsetid("evil", 1))
    for depth in range(20_000):
        function = model.functions.add(name=f"f{depth}", domain="evil", input=["x"], output=["y"])
        function.opset_import.extend(model.opset_import)
        inner = function.node.add(op_type="Identity", input=["x"], output=["y"])
        if depth:
            inner.op_type, inner.domain = f"f{depth - 1}", "evil"
    node = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    node.op_type, node.domain = "f19999", "evil"
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def point_into_memory(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    entries = {"location": "*/_ORT_MEM_ADDR_/*", "offset": "4096"}
    for entry in tensor.external_data:
        entry.value = entries.get(entry.key, entry.value)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def widen_a_matrix(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "MatMulNBits")
    next(part for part in node.attribute if part.name == "N").i = 1 << 20
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def lie_about_lengths(folder: Path) -> None:
    """Tell the attention to write its keys a million positions behind its buffer."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.array([1_000_000], np.int32), "far")
    )
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.input[5] = "far"
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def split_into_more(folder: Path) -> None:
    """Let an operator that makes one half write two; ONNX Runtime 1.31 aborts."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Split":
            next(part for part in node.attribute if part.name == "num_outputs").i = 1
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def cut_the_data(folder: Path) -> None:
    os.truncate(folder / "model.onnx.data", 1_000_000)


def link_the_data(folder: Path) -> None:
    os.link(folder / "model.onnx.data", folder.parent / "elsewhere")


def link_the_data_softly(folder: Path) -> None:
    (folder / "model.onnx.data").rename(folder.parent / "elsewhere")
    (folder / "model.onnx.data").symlink_to(folder.parent / "elsewhere")


GRAPHS = {
    nest_functions: "operator sets ai.onnx 21, com.microsoft 1, evil 1",
    point_into_memory: "'*/_ORT_MEM_ADDR_/*', expected 'model.onnx.data'",
    widen_a_matrix: "expected uint8 [1048576, 2, 64]",
    lie_about_lengths: "takes lengths from 'far'",
    split_into_more: "has num_outputs 1 and 2 outputs",
    cut_the_data: "'model.onnx.data' has 1,000,000 bytes",
}
LINKS = {link_the_data: "is a hard link"}
if sys.platform != "win32":
    LINKS[link_the_data_softly] = "is a symbolic link"

ALL = GRAPHS | LINKS
PORTABLE = {split_into_more}
CRASHES = {nest_functions, split_into_more}  # in ONNX Runtime 1.31; the others it refuses


@pytest.mark.parametrize(("attack", "words"), ALL.items(), ids=[f.__name__ for f in ALL])
@pytest.mark.trust("T-IN-12", "T-IN-13")
def test_it_is_refused_before_an_engine_sees_it(
    copy_demo: MakeOnnx,
    monkeypatch: pytest.MonkeyPatch,
    attack: Callable[[Path], None],
    words: str,
) -> None:
    folder = copy_demo(is_portable=attack in PORTABLE)
    attack(folder)
    monkeypatch.setattr(onnx_trial, "run_trial", None)
    for load in (read_onnx, lambda folder: try_in_child(folder, timeout_s=TIMEOUT_S)):
        with pytest.raises(PackageError) as caught:
            load(folder)
        assert words in caught.value.problem
        assert caught.value.fix


@pytest.mark.trust("T-PKG-09")
@pytest.mark.parametrize("attack", GRAPHS, ids=[f.__name__ for f in GRAPHS])
@pytest.mark.trust("T-IN-13")
def test_behind_our_checks_it_stays_in_the_child(
    copy_demo: MakeOnnx,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attack: Callable[[Path], None],
) -> None:
    """Nothing is checked here: the engine itself gets the file, in the child."""
    folder = copy_demo(is_portable=attack in PORTABLE)
    sound = read_onnx(folder)
    attack(folder)
    monkeypatch.setattr(onnx_trial, "read_onnx", lambda folder: sound)
    (tmp_path / "blind").mkdir()
    (tmp_path / "blind" / "sitecustomize.py").write_text(
        textwrap.dedent(
            f"""
            from qwen_edge.runtime.backends import onnx_file

            def read_blindly(folder, **options):
                text = (folder / "model.onnx").read_bytes()
                return onnx_file.OnnxModel(text, folder, 4, 2, 64, 1024, {sound.is_portable})

            onnx_file.read_onnx = read_blindly
            """
        ),
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path / "blind"))
    with pytest.raises(PackageError, match="a process that tried it first") as caught:
        try_in_child(folder, timeout_s=TIMEOUT_S)
    if onnxruntime.__version__.startswith("1.31."):
        assert ("was ended by" in caught.value.problem) == (attack in CRASHES)


OUTSIDE = [
    "../model.onnx.data", "a/../../model.onnx.data", "./model.onnx.data", "model.onnx.data/", "",
    "sub/model.onnx.data", "..", ".", "/etc/passwd", "/dev/zero", "\\\\host\\share\\data", "C:data",
    "C:\\model.onnx.data", "..\\model.onnx.data", "model.onnx.data\0", "model.onnx.data:stream",
    "MODEL.ONNX.DATA", "model.onnx.data ", "%2e%2e/model.onnx.data", "file:model.onnx.data", "~/x",
    "*/_ORT_MEM_ADDR_/*", "model.onnx", "$HOME/x", "x" * 5_000, "//model.onnx.data", "‥/x",
]  # fmt: skip


@pytest.mark.trust("T-IN-11", "T-IN-12", "T-IN-13")
def test_weights_come_from_the_file_beside_it_and_from_no_other(
    copy_demo: MakeOnnx, cases: Cases
) -> None:
    folder = copy_demo()
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    entry = next(entry for entry in tensor.external_data if entry.key == "location")
    read_onnx(folder)
    for location in OUTSIDE:
        entry.value = location
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(PackageError, match=r"expected 'model\.onnx\.data'") as caught:
            read_onnx(folder)
        assert len(caught.value.problem) < 500
    cases(len(OUTSIDE))


def logits_of(
    folder: Path, token_ids: list[int], *, accuracy_level: int, num_last_positions: int = 1
) -> npt.NDArray[np.float32]:
    """Return logits [positions, vocab] of tokens fed at once to an empty cache."""
    model = read_onnx(folder, accuracy_level=accuracy_level, num_last_positions=num_last_positions)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    session = onnxruntime.InferenceSession(model.text, options, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {
        "input_ids": np.array([token_ids], np.int64),
        "attention_mask": np.ones((1, len(token_ids)), np.int64),
    }
    empty = np.zeros((1, model.num_kv_heads, 0, model.head_dim), np.float32)
    feeds |= {part.name: empty for part in session.get_inputs() if part.name.startswith("past")}
    logits: npt.NDArray[np.float32] = session.run(["logits"], feeds)[0]
    assert logits.shape == (1, min(num_last_positions, len(token_ids)), model.vocab_size)
    return logits[0]


def test_the_accuracy_level_reaches_the_engine(onnx_demo: MakeOnnx) -> None:
    """Level 4 rounds activations to int8; level 1 does not, and is what comparisons need."""
    ids = list(range(5, 25))
    exact, fast = (logits_of(onnx_demo("int4"), ids, accuracy_level=level)[-1] for level in (1, 4))
    difference = float(np.abs(exact - fast).max())
    assert 1e-4 < difference < 0.2 * float(np.abs(exact).max()), difference


@pytest.mark.parametrize("is_portable", [False, True], ids=["fast", "portable"])
def test_more_last_positions_are_those_of_shorter_inputs(
    onnx_demo: MakeOnnx, is_portable: bool
) -> None:
    folder, ids = onnx_demo("int4", is_portable=is_portable), list(range(5, 25))
    together = logits_of(folder, ids, accuracy_level=1, num_last_positions=3)
    for index, length in enumerate((18, 19, 20)):
        alone = logits_of(folder, ids[:length], accuracy_level=1)[-1]
        difference = float(np.abs(together[index] - alone).max())
        assert difference < 1e-4 * float(np.abs(alone).max()), (length, difference)
    few = logits_of(folder, ids[:2], accuracy_level=1, num_last_positions=3)
    assert np.abs(few[-1] - logits_of(folder, ids[:2], accuracy_level=1)[-1]).max() < 1e-4
