"""The lineage of sessions as plain nodes, for displays: pure data, collected without recursion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol
from uuid import UUID

from rath.llm.types import RathLLMTokenUsage, add_usage
from rath.session.graph.kind import LineageKind
from rath.session.graph.record import LineageRecord

__all__ = ["LineageNode", "collect", "total_usage"]

# A node's *own* usage is what its own completions used; these operators make none, whatever the session's
# `cumulative_usage` adds up.
_WITHOUT_OWN_USAGE = frozenset({LineageKind.OP_FORK, LineageKind.OP_DETACH, LineageKind.OP_APPEND, LineageKind.OP_MERGE})
# Their second parent is the agent's session: its instructions.
_WITH_AGENT = frozenset({LineageKind.OP_SESSION_LOOP, LineageKind.OP_SESSION_COMPRESS})
_SHORT = {
    LineageKind.LEAF_USER: "user",
    LineageKind.LEAF_SYSTEM: "system",
    LineageKind.OP_CREATE: "create",
    LineageKind.OP_SESSION_LOOP: "loop",
    LineageKind.OP_FORK: "fork",
    LineageKind.OP_DETACH: "detach",
    LineageKind.OP_MERGE: "merge",
    LineageKind.OP_SESSION_COMPRESS: "compress",
    LineageKind.OP_APPEND: "append",
}


class _Rows(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class _Recorded(Protocol):
    """What is read of a session; none of it waits."""

    @property
    def _record(self) -> LineageRecord: ...
    @property
    def partial(self) -> _Rows: ...
    @property
    def status(self) -> str: ...


@dataclass(frozen=True, slots=True)
class LineageNode:
    """One session in a lineage graph.

    Attributes:
        parents: ids of the nodes it was made from, in order; appends are skipped over.
        status: ``pending running completed failed cancelled``, or ``unknown`` for a session known by its id alone.
        rows: how many it has, or has so far; ``None`` where only the lineage record is left.
        usage: tokens of its own completions.
        label: a word or two for people.
        folded: how many append nodes went into it.
    """

    id: UUID
    parents: tuple[UUID, ...] = ()
    operator: str = ""
    kind: LineageKind = LineageKind.UNKNOWN
    status: str = "unknown"
    rows: int | None = None
    usage: RathLLMTokenUsage | None = None
    extras: tuple[tuple[str, Any], ...] = ()
    label: str = ""
    folded: int = 0


def collect(
    sessions: Iterable[_Recorded], *, labels: Mapping[UUID, str] | None = None, fold_appends: bool = True
) -> list[LineageNode]:
    """The nodes of ``sessions`` and all their ancestors, each once, parents before children. Never waits.

    An append node is folded into each of its children; one without children stays.

    Args:
        labels: names for some of them, by session id.
    """
    wanted = list(sessions)
    given = {session._record.id: session for session in wanted}
    nodes: dict[UUID, LineageNode] = {}
    for record in _records(session._record for session in wanted):
        for parent in record.parent_ids:
            # Every parent that was a session of this process stands before its child: this one was not.
            if parent not in nodes:
                nodes[parent] = LineageNode(parent, label="elsewhere")
        node = nodes[record.id] = _node(record, given.get(record.id))
        if node.kind in _WITH_AGENT and len(node.parents) > 1:
            agent = nodes[node.parents[1]]
            if agent.label == "session" and not agent.parents:
                nodes[agent.id] = replace(agent, label="system")
    found = _folded(nodes) if fold_appends else list(nodes.values())
    names = labels or {}
    return [replace(node, label=names[node.id]) if node.id in names else node for node in found]


def total_usage(nodes: Iterable[LineageNode]) -> RathLLMTokenUsage | None:
    """The tokens of all completions of these nodes."""
    total: RathLLMTokenUsage | None = None
    for node in nodes:
        total = add_usage(total, node.usage)
    return total


def _records(starts: Iterable[LineageRecord]) -> list[LineageRecord]:
    """Every record that can be reached, each once, parents first."""
    ordered: list[LineageRecord] = []
    seen: set[UUID] = set()
    for start in starts:
        stack = [(start, False)]
        while stack:
            record, parents_done = stack.pop()
            if parents_done:
                ordered.append(record)
            elif record.id not in seen:
                seen.add(record.id)
                stack.append((record, True))
                stack.extend((parent, False) for parent in reversed(record.parents))
    return ordered


def _node(record: LineageRecord, session: _Recorded | None) -> LineageNode:
    rows = None if session is None else session.partial
    return LineageNode(
        id=record.id,
        parents=tuple(dict.fromkeys(record.parent_ids)),
        operator=record.operator,
        kind=record.kind,
        status=record.status if session is None else session.status,
        rows=None if rows is None else len(rows),
        usage=None if record.kind in _WITHOUT_OWN_USAGE else record.usage,
        extras=record.extras,
        label=_label(record, rows),
    )


def _label(record: LineageRecord, rows: _Rows | None) -> str:
    short = _SHORT.get(record.kind)
    if short is not None:
        return short
    if record.operator != "implicit":
        return record.operator
    if rows is not None and len(rows) == 1:
        return str(rows[0].kind.value)
    return "session"


def _folded(nodes: Mapping[UUID, LineageNode]) -> list[LineageNode]:
    has_child = {parent for node in nodes.values() for parent in node.parents}
    # For a folded node: what its children have as parents in its place, and how many appends that skips.
    gone: dict[UUID, tuple[tuple[UUID, ...], int]] = {}
    kept: list[LineageNode] = []
    for node in nodes.values():
        parents: dict[UUID, None] = {}
        folded = 0
        for parent in node.parents:
            instead, skipped = gone.get(parent, ((parent,), 0))
            parents.update(dict.fromkeys(instead))
            folded += skipped
        if node.kind is LineageKind.OP_APPEND and node.parents and node.id in has_child:
            gone[node.id] = (tuple(parents), folded + 1)
        else:
            kept.append(replace(node, parents=tuple(parents), folded=folded))
    return kept
