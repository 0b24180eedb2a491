"""What is done to the weights at export: their format, grouping and method.

Owns the recipes of the catalog (`recipes/*.toml`) and those a person writes. It does not know
which device takes which recipe (`legality.py`) nor how weights are quantised (the export).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast, get_args

from qwen_edge.errors import UnknownRecipeError, UsageError, did_you_mean
from qwen_edge.profiles.table import Setting, TableReader, merge_reasons, refuse_problems
from qwen_edge.profiles.toml_file import (
    OWN_FILE_REASON,
    Catalog,
    TomlFile,
    load_toml,
    name_problems,
    own_name,
)

WeightFormat = Literal["fp16", "int8", "int4"]
LayerFormat = Literal["fp16", "int8"]

PER_CHANNEL = -1  # NNCF's group size for one scale per output channel
MIN_GROUP_SIZE = 32  # NNCF 3.4, AdvancedCompressionParameters.min_adjusted_group_size
MAX_GROUP_SIZE = 512  # largest power of two that divides Qwen3-4B's hidden size, 2,560

RECIPES = Catalog("recipes", "recipe", "--recipe", UnknownRecipeError)


@dataclass(frozen=True)
class Recipe:
    """How weights are stored, with the reason for every choice.

    Args:
        name: Catalog name, or the name of a person's file.
        summary: One line for a table.
        weights: Format of the matrices of all layers.
        symmetric: Without a zero point. No meaning for fp16.
        group_size: Weights that share a scale; -1 is one output channel.
        awq: Scale channels by Activation-aware Weight Quantisation, without data.
        embedding: Format of the token embedding; int8 has a zero point, per row.
        head: Format of the last layer; int8 has a zero point, per output channel.
        reasons: Field name → reason.

    Raises:
        UsageError: A value is out of range or contradicts another; all problems in one error.
    """

    name: str
    summary: str
    weights: WeightFormat
    symmetric: bool
    group_size: int
    awq: bool
    embedding: LayerFormat
    head: LayerFormat
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasons", MappingProxyType(dict(self.reasons)))
        problems = name_problems(self.name) + _recipe_problems(self)
        refuse_problems(f"Recipe {self.name!r}", problems, _FIX)

    def to_manifest(self) -> dict[str, str | int | bool]:
        """Return the values without reasons and summary, as a package manifest stores them."""
        return {"name": self.name} | {key: getattr(self, key) for key in _KEYS}

    def to_json(self) -> dict[str, object]:
        """Return every value with its reason, for programs."""
        settings = {
            key: {"value": getattr(self, key), "reason": self.reasons.get(key, "")} for key in _KEYS
        }
        return {"name": self.name, "summary": self.summary, "settings": settings}


_KINDS: Mapping[str, type] = MappingProxyType(
    {
        "weights": str,
        "symmetric": bool,
        "group_size": int,
        "awq": bool,
        "embedding": str,
        "head": str,
    }
)
_KEYS = tuple(key.name for key in fields(Recipe) if key.name in _KINDS)
_FIX = "correct the file; `qwen-edge profiles show core-ultra` names the default recipe"


def recipe_names() -> tuple[str, ...]:
    """Return the names of all recipes in the catalog, sorted."""
    return RECIPES.names()


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Return the recipe of this name, or the one in a person's own TOML file.

    Args:
        name_or_path: A catalog name, or a path (with a separator, or ending in `.toml`).

    Raises:
        UnknownRecipeError: No recipe has this name and no file is at this path.
        UsageError: The file cannot be read, or has problems; all of them in one error.
    """
    file = load_toml(RECIPES, name_or_path)
    problems: list[str] = []
    reader = TableReader(file.table, "", OWN_FILE_REASON if file.is_own else None, problems)
    reader.check_keys(("name", "summary", "extends", *_KEYS))
    parent = _load_parent(reader)
    settings = _inherited(parent)
    for key in _KEYS:
        found = reader.setting(key, _KINDS[key])
        if found is not None:
            settings[key] = found
        elif key not in settings and key not in file.table:
            problems.append(f"{key} is missing. Write it, or extends = 'int4-awq'")
    name = own_name(reader, file, recipe_names())
    summary = reader.plain_text("summary") or _default_summary(file, parent)
    refuse_problems(f"The recipe file {file.label}", problems, _FIX)
    values = {key: setting.value for key, setting in settings.items()}
    try:
        return Recipe(
            name=name,
            summary=summary,
            weights=cast("WeightFormat", values["weights"]),
            symmetric=cast("bool", values["symmetric"]),
            group_size=cast("int", values["group_size"]),
            awq=cast("bool", values["awq"]),
            embedding=cast("LayerFormat", values["embedding"]),
            head=cast("LayerFormat", values["head"]),
            reasons=merge_reasons(settings),
        )
    except UsageError as exc:
        found_problems = cast("tuple[str, ...]", exc.facts["problems"])
        refuse_problems(f"The recipe file {file.label}", found_problems, _FIX)
        raise


def _load_parent(reader: TableReader) -> Recipe | None:
    names = reader.texts("extends")
    if len(names) > 1:
        reader.problems.append("extends lists several recipes; a recipe extends one")
        return None
    for name in names:
        if name in recipe_names():
            return load_recipe(name)
        hint = did_you_mean(name.lower(), recipe_names())
        reader.problems.append(f"extends = {name!r} names no recipe of the catalog.{hint}")
    return None


def _inherited(parent: Recipe | None) -> dict[str, Setting]:
    if parent is None:
        return {}
    return {key: Setting(getattr(parent, key), parent.reasons[key]) for key in _KEYS}


def _default_summary(file: TomlFile, parent: Recipe | None) -> str:
    return f"your file {file.name}" + (f", from {parent.name}" if parent else "")


def _recipe_problems(recipe: Recipe) -> list[str]:
    """Return every range and contradiction problem of a recipe."""
    problems = []
    for key, kind in (("weights", WeightFormat), ("embedding", LayerFormat), ("head", LayerFormat)):
        value, allowed = getattr(recipe, key), get_args(kind)
        if value not in allowed:
            hint = did_you_mean(str(value).lower(), allowed)
            problems.append(f"{key} is {value!r}; expected one of {', '.join(allowed)}.{hint}")
    size = recipe.group_size
    is_group = MIN_GROUP_SIZE <= size <= MAX_GROUP_SIZE and size & (size - 1) == 0
    if recipe.weights == "int4" and not is_group and size != PER_CHANNEL:
        problems.append(
            f"group_size is {size:,}; expected -1 (one output channel) or a power of two "
            f"from {MIN_GROUP_SIZE} to {MAX_GROUP_SIZE:,}"
        )
    if recipe.weights in ("fp16", "int8") and size != PER_CHANNEL:
        problems.append(
            f"group_size is {size:,} with {recipe.weights} weights; only int4 has groups, write -1"
        )
    if recipe.awq and recipe.weights in ("fp16", "int8"):
        problems.append(f"awq is true with {recipe.weights} weights; AWQ is for int4 only")
    if recipe.weights == "fp16" and "int8" in (recipe.embedding, recipe.head):
        problems.append("embedding or head is int8 with fp16 weights; use the recipe int8 instead")
    return problems
