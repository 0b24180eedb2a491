"""Targets that read packages, and what programs keep beside them: sessions, records, results."""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from lab import Lab, Reader, Target, package_file
from mutate import change_bytes, change_json
from mutate_xml import change_xml, change_xml_tree

from qwen_edge.runtime.backends.backend import CacheSnapshot
from qwen_edge.runtime.backends.ir_file import check_ir
from qwen_edge.runtime.backends.onnx_file import read_onnx
from qwen_edge.runtime.fake_model import make_fake_model
from qwen_edge.runtime.loading import load, load_batch
from qwen_edge.runtime.manifest import Manifest
from qwen_edge.runtime.package import (
    check_report,
    hash_file,
    read_manifest,
    verify_package,
    write_manifest,
)
from qwen_edge.runtime.saved_session import load_session
from qwen_edge.runtime.snapshots.binding import SnapshotBinding
from qwen_edge.runtime.snapshots.container import write_container
from qwen_edge.runtime.snapshots.snapshot_file import load_snapshot

_MODEL_XML, _MODEL_BIN = "openvino_model.xml", "openvino_model.bin"
_HOW: Any = {"device": "CPU", "backend": "openvino", "verify": "sizes", "warm_up": False}
_PREFIX = struct.Struct("<8sII32s")  # of a snapshot; see container.py


def reseal(folder: Path, manifest: Manifest, name: str) -> Manifest:
    """Write a manifest that lists a changed file as if it were the sealed one."""
    files = {**manifest.files, name: hash_file(folder / name)}
    changed = dataclasses.replace(manifest, files=files)
    write_manifest(folder, changed)
    return changed


def change_manifest(rng: Random, data: bytes) -> bytes:
    """Change a manifest and seal it again, as who means harm would."""
    changed = change_json(rng, data)
    try:
        content = json.loads(changed)
        content.pop("seal", None)
        text = _manifest_text(content)
        content["seal"] = hashlib.sha256(text).hexdigest()
        return _manifest_text(content)
    except (ValueError, TypeError, AttributeError, RecursionError):  # no object, or no JSON
        return changed


def _manifest_text(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


def _read_manifest(lab: Lab) -> Reader:
    folder = lab.copy_package()

    def read(data: bytes) -> None:
        (folder / "manifest.json").write_bytes(data)
        manifest = read_manifest(folder)
        manifest.to_bytes()
        check_report(verify_package(folder))

    return read


def _load_ir(lab: Lab, name: str) -> Reader:
    """Return a reader that loads a package whose IR was changed and sealed again."""
    folder = lab.copy_package()
    sealed = read_manifest(lab.package)

    def read(data: bytes) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(data)
        reseal(folder, sealed, name)
        with load(folder, **_HOW) as model:
            model.session().ask("Hi", max_new_tokens=2)

    return read


_SMALL_IR = b"""<?xml version="1.0"?>
<net name="decoder" version="11"><layers>
<layer id="0" name="c" type="Const" version="opset1">
<data element_type="f32" shape="2, 3" offset="8" size="24" />
<output><port id="0" precision="FP32"><dim>2</dim><dim>3</dim></port></output></layer>
<layer id="1" name="s" type="ReadValue" version="opset6">
<data variable_id="past" variable_type="f32" variable_shape="2,3" />
<input><port id="0"><dim>2</dim></port></input><output><port id="1" /></output></layer>
<layer id="2" name="i" type="If" version="opset8"><input><port id="0" /></input>
<then_body><layers><layer id="0" type="Result"><input /></layer></layers><edges /></then_body>
</layer></layers><edges>
<edge from-layer="0" from-port="0" to-layer="1" to-port="0" />
<edge from-layer="1" from-port="1" to-layer="2" to-port="0" /></edges></net>
"""


def _check_ir(lab: Lab) -> Reader:
    lab.write("small.bin", bytes(32))
    return lambda data: check_ir(lab.write("small.xml", data))


def _load_batched(lab: Lab) -> Reader:
    """Return a reader that loads such a package for many requests at a time."""
    folder = lab.copy_package()
    sealed = read_manifest(lab.package)

    def read(data: bytes) -> None:
        (folder / _MODEL_XML).unlink(missing_ok=True)
        (folder / _MODEL_XML).write_bytes(data)
        reseal(folder, sealed, _MODEL_XML)
        with load_batch(folder, cache_bytes=1 << 24, **_HOW) as model:
            model.ask("Hi", max_new_tokens=2)

    return read


def change_weights(rng: Random, data: bytes) -> bytes:
    """Cut or lengthen the file of weights, or fill a part of it with one byte."""
    if rng.random() < 0.5:
        return change_bytes(rng, data)
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice((8, 400, 70_000)))
    return data[:start] + bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * (stop - start) + data[stop:]


