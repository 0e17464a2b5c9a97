"""The filtering proxy, as a process of its own, asked over real sockets: what it lets through, and that nothing breaks it."""

from __future__ import annotations

import inspect
import os
import random
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rath.backend.guest import proxy
from rath.backend.guest.proxy import Chunked, Refused, denial, never, private
from rath.testing.pace import within

pytestmark = pytest.mark.slow

SOURCE = inspect.getsource(proxy)


def own_address() -> str:
    """An address of this machine that is not a loopback one; choosing a way to the other end sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as chooser:
        with suppress(OSError):
            chooser.connect(("192.0.2.200", 9))
            address = str(chooser.getsockname()[0])
            if not never(address):
                return address
    pytest.skip("this machine has a loopback address only, which the proxy never connects to")


class Origin:
    """A server that remembers every byte it gets, and answers each connection once."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", *, patient: bool = False) -> None:
        self.listener = socket.create_server((own_address(), 0))
        self.host, self.port = self.listener.getsockname()
        self.answer = answer
        self.patient = patient
        self.heard: list[bytes] = []
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    @property
    def pair(self) -> str:
        return f"{self.host}:{self.port}"

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self.talk, args=(connection,), daemon=True).start()

    def talk(self, connection: socket.socket) -> None:
        index = len(self.heard)
        self.heard.append(b"")
        with connection, suppress(OSError):
            connection.settimeout(0.3)
            answered = False
            with suppress(TimeoutError):
                while data := connection.recv(65536):
                    self.heard[index] += data
                    if not answered and not self.patient:
                        connection.sendall(self.answer)
                        answered = True
            if not answered:
                connection.sendall(self.answer)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)


@contextmanager
def origin(**settings: object) -> Iterator[Origin]:
    made = Origin(**settings)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


