"""The facts of a manifest that follow from the source, the recipe and the compression.

Reads the small files of a checkpoint (config.json, generation_config.json) as claims to be
checked, and turns profiles, recipes and reports into the manifest's own types. It writes
nothing and opens no weights.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_edge.errors import CheckpointError, PackageError, UsageError
from qwen_edge.export.compress import TensorReport
from qwen_edge.export.config_fields import shown
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.source import FetchedSource
from qwen_edge.profiles.profile import Profile
from qwen_edge.profiles.recipe import Recipe
from qwen_edge.runtime.chat import ChatTemplate
from qwen_edge.runtime.manifest import (
    FORMAT_FILES,
    ONNX_OPSET,
    AdapterFacts,
    ChatFacts,
    DeviceSettings,
    FileFacts,
    GenerationFacts,
    GroupSizeFallback,
    ModelFacts,
    OnnxFacts,
    PropertyValue,
    SourceFacts,
    WeightsFacts,
)
from qwen_edge.runtime.recipe_facts import MatrixFacts, RecipeFacts
from qwen_edge.runtime.schema import parse_json
from qwen_edge.runtime.text_tokenizer import TextTokenizer

DEFAULT_MAX_NEW_TOKENS = 2_048  # answers end at the EOS token; this bounds one that never comes
_NPU_KEEP_BLOCKS = 5  # the NPU plugin's default of NPUW_ONLINE_KEEP_BLOCKS, 2026.4.1
_MAX_JSON_BYTES = 4_000_000  # the largest published one has 50 kB
_OPEN_THINK, _CLOSE_THINK = "<think>", "</think>"
_LEAST_TOP_P = 1e-6  # none at all would keep no token
_MAX_TOP_K = 2**31 - 1  # as `SamplingParams`; beyond the vocabulary it keeps every token
_BITS = {"fp16": "16", "int8": "8", "int4": "4", "nf4": "4"}
_TOOLS = {"openvino": ("openvino", "openvino-tokenizers"), "onnx": ("onnx-ir", "onnxruntime")}


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a checkpoint's JSON file.

    Args:
        path: A file that holds one JSON object.

    Raises:
        CheckpointError: It cannot be read, is larger than 4 MB, or holds something else: NaN
            and repeated keys, which programs read differently, included.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_JSON_BYTES:
            raise ValueError(f"it has {size:,} bytes, more than {_MAX_JSON_BYTES:,}")
        content = parse_json(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as exc:
        raise CheckpointError(
            f"{path.name!r} cannot be read as a JSON object: {exc}.",
            "fetch or save this file again",
            path=str(path),
        ) from exc
    checked: dict[str, Any] = content
    return checked


def model_facts(spec: DecoderSpec, max_context_tokens: int) -> ModelFacts:
    """Return the network's facts; `max_context_tokens` bounds every device."""
    return ModelFacts(
        architecture=spec.architecture,
        model_type=spec.model_type,
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocab_size,
        num_parameters=spec.num_parameters,
        max_context_tokens=max_context_tokens,
    )


def source_facts(
    source: FetchedSource,
    sealed: Mapping[str, FileFacts],
    adapters: tuple[AdapterFacts, ...] = (),
) -> SourceFacts:
    """Return where the checkpoint came from.

    Args:
        source: As fetched.
        sealed: Size and hash of the source's files, by name.
        adapters: What was merged into it.
    """
    return SourceFacts(
        kind=source.kind,
        id=_writable(source.id),
        revision=source.revision,
        license=_writable(source.license),
        license_name=source.license_name and _writable(source.license_name),
        license_link=source.license_link and _writable(source.license_link),
        base_model=source.base_model and _writable(source.base_model),
        files=dict(sorted(sealed.items())),
        adapters=adapters,
    )


def _writable(text: str) -> str:
    """Return a text with what UTF-8 cannot hold replaced: a folder's name may be any bytes."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def recipe_facts(recipe: Recipe) -> RecipeFacts:
    """Return the recipe's settings without their reasons."""
    return RecipeFacts(
        name=recipe.name,
        weights=recipe.weights,
        symmetric=recipe.symmetric,
        group_size=recipe.group_size,
        awq=recipe.awq,
        embedding=recipe.embedding,
        head=recipe.head,
        calibration=recipe.calibration,
        scale_estimation=recipe.scale_estimation,
        gptq=recipe.gptq,
        ratio=recipe.ratio,
        matrices={
            key: MatrixFacts(found.weights, found.symmetric, found.group_size)
            for key, found in sorted(recipe.matrices.items())
        }
        or None,
    )


