"""Targets that read what programs keep beside packages: records, lists, tuned settings."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from lab import BrokenLawError, Lab, Reader, Target
from mutate import change_bytes, change_json

from qwen_edge.runtime.devices.compile_cache import (
    discard_cache_folder,
    prepare_cache_folder,
    seal_cache_folder,
)
from qwen_edge.runtime.manifest import DeviceSettings, FileFacts, Manifest
from qwen_edge.runtime.package import TUNED_NAME, read_manifest
from qwen_edge.runtime.records import Record, read_finding, read_stamps
from qwen_edge.runtime.snapshots.binding import hash_files
from qwen_edge.runtime.tuning.machine import describe_engine, describe_machine
from qwen_edge.runtime.tuning.result import (
    Exactness,
    Speed,
    Trial,
    Tuned,
    TunedFile,
    WorkloadFacts,
)
from qwen_edge.runtime.tuning.stored import apply_tuned


def _record(lab: Lab) -> Record:
    folder = lab.work / "recorded"
    folder.mkdir(exist_ok=True)
    (folder / "a").write_bytes(b"a")
    os.utime(folder / "a", (1, 1))
    return Record("checks", folder, {"engine": "1"}, read_stamps(folder, ("a",)))


def _read_record(lab: Lab) -> Reader:
    record = _record(lab)
    sealed = json.loads(record.text({}))

    def read(data: bytes) -> None:
        path = record.path(lab.work)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        found = read_finding(record, lab.work)
        if found is not None:
            content = json.loads(data)
            content.pop("finding", None)
            if content != sealed:
                raise BrokenLawError("a record of something else was believed")

    return read


def _read_cache_list(lab: Lab) -> Reader:
    """Return a reader of the list of compiled files: one that is not as listed is not loaded."""
    facts = {"driver": "1"}

    def prepare() -> Path:
        folder = prepare_cache_folder(lab.work, "a" * 64, "NPU", facts)
        if folder is None:
            raise BrokenLawError("a damaged list keeps what is compiled from being kept")
        return folder

    private = prepare()
    (private / "x.blob").write_bytes(b"compiled")
    seal_cache_folder(private)
    sealed = prepare()

    def read(data: bytes) -> None:
        (sealed / "files.json").write_bytes(data)
        folder = prepare()
        if folder == sealed and json.loads(data) != {"x.blob": _BLOB_HASH}:
            raise BrokenLawError("a list of something else was believed")
        discard_cache_folder(folder)

    return read


_BLOB_HASH = hashlib.sha256(b"compiled").hexdigest()


def _tuned(manifest: Manifest) -> Tuned:
    exact, speed = Exactness(0.01, 0.02, 0.1, 0.99, 900), Speed(90.0, 9.0, 5.0)
    trial = Trial({"KV_CACHE_PRECISION": "u8"}, "faster", "it is", 1.2, 1.1, 1.3, 3, speed, exact)
    return Tuned(
        "demo", hash_files(manifest, "openvino"), "CPU", describe_machine("CPU"), describe_engine(),
        "1.0", "2026-11-22", WorkloadFacts("chat", 512, 128), 0.05,
        {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64, "prefill_chunk_tokens": 256}, 1.3, speed, speed,
        exact, exact, False, (trial,), ("x",), 9.0,
    )  # fmt: skip


def _read_tuned(lab: Lab) -> Reader:
    manifest = read_manifest(lab.package)
    files = {**manifest.files, TUNED_NAME: FileFacts(1, "0" * 64)}
    manifest = dataclasses.replace(manifest, files=files)
    settings: DeviceSettings = next(one for one in manifest.devices if one.device == "CPU")

    def read(data: bytes) -> None:
        folder = lab.write(f"tuned/{TUNED_NAME}", data).parent
        changed, _ = apply_tuned(folder, manifest, settings)
        if changed.prefill_chunk_tokens < 1 or changed.device != settings.device:
            raise BrokenLawError(f"these settings were believed: {changed}")

    return read


def _tuned_seeds(lab: Lab) -> Sequence[bytes]:
    return [TunedFile((_tuned(read_manifest(lab.package)),)).to_bytes()]


def _finding_seeds(lab: Lab) -> list[bytes]:
    return [_record(lab).text({"problem": "it never ends"}), _record(lab).text()]


TARGETS = (
    Target("record", _finding_seeds, (change_json, change_bytes), _read_record, 500),
    Target(
        "cache-list",
        lambda lab: [json.dumps({"x.blob": _BLOB_HASH}).encode()],
        (change_json, change_bytes),
        _read_cache_list,
        500,
    ),
    Target("tuned", _tuned_seeds, (change_json, change_json, change_bytes), _read_tuned, 1_000),
)
