"""The last word on a recipe: does it suit this model, and is there one made for its shape?

A request is complete before the model is known: the profile's recipe is for any model. As soon as
config.json is read, the recipe is looked at once more: here, before any weight is.
"""

from dataclasses import replace

from qwen_edge.errors import RecipeNotSupportedError, UsageError
from qwen_edge.export.calibration_files import read_documents
from qwen_edge.export.decoder import DecoderSpec
from qwen_edge.export.optimum_frontend import optimum_options
from qwen_edge.export.recipe_search.budget import parse_budget
from qwen_edge.export.recipe_search.candidates import (
    AUTO,
    check_budget,
    legal_candidates,
    needs_search,
)
from qwen_edge.export.request import ResolvedRequest
from qwen_edge.profiles.matrix_format import layers_named
from qwen_edge.profiles.model_recipes import choose_model_recipe
from qwen_edge.profiles.recipe import load_recipe

_FROM_PROFILE = "profile "  # how `request.py` begins the reason of a recipe nobody asked for


def fit_recipe(resolved: ResolvedRequest, spec: DecoderSpec | None) -> ResolvedRequest:
    """Return the request with the recipe that its model gets; twice is once.

    Args:
        resolved: The request.
        spec: The decoder; None where optimum-intel has to export it.

    Raises:
        RecipeNotSupportedError: The recipe names layers that the model does not have, or
            says what optimum-intel cannot do.
        UsageError: Calibration text is given, which optimum-intel does not take.
    """
    if spec is None:
        if resolved.request.budget is not None or needs_search(resolved.recipe):
            raise RecipeNotSupportedError(
                f"Recipe {resolved.recipe.name!r} measures layer by layer, which needs a native "
                "graph; this architecture is exported by optimum-intel.",
                "use --recipe int4-awq",
                recipe=resolved.recipe.name,
            )
        optimum_options(resolved.recipe)
        if resolved.request.calibration is not None:
            raise UsageError(
                "Calibration text of your own cannot be used: this architecture is exported by "
                "optimum-intel, which takes none from a file.",
                "leave --calibration away: it then calibrates with what the model itself writes",
                field="calibration",
            )
        return resolved
    fitted = _take_model_recipe(resolved, spec)
    _check_layers(fitted, spec.num_layers)
    check_calibration(fitted)
    if (budget := fitted.request.budget) is not None:
        candidates = legal_candidates(fitted.recipe, fitted.profile, fitted.formats)
        check_budget(parse_budget(budget), spec, fitted.recipe, candidates)
    return fitted


def check_calibration(resolved: ResolvedRequest) -> None:
    """Refuse what belongs to calibration or a search where the recipe has neither.

    Raises:
        UsageError: Text or a budget that nothing would use, or a search without a budget.
    """
    request, recipe = resolved.request, resolved.recipe
    if request.calibration is not None:
        if not recipe.is_calibrated:
            raise UsageError(
                f"Calibration text is given, and the recipe {recipe.name!r} does not calibrate, so "
                "nothing would read it.",
                "add --recipe int4-gptq, or leave --calibration away",
                field="calibration",
            )
        read_documents(request.calibration)
    if request.budget is not None and recipe.name != AUTO:
        raise UsageError(
            f"A budget is given, and the recipe {recipe.name!r} is what it is.",
            "add --recipe auto, or leave --budget away",
            field="budget",
        )
    if recipe.name == AUTO and request.budget is None:
        raise UsageError(
            "The recipe 'auto' chooses formats for a budget, and none is given.",
            'add --budget "size<=2.6GB", --budget "kl<=0.03" or both',
            field="budget",
        )


def _take_model_recipe(resolved: ResolvedRequest, spec: DecoderSpec) -> ResolvedRequest:
    origins = dict(resolved.origins)
    if not origins["recipe"].reason.startswith(_FROM_PROFILE):
        return resolved
    chosen = choose_model_recipe(
        spec, resolved.profile, is_for_openvino="openvino" in resolved.formats
    )
    if chosen is None:
        return resolved
    origins["recipe"] = chosen
    recipe = load_recipe(chosen.value)
    return replace(resolved, recipe=recipe, origins=tuple(origins.items()))


def _check_layers(resolved: ResolvedRequest, num_layers: int) -> None:
    missing = [n for n in layers_named(resolved.recipe.matrices) if n >= num_layers]
    if not missing:
        return
    listed = ", ".join(str(number) for number in missing[:8]) + (" …" if missing[8:] else "")
    raise RecipeNotSupportedError(
        f"Recipe {resolved.recipe.name!r} makes exceptions for layers {listed}; the model has "
        f"layers 0 to {num_layers - 1}.",
        "correct the keys of its [matrices] table, or write layers.* for every layer",
        recipe=resolved.recipe.name,
        layers=tuple(missing),
    )
