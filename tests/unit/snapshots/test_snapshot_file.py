"""Saving and loading: what a snapshot belongs to, what it replaces, and what a kill leaves."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_edge.errors import (
    ContextFullError,
    EdgeError,
    PackageError,
    ResourceError,
    UsageError,
)
from qwen_edge.runtime.backends.backend import CacheSnapshot
from qwen_edge.runtime.manifest import DeviceSettings, FileFacts, Manifest
from qwen_edge.runtime.snapshots import (
    SnapshotBinding,
    bind_package,
    load_snapshot,
    save_snapshot,
)

ROOT = Path(__file__).parents[3]
SAMPLE = Manifest.from_bytes((ROOT / "tests" / "data" / "manifest.json").read_bytes())
CPU = DeviceSettings(
    "CPU", {"KV_CACHE_PRECISION": "u8", "PERFORMANCE_HINT": "LATENCY"}, 64, None, None, 16
)
BINDING = SnapshotBinding("mine", "a" * 64, {"engine": "OpenVINO 1", "device": "CPU"})
CACHE = CacheSnapshot(
    kind="openvino",
    vocab_size=64,
    token_ids=(5, 6, 7),
    arrays=(np.array([1, 1, 1], np.uint8), np.ones((1, 2, 3, 4), np.float32)),
    settings={"KV_CACHE_PRECISION": "f32"},
)
CONVERSATION = {"messages": [{"role": "user", "content": "Grüße 👋"}], "system": None}


def save(path: Path, cache: CacheSnapshot = CACHE, **options: Any) -> Path:
    return save_snapshot(path, cache, **({"binding": BINDING} | options)).path


def load(path: Path, binding: SnapshotBinding = BINDING, max_tokens: int = 100) -> Any:
    return load_snapshot(path, binding=binding, max_tokens=max_tokens)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = save_snapshot(tmp_path / "a", CACHE, binding=BINDING, conversation=CONVERSATION)
    assert saved.num_tokens == 3
    assert saved.num_bytes == (tmp_path / "a").stat().st_size
    loaded = load(tmp_path / "a")
    assert loaded.conversation == CONVERSATION
    assert loaded.cache.token_ids == CACHE.token_ids
    assert (loaded.cache.kind, loaded.cache.vocab_size) == ("openvino", 64)
    assert loaded.cache.settings == CACHE.settings
    for found, expected in zip(loaded.cache.arrays, CACHE.arrays, strict=True):
        assert np.array_equal(found, expected)
        assert not found.flags.writeable


def test_cache_without_arrays_and_without_a_conversation(tmp_path: Path) -> None:
    save(tmp_path / "a", CacheSnapshot("fake", 64, (1, 2)))
    loaded = load(tmp_path / "a")
    assert (loaded.cache.token_ids, loaded.cache.arrays) == ((1, 2), ())
    assert loaded.conversation is None
    save(tmp_path / "b", CacheSnapshot("fake", 64, ()))
    assert load(tmp_path / "b").cache.token_ids == ()


def test_same_snapshot_is_the_same_bytes(tmp_path: Path) -> None:
    assert save(tmp_path / "a").read_bytes() == save(tmp_path / "b").read_bytes()


@pytest.mark.trust("T-PKG-14")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"package_hash": "b" * 64}, r"belongs to the package 'mine' \(aaaaaaaaaaaa\)"),
        (
            {"settings": {"engine": "OpenVINO 2", "device": "CPU"}},
            "made with engine OpenVINO 1, and here that is OpenVINO 2",
        ),
        (
            {"settings": {**BINDING.settings, "KV_CACHE_PRECISION": "u8"}},
            "KV_CACHE_PRECISION not set, and here that is u8",
        ),
        ({"settings": {"engine": "OpenVINO 1"}}, "device CPU, and here that is not set"),
    ],
    ids=["package", "engine", "setting", "less"],
)
def test_snapshot_of_something_else_says_of_what(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    save(tmp_path / "a")
    with pytest.raises(UsageError, match=words) as caught:
        load(tmp_path / "a", dataclasses.replace(BINDING, **change))
    assert "start a new conversation" in caught.value.fix


def test_ids_alone_do_not_depend_on_settings(tmp_path: Path) -> None:
    save(tmp_path / "a", CacheSnapshot("openvino-static", 64, (1, 2)))
    other = dataclasses.replace(BINDING, settings={})
    assert load(tmp_path / "a", other).cache.token_ids == (1, 2)


def test_snapshot_that_is_longer_than_the_context(tmp_path: Path) -> None:
    save(tmp_path / "a")
    with pytest.raises(ContextFullError, match="has 3 tokens, but the context holds 2"):
        load(tmp_path / "a", max_tokens=2)


def test_snapshot_of_too_many_bytes_per_token(tmp_path: Path) -> None:
    wide = dataclasses.replace(CACHE, arrays=(np.zeros(80_000_000, np.uint8),))
    save(tmp_path / "a", wide)
    small = dataclasses.replace(BINDING, max_token_bytes=8)
    with pytest.raises(PackageError, match=r"has 80\.0 MB; a conversation of this model takes"):
        load(tmp_path / "a", small)


@pytest.mark.trust("T-PKG-14")
def test_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    save(tmp_path / "a", dataclasses.replace(CACHE, token_ids=(1, 2, 64)))
    with pytest.raises(PackageError, match="ids outside 0 to 63"):
        load(tmp_path / "a")


def test_only_snapshots_are_replaced(tmp_path: Path) -> None:
    for name, content in (("text", b"precious"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match="exists and is no snapshot"):
        save(tmp_path / "text")
    assert (tmp_path / "text").read_bytes() == b"precious"
    save(tmp_path / "empty")
    save(tmp_path / "empty", dataclasses.replace(CACHE, token_ids=(1, 1, 1)))
    assert load(tmp_path / "empty").cache.token_ids == (1, 1, 1)
    with pytest.raises(UsageError, match="is a folder"):
        save(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        save(tmp_path / "nowhere" / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "text"]


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), b"x"], ids=["set", "nan", "bytes"])
def test_conversation_that_is_no_plain_data(tmp_path: Path, value: object) -> None:
    with pytest.raises(UsageError, match="The conversation cannot be saved"):
        save(tmp_path / "a", conversation={"value": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_failure_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException
) -> None:
    save(tmp_path / "a")
    before = (tmp_path / "a").read_bytes()

    def fail(*_: object) -> None:
        raise error

    if moment == "write":
        target = "qwen_edge.runtime.snapshots.snapshot_file.write_container"
        monkeypatch.setattr(target, fail)
    else:
        monkeypatch.setattr(os, moment, fail)
    with pytest.raises((ResourceError, KeyboardInterrupt)) as caught:
        save(tmp_path / "a", dataclasses.replace(CACHE, token_ids=(1, 1, 1)))
    if isinstance(caught.value, EdgeError):
        assert "filled up" in caught.value.problem
    assert (tmp_path / "a").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


CHILD = """
import os, sys, time
from pathlib import Path
import numpy as np
from qwen_edge.runtime.backends.backend import CacheSnapshot
from qwen_edge.runtime.snapshots import SnapshotBinding, save_snapshot

