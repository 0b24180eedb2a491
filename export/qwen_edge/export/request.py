"""What an export was asked for, and what that comes to.

`ExportRequest` holds what a person gave; `resolve_request` fills in the rest and remembers
where every value came from. All defaults of an export live here or in a profile. Nothing
is read but profiles and recipes. Read `plan.py` for what the result will cost.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qwen_edge.errors import UsageError, did_you_mean
from qwen_edge.export.adapters.facts import adapter_names
from qwen_edge.export.quality.gate import parse_gate
from qwen_edge.export.recipe_search.budget import parse_budget
from qwen_edge.profiles.choose import Choice, choose_profile
from qwen_edge.profiles.device import MIN_CONTEXT_TOKENS
from qwen_edge.profiles.hardware import probe_hardware
from qwen_edge.profiles.legality import check_onnx_recipe, check_recipe
from qwen_edge.profiles.onnx_settings import FORMATS
from qwen_edge.profiles.profile import Profile, load_profile
from qwen_edge.profiles.recipe import Recipe, load_recipe
from qwen_edge.runtime.environment import Environment, read_environment
from qwen_edge.runtime.manifest import FormatName

# "aux.x" is a device there as well as "aux".
# Source: "Naming Files, Paths, and Namespaces", Microsoft Win32 documentation.
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])\.")
_MAX_MODEL_CHARACTERS = 96  # most systems allow 255 bytes; the staging folder's name is longer
DEFAULT_MODEL = "Qwen/Qwen3-4B"
_FORMATS_OF: Mapping[str, tuple[FormatName, ...]] = {
    "openvino": ("openvino",),
    "onnx": ("onnx",),
    "both": ("openvino", "onnx"),
}


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how. None means: not given.

    Args:
        model: Hub id, folder, or "demo".
        profile: Name or TOML file. Not given: the one that fits this machine.
        recipe: Name or TOML file. Not given: the profile's.
        format: "openvino", "onnx" or "both". Not given: the profile's.
        portable: Write the ONNX form in standard operators only.
        output: Package folder. Not given: made from model, profile and weight format, in
            the current folder.
        revision: Branch, tag or commit of a hub id. Not given: "main".
        max_context_tokens: Upper bound for every device. Not given: the profile's.
        force: Replace an earlier package of ours at `output`.
        offline: Never connect.
        cache_dir: The hub's cache folder. Not given: the usual one.
        warm_prompt: Text file with a system message whose cache goes into the package.
        skip_npu_check: Do not find out whether the model runs on an NPU.
        adapters: LoRA folders that are merged into the checkpoint, each as "DIR" or "DIR=WEIGHT".
        calibration: Text or conversations that calibrated recipes read. Not given: built-in ones.
        calibration_samples: How many samples of at most 512 tokens they read.
        budget: What the recipe "auto" has to keep to: "size<=2.6GB,kl<=0.03".
        gate: What may be lost: "kl=0.05,top1=0.95". Not given: only a lost model is refused.
        quality_text: Text to measure the loss with. Not given: built-in ones.
        accept_loss: Without a gate, seal the package even where the model is lost.
        skip_quality: Do not measure what is lost.

    Raises:
        UsageError: A value is out of range.
    """

    model: str = DEFAULT_MODEL
    profile: str | None = None
    recipe: str | None = None
    format: str | None = None
    portable: bool = False
    output: Path | None = None
    revision: str | None = None
    max_context_tokens: int | None = None
    force: bool = False
    offline: bool = False
    cache_dir: Path | None = None
    warm_prompt: Path | None = None
    skip_npu_check: bool = False
    adapters: tuple[str, ...] = ()
    calibration: Path | None = None
    calibration_samples: int = 128
    budget: str | None = None
    gate: str | None = None
    quality_text: Path | None = None
    accept_loss: bool = False
    skip_quality: bool = False

    def __post_init__(self) -> None:
        if self.max_context_tokens is not None and self.max_context_tokens < MIN_CONTEXT_TOKENS:
            raise UsageError(
                f"max_context_tokens is {self.max_context_tokens:,}, expected "
                f"{MIN_CONTEXT_TOKENS:,} or more: a prompt and an answer must fit.",
                "leave --max-context-tokens away to use the profile's",
                field="max_context_tokens",
            )
        if self.format is not None and self.format not in FORMATS:
            hint = did_you_mean(self.format.lower(), FORMATS)
            raise UsageError(
                f"format is {self.format!r}, expected one of: {', '.join(FORMATS)}.{hint}",
                "leave --format away to use the profile's",
                field="format",
            )
        if self.calibration_samples < 1:
            raise UsageError(
                f"calibration_samples is {self.calibration_samples:,}, expected 1 or more.",
                "leave --calibration-samples away to use 128",
                field="calibration_samples",
            )
        if self.budget is not None:
            parse_budget(self.budget)
        if self.gate is not None:
            parse_gate(self.gate)
            if self.accept_loss:
                raise UsageError(
                    "accept_loss and a gate contradict each other: with a gate, the gate decides.",
                    "leave --accept-loss away, or --gate",
                    field="accept_loss",
                )
        if self.skip_quality and (self.gate is not None or self.quality_text is not None):
            raise UsageError(
                "skip_quality and a gate or a text of its own contradict each other: what is not "
                "measured cannot be compared.",
                "leave --skip-quality away, or --gate and --quality-text",
                field="skip_quality",
            )
        if not self.model.strip():
            raise UsageError(
                "The model is an empty text, expected a hub id, a folder or 'demo'.",
                f"qwen-edge export {DEFAULT_MODEL}",
                field="model",
            )


