"""What `manifest.json` of a model package says: the contract between export and runtime.

One frozen dataclass per object of the file; field names are the keys. The text is the same
for the same facts (sorted keys, no time, host or path), so equal exports are equal bytes.
This module knows no folder and no file; read `package.py` for those.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen_edge.errors import PackageError, join_problems
from qwen_edge.profiles.device import MAX_CONTEXT_TOKENS
from qwen_edge.runtime.devices.npu_verdict import NpuVerdict
from qwen_edge.runtime.plain_name import check_plain_name
from qwen_edge.runtime.schema import SchemaError, parse_json, read_dataclass, to_json

FORMAT = "qwen-edge-package"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"

MODEL_XML = "openvino_model.xml"
MODEL_BIN = "openvino_model.bin"
MODEL_ONNX = "model.onnx"
MODEL_ONNX_DATA = "model.onnx.data"
ONNX_OPSET = 21
"""Version of the standard operators: the first with int4, known to GPU and NPU providers."""
TOKENIZER_JSON = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
REQUIRED_FILES = ("config.json", TOKENIZER_JSON)
"""Names without which no package can be run; a manifest must list them, and one format."""
FORMAT_FILES: Mapping[str, tuple[str, str]] = {
    "openvino": (MODEL_XML, MODEL_BIN),
    "onnx": (MODEL_ONNX, MODEL_ONNX_DATA),
}
"""The files of the model itself, graph and weights, in each format."""

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)

FormatName = Literal["openvino", "onnx"]
FORMAT_ENGINES: Mapping[FormatName, str] = {"openvino": "OpenVINO", "onnx": "ONNX Runtime"}
"""What runs each format, as a person knows it."""
PropertyValue = str | bool | int
"""Value of an OpenVINO property, as the engine's own documentation writes it."""


@dataclass(frozen=True)
class FileFacts:
    """Size and SHA-256 (64 lower-case hex digits) of one file's bytes."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ModelFacts:
    """Shape of the network, from its `config.json`."""

    architecture: str
    model_type: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_parameters: int
    max_context_tokens: int


@dataclass(frozen=True)
class SourceFacts:
    """Where the checkpoint came from; `revision` is a commit, never a branch."""

    kind: Literal["hub", "folder", "embedded"]
    id: str
    revision: str | None
    license: str
    license_link: str | None
    base_model: str | None
    files: Mapping[str, FileFacts]


@dataclass(frozen=True)
class ProfileFacts:
    """Names of the profile and of the recipe the export was asked for."""

    name: str
    recipe: str


@dataclass(frozen=True)
class RecipeFacts:
    """The recipe's settings as they were applied, without their reasons."""

    name: str
    weights: Literal["fp16", "int8", "int4"]
    symmetric: bool
    group_size: int
    awq: bool
    embedding: Literal["fp16", "int8"]
    head: Literal["fp16", "int8"]


@dataclass(frozen=True)
class GroupSizeFallback:
    """A tensor whose row width is no multiple of the recipe's group size."""

    tensor: str
    width: int
    group_size: int


@dataclass(frozen=True)
class WeightsFacts:
    """What compression did. `bits` counts parameters by the bits of one: {"4": ..., "8": ...}.

    `weights_bytes` is the size of the weights' files, of all formats together.
    """

    num_tensors: int
    weights_bytes: int
    bits: Mapping[str, int]
    group_size_fallbacks: tuple[GroupSizeFallback, ...]
    relative_rms_error: float | None


@dataclass(frozen=True)
class DeviceSettings:
    """Tested settings for one device; the last three limits are the profile's.

    `properties` go to `compile_model` as they are. Prompt and response limits are those of
    devices with fixed shapes (NPU), else None.
    """

    device: str
    properties: Mapping[str, PropertyValue]
    max_context_tokens: int
    max_prompt_tokens: int | None
    min_response_tokens: int | None
    prefill_chunk_tokens: int


@dataclass(frozen=True)
class OnnxFacts:
    """How the ONNX model was written, and what it was tested with.

    `is_portable` means standard operators only. `max_context_tokens` is the number of positions
    its rotary tables hold. `accuracy_level` is MatMulNBits': 1 computes in float32, 4 rounds
    activations to int8 in blocks.
    """

    opset: int
    is_portable: bool
    max_context_tokens: int
    prefill_chunk_tokens: int
    accuracy_level: Literal[1, 4]


