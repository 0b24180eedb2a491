"""What may be replaced and what never; and that a package appears whole or not at all."""

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_edge.errors import OutputFolderError, ResourceError
from qwen_edge.export.seal import check_disk, check_target, publish, raise_for_full_disk, stage

FORMAT = {"format": "qwen-edge-package", "format_version": 1}


def make_package(folder: Path, content: str = "old") -> Path:
    """Write what `seal` takes for a package: it looks at nothing but names and the format."""
    folder.mkdir()
    (folder / "model.bin").write_text(content * 100, encoding="utf-8")
    text = json.dumps(FORMAT | {"name": content, "files": {"model.bin": {}}})
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return folder


def export(target: Path, content: str = "new", *, force: bool = True) -> None:
    with stage(target, force=force) as staging:
        staging.folder.rmdir()
        make_package(staging.folder, content)
        publish(staging)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def what_is_at(target: Path) -> str:
    """Return the name of the whole package at a place."""
    name = str(json.loads((target / "manifest.json").read_bytes())["name"])
    assert (target / "model.bin").read_text(encoding="utf-8") == name * 100
    assert len(list(target.iterdir())) == 2
    return name


def test_a_package_is_made(tmp_path: Path) -> None:
    export(tmp_path / "p", force=False)
    assert what_is_at(tmp_path / "p") == "new"
    assert names_in(tmp_path) == ["p"]


@pytest.mark.parametrize("name", ["mit Leer zeichen", "größe", "模型", "x.partial", "-p"])
def test_any_name(name: str, tmp_path: Path) -> None:
    parent = tmp_path / "ein Ordner für 模型"
    parent.mkdir()
    export(parent / name, "one", force=False)
    export(parent / name, "two")
    assert what_is_at(parent / name) == "two"
    assert names_in(parent) == [name]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    export(tmp_path / "p", force=False)
    assert what_is_at(tmp_path / "p") == "new"
    assert names_in(tmp_path) == ["p"]


@pytest.mark.trust("T-EXP-11")
def test_our_package_is_replaced_with_force_only(tmp_path: Path) -> None:
    target = make_package(tmp_path / "p")
    with pytest.raises(OutputFolderError, match=r"already holds a package \('old'\)") as caught:
        export(target, force=False)
    assert caught.value.fix.startswith("replace it with --force")
    assert what_is_at(target) == "old"
    export(target)
    assert what_is_at(target) == "new"
    assert names_in(tmp_path) == ["p"]


def a_file(target: Path) -> None:
    target.write_text("mine", encoding="utf-8")


def a_link_to_a_package(target: Path) -> None:
    target.symlink_to(make_package(target.parent / "real"))


def a_dangling_link(target: Path) -> None:
    target.symlink_to(target.parent / "nothing")


def a_folder_of_mine(target: Path) -> None:
    target.mkdir()
    (target / "thesis.txt").write_text("mine", encoding="utf-8")


def a_web_app(target: Path) -> None:
    target.mkdir()
    (target / "manifest.json").write_text('{"name": "app"}', encoding="utf-8")
    (target / "index.js").write_text("mine", encoding="utf-8")


def a_manifest_of_others_alone(target: Path) -> None:
    target.mkdir()
    (target / "manifest.json").write_text('{"name": "app", "files": {}}', encoding="utf-8")


def a_torn_manifest(target: Path) -> None:
    make_package(target)
    (target / "manifest.json").write_text('{"format": "qwen-ed', encoding="utf-8")


def a_manifest_that_is_a_folder(target: Path) -> None:
    (target / "manifest.json").mkdir(parents=True)


def a_package_with_a_file_of_mine(target: Path) -> None:
    make_package(target)
    (target / "notes.txt").write_text("mine", encoding="utf-8")


def a_package_with_a_folder_of_mine(target: Path) -> None:
    make_package(target)
    (target / "adapters").mkdir()


FOREIGN = [
    a_file,
    a_link_to_a_package,
    a_dangling_link,
    a_folder_of_mine,
    a_web_app,
    a_manifest_of_others_alone,
    a_torn_manifest,
    a_manifest_that_is_a_folder,
    a_package_with_a_file_of_mine,
    a_package_with_a_folder_of_mine,
]


