"""Binding, starting and stopping: real sockets, real processes, real signals."""

import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from qwen_edge.errors import EdgeError, UsageError
from qwen_edge.server.limits import ServerLimits
from qwen_edge.server.listening import Listener, listen

KEY = "correct-horse-battery"


def open_port(**options: Any) -> Listener:
    """Listen on a free port for a moment."""
    listener = listen(port=0, has_key=options.pop("has_key", False), **options)
    listener.socket.close()
    return listener


def has_ipv6() -> bool:
    """Return whether this machine has ::1."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


NEEDS_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
NEEDS_SIGNALS = pytest.mark.skipif(sys.platform == "win32", reason="signals are of POSIX")


@pytest.mark.trust("T-SEC-06")
def test_loopback_is_the_default() -> None:
    listener = open_port()
    assert listener.address == "127.0.0.1"
    assert listener.port > 0
    assert listener.url == f"http://127.0.0.1:{listener.port}"
    assert not listener.is_everywhere


@NEEDS_IPV6
def test_the_other_loopback() -> None:
    listener = open_port(host="::1")
    assert listener.url == f"http://[::1]:{listener.port}"
    assert listener.hosts == ("[::1]", "[::1]")


def test_names_are_resolved_to_ipv4_first() -> None:
    assert open_port(host="localhost").address == "127.0.0.1"


@pytest.mark.trust("T-SEC-06")
@pytest.mark.parametrize("host", ["0.0.0.0", pytest.param("::", marks=NEEDS_IPV6)])
def test_other_machines_need_a_key(host: str) -> None:
    with pytest.raises(UsageError, match="Other machines reach") as caught:
        open_port(host=host)
    assert "--api-key-file" in caught.value.fix
    assert "token_urlsafe" in caught.value.fix
    listener = open_port(host=host, has_key=True)
    assert listener.is_everywhere
    assert listener.hosts == ()
    assert listener.url.startswith(("http://127.0.0.1:", "http://[::1]:"))


@pytest.mark.parametrize("host", ["", "203.0.113.7", "no such host", "a..b", "127.0.0.1:80"])
def test_addresses_that_are_not_ours(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def resolve(name: str, *args: Any, **options: Any) -> Any:
        if name == "no such host":  # nobody is asked
            raise socket.gaierror("unknown")
        return real(name, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(UsageError, match="no address of this machine"):
        open_port(host=host, has_key=True)


@pytest.mark.parametrize("port", [-1, 65_536, True])
def test_ports_that_are_none(port: int) -> None:
    with pytest.raises(UsageError, match="expected 0 to 65535"):
        listen(port=port, has_key=False)


@pytest.mark.trust("T-SRV-11")
def test_a_busy_port_is_named_with_a_way_out() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EdgeError) as caught:
            listen(port=port, has_key=False)
    assert f"Port {port} of 127.0.0.1 is in use" in caught.value.problem
    assert "--port 0" in caught.value.fix
    assert caught.value.exit_code == 1


@pytest.mark.trust("T-SRV-11")
def test_two_servers_do_not_share_a_port() -> None:
    """Before `listen`, SO_REUSEADDR lets two sockets have the same port."""
    first = listen(port=0, has_key=False)
    try:
        with pytest.raises(EdgeError, match="is in use"):
            listen(port=first.port, has_key=False)
    finally:
        first.socket.close()


@pytest.mark.trust("T-LOAD-05")
def test_a_port_is_usable_again_at_once(start_server: Any, connect: Any) -> None:
    """The system keeps the port of closed connections for a minute."""
    server = start_server()
    wire = connect(server).send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert wire.read().status == 200
    server.stop()
    listen(port=server.port, has_key=False).socket.close()


@pytest.mark.trust("T-SEC-06")
def test_nothing_but_the_asked_address_is_bound(start_process: Any) -> None:
    process, port = start_process()
    bound = psutil.Process(process.pid).net_connections("inet")
    listening = [one.laddr for one in bound if one.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", port)]


@NEEDS_IPV6
def test_it_answers_on_ipv6(start_server: Any, connect: Any) -> None:
    server = start_server(host="::1")
    request = b"GET /health HTTP/1.1\r\nHost: [::1]:%d\r\n\r\n" % server.port
    assert connect(server, host="::1").send(request).read().status == 200


def test_small_parts_are_sent_at_once(start_server: Any, connect: Any) -> None:
    """Each answer took 44 ms: the system kept its body until its headers were acknowledged."""
    server = start_server()
    connect(server).send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").read()
    [connection] = server.server.server_state.connections
    accepted = connection.transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_handlers_are_told_before_the_server_ends(start_server: Any, connect: Any) -> None:
    told: list[float] = []
    server = start_server(
        limits=ServerLimits(stop_s=0.5), on_stopping=lambda: told.append(time.monotonic())
    )
    connect(server).send(b"GET /v1/deaf HTTP/1.1\r\nHost: localhost\r\n\r\n")
    deadline = time.monotonic() + 3
    while "deaf" not in server.app.seen and time.monotonic() < deadline:
        time.sleep(0.01)
    server.stop()
    assert len(told) == 1
    assert time.monotonic() - told[0] >= 0.2  # it was waited for, and then not any more
    assert server.app.ended == ["cancelled"]


def test_an_idle_connection_does_not_delay_the_end(start_server: Any, connect: Any) -> None:
    server = start_server(limits=ServerLimits(stop_s=60))
    connect(server).send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").read()
    connect(server).send(b"GET /hea")
    connect(server)
    start = time.monotonic()
    server.stop()
    assert time.monotonic() - start < 5


def ask(port: int) -> int:
    """Return the status of one request."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as wire:
        wire.request("GET", "/health")
        with wire.getresponse() as response:
            return response.status


