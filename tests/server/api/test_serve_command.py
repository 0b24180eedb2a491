"""`qwen-edge serve` as a process: readiness, keys, and every way to end it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from qwen_edge.cli.main import run
from qwen_edge.server.sidecar import is_running

Serve = Callable[..., "subprocess.Popen[bytes]"]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and modes are POSIX's")


def read_ready(path: Path, process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """Return what a ready file says, when it is there."""
    deadline = time.monotonic() + 60
    while not path.is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


@pytest.mark.trust("T-SEC-05")
def test_a_parent_finds_it_and_its_end_is_the_servers(
    start_serve: Serve, demo_package: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "Übergabe datei.json"
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = start_serve(
        demo_package, "--port", 0, "--ready-file", ready, "--random-key", "--parent-pid",
        parent.pid,
    )  # fmt: skip
    facts = read_ready(ready, process)
    assert facts["pid"] == process.pid
    assert oct(ready.stat().st_mode & 0o777) == "0o600"
    url, key = facts["url"], facts["api_key"]
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/health").status_code == 200
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
    for path in ("/", "/health", "/docs", "/openapi.json", "/v1/models", "/nothing"):
        for given in ({}, headers, {"Authorization": f"Bearer {key}x"}):
            shown = httpx.get(url + path, headers=given)
            assert key not in shown.text + str(shown.headers), path
    assert key not in " ".join(psutil.Process(process.pid).cmdline())
    parent.kill()
    parent.communicate()
    output, notices = process.communicate(timeout=15)
    assert process.returncode == 0
    assert not ready.exists()
    assert key.encode() not in output + notices


def test_it_ends_with_standard_input(start_serve: Serve, demo_package: Path) -> None:
    process = start_serve(
        demo_package, "--port", 0, "--json", "--stop-with-stdin", stdin=subprocess.PIPE
    )
    assert process.stdout is not None
    facts = json.loads(process.stdout.readline())
    assert httpx.get(f"{facts['url']}/health").json() == {"status": "ok"}
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None  # else the fixture would write to it
    assert process.wait(timeout=15) == 0


@pytest.mark.trust("T-LOAD-05")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order_also_while_it_answers(
    start_serve: Serve, demo_package: Path, number: int
) -> None:
    process = start_serve(demo_package, "--port", 0, "--json", "--quiet")
    assert process.stdout is not None
    facts = json.loads(process.stdout.readline())
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "logit_bias": {"2": -100},
        "n": 8,
    }
    url = f"{facts['url']}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=20) as response:
        assert response.status_code == 200
        started_s = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=15) == 0
    assert time.monotonic() - started_s < 6
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", facts["port"]))


@pytest.mark.trust("T-LOAD-05")
def test_after_a_kill_it_starts_again_at_the_same_place(
    start_serve: Serve, demo_package: Path, tmp_path: Path
) -> None:
    """Killed in the midst of answers: the port and the ready file are in nobody's way."""
    ready = tmp_path / "ready.json"
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "n": 4}
    port = 0
    for _ in range(2):
        process = start_serve(demo_package, "--port", port, "--ready-file", ready, "--quiet")
        deadline = time.monotonic() + 60
        while not ready.is_file() or json.loads(ready.read_bytes())["pid"] != process.pid:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        facts = json.loads(ready.read_bytes())
        assert port in (0, facts["port"])
        port = facts["port"]
        url = f"{facts['url']}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=20) as response:
            assert response.status_code == 200
            process.kill()
            process.wait(timeout=15)
        assert ready.is_file()


def test_a_package_that_cannot_be_loaded_ends_it_with_the_error(
    start_serve: Serve, demo_package: Path, tmp_path: Path
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(demo_package, broken)
    with (broken / "openvino_model.bin").open("r+b") as file:
        file.truncate(1000)
    process = start_serve(broken, "--port", 0)
    _, notices = process.communicate(timeout=60)
    assert process.returncode == 3
    assert b"openvino_model.bin" in notices
    assert b"Fix:" in notices


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--parallel", "0"], "--parallel is 0"),
        (["--queue", "-1"], "--queue is -1"),
        (["--port", "70000"], "--port is 70000"),
        (["--host", "0.0.0.0"], "Other machines reach"),
        (["--random-key"], "nobody would be told"),
        (["--api-key-file", "nowhere"], "cannot be read"),
        (["--allow-origin", "*"], "--allow-origin is '*'"),
        (["--ready-file", "nowhere/x.json"], "whose folder does not exist"),
        (["--parent-pid", "4194305"], "no such process"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options_are_refused_before_anything_is_loaded(
    demo_package: Path, arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = [] if "--port" in arguments else ["--port", "0"]
    assert run(["serve", str(demo_package), *port, *arguments]) == 2
    told = capsys.readouterr().err
    assert problem in told
    assert "Fix:" in told


@pytest.mark.trust("T-SRV-11")
def test_a_taken_port_is_named(demo_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", str(demo_package), "--port", str(port)]) == 1
    told = capsys.readouterr().err
    assert f"Port {port} of 127.0.0.1 is in use" in told
    assert "--port 0" in told


def test_two_packages_of_one_name_are_refused(
    demo_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", str(demo_package), str(demo_package), "--port", "0"]) == 2
    assert "are both named" in capsys.readouterr().err


def test_a_process_that_has_ended_is_not_running() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    while is_running(child.pid):  # until it is a zombie: nobody has asked how it ended
        time.sleep(0.01)
    child.wait()
    assert not is_running(child.pid)
    assert is_running(os.getpid())
    assert not is_running(0)
