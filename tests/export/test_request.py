"""What an export was asked for: precedence, origins, names."""

import re
from pathlib import Path

import pytest

from qwen_edge.errors import (
    RecipeNotSupportedError,
    UnknownProfileError,
    UnknownRecipeError,
    UsageError,
)
from qwen_edge.export.request import DEFAULT_MODEL, ExportRequest, package_name, resolve_request
from qwen_edge.profiles.profile import load_profile
from qwen_edge.profiles.recipe import load_recipe
from qwen_edge.runtime.environment import Environment
from qwen_edge.runtime.files.plain_name import check_plain_name

EMPTY = Environment(cache_dir=None)


def origins(request: ExportRequest, environment: Environment = EMPTY) -> dict[str, str]:
    resolved = resolve_request(request, environment)
    return {name: choice.reason for name, choice in resolved.origins}


def test_flag_goes_before_environment_and_profile() -> None:
    environment = Environment(cache_dir=None, profile="generic-x86", recipe="int8")
    request = ExportRequest(profile="core-ultra-cpu", recipe="int4")
    resolved = resolve_request(request, environment)
    assert (resolved.profile.name, resolved.recipe.name) == ("core-ultra-cpu", "int4")
    found = origins(request, environment)
    assert (found["profile"], found["recipe"]) == ("flag --profile", "flag --recipe")


def test_environment_goes_before_profile() -> None:
    environment = Environment(cache_dir=None, profile="generic-x86", recipe="int8")
    resolved = resolve_request(ExportRequest(), environment)
    assert (resolved.profile.name, resolved.recipe.name) == ("generic-x86", "int8")
    found = origins(ExportRequest(), environment)
    assert found["profile"] == "environment QWEN_EDGE_PROFILE"
    assert found["recipe"] == "environment QWEN_EDGE_RECIPE"


def test_the_profile_goes_before_the_default() -> None:
    request = ExportRequest(profile="core-ultra")
    assert resolve_request(request, EMPTY).recipe.name == load_profile("core-ultra").recipe
    assert origins(request)["recipe"].startswith("profile core-ultra: ")


def test_nothing_given_is_all_chosen_with_reasons() -> None:
    resolved = resolve_request(ExportRequest(), EMPTY)
    assert [name for name, _ in resolved.origins] == list(ExportRequest.__dataclass_fields__)
    found = {name: choice.reason for name, choice in resolved.origins}
    assert found["profile"].startswith("chosen for this machine: ")
    assert found["output"].startswith("default: ")
    assert found["model"] == found["force"] == found["revision"] == "default"
    assert resolved.output == Path(resolved.name)
    assert resolved.name.startswith(DEFAULT_MODEL.split("/")[1].lower())


def test_what_was_given_says_how() -> None:
    request = ExportRequest(
        model="demo",
        profile="generic-x86",
        output=Path("here"),
        max_context_tokens=512,
        cache_dir=Path("cache"),
        offline=True,
    )
    found = origins(request)
    assert found["model"] == "given"
    assert found["output"] == "flag --output"
    assert found["max_context_tokens"] == "flag --max-context-tokens"
    assert found["cache_dir"] == "flag --cache-dir"
    assert found["offline"] == "flag --offline"
    assert resolve_request(request, EMPTY).output == Path("here")


def test_the_name_does_not_follow_the_output() -> None:
    """Else the same export in two places would not be the same bytes."""
    here = resolve_request(ExportRequest("demo", "generic-x86", output=Path("a")), EMPTY)
    there = resolve_request(ExportRequest("demo", "generic-x86", output=Path("b")), EMPTY)
    assert here.name == there.name == "demo-generic-x86-int4"


NAMES = {
    "Qwen/Qwen3-4B": "qwen3-4b",
    "demo": "demo",
    "./models/Qwen3 4B (mine)": "qwen3-4b--mine-",
    "/models/my-model/": "my-model",
    "C:\\models\\Mein Modell\\": "mein-modell",
    "modèle-größe": "mod-le-gr--e",
    "/models/模型": "",
    "...hidden": "hidden",
    "a\nb": "a-b",
}


@pytest.mark.parametrize(("model", "expected"), NAMES.items(), ids=lambda text: repr(text)[:20])
def test_package_names(model: str, expected: str) -> None:
    name = package_name(model, load_profile("core-ultra"), load_recipe("int4-awq"))
    assert name == f"{expected}-core-ultra-int4".strip("-")
    assert check_plain_name(name.replace(".", "-")) is None


def test_a_dot_is_the_folder_it_stands_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`qwen-edge export .` made a package that was called demo."""
    folder = tmp_path / "my-fine-tune" / "inner"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    arguments = (load_profile("generic-x86"), load_recipe("int8"))
    assert package_name(".", *arguments) == "inner-generic-x86-int8"
    assert package_name("./", *arguments) == "inner-generic-x86-int8"
    assert package_name("..", *arguments) == "my-fine-tune-generic-x86-int8"
    assert package_name("/", *arguments) == "generic-x86-int8"


@pytest.mark.parametrize("model", ["aux.v1", "CON.x/", "org/NUL.1", "com1.5b", "lpt9.a"])
def test_no_name_is_a_device_of_windows(model: str) -> None:
    name = package_name(model, load_profile("generic-x86"), load_recipe("int8"))
    assert name.startswith("model-")
    assert not re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", name)


def test_a_long_name_is_cut() -> None:
    name = package_name("x" * 300, load_profile("generic-x86"), load_recipe("int8"))
    assert len(name) < 130


@pytest.mark.parametrize("value", [255, 1, 0, -1])
def test_a_context_of_nothing(value: int) -> None:
    with pytest.raises(UsageError, match=rf"max_context_tokens is {value}, expected 256 or more"):
        ExportRequest(max_context_tokens=value)


@pytest.mark.parametrize("model", ["", "  "])
def test_an_empty_model(model: str) -> None:
    with pytest.raises(UsageError, match=r"The model is an empty text"):
        ExportRequest(model=model)


def test_names_that_do_not_exist() -> None:
    with pytest.raises(UnknownProfileError, match=r"core-ultra-gup.*Did you mean"):
        resolve_request(ExportRequest(profile="core-ultra-gup"), EMPTY)
    with pytest.raises(UnknownRecipeError, match=r"int5"):
        resolve_request(ExportRequest(recipe="int5"), EMPTY)


def test_a_recipe_that_a_device_of_the_profile_refuses() -> None:
    with pytest.raises(RecipeNotSupportedError, match=r"NPU") as caught:
        resolve_request(ExportRequest(profile="core-ultra", recipe="int8"), EMPTY)
    assert "--recipe" in caught.value.fix