def _onnx_seeds(lab: Lab) -> list[bytes]:
    _make_onnx(lab)
    return [(lab.work / kind / "model.onnx").read_bytes() for kind in ("plain", "portable")]


def _make_onnx(lab: Lab) -> None:
    from lab import DEMO

    from qwen_edge.export.checkpoint import open_checkpoint
    from qwen_edge.export.compress import Compressor
    from qwen_edge.export.decoder import read_spec
    from qwen_edge.export.onnx_files import write_onnx_model
    from qwen_edge.export.weight_store import WeightStore
    from qwen_edge.profiles.recipe import load_recipe

    spec = read_spec(json.loads((DEMO / "config.json").read_bytes()))
    for kind in ("plain", "portable"):
        folder = lab.work / kind
        if folder.exists():
            continue
        folder.mkdir()
        with WeightStore(lab.work / f"{kind}-weights") as store:
            compressor = Compressor(open_checkpoint(DEMO), spec, load_recipe("int4"), store)
            compressor.compress_embeddings()
            for layer_index in range(spec.num_layers):
                compressor.compress_layer(layer_index)
            store.freeze()
            is_portable = kind == "portable"
            write_onnx_model(spec, store, folder, max_context_tokens=512, is_portable=is_portable)


def _read_onnx(lab: Lab) -> Reader:
    _make_onnx(lab)

    def read(data: bytes) -> None:
        path = lab.write("plain/model.onnx", data)
        read_onnx(path.parent)

    return read


# Snapshots and saved sessions

_ENGINE = {"engine": "OpenVINO 1", "device": "CPU"}
_BINDING = SnapshotBinding("demo", "a" * 64, _ENGINE)


def make_snapshot(conversation: object, binding: SnapshotBinding, cache: CacheSnapshot) -> bytes:
    """Return a snapshot's file with any text for its conversation."""
    import io

    stream = io.BytesIO()
    text = conversation if isinstance(conversation, bytes) else json.dumps(conversation).encode()
    ids = np.array(cache.token_ids, dtype=np.int32)
    facts = {
        "package": binding.package, "package_hash": binding.package_hash, "kind": cache.kind,
        "settings": dict(binding.settings), "vocab_size": cache.vocab_size,
        "engine_settings": dict(cache.settings), "num_tokens": len(cache.token_ids),
    }  # fmt: skip
    write_container(stream, [ids, np.frombuffer(text, np.uint8), *cache.arrays], facts)
    return stream.getvalue()


def _snapshot_seeds(lab: Lab) -> list[bytes]:
    arrays = (np.ones(5, np.uint8), np.zeros((2, 5, 4), np.float32), np.zeros((5, 2), np.uint16))
    cache = CacheSnapshot("openvino", 300, (1, 2, 3, 4, 5), arrays, {"precision": "f32"})
    return [make_snapshot({"messages": [], "system": []}, _BINDING, cache)]


def change_sealed(rng: Random, data: bytes) -> bytes:
    """Change a snapshot's header or arrays and make all of its hashes right again."""
    length = _PREFIX.unpack(data[: _PREFIX.size])[2]
    stop = _PREFIX.size + length
    header, body = data[_PREFIX.size : stop], data[stop:]
    if rng.random() < 0.6:
        header = change_json(rng, header)
    else:
        body = change_bytes(rng, body)
        content = json.loads(header)
        for entry in content["arrays"]:
            size = {"uint8": 1, "uint16": 2, "float16": 2}.get(entry["dtype"], 4)
            for count in entry["shape"]:
                size *= count
            part = body[entry["offset"] : entry["offset"] + size]
            entry["sha256"] = hashlib.sha256(part).hexdigest()
        header = json.dumps(content, sort_keys=True).encode()
    digest = hashlib.sha256(header).digest()
    return _PREFIX.pack(data[:8], 1, len(header), digest) + header + body


