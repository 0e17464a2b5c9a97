"""Getting a container for a sandbox: a warm one where the spec has a pool, else one that is started now."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass

from rath.backend.docker.container import Identity, identity
from rath.backend.docker.engine import Image, engine
from rath.backend.docker.keeper import kept_owner
from rath.backend.docker.launch import Launched, launch, remove
from rath.backend.docker.place import EnginePlace
from rath.backend.docker.pool import Pool
from rath.backend.docker.slots import SlotPlace, slots
from rath.backend.guest.backend import HELLO_S, Start
from rath.backend.spec import BackendSandboxSpec
from rath.errors import SandboxUnavailable, UsageValueError

__all__ = ["Pools", "WarmContainer", "whom"]


@dataclass(slots=True)
class WarmContainer:
    """A container whose guest is up, and whom it belongs to if that is settled already."""

    made: Launched
    who: Identity | None

    @property
    def is_fit(self) -> bool:
        return self.made.channel.is_open

    async def discard(self) -> None:
        self.made.channel.close()
        await remove(self.made.engine, self.made.container, self.made.place, self.made.network)


class Pools:
    """The pools of this process, by the kind of container."""

    def __init__(self) -> None:
        self._pools: dict[Hashable, Pool[WarmContainer]] = {}

    async def obtain(self, spec: BackendSandboxSpec, image: Image, start: Start, who: Identity) -> tuple[Launched, Identity]:
        """A running container, and whom its commands run as: ``who``, unless a volume was given to somebody else already.

        Raises:
            NoPython: the image has no ``python3``.
            SandboxUnavailable: the engine cannot.
        """
        if spec.pool == 0:
            return await _launch(spec, image, who, who.uid), who
        if spec.workspace_mode == "bind":
            raise UsageValueError("pool is for workspaces of the sandboxes' own: leave it out with workspace_mode='bind'")
        warm = self._pool(spec, image).take()
        if warm is None:
            return await _launch(spec, image, who, who.uid), who
        return warm.made, who if warm.who is None else warm.who

    async def close(self) -> None:
        """Close all of them."""
        pools, self._pools = self._pools, {}
        await asyncio.gather(*(pool.shut() for pool in pools.values()))

    def _pool(self, spec: BackendSandboxSpec, image: Image) -> Pool[WarmContainer]:
        key = (
            image.id, repr((spec.network, spec.user, spec.memory, spec.cpus, spec.pids, spec.disk, spec.tmp, spec.gpus,
                            spec.mounts, spec.runtime)),
        )  # fmt: skip
        pool = self._pools.get(key)
        if pool is None or not pool.is_open:
            pool = self._pools[key] = Pool(lambda: _warm(spec, image), spec.pool)
        pool.size = spec.pool
        return pool


async def _warm(spec: BackendSandboxSpec, image: Image) -> WarmContainer:
    who = await whom(spec)
    made = await _launch(spec, image, who, None)
    # What is mounted later belongs to whoever comes; a volume or a tmpfs belongs to somebody from the start.
    warm = WarmContainer(made, None if isinstance(made.place, SlotPlace) else who)
    try:
        await made.channel.hello(HELLO_S)
    except BaseException:
        await warm.discard()
        raise
    return warm


async def whom(spec: BackendSandboxSpec) -> Identity:
    """Whom the commands of a new sandbox run as."""
    bound = spec.workspace_mode == "bind" and spec.user is None
    return identity(spec, rootless=bound and await engine().is_rootless())


async def _launch(spec: BackendSandboxSpec, image: Image, who: Identity, uid: int | None) -> Launched:
    """A container with the fastest kind of workspace that this engine can have."""
    mine = slots((await kept_owner()).id)
    place = await mine.place(engine(), spec)
    if place is not None:
        try:
            return await launch(engine(), spec, image, place, uid)
        except SandboxUnavailable as error:
            if mine.proven:
                raise
            made = await launch(engine(), spec, image, EnginePlace.of(spec, who), uid)
            mine.give_up(error)
            return made
    return await launch(engine(), spec, image, EnginePlace.of(spec, who), uid)
