"""What a session's cell resolves to, and cells that follow from other cells without a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from rath.core.broadcast import EventStream
from rath.core.cell import Cell, cancelled_failure
from rath.llm.types import RathLLMTokenUsage
from rath.session.chunk import ChunkRow, ChunkTable

__all__ = ["EAGER_DIGEST_ROWS", "Outcome", "RunView", "Settled", "derived_cell", "inherit"]

_EMPTY = ChunkTable()
EAGER_DIGEST_ROWS = 4096
"""A run hashes at most this many rows for its lineage record; beyond it, ``Session.digest`` does when asked."""


class Outcome(NamedTuple):
    """What a cell resolves to: rows, the tokens of the session's own run, and what the run found out about itself."""

    table: ChunkTable
    usage: RathLLMTokenUsage | None = None
    extras: tuple[tuple[str, Any], ...] = ()


class Settled(int):
    """Yes or no, and callable: people write ``session.done`` as for ``status``, and ``session.done()`` as for a future.

    With a plain bool the second raises; with a method ``if session.done:`` is always true, and nobody notices.
    """

    __slots__ = ()

    def __call__(self) -> bool:
        return bool(self)

    def __repr__(self) -> str:
        return repr(bool(self))


class RunView:
    """What a run shows of itself while it goes: the rows so far (``base``, then ``rows``) and its events."""

    __slots__ = ("base", "rows", "stream")

    def __init__(self, stream: EventStream) -> None:
        self.base = _EMPTY
        self.rows: list[ChunkRow] = []
        self.stream = stream

    @property
    def partial(self) -> ChunkTable:
        return self.base.extend(*self.rows)


def derived_cell(
    session_id: UUID, what: str, inputs: tuple[Cell[Outcome], ...], combine: Callable[..., Outcome]
) -> Cell[Outcome]:
    """A cell that completes with ``combine(*outcomes)`` once all inputs have, or inherits the first failure."""
    outcomes = [cell.peek() for cell in inputs]
    if all(outcome is not None for outcome in outcomes):
        return Cell.resolved(combine(*outcomes))
    cell: Cell[Outcome] = Cell(inputs)

    def cancel() -> None:
        cell.cancelled(cancelled_failure(session_id, f"session {session_id} ({what})", cell.cancel_reason))

    cell.on_cancel = cancel

    def one_resolved(resolved: Cell[Outcome]) -> None:
        if resolved.failure is not None:
            inherit(cell, resolved)
            return
        values = [source.peek() for source in inputs]
        if all(value is not None for value in values):
            cell.complete(combine(*values))

    for source in inputs:
        source.on_done(one_resolved)
    return cell


def inherit(cell: Cell[Any], resolved: Cell[Any]) -> bool:
    """Pass the failure or cancellation of an input on. ``False`` if the cell was resolved before."""
    failure = resolved.failure
    if failure is None:
        return False
    return cell.cancelled(failure) if resolved.status == "cancelled" else cell.fail(failure)
