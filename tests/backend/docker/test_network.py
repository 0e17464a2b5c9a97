"""An allow-listed network: what is on the list is reached through the proxy, and there is no other way out."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import docker
import pytest

from rath.backend.docker.container import options
from rath.backend.docker.engine import DockerEngine, engine
from rath.backend.docker.labels import OWNER, SANDBOX, labels
from rath.backend.docker.network import ROLE, Network, open_network
from rath.backend.owner import owner
from rath.backend.spec import BackendSandboxSpec
from rath.core import ports
from rath.errors import SandboxUnavailable, UsageValueError
from rath.testing.pace import within
from tests.backend.docker.conftest import BASE as IMAGE
from tests.backend.docker.conftest import DEV, NO_PYTHON

pytestmark = [pytest.mark.docker, pytest.mark.slow]
SERVER = """
import socket, sys
listeners = [socket.create_server(("", port)) for port in (8000, 8001)]
print("up", flush=True)
import selectors
waiting = selectors.DefaultSelector()
for one in listeners: waiting.register(one, selectors.EVENT_READ)
while True:
    for key, _ in waiting.select():
        connection, peer = key.fileobj.accept()
        said = connection.recv(4096)
        body = b"served " + said.split(b"\\r\\n")[0]
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
        connection.close()
"""
# Runs in a sandbox: each line of the output is what came of one attempt.
ATTEMPTS = """
import os, socket, sys
proxy = os.environ["HTTP_PROXY"].split("//")[1].split(":")
def through(request, then=b""):
    with socket.create_connection((proxy[0], int(proxy[1])), 5) as s:
        s.settimeout(5); s.sendall(request); heard = b""
        if then:
            heard = s.recv(4096); s.sendall(then)
        while True:
            data = s.recv(4096)
            if not data: return heard.decode()
            heard += data
