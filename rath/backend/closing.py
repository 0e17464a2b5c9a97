"""What is open or kept in this process, and closing all of it when the engine ends."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine
from typing import Any, Protocol
from weakref import WeakSet, WeakValueDictionary

from rath.core import ports

__all__ = ["Closable", "close_all", "close_at_end", "ending", "everything", "track", "tracked"]

_log = logging.getLogger("rath.backend")
# The engine gives a closer 2 s.
CLOSE_S = 1.8


class Closable(Protocol):
    """Something that this process opened."""

    @property
    def is_open(self) -> bool: ...
    def shut(self) -> Coroutine[Any, Any, None]: ...


# By identity: a backend's own dataclass may not be hashable.
_all: WeakValueDictionary[int, Closable] = WeakValueDictionary()
_lock = threading.RLock()
_engines: WeakSet[ports.Engine] = WeakSet()
_ending = False


def track(made: Closable) -> None:
    """Close ``made`` with the rest, if it is open then and still referenced."""
    with _lock:
        _all[id(made)] = made


def everything() -> list[Closable]:
    """Everything that is tracked, open or not."""
    with _lock:
        return list(_all.values())


def tracked() -> list[Closable]:
    """Everything that is open."""
    return [one for one in everything() if one.is_open]


def close_at_end() -> None:
    """Have the engine call :func:`close_all` when it ends. On its loop, each time something opens."""
    engine = ports.engine()
    if engine not in _engines:
        _engines.add(engine)
        engine.at_close(_end)


async def _end() -> None:
    global _ending
    _ending = True
    await close_all(CLOSE_S)


def ending() -> bool:
    """Whether the engine is ending: Python 3.12 starts no more threads then, so what blocks has to block the loop."""
    return _ending


async def close_all(timeout_s: float) -> None:
    """Close every sandbox that this process has open and free kept snapshots; wait at most ``timeout_s`` seconds.

    For the engine's end, on its loop.
    """
    tasks = [asyncio.ensure_future(one.shut()) for one in tracked()]
    if not tasks:
        return
    done, late = await asyncio.wait(tasks, timeout=timeout_s)
    for task in late:
        task.cancel()
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a sandbox could not be closed", exc_info=error)
    if late:
        _log.error("%d sandboxes were not closed within %g s", len(late), timeout_s)


def _reset_in_child() -> None:
    global _lock, _ending
    _lock = threading.RLock()
    _ending = False


os.register_at_fork(after_in_child=_reset_in_child)