def _read_snapshot(lab: Lab) -> Reader:
    return lambda data: (
        load_snapshot(lab.write("snapshot", data), binding=_BINDING, max_tokens=64) and None
    )


_MESSAGES = {
    "system": [{"role": "system", "content": "Be kind."}],
    "messages": [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "clock", "arguments": {"a": 1}}}
        ]},
        {"role": "tool", "tool_call_id": "1", "content": "12:00"},
        {"role": "assistant", "content": "Noon."},
    ],
}  # fmt: skip


def _load_session(lab: Lab) -> Reader:
    """Return a reader of conversations in a snapshot that is otherwise as saved."""
    model = make_fake_model(["Hello."])
    session = model.session()
    session.ask("Hi")
    path = lab.work / "session"
    session.save(path)
    cache = model.backend.snapshot() if hasattr(model, "backend") else _cache_of(path, model)

    def read(data: bytes) -> None:
        path.write_bytes(make_snapshot(data, model.binding, cache))
        loaded = load_session(model, path, {})
        try:
            loaded.ask("And now?", max_new_tokens=4)
        finally:
            loaded.close()

    return read


def _cache_of(path: Path, model: Any) -> CacheSnapshot:
    return load_snapshot(path, binding=model.binding, max_tokens=4_096).cache


def _saved_seeds(lab: Lab) -> list[bytes]:
    """Return what a session with the demo model saves, in this process or one like it."""
    path = lab.work / "saved"
    with load(lab.package, **_HOW) as model:
        session = model.session()
        session.ask("Hello", max_new_tokens=4)
        session.save(path)
    return [path.read_bytes()]


def _load_saved(lab: Lab) -> Reader:
    """Return a reader that puts what is saved into a real engine's cache, and goes on."""
    model = load(lab.package, **_HOW)
    path = lab.work / "changed"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        session = model.load_session(path)
        session.ask("And then?", max_new_tokens=2)

    return read


def _session_seeds(lab: Lab) -> list[bytes]:
    return [json.dumps(_MESSAGES).encode()]


TARGETS = (
    Target(
        "manifest",
        package_file("manifest.json"),
        (change_manifest, change_manifest, change_bytes),
        _read_manifest,
        700,
    ),
    Target(
        "ir-xml",
        package_file(_MODEL_XML),
        (change_xml_tree, change_xml_tree, change_xml_tree, change_xml, change_bytes),
        lambda lab: _load_ir(lab, _MODEL_XML),
        80,
        ("T-PKG-06", "T-PKG-07"),
    ),
    Target(
        "ir-file",
        lambda lab: [_SMALL_IR],
        (change_xml_tree, change_xml, change_bytes),
        _check_ir,
        1_500,
        ("T-PKG-06", "T-PKG-07"),
    ),
    Target(
        "ir-batched",
        package_file(_MODEL_XML),
        (change_xml_tree,),
        _load_batched,
        12,
        ("T-PKG-06", "T-PKG-07"),
    ),
    Target(
        "ir-bin",
        package_file(_MODEL_BIN),
        (change_weights,),
        lambda lab: _load_ir(lab, _MODEL_BIN),
        15,
        ("T-PKG-06",),
    ),
    Target("onnx", _onnx_seeds, (change_bytes,), _read_onnx, 500),
    Target(
        "snapshot",
        _snapshot_seeds,
        (change_sealed, change_sealed, change_bytes),
        _read_snapshot,
        1_000,
        ("T-PKG-14",),
    ),
    Target(
        "session", _session_seeds, (change_json, change_bytes), _load_session, 700, ("T-PKG-14",)
    ),
    Target("saved-cache", _saved_seeds, (change_sealed,), _load_saved, 150, ("T-PKG-14",)),
)