def weights_facts(reports: Sequence[TensorReport], weights_bytes: int) -> WeightsFacts:
    """Return what compression did.

    Args:
        reports: One per matrix.
        weights_bytes: What `weights_bytes` returns for the folder.
    """
    bits: dict[str, int] = {}
    for report in reports:
        key = _BITS[report.format]
        bits[key] = bits.get(key, 0) + report.num_values
    total = sum(report.num_values for report in reports)
    # Squares add up; matrices of one model have weights of about the same size.
    power = sum(report.num_values * report.relative_rms_error**2 for report in reports) / total
    return WeightsFacts(
        num_tensors=len(reports),
        weights_bytes=weights_bytes,
        bits=dict(sorted(bits.items())),
        group_size_fallbacks=tuple(
            GroupSizeFallback(report.name, report.width, report.group_size)
            for report in reports
            if report.is_fallback
        ),
        relative_rms_error=round(power**0.5, 6),
    )


def weights_bytes(folder: Path) -> int:
    """Return the size of the weights, of every format that was written."""
    paths = (folder / names[1] for names in FORMAT_FILES.values())
    return sum(path.stat().st_size for path in paths if path.exists())


def onnx_facts(profile: Profile, max_context_tokens: int, *, is_portable: bool) -> OnnxFacts:
    """Return how the ONNX form is to be written and run.

    Args:
        profile: The profile.
        max_context_tokens: No more context than this: what model and request allow.
        is_portable: Standard operators only.
    """
    settings = profile.onnx
    return OnnxFacts(
        opset=ONNX_OPSET,
        is_portable=is_portable,
        max_context_tokens=min(settings.max_context_tokens, max_context_tokens),
        prefill_chunk_tokens=settings.prefill_chunk_tokens,
        accuracy_level=settings.accuracy_level,
    )


def device_settings(
    profile: Profile, max_context_tokens: int, num_layers: int
) -> tuple[DeviceSettings, ...]:
    """Return the profile's devices, fitted to one model.

    Args:
        profile: The profile.
        max_context_tokens: No device gets more context than this.
        num_layers: Layers of the model.
    """
    settings = []
    for entry in profile.devices:
        fitted = DeviceSettings(
            device=entry.device,
            properties={**_shallow_properties(entry.device, num_layers), **entry.properties},
            max_context_tokens=min(entry.max_context_tokens, max_context_tokens),
            max_prompt_tokens=entry.max_prompt_tokens,
            min_response_tokens=entry.min_response_tokens,
            prefill_chunk_tokens=entry.prefill_chunk_tokens,
        )
        is_cut = fitted.max_context_tokens < entry.max_context_tokens
        if is_cut and entry.max_prompt_tokens is not None:
            fitted = _shorten_static(fitted)
        settings.append(fitted)
    return tuple(settings)


