"""The pages that are made from the program are current."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def write_docs() -> ModuleType:
    """Return the script as a module."""
    sys.path.insert(0, str(ROOT / "scripts"))  # where its other half lies
    spec = importlib.util.spec_from_file_location("write_docs", ROOT / "scripts/write_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(ROOT / "scripts"))
    return module


def test_pages_are_current(write_docs: ModuleType) -> None:
    for name, text in write_docs.make_pages().items():
        path = ROOT / "docs" / name
        assert path.read_text(encoding="utf-8") == text, "run scripts/write_docs.py"


def test_check_tells_and_changes_nothing(
    write_docs: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(write_docs, "DOCS", tmp_path)
    monkeypatch.setattr("sys.argv", ["write_docs.py", "--check"])
    assert write_docs.main() == 1
    assert "docs/cli.md: not current" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("sys.argv", ["write_docs.py"])
    assert write_docs.main() == 0
    monkeypatch.setattr("sys.argv", ["write_docs.py", "--check"])
    assert write_docs.main() == 0


def test_the_tree_in_the_docs_lists_every_error(write_docs: ModuleType) -> None:
    page = write_docs.make_pages()["errors.md"]
    tree = page.split("```")[1]
    for error in write_docs._error_classes(write_docs.EdgeError):
        assert page.count(f"`{error.__name__}`") == 1
        assert error.__name__ in tree


def test_every_command_is_in_the_docs(write_docs: ModuleType) -> None:
    page = write_docs.make_pages()["cli.md"]
    for name in write_docs.cli.list_commands(click.Context(write_docs.cli)):
        assert f"## `qwen-edge {name}`" in page
