"""samples/sidecar in real Node processes: start, readiness, streaming, restart, end, one instance.

`server` is the command that the sidecar starts. Most tests need what only the stand-in does (fail,
be slow, crash on demand); those that a real server can pass too take both.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no `node` on this machine")
ON_POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
STAND_IN = Path(__file__).with_name("stand_in_server.py")
WAIT_S = 120
# Parents and standard input are looked at twice a second; the rest is leaving.
MAX_ORPHAN_S = 2.0


class Node:
    """A Node process whose lines can be waited for."""

    def __init__(self, arguments: list[str], **options: Any) -> None:
        assert NODE is not None
        self.process = subprocess.Popen(
            [NODE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True)
            for pipe, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Any, lines: list[str]) -> None:
        lines.extend(iter(pipe.readline, ""))  # grows while it is read

    def say(self, text: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def wait_for(self, text: str, *, times: int = 1) -> str:
        """Return the line of either stream that holds a text for the n-th time."""
        deadline_s = time.monotonic() + WAIT_S
        while True:
            found = [line for line in [*self.err, *self.out] if text in line]
            if len(found) >= times:
                return found[times - 1].strip()
            is_over = self.process.poll() is not None and not self._readers[1].is_alive()
            assert not is_over and time.monotonic() < deadline_s, (text, self.out, self.err)
            time.sleep(0.01)

    def finish(self) -> int:
        """End its standard input, wait for its end, and return the exit code."""
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()
        code = self.process.wait(WAIT_S)
        for reader in self._readers:
            reader.join(WAIT_S)
        return code

    def close(self) -> None:
        """End it by force, where it is still there."""
        self.process.kill()
        self.finish()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def run(samples: Path) -> Iterator[Callable[..., Node]]:
    """Return a function that starts the example, or a script with its modules, in Node."""
    started: list[Node] = []

    def start(*arguments: str, script: str | None = None, **options: Any) -> Node:
        folder = samples / "sidecar"
        command = [str(folder / "example.mjs"), *arguments]
        if script is not None:
            head = (
                f"import {{ Sidecar, SidecarError }} from {(folder / 'sidecar.mjs').as_uri()!r};\n"
                f"import * as chat from {(folder / 'chat.mjs').as_uri()!r};\n"
                f"import * as lock from {(folder / 'instance_lock.mjs').as_uri()!r};\n"
            )
            command = ["--input-type=module", "--eval", head + script, "--", *arguments]
        started.append(Node(command, **options))
        return started[-1]

    yield start
    for node in started:
        node.close()


@pytest.fixture
def stand_in() -> list[str]:
    """Return the command of the stand-in server."""
    return [sys.executable, str(STAND_IN), "package"]


@pytest.fixture(params=["stand-in", "qwen-edge"])
def server(request: pytest.FixtureRequest, stand_in: list[str]) -> list[str]:
    """Return the command of a server, and of the real one with the demo model."""
    if request.param == "stand-in":
        return stand_in
    pytest.importorskip("uvicorn", reason="qwen-edge[serve] is not installed")
    folder = request.getfixturevalue("demo_package")
    return [sys.executable, "-m", "qwen_edge.cli", "serve", str(folder)]


def read_server(line: str) -> tuple[str, int]:
    """Return the address and the process of a server from a line of the example."""
    words = line.replace(",", "").split()
    return words[1], int(words[3])


def is_running(pid: int) -> bool:
    """Return whether a process is there and has not ended."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def is_reachable(url: str) -> bool:
    """Return whether somebody listens at an address."""
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def wait_until_gone(pid: int, url: str) -> float:
    """Return after how many seconds a server had ended and its port was free."""
    start_s = time.monotonic()
    while is_running(pid) or is_reachable(url):
        assert time.monotonic() < start_s + WAIT_S, "the server is left behind"
        time.sleep(0.02)
    return time.monotonic() - start_s


