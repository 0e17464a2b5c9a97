"""Where a workspace is, seen from the engine: what a container is created with for it, and what is freed after it."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, field
from typing import Any, Protocol

from rath.backend.docker.container import Identity, workspace_of
from rath.backend.docker.engine import EngineRefusal, engine
from rath.backend.docker.labels import VOLUME
from rath.backend.guest.backend import Start
from rath.backend.spec import BackendSandboxSpec

__all__ = ["EnginePlace", "Place"]


class Place(Protocol):
    """The place of one workspace. Made before its container; filled when the sandbox is handed out."""

    @property
    def host_config(self) -> dict[str, Any]:
        """The part of the container's ``HostConfig`` that brings it: ``Mounts`` or ``Tmpfs``."""

    @property
    def owner(self) -> Identity | None:
        """Whom the guest has to give it to when it starts; ``None`` if it belongs to the right user already."""

    async def fill(self, start: Start, who: Identity) -> bool:
        """Put there what the workspace starts as; whether that is done, so that nothing has to be sent in."""

    async def free(self) -> None:
        """The container is gone: free what is kept outside of it."""


@dataclass(slots=True)
class EnginePlace:
    """A volume of the engine's, a tmpfs, or a directory that is bound.

    Args:
        volume: what the volume is found by, if there is one. It goes with the container, but for one that somebody
            removed (``docker rm -f``) without it.
    """

    host_config: dict[str, Any] = field(default_factory=dict)
    owner: Identity | None = None
    volume: str | None = None

    @classmethod
    def of(cls, spec: BackendSandboxSpec, who: Identity) -> EnginePlace:
        """The place that ``spec`` asks for.

        Raises:
            UsageValueError: there cannot be one.
        """
        found = workspace_of(spec, who)
        for mount in found.get("Mounts", ()):
            if mount["Type"] == "volume":
                name = secrets.token_hex(8)
                mount["VolumeOptions"] = {"Labels": {VOLUME: name}}
                return cls(found, who, name)
        return cls(found)

    async def fill(self, start: Start, who: Identity) -> bool:
        return start.kind in ("empty", "bind")

    async def free(self) -> None:
        if self.volume is not None:
            with contextlib.suppress(EngineRefusal):  # in use still, by a container that does not end: left to a sweep
                await engine().ask("remove a volume", self._remove_volume)

    def _remove_volume(self, client: Any) -> None:
        for found in client.volumes(filters={"label": f"{VOLUME}={self.volume}"})["Volumes"] or ():
            client.remove_volume(found["Name"])
