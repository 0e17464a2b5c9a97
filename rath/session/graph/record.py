"""Lineage records: what remains of a session in its descendants.

A run holds its inputs until it resolves; after that only their records are held: who they were, not what they said.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec

from rath.core.cell import Cell, Status
from rath.llm.types import RathLLMTokenUsage
from rath.session.graph.kind import LineageKind

__all__ = ["LineageRecord"]


class LineageRecord(msgspec.Struct, gc=False, eq=False):
    """One node of the lineage graph: at most 1 kB, shared, without rows or sandbox.

    Attributes:
        parents: the records of the parents that were sessions of this process, in order.
        usage: tokens of the session's own run.
        digest: the content digest, once known.
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

    def settle(self, cell: Cell[Any]) -> None:
        """Take over what the resolved cell knows."""
        self.status = cell.status
        outcome = cell.peek()
        if outcome is None:
            return
        self.usage = outcome.usage
        if outcome.extras:
            self.extras = (*self.extras, *outcome.extras)
        self.digest = outcome.table.known_digest

    def __repr__(self) -> str:
        return f"LineageRecord({self.id}, {self.operator!r}, {self.status})"