@pytest.mark.trust("T-EMB-11")
def test_a_question_is_answered_and_nothing_is_left(
    run: Callable[..., Node], server: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "my dätä 测试"
    node = run("--data-dir", str(data), "--ask", "What is 17 + 25?", "--", *server)
    url, pid = read_server(node.wait_for("Server http"))
    assert node.finish() == 0, node.err
    answer = "".join(node.out)
    assert answer.strip().endswith("= 42") or answer.startswith("You said: What is 17 + 25?")
    assert any("tokens/s" in line for line in node.err)
    assert not is_running(pid) and not is_reachable(url)
    assert list(data.iterdir()) == []


def test_a_conversation_goes_on_at_one_server(
    run: Callable[..., Node], server: list[str], tmp_path: Path
) -> None:
    node = run("--data-dir", str(tmp_path), "--", *server)
    node.wait_for("Ready")
    places = []
    for number, question in enumerate(["Say hello.", "Say hello."]):
        node.say(question)
        places.append(node.wait_for("Server http", times=number + 1))
        node.wait_for("tokens/s", times=number + 1)
    assert places[0] == places[1]
    assert node.finish() == 0
    wait_until_gone(read_server(places[0])[1], read_server(places[0])[0])


@pytest.mark.trust("T-EMB-05")
@ON_POSIX
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "stdin", "SIGINT"])
def test_the_server_ends_with_the_app(
    run: Callable[..., Node], server: list[str], tmp_path: Path, how: str
) -> None:
    node = run("--data-dir", str(tmp_path), "--", *server)
    node.wait_for("Ready")
    node.say("Say hello.")
    url, pid = read_server(node.wait_for("Server http"))
    node.wait_for("tokens/s")
    if how == "stdin":
        assert node.finish() == 0
    else:
        node.process.send_signal(getattr(signal, how))
        node.process.wait(WAIT_S)
    assert wait_until_gone(pid, url) < MAX_ORPHAN_S
    left = {path.name for path in tmp_path.iterdir()}
    assert left == ({"server.lock"} if how == "SIGKILL" else set())


@ON_POSIX
def test_a_server_that_does_not_end_kindly_is_ended(
    run: Callable[..., Node], stand_in: list[str], tmp_path: Path
) -> None:
    script = """
const [dataDir, ...command] = process.argv.slice(1);
const sidecar = new Sidecar({ command, dataDir, stopLimitMs: 200 });
const { url, pid } = await sidecar.connection();
await sidecar.stop();
console.log(url, pid);
"""
    # It watches its parent too, but that is still there.
    node = run(str(tmp_path), *stand_in, "--ignore-stdin", script=script)
    assert node.finish() == 0, node.err
    [url, pid] = "".join(node.out).split()
    assert not is_running(int(pid)) and not is_reachable(url)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--refuse", "The package is not there."], "The package is not there."),
        (["--load-fails", "Not enough memory."], "Not enough memory."),
        (["--never-ready"], "was not ready in time"),
        (["--load-s", "600"], "was not ready in time"),
    ],
    ids=["refused", "load-failed", "silent", "slow"],
)
def test_a_server_that_does_not_become_ready_is_told_of(
    run: Callable[..., Node],
    stand_in: list[str],
    tmp_path: Path,
    options: list[str],
    expected: str,
) -> None:
    limit = "3" if "ready" in expected else str(WAIT_S)
    arguments = ["--data-dir", str(tmp_path), "--ready-limit-s", limit, "--ask", "x", "--"]
    node = run(*arguments, *stand_in, *options)
    assert node.finish() == 1
    err = "".join(node.err)
    assert expected in err and "Error: " in err and "\n    at " not in err
    assert list(tmp_path.iterdir()) == []


def test_a_real_server_that_refuses_is_quoted(run: Callable[..., Node], tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="qwen-edge[serve] is not installed")
    command = [sys.executable, "-m", "qwen_edge.cli", "serve", str(tmp_path / "gone")]
    node = run("--data-dir", str(tmp_path), "--ask", "x", "--", *command)
    assert node.finish() == 1
    err = "".join(node.err)
    assert "exit code" in err and "gone" in err and "Fix:" in err


