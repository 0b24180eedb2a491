"""What is done to the weights at export: their format, grouping and method.

Owns the recipes of the catalog (`recipes/*.toml`) and those a person writes. It does not know
which device takes which recipe (`legality.py`) nor how weights are quantised (the export).
`matrix_format.py` has the formats of single matrices.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from qwen_edge.errors import UnknownRecipeError, UsageError, did_you_mean
from qwen_edge.profiles.matrix_format import (
    FOUR_BITS,
    PER_CHANNEL,
    MatrixFormat,
    WeightFormat,
    find_format,
    format_problems,
    key_problems,
)
from qwen_edge.profiles.table import Setting, TableReader, merge_reasons, refuse_problems
from qwen_edge.profiles.toml_file import (
    OWN_FILE_REASON,
    Catalog,
    TomlFile,
    load_toml,
    name_problems,
    own_name,
)

LayerFormat = Literal["fp16", "int8"]
Calibration = Literal["none", "activations"]

RECIPES = Catalog("recipes", "recipe", "--recipe", UnknownRecipeError)
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Recipe:
    """How weights are stored, with the reason for every choice.

    Args:
        name: Catalog name, or the name of a person's file.
        summary: One line for a table.
        weights: Format of the matrices of all layers.
        symmetric: Without a zero point. No meaning for fp16 and nf4.
        group_size: Weights that share a scale; -1 is one output channel.
        awq: Scale channels by Activation-aware Weight Quantisation; without data, or by the
            activations where `calibration` says so.
        embedding: Format of the token embedding; int8 has a zero point, per row.
        head: Format of the last layer; int8 has a zero point, per output channel.
        calibration: "activations" lets the methods see the model's activations on calibration
            text; "none" is data-free.
        scale_estimation: Choose scales that keep each layer's outputs, not its weights.
        gptq: Round column by column, each making up for the errors of those before.
        ratio: Share of the layers' weights that is stored as `weights`; the rest, the most
            sensitive matrices, is int8. Above 0 and at most 1.
        matrices: Exceptions, by "layers.3.mlp.down_proj", or "layers.*.mlp.down_proj" for every
            layer; the exact name beats the star.
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
    calibration: Calibration = "none"
    scale_estimation: bool = False
    gptq: bool = False
    ratio: float = 1.0
    matrices: Mapping[str, MatrixFormat] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasons", MappingProxyType(dict(self.reasons)))
        object.__setattr__(self, "matrices", MappingProxyType(dict(self.matrices)))
        problems = name_problems(self.name) + _recipe_problems(self)
        refuse_problems(f"Recipe {self.name!r}", problems, _FIX)

    @property
    def is_calibrated(self) -> bool:
        """Whether the methods need the model's activations on calibration text."""
        return self.calibration == "activations"

    def matrix_format(self, tensor_name: str) -> MatrixFormat:
        """Return how a matrix is stored, exceptions heeded.

        Args:
            tensor_name: As in the checkpoint: "model.layers.3.mlp.down_proj.weight", the
                embedding or the head. Which matrices `ratio` makes int8 is found at export.
        """
        if tensor_name in (_EMBEDDING, _HEAD):
            weights = self.embedding if tensor_name == _EMBEDDING else self.head
            # Beside layers of 4 bits int8 is asymmetric: NNCF's backup precision.
            return MatrixFormat(weights, self.symmetric and self.weights == "int8", PER_CHANNEL)
        return find_format(self.matrices, tensor_name) or self.layer_format

    def is_exception(self, tensor_name: str) -> bool:
        """Return whether `matrices` says how a tensor is stored; `ratio` leaves those alone."""
        return find_format(self.matrices, tensor_name) is not None

    @property
    def layer_format(self) -> MatrixFormat:
        """Format of the layers' matrices that are no exceptions."""
        return MatrixFormat(self.weights, self.symmetric, self.group_size)

    def to_manifest(self) -> dict[str, Any]:
        """Return the values without reasons and summary, as a package manifest stores them."""
        values: dict[str, Any] = {"name": self.name}
        values |= {key: getattr(self, key) for key in _KEYS}
        values["matrices"] = {key: asdict(value) for key, value in sorted(self.matrices.items())}
        return values

    def to_json(self) -> dict[str, object]:
        """Return every value with its reason, for programs."""
        values = self.to_manifest()
        settings = {
            key: {"value": values[key], "reason": self.reasons.get(key, "")}
            for key in (*_KEYS, "matrices")
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
        "calibration": str,
        "scale_estimation": bool,
        "gptq": bool,
        "ratio": float,
    }
)
_KEYS = tuple(key.name for key in fields(Recipe) if key.name in _KINDS)
# What a file says that does not mention these: no data, no method that needs it, no exception.
_DEFAULTS: Mapping[str, Setting] = MappingProxyType(
    {
        "calibration": Setting("none", "data-free: an export needs no text and no forward pass"),
        "scale_estimation": Setting(False, "needs the model's activations on calibration text"),
        "gptq": Setting(False, "needs the model's activations on calibration text"),
        "ratio": Setting(1.0, "every matrix of a layer has the same format"),
    }
)
_NO_EXCEPTIONS = "no exceptions"
_FIX = "correct the file; `qwen-edge profiles show core-ultra` names the default recipe"


