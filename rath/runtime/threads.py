"""Threads for user code that is synchronous: tools, callbacks, clients.

A fixed pool would deadlock as soon as its threads all wait for runs whose tools need a thread (64 chains, each eight
deep, are 512 waiting tools). So the pool grows: at once up to :data:`EAGER` threads, then whenever calls have stood in
the queue for :data:`PATIENCE_S` without a thread for them. It is not limited but by the operating system. An idle thread
goes after :data:`IDLE_S`. All are daemons: a tool that never returns must not keep the process alive.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["ToolThreads"]

T = TypeVar("T")
EAGER = 16
PATIENCE_S = 0.005
IDLE_S = 10.0

_Call = tuple["asyncio.Future[Any]", contextvars.Context, Callable[..., Any], tuple[Any, ...]]


class ToolThreads:
    """Runs functions in threads for one event loop. :meth:`call` belongs to the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._growing = False
        self._new_since_look = 0
        self._results: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._waking = False

    @property
    def size(self) -> int:
        """Threads alive."""
        return self._threads

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """``function(*args)`` in a thread, with the caller's context variables.

        A cancelled caller goes on at once; the function cannot be stopped, and what it returns is dropped.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((future, contextvars.copy_context(), function, args))
        with self._lock:
            short = self._queue.qsize() > self._idle
            eager = short and self._threads < EAGER
            if eager:
                self._threads += 1
        if eager:
            self._spawn()
        elif short:
            self._new_since_look += 1
            if not self._growing:
                self._growing = True
                self._new_since_look = 0
                self._loop.call_later(PATIENCE_S, self._look)
        return await future

    def _look(self) -> None:
        """Give a thread to every call that was waiting at the last look and still is."""
        waiting = self._queue.qsize()
        stuck = waiting - self._new_since_look
        self._new_since_look = 0
        with self._lock:
            wanted = max(0, stuck - self._idle)
            self._threads += wanted
        for _ in range(wanted):
            if not self._spawn():
                break
        self._growing = waiting > 0
        if self._growing:
            self._loop.call_later(PATIENCE_S, self._look)

    def _spawn(self) -> bool:
        try:
            threading.Thread(target=self._work, name="rath-tool", daemon=True).start()
        except RuntimeError:  # the system has no more threads: the calls wait for one of ours
            with self._lock:
                self._threads -= 1
            return False
        return True

    def help_out(self, timeout_s: float) -> None:
        """Do one waiting call on the caller's thread if there are no threads for it, else sleep ``timeout_s``."""
        if self._threads == 0:
            try:
                self._perform(*self._queue.get(timeout=timeout_s))
            except queue.Empty:
                return
        else:
            time.sleep(timeout_s)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            try:
                call = self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    self._idle -= 1
                    if self._queue.empty():
                        self._threads -= 1
                        return
                continue
            with self._lock:
                self._idle -= 1
            self._perform(*call)
            # Or this thread's frame keeps the call's sessions alive until its next call.
            del call

    def _perform(
        self,
        future: asyncio.Future[Any],
        context: contextvars.Context,
        function: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        result, error = None, None
        try:
            if not future.cancelled():
                result = context.run(function, *args)
        except BaseException as raised:
            error = raised
        self._deliver(future, result, error)

    def _deliver(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        with self._lock:
            self._results.append((future, result, error))
            if self._waking:
                return
            self._waking = True
        try:
            # One wake-up for many results: a write to the loop's pipe costs more than the call.
            self._loop.call_soon_threadsafe(self._collect)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    def _collect(self) -> None:
        with self._lock:
            self._waking = False
            results, self._results = self._results, deque()
        for future, result, error in results:
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            elif isinstance(error, StopIteration):
                # A future refuses StopIteration: it would end the coroutine that awaits it.
                wrapped = RuntimeError("a tool raised StopIteration")
                wrapped.__cause__ = error
                future.set_exception(wrapped)
            else:
                future.set_exception(error)
