"""One round of tool calls: stages, queues by resource, results as they come, exactly one a call.

Calls with the same resource key run in the order of the reply, different keys overlap. A call of a tool that is not
``parallel_safe`` holds the key of everything: what stands before it in the reply has ended when it starts, what stands after
starts when it has ended. (Models do write a file and run it in one reply.) A stage of one call, the usual case, costs no
task: it is awaited where it stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

__all__ = ["ended", "run_round", "stages_of"]

Key = tuple[str, ...]
RunCall = Callable[[int], Awaitable[BaseException | None]]


def stages_of(keys: Sequence[Key | None]) -> list[list[list[int]]]:
    """Stages to run one after the other; each a list of queues to overlap; each a list of indices in order.

    ``None`` is the key of everything: a stage of its own.
    """
    stages: list[list[list[int]]] = []
    groups: dict[Key, list[int]] = {}
    for index, key in enumerate(keys):
        if key is None:
            if groups:
                stages.append(list(groups.values()))
                groups = {}
            stages.append([[index]])
        else:
            groups.setdefault(key, []).append(index)
    if groups:
        stages.append(list(groups.values()))
    return stages


async def run_round(keys: Sequence[Key | None], run_call: RunCall) -> BaseException | None:
    """Run the calls whose keys these are; the first fatal error, or ``None``.

    ``run_call(index)`` reports its own result and returns ``None``, or an error that must end the run.
    """
    for queues in stages_of(keys):
        fatal = await run_queues(queues, run_call)
        if fatal is not None:
            return fatal
    return None


async def run_queues(queues: list[list[int]], run_call: RunCall) -> BaseException | None:
    """Overlap the queues. A fatal error in one cancels the others and waits for them: nothing of the round runs on."""
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
        await ended(unfinished)
    return fatal


async def ended(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Wait until cancelled ``tasks`` have ended. A further cancellation does not cut this short: they would outlive us."""
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        try:
            _, waiting = await asyncio.wait(waiting)
        except asyncio.CancelledError:
            waiting = {task for task in waiting if not task.done()}


async def _run_queue(queue: list[int], run_call: Callable[[int], Awaitable[BaseException | None]]) -> BaseException | None:
    for index in queue:
        fatal = await run_call(index)
        if fatal is not None:
            return fatal
    return None
