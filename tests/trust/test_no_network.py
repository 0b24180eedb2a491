"""T-SUP-06 and T-SUP-07: no command reaches out, reports home or opens a socket but the server's.

Real processes with the environment of a new user, in a network namespace of their own, where
nothing but they themselves can be reached. Python's audit events say which sockets they ask for,
strace says the same of libraries that are not Python.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "export" / "qwen_edge" / "export" / "demo"
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
# Read by every Python that starts, so that children are watched too.
WATCH = """
import os, sys
def watch(event, args):
    if event.startswith("socket.") and "AF_UNIX" not in repr(args):
        with open(os.environ["WATCHED_EVENTS"], "a") as file:
            about = args if event == "socket.getaddrinfo" else args[1:]  # without the socket
            file.write(f"{event} {about!r}\\n")
sys.addaudithook(watch)
"""
# Ups the loopback device of the new namespace, then becomes the command.
WITH_LOOPBACK = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS
os.execvp(sys.argv[1], sys.argv[1:])
"""
# Starts the server that is watched, asks it over loopback, and ends it.
ASK_SERVER = """
import json, os, subprocess, sys, time, urllib.request
ready, question, *command = sys.argv[1:]
environment = {**os.environ, "PYTHONPATH": os.environ["WATCHED_PYTHONPATH"]}
child = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
while not os.path.exists(ready):
    assert child.poll() is None, "the server did not start"
    time.sleep(0.05)
url = json.load(open(ready))["url"]
assert b"<html" in urllib.request.urlopen(url + "/").read()
body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
request = urllib.request.Request(
    url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
)
message = json.load(urllib.request.urlopen(request))["choices"][0]["message"]
child.stdin.close()
assert child.wait(30) == 0
print(message["content"])
"""
NETWORK_CALL = re.compile(r"\b(socket|bind|connect|listen)\((.*)")


def can_isolate() -> bool:
    """Return whether this account may make a network namespace."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.trust("T-SUP-06", "T-SUP-07"),
    pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's"),
    pytest.mark.skipif(not can_isolate(), reason="this account may make no network namespace"),
]


@dataclass(frozen=True)
class Watched:
    """What a command did.

    Args:
        out: Its standard output.
        events: Python's audit events on sockets that are no UNIX ones, in all its processes.
        calls: System calls on such sockets, or None where there is no strace.
        home: The files it left in its home.
    """

    out: str
    events: list[str]
    calls: list[str] | None
    home: list[str]


Watch = Callable[..., Watched]


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    """Return a function that runs a command as a new user, without a network, and watches it."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    home = tmp_path / "home"
    home.mkdir()
    events, trace = tmp_path / "events", tmp_path / "trace"
    sources = [str(ROOT / top) for top in ("export", "runtime", "profiles")]
    watched_path = os.pathsep.join([str(hooks), *sources])
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": watched_path,
        "WATCHED_EVENTS": str(events),
        "WATCHED_PYTHONPATH": watched_path,
    }

    def call(*command: str | Path, stdin: str = "", is_client: bool = False) -> Watched:
        events.write_text("", encoding="utf-8")
        inside = [str(part) for part in command]
        has_strace = shutil.which("strace") is not None and not is_client
        if has_strace:
            inside = [
                "strace",
                "-f",
                "--seccomp-bpf",
                "-qq",
                "-e",
                "trace=%network",
                "-o",
                str(trace),
                *inside,
            ]
        unwatched = {"PYTHONPATH": ""} if is_client else {}
        done = subprocess.run(
            ["unshare", "--net", sys.executable, "-I", "-c", WITH_LOOPBACK, *inside],
            input=stdin,
            capture_output=True,
            text=True,
            env={**environment, **unwatched},
            cwd=tmp_path,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        calls = None
        if has_strace:
            found = NETWORK_CALL.findall(trace.read_text(encoding="utf-8"))
            calls = [f"{name} {rest}" for name, rest in found if "AF_INET" in rest]
        files = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
        seen = events.read_text(encoding="utf-8").splitlines()
        return Watched(done.stdout, seen, calls, sorted(files))

    return call


def edge(*arguments: str | Path) -> list[str | Path]:
    """Return a command line."""
    return [sys.executable, "-m", "qwen_edge.cli", *arguments]


def test_the_watch_sees_what_it_should(watch: Watch, tmp_path: Path) -> None:
    """Otherwise the other tests would say nothing."""
    program = (
        "import socket, subprocess, sys\n"
        "code = 'import socket; socket.socket().connect_ex((\"192.0.2.1\", 9))'\n"
        "subprocess.run([sys.executable, '-c', code])\n"
        "try:\n    socket.getaddrinfo('example.invalid', 80)\nexcept OSError:\n    pass\n"
    )
    seen = watch(sys.executable, "-c", program)
    assert [line.split()[0] for line in seen.events] == [
        "socket.__new__",
        "socket.connect",
        "socket.getaddrinfo",
    ]
    if seen.calls is not None:
        assert any("192.0.2.1" in call for call in seen.calls)


def test_export_run_and_chat_open_no_socket(watch: Watch, tmp_path: Path) -> None:
    """From a folder to an answer: nothing is looked up, nothing is reported."""
    checkpoint = tmp_path / "my checkpoint"
    shutil.copytree(DEMO, checkpoint)
    package = tmp_path / "package"
    for command, stdin, expected in (
        (("export", checkpoint, "--output", package, "--profile", "core-ultra"), "", ""),
        (("run", package, "--temperature", "0", QUESTION), "", ANSWER),
        (("chat", package, "--temperature", "0"), f"{QUESTION}\n", ANSWER),
        (("verify", package), "", "intact"),
        (("doctor", "--package", package), "", ""),
    ):
        seen = watch(*edge(*command), stdin=stdin)
        assert expected in seen.out, command[0]
        assert (seen.events, seen.calls or []) == ([], []), command[0]
        assert not [name for name in seen.home if "intel" in name or "google" in name], seen.home


def test_serve_opens_its_listener_and_nothing_else(
    watch: Watch, tmp_path: Path, demo_package: Path
) -> None:
    ready = tmp_path / "ready.json"
    server = edge(
        *("serve", demo_package, "--port", "0", "--ready-file", ready, "--stop-with-stdin")
    )
    seen = watch(sys.executable, "-c", ASK_SERVER, ready, QUESTION, *server, is_client=True)
    assert seen.out.strip() == ANSWER
    kinds = [line.split()[0] for line in seen.events]
    assert kinds.count("socket.bind") == 1, seen.events
    assert "'127.0.0.1'" in next(line for line in seen.events if line.startswith("socket.bind"))
    # `socket.__new__` also stands for each connection that was taken.
    assert set(kinds) <= {"socket.__new__", "socket.bind", "socket.getaddrinfo"}, seen.events
    lookups = [line for line in seen.events if line.startswith("socket.getaddrinfo")]
    assert all("('127.0.0.1'," in line for line in lookups), lookups  # a number, not a name
    assert not [name for name in seen.home if "intel" in name], json.dumps(seen.home)
