"""An allow-listed network: an internal network of the sandbox's own, and on it a proxy that lets the listed pairs through.

The sandbox has no route out: what is not asked of the proxy goes nowhere. Three things an internal network of the engine
does *not* keep in by itself, found by trying, and closed here:

- The host stands on it, as its gateway: whatever the host serves on all addresses could be reached. So the bridge gets no
  address (``inhibit_ipv4``).
- The engine's resolver at 127.0.0.11 passes look-ups on in the host's name where the host's own resolver is a local one
  (CVE-2024-29018; engines before 23.0.11, 25.0.5, 26.0). So the container is to be created with :attr:`Network.dns`:
  look-ups end at the proxy.
- A container with two networks forwards packets between them if asked nicely. So the proxy's kernel is told not to.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rath.backend.docker.engine import DockerEngine, EngineRefusal, NotThere
from rath.backend.docker.keeper import keeper
from rath.backend.guest import proxy
from rath.backend.owner import owner
from rath.backend.spec import BackendSandboxSpec, parse_endpoints
from rath.core import ports
from rath.errors import SandboxError, SandboxUnavailable, UsageValueError

__all__ = ["ROLE", "Network", "open_network"]

ROLE = "rath.role"
"""A label that tells a container that serves a sandbox (``"proxy"``) from the sandbox itself, which has none."""

# Eight addresses a network, of a range that is set aside for measuring networks (RFC 2544): the engine's own pools hold
# some thirty networks, and belong to its user.
_RANGE = (198, 19)
_PREFIX = 29
_TRIES = 16
_READY_S = 20.0
_GONE_S = 5.0
_REMOVE_S = 30.0
_RETRY_S = 0.02
_RETRY_AT_MOST_S = 0.5
_NOBODY = "65534:65534"
_HEADER_BYTES = 8


@dataclass(slots=True)
class Network:
    """An open one. Its owner's end, or :meth:`close`, ends the proxy.

    Attributes:
        network_mode: what the sandbox's container is created with, as ``NetworkMode``.
        env: what tells programs of the proxy; for every command.
        dns: for ``HostConfig.Dns``: the proxy, which knows no name. (Not a loopback address: an engine may take that for
            its host's. Not one where nobody is: a look-up would hold up the container's end by seconds.)
    """

    network_mode: str
    env: Mapping[str, str]
    dns: tuple[str, ...]
    _engine: DockerEngine
    _proxy: str = ""
    _stream: socket.socket | None = None
    _started: bool = False

    async def close(self) -> None:
        """End the proxy and remove the network; the sandbox's container has to be gone, or going.

        Raises:
            SandboxError: the network could not be removed within 30 s.
        """
        if self._stream is not None:
            self._stream.close()  # the end of its input: it exits, and AutoRemove does the rest
        if self._proxy and not (self._started and await self._engine.gone(self._proxy, _GONE_S)):
            await self._remove_proxy()
        loop, pause_s = asyncio.get_running_loop(), _RETRY_S
        deadline = loop.time() + _REMOVE_S
        while True:
            try:
                await self._engine.ask("remove a network", lambda client: client.remove_network(self.network_mode))
                return
            except NotThere:
                return
            except EngineRefusal as error:  # it has active endpoints: a container that is on its way out
                if loop.time() > deadline:
                    raise SandboxError(f"the network {self.network_mode} of a sandbox is still in use: {error}") from error
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_AT_MOST_S)

    async def _remove_proxy(self) -> None:
        try:
            await self._engine.ask("remove a proxy", lambda client: client.remove_container(self._proxy, force=True, v=True))
        except EngineRefusal:
            return  # it is being removed, or gone


async def open_network(
    engine: DockerEngine, spec: BackendSandboxSpec, labels: Mapping[str, str], image: str
) -> Network | None:
    """The network of a sandbox whose spec has an allow-list; ``None`` for other specs.

    Args:
        labels: of the network and of the proxy's container, so that whoever sweeps finds them.
        image: any image with ``python3``.

    Raises:
        UsageValueError: the list has an address that can never be reached.
        SandboxUnavailable: the proxy does not start.
    """
    if spec.network is None or isinstance(spec.network, str):
        return None
    pairs = parse_endpoints(spec.network)
    for host, port in pairs:
        if _is_address(host) and proxy.never(host):
            raise UsageValueError(
                f"network: {host}:{port} cannot be allowed: seen from a sandbox it is itself, or where clouds keep secrets. "
                "A service of this machine is reached by one of the machine's other addresses"
            )
    opening = asyncio.ensure_future(_open(engine, [f"{host}:{port}" for host, port in pairs], labels, image))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        # What the engine has been asked for it makes, whoever has stopped waiting: it has to be known to be removed.
        await asyncio.shield(_undo(opening))
        raise


async def _open(engine: DockerEngine, pairs: list[str], labels: Mapping[str, str], image: str) -> Network:
    # Unlike a container, a network does not go with the connection of its owner.
    await ports.engine().call(keeper.need, owner())
    name = f"rath-{secrets.token_hex(6)}"
    address = await _make_network(engine, name, labels)
    network = Network(name, _environment(address), (address,), engine)
    try:
        await _start_proxy(network, labels, image, address, pairs)
    except BaseException:
        await network.close()
        raise
    return network


async def _undo(opening: asyncio.Future[Network]) -> None:
    try:
        network = await opening
    except SandboxError:
        return  # it has cleaned up itself
    await network.close()


def _is_address(host: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return False
    return True


def _environment(address: str) -> dict[str, str]:
    url = f"http://{address}:{proxy.PORT}"
    # Both cases: curl reads only the small http_proxy, some programs only the capitals.
    env = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), url)
    return env | dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1")


async def _make_network(engine: DockerEngine, name: str, labels: Mapping[str, str]) -> str:
    """Make the network; the address that the proxy is to have on it."""
    for attempt in range(_TRIES):
        block = random.randrange(1 << (32 - 16 - (32 - _PREFIX)))
        base = ".".join(map(str, (*_RANGE, block >> 5, (block & 31) << 3)))
        gateway, address = (f"{base.rpartition('.')[0]}.{((block & 31) << 3) + number}" for number in (1, 2))
        wanted = {
            "name": name,
            "driver": "bridge",
            "internal": True,
            "labels": dict(labels),
            "options": {"com.docker.network.bridge.inhibit_ipv4": "true"},
            "ipam": {"Driver": "default", "Config": [{"Subnet": f"{base}/{_PREFIX}", "Gateway": gateway}]},
        }
        try:
            await engine.ask("make a network", partial(_create_network, wanted=wanted))
        except EngineRefusal as error:
            if "overlap" not in str(error) or attempt == _TRIES - 1:
                raise
            continue
        return address
    raise AssertionError("the last attempt returns or raises")


def _create_network(client: Any, wanted: dict[str, Any]) -> None:
    client.create_network(**wanted)


async def _start_proxy(network: Network, labels: Mapping[str, str], image: str, address: str, pairs: list[str]) -> None:
    engine = network._engine
    config = _proxy_config(network.network_mode, labels, image, address, pairs)
    made = await engine.ask("make a proxy", lambda client: client.create_container_from_config(config))
    network._proxy = made["Id"]
    await engine.ask(
        "connect a proxy to the network 'bridge'",
        lambda client: client.connect_container_to_network(network._proxy, "bridge"),
    )
    network._stream = await engine.attach(network._proxy)
    try:
        await engine.ask("start a proxy", lambda client: client.start(network._proxy))
        network._started = True
        said = await asyncio.wait_for(_until_ready(network._stream), _READY_S)
    except EngineRefusal as error:
        said = str(error)
    except TimeoutError:
        said = f"no word from it within {_READY_S:g} s"
    if said:
        raise SandboxUnavailable(
            f"the proxy of an allow-listed network did not start in the sandbox's image ({said}): it needs python3. Choose "
            "an image that has it, or another network: 'none', 'bridge'"
        )


async def _until_ready(stream: socket.socket) -> str:
    """Nothing if the proxy said that it is ready; else what it said."""
    loop, heard = asyncio.get_running_loop(), b""
    while True:
        data = await loop.sock_recv(stream, 4096)
        heard += data
        if b"ready " in heard:
            return ""
        if not data:
            return heard[_HEADER_BYTES:].decode("utf-8", "replace").strip()[-400:] or "it ended without a word"


def _proxy_config(
    network: str, labels: Mapping[str, str], image: str, address: str, pairs: list[str]
) -> dict[str, Any]:
    source = inspect.getsource(proxy)
    host: dict[str, Any] = {
        "AutoRemove": True,
        "CapDrop": ["ALL"],
        "Init": False,
        "IpcMode": "private",
        "LogConfig": {"Type": "none"},
        "Memory": 128 << 20,
        "MemorySwap": 128 << 20,
        "NetworkMode": network,
        "PidsLimit": 64,
        "ReadonlyRootfs": True,
        "SecurityOpt": ["no-new-privileges"],
        "Sysctls": {"net.ipv4.ip_forward": "0"},
    }
    return {
        "Image": image, "Entrypoint": ["python3", "-I", "-S", "-u", "-c", source, f"{address}/{_PREFIX}", *pairs], "Cmd": [],
        "User": _NOBODY, "WorkingDir": "/", "Hostname": "proxy", "Env": [], "Labels": {**labels, ROLE: "proxy"},
        "OpenStdin": True, "StdinOnce": True, "AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Tty": False,
        "StopTimeout": 0, "StopSignal": "SIGKILL", "Healthcheck": {"Test": ["NONE"]}, "HostConfig": host,
        "NetworkingConfig": {"EndpointsConfig": {network: {"IPAMConfig": {"IPv4Address": address}}}},
    }  # fmt: skip
