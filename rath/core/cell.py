"""A cell: the one place where a result appears, once, and where every reader meets it.

Why not just a future? Because a cell's readers need more than a value:

* **The same error for ever.** A failed cell raises the same object at every read. ``raise`` appends the reader's frames
  to an exception's traceback, so a read first puts back the traceback that the run left.
* **Dependants share the failure.** A cell that failed because its input failed holds the *same* :class:`Failure`: it
  raises the root error itself, and reading any of them counts as reading the one. When the last holder of an unread
  failure is dropped, the failure reports itself, once.
* **Waiting can be wrong.** Blocking on the engine's own thread, or for a run from inside one of its tools, would never
  end. Who waits for whom is known here (``inputs`` of pending cells, ``waits`` of tools that block), so it is refused.
* **Cascades are flat.** Resolving a cell may resolve thousands that hang on it. Callbacks go through one queue a thread
  instead of recursion.

A cell stands on :class:`concurrent.futures.Future`, made only for a cell that is pending when somebody waits: most are
born resolved (a fork of a resolved session) and cost no lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar
from weakref import WeakSet, ref

from rath.errors import RunCancelled, WouldDeadlock

__all__ = ["Cell", "Failure", "Status", "report_unread", "running_inside", "waiting_for"]

T = TypeVar("T")
Status = Literal["pending", "running", "completed", "failed", "cancelled"]

_log = logging.getLogger("rath.runtime")
# Reentrant: the collector may run a finaliser that touches another cell while we hold them.
_lock = threading.RLock()
_wait_lock = threading.RLock()
_unread: WeakSet[Failure] = WeakSet()

# The runs that the current code is part of: a tool's run, the run whose tool started that run, and so on. Weak: timers and
# tasks keep their contexts, and those would keep finished runs and their rows.
_ancestry: ContextVar[tuple[ref[Cell[Any]], ...]] = ContextVar("rath.ancestry", default=())

_blocked_thread: int | None = None
_process_generation = 0


def set_engine_thread(ident: int | None) -> None:
    """The thread that must never block on a cell: the engine's loop runs there."""
    global _blocked_thread
    _blocked_thread = ident


class running_inside:
    """Code in this block is part of ``cell``'s run: waiting for that cell from here would never end.

    A class, because ``contextlib`` assigns to the errors that pass through, and frozen exceptions refuse.
    """

    __slots__ = ("_cell", "_token")

    def __init__(self, cell: Cell[Any]) -> None:
        self._cell = cell

    def __enter__(self) -> None:
        self._token = _ancestry.set((*_ancestry.get(), ref(self._cell)))

    def __exit__(self, *error: object) -> None:
        _ancestry.reset(self._token)


def _own_runs() -> list[Cell[Any]]:
    """The runs that the caller is part of, outermost first, as far as they are alive."""
    return [cell for weak in _ancestry.get() if (cell := weak()) is not None]


@contextlib.contextmanager
def waiting_for(cells: Iterable[Cell[Any]]) -> Iterator[None]:
    """In this block the caller waits for ``cells``: refused if one of them needs a run that the caller is part of."""
    inside = _own_runs()
    if not inside:
        yield
        return
    waited = list(cells)
    waiter = inside[-1]
    with _wait_lock:
        for cell in waited:
            cell._refuse_cycle(inside)
        waiter.waits = [*(waiter.waits or ()), *waited]
    try:
        yield
    finally:
        with _wait_lock:
            remaining = list(waiter.waits or ())
            for cell in waited:
                remaining.remove(cell)
            waiter.waits = remaining


class Failure:
    """Why a cell failed: shared by the cell that failed and everything that depends on it."""

    __slots__ = ("__weakref__", "error", "origin", "read", "summary", "traceback")

    def __init__(self, error: BaseException, origin: Any, summary: str) -> None:
        self.error = error
        self.origin = origin
        self.read = False
        self.summary = summary
        self.traceback: TracebackType | None = error.__traceback__
        _unread.add(self)

    def raise_(self) -> None:
        """Raise the error, with the traceback that the run left."""
        self.read = True
        raise self.error.with_traceback(self.traceback)

    def report(self) -> None:
        """Say that nobody has read this failure; once."""
        if self.read:
            return
        self.read = True
        lines = traceback.format_exception_only(self.error)
        _log.error("a failed run was never read: %s: %s", self.summary, lines[0].strip())

    def __del__(self) -> None:
        # At interpreter exit the modules this needs may be gone; `report_unread` has run by then.
        if not self.read:
            with contextlib.suppress(Exception):
                self.report()