def recipe_names() -> tuple[str, ...]:
    """Return the names of all recipes in the catalog, sorted."""
    return RECIPES.names()


_NOT_OFFERED = {
    "lora_correction": "it is not offered. Its matrices are of 8 bits, which the NPU does not "
    "take, and cost more bytes than smaller groups do for less: of what GPTQ leaves, rank 8 mends "
    "16 % for 12 % more bytes, groups of 32 a third for 8 % (measured on the demo model). Write "
    "group_size = 32",
}
"""Keys of other tools' recipes, and why ours have no such thing."""


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
    reader.check_keys(("name", "summary", "extends", *_KEYS, "matrices", *_NOT_OFFERED))
    problems += [f"{key}: {why}" for key, why in _NOT_OFFERED.items() if key in file.table]
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
    values = {key: setting.value for key, setting in settings.items()}
    matrices, reason = _read_matrices(reader, parent, values)
    refuse_problems(f"The recipe file {file.label}", problems, _FIX)
    reasons = merge_reasons(settings) | {"matrices": reason}
    try:
        return _build_recipe(name, summary, values, matrices, reasons)
    except UsageError as exc:
        found_problems = cast("tuple[str, ...]", exc.facts["problems"])
        refuse_problems(f"The recipe file {file.label}", found_problems, _FIX)
        raise


def _build_recipe(
    name: str,
    summary: str,
    values: Mapping[str, object],
    matrices: Mapping[str, MatrixFormat],
    reasons: Mapping[str, str],
) -> Recipe:
    checked = cast("dict[str, Any]", dict(values))
    checked["ratio"] = float(checked["ratio"])
    return Recipe(name=name, summary=summary, matrices=matrices, reasons=reasons, **checked)


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
        return dict(_DEFAULTS)
    return {key: Setting(getattr(parent, key), parent.reasons[key]) for key in _KEYS}


def _read_matrices(
    reader: TableReader, parent: Recipe | None, values: Mapping[str, object]
) -> tuple[dict[str, MatrixFormat], str]:
    """Return the exceptions of a file and its parent, and the reason for them.

    Args:
        reader: Of the whole file.
        parent: Its exceptions hold, unless the file has the same key.
        values: The recipe's other values: what an entry leaves out comes from them.
    """
    matrices = dict(parent.matrices) if parent else {}
    reason = parent.reasons["matrices"] if parent else _NO_EXCEPTIONS
    table = reader.table.get("matrices")
    if table is None:
        return matrices, reason
    if not isinstance(table, dict):
        reader.problems.append("matrices is no table; write [matrices], then one line per matrix")
        return matrices, reason
    inner = TableReader(table, "matrices: ", None, reader.problems)
    own_reason = inner.plain_text("reason") or reader.default_reason
    entries = {key: raw for key, raw in table.items() if key != "reason"}
    if entries and own_reason is None:
        reader.problems.append("matrices has no 'reason'")
    for key, raw in entries.items():
        if not isinstance(raw, dict):
            reader.problems.append(
                f'matrices {key!r} is no table; write "{key}" = {{ weights = "int8" }}'
            )
            continue
        entry = TableReader(raw, f"matrices {key!r}: ", "", reader.problems)
        entry.check_keys(("weights", "symmetric", "group_size"))
        matrices[key] = _read_format(entry, values)
    return matrices, own_reason or reason


