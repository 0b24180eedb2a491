"""Recipes: the catalog is complete and legal, and a bad file is refused once, with everything."""

import dataclasses
from pathlib import Path

import pytest

from qwen_edge.errors import UnknownRecipeError, UsageError
from qwen_edge.profiles import load_recipe, recipe_names
from qwen_edge.profiles.recipe import Recipe

FIELDS = ("weights", "symmetric", "group_size", "awq", "embedding", "head")

COMPLETE = """
weights = "int4"
symmetric = true
group_size = 64
awq = false
embedding = "int8"
head = "fp16"
"""


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(path: Path) -> tuple[str, ...]:
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert caught.value.fix
    problems = caught.value.facts["problems"]
    assert isinstance(problems, tuple)
    return problems


def test_the_catalog_has_the_five_recipes() -> None:
    assert recipe_names() == ("fp16", "int4", "int4-awq", "int4-channel", "int8")


@pytest.mark.parametrize("name", recipe_names())
def test_every_value_of_the_catalog_has_a_reason(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary
    assert set(recipe.reasons) == set(FIELDS)
    assert all(len(reason) > 10 for reason in recipe.reasons.values())


def test_the_default_recipe_is_symmetric_int4_in_groups_of_128_with_awq() -> None:
    assert load_recipe("int4-awq").to_manifest() == {
        "name": "int4-awq",
        "weights": "int4",
        "symmetric": True,
        "group_size": 128,
        "awq": True,
        "embedding": "int8",
        "head": "int8",
    }


def test_recipes_that_extend_differ_only_where_they_say() -> None:
    plain, awq, channel = (load_recipe(n) for n in ("int4", "int4-awq", "int4-channel"))
    changed = {key for key in FIELDS if getattr(plain, key) != getattr(awq, key)}
    assert changed == {"awq"}
    changed = {key for key in FIELDS if getattr(awq, key) != getattr(channel, key)}
    assert changed == {"group_size"}


def test_an_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(UnknownRecipeError) as caught:
        load_recipe("int4-aqw")
    assert caught.value.problem == "Unknown recipe 'int4-aqw'. Did you mean 'int4-awq'?"
    assert caught.value.fix == "use one of: fp16, int4, int4-awq, int4-channel, int8"


def test_an_own_file_with_plain_values(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, COMPLETE))
    assert recipe.name == "mine"
    assert (recipe.group_size, recipe.head) == (64, "fp16")
    assert set(recipe.reasons.values()) == {"your profile file"}


def test_an_own_file_that_extends_keeps_the_other_reasons(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'extends = "int4-awq"\ngroup_size = { value = 64, reason = "finer" }\nname = "finer"\n',
    )
    recipe = load_recipe(path)
    parent = load_recipe("int4-awq")
    assert (recipe.name, recipe.group_size, recipe.reasons["group_size"]) == ("finer", 64, "finer")
    assert recipe.reasons["awq"] == parent.reasons["awq"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("group_size = 100", "group_size is 100; expected -1"),
        ("group_size = 0", "group_size is 0; expected -1"),
        ("group_size = 1024", "group_size is 1,024; expected -1"),
        ("group_size = -2", "group_size is -2; expected -1"),
        ("group_size = true", "group_size is true; expected a whole number"),
        ('weights = "int3"', "weights is 'int3'; expected one of fp16, int8, int4"),
        ('embedding = "int4"', "embedding is 'int4'; expected one of fp16, int8"),
        ('awq = "yes"', "awq is 'yes'; expected true or false"),
        ('weights = "int8"', "group_size is 128 with int8 weights; only int4 has groups"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(
    tmp_path: Path, change: str, expected: str
) -> None:
    problems = problems_of(write(tmp_path, f'extends = "int4"\n{change}\n'))
    assert any(problem.startswith(expected) for problem in problems), problems


def test_all_problems_come_in_one_error(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'extends = "int5"\ngroupsize = 64\nawq = 1\nsymmetric = { reason = "x" }'
    )
    problems = problems_of(path)
    text = " | ".join(problems)
    assert "unknown key 'groupsize'. Did you mean 'group_size'?" in text
    assert "awq is 1; expected true or false" in text
    assert "symmetric has no 'value'" in text
    assert "extends = 'int5' names no recipe of the catalog. Did you mean" in text
    assert "weights is missing" in text
    assert len(problems) == len(set(problems))


def test_fp16_with_awq_and_int8_embedding_is_refused_with_both_reasons() -> None:
    plain = load_recipe("fp16")
    with pytest.raises(UsageError) as caught:
        dataclasses.replace(plain, awq=True, embedding="int8")
    assert "awq is true with fp16 weights" in caught.value.problem
    assert "embedding or head is int8 with fp16 weights" in caught.value.problem


def test_a_name_of_the_catalog_is_not_for_own_files(tmp_path: Path) -> None:
    problems = problems_of(write(tmp_path, COMPLETE, "int4.toml"))
    assert problems == (
        "its name 'int4' belongs to the catalog. Write another one: name = 'my-int4'",
    )


@pytest.mark.parametrize("name", ["a/b", "..\\x", "", " ", "x" * 65, "red\x1b[31m"])
def test_a_name_must_be_plain(name: str) -> None:
    recipe = load_recipe("int4")
    with pytest.raises(UsageError, match="name"):
        dataclasses.replace(recipe, name=name)


def test_a_recipe_cannot_be_changed() -> None:
    recipe = load_recipe("int4")
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.awq = True  # type: ignore[misc]
    with pytest.raises(TypeError):
        recipe.reasons["awq"] = "x"  # type: ignore[index]


def test_json_has_value_and_reason_of_every_field() -> None:
    document = load_recipe("int8").to_json()
    settings = document["settings"]
    assert isinstance(settings, dict)
    assert list(settings) == list(FIELDS)
    assert settings["weights"]["value"] == "int8"
    assert settings["weights"]["reason"]


def test_fields_of_the_manifest_are_the_fields_of_the_class() -> None:
    names = {item.name for item in dataclasses.fields(Recipe)} - {"summary", "reasons"}
    assert set(load_recipe("int4").to_manifest()) == names
