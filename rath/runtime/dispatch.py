"""One round of tool calls: queues by resource, results as they come, exactly one a call.

Calls with the same resource key run in the order of the reply, different keys overlap. A round of one call, the usual
case, costs no task: it is awaited where it stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

__all__ = ["GLOBAL_KEY", "queues_of", "run_queues"]

T = TypeVar("T")
GLOBAL_KEY = ("global",)


def queues_of(keys: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """Indices of calls grouped by key: groups in order of first appearance, indices ascending."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.values())


async def run_queues(
    queues: list[list[int]], run_call: Callable[[int], Awaitable[BaseException | None]]
) -> BaseException | None:
    """Run every call of every queue; the first fatal error, or ``None``.

    ``run_call(index)`` reports its own result and returns ``None``, or an error that must end the run: then the other
    queues are cancelled and waited for, so that nothing of the round runs on.
    """
    if len(queues) == 1:
        return await _run_queue(queues[0], run_call)
    tasks = [asyncio.ensure_future(_run_queue(queue, run_call)) for queue in queues]
    fatal: BaseException | None = None
    try:
        waiting: set[asyncio.Future[BaseException | None]] = set(tasks)
        while waiting and fatal is None:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            fatal = next((error for task in done if (error := task.result()) is not None), None)
    finally:
        unfinished = [task for task in tasks if not task.done()]
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)
    return fatal


async def _run_queue(queue: list[int], run_call: Callable[[int], Awaitable[BaseException | None]]) -> BaseException | None:
    for index in queue:
        fatal = await run_call(index)
        if fatal is not None:
            return fatal
    return None