def report_unread() -> None:
    """Report every failure that nobody has read so far: for the interpreter's exit."""
    for failure in list(_unread):
        failure.report()


class Cell(Generic[T]):
    """Pending, running, then completed, failed or cancelled: once, and never cleared.

    Args:
        inputs: the cells that must resolve first; held until this one does.
        on_cancel: called when a pending or running cell is to be cancelled; must lead to :meth:`cancelled`.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_failure",
        "_future",
        "_generation",
        "_status",
        "_value",
        "cancel_reason",
        "inputs",
        "on_cancel",
        "waits",
    )

    def __init__(self, inputs: tuple[Cell[Any], ...] = ()) -> None:
        self._status: Status = "pending"
        self._value: T | None = None
        self._failure: Failure | None = None
        self._future: Future[None] | None = None
        self._callbacks: list[Callable[[Cell[T]], None]] | None = []
        self._generation = _process_generation
        self.inputs = inputs
        self.waits: list[Cell[Any]] | None = None
        self.on_cancel: Callable[[], None] | None = None
        self.cancel_reason = ""

    @classmethod
    def resolved(cls, value: T) -> Cell[T]:
        """A cell that was never pending."""
        cell = object.__new__(cls)
        cell._status = "completed"
        cell._value = value
        cell._failure = cell._future = cell._callbacks = cell.on_cancel = None
        cell.inputs = ()
        cell._generation = _process_generation
        cell.waits = None
        cell.cancel_reason = ""
        return cell

    # -- looking without waiting ------------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        return self._status

    @property
    def done(self) -> bool:
        return self._callbacks is None

    @property
    def failure(self) -> Failure | None:
        return self._failure

    def peek(self) -> T | None:
        """The value if completed, else ``None``."""
        return self._value

    def exception(self) -> BaseException | None:
        """The error of a failed or cancelled cell, else ``None``. Counts as reading it."""
        if self._failure is not None:
            self._failure.read = True
            return self._failure.error
        return None

    # -- resolving ----------------------------------------------------------------------------------------------------

    def start(self) -> bool:
        """Pending → running. ``False`` if it is not pending any more."""
        with _lock:
            if self._status != "pending":
                return False
            self._status = "running"
            return True

    def complete(self, value: T) -> bool:
        """Resolve with a value. ``False`` if it had been resolved already."""
        return self._settle("completed", value, None)

    def fail(self, failure: Failure) -> bool:
        """Resolve with a failure, shared with whoever else has it."""
        return self._settle("failed", None, failure)

    def cancelled(self, failure: Failure) -> bool:
        """Resolve as cancelled. ``failure`` holds the :class:`RunCancelled` that readers get; never reported as unread."""
        failure.read = True
        return self._settle("cancelled", None, failure)

    def _settle(self, status: Status, value: T | None, failure: Failure | None) -> bool:
        with _lock:
            callbacks = self._callbacks
            if callbacks is None:
                return False
            self._value = value
            self._failure = failure
            self._status = status
            self._callbacks = None
            future = self._future
        # Outside the lock: this may drop the last reference to whole chains.
        self.inputs = ()
        self.on_cancel = None
        if future is not None:
            future.set_result(None)
        _cascade(self, callbacks)
        return True

    def on_done(self, callback: Callable[[Cell[T]], None]) -> None:
        """Call ``callback(self)`` once resolved: now if it is, else on the thread that resolves it. It must not block."""
        with _lock:
            if self._callbacks is not None:
                self._callbacks.append(callback)
                return
        callback(self)

    def cancel(self, reason: str = "") -> bool:
        """Ask for cancellation. ``False`` if it is resolved already."""
        with _lock:
            if self._callbacks is None:
                return False
            hook = self.on_cancel
            self.cancel_reason = reason
        if hook is not None:
            hook()
        return True

    # -- waiting ------------------------------------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> T:
        """Wait for the value.

        Raises:
            TimeoutError: after ``timeout`` seconds; the run goes on.
            WouldDeadlock: waiting here could never end.
            RunCancelled: it was cancelled.
            BaseException: whatever the run failed with: the same object at every read.
        """
        if self._callbacks is not None:
            self._block(timeout)
        if self._failure is not None:
            self._failure.raise_()
        return self._value  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait until it is resolved, however: an error stays for who reads the value.

        Raises:
            WouldDeadlock: waiting here could never end.
        """
        if self._callbacks is not None:
            self._block(None)

    def check_may_block(self) -> None:
        """Raise ``WouldDeadlock`` if blocking here until this cell resolves could never end."""
        if self._generation != _process_generation:
            raise WouldDeadlock(
                "this run belongs to the process that forked this one, and can only be waited for there: "
                "start runs after os.fork, not before"
            )
        if threading.get_ident() == _blocked_thread:
            raise WouldDeadlock(
                "this would block the engine's own thread, on which the awaited run has to make progress: "
                "use `await session` (or `await gather(...)`) instead"
            )

    def _block(self, timeout: float | None) -> None:
        self.check_may_block()
        future = self._waitable()
        with waiting_for((self,)):
            try:
                future.result(timeout)
            except FutureTimeoutError:
                raise TimeoutError(f"not resolved within {timeout} s; the run goes on, read again to wait again") from None

    def _waitable(self) -> Future[None]:
        with _lock:
            if self._future is None:
                self._future = Future()
                if self._callbacks is None:
                    self._future.set_result(None)
            return self._future

    def _refuse_cycle(self, inside: list[Cell[Any]]) -> None:
        """Raise if resolving this cell needs one of the runs that the caller is part of."""
        own = {id(cell) for cell in inside}
        seen: set[int] = set()
        stack: list[Cell[Any]] = [self]
        while stack:
            cell = stack.pop()
            if id(cell) in own:
                raise WouldDeadlock(
                    "a tool or callback of a run cannot wait for that run, or for anything that depends on it: "
                    "it would wait for itself"
                )
            if id(cell) not in seen and cell._callbacks is not None:
                seen.add(id(cell))
                stack.extend(cell.inputs)
                stack.extend(cell.waits or ())

    def __await__(self) -> Generator[Any, None, T]:
        if self._callbacks is not None:
            if self._generation != _process_generation:
                self.check_may_block()
            yield from self._wait_in_loop().__await__()
        if self._failure is not None:
            self._failure.raise_()
        return self._value  # type: ignore[return-value]

    async def _wait_in_loop(self) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake(_cell: Cell[T]) -> None:
            # The waiting loop may be closed before the run ends.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_set_if_waiting, waiter)

        with waiting_for((self,)):
            self.on_done(wake)
            try:
                await waiter
            finally:
                self.forget(wake)

    def forget(self, callback: Callable[[Cell[T]], None]) -> None:
        """Take back an :meth:`on_done`."""
        with _lock:
            if self._callbacks is not None:
                with contextlib.suppress(ValueError):
                    self._callbacks.remove(callback)


