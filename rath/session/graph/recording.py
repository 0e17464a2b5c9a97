"""Whether lineage is stamped, and journals of what was."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable
from uuid import UUID

from rath.errors import UsageTypeError
from rath.session.graph.kind import LineageKind

__all__ = [
    "LineageJournal",
    "LineageRecorder",
    "lineage_journal_optional",
    "lineage_journal_tracking",
    "session_graph_mode",
    "session_graph_mode_override",
]

_mode: ContextVar[bool] = ContextVar("rath.session_graph_mode", default=True)


@dataclass(slots=True)
class LineageJournal:
    """The ids of the sessions that were stamped while it was attached, in order."""

    visit_order: list[UUID] = field(default_factory=list)

    def record(self, session_id: UUID) -> None:
        """Add an id."""
        self.visit_order.append(session_id)

    def append(self, session_id: UUID) -> LineageJournal:
        """Add an id and return the journal."""
        self.visit_order.append(session_id)
        return self


_journal: ContextVar[LineageJournal | None] = ContextVar("rath.lineage_journal", default=None)


def session_graph_mode() -> bool:
    """Whether new sessions get their lineage stamped here."""
    return _mode.get()


@contextmanager
def session_graph_mode_override(enabled: bool) -> Generator[None, None, None]:
    """Switch stamping on or off for a block."""
    token = _mode.set(enabled)
    try:
        yield
    finally:
        _mode.reset(token)


def lineage_journal_optional() -> LineageJournal | None:
    """The journal attached here, if any."""
    return _journal.get()


@contextmanager
def lineage_journal_tracking(*, journal: LineageJournal | None = None) -> Generator[LineageJournal, None, None]:
    """Attach a journal (a new one by default) for a block, and yield it."""
    attached = LineageJournal() if journal is None else journal
    token = _journal.set(attached)
    try:
        yield attached
    finally:
        _journal.reset(token)


@runtime_checkable
class _Stampable(Protocol):
    def with_lineage(
        self,
        parent_session_ids: tuple[UUID, ...],
        lineage_operator: str,
        lineage_kind: LineageKind,
        lineage_extras: tuple[tuple[str, Any], ...],
    ) -> Any: ...


S = TypeVar("S")


class LineageRecorder:
    """Stamps lineage on sessions that you built by hand."""

    @staticmethod
    def stamp_new_session(
        session: S,
        *,
        parent_session_ids: tuple[UUID, ...],
        lineage_operator: str,
        lineage_kind: LineageKind,
        lineage_extras: tuple[tuple[str, Any], ...] = (),
    ) -> S:
        """A copy of ``session`` (same id, rows and sandbox) with this lineage; ``session`` itself where stamping is off.

        Raises:
            UsageTypeError: ``session`` is no ``Session``.
        """
        if not isinstance(session, _Stampable):
            raise UsageTypeError(f"expected a Session, not {type(session).__name__}")
        if not session_graph_mode():
            return session
        stamped: S = session.with_lineage(parent_session_ids, lineage_operator, lineage_kind, lineage_extras)
        journal = lineage_journal_optional()
        if journal is not None:
            journal.record(stamped.id)  # type: ignore[attr-defined]
        return stamped
