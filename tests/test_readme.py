"""README is true: what it names exists, and what it shows runs."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_edge.cli.main import cli
from qwen_edge.profiles import profile_names, recipe_names
from qwen_edge.runtime import Model, SamplingParams, load, load_batch
from qwen_edge.runtime.answer_options import resolve_options

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_tree_lists_real_folders_and_all_of_them() -> None:
    tree = next(block for block in README.split("```") if "profiles/qwen_edge/errors/" in block)
    named = [line.split()[0] for line in tree.strip().splitlines()]
    assert [name for name in named if not (ROOT / name).is_dir()] == []
    packages = {
        f"{init.parent.relative_to(ROOT).as_posix()}/"
        for root in ("profiles", "runtime", "export")
        for init in (ROOT / root / "qwen_edge").glob("*/__init__.py")
    }
    assert packages <= set(named)


def test_commands_exist() -> None:
    named = set(re.findall(r"qwen-edge ([a-z]+)", README))
    assert named
    assert named <= set(cli.list_commands(None))  # type: ignore[arg-type]


def test_scripts_exist() -> None:
    named = set(re.findall(r"scripts/\w+\.py", README))
    assert {"scripts/quickstart.py", "scripts/test.py"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("name", [*profile_names(), *recipe_names()])
def test_profiles_and_recipes_are_named(name: str) -> None:
    """Recipes for one architecture, and of other tools, stand on the recipes' own page."""
    is_special = name.startswith(("qwen3-", "peer-"))
    page = ROOT / "docs" / "recipes-and-legality.md"
    assert f"`{name}`" in (page.read_text(encoding="utf-8") if is_special else README)


def test_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = README.split("```python\n")[1].split("```")[0]
    fake = code.replace("from qwen_edge.runtime import load\n", "")
    exec(compile(fake, "README.md", "exec"), {"load": lambda _: Model.fake(["It scatters."])})
    assert capsys.readouterr().out == "It scatters."


def test_page_for_programmers_runs(
    demo_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The examples run as they stand, one after the other, with the demo model for all packages."""
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    assert len(blocks) > 8
    for name, opener in (("load", load), ("load_batch", load_batch)):
        patched = functools.partial(_open_demo, opener, demo_package)
        monkeypatch.setattr(f"qwen_edge.runtime.{name}", patched, raising=False)
    # The demo model is so small that it may never come to an end.
    short = {"max_new_tokens": 64, "sampling": SamplingParams(temperature=0)}
    for name in ("session", "batch_model"):
        monkeypatch.setattr(
            f"qwen_edge.runtime.{name}.resolve_options",
            lambda defaults, given: resolve_options({**short, **defaults}, given),
        )
    monkeypatch.chdir(tmp_path)
    with load(demo_package) as model:
        names: dict[str, object] = {}
        for index, block in enumerate(blocks):
            names["model"] = model
            exec(compile(block, f"docs/python.md, example {index + 1}", "exec"), names)
    assert (tmp_path / "demo" / "manifest.json").is_file()


def _open_demo(
    opener: Callable[..., object], demo_package: Path, path: str, **options: object
) -> object:
    """Open the demo package in place of another one."""
    assert path.startswith("./qwen3-4b")
    return opener(demo_package, **options)