def _set_if_waiting(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Cascade(threading.local):
    queue: deque[tuple[Callable[[Any], None], Any]] | None = None


_cascades = _Cascade()


def _cascade(cell: Cell[Any], callbacks: list[Callable[[Cell[Any]], None]]) -> None:
    """Run callbacks without recursion: those that resolve further cells add to the queue that is being worked off."""
    if not callbacks:
        return
    queue = _cascades.queue
    if queue is not None:
        queue.extend((callback, cell) for callback in callbacks)
        return
    queue = _cascades.queue = deque((callback, cell) for callback in callbacks)
    try:
        while queue:
            callback, resolved = queue.popleft()
            try:
                callback(resolved)
            except Exception:
                _log.exception("a callback on a resolved run failed")
    finally:
        _cascades.queue = None


def cancelled_failure(origin: Any, what: str, reason: str = "") -> Failure:
    """The failure of a cancelled cell."""
    text = f"{what} was cancelled" + (f": {reason}" if reason else "")
    return Failure(RunCancelled(text), origin, text)


def reset_after_fork() -> None:
    """In a forked child: fresh locks, and nothing inherited is reported here (the parent does)."""
    global _lock, _wait_lock, _process_generation
    _process_generation += 1
    _lock = threading.RLock()
    _wait_lock = threading.RLock()
    _cascades.queue = None
    for failure in list(_unread):
        failure.read = True