@NEEDS_SIGNALS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_process_with_0(
    start_process: Callable[..., tuple["subprocess.Popen[str]", int]], number: signal.Signals
) -> None:
    process, port = start_process()
    assert ask(port) == 200
    start = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert output.split() == ["stopping", "stopped"]
    assert time.monotonic() - start < 5


@pytest.mark.trust("T-LOAD-05")
@NEEDS_SIGNALS
def test_a_signal_under_load_ends_the_process_in_time(start_process: Any, connect: Any) -> None:
    """With answers that nobody can hurry, readers that read nothing, and half requests."""
    process, port = start_process("--stop-s", "1.5")
    for path in (b"/v1/deaf", b"/v1/stream", b"/v1/deaf"):
        connect(port).send(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    connect(port).send(b"GET /v1/deaf HT")
    assert ask(port) == 200
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(OSError, match=r"refused|reset"):  # nothing more is accepted
        ask(port)
    output, _ = process.communicate(timeout=10)
    assert time.monotonic() - start < 5
    assert process.returncode == 0
    assert "Traceback" not in output
    listen(port=port, has_key=False).socket.close()


@NEEDS_SIGNALS
def test_what_does_not_end_is_ended(start_process: Any) -> None:
    """A thread that waits for ever must not keep the process."""
    process, port = start_process("--stop-s", "0.5", "--stuck")
    assert ask(port) == 200
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "did not end in time" in output


def test_a_server_stops_from_any_thread(start_server: Any) -> None:
    server = start_server()
    threads = [threading.Thread(target=server.stop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    with pytest.raises(OSError, match="refused"):
        ask(server.port)


def test_an_application_that_does_not_start_is_no_server(tiny_app: Any) -> None:
    from qwen_edge.server.listening import EdgeServer

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("broken")

    listener = listen(port=0, has_key=False)
    with pytest.raises(RuntimeError, match="did not start"):
        EdgeServer(broken, listener).run()
    assert listener.socket.fileno() == -1
