"""Group commit: many who need the log on disk, one sync at a time for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from rath.core.ports import Engine

__all__ = ["GroupSync", "Sync"]

Sync: TypeAlias = Callable[[], Awaitable[None]]


class GroupSync:
    """``await sync()``: what was appended before is as durable as the log promises.

    Those who come while a sync is under way share the next one.
    """

    def __init__(self, engine: Engine, log: Any) -> None:
        self._engine = engine
        self._log = log
        self._turn = asyncio.Lock()

    async def __call__(self) -> None:
        if not self._log.needs_sync():
            return
        async with self._turn:
            if self._log.needs_sync():
                await self._engine.call(self._log.sync)
