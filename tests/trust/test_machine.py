"""The machine itself: a laptop that sleeps, one with a single processor, one without its GPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROOTS = os.pathsep.join(str(ROOT / top) for top in ("export", "runtime", "profiles"))
ON_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits are POSIX's")
_SLEEP_S = 3.0
# Answers with twenty tokens at a time, so that the signal comes in the middle of one.
_SLEEPER = """
import sys, time
from qwen_edge.runtime import load
model = load(sys.argv[1])
session = model.session()
first = session.ask("Hello!").text
print("ready", flush=True)
answers, until = [], time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    answers.append(model.session().ask("Hello!").text)
assert answers and set(answers) == {first}, set(answers)
assert session.ask("Hello!").text, "a conversation goes on"
model.close()
print(len(answers))
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": ROOTS, **more}


def run_program(package: Path, *options: str, before: tuple[str, ...] = ()) -> Any:
    command = [*before, sys.executable, "-m", "qwen_edge.cli", "run", str(package), "Hello!"]
    return subprocess.run(
        [*command, "--max-new-tokens", "8", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=environment(),
    )


@pytest.mark.trust("T-DEV-05")
@ON_POSIX
def test_a_sleep_in_the_middle_of_answers_changes_none(demo_package: Path) -> None:
    """Stopped for some seconds, as a whole, while it answers one question after the other."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SLEEPER, str(demo_package), str(_SLEEP_S + 1.0)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
        time.sleep(0.2)
        process.send_signal(signal.SIGSTOP)
        time.sleep(_SLEEP_S)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    assert int(out) >= 2


@pytest.mark.trust("T-DEV-05")
def test_a_clock_that_is_set_changes_no_answer(
    demo_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After waking the time of day is another; waiting and limits go by a clock that only runs."""
    from qwen_edge.runtime import load

    with load(demo_package) as model:
        expected = model.session().ask("Hello!").text
        real = time.time
        for jump_s in (8 * 3600.0, -8 * 3600.0, 400 * 86_400.0):
            monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real() + jump_s)
            assert model.session().ask("Hello!", thinking=False).text
            assert model.session().ask("Hello!").text == expected


@pytest.mark.trust("T-DEV-07")
@pytest.mark.skipif(shutil.which("taskset") is None, reason="`taskset` gives a single processor")
def test_one_processor_suffices(demo_package: Path) -> None:
    done = run_program(demo_package, "--json", before=("taskset", "-c", "0"))
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["new_tokens"] > 0 and data["device"] == "CPU"


@pytest.mark.trust("T-DEV-07")
@ON_POSIX
@pytest.mark.parametrize("megabytes", [3000, 350])
def test_little_memory_is_enough_or_said(demo_package: Path, megabytes: int) -> None:
    """Less and less address space: an answer, or an error of ours; never a signal."""
    limit = f'ulimit -v {megabytes * 1024}; exec "$0" "$@"'
    done = run_program(demo_package, before=("sh", "-c", limit))
    assert done.returncode >= 0, (done.returncode, done.stderr)
    if megabytes == 3000:
        assert done.returncode == 0, done.stderr
    elif done.returncode:
        assert "\nError: " in f"\n{done.stderr}" and "\nFix: " in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.trust("T-DEV-01")
@pytest.mark.parametrize("device", ["NPU", "GPU"])
def test_a_device_that_this_machine_lacks_is_an_error(demo_package: Path, device: str) -> None:
    from qwen_edge.runtime.devices.probing import probe_devices

    if any(report.name.startswith(device) and report.is_available for report in probe_devices()):
        pytest.skip(f"this machine has a {device}")
    named = run_program(demo_package, "--device", device)
    assert (named.returncode, named.stdout) == (6, "")
    assert f"Device {device!r} was asked for" in named.stderr and "\nFix: " in named.stderr