def straight(host, port, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as s:
        s.settimeout(2); s.connect((host, port)); s.send(b"hello\\r\\n\\r\\n"); return "REACHED " + repr(s.recv(100))
def look_up(name):
    return "KNOWN " + repr(socket.getaddrinfo(name.encode(), 80))
for line in sys.argv[1:]:
    try: print(repr(eval(line)))
    except Exception as error: print(repr("failed: " + repr(error)))
"""


@pytest.fixture(scope="module")
def client(docker_engine: DockerEngine) -> Any:
    return docker_engine.client()


@contextlib.contextmanager
def container(client: Any, config: dict[str, Any]) -> Iterator[str]:
    made = client.create_container_from_config(config)["Id"]
    try:
        client.start(made)
        yield made
    finally:
        with contextlib.suppress(docker.errors.APIError):
            client.remove_container(made, force=True, v=True)


@pytest.fixture(scope="module")
def server(client: Any) -> Iterator[str]:
    """The address of a machine "outside": ports 8000 and 8001 answer."""
    config = {
        "Image": IMAGE, "Entrypoint": ["python3", "-c", SERVER], "Labels": {"rath-test": "network"},
        "HostConfig": {"NetworkMode": "bridge"},
    }  # fmt: skip
    with container(client, config) as made:
        address = client.inspect_container(made)["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        wait_until(lambda: b"up" in client.logs(made))
        yield address


def wait_until(true: Callable[[], object], within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


@dataclass
class Sandbox:
    """A container as the backend makes it, on an allow-listed network."""

    client: Any
    network: Network
    container: str
    id: str

    def run(self, *command: str, user: str = "20001:20001") -> str:
        env = dict(self.network.env)
        made = self.client.exec_create(self.container, list(command), user=user, environment=env)["Id"]
        return self.client.exec_start(made).decode()

    def attempts(self, *lines: str) -> list[str]:
        return [eval(line) for line in self.run("python3", "-I", "-S", "-c", ATTEMPTS, *lines).splitlines()]

    @property
    def address(self) -> str:
        return self.client.inspect_container(self.container)["NetworkSettings"]["Networks"][self.network.network_mode]["IPAddress"]


@contextlib.contextmanager
def sandbox(client: Any, *allowed: str, image: str = IMAGE) -> Iterator[Sandbox]:
    spec, name = BackendSandboxSpec(network=list(allowed)), secrets.token_hex(8)
    marks = labels(owner(), name)
    network = ports.engine().run(open_network(engine(), spec, marks, IMAGE))
    assert network is not None
    try:
        config = options(spec, image, ["sleep", "600"], {}, marks, network=network.network_mode, dns=network.dns)
        with container(client, config) as made:
            yield Sandbox(client, network, made, name)
    finally:
        ports.engine().run(network.close())
    assert remains(client, f"{SANDBOX}={name}") == []


def server_id(client: Any) -> str:
    [found] = client.containers(filters={"label": "rath-test=network"})
    return str(found["Id"])


def remains(client: Any, label: str) -> list[str]:
    where = {"label": label}
    return [
        row["Id"] for row in [*client.containers(all=True, filters=where), *client.networks(filters=where)]
        if row.get("State") != "removing"
    ]  # fmt: skip


@pytest.fixture(scope="module")
def one(client: Any, server: str) -> Iterator[Sandbox]:
    with sandbox(client, f"{server}:8000") as made:
        yield made


def test_other_networks_need_none(client: Any) -> None:
    for network in (None, "none", "bridge"):
        assert ports.engine().run(open_network(engine(), BackendSandboxSpec(network=network), {}, IMAGE)) is None


def test_what_is_on_the_list_is_reached_by_url_and_by_tunnel(one: Sandbox, server: str) -> None:
    plain, tunnelled = one.attempts(
        f"through(b'GET http://{server}:8000/x HTTP/1.1\\r\\nHost: {server}:8000\\r\\n\\r\\n')",
        f"through(b'CONNECT {server}:8000 HTTP/1.1\\r\\n\\r\\n', b'GET /y HTTP/1.1\\r\\n\\r\\n')",
    )
    assert plain.startswith("HTTP/1.1 200")
    assert plain.endswith("served GET /x HTTP/1.1")
    assert tunnelled.startswith("HTTP/1.1 200 Connection established")
    assert tunnelled.endswith("served GET /y HTTP/1.1")


def test_programs_find_the_proxy_by_themselves(client: Any, server: str) -> None:
    code = "import sys, urllib.request\nprint(urllib.request.urlopen(sys.argv[1]).read())"
    with sandbox(client, f"{server}:8000", image=DEV) as made:
        assert "served GET / " in made.run("python3", "-c", code, f"http://{server}:8000")
        refused = made.run("python3", "-c", code, f"http://{server}:8001")
        assert f"HTTP Error 403: {server}:8001 is not on this sandbox's allow-list" in refused
        refused = made.run("git", "ls-remote", "https://example.com/x.git")
        assert "CONNECT tunnel failed, response 403" in refused


def test_nothing_else_is_reached_through_the_proxy(one: Sandbox, server: str) -> None:
    refused = one.attempts(
        f"through(b'CONNECT {server}:8001 HTTP/1.1\\r\\n\\r\\n')",
        "through(b'CONNECT example.com:8000 HTTP/1.1\\r\\n\\r\\n')",
        "through(b'CONNECT 169.254.169.254:80 HTTP/1.1\\r\\n\\r\\n')",
        "through(b'GET http://169.254.169.254/latest/meta-data HTTP/1.1\\r\\n\\r\\n')",
        "through(b'CONNECT 127.0.0.1:3128 HTTP/1.1\\r\\n\\r\\n')",
    )
    assert [answer[:12] for answer in refused] == ["HTTP/1.1 403"] * 5
    assert all("allow-list" in answer for answer in refused)


def test_there_is_no_way_around_the_proxy(client: Any, one: Sandbox, server: str) -> None:
    network = client.inspect_network(one.network.network_mode)
    gateway = network["IPAM"]["Config"][0]["Gateway"]
    bridge = next(iter(client.inspect_container(server_id(client))["NetworkSettings"]["Networks"].values()))["Gateway"]
    # The engine's own host listens on all its addresses: as its gateway it must not be there.
    listening = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE)
    try:
        assert listening.stdout is not None
        assert listening.stdout.readline() == b"up\n"
        met = one.attempts(
            f"straight('{server}', 8000)", f"straight('{gateway}', 8000)", f"straight('{bridge}', 8000)",
            f"straight('{server}', 8000, socket.SOCK_DGRAM)",
        )  # fmt: skip
    finally:
        listening.kill()
        listening.communicate()
    assert [answer[:6] for answer in met] == ["failed"] * 4


def test_a_look_up_does_not_leave_the_sandbox(client: Any, one: Sandbox) -> None:
    began = time.monotonic()
    [outside] = one.attempts("look_up('secret-data.example.com')")
    assert outside.startswith("failed: gaierror")
    assert time.monotonic() - began < within(2)  # refused, not waited for
    # A name server that the sandbox could reach hears nothing of it: one on its own network, the only place it can reach.
    config = options(BackendSandboxSpec(), IMAGE, ["python3", "-c", NAME_SERVER], {}, {"rath-test": "listener"},
                     network=one.network.network_mode)  # fmt: skip
    config["HostConfig"].update(LogConfig={"Type": "json-file"}, AutoRemove=False, CapAdd=["NET_BIND_SERVICE"])
    with container(client, config) as listener:
        wait_until(lambda: b"up" in client.logs(listener))
        there = client.inspect_container(listener)["NetworkSettings"]["Networks"][one.network.network_mode]["IPAddress"]
        for name, servers in (("control", (there,)), ("secret", one.network.dns)):
            body = options(BackendSandboxSpec(), IMAGE, ["sleep", "60"], {}, {"rath-test": "listener"},
                           network=one.network.network_mode, dns=servers)  # fmt: skip
            with container(client, body) as made:
                Sandbox(client, one.network, made, "").attempts(f"look_up('{name}.example.com')")
        heard = client.logs(listener)
    assert b"control" in heard  # so it would have heard
    assert b"secret" not in heard


NAME_SERVER = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 53))
print("up", flush=True)
while True:
    data, peer = s.recvfrom(4096)
    print(data, flush=True)
"""


def test_a_sandbox_reaches_neither_another_sandbox_nor_its_proxy(client: Any, one: Sandbox, server: str) -> None:
    with sandbox(client, f"{server}:8001") as other:
        proxy = other.network.env["HTTP_PROXY"].removeprefix("http://").partition(":")[0]
        background = "import socket; socket.create_server(('', 9000)).accept()[0].sendall(b'hi')"
        made = client.exec_create(other.container, ["python3", "-c", background])["Id"]
        client.exec_start(made, detach=True)
        wait_until(lambda: "REACHED" in other.attempts("straight('127.0.0.1', 9000)")[0])
        client.exec_start(client.exec_create(other.container, ["python3", "-c", background])["Id"], detach=True)
        met = one.attempts(f"straight('{other.address}', 9000)", f"straight('{proxy}', 3128)")
        assert [answer[:6] for answer in met] == ["failed"] * 2
        own = one.attempts(f"through(b'CONNECT {server}:8001 HTTP/1.1\\r\\n\\r\\n')")
        assert own[0].startswith("HTTP/1.1 403")


def test_a_container_on_the_outer_network_cannot_use_the_proxy(client: Any, one: Sandbox, server: str) -> None:
    [proxy] = client.containers(filters={"label": [f"{SANDBOX}={one.id}", f"{ROLE}=proxy"]})
    outer = proxy["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    inner = proxy["NetworkSettings"]["Networks"][one.network.network_mode]["IPAddress"]
    # As root with the right to send anything, it sends packets for the inner address to the outer one's door.
    config = {
        "Image": IMAGE, "Entrypoint": ["sleep", "60"], "Labels": {"rath-test": "network"},
        "HostConfig": {"NetworkMode": "bridge", "CapAdd": ["NET_ADMIN"]},
    }  # fmt: skip
    with container(client, config) as made:
        neighbour = Sandbox(client, one.network, made, "")
        ask = f"through(b'CONNECT {server}:8000 HTTP/1.1\\r\\n\\r\\n', b'GET /z HTTP/1.1\\r\\n\\r\\n')"
        routed = f"add_route('{inner}', '{outer}')"
        script = ATTEMPTS.replace("for line in", ROUTE + "for line in")
        said = neighbour.run("python3", "-I", "-S", "-c", script, f"straight('{outer}', 3128)", routed, ask, user="0:0")
    first, route, answer = [eval(line) for line in said.splitlines()]
    assert first.startswith("failed: ConnectionRefusedError")
    assert route == 0
    assert "served" not in answer


ROUTE = """
def add_route(host, gateway):
    # struct rtentry: SIOCADDRT with RTF_UP | RTF_GATEWAY | RTF_HOST
    import fcntl, struct
    def address(a): return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(a))
    entry = struct.pack("8x") + address(host) + address(gateway) + address("255.255.255.255") + struct.pack("H102x", 7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: fcntl.ioctl(s, 0x890B, entry)
    return 0
"""


def test_the_proxy_is_as_tight_as_a_sandbox(client: Any, one: Sandbox) -> None:
    [found] = client.containers(filters={"label": [f"{SANDBOX}={one.id}", f"{ROLE}=proxy"]})
    host = client.inspect_container(found["Id"])["HostConfig"]
    assert (host["CapDrop"], host["CapAdd"], host["ReadonlyRootfs"]) == (["ALL"], None, True)
    assert (host["PidsLimit"], host["Memory"], host["SecurityOpt"]) == (64, 128 << 20, ["no-new-privileges"])
    assert client.inspect_container(found["Id"])["Config"]["User"] == "65534:65534"


@pytest.mark.parametrize("address", ["127.0.0.1:80", "169.254.169.254:80", "0.0.0.0:80"])
def test_an_address_that_nobody_may_reach_is_refused_before_anything_is_made(address: str) -> None:
    with pytest.raises(UsageValueError, match="cannot be allowed"):
        ports.engine().run(open_network(engine(), BackendSandboxSpec(network=[address]), {}, IMAGE))


def test_an_image_in_which_the_proxy_cannot_start_leaves_nothing(client: Any) -> None:
    name = secrets.token_hex(8)
    with pytest.raises(SandboxUnavailable, match="it needs python3"):
        ports.engine().run(
            open_network(engine(), BackendSandboxSpec(network=["x.test:1"]), labels(owner(), name), NO_PYTHON)
        )
    wait_until(lambda: remains(client, f"{SANDBOX}={name}") == [])


def test_twelve_at_once_do_not_get_in_each_others_way(client: Any) -> None:
    name = secrets.token_hex(8)

    async def all_of_them() -> list[str]:
        spec, marks = BackendSandboxSpec(network=["x.test:1"]), labels(owner(), name)
        made = await asyncio.gather(*(open_network(engine(), spec, marks, IMAGE) for _ in range(12)))
        there = [network for network in made if network is not None]
        await asyncio.gather(*(network.close() for network in there))
        return [network.env["HTTP_PROXY"] for network in there]

    assert len(set(ports.engine().run(all_of_them()))) == 12
    assert remains(client, f"{SANDBOX}={name}") == []


def test_an_open_that_is_cancelled_leaves_nothing(client: Any) -> None:
    name = secrets.token_hex(8)

    async def cancelled(after_s: float) -> None:
        opening = asyncio.ensure_future(
            open_network(engine(), BackendSandboxSpec(network=["x.test:1"]), labels(owner(), name), IMAGE)
        )
        await asyncio.sleep(after_s)
        opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            network = await opening
            if network is not None:
                await network.close()

    for after_s in (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5):
        ports.engine().run(cancelled(after_s))
    wait_until(lambda: remains(client, f"{SANDBOX}={name}") == [])


OWNER_PROGRAM = """
import sys, time
from rath.backend.docker.engine import engine
from rath.backend.docker.labels import labels
from rath.backend.docker.network import open_network
from rath.backend.owner import owner
from rath.backend.spec import BackendSandboxSpec
from rath.core import ports
ports.engine().run(open_network(engine(), BackendSandboxSpec(network=["x.test:1"]), labels(owner(), "a" * 16), sys.argv[1]))
print(owner().id, flush=True)
time.sleep(60)
"""


def test_nothing_is_left_when_the_owner_is_killed(client: Any) -> None:
    process = subprocess.Popen([sys.executable, "-c", OWNER_PROGRAM, IMAGE], stdout=subprocess.PIPE)
    assert process.stdout is not None
    name = process.stdout.readline().decode().strip()
    assert len(remains(client, f"{OWNER}={name}")) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    wait_until(lambda: remains(client, f"{OWNER}={name}") == [], 20)