def wait(*_):
    print("waiting", flush=True)
    time.sleep(60)

setattr(os, sys.argv[2], wait)
cache = CacheSnapshot("openvino", 64, (9,), (np.zeros((1, 1, 1, 1 << 20), np.float32),))
save_snapshot(Path(sys.argv[1]), cache, binding=SnapshotBinding("mine", "a" * 64))
"""


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_kill_while_saving_leaves_the_earlier_snapshot(tmp_path: Path, moment: str) -> None:
    path = save(tmp_path / "a")
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), moment], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        child.kill()
    assert load(path).cache.token_ids == (5, 6, 7)
    (left,) = [entry for entry in tmp_path.iterdir() if entry != path]
    assert left.name.startswith(".a.")
    save(path)
    assert left.exists()  # its writer may be at work still
    old_s = time.time() - 7200
    os.utime(left, (old_s, old_s))
    save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


# What a package's snapshots are bound to.


def bind(manifest: Manifest = SAMPLE, settings: DeviceSettings = CPU) -> SnapshotBinding:
    return bind_package(manifest, "openvino", settings)


def with_file(name: str) -> Manifest:
    return dataclasses.replace(SAMPLE, files={**SAMPLE.files, name: FileFacts(1, "f" * 64)})


@pytest.mark.parametrize(
    "name", ["openvino_model.bin", "openvino_model.xml", "tokenizer.json", "chat_template.jinja"]
)
def test_binding_names_the_files_that_decide(name: str) -> None:
    assert bind(with_file(name)).package_hash != bind().package_hash


@pytest.mark.parametrize("name", ["README.md", "warm_prompt_openvino.bin", "model.onnx"])
def test_binding_leaves_the_others_out(name: str) -> None:
    assert bind(with_file(name)).package_hash == bind().package_hash


def test_binding_has_the_settings_that_change_numbers() -> None:
    settings = bind().settings
    assert settings["engine"].startswith("OpenVINO 20")
    assert settings["device"] == "CPU"
    assert settings["KV_CACHE_PRECISION"] == "u8"
    assert "PERFORMANCE_HINT" not in settings
    faster = dataclasses.replace(CPU, properties={**CPU.properties, "INFERENCE_NUM_THREADS": 4})
    assert bind(settings=faster) == bind()
    other = dataclasses.replace(CPU, properties={"KV_CACHE_PRECISION": "f16"})
    assert bind(settings=other) != bind()


def test_binding_bounds_the_size() -> None:
    model = SAMPLE.model
    values = 2 * model.num_layers * model.num_kv_heads * model.head_dim
    assert bind().max_token_bytes == 12 * values
