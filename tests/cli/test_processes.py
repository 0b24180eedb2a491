"""The program as a process: signals, pipes, encodings, exit codes, with a real package."""

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

ON_POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and files")
# One call into C that no signal interrupts, as a long step of the engine is.
STUCK = "__import__('hashlib').pbkdf2_hmac('sha256', b'x', b'y', 2_000_000_000)"
DRIVER = """
import sys
from qwen_edge.runtime import loading
from qwen_edge.runtime.model import Model

def load(path, **options):
    {load}
    model = Model.fake(["so " * 1000])
    forward, calls = model.backend.forward, []
    def step(token_ids):
        calls.append(token_ids)
        if len(calls) == 1:
            {prefill}
        else:
            {decode}
        return forward(token_ids)
    model.backend.forward = step
    return model

loading.load = load
def mark():
    sys.stderr.write("now\\n")
    sys.stderr.flush()
from qwen_edge.cli import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize(
    ("load", "prefill", "decode", "arguments"),
    [
        (f"mark(); {STUCK}", "pass", "pass", []),
        ("pass", f"mark(); {STUCK}", "pass", []),
        ("pass", "pass", f"len(calls) == 9 and mark(); len(calls) > 9 and {STUCK}", []),
        ("pass", "pass", "len(calls) == 9 and mark(); __import__('time').sleep(0.02)", []),
        ("pass", "pass", "len(calls) == 9 and mark(); __import__('time').sleep(0.02)", ["--json"]),
    ],
    ids=["load", "prefill", "one-long-step", "decoding", "json"],
)
def test_ctrl_c_ends_run_soon(
    fake_package: Any,
    program_environment: dict[str, str],
    load: str,
    prefill: str,
    decode: str,
    arguments: list[str],
) -> None:
    driver = DRIVER.format(load=load, prefill=prefill, decode=decode)
    process = subprocess.Popen(
        [sys.executable, "-c", driver, "run", fake_package("x").folder, "Hello", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=program_environment,
    )
    assert process.stderr is not None
    while process.stderr.readline() != b"now\n":
        assert process.poll() is None
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    start_s = time.monotonic()
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - start_s < 5
    assert process.returncode == 130
    assert err.decode().strip() == "Cancelled."
    assert out == b"" if arguments or decode == "pass" else out.startswith(b"so")


@ON_POSIX
def test_ctrl_c_ends_an_export_and_leaves_nothing(
    program_environment: dict[str, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_edge.cli", "export", "demo", "--output", "package"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=program_environment,
    )
    assert process.stderr is not None
    while not process.stderr.readline().startswith(b"compress weights"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == b""
    assert err.decode().endswith("Cancelled.\n")
    assert "Traceback" not in err.decode()
    assert list(tmp_path.iterdir()) == []


def test_a_real_answer_and_figures(program: Any, demo_package: Path, tmp_path: Path) -> None:
    package = shutil.copytree(demo_package, tmp_path / "mein Läptop – 日本")
    done = program("run", package, "Hello", "--no-think", "--max-new-tokens", "8")
    assert done.returncode == 0
    assert done.stdout.endswith(b"\n") and len(done.stdout) > 1
    assert b"Device CPU, the first that can be used; skipped GPU: " in done.stderr
    assert b"prompt tokens computed" in done.stderr


@pytest.mark.trust("T-GEN-10")
def test_the_same_seed_gives_the_same_answer(program: Any, demo_package: Path) -> None:
    flat = ("--temperature", "100", "--top-k", "0", "--top-p", "1")  # any token may come
    options = ("--no-think", "--max-new-tokens", "12", "--quiet", *flat, "--seed")
    first = program("run", demo_package, "Hello", *options, "7")
    again = program("run", demo_package, "Hello", *options, "7")
    other = program("run", demo_package, "Hello", *options, "8")
    assert (first.returncode, first.stderr) == (0, b"")
    assert first.stdout == again.stdout != other.stdout


def test_json_tells_the_device(program: Any, demo_package: Path) -> None:
    done = program("run", demo_package, "Hello", "--max-new-tokens", "4", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    data = json.loads(done.stdout)
    assert data["device"] == "CPU"
    assert data["new_tokens"] <= 4


@pytest.mark.trust("T-DEV-01")
@pytest.mark.parametrize("device", ["NPU", "gpu"])
def test_an_absent_device_is_never_replaced(
    cli: Any, demo_package: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    from qwen_edge.runtime.devices.probing import DeviceReport

    reports = (DeviceReport("CPU", "A CPU"), DeviceReport(device.upper(), "", "no driver"))
    monkeypatch.setattr("qwen_edge.runtime.devices.openvino_opening.probe_devices", lambda: reports)
    outcome = cli("run", demo_package, "Hello", "--device", device)
    assert (outcome.code, outcome.out) == (6, "")
    assert f"Error: Device '{device.upper()}' was asked for and cannot be used" in outcome.err
    assert "\nFix: " in outcome.err


def test_a_prompt_longer_than_the_context_is_refused(program: Any, demo_package: Path) -> None:
    done = program("run", demo_package, stdin=b"word " * 30_000)
    assert (done.returncode, done.stdout) == (7, b"")
    error = done.stderr.decode().splitlines()
    assert error[-2].startswith("Error: The conversation needs")
    assert error[-1].startswith("Fix: ")


@ON_POSIX
@pytest.mark.parametrize("num_bytes", [0, 3], ids=["at-once", "after-some"])
def test_a_reader_that_leaves_is_no_error(
    program_environment: dict[str, str], demo_package: Path, num_bytes: int
) -> None:
    # Words drawn at random, so that the answer is long whatever the model has learned.
    options = ["--temperature", "100", "--top-k", "0", "--top-p", "1", "--seed", "1", "--no-think"]
    command = [sys.executable, "-m", "qwen_edge.cli", "run", str(demo_package), "Hello", *options]
    process = subprocess.Popen(
        [*command, "--quiet", "--max-new-tokens", "500"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=program_environment,
    )
    assert process.stdout is not None and process.stderr is not None
    if num_bytes:
        process.stdout.read(num_bytes)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 141
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said(program_environment: dict[str, str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qwen_edge.cli", "profiles"],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            env=program_environment,
            timeout=30,
        )
    assert done.returncode == 8
    assert done.stderr.startswith(b"Error: Standard output cannot be written to: No space left")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.trust("T-EMB-07")
@pytest.mark.parametrize("stream", ["<&-", ">&-", "2>&-"])
@ON_POSIX
def test_closed_streams_do_not_crash(
    program_environment: dict[str, str], demo_package: Path, stream: str
) -> None:
    line = f'exec "$0" -m qwen_edge.cli run "$1" Hello --max-new-tokens 3 {stream}'
    done = subprocess.run(
        ["sh", "-c", line, sys.executable, str(demo_package)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=program_environment,
        timeout=30,
    )
    assert done.returncode == (8 if stream == ">&-" else 0), done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_old_consoles_show_what_they_can(
    fake_package: Any, program_environment: dict[str, str], encoding: str
) -> None:
    package = fake_package("x")
    code = DRIVER.format(load="pass", prefill="pass", decode="pass")
    code = code.replace('"so " * 1000', "'Grüße – 日本 …'")
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code, "run", package.folder, "Hello"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=program_environment | {"PYTHONIOENCODING": encoding},
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    expected = {
        "ascii": b"Gr\\xfc\\xdfe - \\u65e5\\u672c ...",
        "cp1252": "Grüße – \\u65e5\\u672c …".encode("cp1252"),
        "utf-8": "Grüße – 日本 …".encode(),
    }
    assert done.stdout.strip() == expected[encoding]


@pytest.mark.trust("T-EMB-07")
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "kein Ordner ü", "x", "--json"],
        ["profiles", "show", "日本"],
        ["doctor", "--json"],
        ["export", "demo", "--explain"],
    ],
    ids=" ".join,
)
def test_every_command_survives_an_ascii_console(program: Any, arguments: list[str]) -> None:
    done = program(*arguments, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"})
    assert done.returncode in (0, 1, 2, 3)
    assert b"Traceback" not in done.stderr
    if "--json" in arguments:
        text = done.stdout or done.stderr.splitlines()[-1]
        text.decode("ascii")
        json.loads(text)


def test_a_waiting_pipe_is_explained(
    fake_package: Any, program_environment: dict[str, str]
) -> None:
    """A prompt was given, and the shell's own input is a pipe that nobody closes."""
    code = DRIVER.format(load="pass", prefill="pass", decode="pass")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", fake_package("x").folder, "Hello"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=program_environment,
    )
    assert process.stderr is not None
    assert b"Reading standard input to its end" in process.stderr.readline()
    out, _ = process.communicate(input=b"more", timeout=30)
    assert process.returncode == 0
    assert out.startswith(b"so")


def test_leaving_does_not_wait_for_a_thread_in_the_engine(
    program_environment: dict[str, str],
) -> None:
    """The warm-up of a big model takes ten seconds, and a refusal must not wait for it."""
    code = (
        "import threading; from qwen_edge.cli.interrupt import leave\n"
        f"threading.Thread(target=lambda: {STUCK}).start()\n"
        "print('text'); leave(7)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=program_environment, timeout=10
    )
    assert (done.returncode, done.stdout.strip()) == (7, b"text")
