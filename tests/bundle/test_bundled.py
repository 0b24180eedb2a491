"""The launcher's command line: the bundle's model comes in where no package is named."""

import json
from pathlib import Path

import pytest

from qwen_edge.bundle.sums import write_sums
from qwen_edge.cli.bundled import complete, start
from qwen_edge.errors import UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return something like a bundle, and beside it another package."""
    for folder in (tmp_path / "app" / "model", tmp_path / "other"):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    return tmp_path / "app"


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("run Hello", 1),
        ("run", 1),
        ("run --seed 5 Hello", 1),
        ("run --seed=5 Hello --quiet", 1),
        ("run --temperature 0 -n 2 --json Hello", 1),
        ("run -n2 --json Hello", 1),
        ("run --draft OTHER Hello", 1),
        ("run -- -1", 1),
        ("--log-level debug run Hello", 3),
        ("chat", 1),
        ("chat --system Be-brief", 1),
        ("serve", 1),
        ("serve --port 0 --ready-file r.json", 1),
        ("verify --json", 1),
        ("bench", 1),
        ("batch questions.txt", 1),
    ],
)
def test_the_model_comes_in(root: Path, line: str, place: int) -> None:
    arguments = [str(root.parent / "other") if word == "OTHER" else word for word in line.split()]
    expected = [*arguments[:place], str(root / "model"), *arguments[place:]]
    assert complete(arguments, root) == expected


@pytest.mark.parametrize(
    "line",
    [
        "run OTHER Hello",
        "run OTHER",
        "run --seed 5 OTHER Hello",
        "run NOWHERE Hello",  # two words: the first is a package, wrong as it may be
        "chat OTHER",
        "serve OTHER",
        "serve NOWHERE OTHER",
        "verify NOWHERE",
        "profiles",
        "doctor",
        "--version",
        "--help",
        "",
        "no-such-command",
    ],
)
def test_other_lines_stay_as_they_are(root: Path, line: str) -> None:
    names = {"OTHER": str(root.parent / "other"), "NOWHERE": str(root.parent / "nowhere")}
    arguments = [names.get(word, word) for word in line.split()]
    assert complete(arguments, root) == arguments


@pytest.mark.parametrize("command", ["export", "bundle", "quality"])
def test_what_makes_packages_is_refused(
    root: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="is not in it"):
        complete([command, "demo"], root)
    assert start([command, "--json"], root) == 2
    assert json.loads(capsys.readouterr().err)["error"] == "UsageError"


def test_verify_finds_a_changed_program(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "program").write_text("as it was")
    write_sums(root)
    (root / "program").write_text("as it is!")
    (root / "new").write_text("")
    assert start(["verify", "--json"], root) == 3
    problem = json.loads(capsys.readouterr().err)["problem"]
    assert "'program' is not the file that it was; 'new' was added" in problem
