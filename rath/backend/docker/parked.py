"""Guest sandboxes that are parked while nobody calls them: what :mod:`rath.backend.docker.idle` does to a real one."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, fields

from rath.backend.calls import BackendTool, ToolResult, WorkspaceDiff
from rath.backend.docker.idle import Parking, idle_after_s
from rath.backend.guest.backend import GuestBackend, GuestSandbox, Start
from rath.backend.guest.snapshot import GuestSnapshot, tidy
from rath.backend.host.diff import Baseline
from rath.backend.spec import BackendSandboxSpec
from rath.backend.types import BackendSandbox
from rath.errors import SandboxError

__all__ = ["ParkableSandbox", "ParkingBackend"]

_log = logging.getLogger("rath.backend")


@dataclass(eq=False, kw_only=True)
class ParkableSandbox(GuestSandbox):
    """A sandbox that may be a snapshot for a while; ``parking`` is ``None`` if that never happens to it."""

    parking: Parking | None = field(init=False, default=None)


# A sandbox that comes back keeps these; all else it takes over from the one that was launched for it.
_KEPT = frozenset({"backend", "baseline", "closed", "handle", "parking", "spec"})


class ParkingBackend(GuestBackend):
    """A guest backend whose sandboxes are parked after ``idle_timeout``."""

    async def _begin(
        self, spec: BackendSandboxSpec, start: Start, baseline: Baseline | asyncio.Future[Baseline]
    ) -> GuestSandbox:
        sandbox = await super()._begin(spec, start, baseline)
        after_s = idle_after_s(spec)
        if after_s is not None and isinstance(sandbox, ParkableSandbox):
            sandbox.parking = self._parking(sandbox, after_s, start)
        return sandbox

    def _parking(self, sandbox: ParkableSandbox, after_s: float, start: Start) -> Parking:
        async def park() -> object:
            # A directory of the host that is bound stays where it is: to bind it again is all there is to keep.
            snapshot = start if start.kind == "bind" else await GuestBackend._asnapshot(self, sandbox, "parked")
            # Or the end of its channel would be taken for its death.
            sandbox.channel.closed.remove_done_callback(sandbox._lost)
            sandbox.channel.close()
            try:
                await self._leave(sandbox)
            except (SandboxError, OSError) as error:  # its files are safe all the same
                _log.warning("sandbox %s is parked, but not all of it was removed: %s", sandbox.handle, error)
            return snapshot

        async def wake(snapshot: object) -> None:
            if isinstance(snapshot, Start):
                fresh: BackendSandbox = await self._begin(self._check_spec(sandbox.spec), snapshot, Baseline())
            else:
                fresh = await self._arestore(sandbox.spec, snapshot)
            assert isinstance(fresh, ParkableSandbox)
            await self._become(sandbox, fresh)

        return Parking(sandbox, after_s, park, wake, self._adiscard)

    async def _become(self, sandbox: ParkableSandbox, fresh: ParkableSandbox) -> None:
        """Let ``sandbox`` be what ``fresh`` is, and ``fresh`` nothing."""
        if fresh.parking is not None:
            await fresh.parking.close()
        for one in fields(fresh):
            if one.name not in _KEPT:
                setattr(sandbox, one.name, getattr(fresh, one.name))
        fresh.closed = True
        fresh.channel.closed.remove_done_callback(fresh._lost)
        sandbox.channel.closed.add_done_callback(sandbox._lost)
        await tidy(fresh.baseline.drop)

    async def _aclose(self, sandbox: BackendSandbox) -> None:
        if isinstance(sandbox, ParkableSandbox) and sandbox.parking is not None and await sandbox.parking.close():
            await tidy(sandbox.baseline.drop)
            return
        await super()._aclose(sandbox)

    # -- calls, for which a sandbox has to be awake -----------------------------------------------------------------------

    async def _adispatch(self, sandbox: BackendSandbox, call: BackendTool) -> ToolResult | bool:
        async with _awake(sandbox):
            return await super()._adispatch(sandbox, call)

    async def _adiff(self, sandbox: BackendSandbox) -> WorkspaceDiff:
        async with _awake(sandbox):
            return await super()._adiff(sandbox)

    async def _aupload(self, sandbox: BackendSandbox, host_path: str, path: str) -> None:
        async with _awake(sandbox):
            await super()._aupload(sandbox, host_path, path)

    async def _adownload(self, sandbox: BackendSandbox, path: str, host_path: str) -> None:
        async with _awake(sandbox):
            await super()._adownload(sandbox, path, host_path)

    async def _asnapshot(self, sandbox: BackendSandbox, layer: str) -> object:
        if isinstance(sandbox, ParkableSandbox) and sandbox.parking is not None:
            parked = await sandbox.parking.snapshot()
            if isinstance(parked, GuestSnapshot):
                return parked.share()
            if parked is not None:
                async with sandbox.parking.used():
                    return await super()._asnapshot(sandbox, layer)
        return await super()._asnapshot(sandbox, layer)


def _awake(sandbox: BackendSandbox) -> AbstractAsyncContextManager[None]:
    if isinstance(sandbox, ParkableSandbox) and sandbox.parking is not None:
        return sandbox.parking.used()
    return nullcontext()
