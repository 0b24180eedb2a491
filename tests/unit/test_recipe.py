"""Recipes: the catalog is complete and legal, and a bad file is refused once, with everything."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.errors import UnknownRecipeError, UsageError
from qwen_edge.profiles import load_recipe, recipe_names
from qwen_edge.profiles.matrix_format import MatrixFormat, layers_named
from qwen_edge.profiles.recipe import Recipe
from qwen_edge.runtime.recipe_facts import RecipeFacts
from qwen_edge.runtime.schema import read_dataclass, to_json

FIELDS = (
    "weights",
    "symmetric",
    "group_size",
    "awq",
    "embedding",
    "head",
    "calibration",
    "scale_estimation",
    "gptq",
    "ratio",
    "matrices",
)

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


def test_the_catalog_has_the_recipes() -> None:
    general = [name for name in recipe_names() if not name.startswith(("peer-", "qwen3-"))]
    assert general == [
        "auto",
        "fp16",
        "int4",
        "int4-awq",
        "int4-awq-g64",
        "int4-awq-se",
        "int4-channel",
        "int4-gptq",
        "int4-mixed",
        "int8",
        "nf4-channel",
    ]
    assert {"qwen3-0.6b", "qwen3-4b", "peer-olive-cpu"} < set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_value_of_the_catalog_has_a_reason(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary
    assert set(recipe.reasons) == set(FIELDS)
    assert all(len(reason) > 10 for reason in recipe.reasons.values())
    assert not any(reason.startswith("your") for reason in recipe.reasons.values())


def test_the_default_recipe_is_symmetric_int4_in_groups_of_128_with_awq() -> None:
    assert load_recipe("int4-awq").to_manifest() == {
        "name": "int4-awq",
        "weights": "int4",
        "symmetric": True,
        "group_size": 128,
        "awq": True,
        "embedding": "int8",
        "head": "int8",
        "calibration": "none",
        "scale_estimation": False,
        "gptq": False,
        "ratio": 1.0,
        "matrices": {},
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
    assert caught.value.fix == f"use one of: {', '.join(recipe_names())}"


def test_an_own_file_with_plain_values(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, COMPLETE))
    assert recipe.name == "mine"
    assert (recipe.group_size, recipe.head) == (64, "fp16")
    given = {key: recipe.reasons[key] for key in FIELDS[:6]}
    assert set(given.values()) == {"your profile file"}
    assert (recipe.calibration, recipe.ratio, dict(recipe.matrices)) == ("none", 1.0, {})


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
        ('weights = "int3"', "weights is 'int3'; expected one of fp16, int8, int4, nf4"),
        ('embedding = "int4"', "embedding is 'int4'; expected one of fp16, int8"),
        ('awq = "yes"', "awq is 'yes'; expected true or false"),
        ('weights = "int8"', "group_size is 128 with int8 weights; only int4 and nf4 have groups"),
        ('weights = "nf4"\nsymmetric = false', "symmetric is false with nf4 weights"),
        ('calibration = "data"', "calibration is 'data'; expected one of none, activations"),
        ("ratio = 0", "ratio is 0; expected more than 0 and at most 1"),
        ("ratio = 1.5", "ratio is 1.5; expected more than 0 and at most 1"),
        ("ratio = nan", "ratio is nan; expected more than 0 and at most 1"),
        ('ratio = "0.8"', "ratio is '0.8'; expected a number"),
        ("ratio = true", "ratio is true; expected a number"),
        ("ratio = 0.8", "ratio is 0.8 without calibration; it needs the model's activations"),
        ("gptq = true", "gptq is true without calibration"),
        ("scale_estimation = true", "scale_estimation is true without calibration"),
        ('calibration = "activations"', "calibration is 'activations' but nothing uses them"),
        ("matrices = 4", "matrices is no table"),
        ("[matrices]\nx = 4", "matrices 'x' is no table"),
        (
            '[matrices]\n"layers.*.mlp.dwon_proj" = { weights = "int8" }',
            "matrices names 'layers.*.mlp.dwon_proj'; expected 'layers.NUMBER.MATRIX' or "
            "'layers.*.MATRIX' for every layer. Did you mean 'layers.*.mlp.down_proj'?",
        ),
        (
            '[matrices]\n"layers.01.mlp.up_proj" = { weights = "int8" }',
            "matrices names 'layers.01.mlp.up_proj'",
        ),
        (
            '[matrices]\n"layers.1.mlp.up_proj" = { weight = "int8" }',
            "matrices 'layers.1.mlp.up_proj': unknown key 'weight'. Did you mean 'weights'?",
        ),
        (
            '[matrices]\n"layers.1.mlp.up_proj" = { weights = "int8", group_size = 64 }',
            "matrices 'layers.1.mlp.up_proj': group_size is 64 with int8 weights",
        ),
        (
            '[matrices]\n"layers.1.mlp.up_proj" = { group_size = 7 }',
            "matrices 'layers.1.mlp.up_proj': group_size is 7; expected -1",
        ),
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
    assert names == {item.name for item in dataclasses.fields(RecipeFacts)}


MIXED = """
extends = "int4-awq"
[matrices]
"layers.*.mlp.down_proj" = { weights = "int8" }
"layers.3.mlp.down_proj" = { group_size = 64 }
"layers.0.self_attn.v_proj" = { weights = "int4", symmetric = false }
"layers.1.mlp.up_proj" = { weights = "nf4", group_size = -1 }
"layers.2.mlp.up_proj" = { weights = "fp16" }
"""


def tensor(layer: int, matrix: str) -> str:
    return f"model.layers.{layer}.{matrix}.weight"


def test_what_an_exception_leaves_out_comes_from_the_recipe(tmp_path: Path) -> None:
    found = load_recipe(write(tmp_path, MIXED)).matrix_format
    assert found(tensor(5, "mlp.gate_proj")) == MatrixFormat("int4", True, 128)
    # 8 bits among 4: per channel with a zero point.
    assert found(tensor(5, "mlp.down_proj")) == MatrixFormat("int8", False, -1)
    assert found(tensor(3, "mlp.down_proj")) == MatrixFormat("int4", True, 64)  # beats the star
    assert found(tensor(30, "mlp.down_proj")).weights == "int8"  # 3 is not 30
    assert found(tensor(0, "self_attn.v_proj")) == MatrixFormat("int4", False, 128)
    assert found(tensor(1, "mlp.up_proj")) == MatrixFormat("nf4", True, -1)
    assert found(tensor(2, "mlp.up_proj")) == MatrixFormat("fp16", True, -1)
    assert found("model.embed_tokens.weight") == MatrixFormat("int8", False, -1)
    assert found("lm_head.weight") == MatrixFormat("int8", False, -1)


def test_exceptions_are_inherited_and_replaced_one_by_one(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MIXED))
    changed = dataclasses.replace(recipe, name="copy")
    assert changed.matrices == recipe.matrices
    assert layers_named(recipe.matrices) == (0, 1, 2, 3)
    assert recipe.reasons["matrices"] == "your profile file"
    assert load_recipe("int4").reasons["matrices"] == "no exceptions"
    with pytest.raises(TypeError):
        recipe.matrices["x"] = MatrixFormat("int8", False, -1)  # type: ignore[index]


def test_a_manifest_says_all_and_an_earlier_one_still_reads(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MIXED))
    facts = read_dataclass(RecipeFacts, recipe.to_manifest())
    assert to_json(facts) == recipe.to_manifest()
    earlier = {key: value for key, value in recipe.to_manifest().items() if key in FIELDS[:6]}
    facts = read_dataclass(RecipeFacts, earlier | {"name": "old"})
    assert (facts.calibration, facts.gptq, facts.ratio, facts.matrices) == ("none", False, 1, None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weights": "int8", "group_size": -1, "awq": False}, "calibration is 'activations' with"),
        ({"weights": "nf4", "scale_estimation": True}, "scale_estimation or gptq with nf4"),
        ({"weights": "nf4", "gptq": True}, "scale_estimation or gptq with nf4"),
    ],
)
def test_methods_that_a_format_lacks_are_refused(changes: dict[str, Any], expected: str) -> None:
    calibrated = dataclasses.replace(load_recipe("int4-awq"), calibration="activations")
    with pytest.raises(UsageError, match=expected):
        dataclasses.replace(calibrated, **changes)


def test_formats_in_words() -> None:
    formats = [load_recipe(n).layer_format for n in ("fp16", "int8", "int4", "nf4-channel")]
    expected = ["fp16", "int8 asym per channel", "int4 sym g128", "nf4 per channel"]
    assert [str(found) for found in formats] == expected


def test_recipes_of_one_size_are_alike_but_for_their_methods() -> None:
    """A calibrated recipe of 4 bits has the bytes of the plain one."""
    plain = load_recipe("int4")
    for name in ("int4-awq", "int4-awq-se", "int4-gptq", "qwen3-4b", "qwen3-8b", "qwen3-14b"):
        found = load_recipe(name)
        assert (found.layer_format, found.ratio) == (plain.layer_format, 1)
        assert (found.embedding, found.head) == (plain.embedding, plain.head)


def test_a_method_that_is_not_offered_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "lora.toml"
    path.write_text('extends = "int4-awq"\nlora_correction = true\n', encoding="utf-8")
    with pytest.raises(UsageError, match="lora_correction: it is not offered") as caught:
        load_recipe(path)
    assert "group_size = 32" in str(caught.value)
