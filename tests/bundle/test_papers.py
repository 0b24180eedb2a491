"""Launchers, licences, zips and the bill of materials, without a whole bundle."""

import io
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from qwen_edge.bundle.archive import write_folder_zip, write_module_zip
from qwen_edge.bundle.contents import LicenceText, Part
from qwen_edge.bundle.launchers import (
    build_windows_launcher,
    find_windows_stub,
    write_linux_launcher,
    write_windows_server_launcher,
)
from qwen_edge.bundle.licences import find_system_package, is_apache, write_licences
from qwen_edge.bundle.sums import check_sums, read_sums, write_sums
from qwen_edge.errors import PackageError

posix = pytest.mark.skipif(sys.platform == "win32", reason="a shell script")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Return a folder with a launcher whose interpreter tells what it was given."""
    folder = tmp_path / "a päth $HOME 'with' \"all\" 测试"
    (folder / "lib").mkdir(parents=True)
    launcher = folder / "qwen-edge"
    launcher.write_text(write_linux_launcher("python3", for_drivers=False), encoding="utf-8")
    python = folder / "lib" / "python3"
    python.write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH"\nfor w in "$@"; do echo "<$w>"; done\n')
    for path in (launcher, python):
        path.chmod(0o755)
    return folder


@posix
def test_the_launcher_finds_itself_and_passes_words_on(app: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(app / "qwen-edge")
    words = ["run", "two words", "*", "$HOME", "", "ü"]
    given = "".join(f"<{word}>\n" for word in ("-I", "-B", "-m", "qwen_edge.cli.bundled", *words))
    for command, folder in (
        ([str(app / "qwen-edge")], tmp_path),
        (["./qwen-edge"], app),
        (["sh", "qwen-edge"], app),
        ([str(tmp_path / "link")], tmp_path),
    ):
        done = subprocess.run(
            [*command, *words],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "CDPATH": "/", "LD_LIBRARY_PATH": "/junk"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.stderr == ""
        assert done.stdout == f"{app}/lib\n{given}", command


@posix
def test_a_folder_that_would_be_cut_is_refused(app: Path) -> None:
    moved = app.rename(app.with_name("a:b"))
    done = subprocess.run([str(moved / "qwen-edge")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ") and "\nFix: " in done.stderr


@posix
def test_a_root_that_does_not_tell_its_processors(app: Path) -> None:
    """OpenVINO 2026.4.1 looks for them without end while it is loaded."""
    text = write_linux_launcher("python3", for_drivers=True, processors="/proc/no-such-file")
    (app / "qwen-edge").write_text(text, encoding="utf-8")
    done = subprocess.run([str(app / "qwen-edge")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (6, "")
    assert "/proc/no-such-file is not there" in done.stderr and "\nFix: " in done.stderr


def test_the_launcher_for_windows() -> None:
    stub = find_windows_stub()
    program = build_windows_launcher(stub)
    assert program.startswith(b"MZ") and program.startswith(stub)
    # That this pip's launcher knows folders beside itself.
    assert "<launcher_dir>\\".encode("utf-16-le") in stub
    line, _, archive = program[len(stub) :].partition(b"\r\n")
    assert line == b"#!<launcher_dir>\\lib\\python.exe"
    with zipfile.ZipFile(io.BytesIO(archive)) as bundle:
        code = bundle.read("__main__.py").decode()
    assert "qwen_edge.cli.bundled" in code
    compile(code, "__main__.py", "exec")
    batch = write_windows_server_launcher("qwen-edge.exe")
    assert '"%~dp0qwen-edge.exe" serve %*\r\n' in batch and "\n" not in batch.replace("\r\n", "")


def test_zips_are_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    (folder / "lib").mkdir(parents=True)
    (folder / "start").write_text("#!/bin/sh\n")
    (folder / "start").chmod(0o755)
    (folder / "lib" / "ü.txt").write_text("text")
    (folder / "weights.bin").write_bytes(bytes(2 << 20))
    with (tmp_path / "1.zip").open("wb") as file:
        write_folder_zip(folder, file)
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    with (tmp_path / "2.zip").open("wb") as file:
        write_folder_zip(folder, file)
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "1.zip") as archive:
        assert archive.namelist() == ["app/lib/ü.txt", "app/start", "app/weights.bin"]
        assert archive.testzip() is None
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
        kinds = {entry.filename: entry.compress_type for entry in archive.infolist()}
    assert stat.S_IMODE(modes["app/start"]) == 0o755
    assert stat.S_IMODE(modes["app/lib/ü.txt"]) == 0o644
    assert kinds["app/weights.bin"] == zipfile.ZIP_STORED
    write_module_zip(tmp_path / "3.zip", {"b.pyc": b"2", "a.pyc": b"1"})
    assert zipfile.ZipFile(tmp_path / "3.zip").namelist() == ["a.pyc", "b.pyc"]


def test_sums_name_what_differs(tmp_path: Path) -> None:
    for name in ("a file", "b", "c"):
        (tmp_path / name).write_text(name)
    written = write_sums(tmp_path)
    assert read_sums(tmp_path) == written and set(written) == {"a file", "b", "c"}
    assert check_sums(tmp_path, without="model/") == 3
    (tmp_path / "a file").write_text("A file")
    (tmp_path / "b").unlink()
    (tmp_path / "c").rename(tmp_path / "d")
    (tmp_path / "c").symlink_to(tmp_path / "d")
    with pytest.raises(PackageError) as refused:
        check_sums(tmp_path, without="model/")
    assert refused.value.facts["problems"] == (
        "'b' is missing",
        "'a file' is not the file that it was",
        "'c' is not the file that it was",
        "'d' was added",
    )
    (tmp_path / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(PackageError, match="a line that is none"):
        check_sums(tmp_path, without="model/")


def test_licences_of_this_system(tmp_path: Path) -> None:
    info, docs = tmp_path / "var/lib/dpkg/info", tmp_path / "usr/share/doc/libfoo1"
    common = tmp_path / "usr/share/common-licenses"
    for folder in (info, docs, common):
        folder.mkdir(parents=True)
    (info / "libfoo1:amd64.list").write_text("/.\n/lib/x/libfoo.so.1.2\n")
    (info / "other.list").write_text("/usr/bin/other\n")
    (docs / "copyright").write_text("See /usr/share/common-licenses/GPL-3.\n")
    (common / "GPL-3").write_text("the text")
    status = "Package: other\nVersion: 9\n\nPackage: libfoo1\nStatus: ok\nVersion: 1.2-3\n"
    (tmp_path / "var/lib/dpkg/status").write_text(status)
    found = find_system_package(Path("/usr/lib/x/libfoo.so.1.2"), tmp_path)
    assert found is not None
    assert (found.name, found.version) == ("libfoo1", "1.2-3")
    assert [text.name for text in found.texts] == ["libfoo1-copyright.txt", "GPL-3.txt"]
    assert find_system_package(Path("/usr/lib/x/libbar.so"), tmp_path) is None


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    parts = [
        Part("one", "library", "1", "MIT", {}, (LicenceText("sub/LICENSE", b"text"),)),
        Part("two", "library", None, "unknown", {}),
    ]
    assert write_licences(tmp_path, parts) == ["two"]
    assert (tmp_path / "licences/one/sub/LICENSE").read_bytes() == b"text"
    listed = (tmp_path / "licences/README.txt").read_text(encoding="utf-8")
    assert "one 1: MIT; see one/" in listed and "two : unknown; its makers give no text" in listed


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", True),
        ("apache-2.0", True),
        ("Apache Software License", True),
        ("Apache License, Version 2.0", True),
        ("MIT", False),
        ("unknown", False),
    ],
)
def test_which_licence_is_apaches(licence: str, expected: bool) -> None:
    assert is_apache(licence) is expected
