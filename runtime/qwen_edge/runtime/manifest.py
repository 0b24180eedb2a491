"""What `manifest.json` of a model package says: the contract between export and runtime.

One frozen dataclass per object of the file; field names are the keys. The text is the same
for the same facts (sorted keys, no time, host or path), so equal exports are equal bytes. It ends
with a seal, the hash of all the rest: no other file vouches for this one.
This module knows no folder and no file; read `package.py` for those, and `manifest_checks.py`
for what values may be.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen_edge.errors import PackageError, join_problems
from qwen_edge.runtime.devices.npu_verdict import NpuVerdict
from qwen_edge.runtime.quality_facts import QualityFacts
from qwen_edge.runtime.recipe_facts import CalibrationFacts, RecipeFacts
from qwen_edge.runtime.schema import SchemaError, parse_json, read_dataclass, to_json

FORMAT = "qwen-edge-package"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
SEAL = "seal"
"""Key of the file: SHA-256 of its text without this key, 64 lower-case hex digits."""

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
class AdapterFacts:
    """A LoRA that was merged into the checkpoint; `base_model` is what it says it was made for.

    `weight` is what its change was multiplied by.
    """

    name: str
    weight: float
    base_model: str | None
    files: Mapping[str, FileFacts]


@dataclass(frozen=True)
class SourceFacts:
    """Where the checkpoint came from; `revision` is a commit, never a branch.

    The licence is what its card states, word for word; `license_name` is what cards add to "other".
    """

    kind: Literal["hub", "folder", "embedded"]
    id: str
    revision: str | None
    license: str
    license_link: str | None
    base_model: str | None
    files: Mapping[str, FileFacts]
    adapters: tuple[AdapterFacts, ...] = ()
    license_name: str | None = None


@dataclass(frozen=True)
class ProfileFacts:
    """Names of the profile and of the recipe the export was asked for."""

    name: str
    recipe: str


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

    `devices` are OpenVINO's and belong to the IR; `onnx` is None where there is no ONNX model, and
    `quality` where the loss was not measured.
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
    calibration: CalibrationFacts | None = None
    quality: QualityFacts | None = None
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
        if isinstance(data, dict):
            data = {key: value for key, value in data.items() if key != SEAL}
        try:
            manifest = read_dataclass(cls, data)
        except SchemaError as error:
            raise _not_fitting(error.problems) from error
        from qwen_edge.runtime.manifest_checks import find_problems  # which knows this class

        problems = find_problems(manifest)
        if problems:
            raise _not_fitting(problems)
        return manifest

    @classmethod
    def from_bytes(cls, text: bytes) -> "Manifest":
        """Build and check a manifest from the bytes of its file.

        Raises:
            PackageError: The bytes are not strict JSON, or are not those that `to_bytes` wrote, or
                see `from_json`.
        """
        try:
            data = parse_json(text)
        except SchemaError as error:
            raise _not_fitting(error.problems) from error
        manifest = cls.from_json(data)
        try:
            # Of the keys as they stand there: those that a later version adds are not missed.
            sealed = _seal({key: value for key, value in data.items() if key != SEAL})
        except UnicodeEncodeError as error:  # JSON can write them, UTF-8 cannot
            raise _not_fitting(["a text in it holds half of a character"]) from error
        if sealed != text:
            raise PackageError(
                f"'{MANIFEST_NAME}' is not as it was sealed: its text has changed (its '{SEAL}' is "
                f"{data.get(SEAL)!r:.80}, expected {parse_json(sealed)[SEAL]!r}).",
                "copy the folder again from where it came from, or export the package again.",
            )
        return manifest

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and lists that `from_json` reads back to an equal manifest."""
        data: dict[str, Any] = to_json(self)
        return data

    def to_bytes(self) -> bytes:
        """Return the file's bytes: UTF-8, sorted keys, two spaces, newline at the end, sealed.

        Raises:
            PackageError: The manifest would not be read back: a wrong name, size or range.
        """
        data = self.to_json()
        Manifest.from_json(json.loads(json.dumps(data)))
        return _seal(data)


def _seal(data: dict[str, Any]) -> bytes:
    """Return the file's bytes for plain data without a seal."""
    digest = hashlib.sha256(_to_text(data)).hexdigest()
    return _to_text({**data, SEAL: digest})


def _to_text(data: dict[str, Any]) -> bytes:
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
