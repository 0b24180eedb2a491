"""Which modules of a model an adapter's configuration means, and with which rank and strength.

Follows peft's rules for names, ends of names and regular expressions. Patterns come from strangers,
and some would keep a matcher busy for years: those are refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from qwen_edge.errors import UsageError
from qwen_edge.export.adapters.settings import LoraSettings
from qwen_edge.export.config_fields import shown
from qwen_edge.export.decoder import EMBEDDING_NAME, HEAD_NAME, DecoderSpec

T = TypeVar("T")

EMBEDDING_MODULE = EMBEDDING_NAME.removesuffix(".weight")
HEAD_MODULE = HEAD_NAME.removesuffix(".weight")
# Source: peft 0.21.2, utils/constants.py: the same for qwen3, qwen2 and llama.
_DEFAULT_TARGETS = ("q_proj", "v_proj")
_ALL_LINEAR = "all-linear"
_MAX_PATTERN_CHARACTERS = 2_000
_MAX_REPETITIONS = 6  # of any length, in one pattern: names of 40 letters take a millisecond


@dataclass(frozen=True)
class Target:
    """How one module is adapted.

    Args:
        rank: Rows of the first matrix, columns of the second.
        scale: What their product is multiplied by.
    """

    rank: int
    scale: float


def find_targets(settings: LoraSettings, spec: DecoderSpec) -> dict[str, Target]:
    """Return the modules that a LoRA adapts, in the model's order.

    Args:
        settings: The adapter's.
        spec: The model.

    Raises:
        UsageError: A pattern cannot be used.

    Source:
        peft 0.21.2, tuners/tuners_utils.py check_target_module_exists and
        _maybe_include_all_linear_layers, utils/other.py get_pattern_key.
    """
    ranks = _compile_keys(settings.rank_pattern or {})
    alphas = _compile_keys(settings.alpha_pattern or {})
    chooser = _Chooser(settings)
    found = {}
    for module in list_modules(spec):
        if chooser.is_chosen(module):
            rank = _look_up(ranks, module, settings.r)
            alpha = _look_up(alphas, module, settings.lora_alpha)
            found[module] = Target(rank, settings.scale(rank, alpha))
    return found


def list_modules(spec: DecoderSpec) -> list[str]:
    """Return the names of all modules with a matrix; the head too where it is the embedding."""
    names = [EMBEDDING_MODULE]
    for index in range(spec.num_layers):
        names += [name.removesuffix(".weight") for name in spec.linear_shapes(index)]
    return [*names, HEAD_MODULE]


def is_saved(modules_to_save: Sequence[str], module: str) -> bool:
    """Return whether a module, or one that it is part of, was trained whole."""
    parts = module.split(".")
    paths = [".".join(parts[: count + 1]) for count in range(len(parts))]
    return any(path.endswith(end) for end in modules_to_save for path in paths)


class _Chooser:
    """Says of each module whether the configuration means it."""

    def __init__(self, settings: LoraSettings) -> None:
        self._saved = settings.modules_to_save or ()
        targets = settings.target_modules
        if targets is None and settings.trainable_token_indices is None:
            targets = _DEFAULT_TARGETS
        self._targets = targets or ()
        self._pattern = None
        if isinstance(self._targets, str) and self._targets.lower() != _ALL_LINEAR:
            self._pattern = _compile(self._targets)
        excluded = settings.exclude_modules or ()
        self._excluded = excluded if not isinstance(excluded, str) else ()
        self._excluded_pattern = _compile(excluded) if isinstance(excluded, str) else None
        layers = settings.layers_to_transform
        self._layers = (layers,) if isinstance(layers, int) else layers or ()
        before = settings.layers_pattern or ()
        before = (before,) if isinstance(before, str) else before
        self._before_layer = [_compile(text, r"(?:^|.*?\.)", r"\.(\d+)\.") for text in before]

    def is_chosen(self, module: str) -> bool:
        if _ends_with(module, self._excluded) or is_saved(self._saved, module):
            return False
        if self._excluded_pattern is not None and self._excluded_pattern.fullmatch(module):
            return False
        if self._pattern is not None:
            return self._pattern.fullmatch(module) is not None
        if isinstance(self._targets, str):  # all-linear
            return module not in (EMBEDDING_MODULE, HEAD_MODULE)
        return _ends_with(module, self._targets) and self._is_layer_meant(module)

    def _is_layer_meant(self, module: str) -> bool:
        if not self._layers:
            return True
        patterns = self._before_layer or [re.compile(r".*?\.[^.]*\.(\d+)\.")]
        matches = (pattern.match(module) for pattern in patterns)
        match = next((match for match in matches if match), None)
        return match is not None and int(match.group(1)) in self._layers


def _ends_with(module: str, ends: Sequence[str]) -> bool:
    return any(module == end or module.endswith(f".{end}") for end in ends)


def _compile_keys(values: Mapping[str, T]) -> list[tuple[re.Pattern[str], T]]:
    return [(_compile(key, r"(.*\.)?(", ")$"), value) for key, value in values.items()]


def _look_up(values: Sequence[tuple[re.Pattern[str], T]], module: str, default: T) -> T:
    return next((value for pattern, value in values if pattern.match(module)), default)


def _compile(text: str, before: str = "", after: str = "") -> re.Pattern[str]:
    problem = _find_danger(text)
    if problem is None:
        try:
            return re.compile(before + text + after)
        except (re.error, OverflowError, RecursionError) as exc:
            problem = f"is no regular expression: {exc}"
    raise UsageError(
        f"The pattern {shown(text)} in adapter_config.json {problem}.",
        "write the names of the modules into 'target_modules' instead",
        pattern=text[:_MAX_PATTERN_CHARACTERS],
    )


def _find_danger(text: str) -> str | None:
    """Return why matching could take for ever: a repeated group, or very many repetitions."""
    if len(text) > _MAX_PATTERN_CHARACTERS:
        return f"has {len(text):,} characters, more than {_MAX_PATTERN_CHARACTERS:,}"
    bare = re.sub(r"\\.", "x", text, flags=re.DOTALL)
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", bare)  # sets of characters
    if re.search(r"\)[*+{]", bare):
        return "repeats a group, which could take for ever"
    bare = bare.replace("(?", "(")
    count = len(re.findall(r"[*+?]\??|\{[^}]*\}\??", bare))
    if count > _MAX_REPETITIONS:
        return f"has {count} repetitions, more than {_MAX_REPETITIONS}"
    return None
