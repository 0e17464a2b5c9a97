"""Lineage records: what remains of a session in its descendants.

A run holds its inputs until it resolves; after that only their records are held: who they were, not what they said.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import msgspec

from rath.core.cell import Cell, Status
from rath.llm.pricing import Bill
from rath.llm.types import RathLLMTokenUsage, add_usage
from rath.session.graph.kind import LineageKind

__all__ = ["LineageRecord"]


class LineageRecord(msgspec.Struct, gc=False, eq=False):
    """One node of the lineage graph, shared, without rows or sandbox: at most 1 kB, but for ``covers`` and extras of yours.

    Attributes:
        parents: the records of the parents that were sessions of this process, in order.
        usage: tokens of the session's own run, so far while it goes; those it used until it failed, too. Not what a merge
            adds up.
        digest: the content digest, once known.
        rows: how many, once resolved.
        model: which one its run was to ask first.
        created_at: Unix time in seconds: when its run began; until then, and for what no run makes, when it was made.
        duration_s: how long its run took; of one that went on with a log, since then.
        bill: what its own completions cost.
        sandbox: the backend that it, or the first use of it, was placed in.
        log: the path of its log; ``verdict`` is ``open`` or ``complete``, as this process left it.
        covers: the sessions whose runs' tokens are in ``usage``: those inside a user's operator.
    """

    id: UUID
    parent_ids: tuple[UUID, ...] = ()
    operator: str = "implicit"
    kind: LineageKind = LineageKind.UNKNOWN
    extras: tuple[tuple[str, Any], ...] = ()
    parents: tuple[LineageRecord, ...] = ()
    status: Status = "pending"
    usage: RathLLMTokenUsage | None = None
    digest: bytes | None = None
    rows: int | None = None
    model: str | None = None
    created_at: float = msgspec.field(default_factory=time.time)
    duration_s: float | None = None
    bill: Bill = Bill()
    sandbox: str | None = None
    log: str | None = None
    verdict: str | None = None
    covers: tuple[UUID, ...] = ()
    derived: bool = False
    """Computed from other sessions: the tokens that its cell knows are theirs."""

    @property
    def cost_usd(self) -> float | None:
        """Of its own completions, at the prices that are known by now; ``None`` where one has none."""
        return self.bill.cost_usd

    def begin(self) -> None:
        """Its run begins. One that goes on with a log has begun when the log did."""
        self.status = "running"
        if self.log is None:
            self.created_at = time.time()

    def book(self, usage: RathLLMTokenUsage, model: str, asked: str | None) -> None:
        """Its run has had a completion: ``model`` has answered, where the one that is ``asked`` was asked."""
        self.bill = self.bill.plus(usage, model, asked)
        self.usage = add_usage(self.usage, usage)

    def settle(self, cell: Cell[Any]) -> None:
        """Take over what the resolved cell knows; once, however many sessions share the record. From any thread."""
        if self.status not in ("pending", "running"):
            return
        outcome = cell.peek()
        if outcome is not None:
            if not self.derived:
                self.usage = outcome.usage
            # Two threads may be here at once: the second must change nothing.
            if outcome.extras and self.extras[-len(outcome.extras) :] != outcome.extras:
                self.extras = (*self.extras, *outcome.extras)
            self.rows = len(outcome.table)
            self.digest = outcome.table.known_digest
        # Last: a record that says it is over has all of it.
        self.status = cell.status

    def __repr__(self) -> str:
        return f"LineageRecord({self.id}, {self.operator!r}, {self.status})"
