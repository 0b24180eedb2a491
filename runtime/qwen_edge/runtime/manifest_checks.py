"""What is wrong with a manifest whose keys and types are right: names, hashes, ranges, ids.

`Manifest.from_json` asks; every problem is named at once.
"""

import re

from qwen_edge.profiles.device import MAX_CONTEXT_TOKENS
from qwen_edge.runtime.files.plain_name import check_plain_name
from qwen_edge.runtime.manifest import (
    FORMAT_FILES,
    FORMAT_VERSION,
    MANIFEST_NAME,
    MODEL_ONNX,
    MODEL_XML,
    REQUIRED_FILES,
    Manifest,
)
from qwen_edge.runtime.schema import to_json

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def find_problems(manifest: Manifest) -> list[str]:
    """Return what is wrong with values whose types are right.

    Args:
        manifest: As read.
    """
    problems = []
    if not 1 <= manifest.format_version <= FORMAT_VERSION:
        problems.append(f"'format_version' is {manifest.format_version}, expected 1 or more")
    problems += _file_problems(manifest)
    problems += _range_problems(manifest)
    vocab_size = manifest.model.vocab_size
    ids = {
        "golden.prompt_ids": manifest.golden.prompt_ids,
        "golden.token_ids": manifest.golden.token_ids,
        "generation.eos_token_ids": manifest.generation.eos_token_ids,
        "chat.think_open_id": (manifest.chat.think_open_id or 0,),
        "chat.think_close_id": (manifest.chat.think_close_id or 0,),
    }
    for key, token_ids in ids.items():
        outside = [token_id for token_id in token_ids if not 0 <= token_id < vocab_size]
        if outside:
            problems.append(f"{key!r} holds {outside[0]}, expected ids below {vocab_size:,}")
    return problems


def _file_problems(manifest: Manifest) -> list[str]:
    problems = [
        f"'files' does not list {name!r}" for name in REQUIRED_FILES if name not in manifest.files
    ]
    problems += _format_problems(manifest)
    folded: dict[str, str] = {}
    for name in manifest.files:
        reason = check_plain_name(name)
        if reason or name.lower() == MANIFEST_NAME:
            problems.append(
                f"the name {name[:80]!r} in 'files' {reason or 'is the manifest itself'}"
            )
        other = folded.setdefault(name.lower(), name)
        if other != name:  # one file on Windows and macOS
            problems.append(f"{other!r} and {name!r} in 'files' differ in case only")
    hashed = {"files": manifest.files, "source.files": manifest.source.files}
    for index, adapter in enumerate(manifest.source.adapters):
        hashed[f"source.adapters[{index}].files"] = adapter.files
    for key, files in hashed.items():
        for name, facts in files.items():
            if facts.size_bytes < 0:
                problems.append(f"{key!r} gives {name[:80]!r} {facts.size_bytes} bytes")
            if not _SHA256.fullmatch(facts.sha256):
                problems.append(f"{key!r} gives {name[:80]!r} no SHA-256 of 64 hex digits")
    return problems


def _format_problems(manifest: Manifest) -> list[str]:
    """Return which model files are missing: one format at least, and none by halves."""
    problems = []
    if not manifest.formats:
        problems.append(f"'files' lists no model, expected {MODEL_XML!r} or {MODEL_ONNX!r}")
    for names in FORMAT_FILES.values():
        listed = [name in manifest.files for name in names]
        if any(listed) and not all(listed):
            have, lack = (names[listed.index(value)] for value in (True, False))
            problems.append(f"'files' lists {have!r} but not {lack!r}")
    if (manifest.onnx is None) == (MODEL_ONNX in manifest.files):
        problems.append(
            f"'files' lists {MODEL_ONNX!r}, but 'onnx' is null"
            if manifest.onnx is None
            else f"'onnx' is given, but 'files' does not list {MODEL_ONNX!r}"
        )
    return problems


def _range_problems(manifest: Manifest) -> list[str]:
    """Return the counts that are below one, and device lists without a device."""
    counts: dict[str, int | None] = {
        f"model.{key}": value
        for key, value in to_json(manifest.model).items()
        if isinstance(value, int)
    }
    counts["generation.max_new_tokens"] = manifest.generation.max_new_tokens
    for index, settings in enumerate(manifest.devices):
        limits = to_json(settings)
        for key in ("max_context_tokens", "max_prompt_tokens", "min_response_tokens"):
            counts[f"devices[{index}].{key}"] = limits[key]
        counts[f"devices[{index}].prefill_chunk_tokens"] = settings.prefill_chunk_tokens
    if manifest.onnx is not None:
        counts["onnx.opset"] = manifest.onnx.opset
        counts["onnx.max_context_tokens"] = manifest.onnx.max_context_tokens
        counts["onnx.prefill_chunk_tokens"] = manifest.onnx.prefill_chunk_tokens
    problems = [
        f"{key!r} is {value}, expected 1 or more"
        for key, value in counts.items()
        if value is not None and value < 1
    ]
    if manifest.onnx is not None:
        for key in ("max_context_tokens", "prefill_chunk_tokens"):
            value = getattr(manifest.onnx, key)
            if value > MAX_CONTEXT_TOKENS:
                problems.append(f"'onnx.{key}' is {value}, expected {MAX_CONTEXT_TOKENS} or less")
    if not manifest.devices and MODEL_XML in manifest.files:
        problems.append("'devices' is empty, expected at least one device")
    return problems
