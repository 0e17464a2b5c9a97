"""Streams: queues of calls on a sandbox, each in its own order, side by side with one another.

As on a GPU: ``submit`` returns at once with a :class:`Future`; an :class:`Event` marks a place in one stream that another
can wait for. A stream has no thread: a coroutine on the engine's loop works the queue off and ends when it is empty.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from rath.core import ports
from rath.errors import UsageError, UsageValueError, WouldDeadlock

if TYPE_CHECKING:
    from rath.backend.calls import BackendTool, ToolResult
    from rath.backend.types import BackendSandbox

__all__ = ["Event", "Future", "Stream", "arrival"]

T = TypeVar("T")


class Future(Generic[T]):
    """What a submitted call will answer. ``await`` it in any loop, or ask for ``result()``."""

    __slots__ = ("_inner",)

    def __init__(self) -> None:
        self._inner: concurrent.futures.Future[T] = concurrent.futures.Future()

    def done(self) -> bool:
        """Whether the answer, or the error, is there."""
        return self._inner.done()

    def result(self, timeout: float | None = None) -> T:
        """The answer. Waits; raises what the call raised.

        Raises:
            TimeoutError: not there after ``timeout`` seconds; the call goes on.
            WouldDeadlock: asked on the engine's own thread before it is there.
        """
        _refuse_on_loop(self._inner)
        return self._inner.result(timeout)

    def __await__(self) -> Generator[Any, None, T]:
        yield from arrival(self._inner).__await__()
        return self._inner.result()

    def _settle(self, value: T) -> None:
        self._inner.set_result(value)

    def _fail(self, error: BaseException) -> None:
        self._inner.set_exception(error)


class Event:
    """A place in a stream: reached when everything submitted before it is done."""

    __slots__ = ("_reached",)

    def __init__(self) -> None:
        self._reached: concurrent.futures.Future[float] = concurrent.futures.Future()

    def query(self) -> bool:
        """Whether it is reached. Does not wait."""
        return self._reached.done()

    def wait(self) -> None:
        """Wait until it is reached; for ever if no stream has recorded it."""
        _refuse_on_loop(self._reached)
        self._reached.result()

    def synchronize(self) -> None:
        """The same as :meth:`wait`."""
        self.wait()

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this event to ``end``; negative if ``end`` came first.

        Raises:
            UsageError: one of them is not reached yet.
        """
        if not (self.query() and end.query()):
            raise UsageError("elapsed_time needs two events that are reached: synchronize() them first")
        return (end._reached.result() - self._reached.result()) * 1000.0

    def _reach(self) -> None:
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            self._reached.set_result(time.perf_counter())