class Running:
    """A proxy under test, reached at 127.0.0.1."""

    def __init__(self, *allowed: str, peers: str = "127.0.0.1/8") -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        source = SOURCE.replace(f"\nPORT = {proxy.PORT}", f"\nPORT = {self.port}", 1)
        source = source.replace(f"NAMES_PORT = {proxy.NAMES_PORT}", f"NAMES_PORT = {self.port}", 1)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-u", "-W", "error", "-c", source, peers, *allowed],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready %d\n" % self.port

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def ask(self, request: bytes, then: bytes = b"") -> bytes:
        with self.connect() as connection:
            connection.sendall(request)
            heard = b""
            if then:
                heard = connection.recv(65536)
                connection.sendall(then)
            with suppress(ConnectionResetError):
                while data := connection.recv(65536):
                    heard += data
            return heard

    def stop(self) -> bytes:
        """End it; what it said of trouble."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(5) == 0
            return self.process.stderr.read()
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process.stderr.close()


@contextmanager
def running(*allowed: str, peers: str = "127.0.0.1/8") -> Iterator[Running]:
    made = Running(*allowed, peers=peers)
    try:
        yield made
    finally:
        said = made.stop()
    assert said == b""


@pytest.fixture(scope="module")
def there() -> Iterator[Origin]:
    with origin() as made:
        yield made


@pytest.fixture(scope="module")
def asked(there: Origin) -> Iterator[Running]:
    with running(there.pair, "localhost:80", "nowhere.invalid:80") as made:
        yield made


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


# -- what passes ------------------------------------------------------------------------------------------------------


def test_a_request_with_a_url_is_passed_on_with_its_path(asked: Running, there: Origin) -> None:
    there.heard.clear()
    answer = asked.ask(b"GET http://%s/a?b=c HTTP/1.1\r\nHost: %s\r\nX-One: 1\r\n\r\n" % ((there.pair.encode(),) * 2))
    assert answer.endswith(b"\r\n\r\nok")
    assert there.heard == [
        b"GET /a?b=c HTTP/1.1\r\nHost: %s\r\nx-one: 1\r\nConnection: close\r\n\r\n" % there.pair.encode()
    ]


def test_a_tunnel_passes_any_bytes_both_ways(asked: Running, there: Origin) -> None:
    there.heard.clear()
    answer = asked.ask(b"CONNECT %s HTTP/1.1\r\n\r\n" % there.pair.encode(), then=b"\x16\x03\x01\x00\xff")
    assert answer.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK")
    assert there.heard == [b"\x16\x03\x01\x00\xff"]


def test_what_comes_with_the_request_for_a_tunnel_is_not_lost(asked: Running, there: Origin) -> None:
    there.heard.clear()
    asked.ask(b"CONNECT %s HTTP/1.1\r\n\r\nearly" % there.pair.encode())
    assert there.heard == [b"early"]


def test_a_body_of_megabytes_passes_whole() -> None:
    body = random.Random(5).randbytes(3 << 20)
    with origin(answer=b"HTTP/1.1 200 OK\r\n\r\n" + body, patient=True) as there, running(there.pair) as asked:
        head = b"POST http://%s/ HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (there.pair.encode(), len(body))
        answer = asked.ask(head + body)
        assert answer.partition(b"\r\n\r\n")[2] == body
        assert there.heard[0].partition(b"\r\n\r\n")[2] == body


def test_a_chunked_body_passes_as_it_is(asked: Running, there: Origin) -> None:
    there.heard.clear()
    chunks = b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n"
    asked.ask(b"PUT http://%s/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%s" % (there.pair.encode(), chunks))
    assert there.heard[0].partition(b"\r\n\r\n")[2] == chunks


def test_one_end_of_a_tunnel_may_finish_before_the_other() -> None:
    with origin(answer=b"the answer", patient=True) as there, running(there.pair) as asked, asked.connect() as connection:
        connection.sendall(b"CONNECT %s HTTP/1.1\r\n\r\n" % there.pair.encode())
        assert b"200" in connection.recv(4096)
        connection.sendall(b"the question")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(4096) == b"the answer"
        assert connection.recv(4096) == b""
        assert there.heard == [b"the question"]


def test_a_slow_tunnel_does_not_hold_others_up(asked: Running, there: Origin) -> None:
    slow = [asked.connect() for _ in range(20)]
    for one in slow:
        one.sendall(b"CONNECT")
    began = time.monotonic()
    assert status(asked.ask(b"CONNECT %s HTTP/1.1\r\n\r\nx" % there.pair.encode())) == 200
    assert time.monotonic() - began < within(3)
    for one in slow:
        one.close()


# -- what does not ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "CONNECT {host}:{other} HTTP/1.1",
        "CONNECT example.com:{port} HTTP/1.1",
        "GET http://{host}:{other}/ HTTP/1.1",
        "GET http://{host}/ HTTP/1.1",
        "CONNECT {host}.:{port} HTTP/1.1",
        "CONNECT x{host}:{port} HTTP/1.1",
    ],
)
def test_what_is_not_on_the_list_is_refused_and_the_list_is_named(asked: Running, there: Origin, line: str) -> None:
    there.heard.clear()
    other = there.port - 1 if there.port > 1 else 2
    request = line.format(host=there.host, port=there.port, other=other)
    answer = asked.ask(request.encode() + b"\r\n\r\n")
    assert status(answer) == 403
    assert b"is not on this sandbox's allow-list" in answer.split(b"\r\n")[0]
    assert there.heard == []


@pytest.mark.parametrize(
    "request_text",
    [
        "GET http://{pair}/ HTTP/1.1\r\nHost: example.com",
        "GET http://{pair}/ HTTP/1.1\r\nHost: {pair}\r\nHost: {pair}",
        "GET http://{pair}@example.com/ HTTP/1.1",
        "GET http://example.com@{pair}/ HTTP/1.1",
        "GET http://{pair}\\@example.com/ HTTP/1.1",
        "GET https://{pair}/ HTTP/1.1",
        "GET ftp://{pair}/ HTTP/1.1",
        "GET / HTTP/1.1\r\nHost: {pair}",
        "GET http://{pair}/ HTTP/2.0",
        "GET http://{pair}/ a HTTP/1.1",
        "GET  http://{pair}/ HTTP/1.1",
        "GET http://{pair}/\tx HTTP/1.1",
        "GET http://{pair}/ HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked",
        "GET http://{pair}/ HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4",
        "GET http://{pair}/ HTTP/1.1\r\nContent-Length: +3",
        "GET http://{pair}/ HTTP/1.1\r\nTransfer-Encoding: gzip, chunked",
        "GET http://{pair}/ HTTP/1.0\r\nTransfer-Encoding: chunked",
        "GET http://{pair}/ HTTP/1.1\r\nTransfer-Encoding : chunked",
        "GET http://{pair}/ HTTP/1.1\r\nA: b\r\n folded: c",
        "GET http://{pair}/ HTTP/1.1\r\nA: b\nHost: example.com",
        "GET http://{pair}/ HTTP/1.1\r\nA: b\rc",
        "CONNECT http://{pair} HTTP/1.1",
        "CONNECT {pair}:1 HTTP/1.1",
        "CONNECT {host} HTTP/1.1",
        "CONNECT {host}:99999 HTTP/1.1",
        "CONNECT [::1]:80 HTTP/1.1",
        "connect {pair} HTTP/1.1",
        "",
        "\x00",
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(asked: Running, there: Origin, request_text: str) -> None:
    there.heard.clear()
    answer = asked.ask(request_text.format(pair=there.pair, host=there.host).encode() + b"\r\n\r\n")
    assert status(answer) == 400
    assert there.heard == []


def test_a_second_request_on_a_connection_goes_nowhere(asked: Running, there: Origin) -> None:
    one = b"GET http://%s/1 HTTP/1.1\r\n\r\n" % there.pair.encode()
    smuggled = b"GET /2 HTTP/1.1\r\nHost: example.com\r\n\r\n"
    chunked = b"POST http://%s/1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % there.pair.encode()
    counted = b"POST http://%s/1 HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody" % there.pair.encode()
    for first in (one, chunked, counted):
        there.heard.clear()
        assert asked.ask(first + smuggled).count(b"HTTP/1.1 200") == 1
        assert len(there.heard) == 1
        assert b"/2" not in there.heard[0]
        assert b"Connection: close\r\n" in there.heard[0]


@pytest.mark.parametrize("body", ["zz\r\n", "5\nhello\r\n", "5\r\nhelloX\r\n", "-1\r\n", "5 5\r\n", "\r\n", "1" * 5000])
def test_a_malformed_chunked_body_ends_the_connection(asked: Running, there: Origin, body: str) -> None:
    there.heard.clear()
    head = f"PUT http://{there.pair}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    asked.ask(head.encode() + body.encode() + b"0\r\n\r\nGET /2 HTTP/1.1\r\n\r\n")
    assert all(b"/2" not in heard for heard in there.heard)


def test_a_name_that_means_this_machine_itself_is_refused(asked: Running) -> None:
    answer = asked.ask(b"CONNECT localhost:80 HTTP/1.1\r\n\r\n")
    assert status(answer) == 403
    assert b"private or local address" in answer


def test_a_name_that_is_unknown_says_so(asked: Running) -> None:
    answer = asked.ask(b"CONNECT nowhere.invalid:80 HTTP/1.1\r\n\r\n")
    assert status(answer) == 502
    assert b"nowhere.invalid has no address" in answer


def test_a_port_where_nobody_listens_says_so() -> None:
    with socket.create_server((own_address(), 0)) as closed:
        host, port = closed.getsockname()
    with running(f"{host}:{port}") as asked:
        answer = asked.ask(f"CONNECT {host}:{port} HTTP/1.1\r\n\r\n".encode())
    assert status(answer) == 502
    assert b"cannot be reached: Connection refused" in answer


def test_metadata_and_loopback_are_refused_though_they_be_listed() -> None:
    with running("169.254.169.254:80", "127.0.0.1:80", "0.0.0.0:80", "127.1:80", "2130706433:80") as asked:
        for host in ("169.254.169.254", "127.0.0.1", "0.0.0.0", "127.1", "2130706433"):
            assert status(asked.ask(f"CONNECT {host}:80 HTTP/1.1\r\n\r\n".encode())) == 403, host


def test_who_is_not_on_the_sandboxs_network_is_not_heard(there: Origin) -> None:
    with running(there.pair, peers="127.0.0.1/32") as asked, socket.socket() as stranger:
        stranger.bind(("127.0.0.2", 0))
        stranger.settimeout(5)
        stranger.connect(("127.0.0.1", asked.port))
        with suppress(OSError):
            stranger.sendall(b"CONNECT %s HTTP/1.1\r\n\r\n" % there.pair.encode())
            assert stranger.recv(100) == b""


@pytest.mark.parametrize(
    ("address", "is_never", "is_private"),
    [
        ("8.8.8.8", False, False), ("127.9.9.9", True, False), ("169.254.169.254", True, False), ("0.0.0.0", True, False),
        ("224.0.0.1", True, False), ("255.255.255.255", True, False), ("100.100.100.200", True, True),
        ("10.1.2.3", False, True), ("172.16.0.1", False, True), ("172.32.0.1", False, False), ("192.168.1.1", False, True),
        ("100.64.0.1", False, True), ("::1", True, False), ("::", True, False), ("fe80::1", True, False),
        ("fe80::1%eth0", True, False), ("ff02::1", True, False), ("fd00:ec2::254", True, True), ("fd00::1", False, True),
        ("2606:4700::1111", False, False), ("::ffff:127.0.0.1", True, False), ("::ffff:10.0.0.1", False, True),
        ("64:ff9b::169.254.169.254", True, False), ("2002:7f00:1::", True, False), ("::127.0.0.1", True, False),
        ("nonsense", True, True),
    ],
)  # fmt: skip
def test_which_addresses_are_open_to_nobody_and_which_to_themselves_only(address: str, is_never: bool, is_private: bool) -> None:
    assert (never(address), private(address)) == (is_never, is_private)


# Runs in network and mount namespaces of its own: two addresses that are neither private nor anybody's here, and a file of
# hosts that changes while the proxy runs.
PINNING = """
import fcntl, socket, struct, sys, threading
from tests.backend.guest.test_proxy import Running
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    for name, address in (("lo", "127.0.0.1"), ("lo:1", "203.0.113.5"), ("lo:2", "203.0.113.6")):
        request = struct.pack("16sHH4s8x", name.encode(), socket.AF_INET, 0, socket.inet_aton(address))
        fcntl.ioctl(control, 0x8916, request)                                     # SIOCSIFADDR
        fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", name.encode(), 1))   # SIOCSIFFLAGS: up
