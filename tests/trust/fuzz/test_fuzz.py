"""Damaged and invented inputs for everything that reads: an answer or our error, in bounded time.

The inputs are the same at every run. `targets.py` has the table of what is tried, `driver.py`
runs it in children, and `scripts/fuzz.py` tries others for as long as one likes. Whatever broke a
reader once is in `found/`, and tried again here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FUZZ = Path(__file__).parent
ROOT = FUZZ.parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="children are forked and limited")

CHECKPOINTS = (
    "safetensors", "shard-index", "config", "generation-config", "tokenizer", "tokenizer-config",
    "adapter-config", "adapter-weights", "calibration", "recipe", "profile", "kept-layer",
    "kept-search", "model-card",
)  # fmt: skip
PACKAGES = ("manifest", "onnx", "record", "cache-list", "tuned", "tools", "schema")
GROUPS = {
    "checkpoints": CHECKPOINTS,
    "packages": PACKAGES,
    "models": ("ir-file", "ir-xml", "ir-batched", "ir-bin"),
    "sessions": ("snapshot", "session", "saved-cache"),
    "templates": ("template",),
    "answers": ("tool-calls", "json-scanner", "reasoning"),
}
ROWS = {
    "models": ("T-IN-17", "T-PKG-06", "T-PKG-07"),
    "sessions": ("T-IN-17", "T-PKG-14"),
    "templates": ("T-IN-17", "T-TPL-03"),
    "answers": ("T-IN-17", "T-GEN-12"),
}


def run_driver(package: Path, *arguments: str) -> Iterator[dict[str, Any]]:
    """Yield what the driver says of each target."""
    roots = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
    done = subprocess.run(
        [sys.executable, str(FUZZ / "driver.py"), "--package", str(package), *arguments],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": roots, "PYTHONUTF8": "1"},
        timeout=1_500,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr[-4_000:]
    for line in done.stdout.splitlines():
        yield json.loads(line)


def words(names: tuple[str, ...]) -> list[str]:
    return [word for name in names for word in ("--target", name)]


def show(results: list[dict[str, Any]]) -> str:
    """Return what broke, the first of each target."""
    broken = [result for result in results if result["failures"]]
    return "\n\n".join(
        f"{result['target']}: {len(result['failures'])} of {result['cases']} inputs, the first is "
        f"{result['failures'][0]}"
        for result in broken
    )


@pytest.mark.parametrize(
    "group",
    [pytest.param(name, marks=pytest.mark.trust(*ROWS.get(name, ("T-IN-17",)))) for name in GROUPS],
)
def test_no_input_breaks_a_reader(
    demo_package: Path, group: str, cases: Callable[..., None]
) -> None:
    results = list(run_driver(demo_package, *words(GROUPS[group])))
    assert sorted(result["target"] for result in results) == sorted(GROUPS[group])
    for result in results:
        share = f"{result['answers']:,} answered, {result['cpu_s']:g} s"
        print(f"{result['target']}: {result['cases']:,} inputs, {share}")
        cases(result["cases"], claim="fuzzed")
        assert result["answers"] > 0, f"{result['target']} refuses everything"
    assert not show(results), show(results)


def test_every_target_is_in_a_group() -> None:
    table = [name for group in GROUPS.values() for name in group]
    assert sorted(table) == sorted(list_targets())


def list_targets() -> list[str]:
    code = "import targets; print(*(target.name for target in targets.TARGETS))"
    roots = [str(FUZZ), *(str(ROOT / top) for top in ("export", "runtime", "profiles"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, check=True, text=True
    )
    return done.stdout.split()


def test_good_inputs_are_answered(demo_package: Path) -> None:
    """Else a target might refuse whatever it is given, and nothing behind that be tried."""
    results = list(run_driver(demo_package, "--control"))
    assert not show(results), show(results)
    assert {result["target"] for result in results if result["answers"] < result["cases"]} == set()


@pytest.mark.trust("T-IN-17")
def test_what_broke_a_reader_once_does_so_no_more(
    demo_package: Path, cases: Callable[..., None]
) -> None:
    results = list(run_driver(demo_package, "--found"))
    kept = sorted(FUZZ.glob("found/*/*.xz"))
    assert sum(result["cases"] for result in results) == len(kept)
    assert not show(results), show(results)
    cases(len(kept), claim="fuzzed")


def test_the_driver_sees_each_way_to_break(demo_package: Path) -> None:
    """Readers that break at one input of ten: that one is named, and the others are tried."""
    expected = {
        "broken-by-error": "ZeroDivisionError",
        "broken-by-signal": "ended with -11",
        "broken-by-time": "computed for more than",
        "broken-by-memory": "MemoryError",
        "broken-by-text": "cannot be printed",
    }
    results = list(run_driver(demo_package, "--with-broken", "--cases", "10", "--no-keep"))
    assert [result["target"] for result in results] == list(expected)
    for result in results:
        (failure,) = result["failures"]
        assert failure["number"] == 3
        assert expected[result["target"]] in failure["problem"]
        assert result["cases"] == 10
