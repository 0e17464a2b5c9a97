"""Runs of users' own operators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from rath.core.cell import Cell
from rath.core.node import Node
from rath.errors import UsageTypeError
from rath.runtime.job import Job, submit
from rath.session.outcome import Outcome, RunView
from rath.session.session import Session

__all__ = ["drive_custom"]


def drive_custom(
    node: Node,
    session_id: UUID,
    inputs: tuple[Session, ...],
    function: Callable[..., Any],
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]],
) -> tuple[Cell[Outcome], RunView]:
    """Call ``function`` once every input is resolved; the handle resolves to the session it returns."""

    async def body(job: Job) -> Outcome:
        args, kwargs = arguments
        if inspect.iscoroutinefunction(function):
            made = await function(*args, **kwargs)
        else:
            made = await job.engine.call(lambda: function(*args, **kwargs))
            if inspect.isawaitable(made) and not isinstance(made, Session):
                made = await made
        if not isinstance(made, Session):
            raise UsageTypeError(f"operator {node.op!r} must return a Session, not {type(made).__name__}")
        await made
        # The tokens of a run inside belong to this operator's node: nothing else in the graph has them.
        own = None if any(made is source for source in inputs) else made.cumulative_usage
        table = made.chunk_table
        table.digest_within(4096)
        return Outcome(table, own)

    return submit(Job(node, session_id, inputs, body, None))
