"""The session operations as functions."""

from __future__ import annotations

from rath.session.graph.kind import LineageKind
from rath.session.graph.recording import LineageRecorder
from rath.session.session import Session

__all__ = ["create_system_session", "create_user_session", "detach_session", "fork_session"]


def create_user_session(message: str) -> Session:
    """A session with one user row, stamped ``LEAF_USER``."""
    return LineageRecorder.stamp_new_session(
        Session.from_user_message(message),
        parent_session_ids=(),
        lineage_operator="create_user_session",
        lineage_kind=LineageKind.LEAF_USER,
        lineage_extras=(("source", "create_user_session"),),
    )


def create_system_session(prompt: str) -> Session:
    """A session with one system row, stamped ``LEAF_SYSTEM``."""
    return LineageRecorder.stamp_new_session(
        Session.from_agent_prompt(prompt),
        parent_session_ids=(),
        lineage_operator="create_system_session",
        lineage_kind=LineageKind.LEAF_SYSTEM,
        lineage_extras=(("source", "create_system_session"),),
    )


def fork_session(from_session: Session) -> Session:
    """:meth:`Session.fork`."""
    return from_session.fork()


def detach_session(from_session: Session) -> Session:
    """:meth:`Session.detach`."""
    return from_session.detach()
