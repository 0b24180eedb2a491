"""samples/desktop as a program: it starts, answers, and ends in every state without hanging."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)

# Runs the program with a stand-in for opening a package, and closes the window at a moment.
DRIVER = """
import sys, threading, time
sys.path.insert(0, {folder!r})
import main
from PySide6.QtCore import QTimer
from PySide6.QtWidgets import QApplication
from qwen_edge.runtime import Model, load

def slow(answers, step_s):
    model = Model.fake(answers)
    forward = model.backend.forward
    def step(token_ids):
        time.sleep(step_s)
        return forward(token_ids)
    model.backend.forward = step
    return model

def open_model(folder, *, progress):
    {opening}

def close_when(condition):
    def look():
        [window] = [w for w in QApplication.topLevelWidgets() if hasattr(w, "transcript")]
        if condition(window):
            timer.stop()
            print("closing", flush=True)
            window.close()
    timer = QTimer(app)
    timer.timeout.connect(look)
    timer.start(10)

app = QApplication(sys.argv[:1])
main.MAX_LEAVING_S = {max_leaving_s}
main.leave.__kwdefaults__["max_s"] = {max_leaving_s}
close_when(lambda window: {condition})
sys.exit(main.main(["--settings", {settings!r}, "--model", {model!r}], open_model))
"""
NOISE = ("propagateSizeHints", "XDG_RUNTIME_DIR")


def start(command: list[str], **options: Any) -> "subprocess.Popen[str]":
    """Start a Python without a screen."""
    return subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
        **options,
    )


def check_quiet(err: str) -> None:
    """Check that nothing was complained of on the way out."""
    lines = [line for line in err.splitlines() if not any(noise in line for noise in NOISE)]
    assert lines == []


def leave_at(
    tmp_path: Path,
    desktop: Path,
    *,
    opening: str,
    condition: str,
    model: Path,
    max_leaving_s: float = 240,
) -> tuple[float, int, str]:
    """Run the program until the window closes; return seconds from there, exit code, stderr."""
    code = DRIVER.format(
        folder=str(desktop),
        opening=opening,
        condition=condition,
        settings=str(tmp_path / "settings.ini"),
        model=str(model),
        max_leaving_s=max_leaving_s,
    )
    process = start(["-c", code])
    assert process.stdout is not None
    first = process.stdout.readline()
    start_s = time.monotonic()
    out, err = process.communicate(timeout=300)
    assert first == "closing\n", err
    assert out == ""
    return time.monotonic() - start_s, process.returncode, err


@pytest.mark.parametrize(
    ("opening", "condition"),
    [
        ("raise FileNotFoundError('gone')", "window.problem_page.isVisible()"),
        ("time.sleep(2); return slow(['x'], 0)", "window.bar.isVisible()"),
        (
            "[(progress(1), time.sleep(0.01)) for _ in range(100_000)]",
            "window.bar.value() > 0",
        ),
        ("return slow(['x'], 0)", "window.send_button.isEnabled()"),
        (
            "return slow(['so ' * 5000], 0.05)",
            "(window.send_button.isEnabled() and window.ask('?'))"
            " or (window.transcript.answer and window.transcript.answer.text)",
        ),
    ],
    ids=["no-model", "while-loading", "while-checking", "idle", "while-answering"],
)
def test_closing_the_window_ends_the_program(
    tmp_path: Path, desktop: Path, opening: str, condition: str
) -> None:
    (tmp_path / "weights").write_bytes(bytes(1000))
    seconds, code, err = leave_at(
        tmp_path, desktop, opening=opening, condition=condition, model=tmp_path
    )
    assert code == 0, err
    assert seconds < 120, "it would have been ended by force only"
    if "gone" not in opening:  # that one is logged
        check_quiet(err)


@pytest.mark.parametrize(
    "condition",
    [
        "window.bar.isVisible()",
        "window.send_button.isEnabled()",
        "(window.send_button.isEnabled() and window.ask('What is 17 + 25?'))"
        " or window.transcript.answer is not None",
    ],
    ids=["while-loading", "while-warming-up", "while-answering"],
)
def test_closing_the_window_ends_the_program_with_a_real_model(
    tmp_path: Path, desktop: Path, demo_package: Path, condition: str
) -> None:
    seconds, code, err = leave_at(
        tmp_path,
        desktop,
        opening="return load(folder, progress=progress)",
        condition=condition,
        model=demo_package,
    )
    assert code == 0, err
    assert seconds < 120
    check_quiet(err)


def test_an_engine_that_never_comes_back_does_not_keep_the_program(
    tmp_path: Path, desktop: Path
) -> None:
    seconds, code, err = leave_at(
        tmp_path,
        desktop,
        opening="threading.Event().wait()",
        condition="window.bar.isVisible()",
        model=tmp_path,
        max_leaving_s=0.5,
    )
    assert code == 0
    assert 0.3 < seconds < 120
    check_quiet(err)


def test_self_check_tells_what_it_found(tmp_path: Path, desktop: Path, demo_package: Path) -> None:
    file = tmp_path / "found.json"
    options = ["--settings", str(tmp_path / "s.ini"), "--self-check", str(file)]
    command = [str(desktop / "main.py"), *options, "--model"]
    process = start([*command, str(demo_package)])
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = json.loads(file.read_text(encoding="utf-8"))
    assert "42" in found["answer"] and found["device"] == "CPU" and found["tokens"] > 0
    assert found["window_s"] < found["loaded_s"] < found["answered_s"]
    check_quiet(err)

    process = start([*command, str(tmp_path / "gone")])
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    found = json.loads(file.read_text(encoding="utf-8"))
    assert "gone" in found["problem"] and found["fix"]
