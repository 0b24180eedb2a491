"""The README.md of a package: what it is, where it comes from, what was lost, how to run it.

Written for a person who finds the folder, with the YAML front matter of a hub's model card
(licence and ancestry as the source states them; "unknown" stays "unknown"). Holds no time,
host or path, so that equal exports are equal bytes.
"""

import json
from collections.abc import Sequence

from qwen_edge.export.source_card import UNKNOWN_LICENSE
from qwen_edge.runtime.devices.npu_verdict import describe_verdict
from qwen_edge.runtime.files.plain_name import FRONTIER_REPORT, QUALITY_REPORT, RECIPE_FILE
from qwen_edge.runtime.manifest import (
    FORMAT_ENGINES,
    AdapterFacts,
    FormatName,
    Manifest,
    SourceFacts,
)
from qwen_edge.runtime.quality_facts import READING_NAMES, describe_quality
from qwen_edge.runtime.recipe_facts import RecipeFacts

FILE_NAME = "README.md"
_LIBRARIES = {"openvino": "openvino", "onnx": "onnx"}


def write_model_card(manifest: Manifest, formats: Sequence[FormatName]) -> str:
    """Return the text of the package's README.md.

    Args:
        manifest: All facts but `files`, which is not read: this text is one of them.
        formats: Formats of the model in the package, the preferred one first.
    """
    engines = " and ".join(FORMAT_ENGINES[name] for name in formats)
    return "\n".join(
        [
            *_front_matter(manifest, formats[0]),
            f"# {manifest.name}",
            "",
            f"{_cell(manifest.source.id)}{_with_adapters(manifest)} as a model package for "
            f"{engines} with {_describe_weights(manifest)}. Made by qwen-edge.",
            "",
            "```",
            f'qwen-edge run ./{manifest.name} "Hello!"',
            "```",
            "",
            f"It also opens in {_other_programs(manifest)}.",
            "",
            *_facts(manifest),
            "",
            *_search(manifest),
            "## What compression cost",
            "",
            *_quality(manifest),
            "",
            *_loss(manifest),
            "",
        ]
    )


def _front_matter(manifest: Manifest, fmt: FormatName) -> list[str]:
    source = manifest.source
    lines = ["---", f"license: {_quoted(source.license)}"]
    if source.license_name:
        lines.append(f"license_name: {_quoted(source.license_name)}")
    if source.license_link:
        lines.append(f"license_link: {_quoted(source.license_link)}")
    if source.kind == "hub":
        lines.append(f"base_model: {_quoted(source.id)}")
        lines.append("base_model_relation: quantized")
    elif source.base_model:
        lines.append(f"base_model: {_quoted(source.base_model)}")
    library = _LIBRARIES[fmt]
    return [*lines, f"library_name: {library}", "pipeline_tag: text-generation", "---", ""]


def _quoted(text: str) -> str:
    """Return a text as YAML: a JSON string is one, and nothing in it can break out."""
    return json.dumps(_line(text), ensure_ascii=False)