def tree(folder: Path) -> dict[str, object]:
    """Return names, kinds and contents of everything in a folder."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content: object = stat.S_IFMT(mode)
        if stat.S_ISREG(mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(mode):
            content = str(path.readlink())
        found[str(path.relative_to(folder))] = content
    return found


@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
@pytest.mark.trust("T-EXP-11")
def test_what_is_not_ours_is_never_replaced(make: Callable[[Path], None], tmp_path: Path) -> None:
    target = tmp_path / "p"
    make(target)
    before = tree(tmp_path)
    with pytest.raises(OutputFolderError, match=r"not replaced, not even with --force") as caught:
        export(target)
    assert caught.value.exit_code == 2
    assert tree(tmp_path) == before


@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
@pytest.mark.trust("T-EXP-11")
def test_what_appears_while_the_package_is_built_is_kept(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    """A folder that came to the target during the export was moved away and removed."""
    target = tmp_path / "p"
    with pytest.raises(OutputFolderError), stage(target, force=True) as staging:
        make(target)
        before = tree(target) if target.is_dir() else {}
        staging.folder.rmdir()
        make_package(staging.folder)
        publish(staging)
    assert os.path.lexists(target)
    assert (tree(target) if target.is_dir() else {}) == before
    assert not [name for name in names_in(tmp_path) if name.startswith(".")]


def test_a_package_of_a_newer_version_is_ours(tmp_path: Path) -> None:
    target = make_package(tmp_path / "p")
    text = json.dumps(FORMAT | {"format_version": 99, "files": {"model.bin": {}}})
    (target / "manifest.json").write_text(text, encoding="utf-8")
    export(target)
    assert what_is_at(target) == "new"


@pytest.mark.parametrize("place", ["/", ".", "..", ""])
@pytest.mark.trust("T-EXP-11")
def test_places_that_are_no_package_folder(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "mine").write_text("mine", encoding="utf-8")
    monkeypatch.chdir(inner)
    before = tree(tmp_path)
    with pytest.raises(OutputFolderError), stage(Path(place), force=True):
        pass
    assert tree(tmp_path) == before


def test_no_parent(tmp_path: Path) -> None:
    with pytest.raises(OutputFolderError, match=r"does not exist") as caught:
        check_target(tmp_path / "a b" / "p", force=False)
    assert caught.value.fix == f'create it first: mkdir "{tmp_path / "a b"}"'
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputFolderError, match=r"does not exist"):
        check_target(tmp_path / "file" / "p", force=False)


@pytest.mark.trust("T-EXP-12")
def test_a_parent_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may write anywhere
    with pytest.raises(OutputFolderError, match=r"cannot be written to"):
        export(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.trust("T-EXP-12")
def test_a_target_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p").mkdir()

    def refuse(self: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(OutputFolderError, match=r"cannot be read \(Permission denied\)"):
        check_target(tmp_path / "p", force=True)


def test_any_failure_leaves_the_earlier_package(tmp_path: Path) -> None:
    target = make_package(tmp_path / "p")
    for error in (RuntimeError("x"), KeyboardInterrupt(), SystemExit(1)):
        with pytest.raises(type(error)), stage(target, force=True) as staging:
            (staging.folder / "half").write_text("x", encoding="utf-8")
            raise error
        assert what_is_at(target) == "old"
        assert names_in(tmp_path) == ["p"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "filled up"),
        (errno.EFBIG, "filled up"),
        (errno.EIO, "could not be written: Input/output error"),
        (errno.EROFS, "could not be written: Read-only file system"),
    ],
)
def test_errors_of_the_disk(
    number: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_package(tmp_path / "p")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResourceError, match=expected) as caught:
        export(target)
    assert str(tmp_path) in caught.value.problem
    assert "--output" in caught.value.fix
    assert what_is_at(target) == "old"
    assert names_in(tmp_path) == ["p"]


def test_what_an_interrupted_export_left_is_cleaned(tmp_path: Path) -> None:
    (tmp_path / ".p.partial").mkdir()
    (tmp_path / ".p.partial" / "half").write_text("x", encoding="utf-8")
    (tmp_path / ".p.partial" / "half").chmod(0o400)
    (tmp_path / ".p.lock").write_text("4194305", encoding="utf-8")
    export(tmp_path / "p", force=False)
    assert names_in(tmp_path) == ["p"]


def test_a_package_that_was_moved_away_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_package(tmp_path / ".p.replaced")
    with pytest.raises(OutputFolderError, match=r"already holds a package"):
        export(tmp_path / "p", force=False)
    assert what_is_at(tmp_path / "p") == "old"
    assert "it is back" in caplog.text
    assert names_in(tmp_path) == ["p"]


def test_a_package_that_was_moved_away_survives_an_empty_folder_in_its_place(
    tmp_path: Path,
) -> None:
    make_package(tmp_path / ".p.replaced")
    (tmp_path / "p").mkdir()
    with pytest.raises(OutputFolderError, match=r"already holds a package"):
        export(tmp_path / "p", force=False)
    assert what_is_at(tmp_path / "p") == "old"


def test_a_package_that_was_moved_away_survives_a_foreign_one_in_its_place(
    tmp_path: Path,
) -> None:
    make_package(tmp_path / ".p.replaced")
    a_folder_of_mine(tmp_path / "p")
    with pytest.raises(OutputFolderError):
        export(tmp_path / "p")
    assert what_is_at(tmp_path / ".p.replaced") == "old"


def test_half_of_a_replaced_package_does_not_come_back(tmp_path: Path) -> None:
    (tmp_path / ".p.replaced").mkdir()
    (tmp_path / ".p.replaced" / "model.bin").write_text("half", encoding="utf-8")
    export(tmp_path / "p", force=False)
    assert what_is_at(tmp_path / "p") == "new"
    assert names_in(tmp_path) == ["p"]


@pytest.mark.trust("T-EXP-11")
def test_the_signature_of_a_package_goes_with_it(tmp_path: Path) -> None:
    """A signed package could not be exported again, not even with --force."""
    target = make_package(tmp_path / "p")
    (target / "model.sig").write_text("{}", encoding="utf-8")
    with pytest.raises(OutputFolderError, match=r"already holds a package"):
        check_target(target, force=False)
    export(target)
    assert what_is_at(target) == "new"
    assert not (target / "model.sig").exists()


@pytest.mark.trust("T-EXP-05")
def test_a_disk_too_small_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_disk(tmp_path / "not" / "there", 1)
    usage = type("Usage", (), {"free": 1_500_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    check_disk(tmp_path / "not" / "there", 1_500_000)
    with pytest.raises(ResourceError, match=r"needs 2\.0 MB .* has 1\.5 MB") as caught:
        check_disk(tmp_path / "not" / "there", 2_000_000)
    assert caught.value.fix.startswith("free 500.0 kB")
    assert caught.value.facts == {"needed_bytes": 2_000_000, "free_bytes": 1_500_000}


def test_the_earlier_package_is_named_even_when_its_name_is_no_text(tmp_path: Path) -> None:
    target = make_package(tmp_path / "p")
    text = json.dumps(FORMAT | {"name": ["x"] * 1_000, "files": None})
    (target / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(OutputFolderError) as caught:
        check_target(target, force=False)
    assert len(caught.value.problem) < 400
    with pytest.raises(OutputFolderError, match=r"also holds 'model.bin'"):
        check_target(target, force=True)


def test_a_full_disk_is_told_from_other_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_for_full_disk(tmp_path, RuntimeError("a shape does not fit"))
    with pytest.raises(ResourceError, match=r"filled up"):
        raise_for_full_disk(tmp_path, RuntimeError("basic_ios::clear: iostream error"))
    usage = type("Usage", (), {"free": 1_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match=r"1\.0 kB are free"):
        raise_for_full_disk(tmp_path, RuntimeError("something"))
