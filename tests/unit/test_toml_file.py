"""Names and paths: what is not there, not readable or not TOML is refused with a way out."""

import os
import sys
from pathlib import Path

import pytest

from qwen_edge.errors import UnknownProfileError, UsageError
from qwen_edge.profiles import load_profile, profile_names
from qwen_edge.profiles.toml_file import MAX_FILE_BYTES

OWN = """
summary = "my laptop"
recipe = "int4-awq"

[[devices]]
device = "CPU"
max_context_tokens = 8192
prefill_chunk_tokens = 256

[devices.properties]
INFERENCE_NUM_THREADS = 4
SCHEDULING_CORE_TYPE = { value = "PCORE_ONLY", reason = "12.1 against 10.4 tokens/s here" }
"""


def write(folder: Path, text: str, name: str = "my-laptop.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: str | Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_profile(path)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("name", ["core-ultra-gup", "Core-Ultra-GPU"])
def test_an_unknown_name_suggests_the_closest(name: str) -> None:
    error = refusal(name)
    assert isinstance(error, UnknownProfileError)
    assert error.problem == f"Unknown profile {name!r}. Did you mean 'core-ultra-gpu'?"
    assert error.fix == f"use one of: {', '.join(profile_names())}"


def test_an_empty_name_is_unknown() -> None:
    assert refusal("").problem == "Unknown profile ''."


def test_a_name_beside_a_file_of_that_name_points_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, OWN)
    monkeypatch.chdir(tmp_path)
    assert "--profile ./my-laptop.toml" in refusal("my-laptop").fix


@pytest.mark.parametrize("name", ["./core-ultra-cpu.toml", "nowhere/x.toml", "x.TOML", "a\0.toml"])
def test_a_path_without_a_file_is_unknown(name: str) -> None:
    error = refusal(name)
    assert isinstance(error, UnknownProfileError)
    assert "does not exist" in error.problem


def test_a_very_long_path_is_unknown() -> None:
    assert isinstance(refusal("x/" * 5000 + "y.toml"), UnknownProfileError)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert isinstance(error, UnknownProfileError)
    assert "is a folder, not a TOML file" in error.problem


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    assert "is not a regular file" in refusal(tmp_path / "pipe.toml").problem


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"recipe = int4", "is not TOML"),
        (b"[[devices]\n", "is not TOML"),
        (b"x = " + b"9" * 5000, "is not TOML"),
        (b"x = " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (OWN.encode("utf-16"), "is not UTF-8 text (byte 0)"),
        (b"\x00\x01\x02", "is not TOML"),
        (b"#" * (MAX_FILE_BYTES + 1), "is larger than 1.0 MB"),
        (b"", "it has no device"),
    ],
    ids=["no-quotes", "bracket", "digits", "deep", "utf-16", "binary", "large", "empty"],
)
def test_a_file_that_is_no_profile_is_refused(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    error = refusal(path)
    assert "broken.toml" in error.problem
    assert expected in error.problem
