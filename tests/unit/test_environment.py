"""Environment variables: read in one place, a bad value is an error."""

import sys
from pathlib import Path

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.runtime.environment import read_environment


def test_cache_dir_is_taken_as_it_is(tmp_path: Path) -> None:
    read = read_environment({"QWEN_EDGE_CACHE_DIR": str(tmp_path)})
    assert read.cache_dir == tmp_path


@pytest.mark.parametrize("value", ["", " ", "cache", "./cache"], ids=repr)
def test_cache_dir_that_depends_on_the_current_folder_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="expected the absolute path") as caught:
        read_environment({"QWEN_EDGE_CACHE_DIR": value})
    assert caught.value.facts["variable"] == "QWEN_EDGE_CACHE_DIR"


@pytest.mark.parametrize(
    ("platform", "variables", "cache_dir", "settings_dir"),
    [
        ("linux", {"HOME": "/h"}, "/h/.cache/qwen-edge", "/h/.config/qwen-edge"),
        ("linux", {"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/qwen-edge", "/h/.config/qwen-edge"),
        ("linux", {"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, "/h/.cache/qwen-edge", "/x/qwen-edge"),
        (
            "linux",
            {"HOME": "/h", "XDG_CACHE_HOME": "x", "XDG_CONFIG_HOME": "x"},
            "/h/.cache/qwen-edge",
            "/h/.config/qwen-edge",
        ),
        ("linux", {}, None, None),
        (
            "darwin",
            {"HOME": "/h"},
            "/h/Library/Caches/qwen-edge",
            "/h/Library/Application Support/qwen-edge",
        ),
        ("darwin", {}, None, None),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l/qwen-edge/cache", "/l/qwen-edge/settings"),
        ("win32", {"HOME": "/h"}, None, None),
    ],
    ids=str,
)
def test_default_folders_of_each_system(
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    variables: dict[str, str],
    cache_dir: str | None,
    settings_dir: str | None,
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    read = read_environment(variables)
    assert read.cache_dir == (cache_dir and Path(cache_dir))
    assert read.settings_dir == (settings_dir and Path(settings_dir))


def test_settings_dir_is_taken_as_it_is(tmp_path: Path) -> None:
    read = read_environment({"QWEN_EDGE_CONFIG_DIR": str(tmp_path)})
    assert read.settings_dir == tmp_path
    with pytest.raises(UsageError, match="QWEN_EDGE_CONFIG_DIR is 'x', expected the absolute"):
        read_environment({"QWEN_EDGE_CONFIG_DIR": "x"})


def test_misspelt_variable_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    read_environment({"QWEN_EDGE_CACHEDIR": "/x"})
    assert "QWEN_EDGE_CACHEDIR is not a variable we read." in caplog.text
    assert "Did you mean 'QWEN_EDGE_CACHE_DIR'?" in caplog.text
