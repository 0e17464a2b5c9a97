"""From sessions, the registry or logs to a graph."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from rath.core import ports
from rath.errors import UsageTypeError
from rath.session.graph.model import SessionGraph
from rath.session.graph.record import LineageRecord
from rath.session.graph.source import Source
from rath.session.manager import SessionRegistry

if TYPE_CHECKING:
    from rath.session.session import Session

__all__ = ["lineage"]


def lineage(
    source: Session | Iterable[Session] | SessionRegistry | None = None,
    /,
    *,
    dir: str | os.PathLike[str] | None = None,
    labels: Mapping[UUID, str] | None = None,
    fold_appends: bool = False,
) -> SessionGraph:
    """The lineage graph of sessions and everything they descend from. Never waits: what is pending shows as pending.

    Each session is a node once. A parent of which nothing is known but its id is a node with status ``unknown``.

    Args:
        source: a session, several, or a registry, whose living sessions are taken. Sessions of this process are known by
            their lineage records, which every descendant keeps: not only those that are alive.
        dir: a directory of logs, or the ``.openrath`` that has one: the sessions of any process, as far as the two ends of
            their logs tell. Together with ``source``: both; what this process knows of a session comes first. With neither,
            the sessions directory of the working directory.
        labels: names for some nodes, by session id.
        fold_appends: leave out sessions that only append rows, where another continues them; ``folded`` counts them.

    Logs tell the same graph as the process that wrote them, with these limits. A log's header has its session's nearest
    128 ancestors that have no complete log beside it (32 KiB of them); what lies beyond is ``unknown``. A session that was
    never logged, and from which no logged one descends, is in no log. A log without an end says neither whether its run
    failed or was cancelled nor what it used: its status is ``running`` while somebody writes it, else ``unknown``. Extras
    are as JSON has them, redacted.

    Raises:
        PersistenceError: ``dir`` is no directory, or cannot be listed.
        UsageTypeError: ``source`` is none of these, or a label no text.
    """
    for named, label in (labels or {}).items():
        if not isinstance(named, UUID) or not isinstance(label, str):
            raise UsageTypeError(f"labels are texts by UUID, not {type(label).__name__} by {type(named).__name__}")
    registry: SessionRegistry | None = None
    sessions: list[Any] = []
    if isinstance(source, SessionRegistry):
        registry = source
    elif isinstance(getattr(source, "_record", None), LineageRecord):
        sessions = [source]
    elif isinstance(source, Iterable) and not isinstance(source, (str, bytes, os.PathLike, Mapping)):
        sessions = list(source)
    elif source is not None:
        raise UsageTypeError(
            f"lineage takes a Session, several, or a registry, not {type(source).__name__}; logs are read with dir=..."
        )
    for session in sessions:
        if not isinstance(getattr(session, "_record", None), LineageRecord):
            raise UsageTypeError(f"lineage takes sessions; one of those given is {type(session).__name__}")
    directory: Path | None = None
    if dir is not None or source is None:
        directory = ports.load("graph", "directory")(dir)
    made = Source(sessions, registry, directory, labels=labels, fold_appends=fold_appends)
    return SessionGraph(made.nodes(), made)
