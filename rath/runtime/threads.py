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
    """Runs functions in threads for one event loop. :meth:`call` belongs to the loop's thread.

    A call either *claims* an idle thread, gets a new one, or stands unclaimed until a thread is done with its own. A thread
    counts as idle before its result is delivered: else the next call, which the result may lead to at once, would find
    nobody and make one thread more each time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._unclaimed = 0
        self._new_since_look = 0
        self._looking = False
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
        call = (future, contextvars.copy_context(), function, args)
        spawn = False
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._threads < EAGER:
                self._threads += 1
                spawn = True
            else:
                self._unclaimed += 1
                self._new_since_look += 1
        self._queue.put(call)
        if spawn:
            self._spawn()
        elif self._unclaimed and not self._looking:
            self._looking = True
            self._new_since_look = 0
            self._loop.call_later(PATIENCE_S, self._look)
        return await future

    def _look(self) -> None:
        """Give a thread to every call that was unclaimed at the last look and still is."""
        with self._lock:
            wanted = max(0, self._unclaimed - self._new_since_look)
            self._new_since_look = 0
            self._unclaimed -= wanted
            self._threads += wanted
            self._looking = self._unclaimed > 0
        for _ in range(wanted):
            self._spawn()
        if self._looking:
            self._loop.call_later(PATIENCE_S, self._look)

    def _spawn(self) -> None:
        try:
            threading.Thread(target=self._work, name="rath-tool", daemon=True).start()
        except RuntimeError:  # the system has no more threads: the call waits for one of ours
            with self._lock:
                self._threads -= 1
                self._unclaimed += 1

    def help_out(self, timeout_s: float) -> None:
        """Do one call for which there is no thread on the caller's, else sleep ``timeout_s``."""
        with self._lock:
            stranded = self._threads == 0 and self._unclaimed > 0
            if stranded:
                self._unclaimed -= 1
        if not stranded:
            time.sleep(timeout_s)
            return
        call = self._queue.get()
        self._deliver(call[0], *_outcome(*call), idle=False)

    def _work(self) -> None:
        while True:
            try:
                call = self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    # Claimed or not: a call that is put this moment finds us gone, or we find it.
                    if self._idle and self._queue.empty():
                        self._idle -= 1
                        self._threads -= 1
                        return
                continue
            self._deliver(call[0], *_outcome(*call), idle=True)
            # Or this thread's frame keeps the call's sessions alive until its next call.
            del call

    def _deliver(self, future: asyncio.Future[Any], result: Any, error: BaseException | None, *, idle: bool) -> None:
        with self._lock:
            if idle and self._unclaimed:
                self._unclaimed -= 1
            elif idle:
                self._idle += 1
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


def _outcome(
    future: asyncio.Future[Any],
    context: contextvars.Context,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> tuple[Any, BaseException | None]:
    """What the call returns or raises."""
    if future.cancelled():
        return None, None
    try:
        return context.run(function, *args), None
    except BaseException as error:
        return None, error
