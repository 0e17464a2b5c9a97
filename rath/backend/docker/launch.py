"""One container with a guest inside: starting it, and being sure that it is gone."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from rath.backend import guest
from rath.backend.docker.carrier import OutputOnly, connect
from rath.backend.docker.container import WORKSPACE, options
from rath.backend.docker.engine import DockerEngine, EngineRefusal, Image
from rath.backend.docker.labels import labels
from rath.backend.docker.network import Network, open_network
from rath.backend.docker.place import Place
from rath.backend.guest.channel import Channel
from rath.backend.owner import owner
from rath.backend.spec import BackendSandboxSpec
from rath.errors import SandboxError, SandboxUnavailable

__all__ = ["Launched", "NoPython", "create", "launch", "new_sandbox_id", "remove", "undo"]

GONE_S = 3.0
# runc: exec: "python3": executable file not found in $PATH; crun: executable file `python3` not found in $PATH
_NO_PYTHON = re.compile("""["'`]python3["'`]""")
_log = logging.getLogger("rath.backend")
# The guest's first lines. A volume of the engine's belongs to root, and what the image had in its place too; a tmpfs gets
# the mode of the image's directory, whatever it was asked for.
_BOOT = """\
import os, sys
source, owner = sys.argv[1:3]
os.chmod("/tmp", 0o1777)
del sys.argv[1:]
if owner:
    uid, gid = map(int, owner.split(":"))
    for place, _, names in os.walk("WORKSPACE"):
        os.chown(place, uid, gid)
        for name in names:
            os.lchown(os.path.join(place, name), uid, gid)
exec(compile(source, "<guest>", "exec"), {"__name__": "__main__"})
""".replace("WORKSPACE", WORKSPACE)


class NoPython(SandboxError):
    """The image has no ``python3``, so the guest cannot run in it."""


class AttachedChannel(Channel):
    """A channel over a container's attached streams: what the first process said on stderr is told with its end."""

    def __init__(self, name: str) -> None:
        self._output = OutputOnly()
        super().__init__(name, self._output)

    def connection_lost(self, error: Exception | None) -> None:
        if self._output.said:
            self._said.append(self._output.said[-300:])
        super().connection_lost(error)


@dataclass(slots=True)
class Launched:
    """A running container with a channel to its guest, which has not been configured yet.

    Attributes:
        id: the sandbox's own, in labels and records; ``container``: the engine's.
    """

    id: str
    container: str
    image: Image
    channel: Channel
    place: Place
    network: Network | None
    engine: DockerEngine
    removed: bool = field(default=False)


def new_sandbox_id() -> str:
    """A name for a sandbox, by which labels and records know it."""
    return secrets.token_hex(8)


@functools.cache
def _source() -> str:
    """The guest server. Passed on the command line, so that nothing is mounted or copied and a remote engine works."""
    return Path(guest.__file__).with_name("server.py").read_text()


async def launch(engine: DockerEngine, spec: BackendSandboxSpec, image: Image, place: Place, uid: int | None) -> Launched:
    """Start a container with a guest; cleans up after itself where it fails. Frees ``place`` then, too.

    Args:
        uid: for the label only: a container of a pool may not have its user yet.

    Raises:
        NoPython: the image has no ``python3``.
        SandboxUnavailable: the engine cannot.
    """
    sandbox = new_sandbox_id()
    network, container, channel, started = None, "", None, False
    try:
        named = labels(owner(), sandbox, uid)
        network = await open_network(engine, spec, named, image.id)
        belongs = "" if place.owner is None else f"{place.owner.uid}:{place.owner.gid}"
        command = ["python3", "-I", "-S", "-u", "-c", _BOOT, _source(), belongs]
        container = await create(engine, spec, image, command, place, named, network, sandbox)
        channel = AttachedChannel(container[:12])
        await connect(await engine.attach(container), channel)
        started = True
        await _start(engine, container, image)
    except BaseException:
        if channel is not None:
            channel.close()
        await undo(engine, container, place, network, started=started)
        raise
    return Launched(sandbox, container, image, channel, place, network, engine)


async def create(
    engine: DockerEngine,
    spec: BackendSandboxSpec,
    image: Image,
    command: list[str],
    place: Place,
    named: dict[str, str],
    network: Network | None,
    sandbox: str,
) -> str:
    """Create a container; its id."""
    mode = spec.network if isinstance(spec.network, str) else "none"
    dns: tuple[str, ...] = ()
    if network is not None:
        mode, dns = network.network_mode, network.dns
    body = options(spec, image.id, command, place.host_config, named, network=mode, dns=dns)
    try:
        return await engine.make(
            "create a container",
            lambda client: str(client.create_container_from_config(body, name=f"rath-{sandbox}")["Id"]),
            lambda client, made: client.remove_container(made, force=True, v=True),
        )
    except EngineRefusal as error:
        raise SandboxUnavailable(str(error)) from error


async def _start(engine: DockerEngine, container: str, image: Image) -> None:
    try:
        await engine.start(container)
    except EngineRefusal as error:
        if _NO_PYTHON.search(str(error)):
            raise NoPython(f"the image {image.name!r} has no python3") from error
        raise SandboxUnavailable(str(error)) from error


async def remove(
    engine: DockerEngine, container: str, place: Place, network: Network | None, *, patience_s: float = GONE_S
) -> None:
    """See a container gone whose streams are closed, then free what it used. An honest one goes by itself, in 50 ms.

    Where no engine answers, what is left waits for a sweep: whoever closes a sandbox then can do nothing about it.

    Raises:
        SandboxError: something of it is still there.
    """
    try:
        await _remove(engine, container, place, network, patience_s)
    except SandboxUnavailable as error:
        _log.warning("a sandbox is closed, but what it used in the engine is removed later only: %s", error)


async def undo(engine: DockerEngine, container: str, place: Place, network: Network | None, *, started: bool) -> None:
    """:func:`remove` after something went wrong, which is what the caller has to hear of: this is logged at most.

    Args:
        started: whether the engine was asked to start it. Then it ends by itself; to remove one that goes already makes the
            engine stumble, and list it for ever.
    """
    try:
        await asyncio.shield(remove(engine, container, place, network, patience_s=GONE_S if started else 0.0))
    except SandboxError as error:
        _log.warning("a sandbox that was not opened is removed later only: %s", error)


async def _remove(
    engine: DockerEngine, container: str, place: Place, network: Network | None, patience_s: float
) -> None:
    try:
        if container and not (patience_s and await engine.gone(container, patience_s)):
            await engine.remove(container)
            await engine.gone(container, GONE_S)
    finally:
        try:
            if network is not None:
                await network.close()
        finally:
            await place.free()
