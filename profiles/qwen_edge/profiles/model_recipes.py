"""Which recipe suits which architecture, by its shape and never by its name.

Owns the table of `model_recipes.toml`. A checkpoint in a folder, a fine-tune and a renamed copy
have the shape of the model they came from, and get its recipe. What recipes mean is in
`recipe.py`, where they may run in `legality.py`.
"""

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Protocol

from qwen_edge.profiles.choose import Choice
from qwen_edge.profiles.legality import legality
from qwen_edge.profiles.profile import Profile, profile_names
from qwen_edge.profiles.recipe import load_recipe

GENERAL_RECIPE = "int4-awq"  # what catalog profiles take for a model that nobody tuned
_SHAPE = (
    "model_type",
    "num_layers",
    "hidden_size",
    "intermediate_size",
    "num_heads",
    "num_kv_heads",
    "head_dim",
)


class ArchitectureShape(Protocol):
    """A decoder, as far as it tells one published model from another."""

    @property
    def model_type(self) -> str:
        """As config.json has it."""
        ...

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        ...

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        ...

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP."""
        ...

    @property
    def num_heads(self) -> int:
        """Query heads."""
        ...

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads."""
        ...

    @property
    def head_dim(self) -> int:
        """Dimensions of one head."""
        ...


@dataclass(frozen=True)
class ModelRecipe:
    """What is known of one shape.

    Args:
        name: The published model, for people.
        model_type: As config.json has it; the following sizes are its own, too.
        num_layers: Decoder layers.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Dimensions of one head.
        recipes: Data-free catalog recipes, best first; the last one is legal everywhere.
        tuned: The calibrated recipe of the shape.
        reason: Why the first of `recipes`.
    """

    name: str
    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    recipes: tuple[str, ...]
    tuned: str
    reason: str


@lru_cache(maxsize=1)
def model_recipes() -> tuple[ModelRecipe, ...]:
    """Return the table, in the order of its file."""
    file = resources.files("qwen_edge.profiles").joinpath("model_recipes.toml")
    entries: list[dict[str, Any]] = tomllib.loads(file.read_text(encoding="utf-8"))["models"]
    return tuple(ModelRecipe(**(entry | {"recipes": tuple(entry["recipes"])})) for entry in entries)


def find_model_recipe(model: ArchitectureShape) -> ModelRecipe | None:
    """Return what is known of a model's shape, or None; its vocabulary may be any."""
    for entry in model_recipes():
        if all(getattr(entry, key) == getattr(model, key) for key in _SHAPE):
            return entry
    return None


def choose_model_recipe(
    model: ArchitectureShape, profile: Profile, *, is_for_openvino: bool = True
) -> Choice[str] | None:
    """Return the recipe that suits a model better than the profile's general one.

    Args:
        model: Its shape.
        profile: Its recipe is replaced only where the catalog chose the general one; a profile
            of a person's own means what it says.
        is_for_openvino: The devices of the profile will run it; ONNX Runtime takes every one of
            these recipes.

    Returns:
        None where the profile's recipe stays, without anything to say.
    """
    known = find_model_recipe(model)
    is_general = profile.recipe == GENERAL_RECIPE and profile.name in profile_names()
    if known is None or not is_general:
        return None
    devices: list[str] = [entry.device for entry in profile.devices] if is_for_openvino else []
    refusing: list[str] = []  # the best one
    for name in known.recipes:
        recipe = load_recipe(name)
        found = [device for device in devices if not legality(recipe, device).value]
        if not found:
            break
        refusing = refusing or found
    why = known.reason
    if refusing:
        why = f"{known.recipes[0]}, its own, is not for {', '.join(refusing)}"
    shape = f"a model of the shape of {known.name}"
    return Choice(name, f"{shape}: {why}; calibrated: --recipe {known.tuned}")
