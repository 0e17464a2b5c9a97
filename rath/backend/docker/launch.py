"""One container with a guest inside: starting it, and being sure that it is gone."""

from __future__ import annotations

import asyncio
import functools
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
from rath.core import ports
from rath.errors import SandboxError, SandboxUnavailable

__all__ = ["Launched", "NoPython", "create", "launch", "new_sandbox_id", "remove"]

GONE_S = 3.0
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
    output: OutputOnly
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
    network, container, channel = None, "", None
    try:
        named = labels(await ports.engine().call(owner), sandbox, uid)
        network = await open_network(engine, spec, named, image.id)
        belongs = "" if place.owner is None else f"{place.owner.uid}:{place.owner.gid}"
        command = ["python3", "-I", "-S", "-u", "-c", _BOOT, _source(), belongs]
        container = await create(engine, spec, image, command, place, named, network, sandbox)
        output = OutputOnly()
        channel = Channel(container[:12], output)
        await connect(await engine.attach(container), channel)
        await _start(engine, container, image)
    except BaseException:
        if channel is not None:
            channel.close()
        await asyncio.shield(remove(engine, container, place, network, patience_s=0.0))
        raise
    return Launched(sandbox, container, image, channel, output, place, network, engine)


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
        made = await engine.ask(
            "create a container", lambda client: client.create_container_from_config(body, name=f"rath-{sandbox}")
        )
    except EngineRefusal as error:
        raise SandboxUnavailable(str(error)) from error
    return str(made["Id"])


async def _start(engine: DockerEngine, container: str, image: Image) -> None:
    try:
        await engine.ask("start a container", lambda client: client.start(container))
    except EngineRefusal as error:
        if "python3" in str(error):
            raise NoPython(f"the image {image.name!r} has no python3") from error
        raise SandboxUnavailable(str(error)) from error


async def remove(
    engine: DockerEngine, container: str, place: Place, network: Network | None, *, patience_s: float = GONE_S
) -> None:
    """See a container gone whose streams are closed, then free what it used. An honest one goes by itself, in 50 ms.

    Raises:
        SandboxError: something of it is still there.
    """
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
