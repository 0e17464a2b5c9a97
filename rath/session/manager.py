"""The registry: which sessions are alive. It keeps none of them so."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from rath.session.session import Session

__all__ = ["SessionRegistry", "session_registry"]


@dataclass
class SessionRegistry:
    """Sessions by id, held weakly, and the id of the active one."""

    _by_id: WeakValueDictionary[UUID, Session] = field(default_factory=WeakValueDictionary, repr=False)
    _active_id: UUID | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def register(self, session: Session) -> None:
        """Make ``session`` findable by its id for as long as it lives."""
        with self._lock:
            self._by_id[session.id] = session

    def get(self, session_id: UUID) -> Session | None:
        """The session, if it is alive."""
        return self._by_id.get(session_id)

    def set_active(self, session: Session | None) -> None:
        """Say which session is the current one."""
        with self._lock:
            self._active_id = None if session is None else session.id

    def get_active_id(self) -> UUID | None:
        """The id of the current session, alive or not."""
        return self._active_id

    def alive(self) -> tuple[Session, ...]:
        """Every registered session that is alive."""
        # In one step: other threads register sessions meanwhile.
        references = self._by_id.valuerefs()
        return tuple(session for reference in references if (session := reference()) is not None)


_registry = SessionRegistry()


def _reset_after_fork() -> None:
    _registry._lock = threading.Lock()


os.register_at_fork(after_in_child=_reset_after_fork)


def session_registry() -> SessionRegistry:
    """The process's registry."""
    return _registry
