"""The legality table: which recipe may run on which device, and why not.

Rows are data with their source. A recipe is legal on a device when no row of that device
refuses it. To allow or refuse something new, add or change a row.
"""

from dataclasses import dataclass

from qwen_edge.errors import RecipeNotSupportedError, UsageError, did_you_mean, join_problems
from qwen_edge.profiles.choose import Choice
from qwen_edge.profiles.profile import Profile, load_profile, profile_names
from qwen_edge.profiles.properties import DEVICES
from qwen_edge.profiles.recipe import PER_CHANNEL, Recipe, load_recipe, recipe_names

_NPU_GUIDE = "OpenVINO 2026 documentation, OpenVINO GenAI on NPU"


@dataclass(frozen=True)
class LegalityRow:
    """One rule.

    Args:
        device: Where it holds.
        key: The recipe's field that it looks at.
        allowed: The values that are legal.
        expectation: What is allowed, in words.
        source: Where that is written, or how it was found.
    """

    device: str
    key: str
    allowed: tuple[str | int | bool, ...]
    expectation: str
    source: str


LEGALITY_ROWS = (
    LegalityRow(
        "NPU",
        "weights",
        ("int4",),
        "the NPU runs language models with 4-bit weights only",
        f"{_NPU_GUIDE}; fp16 ends in a compiler error, openvino.genai issue 1717",
    ),
    LegalityRow(
        "NPU",
        "symmetric",
        (True,),
        "the NPU needs symmetric weights",
        _NPU_GUIDE,
    ),
    LegalityRow(
        "NPU",
        "group_size",
        (128, PER_CHANNEL),
        "the NPU needs groups of 128 or one scale per output channel (-1)",
        _NPU_GUIDE,
    ),
)

# Why everything is legal on these: no row refuses anything.
_ALL_LEGAL = {
    "CPU": "the CPU takes every recipe (fp16, int8 and int4 run on OpenVINO 2026.4.1)",
    "GPU": "the GPU takes every recipe (OpenVINO's published tables: fp16, int8 and int4; never "
    "run on a GPU by this project)",
}


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
    if not rows:
        return Choice(True, _ALL_LEGAL[device])
    if recipe.weights != "int4":  # without groups the other fields say nothing
        rows = [row for row in rows if row.key == "weights"]
    refused = [
        f"{row.key} is {_shown(getattr(recipe, row.key))}, {row.expectation} ({row.source})"
        for row in rows
        if getattr(recipe, row.key) not in row.allowed
    ]
    if refused:
        return Choice(False, join_problems(refused))
    return Choice(True, "; ".join(row.expectation for row in rows))


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
        if all(legality(load_recipe(name), entry.device).value for entry in profile.devices)
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
