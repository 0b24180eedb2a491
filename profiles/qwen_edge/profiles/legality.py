"""The legality table: which recipe may run on which device, and why not.

Rows are data with their source. A recipe is legal on a device when no row of that device
refuses it. To allow or refuse something new, add or change a row.
"""

from dataclasses import dataclass

from qwen_edge.errors import RecipeNotSupportedError, UsageError, did_you_mean, join_problems
from qwen_edge.profiles.choose import Choice
from qwen_edge.profiles.matrix_format import PER_CHANNEL, MatrixFormat
from qwen_edge.profiles.profile import Profile, load_profile, profile_names
from qwen_edge.profiles.properties import DEVICES
from qwen_edge.profiles.recipe import Recipe, load_recipe, recipe_names

_NPU_GUIDE = "OpenVINO 2026 documentation, OpenVINO GenAI on NPU"


@dataclass(frozen=True)
class LegalityRow:
    """One rule.

    Args:
        device: Where it holds.
        key: The field that it looks at: of the recipe, and of each exception for single
            matrices that has it.
        allowed: The values that are legal.
        expectation: What is allowed, in words.
        source: Where that is written, or how it was found.
        weights: Formats that the rule is about; none named, it is about all.
    """

    device: str
    key: str
    allowed: tuple[str | int | float, ...]
    expectation: str
    source: str
    weights: tuple[str, ...] = ()


LEGALITY_ROWS = (
    LegalityRow(
        "NPU",
        "weights",
        ("int4", "nf4"),
        "the NPU runs language models with 4-bit weights only",
        f"{_NPU_GUIDE}; fp16 ends in a compiler error, openvino.genai issue 1717",
    ),
    LegalityRow(
        "NPU",
        "symmetric",
        (True,),
        "the NPU needs symmetric weights",
        _NPU_GUIDE,
        ("int4",),
    ),
    LegalityRow(
        "NPU",
        "group_size",
        (128, PER_CHANNEL),
        "the NPU needs groups of 128 or one scale per output channel (-1)",
        _NPU_GUIDE,
        ("int4",),
    ),
    LegalityRow(
        "NPU",
        "group_size",
        (PER_CHANNEL,),
        "the NPU takes NF4 with one scale per output channel (-1) only, and from Core Ultra "
        "Series 2 on",
        _NPU_GUIDE,
        ("nf4",),
    ),
    LegalityRow(
        "NPU",
        "ratio",
        (1.0,),
        "the NPU needs 4 bits in all layers (ratio 1)",
        _NPU_GUIDE,
        ("int4", "nf4"),
    ),
    LegalityRow(
        "GPU",
        "weights",
        ("fp16", "int8", "int4"),
        "the GPU plugin has no NF4",
        "OpenVINO Model Server documentation, troubleshooting; never run on a GPU by this project",
    ),
)

# Why everything that no row refuses is legal on these.
_LEGAL = {
    "CPU": "the CPU takes every recipe (fp16, int8, int4 and nf4 run on OpenVINO 2026.4.1)",
    "GPU": "the GPU takes fp16, int8 and int4 (OpenVINO's published tables; never run on a GPU by "
    "this project)",
}
_SPECIAL_NAMES = ("auto", "peer-", "qwen3-")  # needs a budget; for comparison; for one shape
_ONNX_WEIGHTS = ("fp16", "int8", "int4")


def legality(recipe: Recipe, device: str) -> Choice[bool]:
    """Return whether a recipe may run on a device, and why or why not.

    Args:
        recipe: What was or will be done to the weights.
        device: "CPU", "GPU" or "NPU".

    Raises:
        UsageError: `device` is none of them.
    """
    if device not in DEVICES:
        hint = did_you_mean(device.upper(), DEVICES)
        fix = f"use one of: {', '.join(DEVICES)}"
        raise UsageError(f"Unknown device {device!r}.{hint}", fix, device=device)
    rows = [row for row in LEGALITY_ROWS if row.device == device]
    applied = [row for row in rows if not row.weights or recipe.weights in row.weights]
    refused = [_refusal(row, recipe) for row in applied if _is_refused(row, recipe)]
    for key, found in recipe.matrices.items():
        refused += [
            f"matrices {key!r}: {_refusal(row, found)}"
            for row in rows
            if hasattr(found, row.key)
            and (not row.weights or found.weights in row.weights)
            and _is_refused(row, found)
        ]
    if refused:
        return Choice(False, join_problems(refused))
    return Choice(True, _LEGAL.get(device) or "; ".join(row.expectation for row in applied))


def _is_refused(row: LegalityRow, found: Recipe | MatrixFormat) -> bool:
    return getattr(found, row.key) not in row.allowed


def _refusal(row: LegalityRow, found: Recipe | MatrixFormat) -> str:
    return f"{row.key} is {_shown(getattr(found, row.key))}, {row.expectation} ({row.source})"


def check_onnx_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that has no ONNX form.

    Raises:
        RecipeNotSupportedError: Some weights are of a format that our ONNX operators lack.

    Source:
        ONNX Runtime 1.31, ContribOperators.md: MatMulNBits has whole numbers; NF4 is in
        MatMulBnb4 alone, with its own blocks and no kernels for int8 activations.
    """
    formats = {"weights": recipe.weights}
    formats |= {f"matrices {key!r}": found.weights for key, found in recipe.matrices.items()}
    refused = [f"{key} is {value}" for key, value in formats.items() if value not in _ONNX_WEIGHTS]
    if not refused:
        return
    raise RecipeNotSupportedError(
        f"Recipe {recipe.name!r} has no ONNX form: {join_problems(refused)}, expected one of "
        f"{', '.join(_ONNX_WEIGHTS)}.",
        "use --recipe int4-awq, or keep the recipe with --format openvino",
        recipe=recipe.name,
    )


def check_recipe(recipe: Recipe, profile: Profile) -> None:
    """Refuse a recipe that some device of the profile cannot run.

    One package serves every device that its profile names, so all of them must take it.

    Raises:
        RecipeNotSupportedError: The table refuses the recipe on at least one device; the fix
            names the recipes and profiles that are legal.
    """
    verdicts = {entry.device: legality(recipe, entry.device) for entry in profile.devices}
    refused = {device: verdict.reason for device, verdict in verdicts.items() if not verdict.value}
    if not refused:
        return
    why = join_problems([f"{device}: {reason}" for device, reason in refused.items()])
    raise RecipeNotSupportedError(
        f"Recipe {recipe.name!r} cannot serve profile {profile.name!r}. {why}.",
        _suggest(recipe, profile),
        recipe=recipe.name,
        profile=profile.name,
        refused=refused,
    )


def _suggest(recipe: Recipe, profile: Profile) -> str:
    """Return the two ways out: another recipe, or another profile."""
    recipes = [
        name
        for name in recipe_names()
        if not name.startswith(_SPECIAL_NAMES)
        and all(legality(load_recipe(name), entry.device).value for entry in profile.devices)
    ]
    recipes.sort(key=lambda name: name != profile.recipe)
    profiles = [
        name
        for name in profile_names()
        if all(legality(recipe, entry.device).value for entry in load_profile(name).devices)
    ]
    return (
        f"use --recipe {_or_list(recipes)}\nor keep the recipe with --profile {_or_list(profiles)}"
    )


def _or_list(names: list[str]) -> str:
    return ", ".join(names[:-1]) + (" or " if names[:-1] else "") + names[-1]


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