class Stream:
    """Calls on one sandbox, in order. A failed call does not stop those after it: each error is in its own future.

    ``with sandbox.stream() as stream:`` waits at its end for everything submitted, after which the stream takes no more.

    Args:
        buffer: ``submit`` waits while so many calls are unfinished; 0: it never waits.
    """

    def __init__(self, sandbox: BackendSandbox, *, buffer: int = 0) -> None:
        if buffer < 0:
            raise UsageValueError(f"a stream's buffer is a number of calls, 0 for no limit; not {buffer}")
        self._sandbox = sandbox
        self._room = threading.BoundedSemaphore(buffer) if buffer else None
        self._lock = threading.Lock()
        self._queue: deque[_Item] = deque()
        self._working = False
        self._closed = False

    def submit(self, call: BackendTool) -> Future[ToolResult | bool]:
        """Put a call at the end of the queue.

        Raises:
            UsageError: the stream is closed.
            WouldDeadlock: the buffer is full, on the engine's own thread.
        """
        self._take_room()
        future: Future[ToolResult | bool] = Future()

        async def work() -> None:
            try:
                await _into(future, self._sandbox.perform(call))
            finally:
                if self._room is not None:
                    self._room.release()

        try:
            self._put(_Item(work, future._fail))
        except UsageError:
            if self._room is not None:
                self._room.release()
            raise
        return future

    def record_event(self) -> Event:
        """An event that is reached when everything submitted so far is done."""
        event = Event()
        self._put(_mark(event))
        return event

    def wait_event(self, event: Event, *, timeout: float | None = None) -> Future[None]:
        """Let what is submitted from now on wait for ``event``.

        After ``timeout`` seconds the returned future has a ``TimeoutError`` and the stream goes on without the event.
        """
        future: Future[None] = Future()

        async def wait() -> None:
            try:
                await asyncio.wait_for(arrival(event._reached), timeout)
            except TimeoutError:
                raise TimeoutError(f"wait_event timed out after {timeout:g} s; the stream goes on") from None

        self._put(_Item(lambda: _into(future, wait()), future._fail))
        return future

    def wait_stream(self, other: Stream) -> Future[None]:
        """Let what is submitted from now on wait for everything submitted to ``other`` so far."""
        return self.wait_event(other.record_event())

    def synchronize(self) -> None:
        """Wait until everything submitted so far is done. Raises no call's error: those are in the futures."""
        self.record_event().wait()

    def query(self) -> bool:
        """Whether everything submitted is done. Does not wait."""
        with self._lock:
            self._check_open()
            return not self._working

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._lock:
            self._closed = True
            last = Event()
            begin = self._enqueue(_mark(last))
        if begin:
            ports.engine().start(self._work_off)
        last.wait()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this stream is closed: its `with` block has ended. Make another with sandbox.stream()")

    def _take_room(self) -> None:
        room = self._room
        if room is None or room.acquire(blocking=False):
            return
        if ports.engine().on_loop_thread():
            raise WouldDeadlock("the stream's buffer is full, and waiting here would stop the engine that empties it")
        room.acquire()

    def _put(self, item: _Item) -> None:
        with self._lock:
            self._check_open()
            begin = self._enqueue(item)
        if begin:
            ports.engine().start(self._work_off)

    def _enqueue(self, item: _Item) -> bool:
        """Add to the queue, under the lock. Returns whether somebody has to start working it off."""
        self._queue.append(item)
        begin, self._working = not self._working, True
        return begin

    async def _work_off(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._working = False
                    return
                item = self._queue.popleft()
            try:
                await item.work()
            except asyncio.CancelledError as error:
                self._give_up(error)
                raise

    def _give_up(self, error: BaseException) -> None:
        """The engine is closing: nothing in the queue will run, and nobody may wait for it for ever."""
        with self._lock:
            left, self._queue, self._working = self._queue, deque(), False
        for item in left:
            item.abandon(error)


class _Item(NamedTuple):
    """A place in the queue: what to do, and what to do if it will never be done."""

    work: Callable[[], Awaitable[None]]
    abandon: Callable[[BaseException], None]


def _mark(event: Event) -> _Item:
    async def reach() -> None:
        event._reach()

    return _Item(reach, lambda _error: event._reach())


async def _into(future: Future[T], work: Awaitable[T]) -> None:
    """Settle ``future`` with whatever becomes of ``work``."""
    try:
        value = await work
    except BaseException as error:  # even KeyboardInterrupt from a backend's thread: it belongs to whoever asks
        future._fail(error)
        if isinstance(error, asyncio.CancelledError):  # the engine is closing
            raise
    else:
        future._settle(value)


async def arrival(future: concurrent.futures.Future[Any]) -> None:
    """Return once ``future`` is done, however. Being cancelled leaves it alone, unlike ``asyncio.wrap_future``."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(_future: concurrent.futures.Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the waiter's loop may be closed by now
            loop.call_soon_threadsafe(_wake, waiter)

    future.add_done_callback(wake)
    await waiter


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _refuse_on_loop(future: concurrent.futures.Future[Any]) -> None:
    if not future.done() and ports.engine().on_loop_thread():
        raise WouldDeadlock("waiting for a stream here would block the engine's own thread: await the future instead")
