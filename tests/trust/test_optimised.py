"""No check of input is an `assert`: under `python -O` and `-OO`, without them, all still hold."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trust_rows import Cases

ROOT = Path(__file__).parents[2]
TOPS = ("export", "runtime", "profiles")
# Suites of refusals, of files and of requests, that need no engine and few seconds.
SUITES = (
    "tests/export/test_tensor_files.py",
    "tests/export/test_decoder.py",
    "tests/export/test_package_facts.py",
    "tests/export/test_source.py",
    "tests/trust/test_input_configs.py",
    "tests/unit/test_manifest.py",
    "tests/unit/test_package.py",
    "tests/server/test_access.py",
    "tests/server/test_http_guard.py",
    "tests/server/test_request_body.py",
    "tests/server/test_refusals.py",
)
SLOW = "not largest and not have_not and not repeated_names and not bloated"
# pytest turns the asserts of tests into ifs, so that they count under -O as well.
RUN = """
import sys
assert False, "asserts are not dropped"
import pytest
options = ["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "-p", "no:randomly"]
sys.exit(pytest.main([*options, "-W", "ignore::pytest.PytestConfigWarning", *sys.argv[1:]]))
"""


@pytest.mark.trust("T-IN-16")
@pytest.mark.parametrize("flag", ["-O", "-OO"])
def test_the_refusals_hold_without_asserts(flag: str, tmp_path: Path, cases: Cases) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    run = subprocess.run(
        [sys.executable, flag, "-c", RUN, f"--basetemp={tmp_path / 'inner'}", "-k", SLOW, *SUITES],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-3_000:] + run.stderr[-2_000:]
    passed = int(run.stdout.rpartition(" passed")[0].split()[-1])
    assert passed > 300
    cases(passed)


def sources() -> list[Path]:
    """Return every Python file of the product."""
    return sorted(path for top in TOPS for path in (ROOT / top).rglob("*.py"))


# What is asserted beside "is not None" and kinds of values: laws of our own, each with its reason.
INVARIANTS = {
    "self._file.tell() - offset == size": "the writer counts the bytes it has written itself",
    "not self._pool.is_shared(sequence.blocks[start // self.block_tokens])": "blocks are copied "
    "before they are written to",
    "sign == 0": "the number was found to be positive a line before",
}


@pytest.mark.trust("T-IN-16")
def test_asserts_are_about_our_own_laws_only(cases: Cases) -> None:
    """Each says to a reader, and to a type checker, what cannot be otherwise."""
    files = sources()
    unknown = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node.test)}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
        and not all(is_about_a_kind(part) for part in parts_of(node.test))
        and ast.unparse(node.test) not in INVARIANTS
    ]
    assert unknown == []
    assert len(files) > 200
    cases(len(files))


def parts_of(test: ast.expr) -> list[ast.expr]:
    return test.values if isinstance(test, ast.BoolOp) else [test]


def is_about_a_kind(test: ast.expr) -> bool:
    """Return whether it says "X is not None", "X is the kind Y" or names a backend of ours."""
    text = ast.unparse(test)
    return (
        text.endswith(" is not None")
        or text.startswith("isinstance(")
        or text == "model.backend_name != 'fake'"
    )


# Where the time of day is asked for, and not how long something took.
TIMES_OF_DAY = {
    "hub_refusals.py": "a server may ask to come back at a time of day",
    "chat_answer.py": "an answer of the API says when it was made",
    "completion_answer.py": "an answer of the API says when it was made",
    "responses_answer.py": "an answer of the API says when it was made",
    "app.py": "the list of models says since when",
    "records.py": "a file's age",
    "replacing.py": "a file's age",
    "compile_cache.py": "a folder's age",
    "tune.py": "the day of a measurement",
    "template_sandbox.py": "chat templates may ask for the date",
}


@pytest.mark.trust("T-EXP-17")
def test_only_a_steady_clock_measures(cases: Cases) -> None:
    """Waits and limits go by `time.monotonic`: a clock that is set changes none of them."""
    files = sources()
    found = {
        path.name
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("time.time", "time.time_ns", "datetime.now", "datetime.today")
    }
    assert found == set(TIMES_OF_DAY)
    cases(len(files))
