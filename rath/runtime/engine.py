"""The engine: one asyncio loop on a daemon thread that drives every run of the process.

It starts when first used, survives until the interpreter's exit, and is replaced by a fresh one in a forked child.
At exit it *drains*: runs under way may finish, for at most ``RATH_DRAIN_S`` seconds (30). This happens in
``threading``'s own exit hook, before the standard library forbids new executor work (DNS look-ups need it).
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401 - its exit hook must be registered before ours: hooks run last first
import contextlib
import contextvars
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from rath.core import cell as cells
from rath.core.ports import register
from rath.errors import RathError, WouldDeadlock
from rath.runtime.burst import Burst
from rath.runtime.sync import SyncPool
from rath.runtime.threads import ToolThreads

__all__ = ["LocalEngine", "local_engine"]

T = TypeVar("T")
_log = logging.getLogger("rath.runtime")
DRAIN_S = 30.0
QUIET_S = 2.0


class Work(Protocol):
    """A run that the engine has accepted and that is not resolved yet."""

    def describe(self) -> str: ...
    def abandon(self) -> None: ...


class LocalEngine:
    """An event loop on its own thread, threads for synchronous user code, and the list of what is under way."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.threads = ToolThreads(self.loop)
        self.syncs = SyncPool(self)
        self._open: set[Work] = set()
        self._burst = Burst()
        self._closers: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._inbox: deque[tuple[Callable[[], Coroutine[Any, Any, None]], contextvars.Context]] = deque()
        # Reentrant: the collector may run a finaliser that releases a sandbox (and so calls `start`) while we hold it.
        self._lock = threading.RLock()
        self._waking = False
        self._drained = False
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="rath-engine", daemon=True)
        self._thread.start()
        # The loop's callbacks run on this thread only; a cell that blocks there would block every run.
        while self._thread.ident is None:
            time.sleep(0)
        cells.set_engine_thread(self._thread.ident)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._closed:
            try:
                self.loop.run_forever()
            except (KeyboardInterrupt, SystemExit):
                # Raised by user code in a task: asyncio gives it to whoever awaits the task, and to us.
                continue

    def on_loop_thread(self) -> bool:
        return threading.get_ident() == self._thread.ident

    def start(self, work: Callable[[], Coroutine[Any, Any, None]], context: contextvars.Context | None = None) -> None:
        """Run ``work()`` on the loop soon, in ``context`` (a copy of the caller's by default). Never blocks."""
        self._check_open()
        with self._lock:
            self._inbox.append((work, context or contextvars.copy_context()))
            if self._waking:
                return
            self._waking = True
        # One wake-up serves a burst: 1,000 operators write to the loop's pipe a few times.
        self.loop.call_soon_threadsafe(self._take_in)

    def _take_in(self) -> None:
        with self._lock:
            self._waking = False
            inbox, self._inbox = self._inbox, deque()
        for work, context in inbox:
            task = self.loop.create_task(work(), context=context)
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Runs catch their own errors; this is background work that nobody waits for.
            _log.error("background work of the engine failed", exc_info=error)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the loop and wait for its result.

        Raises:
            WouldDeadlock: on the loop's own thread.
        """
        if self.on_loop_thread():
            work.close()
            raise WouldDeadlock(
                "a blocking call inside the engine's own thread would never return: use its awaitable form, "
                "or make the tool or callback a plain (not async) function"
            )
        try:
            self._check_open()
        except RathError:
            work.close()
            raise
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def _check_open(self) -> None:
        if self._closed:
            raise RathError("the interpreter is exiting and rath's engine has closed: nothing can be started any more")

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """``function(*args)`` in a tool thread, with the caller's context variables."""
        return await self.threads.call(function, *args)

    def opened(self, work: Work) -> None:
        """Hold ``work`` until it is closed; the interpreter's exit waits for it."""
        with self._lock:
            self._open.add(work)
            self._burst.update(len(self._open))

    def closed(self, work: Work) -> None:
        """Let go of ``work``."""
        with self._lock:
            self._open.discard(work)
            self._burst.update(len(self._open))

    def at_close(self, closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await ``closer()`` on the loop when the engine closes."""
        self._closers.append(closer)

    # -- the end ------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Let open runs finish, say so from the second second, then close everything. Ctrl-C ends the wait."""
        if self._drained:
            return
        self._drained = True
        limit = _drain_limit()
        try:
            self._wait_for_work(limit)
        except KeyboardInterrupt:
            _say("interrupted")
        for work in list(self._open):
            _say(f"abandoned {work.describe()}")
            work.abandon()
        cells.report_unread()
        with contextlib.suppress(Exception, KeyboardInterrupt):
            asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(5.0)
        self._closed = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(1.0)

    def _wait_for_work(self, limit: float) -> None:
        start, said = time.monotonic(), 0
        while self._open:
            waited = time.monotonic() - start
            if waited >= limit:
                _say(f"gave up after {limit:g} s (RATH_DRAIN_S)")
                return
            if waited >= QUIET_S and int(waited) > said:
                said = int(waited)
                count = len(self._open)
                _say(f"waiting for {count} unfinished run{'s'[: count != 1]} ({waited:.0f} of {limit:g} s; Ctrl-C ends it)")
            # Python 3.12 starts no threads any more at this point: tools that need one get this one.
            self.threads.help_out(0.005 if waited < 0.2 else 0.05)

    async def _close(self) -> None:
        current = asyncio.current_task()
        leftover = [task for task in asyncio.all_tasks(self.loop) if task is not current]
        for task in leftover:
            task.cancel()
        if leftover:
            await asyncio.wait(leftover, timeout=2.0)
        for closer in self._closers:
            try:
                await asyncio.wait_for(closer(), 2.0)
            except Exception:
                _log.exception("closing failed")
        await self.loop.shutdown_asyncgens()


def _drain_limit() -> float:
    try:
        return max(0.0, float(os.environ.get("RATH_DRAIN_S", DRAIN_S)))
    except ValueError:
        return DRAIN_S


def _say(text: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"rath: {text}\n")
            sys.stderr.flush()


_engine: LocalEngine | None = None
_engine_lock = threading.Lock()


def local_engine() -> LocalEngine:
    """The process's engine, started when first asked for."""
    global _engine
    engine = _engine
    if engine is None:
        with _engine_lock:
            if _engine is None:
                _engine = LocalEngine()
                _at_exit(_engine.drain)
            engine = _engine
    return engine


def _at_exit(hook: Callable[[], None]) -> None:
    try:
        # Before the executor's own hook; see the module's docstring. Private, but stable since Python 3.9.
        threading._register_atexit(hook)  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):
        atexit.register(hook)


def _reset_in_child() -> None:
    """A forked child has the parent's objects but not its threads: it starts afresh."""
    global _engine, _engine_lock
    if _engine is not None:
        _engine._drained = True  # its exit hook, inherited, must do nothing here
    _engine = None
    _engine_lock = threading.Lock()
    cells.set_engine_thread(None)
    cells.reset_after_fork()


os.register_at_fork(after_in_child=_reset_in_child)
register("engine", "local", local_engine)
