"""The ``auto`` backend: Docker if its engine answers, else bubblewrap if it works here, else an error. Never the host.

It only chooses. What it opens belongs to the chosen backend, and the choice holds for the rest of the process: the
sandboxes of one program do not differ in what they are, and copies of a workspace find the backend that made them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import ClassVar

from rath.backend import registry
from rath.backend.calls import Capabilities
from rath.backend.spec import BackendSandboxSpec
from rath.backend.types import Backend, BackendSandbox
from rath.errors import SandboxUnavailable

__all__ = ["CHOICES", "AutoBackend"]

CHOICES = ("docker", "bwrap")
"""The backends to choose from, the first that works."""
PATIENCE_S = 5.0
_log = logging.getLogger("rath.backend")


class AutoBackend(Backend):
    """The first of :data:`CHOICES` that works here, tried at the first open."""

    name: ClassVar[str] = "auto"

    def __init__(self) -> None:
        self._chosen: Backend | None = None

    @classmethod
    def capabilities(cls) -> Capabilities:
        """Those of the backend that is likely to be chosen; a sandbox's own are exact."""
        likely = (name for name in CHOICES if registry.is_available(name))
        return registry.get_class(next(likely, CHOICES[0])).capabilities()

    @classmethod
    def is_available(cls) -> bool:
        return any(registry.is_available(name) for name in CHOICES)

    async def chosen(self) -> Backend:
        """The backend that everything here is opened by.

        Raises:
            SandboxUnavailable: none works; the message has the remedy for each.
        """
        if self._chosen is not None:
            return self._chosen
        reasons = []
        for name in CHOICES:
            backend = registry.get(name)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await backend._acheck()
            except SandboxUnavailable as error:
                reasons.append(f"{name}: {error}")
                continue
            except TimeoutError:
                reasons.append(f"{name}: no answer within {PATIENCE_S:g} s")
                continue
            # Who came at the same time may have been faster, and the choice is made once.
            if self._chosen is None:
                self._chosen = backend
                _log.info("backend auto: %s%s", name, f" ({'; '.join(reasons)})" if reasons else "")
            return self._chosen
        raise SandboxUnavailable(
            f"no backend that isolates works on this machine. {' | '.join(reasons)} | `rath doctor` shows all of this. "
            'Without isolation, commands can run as you, on this machine itself: session.to("local")'
        )

    async def _acheck(self) -> None:
        await self.chosen()

    async def _aopen(self, spec: BackendSandboxSpec | None = None) -> BackendSandbox:
        return await (await self.chosen())._aopen(spec)

    # -- copies of what it opened: a snapshot is the chosen backend's own ---------------------------------------------

    def _shares_files(self, spec: BackendSandboxSpec | None) -> bool:
        return (self._chosen or registry.get(CHOICES[0]))._shares_files(spec)

    async def _aclone(self, snapshot: object) -> object:
        return await (await self.chosen())._aclone(snapshot)

    async def _arestore(self, spec: BackendSandboxSpec | None, snapshot: object) -> BackendSandbox:
        return await (await self.chosen())._arestore(spec, snapshot)

    async def _adiscard(self, snapshot: object) -> None:
        await (await self.chosen())._adiscard(snapshot)
