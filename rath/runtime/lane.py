"""A lane: user callbacks of one run, in tool threads, in order, one at a time.

A hop to a thread for every streamed fragment would cost more than the fragment. The lane holds one thread as long as it
has something to call, and none otherwise.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

from rath.core.ports import Engine
from rath.errors import UsageTypeError

__all__ = ["Lane"]


class Lane:
    """Calls functions one after the other in a tool thread; after the first error, none."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._error: BaseException | None = None

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call ``function(*args)`` after what was asked before. Raises the error of an earlier call."""
        if self._error is not None:
            raise self._error
        self._waiting.append((function, args))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.ensure_future(self._engine.call(self._work))

    def _work(self) -> None:
        while self._waiting:
            function, args = self._waiting.popleft()
            try:
                result = function(*args)
                if inspect.isawaitable(result):
                    if inspect.iscoroutine(result):
                        result.close()
                    raise UsageTypeError(
                        f"callback {getattr(function, '__name__', function)!r} is asynchronous; callbacks are called in a "
                        "thread: give a plain function"
                    )
            except BaseException as error:
                self._error = error
                self._waiting.clear()

    def drop(self) -> None:
        """Forget what has not been called yet. A callback under way cannot be stopped."""
        self._waiting.clear()

    async def settle(self) -> None:
        """Wait until everything asked for has been called. Raises the first error."""
        while self._waiting or (self._worker is not None and not self._worker.done()):
            if self._worker is None or self._worker.done():
                self._worker = asyncio.ensure_future(self._engine.call(self._work))
            await asyncio.wait([self._worker])
        if self._error is not None:
            raise self._error
