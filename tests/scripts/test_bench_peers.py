"""What compares this runtime with others: ratios, who is left out, and the file for llama.cpp."""

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
DEMO = ROOT / "export" / "qwen_edge" / "export" / "demo"


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path() -> Iterator[None]:
    """Let the scripts import each other, as they do when one is run."""
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    """The comparison."""
    return importlib.import_module("bench_peers")


@pytest.fixture(scope="module")
def gguf_maker() -> ModuleType:
    """The writer of the file."""
    return importlib.import_module("make_random_gguf")


def arguments(package: Path, **others: object) -> argparse.Namespace:
    """Return a command line."""
    given = {"onnx_package": None, "gguf": None, "prompt_tokens": 10, "new_tokens": 5}
    return argparse.Namespace(package=package, **{**given, **others})


def test_ratios_are_of_the_rounds_both_were_in(peers: ModuleType) -> None:
    """The machine was three times as slow in the second round, and the other died in the third."""
    ours = peers.Peer("qwen-edge", cold_s=[4.0], answers={0: (1, 2), 1: (3, 6), 2: (9, 9)})
    other = peers.Peer("other", cold_s=[2.0], answers={0: (2, 3), 1: (6, 9)})
    expected = {"prefill": 2.0, "decode": 1.5, "end_to_end": 1.667, "cold_start": 0.5}
    assert peers.compare(ours, other) == expected
    assert peers.compare(ours, peers.Peer("other", problem="not installed")) == {}


def test_medians_are_told_with_the_problem_that_came_later(peers: ModuleType) -> None:
    peer = peers.Peer("qwen-edge", answers={0: (1, 2), 1: (2, 4)}, problem="ended with 1")
    told = peers.describe(peer, arguments(DEMO))
    assert told["prefill_tokens_per_s"] == pytest.approx(10 / 1.5, abs=0.01)
    assert told["decode_tokens_per_s"] == pytest.approx(4 / 3, abs=0.001)
    assert (told["end_to_end_s"], told["rounds"]) == (4.5, 2)
    assert (told["cold_start_s"], told["problem"]) == (None, "ended with 1")
    unmeasured = peers.Peer("other", problem="other is not installed")
    assert peers.describe(unmeasured, arguments(DEMO)) == {"problem": "other is not installed"}


def test_each_round_begins_with_another_program(peers: ModuleType) -> None:
    assert [peers.rotate("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert sorted(peers.rotate("abc", 5)) == ["a", "b", "c"]


def test_who_is_not_there_is_reported_and_not_an_error(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "llama_cpp" else object())
    names = ["qwen-edge", "llama.cpp", "onnxruntime-genai"]
    found = peers.find_peers(arguments(DEMO, peers=names), tmp_path)
    assert [peer.problem for peer in found] == [
        None,
        "llama-cpp-python is not installed",
        "the package has no ONNX model, and no --onnx-package was given",
    ]


def test_a_program_that_ends_is_told_of_with_its_last_word(
    peers: ModuleType, tmp_path: Path
) -> None:
    peer = peers.Peer("qwen-edge", tmp_path)
    ends = pytest.raises(peers.PeerError, match=r"ended with 1: .*manifest\.json")
    with peers.opened(peer, 1, 64) as worker, ends:
        worker.answer([1], 2)


def test_every_tensor_has_a_name_and_the_type_llama_cpp_gives_it(gguf_maker: ModuleType) -> None:
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    spec = gguf_maker.read_spec(config)
    names = gguf_maker.gguf_names(spec)
    assert len(names) == len(spec.tensor_shapes()) == 2 + 11 * spec.num_layers
    kinds = {name: gguf_maker.choose_type(name, shape) for name, shape in names.items()}
    assert kinds["token_embd.weight"] == "Q6_K"
    assert kinds["blk.0.attn_q_norm.weight"] == "F32"
    assert {kinds[f"blk.3.{part}.weight"] for part in ("ffn_down", "attn_v")} == {"Q4_0"}
    assert gguf_maker.choose_type("token_embd.weight", (10, 128)) == "Q8_0"
    with pytest.raises(SystemExit, match="rows of 40"):
        gguf_maker.choose_type("blk.0.ffn_up.weight", (10, 40))


@pytest.mark.parametrize(("kind", "row_bytes"), [("Q4_0", 288), ("Q8_0", 544), ("Q6_K", 420)])
def test_random_blocks_are_as_large_as_weights_are(
    gguf_maker: ModuleType, kind: str, row_bytes: int
) -> None:
    """What llama.cpp reads of them is spread like a model's weights, and finite."""
    tensor = gguf_maker.make_tensor(kind, (64, 512), np.random.default_rng(0))
    assert tensor.shape == (64, row_bytes)
    if kind == "Q6_K":
        assert tensor.reshape(-1, 210)[:, 208:].view("<f2").max() < 1e-3
        return
    blocks = tensor.reshape(-1, row_bytes // 16)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    values = blocks[:, 2:].view(np.int8).astype(np.float32)
    if kind == "Q4_0":
        values = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1) - np.float32(8)
    assert float((values * scales).std()) == pytest.approx(0.02, rel=0.05)
