"""The second front end: architectures without a native graph, through optimum-intel.

Needs the `optimum` extra (torch, transformers, optimum-intel) and the memory to hold the
whole model. It runs as a process of its own, so that torch stays out of this one and a crash
stays there too; what comes out is sealed like any other package.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_edge.errors import (
    CheckpointError,
    MissingExtraError,
    RecipeNotSupportedError,
    ResourceError,
    UnsupportedArchitectureError,
)
from qwen_edge.profiles.matrix_format import FOUR_BITS
from qwen_edge.profiles.recipe import Recipe
from qwen_edge.runtime.engine import import_openvino
from qwen_edge.runtime.files.writing import (
    note_written,
    open_for_writing,
    remove,
    remove_file,
    rename,
)
from qwen_edge.runtime.manifest import MODEL_BIN, MODEL_XML, ModelFacts

_MIN_COUNTED_VALUES = 4_096  # smaller constants are norms, biases and shapes
_BITS = {"i4": "4", "u4": "4", "i8": "8", "u8": "8", "f16": "16", "bf16": "16", "f32": "32"}
# Inputs that the runtime feeds; a model with others could not be run.
_INPUTS = frozenset({"input_ids", "attention_mask", "position_ids", "beam_idx"})
_LOG_NAME = "optimum.log"
# The command-line program, after OpenVINO's telemetry has been made impossible: it reports at
# import, and what `import_openvino` does to this process does not reach another.
_PROGRAM = (
    "import sys; sys.modules['openvino_telemetry'] = None; "
    "from optimum.commands.optimum_cli import main; main()"
)


def check_optimum(refusal: UnsupportedArchitectureError) -> None:
    """Refuse an architecture without a native graph where the extra is not installed.

    Args:
        refusal: Why the native graph cannot be built; kept as the cause.

    Raises:
        MissingExtraError: optimum-intel or torch is missing.
    """
    for name in ("optimum.intel", "torch"):
        try:
            is_missing = importlib.util.find_spec(name) is None
        except ModuleNotFoundError:
            is_missing = True
        if is_missing:
            raise MissingExtraError(
                f"{refusal.problem} optimum-intel could export it, but {name!r} is not installed.",
                "pip install 'qwen-edge[optimum]' (with torch, several GB), or " + refusal.fix,
                package=name,
            ) from refusal


def export_with_optimum(source: Path, folder: Path, recipe: Recipe) -> None:
    """Write openvino_model.xml and .bin of a checkpoint with optimum-intel.

    Args:
        source: The checkpoint folder, local and complete.
        folder: An existing folder on the target's file system; receives the two files.
        recipe: Formats, group size, AWQ.

    Raises:
        UnsupportedArchitectureError: optimum-intel cannot export it either, or what it
            exports has inputs the runtime does not feed.
        ResourceError: The process was killed, most likely because memory ran out.
    """
    work = folder / "optimum"
    log = folder / _LOG_NAME
    command = [sys.executable, "-c", _PROGRAM, "export", "openvino"]
    command += ["--model", str(source), "--task", "text-generation-with-past"]
    command += [*optimum_options(recipe), "--disable-convert-tokenizer", str(work)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NNCF_CI": "1"}
    with open_for_writing(log) as stream:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **quiet},
            check=False,
        )
    if done.returncode:
        raise _refused(done.returncode, log)
    for name in (MODEL_XML, MODEL_BIN):
        rename(work / name, folder / name)
        note_written(folder / name)
    remove(work)
    remove_file(log)
    _check_inputs(folder / MODEL_XML)


def optimum_options(recipe: Recipe) -> list[str]:
    """Return the command-line options that say the same as a recipe.

    Calibrated methods see what the model itself writes (`--dataset auto`): the other data sets
    that optimum-intel knows would have to be fetched.

    Raises:
        RecipeNotSupportedError: The recipe says what optimum-intel has no option for.
    """
    _check_expressible(recipe)
    options = ["--weight-format", recipe.weights]
    if recipe.symmetric and recipe.weights not in ("fp16", "nf4"):
        options.append("--sym")
    if recipe.weights in FOUR_BITS:
        options += ["--group-size", str(recipe.group_size), "--ratio", str(recipe.ratio)]
        backup = "int8_asym" if recipe.embedding == "int8" else "none"
        options += ["--group-size-fallback", "adjust", "--backup-precision", backup]
        if recipe.is_calibrated:
            options += ["--dataset", "auto"]
        methods = {
            "--awq": recipe.awq,
            "--scale-estimation": recipe.scale_estimation,
            "--gptq": recipe.gptq,
        }
        options += [option for option, is_wanted in methods.items() if is_wanted]
    return options


def _check_expressible(recipe: Recipe) -> None:
    problems = []
    if recipe.matrices:
        problems.append(f"exceptions for single matrices ({', '.join(sorted(recipe.matrices))})")
    if recipe.embedding != recipe.head:
        problems.append("an embedding and a head of different formats")
    elif recipe.weights == "int8" and recipe.embedding != "int8":
        problems.append("an embedding in fp16 beside int8 weights")
    elif recipe.ratio < 1 and recipe.embedding != "int8":
        problems.append("int8 for a share of the layers with an embedding in fp16")
    if problems:
        raise RecipeNotSupportedError(
            f"Recipe {recipe.name!r} has {' and '.join(problems)}; this architecture is exported "
            "by optimum-intel, which has no option for that.",
            "use --recipe int4-awq, or a checkpoint of a native architecture (Qwen3, Qwen2, Llama)",
            recipe=recipe.name,
        )


def generic_model_facts(config: Mapping[str, Any], num_parameters: int) -> ModelFacts:
    """Return the network's facts from the names that most configurations share.

    Args:
        config: The checkpoint's config.json.
        num_parameters: Counted from its tensors.

    Raises:
        CheckpointError: A size is missing.
    """

    def size(*names: str, default: int | None = None) -> int:
        for name in names:
            value = config.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        if default is not None:
            return default
        raise CheckpointError(
            f"config.json has no {names[0]!r}, without which nothing can be planned.",
            "restore config.json from the model's publisher",
            field=names[0],
        )

    hidden_size = size("hidden_size", "n_embd", "d_model")
    num_heads = size("num_attention_heads", "n_head")
    return ModelFacts(
        architecture=str((config.get("architectures") or ["unknown"])[0]),
        model_type=str(config.get("model_type", "unknown")),
        num_layers=size("num_hidden_layers", "n_layer"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=size("num_key_value_heads", default=num_heads),
        head_dim=size("head_dim", default=max(1, hidden_size // num_heads)),
        vocab_size=size("vocab_size"),
        num_parameters=num_parameters,
        max_context_tokens=size("max_position_embeddings", "n_positions"),
    )


def count_bits(xml_path: Path) -> dict[str, int]:
    """Return how many weights of a model are stored in how many bits, "4" → count."""
    bits: dict[str, int] = {}
    for op in import_openvino().Core().read_model(xml_path).get_ops():
        if op.get_type_name() != "Constant":
            continue
        key = _BITS.get(op.get_element_type().get_type_name())
        count = _num_values(op)
        if key is not None and count >= _MIN_COUNTED_VALUES:
            bits[key] = bits.get(key, 0) + count
    return dict(sorted(bits.items()))


def _num_values(op: Any) -> int:
    count = 1
    for dimension in op.get_output_shape(0):
        count *= int(dimension)
    return count


def _check_inputs(xml_path: Path) -> None:
    model = import_openvino().Core().read_model(xml_path)
    names = {port.get_any_name() for port in model.inputs}
    if not names <= _INPUTS or "input_ids" not in names:
        raise UnsupportedArchitectureError(
            f"optimum-intel exported this model with inputs {sorted(names)}; the runtime feeds "
            f"{sorted(_INPUTS)}.",
            "use a decoder-only text model",
            inputs=sorted(names),
        )


def _refused(code: int, log: Path) -> UnsupportedArchitectureError | ResourceError:
    if code < 0:
        return ResourceError(
            f"optimum-intel was ended by signal {-code}, most likely because memory ran out: it "
            "holds the whole model, several times over.",
            "close other programs, or export on a machine with more memory",
            signal=-code,
        )
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").split("\n")]
    last = next((line for line in reversed(lines) if line), "it said nothing")
    return UnsupportedArchitectureError(
        f"optimum-intel could not export this checkpoint (exit code {code}): {last[:300]}",
        "use a dense Qwen3, Qwen2, Qwen2.5 or Llama checkpoint",
        exit_code=code,
    )
