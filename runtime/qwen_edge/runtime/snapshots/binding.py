"""What a snapshot belongs to: the files, the engine and the settings its numbers come from.

A cache is of use only where the same tokens would have given the same numbers. So a snapshot
names the files that decide over ids and cache, not the manifest: a package may list a snapshot
that was made with it, and the two cannot contain each other's hashes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from qwen_edge.runtime.devices.providers import import_onnxruntime
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.manifest import (
    CHAT_TEMPLATE,
    FORMAT_FILES,
    TOKENIZER_JSON,
    DeviceSettings,
    FormatName,
    Manifest,
)

# These change the speed, and at most the order of sums.
_SPEED_ONLY = frozenset(
    {
        "ENABLE_CPU_PINNING",
        "ENABLE_CPU_RESERVATION",
        "ENABLE_HYPER_THREADING",
        "INFERENCE_NUM_THREADS",
        "NUM_STREAMS",
        "PERFORMANCE_HINT",
        "SCHEDULING_CORE_TYPE",
        "intra_op_num_threads",
    }
)
_LIMITS_BYTES = 8  # two float32 for each group of values; a group has a value at least


@dataclass(frozen=True)
class SnapshotBinding:
    """What a snapshot is made with, or must have been made with.

    Args:
        package: The package's name, for messages.
        package_hash: SHA-256 (64 hex digits) that names the files; see `hash_files`.
        settings: Engine, version, device and the settings that change numbers.
        max_token_bytes: Most bytes the cache of one token takes in any form. A larger file is
            refused before it is read.
    """

    package: str
    package_hash: str
    settings: Mapping[str, str] = field(default_factory=dict)
    max_token_bytes: int = 1 << 20


def bind_package(manifest: Manifest, fmt: FormatName, settings: DeviceSettings) -> SnapshotBinding:
    """Return what snapshots of an opened package belong to.

    Args:
        manifest: The package's; its `files` list at least those of the format.
        fmt: Which of its models runs.
        settings: What it runs with.

    Raises:
        MissingExtraError: The format's engine is not installed.
    """
    if fmt == "openvino":
        engine = f"OpenVINO {import_openvino().__version__}"
    else:
        engine = f"ONNX Runtime {import_onnxruntime().__version__}"
    told = {
        name: str(value) for name, value in settings.properties.items() if name not in _SPEED_ONLY
    }
    model = manifest.model
    num_values = 2 * model.num_layers * model.num_kv_heads * model.head_dim
    return SnapshotBinding(
        package=manifest.name,
        package_hash=hash_files(manifest, fmt),
        settings={"engine": engine, "device": settings.device, **dict(sorted(told.items()))},
        max_token_bytes=num_values * (4 + _LIMITS_BYTES),
    )


def hash_files(manifest: Manifest, fmt: FormatName) -> str:
    """Return the SHA-256 that names the files which decide over ids and cache.

    These are the model in one format, the tokenizer and the chat template, each by size and
    hash, as the manifest has them.
    """
    names = (*FORMAT_FILES[fmt], TOKENIZER_JSON, CHAT_TEMPLATE)
    facts = {
        name: [manifest.files[name].size_bytes, manifest.files[name].sha256]
        for name in names
        if name in manifest.files
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode("ascii")).hexdigest()