def test_a_program_that_is_not_there_is_told_of(run: Callable[..., Node], tmp_path: Path) -> None:
    node = run("--data-dir", str(tmp_path), "--ask", "x", "--", str(tmp_path / "no program"))
    assert node.finish() == 1
    assert "no program" in "".join(node.err) and "ENOENT" in "".join(node.err)
    assert list(tmp_path.iterdir()) == []


def test_loading_is_waited_for(
    run: Callable[..., Node], stand_in: list[str], tmp_path: Path
) -> None:
    start_s = time.monotonic()
    node = run("--data-dir", str(tmp_path), "--ask", "x", "--", *stand_in, "--load-s", "1.5")
    node.wait_for("Ready")
    assert time.monotonic() - start_s > 1.5
    assert node.finish() == 0


def test_a_crash_is_mended_but_not_for_ever(
    run: Callable[..., Node], stand_in: list[str], tmp_path: Path
) -> None:
    script = """
const [dataDir, ...command] = process.argv.slice(1);
const sidecar = new Sidecar({ command, dataDir, maxRestarts: 2 });
sidecar.on("restarting", (error, attempt) => console.log("restarting", attempt, error.output));
sidecar.on("failed", (error) => console.log("failed", error.problem));
const seen = new Set();
for (let number = 0; number < 3; number += 1) {
  const { url, key, pid } = await sidecar.connection();
  seen.add(pid);
  const names = ["restarting", "failed"];
  const ended = new Promise((go) => names.forEach((name) => sidecar.once(name, go)));
  await fetch(`${url}/crash`, { headers: { authorization: `Bearer ${key}` } }).catch(() => {});
  await ended;
}
console.log("servers", seen.size);
await sidecar.connection().catch((error) => console.log("refused", error instanceof SidecarError));
sidecar.reset();
console.log("again", (await sidecar.connection()).isOwn);
await sidecar.stop();
await sidecar.connection().catch((error) => console.log(error.problem));
"""
    node = run(str(tmp_path), *stand_in, script=script)
    assert node.finish() == 0, node.err
    lines = "".join(node.out).splitlines()
    assert lines[:2] == ["restarting 1 about to crash", "restarting 2 about to crash"]
    assert lines[2].startswith("failed The server") and "exit code 70" in lines[2]
    assert lines[3:] == ["servers 3", "refused true", "again true", "The server was stopped."]
    assert list(tmp_path.iterdir()) == []


def test_a_crash_in_the_middle_of_an_answer_is_told_of_and_mended(
    run: Callable[..., Node], stand_in: list[str], tmp_path: Path
) -> None:
    node = run("--data-dir", str(tmp_path), "--", *stand_in)
    node.wait_for("Ready")
    node.say("please crash now")
    first = read_server(node.wait_for("Server http"))
    node.wait_for("Error: ")
    node.wait_for("Restart 1")
    node.say("hello")
    second = read_server(node.wait_for("Server http", times=2))
    node.wait_for("You said: hello")
    assert first[1] != second[1]
    assert node.finish() == 0


@pytest.mark.trust("T-EMB-06")
def test_a_second_start_uses_the_server_that_runs(
    run: Callable[..., Node], server: list[str], tmp_path: Path
) -> None:
    first = run("--data-dir", str(tmp_path), "--", *server)
    first.wait_for("Ready")
    first.say("Say hello.")
    place = first.wait_for("Server http")
    assert "started here" in place
    second = run("--data-dir", str(tmp_path), "--", *server)
    second.wait_for("Ready")
    second.say("Say hello.")
    assert second.wait_for("Server http") == place.replace("started here", "of another start")
    second.wait_for("tokens/s")
    assert second.finish() == 0
    url, pid = read_server(place)
    assert is_running(pid), "it belongs to the first"
    assert first.finish() == 0
    wait_until_gone(pid, url)


@pytest.mark.trust("T-EMB-06")
def test_when_the_first_start_ends_the_second_gets_its_own_server(
    run: Callable[..., Node], stand_in: list[str], tmp_path: Path
) -> None:
    first = run("--data-dir", str(tmp_path), "--", *stand_in)
    first.wait_for("Ready")
    second = run("--data-dir", str(tmp_path), "--", *stand_in)
    second.wait_for("Ready")
    second.say("one")
    assert "of another start" in second.wait_for("Server http")
    second.wait_for("tokens/s")
    first.process.kill()
    first.process.wait(WAIT_S)
    second.say("two")
    assert "started here" in second.wait_for("Server http", times=2)
    second.wait_for("You said: two")
    assert second.finish() == 0


