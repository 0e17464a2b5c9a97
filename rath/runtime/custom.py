"""Runs of users' own operators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import UUID

from rath.core.cell import Cell
from rath.core.node import Node
from rath.errors import UsageTypeError
from rath.llm.types import RathLLMTokenUsage, add_usage
from rath.runtime.job import Job, submit
from rath.session.graph.kind import LineageKind
from rath.session.graph.record import LineageRecord
from rath.session.outcome import EAGER_DIGEST_ROWS, Outcome, RunView
from rath.session.session import Session

__all__ = ["drive_custom"]

_OWNS_TOKENS = (LineageKind.OP_SESSION_LOOP, LineageKind.OP_SESSION_COMPRESS, LineageKind.OP_CUSTOM)


def drive_custom(
    node: Node,
    session_id: UUID,
    inputs: tuple[Session, ...],
    function: Callable[..., Any],
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]],
    record: LineageRecord | None = None,
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
        table = made.chunk_table
        table.digest_within(EAGER_DIGEST_ROWS)
        return Outcome(table, _book_inside(job.record, made, inputs))

    return submit(Job(node, session_id, inputs, body, None, record))


def _book_inside(own: LineageRecord, made: Session, inputs: tuple[Session, ...]) -> RathLLMTokenUsage | None:
    """Book the tokens of the runs between ``inputs`` and ``made``: the operator's node has them in the graph.

    Each run counts once. Merges and forks own no tokens.
    """
    seen = {record.id for record in _with_ancestors([source._record for source in inputs], set())}
    made_here = [record for record in _with_ancestors([made._record], seen) if record.kind in _OWNS_TOKENS]
    # An operator that ran nothing used nothing: that is known, and no run whose tokens nobody knows.
    runs = [record for record in made_here if record.kind is not LineageKind.OP_CUSTOM or record.usage or record.covers]
    own.covers = tuple(record.id for record in runs)
    # An operator among them has booked those that were inside it.
    inside = {covered for record in runs for covered in record.covers}
    for record in runs:
        if record.id not in inside:
            own.usage = add_usage(own.usage, record.usage)
            own.bill = own.bill.joined(record.bill)
    return own.usage


def _with_ancestors(records: list[LineageRecord], known: set[UUID]) -> Iterator[LineageRecord]:
    seen = set(known)
    stack = list(records)
    while stack:
        record = stack.pop()
        if record.id not in seen:
            seen.add(record.id)
            yield record
            stack.extend(record.parents)