def _cell(text: str) -> str:
    """Return a stranger's text so that it stays in one cell of a table."""
    return _line(text).replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`")


def _line(text: str) -> str:
    """Return a text as one line without characters that YAML and Markdown cannot hold."""
    return "".join(c if c.isprintable() else " " for c in text)


def _other_programs(manifest: Manifest) -> str:
    names = []
    if manifest.devices:  # they are OpenVINO's
        names += ["`openvino_genai.LLMPipeline`", "OpenVINO Model Server"]
        names += ["`optimum.intel.OVModelForCausalLM`"]
    if manifest.onnx is not None:
        names.append("`onnxruntime_genai.Model`")
    if manifest.onnx is not None and manifest.onnx.is_portable:
        names.append("any program that runs standard ONNX (the cache is an input and an output)")
    return ", ".join(names[:-1]) + (" and " if names[:-1] else "") + names[-1]


def _describe_weights(manifest: Manifest) -> str:
    recipe = manifest.recipe
    if recipe.weights == "fp16":
        return "float16 weights"
    kind = "symmetric" if recipe.symmetric else "asymmetric"
    what = "NF4" if recipe.weights == "nf4" else f"{kind} {recipe.weights}"
    group = "per output channel" if recipe.group_size == -1 else f"in groups of {recipe.group_size}"
    mixed = f" ({1 - recipe.ratio:.0%} of the layers' weights in int8)" if recipe.ratio < 1 else ""
    if recipe.matrices:
        plural = "" if len(recipe.matrices) == 1 else "s"
        mixed += f" ({len(recipe.matrices)} exception{plural}, see `manifest.json`)"
    return f"{what} weights {group}{mixed}{_describe_methods(recipe)}"


def _describe_methods(recipe: RecipeFacts) -> str:
    """Return the methods with " and " before them, or nothing."""
    is_calibrated = recipe.calibration == "activations"
    methods = {
        "AWQ" if is_calibrated else "data-free AWQ": recipe.awq,
        "scale estimation": recipe.scale_estimation,
        "GPTQ": recipe.gptq,
    }
    used = [name for name, is_used in methods.items() if is_used]
    if not used:
        return ""
    listed = " and ".join(filter(None, (", ".join(used[:-1]), used[-1])))
    return f" and {'calibrated ' if is_calibrated else ''}{listed}"


def _describe_licence(source: SourceFacts) -> str:
    """Return what the source states, or that it states nothing."""
    if source.license == UNKNOWN_LICENSE:
        return f"{UNKNOWN_LICENSE}: its source states none; ask its makers before you use it"
    name = f" ({source.license_name})" if source.license_name else ""
    link = f", {source.license_link}" if source.license_link else ""
    return f"{source.license}{name}{link}"


def _with_adapters(manifest: Manifest) -> str:
    names = [_cell(entry.name) for entry in manifest.source.adapters]
    return f" with {' and '.join(names)} merged into it" if names else ""


def _describe_adapter(entry: AdapterFacts) -> str:
    times = "" if entry.weight == 1 else f", times {entry.weight:g}"
    base = f", made for {_cell(entry.base_model)}" if entry.base_model else ""
    return f"{_cell(entry.name)}{times}{base}"


def _facts(manifest: Manifest) -> list[str]:
    model, source = manifest.model, manifest.source
    revision = f", commit {source.revision}" if source.revision else ""
    devices = ", ".join(entry.device for entry in manifest.devices) or "ONNX Runtime"
    return [
        "| | |",
        "| --- | --- |",
        f"| source | {_cell(source.id)}{revision} |",
        *(f"| adapter | {_describe_adapter(entry)} |" for entry in source.adapters),
        f"| licence | {_cell(_describe_licence(source))} |",
        f"| architecture | {model.architecture}, {model.num_layers} layers, "
        f"{model.num_parameters:,} parameters |",
        f"| context | {model.max_context_tokens:,} tokens |",
        f"| profile | {manifest.profile.name}: {devices} |",
        *([f"| NPU | {_cell(describe_verdict(manifest.npu))} |"] if manifest.npu else []),
        f"| recipe | {manifest.recipe.name} |",
        f"| weights | {manifest.weights.weights_bytes:,} bytes |",
        *(f"| {name} | {version} |" for name, version in sorted(manifest.tools.items())),
    ]


def _search(manifest: Manifest) -> list[str]:
    """Return how the recipe was found, where it was."""
    found = manifest.calibration
    if found is None or found.expected_kl is None:
        return []
    return [
        "The recipe was found by measuring what each format costs each matrix, on calibration "
        f"text: a KL of {found.expected_kl:.3g} was expected. What else "
        f"could be had: [{FRONTIER_REPORT}]({FRONTIER_REPORT}). [{RECIPE_FILE}]({RECIPE_FILE}) "
        "gives the same weights again, with the same checkpoint and calibration text.",
        "",
    ]


def _quality(manifest: Manifest) -> list[str]:
    """Return what was measured beside the checkpoint, or that nothing was."""
    quality = manifest.quality
    if quality is None:
        return ["How much answers change was not measured when this package was made."]
    lines = [
        f"Beside the checkpoint in float32: {describe_quality(quality)}. By kind of text, position "
        f"and layer: [{QUALITY_REPORT}]({QUALITY_REPORT}).",
        "",
        "| reading | mean KL | KL, 99th percentile | same likeliest token | perplexity |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, reading in quality.readings.items():
        ratio = "–" if reading.perplexity_ratio is None else f"× {reading.perplexity_ratio:.4g}"
        lines.append(
            f"| {READING_NAMES[name]} | {reading.kl.value:.3g} | {reading.kl_p99.value:.3g} | "
            f"{100 * reading.top1.value:.1f} % | {ratio} |"
        )
    if quality.gate is not None:
        lines += ["", f"It passed the gate `{quality.gate}`."]
    if quality.is_loss_accepted:
        lines += ["", "**This is not the model it was**; it was sealed with --accept-loss."]
    return lines


def _loss(manifest: Manifest) -> list[str]:
    weights = manifest.weights
    lines = []
    if weights.relative_rms_error is not None:
        lines.append(
            f"Compressed weights differ from the checkpoint's by "
            f"{100 * weights.relative_rms_error:.2f} % (RMS of the difference over RMS of the "
            "weights, on evenly spaced rows of every matrix)."
        )
    lines += ["", "| bits | weights |", "| --- | --- |"]
    lines += [f"| {bits} | {count:,} |" for bits, count in sorted(weights.bits.items())]
    if weights.group_size_fallbacks:
        lines += ["", "The group size did not divide the width of these matrices:", ""]
        for entry in weights.group_size_fallbacks:
            used = "one per row" if entry.group_size == -1 else str(entry.group_size)
            lines.append(f"- `{entry.tensor}`, {entry.width:,} wide: group {used}")
    return lines