@pytest.mark.trust("T-EMB-06")
def test_two_apps_have_a_server_each(
    run: Callable[..., Node], stand_in: list[str], tmp_path: Path
) -> None:
    nodes = [run("--data-dir", str(tmp_path / name), "--", *stand_in) for name in ("a", "b")]
    places = []
    for node in nodes:
        node.wait_for("Ready")
        node.say("x")
        places.append(node.wait_for("Server http"))
        assert "started here" in places[-1]
    assert len({read_server(place) for place in places}) == 2
    assert [node.finish() for node in nodes] == [0, 0]


@pytest.mark.trust("T-EMB-06")
def test_many_starts_at_once_share_one_server(
    run: Callable[..., Node], stand_in: list[str], tmp_path: Path
) -> None:
    """Also where all of them find the lock of a start that was killed."""
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    stale = {"token": "old", "pid": int(ended.stdout), "started": "then", "server": None}
    (tmp_path / "server.lock").write_text(json.dumps(stale), encoding="utf-8")
    nodes = [run("--data-dir", str(tmp_path), "--", *stand_in) for _ in range(4)]
    places = []
    for node in nodes:
        node.wait_for("Ready")
        node.say("x")
        places.append(node.wait_for("Server http"))
    assert len({read_server(place) for place in places}) == 1
    assert sum("started here" in place for place in places) == 1
    for node in nodes:
        node.process.kill()


@pytest.mark.parametrize(
    "record",
    [
        {"token": "x", "pid": 2**22 + 1, "started": "", "server": None},
        {"token": "x", "pid": os.getpid(), "started": "another time", "server": None},
        {"token": "x", "pid": 0, "started": "", "server": None},
    ],
    ids=["no-such-process", "number-used-again", "no-number"],
)
def test_a_stale_lock_is_recognised(
    run: Callable[..., Node], stand_in: list[str], tmp_path: Path, record: dict[str, Any]
) -> None:
    (tmp_path / "server.lock").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "server-old.json").write_text("{}", encoding="utf-8")
    node = run("--data-dir", str(tmp_path), "--ask", "x", "--", *stand_in)
    assert "started here" in node.wait_for("Server http")
    assert node.finish() == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "not JSON", "[]", '{"pid": 1}'])
def test_half_a_lock_is_removed_after_a_while(
    run: Callable[..., Node], stand_in: list[str], tmp_path: Path, content: str
) -> None:
    lock = tmp_path / "server.lock"
    lock.write_text(content, encoding="utf-8")
    os.utime(lock, (time.time() - 60, time.time() - 60))
    node = run("--data-dir", str(tmp_path), "--ask", "x", "--", *stand_in)
    assert node.finish() == 0, node.err