def serve(address):
    listener = socket.create_server((address, 80))
    while True:
        with listener.accept()[0] as connection:
            connection.sendall(address.encode())
for address in ("203.0.113.5", "203.0.113.6"):
    threading.Thread(target=serve, args=(address,), daemon=True).start()
def means(address):
    with open("/etc/hosts", "w") as hosts:
        hosts.write(address + " pinned.test\\n")
def ask(proxy):
    return proxy.ask(b"CONNECT pinned.test:80 HTTP/1.1\\r\\n\\r\\n").partition(b"\\r\\n\\r\\n")[2].decode()
means("203.0.113.5")
first = Running("pinned.test:80")
print(ask(first))
means("203.0.113.6")
print(ask(first))
second = Running("pinned.test:80")
print(ask(second))
for one in (first, second):
    assert one.stop() == b""
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give itself a network and a file of hosts of its own")
def test_a_name_means_for_ever_what_it_meant_first(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("")
    mounted = 'mount --bind "$0" /etc/hosts && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", mounted, str(tmp_path / "hosts"), sys.executable, "-c", PINNING],
        capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["203.0.113.5", "203.0.113.5", "203.0.113.6"], done.stderr


# -- names ------------------------------------------------------------------------------------------------------------

QUERY = b"\x12\x34\x01\x20\0\1\0\0\0\0\0\1\7example\3com\0\0\1\0\1" + b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def test_every_look_up_is_told_at_once_that_there_is_no_such_name(asked: Running) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.settimeout(5)
        for garbage in (b"", b"\0", b"x" * 12, b"\xff" * 2000):
            program.sendto(garbage, ("127.0.0.1", asked.port))
        program.sendto(QUERY, ("127.0.0.1", asked.port))
        answer = program.recv(4096)
    assert answer == b"\x12\x34\x81\x83\0\1\0\0\0\0\0\0\7example\3com\0\0\1\0\1"


@given(st.binary(max_size=60) | st.integers(0, len(QUERY)).map(lambda end: QUERY[:end]))
def test_no_datagram_is_too_odd(query: bytes) -> None:
    answer = denial(query)
    assert answer is None or (answer[:2] == query[:2] and len(answer) <= len(query))


# -- hostile clients --------------------------------------------------------------------------------------------------


def test_a_head_without_end_is_refused(asked: Running) -> None:
    with asked.connect() as connection:
        with suppress(OSError):
            for _ in range(40):
                connection.sendall(b"a" * 4096)
        heard = b""
        with suppress(OSError):
            while data := connection.recv(4096):
                heard += data
    assert status(heard) == 431


def test_more_connections_than_it_serves_wait_and_harm_nobody(there: Origin) -> None:
    with running(there.pair) as asked:
        crowd = [asked.connect() for _ in range(proxy.CLIENTS + 20)]
        for one in crowd:
            one.close()
        assert status(asked.ask(b"CONNECT %s HTTP/1.1\r\n\r\nx" % there.pair.encode())) == 200


def test_it_goes_on_after_any_garbage(there: Origin) -> None:
    rng = random.Random(7)
    seeds = [
        b"GET http://%s/ HTTP/1.1\r\nHost: %s\r\nContent-Length: 5\r\n\r\nhello" % ((there.pair.encode(),) * 2),
        b"POST http://%s/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" % there.pair.encode(),
        b"CONNECT %s HTTP/1.1\r\n\r\nhello" % there.pair.encode(),
    ]
    with running(there.pair) as asked:
        for _ in range(300):
            request = bytearray(rng.choice(seeds))
            for _ in range(rng.randrange(6)):
                at = rng.randrange(len(request))
                match rng.randrange(4):
                    case 0:
                        request[at] = rng.randrange(256)
                    case 1:
                        del request[at : at + rng.randrange(1, 20)]
                    case 2:
                        request[at:at] = rng.randbytes(rng.randrange(1, 20))
                    case _:
                        request[at:at] = rng.choice([b"\r\n", b"\r\n\r\n", b"\0", b"\n", b":", b"@", b"/", b" "])
                if not request:
                    break
            with asked.connect() as connection, suppress(OSError):
                connection.sendall(request)
                if rng.random() < 0.5:
                    connection.shutdown(socket.SHUT_WR)
                if rng.random() < 0.3:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close by a reset
                else:
                    select.select([connection], [], [], 0.01)
        assert asked.process.poll() is None
        assert status(asked.ask(b"CONNECT %s HTTP/1.1\r\n\r\nx" % there.pair.encode())) == 200


@given(st.binary(max_size=300), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_a_chunked_body_is_understood_the_same_however_it_is_cut(data: bytes, step: int) -> None:
    def outcome(cuts: Callable[[bytes], list[bytes]]) -> object:
        body, taken = Chunked(), 0
        try:
            for piece in cuts(data):
                taken += body.take(piece)
        except Refused:
            return "refused"
        return taken, body.done

    pieces = outcome(lambda data: [data[at : at + step] for at in range(0, len(data), step)])
    assert pieces == outcome(lambda data: [data])


def test_it_exits_when_its_owner_is_gone() -> None:
    made = Running("a.test:1")
    assert made.stop() == b""


def test_it_runs_with_what_a_minimal_python_has() -> None:
    # What Debian's python3-minimal brings, as far as the program uses it; a new import is to be checked against it.
    allowed = {"__future__", "collections", "collections.abc", "errno", "functools", "os", "re", "selectors", "socket", "sys",
               "threading", "time"}  # fmt: skip
    imports = {line.split()[1] for line in SOURCE.splitlines() if line.startswith(("import ", "from "))}
    assert imports <= allowed
