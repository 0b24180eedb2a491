"""The README.md of a package: what it is, where it comes from, what was lost, how to run it.

Written for a person who finds the folder, with the YAML front matter of a hub's model card
(licence and ancestry as the source states them; "unknown" stays "unknown"). Holds no time,
host or path, so that equal exports are equal bytes.
"""

import json
from collections.abc import Sequence

from qwen_edge.runtime.devices.npu_verdict import describe_verdict
from qwen_edge.runtime.manifest import FORMAT_ENGINES, FormatName, Manifest

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
            f"{_cell(manifest.source.id)} as a model package for {engines} with "
            f"{_describe_weights(manifest)}. Made by qwen-edge.",
            "",
            "```",
            f'qwen-edge run ./{manifest.name} "Hello!"',
            "```",
            "",
            f"It also opens in {_other_programs(manifest)}.",
            "",
            *_facts(manifest),
            "",
            "## What the weights lost",
            "",
            *_loss(manifest),
            "",
        ]
    )


def _front_matter(manifest: Manifest, fmt: FormatName) -> list[str]:
    source = manifest.source
    lines = ["---", f"license: {_quoted(source.license)}"]
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
    group = "per output channel" if recipe.group_size == -1 else f"in groups of {recipe.group_size}"
    awq = " and data-free AWQ" if recipe.awq else ""
    return f"{kind} {recipe.weights} weights {group}{awq}"


def _facts(manifest: Manifest) -> list[str]:
    model, source = manifest.model, manifest.source
    revision = f", commit {source.revision}" if source.revision else ""
    devices = ", ".join(entry.device for entry in manifest.devices) or "ONNX Runtime"
    return [
        "| | |",
        "| --- | --- |",
        f"| source | {_cell(source.id)}{revision} |",
        f"| licence | {_cell(source.license)} |",
        f"| architecture | {model.architecture}, {model.num_layers} layers, "
        f"{model.num_parameters:,} parameters |",
        f"| context | {model.max_context_tokens:,} tokens |",
        f"| profile | {manifest.profile.name}: {devices} |",
        *([f"| NPU | {_cell(describe_verdict(manifest.npu))} |"] if manifest.npu else []),
        f"| recipe | {manifest.recipe.name} |",
        f"| weights | {manifest.weights.weights_bytes:,} bytes |",
        *(f"| {name} | {version} |" for name, version in sorted(manifest.tools.items())),
    ]


def _loss(manifest: Manifest) -> list[str]:
    weights = manifest.weights
    lines = []
    if weights.relative_rms_error is not None:
        lines.append(
            f"Compressed weights differ from the checkpoint's by "
            f"{100 * weights.relative_rms_error:.2f} % (RMS of the difference over RMS of the "
            "weights, on evenly spaced rows of every matrix). That is a figure about weights; how "
            "much an answer changes was not measured here."
        )
    lines += ["", "| bits | weights |", "| --- | --- |"]
    lines += [f"| {bits} | {count:,} |" for bits, count in sorted(weights.bits.items())]
    if weights.group_size_fallbacks:
        lines += ["", "The group size did not divide the width of these matrices:", ""]
        for entry in weights.group_size_fallbacks:
            used = "one per row" if entry.group_size == -1 else str(entry.group_size)
            lines.append(f"- `{entry.tensor}`, {entry.width:,} wide: group {used}")
    return lines
