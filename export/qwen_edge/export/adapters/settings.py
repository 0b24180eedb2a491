"""What `adapter_config.json` says of a LoRA, checked: nothing that it asks for is passed over.

A setting that changes the merge in a way this program does not have is refused, and so is a
setting it has never heard of: a merge that is almost right cannot be told from a right one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from qwen_edge.errors import CheckpointError, UsageError, join_problems
from qwen_edge.export.config_fields import shown
from qwen_edge.runtime.schema import SchemaError, read_dataclass

MAX_RANK = 1 << 16
_MAX_ALPHA = 1e6
_MERGE_FIRST = (
    "merge it with peft (`PeftModel.from_pretrained(…).merge_and_unload().save_pretrained(…)`) and "
    "export the folder that this writes"
)
# Settings of training, and of how peft keeps an adapter in memory: the merge is the same.
_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "corda_config",
        "eva_config",
        "fan_in_fan_out",  # peft sets it to false for linear layers, the only ones there are
        "inference_mode",
        "lora_dropout",
        "lora_ga_config",
        "loftq_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "velora_config",
    }
)
# Settings with which an adapter is no product of two matrices added to a weight.
_ANOTHER_METHOD = {
    "alora_invocation_tokens": "applies only after certain tokens",
    "arrow_config": "chooses among adapters while it runs",
    "kasa_config": "has a third, diagonal matrix",
    "layer_replication": "repeats layers",
    "megatron_config": "is cut for several devices",
    "monteclora_config": "draws its weights at random",
    "target_parameters": "changes parameters of experts",
    "use_bdlora": "has matrices of blocks",
    "use_qalora": "pools its input in groups",
}
# Initialisations after which the checkpoint is what it was; the others take the adapter's first
# state out of it. Source: peft 0.21.2, tuners/lora/layer.py, update_layer and the *_init methods.
_PLAIN_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica"})


@dataclass(frozen=True)
class LoraSettings:
    """The part of an adapter's configuration that a merge depends on.

    Args:
        peft_type: "LORA".
        r: Rank, where `rank_pattern` gives no other.
        lora_alpha: Strength, where `alpha_pattern` gives no other; divided by the rank.
        use_rslora: Divided by the square root of the rank instead.
        use_dora: Every row is brought to a length that was learnt.
        lora_bias: The second matrix has a bias.
        bias: Which biases of the model were trained.
        target_modules: Ends of names, or a regular expression for whole names.
        exclude_modules: The same, for modules that are not meant.
        layers_to_transform: Only these layers.
        layers_pattern: What stands before a layer's number.
        modules_to_save: Ends of the names of modules that were trained whole.
        rank_pattern: Rank by regular expression.
        alpha_pattern: Strength by regular expression.
        trainable_token_indices: Rows of the embedding that were trained; or by module.
        ensure_weight_tying: Embedding and head share what was trained, where the model ties them.
        init_lora_weights: How training began.
        task_type: "CAUSAL_LM", or not stated.
        base_model_name_or_path: What it was trained on.
    """

    peft_type: str
    r: int = 8
    lora_alpha: float = 8.0
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    target_modules: tuple[str, ...] | str | None = None
    exclude_modules: tuple[str, ...] | str | None = None
    layers_to_transform: tuple[int, ...] | int | None = None
    layers_pattern: tuple[str, ...] | str | None = None
    modules_to_save: tuple[str, ...] | None = None
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None
    ensure_weight_tying: bool = False
    init_lora_weights: bool | str = True
    task_type: str | None = None
    base_model_name_or_path: str | None = None

    def scale(self, rank: int, alpha: float) -> float:
        """Return what the product of the two matrices is multiplied by."""
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def read_settings(content: Mapping[str, Any], name: str) -> LoraSettings:
    """Check an adapter's configuration.

    Args:
        content: What `adapter_config.json` holds.
        name: The adapter's, for the texts of errors.

    Raises:
        UsageError: Another kind of adapter, or a method that is no merge into the weights.
        CheckpointError: Values that do not fit.
    """
    kind = content.get("peft_type")
    if kind != "LORA":
        raise UsageError(
            f"The adapter {name!r} is of the kind {shown(kind)} (peft_type), expected 'LORA'.",
            _MERGE_FIRST,
            adapter=name,
        )
    _check_method(content, name)
    known = {entry.name for entry in fields(LoraSettings)}
    try:
        settings = read_dataclass(LoraSettings, {k: v for k, v in content.items() if k in known})
    except SchemaError as exc:
        raise _unfit(name, exc.problems) from exc
    problems = _find_problems(settings)
    if problems:
        raise _unfit(name, problems)
    return settings


def _check_method(content: Mapping[str, Any], name: str) -> None:
    """Refuse what is not a plain LoRA or DoRA, known to this program or not."""
    for key, reason in _ANOTHER_METHOD.items():
        if content.get(key):
            raise UsageError(
                f"The adapter {name!r} {reason} ({key!r} in adapter_config.json), so it cannot be "
                "merged into the weights here.",
                _MERGE_FIRST if key != "alora_invocation_tokens" else "train a plain LoRA",
                adapter=name,
                field=key,
            )
    start = content.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        raise UsageError(
            f"The adapter {name!r} began as {shown(start)} (init_lora_weights), which takes a part "
            "out of the checkpoint's own weights first. What is left of them is not in its folder.",
            "save it with peft's `save_pretrained(…, path_initial_model_for_weight_conversion=…)`, "
            "which makes a plain LoRA of it",
            adapter=name,
            field="init_lora_weights",
        )
    known = {entry.name for entry in fields(LoraSettings)} | _WITHOUT_EFFECT | set(_ANOTHER_METHOD)
    unknown = sorted(key for key, value in content.items() if value and key not in known)
    if unknown:
        raise UsageError(
            f"The adapter {name!r} has settings that this version does not know: "
            f"{join_problems([shown(key) for key in unknown])} in adapter_config.json. "
            "They may change what it computes.",
            _MERGE_FIRST,
            adapter=name,
            keys=unknown,
        )


def _find_problems(settings: LoraSettings) -> list[str]:
    """Return what is wrong with values whose types are right."""
    problems = []
    for key, rank in {"r": settings.r, **(settings.rank_pattern or {})}.items():
        if not 1 <= rank <= MAX_RANK:
            problems.append(f"the rank {shown(key)} is {rank}, expected 1 to {MAX_RANK:,}")
    for key, alpha in {"lora_alpha": settings.lora_alpha, **(settings.alpha_pattern or {})}.items():
        if not abs(alpha) <= _MAX_ALPHA:
            problems.append(
                f"the strength {shown(key)} is {alpha:g}, expected at most {_MAX_ALPHA:g}"
            )
    if settings.task_type not in (None, "CAUSAL_LM"):
        problems.append(f"'task_type' is {shown(settings.task_type)}, expected 'CAUSAL_LM'")
    if settings.target_modules == "" or settings.target_modules == ():
        problems.append("'target_modules' is empty")
    return problems


def _unfit(name: str, problems: tuple[str, ...] | list[str]) -> CheckpointError:
    return CheckpointError(
        f"adapter_config.json of the adapter {name!r} cannot be used: {join_problems(problems)}.",
        "save the adapter again with `save_pretrained`",
        adapter=name,
        problems=tuple(problems),
    )