@ON_POSIX
def test_the_lock_and_the_key_are_for_this_user_only(
    run: Callable[..., Node], server: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    node = run("--data-dir", str(data), "--", *server)
    node.wait_for("Ready")
    assert data.stat().st_mode & 0o777 == 0o700
    for path in data.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    record = json.loads((data / "server.lock").read_text(encoding="utf-8"))
    assert record["pid"] == node.process.pid
    assert record["server"].keys() == {"pid", "port", "ready_file"}, "no key in it"
    assert node.finish() == 0


@pytest.mark.trust("T-EMB-07")
def test_the_server_s_environment_is_clean(
    run: Callable[..., Node], stand_in: list[str], tmp_path: Path
) -> None:
    script = """
const [dataDir, ...command] = process.argv.slice(1);
const sidecar = new Sidecar({ command, dataDir });
const { url, key } = await sidecar.connection();
const answer = await fetch(`${url}/environment`, { headers: { authorization: `Bearer ${key}` } });
console.log(await answer.text());
await sidecar.stop();
"""
    junk = {
        "PYTHONPATH": "/nowhere",
        "PYTHONHOME": "/nowhere",
        "LD_LIBRARY_PATH": "/nowhere",
        "QWEN_EDGE_API_KEY": "of the app",
    }
    env = {**os.environ, **junk, "KEPT": "yes"}
    node = run(str(tmp_path), *stand_in, script=script, env=env)
    assert node.finish() == 0, node.err
    seen = json.loads("".join(node.out))
    assert not junk.keys() & seen.keys()
    assert seen["KEPT"] == "yes"


def test_refusals_and_errors_of_the_server_are_shown(
    run: Callable[..., Node], stand_in: list[str], tmp_path: Path
) -> None:
    node = run("--data-dir", str(tmp_path), "--", *stand_in)
    node.wait_for("Ready")
    node.say("refuse")
    node.wait_for("Error: Too long.")
    node.wait_for("Shorten it.")
    node.say("an error please")
    node.wait_for("Error: The device is gone.")
    node.say("hello")
    node.wait_for("You said: ", times=2)
    assert node.finish() == 0


def test_an_answer_can_be_stopped(
    run: Callable[..., Node], stand_in: list[str], tmp_path: Path
) -> None:
    script = """
const [dataDir, ...command] = process.argv.slice(1);
const sidecar = new Sidecar({ command, dataDir });
const connection = await sidecar.connection();
const control = new AbortController();
const messages = [{ role: "user", content: "one two three four five" }];
try {
  for await (const event of chat.streamChat(connection, { messages, signal: control.signal })) {
    console.log(event.kind, JSON.stringify(event.text ?? event.finishReason));
    if (event.text === "You ") control.abort();
  }
} catch (error) {
  console.log(error.name);
}
await sidecar.stop();
"""
    node = run(str(tmp_path), *stand_in, "--word-s", "0.3", script=script)
    assert node.finish() == 0, node.err
    assert "".join(node.out).splitlines() == ['reasoning "Hm. "', 'answer "You "', "AbortError"]


def test_a_wrong_key_is_refused(
    run: Callable[..., Node], server: list[str], tmp_path: Path
) -> None:
    script = """
const [dataDir, ...command] = process.argv.slice(1);
const sidecar = new Sidecar({ command, dataDir });
const { url, key } = await sidecar.connection();
for (const wrong of [null, "wrong"]) {
  await chat.listModels({ url, key: wrong }).catch((error) => console.log(error.status));
}
console.log((await chat.listModels({ url, key })).length);
await sidecar.stop();
"""
    node = run(str(tmp_path), *server, script=script)
    assert node.finish() == 0, node.err
    assert "".join(node.out).split() == ["401", "401", "1"]


def test_events_are_read_however_they_are_cut(run: Callable[..., Node]) -> None:
    script = r"""
const first = "\ufeff: a comment\r\ndata: {\"a\": \"é日\"}\r\n\r\n";
const text = `${first}data:two\r\ndata: lines\r\n\r\nevent: x\nid: 1\n\ndata: last\r\r\n`;
const bytes = new TextEncoder().encode(text);
const seen = new Set();
for (let size = 1; size <= bytes.length; size += 1) {
  async function* cut() {
    for (let i = 0; i < bytes.length; i += size) yield bytes.slice(i, i + size);
  }
  const events = [];
  for await (const event of chat.readEvents(cut())) events.push(event);
  seen.add(JSON.stringify(events));
}
console.log([...seen].join("\n"));
"""
    node = run(script=script)
    assert node.finish() == 0, node.err
    [line] = "".join(node.out).splitlines()
    assert json.loads(line) == ['{"a": "é日"}', "two\nlines", "last"]


def test_how_old_a_process_is_tells_it_from_another(run: Callable[..., Node]) -> None:
    script = """
const pids = process.argv.slice(1).map(Number);
for (const pid of pids) console.log(JSON.stringify(await lock.startTimeOf(pid)));
"""
    node = run(str(os.getpid()), "1", str(os.getpid()), str(2**22 + 1), script=script)
    assert node.finish() == 0, node.err
    own, first, again, none = (json.loads(line) for line in node.out)
    assert own == again != first
    assert own and none is None
