"""Warm containers: started, their guests up and waiting to be told whom they serve, so that an open takes milliseconds.

A pool is of one kind of container: the same image, limits and mounts. It begins with the first sandbox that asks for it,
and is filled one container at a time (a start takes a whole processor for 0.2 s). Each container serves one sandbox only. A
pool closes when nobody has taken from it for ten minutes, and with the process. Nothing is shared between processes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from rath.backend.closing import close_at_end, track
from rath.core import ports
from rath.errors import SandboxError

__all__ = ["IDLE_S", "Pool", "Warm"]

IDLE_S = 600.0
RETRY_S = 5.0
REFILL_AFTER_S = 0.2
_log = logging.getLogger("rath.backend")


class Warm(Protocol):
    """What a pool holds."""

    @property
    def is_fit(self) -> bool:
        """Whether it still runs."""

    async def discard(self) -> None:
        """End it: nobody took it."""


W = TypeVar("W", bound=Warm)


class Pool(Generic[W]):
    """At most ``size`` of what ``make()`` makes, kept ready. On the engine's loop only."""

    def __init__(self, make: Callable[[], Awaitable[W]], size: int, idle_s: float = IDLE_S) -> None:
        self._make = make
        self._ready: deque[W] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle_s = idle_s
        self._pid = os.getpid()
        self.size = size
        self.is_closed = False
        close_at_end()
        track(self)
        self._touch()

    @property
    def is_open(self) -> bool:
        """Whether this process has to close it."""
        return not self.is_closed and self._pid == os.getpid()

    @property
    def ready(self) -> int:
        """How many are waiting."""
        return len(self._ready)

    def take(self) -> W | None:
        """One that runs, or ``None`` if none is ready; another is made in its place."""
        self._touch()
        while self._ready:
            one = self._ready.popleft()
            if one.is_fit:
                return one
            ports.engine().start(one.discard)
        return None

    def _touch(self) -> None:
        """Somebody is interested: fill it up, and start to count its idle time anew."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(self._idle_s, lambda: ports.engine().start(self.shut))
        if self._filling is None or self._filling.done():
            self._filling = loop.create_task(self._fill())

    async def _fill(self) -> None:
        # Who takes one uses it at once, and a start is heavy: it made the first command 30 ms slower.
        await asyncio.sleep(REFILL_AFTER_S)
        while not self.is_closed and len(self._ready) < self.size:
            try:
                one = await self._make()
            except (SandboxError, OSError) as error:
                _log.warning("a container to keep warm did not start: %s", error)
                await asyncio.sleep(RETRY_S)
                return
            self._ready.append(one)

    async def shut(self) -> None:
        """End everything that waits. Again: nothing."""
        if not self.is_open:
            return
        self.is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._filling is not None and self._filling is not asyncio.current_task():
            self._filling.cancel()
            await asyncio.wait([self._filling])
        ready, self._ready = self._ready, deque()
        await asyncio.gather(*(one.discard() for one in ready), return_exceptions=True)
