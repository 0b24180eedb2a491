"""The spool file: what goes in comes out, mapped, aligned, and gone afterwards."""

from pathlib import Path

import numpy as np
import pytest
from ctrl_c import strike_each

from qwen_edge.export.weight_store import WeightStore
from qwen_edge.runtime.engine import import_openvino


def test_arrays_come_back_as_they_went_in(tmp_path: Path) -> None:
    blocks = [np.arange(6, dtype=np.uint8).reshape(3, 2), np.array([[9, 8]], np.uint8)]
    scale = np.ones((4, 2, 1), np.float16)
    with WeightStore(tmp_path / "spool") as store:
        store.add("odd", "int8", (1, 3), -1, {"values": [np.ones((1, 3), np.int8)]})
        store.add("a", "int4", (4, 4), 2, {"values": blocks, "scale": [scale]})
        store.add_vector("norm", np.ones(3, np.float32))
        store.freeze()
        stored = store.tensors["a"]
        np.testing.assert_array_equal(store.array(stored.values), np.concatenate(blocks))
        assert stored.values.offset_bytes % 64 == 0
        assert stored.scale is not None
        np.testing.assert_array_equal(store.array(stored.scale), scale)
        assert not store.array(stored.values).flags.writeable
        assert store.vector("norm").tolist() == [1, 1, 1]
    assert not (tmp_path / "spool").exists()


def test_the_spool_is_gone_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyError), WeightStore(tmp_path / "spool") as store:
        store.add("a", "fp16", (1, 1), -1, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_ctrl_c_ends_it_as_ctrl_c(tmp_path: Path) -> None:
    """A file whose closing was interrupted cannot be closed once more, and says so."""

    def write() -> None:
        with WeightStore(tmp_path / "spool") as store:
            store.add("a", "fp16", (1, 1), -1, {"values": [np.ones((1, 1), np.float16)]})
            store.freeze()

    assert strike_each(write, lambda: None) > 10
    assert list(tmp_path.iterdir()) == []


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    store = WeightStore(tmp_path / "spool")
    store.close()
    store.close()


def test_parts_need_not_be_contiguous(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float16).reshape(3, 4).T
    with WeightStore(tmp_path / "spool") as store:
        store.add("a", "fp16", (4, 3), -1, {"values": [array]})
        store.freeze()
        np.testing.assert_array_equal(store.array(store.tensors["a"].values), array)
        del array


def test_a_tied_head_shares_the_embedding(tmp_path: Path) -> None:
    with WeightStore(tmp_path / "spool") as store:
        store.add("e", "fp16", (2, 2), -1, {"values": [np.ones((2, 2), np.float16)]})
        store.freeze()
        assert store.embedding("e") is store.linear("e")


def test_the_graph_reads_the_file_and_not_a_copy(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.float16).reshape(8, 8)
    with WeightStore(tmp_path / "spool") as store:
        store.add("e", "fp16", (8, 8), -1, {"values": [values]})
        store.freeze()
        ov = import_openvino()
        constant = store.linear("e").get_node().input_value(0).get_node()
        assert constant.get_friendly_name() == "e"
        start = store.array(store.tensors["e"].values).__array_interface__["data"][0]
        assert constant.get_tensor_view().data.__array_interface__["data"][0] == start
        del ov, constant


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_zero_points_of_four_bits_are_two_in_a_byte(tmp_path: Path, num_groups: int) -> None:
    """As OpenVINO reads them, also where their number is odd."""
    ov = import_openvino()
    zero = (np.arange(3 * num_groups, dtype=np.uint8) * 5 % 16).reshape(3, num_groups, 1)
    values = np.zeros((3, num_groups), np.uint8)  # all weights are 0 - zero point
    parts = {"values": [values], "scale": [np.ones(zero.shape, np.float16)], "zero_point": [zero]}
    with WeightStore(tmp_path / "spool") as store:
        store.add("a", "int4", (3, 2 * num_groups), 2, parts)
        store.freeze()
        model = ov.Model([ov.opset15.result(store.linear("a"))], [])
        found = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0]
        np.testing.assert_array_equal(found, -np.repeat(zero[:, :, 0], 2, axis=1).astype(float))
        del model
