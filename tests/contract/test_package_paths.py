"""Packages on paths that programs stumble over, and in folders that nobody may write to."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen_edge.runtime import load
from qwen_edge.runtime.devices.onnx_opening import open_onnx_backend
from qwen_edge.runtime.package import check_report, read_manifest, verify_package

_LONG = "x" * 240
PATHS = {
    "blank": "my models/the package",
    "umlaut": "Modelle für später/Paket ß",
    "cjk": "模型/测试 パッケージ",
    "emoji": "🤖 models/👋🏽",
    "quotes": 'it\'s "one"; $HOME & `id` %TEMP% #1',
    "dots": "a.b/c..d/..e",
    "decomposed": "u\u0308ber/cafe\u0301",
    "240-characters": _LONG,
    "long-in-all": f"{'y' * 200}/{'z' * 200}/{'w' * 200}",
}


ON_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not take")


def answer(folder: Path) -> list[int]:
    """Load, answer with four tokens, close."""
    with load(folder, warm_up=False, verify="always") as model:
        return list(model.generate([5, 6], max_new_tokens=4))


@pytest.mark.trust("T-PKG-15")
@ON_POSIX
def test_a_package_answers_wherever_it_lies(package: Path, tmp_path: Path, cases: Any) -> None:
    """Moved from one to the next: nothing in it knows where it was."""
    expected = answer(package)
    assert len(expected) == 4
    folder = package
    for name in PATHS.values():
        target = tmp_path / "places" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = folder.rename(target)
        assert answer(folder) == expected, name
    cases(len(PATHS))


@pytest.mark.trust("T-PKG-15")
@ON_POSIX
def test_so_does_one_in_the_other_format(onnx_package: Path, tmp_path: Path, cases: Any) -> None:
    """ONNX Runtime opens the weights beside the model by itself, and is tried in a child first."""
    manifest = read_manifest(onnx_package)
    folder = onnx_package
    names = ("umlaut", "cjk", "emoji", "240-characters")
    for name in names:
        target = tmp_path / "places" / PATHS[name]
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = folder.rename(target)
        check_report(verify_package(folder))
        backend, _ = open_onnx_backend(folder, manifest)
        token = int(backend.forward(manifest.golden.prompt_ids).argmax())
        backend.close()
        assert token == manifest.golden.token_ids[0], name
    cases(len(names))


@pytest.mark.trust("T-PKG-15")
@pytest.mark.skipif(sys.platform == "win32", reason="modes of files are POSIX's")
def test_a_package_that_may_only_be_read_answers(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a read-only medium; root may write everywhere, so what is there is compared too."""
    folder = Path(shutil.copytree(package, tmp_path / "medium"))
    for path in [*folder.iterdir(), folder]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    before = {path.name: path.stat().st_mtime_ns for path in [*folder.iterdir(), folder]}
    opened: list[str] = []
    real_open = os.open

    def watch(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path).startswith(str(folder)):
            opened.append(str(path))
        return real_open(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", watch)
    try:
        assert len(answer(folder)) == 4
    finally:
        folder.chmod(0o700)
    assert opened == []
    assert {path.name: path.stat().st_mtime_ns for path in [*folder.iterdir(), folder]} == before
