"""Whether lineage is stamped, and journals of what was."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable
from uuid import UUID
from weakref import WeakValueDictionary

from rath.errors import UsageTypeError, UsageValueError
from rath.session.graph.kind import LineageKind

__all__ = [
    "LineageJournal",
    "LineageRecorder",
    "lineage_journal_optional",
    "lineage_journal_tracking",
    "note_in_journal",
    "noted",
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


# Beside the registry, which has those that runs were asked for, and not their forks and merges. It keeps none alive.
_noted: WeakValueDictionary[UUID, Any] = WeakValueDictionary()


def note_in_journal(session: Any) -> None:
    """Put a session into the journal that is attached here, if one is."""
    journal = _journal.get()
    if journal is not None:
        journal.record(session.id)
        _noted[session.id] = session


def noted(session_id: UUID) -> Any:
    """The session that went into a journal under this id, if it is alive."""
    return _noted.get(session_id)


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
            UsageTypeError: ``session`` is no ``Session``, or a parent no ``UUID``.
            UsageValueError: there is no such kind.
        """
        if not isinstance(session, _Stampable):
            raise UsageTypeError(f"expected a Session, not {type(session).__name__}")
        stranger = next((parent for parent in parent_session_ids if not isinstance(parent, UUID)), None)
        if stranger is not None:
            raise UsageTypeError(f"a parent is named by its UUID, not by {type(stranger).__name__}")
        try:
            lineage_kind = LineageKind(lineage_kind)
        except ValueError:
            raise UsageValueError(f"no kind {lineage_kind!r:.60}; LineageKind has them all") from None
        if not session_graph_mode():
            return session
        stamped: S = session.with_lineage(parent_session_ids, lineage_operator, lineage_kind, lineage_extras)
        note_in_journal(stamped)
        return stamped
