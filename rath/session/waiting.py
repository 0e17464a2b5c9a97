"""Waiting for many sessions, in scripts and in event loops."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any, SupportsIndex

from rath.core.cell import Cell, waiting_for
from rath.errors import UsageTypeError
from rath.session.outcome import Outcome
from rath.session.session import Session

__all__ = ["AsCompleted", "Gathered", "as_completed", "gather"]


class AsCompleted:
    """Sessions as they finish: iterate it, or iterate it with ``async for``."""

    def __init__(self, sessions: tuple[Session, ...], timeout: float | None = None) -> None:
        self._sessions = sessions
        self._timeout = timeout

    def __iter__(self) -> Iterator[Session]:
        left_s = _countdown(self._timeout)
        inbox: queue.SimpleQueue[int] = queue.SimpleQueue()
        with _watching(self._sessions, inbox.put) as waiting:
            while waiting:
                try:
                    index = inbox.get_nowait()
                except queue.Empty:
                    cells = [session._cell for session in waiting.values()]
                    cells[0].check_may_block()
                    with waiting_for(cells):
                        try:
                            index = inbox.get(timeout=left_s())
                        except queue.Empty:
                            raise self._too_long(len(waiting)) from None
                yield waiting.pop(index)

    async def __aiter__(self) -> AsyncIterator[Session]:
        loop = asyncio.get_running_loop()
        left_s = _countdown(self._timeout)
        inbox: asyncio.Queue[int] = asyncio.Queue()

        def arrived(index: int) -> None:
            # The waiting loop may be closed before the run ends.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(inbox.put_nowait, index)

        with _watching(self._sessions, arrived) as waiting:
            while waiting:
                # The limit is for the wait, not for what the caller does between two sessions.
                with waiting_for([session._cell for session in waiting.values()]):
                    try:
                        index = await asyncio.wait_for(inbox.get(), left_s())
                    except TimeoutError:
                        raise self._too_long(len(waiting)) from None
                yield waiting.pop(index)

    def _too_long(self, waiting: int) -> TimeoutError:
        return TimeoutError(f"{waiting} of {len(self._sessions)} sessions took longer than {self._timeout} s; they go on")


def _countdown(timeout_s: float | None) -> Callable[[], float | None]:
    if timeout_s is None:
        return lambda: None
    deadline = time.monotonic() + timeout_s
    return lambda: max(0.0, deadline - time.monotonic())


@contextlib.contextmanager
def _watching(sessions: tuple[Session, ...], arrived: Callable[[int], None]) -> Iterator[dict[int, Session]]:
    """Tell ``arrived`` the position of each session as it resolves; yields those that have not arrived yet."""
    waiting = dict(enumerate(sessions))
    callbacks = {index: _Arrival(arrived, index) for index in waiting}
    for index, session in enumerate(sessions):
        session._cell.on_done(callbacks[index])
    try:
        yield waiting
    finally:
        # A pending cell that is polled again and again must not keep a callback of every poll.
        for index, session in waiting.items():
            session._cell.forget(callbacks[index])


class _Arrival:
    """Tells the position of a session that has resolved."""

    __slots__ = ("_index", "_tell")

    def __init__(self, tell: Callable[[int], None], index: int) -> None:
        self._tell = tell
        self._index = index

    def __call__(self, _cell: Cell[Outcome]) -> None:
        self._tell(self._index)


class Gathered(list[Session | BaseException]):
    """The sessions of a :func:`gather`, in order: a list that can be awaited.

    Made inside a running event loop, it waits when it is awaited or first looked into.
    """

    def __init__(self, sessions: tuple[Session, ...], return_exceptions: bool) -> None:
        super().__init__()
        self._pending: tuple[Session, ...] | None = sessions
        self._return_exceptions = return_exceptions

    def _fill(self) -> Gathered:
        if self._pending is not None:
            for session in AsCompleted(self._pending):
                self._check(session)
            self._settle(self._pending)
        return self

    async def _fill_in_loop(self) -> Gathered:
        if self._pending is not None:
            async for session in AsCompleted(self._pending):
                self._check(session)
            self._settle(self._pending)
        return self

    def _check(self, session: Session) -> None:
        cell: Cell[Outcome] = session._cell
        if cell.failure is not None and not self._return_exceptions:
            cell.failure.raise_()

    def _settle(self, sessions: tuple[Session, ...]) -> None:
        self._pending = None
        for session in sessions:
            error = session.exception()
            super().append(session if error is None else error)

    def __await__(self) -> Generator[Any, None, Gathered]:
        return self._fill_in_loop().__await__()

    def __iter__(self) -> Iterator[Session | BaseException]:
        self._fill()
        return super().__iter__()

    def __len__(self) -> int:
        return super().__len__() if self._pending is None else len(self._pending)

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        self._fill()
        return super().__getitem__(index)

    def __eq__(self, other: object) -> bool:
        self._fill()
        return list(self) == (list(other) if isinstance(other, list | tuple) else other)

    __hash__ = None

    def __repr__(self) -> str:
        return f"<gather of {len(self._pending)} sessions>" if self._pending is not None else super().__repr__()


def gather(*sessions: Session, return_exceptions: bool = False) -> Gathered:
    """Wait for all of ``sessions`` and return them in order; ``await gather(...)`` in an event loop.

    Args:
        return_exceptions: put the error of a failed session in its place instead of raising.

    Raises:
        BaseException: the first failure, as soon as it happens; the other runs go on.
        UsageTypeError: an argument is no session.
    """
    gathered = Gathered(_checked(sessions), return_exceptions)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return gathered._fill()
    return gathered


def as_completed(sessions: Iterable[Session], *, timeout: float | None = None) -> AsCompleted:
    """The sessions as they finish, failed and cancelled ones too. For ``for`` and ``async for``.

    Args:
        timeout: seconds for all of them, after which iteration raises ``TimeoutError``; the runs go on.
    """
    return AsCompleted(_checked(tuple(sessions)), timeout)


def _checked(sessions: tuple[Any, ...]) -> tuple[Session, ...]:
    for session in sessions:
        if not isinstance(session, Session):
            hint = ": unpack it with *" if isinstance(session, list | tuple | set) else ""
            raise UsageTypeError(f"expected sessions, got a {type(session).__name__}{hint}")
    return sessions