@dataclass(frozen=True)
class ResolvedRequest:
    """An export with nothing left open.

    Args:
        request: What was given.
        profile: The profile.
        recipe: The recipe, allowed on every device of the profile.
        formats: "openvino", "onnx" or both of them, in this order.
        output: The package folder.
        name: The package's name; the same wherever it is written, so that equal exports are
            equal bytes.
        origins: Per field the reason, in the order of `ExportRequest`: "flag --profile",
            "environment QWEN_EDGE_PROFILE", "profile core-ultra: …", "default: …".
    """

    request: ExportRequest
    profile: Profile
    recipe: Recipe
    formats: tuple[FormatName, ...]
    output: Path
    name: str
    origins: tuple[tuple[str, Choice[Any]], ...]


def resolve_request(
    request: ExportRequest, environment: Environment | None = None
) -> ResolvedRequest:
    """Fill in what was not given: flag, then environment, then profile, then default.

    Args:
        request: What a person gave.
        environment: The process's own when None.

    Raises:
        UnknownProfileError: No such profile.
        UnknownRecipeError: No such recipe.
        RecipeNotSupportedError: The recipe may not run on one of the profile's devices, or has
            no ONNX form where one is asked for.
        UsageError: A file of theirs has problems.
    """
    environment = read_environment() if environment is None else environment
    profile_name = _choose_profile(request, environment)
    profile = load_profile(profile_name.value)
    recipe_name = _choose_recipe(request, environment, profile)
    recipe = load_recipe(recipe_name.value)
    chosen = _choose_format(request, profile)
    formats = _FORMATS_OF[chosen.value]
    if "openvino" in formats:  # the table is about OpenVINO's devices
        check_recipe(recipe, profile)
    if "onnx" in formats:
        check_onnx_recipe(recipe)
    _check_portable(request, formats)
    adapters = adapter_names(request.adapters)
    name = package_name("-".join([_last_part(request.model), *adapters]), profile, recipe, formats)
    if request.portable:
        name += "-portable"
    output = _choose_output(request, name)
    known: dict[str, Choice[Any]] = {
        "profile": profile_name,
        "recipe": recipe_name,
        "format": chosen,
        "output": output,
    }
    origins = []
    for entry in fields(ExportRequest):
        value = getattr(request, entry.name)
        origins.append((entry.name, known.get(entry.name) or _origin(entry.name, value)))
    return ResolvedRequest(request, profile, recipe, formats, output.value, name, tuple(origins))


def package_name(
    model: str, profile: Profile, recipe: Recipe, formats: tuple[str, ...] = ("openvino",)
) -> str:
    """Return the name of the package: model, profile and weight format, in lower case.

    Args:
        model: Hub id, folder, or "demo"; its last part is used.
        profile: The profile.
        recipe: The recipe.
        formats: Named where they are not what the profile writes anyway.

    Returns:
        ASCII letters, digits, dots and dashes; a legal folder name on every system.
    """
    last = _last_part(model)[:_MAX_MODEL_CHARACTERS]
    text = f"{last}-{profile.name}-{recipe.weights}".lower()
    if formats != (profile.format,):
        text += "-" + "-".join(formats)
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in text)
    name = name.strip("-.")
    return f"model-{name}" if _WINDOWS_DEVICE.match(name) else name


def _last_part(model: str) -> str:
    """Return the last part of a hub id or path; of ".", ".." and roots what they stand for."""
    last = model.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if last in {"", ".", "..", "~"}:
        last = Path(model).expanduser().resolve().name
    return last


def _choose_profile(request: ExportRequest, environment: Environment) -> Choice[str]:
    if request.profile is not None:
        return Choice(request.profile, "flag --profile")
    if environment.profile is not None:
        return Choice(environment.profile, "environment QWEN_EDGE_PROFILE")
    chosen = choose_profile(probe_hardware())
    return Choice(chosen.value, f"chosen for this machine: {chosen.reason}")


def _choose_recipe(
    request: ExportRequest, environment: Environment, profile: Profile
) -> Choice[str]:
    if request.recipe is not None:
        return Choice(request.recipe, "flag --recipe")
    if environment.recipe is not None:
        return Choice(environment.recipe, "environment QWEN_EDGE_RECIPE")
    return Choice(profile.recipe, f"profile {profile.name}: {profile.recipe_reason}")


def _choose_format(request: ExportRequest, profile: Profile) -> Choice[str]:
    if request.format is not None:
        return Choice(request.format, "flag --format")
    return Choice(profile.format, f"profile {profile.name}: {profile.format_reason}")


def _check_portable(request: ExportRequest, formats: tuple[str, ...]) -> None:
    if request.portable and "onnx" not in formats:
        raise UsageError(
            "portable is about the ONNX form, and the export writes OpenVINO only.",
            "add --format onnx, or leave --portable away",
            field="portable",
        )


def _choose_output(request: ExportRequest, name: str) -> Choice[Path]:
    if request.output is not None:
        return Choice(request.output, "flag --output")
    return Choice(Path(name), "default: model, profile and weight format, in the current folder")


def _origin(name: str, value: object) -> Choice[Any]:
    default = next(entry.default for entry in fields(ExportRequest) if entry.name == name)
    if value == default:
        return Choice(value, "default")
    if name == "model":
        return Choice(value, "given")
    option = "adapter" if name == "adapters" else name.replace("_", "-")
    return Choice(value, f"flag --{option}")