@dataclass(frozen=True)
class GenerationFacts:
    """The model's own defaults, from its `generation_config.json`."""

    do_sample: bool
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    eos_token_ids: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class ChatFacts:
    """Whether the model thinks, and the ids that open and close a thinking block."""

    thinking: Literal["switchable", "always", "never"]
    think_open_id: int | None
    think_close_id: int | None


@dataclass(frozen=True)
class GoldenTokens:
    """A prompt and the greedy tokens the package gave to it when it was sealed."""

    prompt: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    properties: Mapping[str, PropertyValue]


@dataclass(frozen=True)
class Manifest:
    """All of `manifest.json`. `files` names every other file of the folder.

    `devices` are OpenVINO's and belong to the IR; `onnx` is None where there is no ONNX model.
    """

    name: str
    model: ModelFacts
    source: SourceFacts
    profile: ProfileFacts
    recipe: RecipeFacts
    weights: WeightsFacts
    devices: tuple[DeviceSettings, ...]
    generation: GenerationFacts
    chat: ChatFacts
    golden: GoldenTokens
    tools: Mapping[str, str]
    files: Mapping[str, FileFacts]
    onnx: OnnxFacts | None = None
    npu: NpuVerdict | None = None
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def formats(self) -> tuple[FormatName, ...]:
        """Formats the package holds the model in, the one to be preferred first."""
        found: list[FormatName] = []
        if MODEL_XML in self.files:
            found.append("openvino")
        if MODEL_ONNX in self.files:
            found.append("onnx")
        return tuple(found)

    @classmethod
    def from_json(cls, data: object) -> "Manifest":
        """Build and check a manifest from parsed JSON.

        Raises:
            PackageError: Another format, a newer version, or keys and values that do not
                fit; every such key is named.
        """
        _check_format(data)
        try:
            manifest = read_dataclass(cls, data)
        except SchemaError as error:
            raise _not_fitting(error.problems) from error
        problems = _find_problems(manifest)
        if problems:
            raise _not_fitting(problems)
        return manifest

    @classmethod
    def from_bytes(cls, text: bytes) -> "Manifest":
        """Build and check a manifest from the bytes of its file.

        Raises:
            PackageError: The bytes are not strict JSON, or see `from_json`.
        """
        try:
            data = parse_json(text)
        except SchemaError as error:
            raise _not_fitting(error.problems) from error
        return cls.from_json(data)

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and lists that `from_json` reads back to an equal manifest."""
        data: dict[str, Any] = to_json(self)
        return data

    def to_bytes(self) -> bytes:
        """Return the file's bytes: UTF-8, sorted keys, two spaces, newline at the end.

        Raises:
            PackageError: The manifest would not be read back: a wrong name, size or range.
        """
        data = self.to_json()
        Manifest.from_json(json.loads(json.dumps(data)))
        text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode("utf-8")


def _check_format(data: object) -> None:
    """Refuse other formats and newer versions before their keys are judged."""
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise PackageError(
            f"'{MANIFEST_NAME}' is not the manifest of a model package: its 'format' is "
            f"{found!r:.80}, expected {FORMAT!r}.",
            "point to a folder made by `qwen-edge export`.",
        )
    version = data.get("format_version") if isinstance(data, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise PackageError(
            f"The package has format version {f'{version:,}'[:24]}; this qwen-edge reads up to "
            f"{FORMAT_VERSION}.",
            "pip install --upgrade qwen-edge, or export the package again with this version.",
            format_version=version,
            newest_known=FORMAT_VERSION,
        )


def _not_fitting(problems: tuple[str, ...] | list[str]) -> PackageError:
    return PackageError(
        f"'{MANIFEST_NAME}' does not fit format version {FORMAT_VERSION}: "
        f"{join_problems(problems)}.",
        "export the package again, or copy the folder again from where it came from.",
        problems=tuple(problems),
    )


def _find_problems(manifest: Manifest) -> list[str]:
    """Return what is wrong with values whose types are right."""
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
    for key, files in (("files", manifest.files), ("source.files", manifest.source.files)):
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
