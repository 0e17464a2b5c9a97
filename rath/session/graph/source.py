"""Where a graph is read from: sessions of this process, its registry, a directory of logs. Read anew at each refresh.

A source holds lineage records, which are small, and sessions weakly: looking at a graph keeps nothing else alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID
from weakref import ref

from rath.core import ports
from rath.session.graph.lineage import LineageNode, node_of, records_of, short_label
from rath.session.graph.order import assemble
from rath.session.graph.record import LineageRecord
from rath.session.manager import SessionRegistry, session_registry

if TYPE_CHECKING:
    from rath.session.chunk import ChunkTable
    from rath.session.session import Session

__all__ = ["Source"]

Condition = Callable[[LineageNode], bool]

_BROKEN_OFF = ("failed", "cancelled")


class Source:
    """What a graph was made of.

    Args:
        sessions: with all they descend from.
        registry: those that are alive in it, whenever the graph is read.
        directory: the logs in it.
        labels: names for some nodes.
        wanted: which nodes are kept.
    """

    def __init__(
        self,
        sessions: Iterable[Session] = (),
        registry: SessionRegistry | None = None,
        directory: Path | None = None,
        *,
        labels: Mapping[UUID, str] | None = None,
        fold_appends: bool = False,
        wanted: tuple[Condition, ...] = (),
    ) -> None:
        self._sessions: dict[UUID, ref[Session]] = {}
        # By identity: what was loaded again, or gone on with, has the id of the session before.
        self._records: dict[int, LineageRecord] = {}
        self._registry = registry
        self._directory = directory
        self._labels = dict(labels or {})
        self._fold = fold_appends
        self._wanted = wanted
        for session in sessions:
            self._add(session)

    @property
    def live(self) -> bool:
        """Whether there is anything to read anew."""
        return bool(self._records) or self._registry is not None or self._directory is not None

    @property
    def grows(self) -> bool:
        """Whether sessions may come to it that nobody named: those of a registry, or of a directory."""
        return self._registry is not None or self._directory is not None

    def where(self, wanted: Condition) -> Source:
        """The same source, of whose nodes only those are kept."""
        made = object.__new__(Source)
        made.__dict__.update(self.__dict__)
        made._wanted = (*self._wanted, wanted)
        return made

    def nodes(self) -> list[LineageNode]:
        """Everything as it is now, in the order of a graph. Never waits for a session; logs are read."""
        if self._registry is not None:
            for session in self._registry.alive():
                self._add(session)
        logged: dict[UUID, LineageNode] = {}
        if self._directory is not None:
            logged = ports.load("graph", "logs")(self._directory)
        # What this process knows of a session is newer than what its log says.
        mine: dict[UUID, LineageNode] = {}
        for record in records_of(list(self._records.values())):
            node = node_of(record, self._alive(record.id), short_label(record.kind, record.operator))
            before = mine.get(record.id)
            if before is not None and node.status in _BROKEN_OFF and before.status not in _BROKEN_OFF:
                continue  # somebody has gone on with it
            log = logged.get(record.id)
            if log is not None and log.path is not None and node.path is None:
                node = replace(node, path=log.path, verdict=log.verdict)
            mine[record.id] = node
        nodes = assemble(logged | mine, self._labels, fold_appends=self._fold)
        return [node for node in nodes if all(wanted(node) for wanted in self._wanted)] if self._wanted else nodes

    def transcript(self, node: LineageNode) -> ChunkTable | None:
        """The rows of a node's session as far as they are there, else those of its log. Never waits."""
        session = self._alive(node.id) or session_registry().get(node.id)
        if session is not None:
            return session.partial
        if node.path is None:
            return None
        table: ChunkTable | None = ports.load("graph", "transcript")(node.path)
        return table

    def _add(self, session: Session) -> None:
        self._sessions[session.id] = ref(session)
        self._records[id(session._record)] = session._record

    def _alive(self, session_id: UUID) -> Session | None:
        held = self._sessions.get(session_id)
        return None if held is None else held()
