"""Parking: a sandbox that nobody calls keeps its files and gives everything else back; the next call brings it back.

Parked, a sandbox is a snapshot of its workspace. Its processes, its interpreter's variables and ``/tmp`` are gone.

::

              after_s without a call: take a snapshot, stop the container
        awake ───────────────────────────────────────────────────────────▶ parked
              ◀───────────────────────────────────────────────────────────
              a call, a diff: a container with the snapshot's files

The sandbox's gate keeps calls out while it is parked, as it does while it is copied. Everything here runs on the engine's
loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

from rath.backend.spec import BackendSandboxSpec
from rath.backend.types import BackendSandbox
from rath.errors import SandboxBroken, SandboxError

__all__ = ["NOTEBOOK_IDLE_S", "Parking", "idle_after_s", "in_notebook"]

NOTEBOOK_IDLE_S = 30 * 60.0
_log = logging.getLogger("rath.backend")


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel. Imports nothing."""
    module = sys.modules.get("ipykernel.kernelapp")
    app = getattr(module, "IPKernelApp", None)
    return app is not None and bool(app.initialized())


def idle_after_s(spec: BackendSandboxSpec | None) -> float | None:
    """After how many seconds without a call a sandbox is parked; ``None``: never."""
    if spec is None or spec.idle_timeout is None:
        return NOTEBOOK_IDLE_S if in_notebook() else None
    return spec.idle_timeout.total_seconds() or None


class Parking:
    """What parks one sandbox, and brings it back.

    Args:
        after_s: how long nobody calls before it is parked.
        park: takes a snapshot and stops the rest, or raises and changes nothing.
        wake: starts the rest from the snapshot, and uses that up; or raises and changes nothing.
        discard: frees a snapshot that is not needed.
    """

    def __init__(
        self,
        sandbox: BackendSandbox,
        after_s: float,
        park: Callable[[], Awaitable[object]],
        wake: Callable[[object], Awaitable[None]],
        discard: Callable[[object], Awaitable[None]],
    ) -> None:
        self._sandbox = sandbox
        self._after_s = after_s
        self._park = park
        self._wake = wake
        self._discard = discard
        self._users = 0
        self._snapshot: object | None = None
        self._moving: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._rest()

    @property
    def is_parked(self) -> bool:
        """Whether the sandbox is a snapshot now."""
        return self._snapshot is not None

    async def snapshot(self) -> object | None:
        """What a parked sandbox consists of, if it is parked. For who is alone in the gate: it stays the sandbox's.

        Waits for a bring-back under way, which uses the snapshot up. (A freeze is alone also where it lost its patience with
        the call that asked for that.)
        """
        while self._snapshot is not None and self._moving is not None:
            await asyncio.wait([self._moving])
        return self._snapshot

    @contextlib.asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """The sandbox is awake in this block, and stays so.

        Raises:
            SandboxClosed: it was closed meanwhile.
            SandboxError: it cannot be brought back; it stays parked, and the next call tries again.
        """
        self._users += 1
        try:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            while self._moving is not None or self._snapshot is not None:
                if self._closed:
                    self._sandbox.check_open()
                if self._moving is None:
                    self._moving = asyncio.create_task(self._bring_back())
                # Whoever asked first may be cancelled: the others still want it.
                await asyncio.shield(self._moving)
            yield
        finally:
            self._users -= 1
            self._rest()

    async def close(self) -> bool:
        """End: no more parking. A move under way is awaited; a snapshot is freed. Whether there was one."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._moving is not None:
            await asyncio.wait([self._moving])
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is None:
            return False
        await self._discard(snapshot)
        return True

    # -- the two moves ------------------------------------------------------------------------------------------------

    def _rest(self) -> None:
        if self._users == 0 and not self._closed and self._snapshot is None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._tired)

    def _tired(self) -> None:
        self._timer = None
        if self._users == 0 and not self._closed and self._moving is None:
            self._moving = asyncio.create_task(self._go_to_sleep())

    async def _go_to_sleep(self) -> None:
        gate = self._sandbox.gate
        turn = gate.reserve()
        try:
            await gate.alone(turn, 0.0)
            # A call that went in before our turn still runs, or a copy's freeze took its time.
            if self._users == 0 and not self._closed and self._sandbox.is_open:
                self._snapshot = await self._park()
                _log.info("sandbox %s is parked: nobody called it for %g s", self._name, self._after_s)
        except SandboxBroken as error:
            _log.warning("sandbox %s broke while nobody called it: %s", self._name, error)
        except (SandboxError, OSError) as error:
            _log.warning("sandbox %s could not be parked, and stays as it is: %s", self._name, error)
        finally:
            self._moving = None
            gate.done(turn)
            self._rest()

    async def _bring_back(self) -> None:
        snapshot = self._snapshot
        try:
            if snapshot is not None:
                await self._wake(snapshot)
                self._snapshot = None
        finally:
            self._moving = None

    @property
    def _name(self) -> str:
        return self._sandbox.handle
