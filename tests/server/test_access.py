"""Keys: where they come from, which are taken, and that they never show."""

import os
import sys
import traceback
from pathlib import Path

import pytest

from qwen_edge.errors import UsageError
from qwen_edge.server.access import AccessKey, choose_key, make_random_key, read_key_file

KEY = "correct-horse-battery"
NEEDS_MODES = pytest.mark.skipif(sys.platform == "win32", reason="modes are of POSIX")


def write_key(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    path.chmod(mode)
    return path


@pytest.mark.parametrize("text", [KEY, KEY + "\n", KEY + "\r\n"])
def test_a_file_of_one_line_holds_a_key(tmp_path: Path, text: str) -> None:
    key = read_key_file(write_key(tmp_path / "key.txt", text))
    assert key.reveal() == KEY


@pytest.mark.trust("T-SEC-05")
@NEEDS_MODES
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620, 0o601])
def test_files_of_others_are_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UsageError, match=r"open to other users.*0600") as caught:
        read_key_file(write_key(tmp_path / "key.txt", KEY, mode))
    assert caught.value.fix.startswith("chmod 600")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("\n", "holds no key"),
        ("fifteen-letters", "15 characters; expected a key of 16"),
        ("x" * 513, "expected a key of 16 to 512"),
        ("x" * 100_000, "expected a key of 16 to 512"),
        ("two words are no key", "cannot stand in a header"),
        ("first-line-of-key\nsecond", "cannot stand in a header"),
        ("schlüssel-mit-umlaut", "cannot stand in a header"),
        ("nul\0in-the-midst-of-it", "cannot stand in a header"),
    ],
)
def test_other_texts_are_no_keys(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        read_key_file(write_key(tmp_path / "key.txt", text))
    assert not text.strip() or text.strip() not in str(caught.value)
    with pytest.raises(UsageError):
        AccessKey(text)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_key_file(tmp_path / "missing")
    if sys.platform != "win32":
        with pytest.raises(UsageError, match="is not a file"):
            read_key_file(tmp_path)
        os.mkfifo(tmp_path / "pipe", 0o600)  # reading one waits for its writer
        with pytest.raises(UsageError, match="is not a file"):
            read_key_file(tmp_path / "pipe")


def test_the_file_goes_before_the_environment(tmp_path: Path) -> None:
    file = write_key(tmp_path / "key.txt", KEY)
    other = "another-key-of-somebody"
    both, variable, neither = (
        choose_key(file, other),
        choose_key(None, other),
        choose_key(None, None),
    )
    assert both is not None
    assert both.reveal() == KEY
    assert variable is not None
    assert variable.reveal() == other
    assert neither is None


@pytest.mark.parametrize("value", ["", "short"])
def test_a_variable_that_is_set_must_hold_a_key(value: str) -> None:
    with pytest.raises(UsageError, match="QWEN_EDGE_API_KEY"):
        choose_key(None, value)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        KEY,
        "Bearer",
        "Bearer ",
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        f"Bearer {KEY} {KEY}",
        f"Bearer\t{KEY}",
        "Bearer \xff\xfe",
    ],
)
def test_other_headers_do_not_carry_the_key(header: str | None) -> None:
    assert not AccessKey(KEY).is_in(header)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_key_opens(scheme: str) -> None:
    assert AccessKey(KEY).is_in(f"{scheme} {KEY}")


@pytest.mark.trust("T-SEC-05")
def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was given, two digests of the same length go to the comparison made for it."""
    compared: list[tuple[int, int]] = []

    def compare(given: bytes, expected: bytes) -> bool:
        compared.append((len(given), len(expected)))
        return given == expected

    monkeypatch.setattr("hmac.compare_digest", compare)
    key = AccessKey(KEY)
    for header in (None, "Bearer x", f"Bearer {KEY}", "Basic " + "x" * 400):
        key.is_in(header)
    assert compared == [(32, 32)] * 4


@pytest.mark.trust("T-SEC-05")
def test_a_key_shows_nowhere(tmp_path: Path) -> None:
    key = AccessKey(KEY)
    assert KEY not in repr(key) + str(key) + f"{key!r}{[key]}"
    wrong = KEY + " " + KEY
    try:
        read_key_file(write_key(tmp_path / "key.txt", wrong))
    except UsageError as error:
        assert KEY not in "".join(traceback.format_exception(error)) + repr(error.facts)


def test_random_keys_are_long_and_differ() -> None:
    keys = {make_random_key().reveal() for _ in range(100)}
    assert len(keys) == 100
    assert min(map(len, keys)) >= 40
