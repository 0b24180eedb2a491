"""What a bundle says of the packages it is made of: the tested ones, as they were installed?"""

import base64
import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import pytest

from qwen_edge.bundle import origins
from qwen_edge.bundle.distributions import ChosenFile, Distribution
from qwen_edge.bundle.origins import Origins, find_origins
from qwen_edge.bundle.pipeline import Bundle
from qwen_edge.bundle.readme import BundleFacts
from qwen_edge.bundle.systems import find_system
from qwen_edge.cli import bundle_command
from qwen_edge.cli.output import Output

pytestmark = pytest.mark.trust("T-SUP-08")
NAME = "made-up-package"


def write_record(site: Path, names: list[str], mode: str = "sha256") -> None:
    """Write the list of files as pip does."""
    lines = []
    for name in names:
        digest = hashlib.new(mode, (site / name).read_bytes()).digest()
        text = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        lines.append(f"{name},{mode}={text},{(site / name).stat().st_size}\n")
    folder = f"{NAME.replace('-', '_')}-1.0.dist-info"
    (site / folder / "RECORD").write_text(
        "".join([*lines, f"{folder}/RECORD,,\n"]), encoding="utf-8"
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of packages with one in it, which Python finds."""
    folder = tmp_path / f"{NAME.replace('-', '_')}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Name: {NAME}\nVersion: 1.0\n", encoding="utf-8")
    (tmp_path / "made_up.py").write_text("A = 1\n", encoding="utf-8")
    (tmp_path / "libs").mkdir()
    (tmp_path / "libs/made_up.so").write_bytes(b"\x7fELF")
    write_record(tmp_path, ["made_up.py", "libs/made_up.so"])
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    pins = tmp_path / "pins.txt"
    pins.write_text(f"# a line\n--only-binary=:all:\n{NAME}==1.0 \\\n    --hash=sha256:00\n")
    monkeypatch.setattr(origins, "REQUIREMENTS", pins)
    monkeypatch.setattr(origins.read_pins, "__defaults__", (pins,))
    return tmp_path


def look(site: Path, *, version: str = "1.0") -> Origins:
    """Look at the made-up package."""
    entry = Distribution(
        NAME,
        version,
        "MIT",
        (ChosenFile(site / "made_up.py", "made_up.py"),),
        ("", ""),
        (),
        (),
    )
    seen: list[int] = []
    found = find_origins([entry], [site / "libs/made_up.so"], seen.append)
    assert found.requirements_hash == hashlib.sha256(origins.REQUIREMENTS.read_bytes()).hexdigest()
    return found


def test_the_pinned_version_as_it_was_installed(site: Path) -> None:
    found = look(site)
    assert (found.other_versions, found.altered_files, found.notices) == ((), (), ())
    assert found.properties["altered-files"] == found.properties["other-versions"] == "none"


@pytest.mark.parametrize("name", ["made_up.py", "libs/made_up.so"])
def test_a_file_that_was_changed_is_named(site: Path, name: str) -> None:
    """Changed by hand, by another package, or by something worse."""
    content = (site / name).read_bytes()
    (site / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = look(site)
    assert found.altered_files == (name,)
    assert found.notices == (f"Changed after they were installed: {name}.",)


def test_a_file_that_no_list_names(site: Path) -> None:
    write_record(site, ["made_up.py"])
    assert look(site).altered_files == ("made_up.so",)


@pytest.mark.parametrize(("mode", "is_enough"), [("sha512", True), ("md5", False), ("sha1", False)])
def test_hashes_that_are_too_weak_vouch_for_nothing(site: Path, mode: str, is_enough: bool) -> None:
    write_record(site, ["made_up.py", "libs/made_up.so"], mode)
    assert (look(site).altered_files == ()) is is_enough


def test_a_list_without_hashes_vouches_for_nothing(site: Path) -> None:
    [record] = site.glob("*.dist-info/RECORD")
    record.write_text("made_up.py,,\nlibs/made_up.so,,\n", encoding="utf-8")
    assert look(site).altered_files == ("made_up.py", "libs/made_up.so")


def test_other_versions_are_named(site: Path) -> None:
    assert look(site, version="1.1").notices == (
        f"Not the versions that were tested: {NAME} 1.1 (pinned: 1.0).",
    )
    origins.REQUIREMENTS.write_text("click==8.5.1 \\\n    --hash=sha256:00\n", encoding="utf-8")
    assert look(site).other_versions == (f"{NAME} 1.0 (none is pinned)",)


def test_what_is_from_no_index_is_named(site: Path) -> None:
    [folder] = site.glob("*.dist-info")
    url = "file:///home/me/made_up.whl"
    (folder / "direct_url.json").write_text(json.dumps({"url": url}), encoding="utf-8")
    assert look(site).other_versions == (f"{NAME} 1.0 (installed from {url})",)


def test_a_long_list_is_cut() -> None:
    found = Origins("", tuple(f"p{i} 1" for i in range(9)), ())
    assert found.notices[0].endswith("p4 1; and 4 more.")


def test_the_command_tells(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = Origins("ab", ("numpy 3.0 (pinned: 2.4.6)",), ("click/core.py",))
    facts = BundleFacts(find_system("linux", "x86_64"), ("CPU",), True, "2.34", "3.11", "0.1")
    facts = dataclasses.replace(facts, origins=found)
    bundle = Bundle(tmp_path, None, facts, 1, 1, None, {"numpy": 1}, 1)
    bundle_command._tell(bundle, Output(), as_json=False)
    told = capsys.readouterr().err
    assert "numpy 3.0 (pinned: 2.4.6)" in told and "installed: click/core.py" in told
    bundle_command._tell(bundle, Output(), as_json=True)
    data = json.loads(capsys.readouterr().out)["requirements"]
    assert data == {
        "sha256": "ab",
        "other_versions": ["numpy 3.0 (pinned: 2.4.6)"],
        "altered_files": ["click/core.py"],
    }
