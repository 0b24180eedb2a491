"""A package replaced by a new one while a program runs it."""

import shutil
from pathlib import Path

import pytest

from qwen_edge.export import ExportRequest, export
from qwen_edge.runtime import Model, SamplingParams, load
from qwen_edge.runtime.package import package_hash

GREEDY = SamplingParams(temperature=0)
QUESTION = "What is the capital of France?"
LONG = "Repeat this text: The red house needs the old cat in Berlin."


def answer(model: Model, question: str = QUESTION) -> str:
    return model.session().ask(question, sampling=GREEDY).text


@pytest.mark.trust("T-EXP-10")
def test_a_running_program_keeps_what_it_loaded(demo_package: Path, tmp_path: Path) -> None:
    """Also where it had not answered yet: its files are mapped, and were removed under it."""
    target = Path(shutil.copytree(demo_package, tmp_path / "p"))
    request = ExportRequest(
        "demo", "core-ultra-cpu", recipe="int8", output=target, force=True, skip_quality=True
    )
    old = package_hash(target)
    with load(demo_package) as model:
        expected = answer(model), answer(model, LONG)
    with load(target) as used, load(target, warm_up=False) as fresh:
        before = answer(used)
        export(request)
        assert package_hash(target) != old
        assert [path.name for path in tmp_path.iterdir()] == ["p"]
        assert (before, answer(used, LONG)) == expected
        assert (answer(fresh), answer(fresh, LONG)) == expected
    with load(target) as model:
        assert answer(model) == expected[0]
        assert model.manifest.recipe.name == "int8"
