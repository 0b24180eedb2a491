"""A recipe written as a file gives the same recipe again."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_edge.profiles import load_recipe, recipe_names
from qwen_edge.profiles.matrix_format import MATRIX_NAMES, MatrixFormat
from qwen_edge.profiles.recipe import Recipe
from qwen_edge.profiles.recipe_text import format_recipe


def reread(recipe: Recipe, folder: Path, heading: str = "") -> Recipe:
    path = folder / "written.toml"
    path.write_bytes(format_recipe(recipe, heading=heading).encode("utf-8"))
    return load_recipe(path)


@pytest.mark.parametrize("name", recipe_names())
def test_the_catalog_comes_back(name: str, tmp_path: Path) -> None:
    recipe = replace(load_recipe(name), name=f"my-{name}")
    found = reread(recipe, tmp_path, heading='found by a search: "kl<=0.03"\n\nsecond line')
    assert found == recipe


printable = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
keys = st.builds(
    "layers.{}.{}".format,
    st.one_of(st.just("*"), st.integers(0, 99).map(str)),
    st.sampled_from(MATRIX_NAMES),
)
formats = st.one_of(
    st.builds(MatrixFormat, st.just("int4"), st.booleans(), st.sampled_from([-1, 32, 128, 512])),
    st.builds(MatrixFormat, st.just("int8"), st.booleans(), st.just(-1)),
    st.builds(MatrixFormat, st.just("fp16"), st.booleans(), st.just(-1)),
    st.builds(MatrixFormat, st.just("nf4"), st.just(True), st.sampled_from([-1, 64])),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    matrices=st.dictionaries(keys, formats, max_size=6),
    summary=printable,
    reason=printable,
    ratio=st.floats(0.01, 1, exclude_min=True),
)
def test_any_recipe_comes_back(
    matrices: dict[str, MatrixFormat], summary: str, reason: str, ratio: float, tmp_path: Path
) -> None:
    base = load_recipe("int4-gptq")
    reasons = {**base.reasons, "weights": reason, "matrices": reason if matrices else "none"}
    recipe = replace(
        base, name="mine", summary=summary, matrices=matrices, ratio=ratio, reasons=reasons
    )
    found = reread(recipe, tmp_path)
    assert replace(found, reasons=recipe.reasons) == recipe
    assert found.reasons["weights"] == reason
    assert not matrices or found.reasons["matrices"] == reason


def test_exceptions_stand_in_the_order_of_layers() -> None:
    int8 = MatrixFormat("int8", symmetric=False, group_size=-1)
    names = ("layers.10.mlp.up_proj", "layers.*.mlp.up_proj", "layers.9.mlp.up_proj")
    text = format_recipe(replace(load_recipe("int4"), matrices=dict.fromkeys(names, int8)))
    lines = [line.split('"')[1] for line in text.splitlines() if line.startswith('"')]
    assert lines == [names[1], names[2], names[0]]