def _shorten_static(settings: DeviceSettings) -> DeviceSettings:
    """Share a smaller context out to prompt and answer on a device of fixed shapes.

    Each gets the largest power of two that fits twice: the plugin's prefill chunk is one too,
    and the prompt must be a multiple of it.
    """
    half = 1 << (max(2, settings.max_context_tokens // 2).bit_length() - 1)
    lengths: dict[str, PropertyValue] = {
        "NPUW_LLM_MAX_PROMPT_LEN": half,
        "NPUW_LLM_MIN_RESPONSE_LEN": half,
    }
    chunk = settings.properties.get("NPUW_LLM_PREFILL_CHUNK_SIZE")
    if isinstance(chunk, int):
        lengths["NPUW_LLM_PREFILL_CHUNK_SIZE"] = min(chunk, half)
    return replace(
        settings,
        properties={**settings.properties, **lengths},
        max_context_tokens=2 * half,
        max_prompt_tokens=half,
        min_response_tokens=half,
        prefill_chunk_tokens=half,
    )


def _shallow_properties(device: str, num_layers: int) -> dict[str, PropertyValue]:
    """Return what a model with few layers needs besides.

    Source:
        Measured, NPU plugin 2026.4.1: it folds layers that repeat at least
        NPUW_ONLINE_KEEP_BLOCKS times (5 by default) and fails on models with fewer
        ("Model references undeclared parameters"), traced ones as well. Any value up to the
        number of layers works (1 to 4 layers tried, int4 and fp32).
    """
    if device != "NPU" or num_layers >= _NPU_KEEP_BLOCKS:
        return {}
    return {"NPUW_ONLINE_KEEP_BLOCKS": num_layers}


def generation_facts(folder: Path, config: Mapping[str, Any], vocab_size: int) -> GenerationFacts:
    """Return the model's own sampling defaults and the tokens that end an answer.

    Args:
        folder: The checkpoint; generation_config.json may be missing.
        config: Its config.json.
        vocab_size: Ids must lie below.

    Raises:
        CheckpointError: A value has the wrong type or range, or no token ends an answer.

    Source:
        Defaults of what is not given: transformers 5.5 GenerationConfig.
    """
    path = folder / "generation_config.json"
    given = read_json_object(path) if path.exists() else {}
    stop = given.get("eos_token_id")
    stop = config.get("eos_token_id") if stop is None else stop
    stop_ids = tuple(stop) if isinstance(stop, list) else () if stop is None else (stop,)
    if not stop_ids or not all(_is_id(item, vocab_size) for item in stop_ids):
        raise CheckpointError(
            f"eos_token_id is {shown(stop)}, expected one or more ids below {vocab_size:,}. "
            "Without it no answer would end.",
            "write 'eos_token_id' into generation_config.json",
            eos_token_id=stop,
        )
    return GenerationFacts(
        do_sample=_true_or_false(given, "do_sample"),
        temperature=_number(given, "temperature", 1.0, 0.0, 100.0),
        top_p=_number(given, "top_p", 1.0, _LEAST_TOP_P, 1.0),
        top_k=_whole_number(given, "top_k", 50, 0, _MAX_TOP_K),
        min_p=_number(given, "min_p", 0.0, 0.0, 1.0),
        eos_token_ids=stop_ids,
        max_new_tokens=DEFAULT_MAX_NEW_TOKENS,
    )


def _is_id(value: object, vocab_size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size


def _true_or_false(given: Mapping[str, Any], key: str) -> bool:
    value = given.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _out_of_range(key, value, "true or false")


def _number(given: Mapping[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = given.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _out_of_range(key, value, f"a number from {low:g} to {high:g}")
    return float(value)


def _whole_number(given: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
    value = _number(given, key, default, low, high)
    if value % 1:
        raise _out_of_range(key, value, "a whole number")
    return int(value)


def _out_of_range(key: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{key} in generation_config.json is {shown(value)}, expected {expected}.",
        f"correct {key!r}, or remove it",
        field=key,
    )


def chat_facts(template_text: str, tokenizer: TextTokenizer) -> ChatFacts:
    """Find out from the chat template itself whether thinking can be switched.

    Args:
        template_text: Jinja2 text.
        tokenizer: The package's tokenizer.

    Raises:
        CheckpointError: The template cannot render a question.
    """
    ids = [tokenizer.encode(text, allow_special=True) for text in (_OPEN_THINK, _CLOSE_THINK)]
    with_thinking, without = _render_both(template_text, tokenizer)
    if any(len(found) != 1 for found in ids):
        return ChatFacts("never", None, None)
    if with_thinking != without:
        return ChatFacts("switchable", ids[0][0], ids[1][0])
    if with_thinking.rstrip().endswith(_OPEN_THINK):
        return ChatFacts("always", ids[0][0], ids[1][0])
    # The 2507 instruct models: the tokens exist, the template never asks for them.
    return ChatFacts("never", None, None)


def _render_both(template_text: str, tokenizer: TextTokenizer) -> tuple[str, str]:
    """Return the prompt for one question with thinking switched on, and off."""
    messages: list[dict[str, object]] = [{"role": "user", "content": "Hello!"}]
    try:
        template = ChatTemplate(template_text, tokenizer)
        return template.render(messages, thinking=True), template.render(messages, thinking=False)
    except (PackageError, UsageError) as exc:
        raise CheckpointError(
            f"The chat template of this checkpoint cannot render a question: {exc.problem}",
            "copy chat_template.jinja or tokenizer_config.json of the base model into the folder",
        ) from exc


def tool_versions(formats: Sequence[str]) -> dict[str, str]:
    """Return the versions of what made the package, in these formats."""
    names = ("qwen-edge", *(name for key in formats for name in _TOOLS[key]))
    return {name: importlib.metadata.version(name) for name in names}
