"""Logs to the disk: the runs of an engine wait together, a few threads work through them.

A sync a thread would be as fast on an idle machine and twice as slow in a burst: 200 runs that end a turn at once are 200
hand-overs between the loop and threads that fight for the interpreter. Here a burst costs at most :data:`WORKERS` calls,
each of which takes one log after the other while the kernel writes for all of them (200 files that were just appended to:
40 ms on one thread, 10 on sixteen).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from rath.core.ports import Engine, RunLog

__all__ = ["LogSync", "Sync", "SyncPool"]

Sync: TypeAlias = Callable[[], Awaitable[None]]
WORKERS = 16

_Waiting = tuple[RunLog, "asyncio.Future[None]"]


class SyncPool:
    """The logs of one engine that wait for the disk. :meth:`sync` belongs to the loop's thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._workers = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Future[None]] = set()
        self._leaving: dict[asyncio.Future[None], asyncio.Future[None]] = {}
        self._done: deque[tuple[asyncio.Future[None], BaseException | None]] = deque()
        self._waking = False

    async def sync(self, log: RunLog) -> None:
        """Wait until what was appended to ``log`` is as durable as it promises.

        Cancelled while the disk is at work on it, this ends when the disk does: the next thing that happens to the log of a
        cancelled run is that the loop's thread closes it, and then every run would wait for that disk.

        Raises:
            PersistenceError: it could not be written; the same one at every later call.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            self._waiting.append((log, future))
            needs_worker = self._workers < WORKERS
            self._workers += needs_worker
        if needs_worker:
            # In a context of its own: a worker outlives the run that called it.
            task = loop.create_task(self._engine.call(self._work, loop), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            await future
        except asyncio.CancelledError:
            await self._let_go(future)
            raise

    async def _let_go(self, future: asyncio.Future[None]) -> None:
        """Wait until no worker is busy for ``future``, which is cancelled."""
        with self._lock:
            if future not in self._busy:
                return
        left = self._leaving[future] = asyncio.get_running_loop().create_future()
        while not left.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(left)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._workers -= 1
                    return
                log, future = self._waiting.popleft()
                if future.cancelled():
                    continue
                self._busy.add(future)
            error: BaseException | None = None
            try:
                log.sync()  # of two who wait for the same log, the second finds nothing left to do
            except BaseException as raised:
                error = raised
            self._deliver(loop, future, error)
            del log, future, error

    def _deliver(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], error: BaseException | None) -> None:
        with self._lock:
            self._done.append((future, error))
            if self._waking:
                return
            self._waking = True
        try:
            loop.call_soon_threadsafe(self._collect)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    def _collect(self) -> None:
        with self._lock:
            self._waking = False
            done, self._done = self._done, deque()
            self._busy.difference_update(future for future, _ in done)
        for future, error in done:
            left = self._leaving.pop(future, None)
            if left is not None:
                left.set_result(None)
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)


class LogSync:
    """``await sync()``: what was appended to the log before is as durable as it promises."""

    __slots__ = ("_log", "_pool")

    def __init__(self, pool: SyncPool, log: RunLog) -> None:
        self._pool = pool
        self._log = log

    async def __call__(self) -> None:
        if self._log.needs_sync():
            await self._pool.sync(self._log)
