"""IRs that were changed and sealed again: our error for each, in a child that must not die.

The hash of a file says only that it is the one that was sealed. Whoever seals may have built
anything, so what OpenVINO's reader makes of it has to be an error of ours as well.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_edge.runtime.files.opening import open_inside

XML, BIN = "openvino_model.xml", "openvino_model.bin"
ROOT = Path(__file__).parents[2]
_LIMIT_BYTES = 8 << 30
_CHILD = """
import resource, sys
from pathlib import Path
from qwen_edge.errors import EdgeError
from qwen_edge.runtime.loading import load
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
for folder in sys.argv[2:]:
    print("BEGIN", Path(folder).name, flush=True)
    try:
        with load(folder, warm_up=False) as model:
            print("END answers", next(iter(model.generate([5], max_new_tokens=1))))
    except EdgeError as error:
        print("END", type(error).__name__, error.problem.replace("\\n", " "))
"""


def replace_in(pattern: str, by: str) -> Callable[[str], str]:
    def change(xml: str) -> str:
        changed, count = re.subn(pattern, by, xml, count=1)
        assert count == 1, pattern
        return changed

    return change


def nest(xml: str) -> str:
    deep = "<data>" * 200_000 + "</data>" * 200_000
    return xml.replace("<layers>", f"<layers>{deep}", 1)


CHANGES: dict[str, Callable[[str], str]] = {
    "half": lambda xml: xml[: len(xml) // 2],
    "empty": lambda xml: "",
    "entities": lambda xml: xml.replace("<net ", "<!DOCTYPE net [<!ENTITY a 'b'>]>\n<net ", 1),
    "nested": nest,
    "offset-past-the-end": replace_in(r' offset="\d+"', ' offset="99999999"'),
    "offset-wraps": replace_in(r' offset="\d+"', ' offset="18446744073709551600"'),
    "offset-no-number": replace_in(r' offset="\d+"', ' offset="minus"'),
    "size-past-the-end": replace_in(r' size="\d{5,}"', ' size="999999999"'),
    "size-too-small": replace_in(r' size="\d{5,}"', ' size="16"'),
    "shape-of-a-terabyte": replace_in(r'shape="1024, ?1024"', 'shape="1048576,1048576"'),
    "shape-negative": replace_in(r'shape="1024, ?1024"', 'shape="-7,1024"'),
    "unknown-operation": replace_in(r'type="Gather"', 'type="GatherOfTomorrow"'),
    "unknown-opset": replace_in(r'version="opset\d+"', 'version="opset4096"'),
    "unknown-ir": replace_in(r'(<net [^>]*version=)"11"', r'\1"4711"'),
    "edges-missing": replace_in(r"<edge [^>]*/>", ""),
    "edge-to-nowhere": replace_in(r'to-layer="\d+"', 'to-layer="99999"'),
}
# What is passed over; the answer must be the same then.
HARMLESS: tuple[str, ...] = ()


@pytest.fixture
def outcomes(
    package: Path, seal: Callable[..., None], tmp_path: Path
) -> Callable[[dict[str, Callable[[str], str]]], dict[str, str]]:
    """Return a function that tells how loading ended with each changed IR, all in one child."""

    def run(changes: dict[str, Callable[[str], str]]) -> dict[str, str]:
        folders = []
        for name, change in changes.items():
            folder = Path(shutil.copytree(package, tmp_path / name))
            path = open_inside(folder, XML)
            path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
            seal(folder)
            folders.append(str(folder))
        roots = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(_LIMIT_BYTES), *folders],
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": roots, "PYTHONUTF8": "1"},
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
        found = re.findall(r"^BEGIN (.*)\nEND (.*)$", done.stdout, re.MULTILINE)
        return dict(found)

    return run


@pytest.mark.trust("T-PKG-06", "T-PKG-07", "T-PKG-08")
@pytest.mark.skipif(sys.platform == "win32", reason="limits the child's memory as POSIX does")
def test_a_changed_ir_is_our_error_or_harmless(
    outcomes: Callable[..., dict[str, str]], cases: object
) -> None:
    found = outcomes({"as-it-was": lambda xml: xml, **CHANGES})
    right = found.pop("as-it-was")
    assert right.startswith("answers ")
    assert found.keys() == CHANGES.keys()
    for name, outcome in found.items():
        print(f"{name}: {outcome}")
        if name in HARMLESS:
            assert outcome == right, name
        else:
            kind, problem = outcome.split(" ", 1)
            assert kind in ("PackageError", "DeviceError"), name
            assert XML in problem, name
    cases(len(found))  # type: ignore[operator]


@pytest.mark.trust("T-PKG-08")
def test_another_version_is_told_with_what_reads_it_here(
    outcomes: Callable[..., dict[str, str]],
) -> None:
    import openvino

    names = ("unknown-operation", "unknown-opset", "unknown-ir")
    for name, outcome in outcomes({name: CHANGES[name] for name in names}).items():
        assert openvino.__version__ in outcome, name