def _read_format(entry: TableReader, values: Mapping[str, object]) -> MatrixFormat:
    """Return one exception; what it leaves out comes from the recipe.

    Where 8 bits stand among 4 they are per channel and have a zero point unless the entry says
    otherwise: NNCF's backup precision, INT8_ASYM, which costs nothing at 8 bits.
    """
    written = {
        key: setting.value
        for key in ("weights", "symmetric", "group_size")
        if (setting := entry.setting(key, _KINDS[key])) is not None
    }
    weights = written.get("weights", values.get("weights"))
    inherited = {key: values.get(key) for key in ("weights", "symmetric", "group_size")}
    if weights in ("int8", "fp16"):
        inherited["group_size"] = PER_CHANNEL
    if weights == "int8" and values.get("weights") != "int8":
        inherited["symmetric"] = False
    if weights == "nf4":
        inherited["symmetric"] = True
    return MatrixFormat(**cast("dict[str, Any]", inherited | written))


def _default_summary(file: TomlFile, parent: Recipe | None) -> str:
    return f"your file {file.name}" + (f", from {parent.name}" if parent else "")


def _recipe_problems(recipe: Recipe) -> list[str]:
    """Return every range and contradiction problem of a recipe."""
    problems = format_problems(recipe.layer_format)
    choices = (("embedding", LayerFormat), ("head", LayerFormat), ("calibration", Calibration))
    for key, kind in choices:
        value, allowed = getattr(recipe, key), get_args(kind)
        if value not in allowed:
            hint = did_you_mean(str(value).lower(), allowed)
            problems.append(f"{key} is {value!r}; expected one of {', '.join(allowed)}.{hint}")
    if recipe.awq and recipe.weights in ("fp16", "int8"):
        problems.append(f"awq is true with {recipe.weights} weights; AWQ is for int4 and nf4 only")
    if recipe.weights == "fp16" and "int8" in (recipe.embedding, recipe.head):
        problems.append("embedding or head is int8 with fp16 weights; use the recipe int8 instead")
    for key, value in recipe.matrices.items():
        problems += key_problems(key)
        problems += format_problems(value, f"matrices {key!r}: ")
    return problems + _method_problems(recipe)


def _method_problems(recipe: Recipe) -> list[str]:
    """Return what contradicts in a recipe's methods and its ratio."""
    problems = []
    if not (math.isfinite(recipe.ratio) and 0 < recipe.ratio <= 1):
        problems.append(f"ratio is {recipe.ratio:g}; expected more than 0 and at most 1")
    wanted = {
        "scale_estimation is true": recipe.scale_estimation,
        "gptq is true": recipe.gptq,
        f"ratio is {recipe.ratio:g}": recipe.ratio < 1,
    }
    asked = [text for text, is_asked in wanted.items() if is_asked]
    if not recipe.is_calibrated:
        problems += [
            f"{text} without calibration; it needs the model's activations, write "
            "calibration = 'activations'"
            for text in asked
        ]
    elif recipe.weights in ("fp16", "int8"):
        problems.append(
            f"calibration is 'activations' with {recipe.weights} weights; only int4 and nf4 have "
            "methods that use them"
        )
    elif not asked and not recipe.awq:
        problems.append(
            "calibration is 'activations' but nothing uses them; set awq, scale_estimation, gptq "
            "or a ratio below 1, or write calibration = 'none'"
        )
    if recipe.weights == "nf4" and (recipe.scale_estimation or recipe.gptq):
        problems.append(
            "scale_estimation or gptq with nf4 weights; both reckon with evenly spaced levels"
        )
    if recipe.ratio < 1 and recipe.weights not in FOUR_BITS:
        problems.append(
            f"ratio is {recipe.ratio:g} with {recipe.weights} weights; it mixes int8 into 4 bits"
        )
    return problems
