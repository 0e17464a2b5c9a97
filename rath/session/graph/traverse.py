"""Walks over a lineage graph given as a mapping of ids to whatever has an id and parents. None of them recurses."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

from rath.errors import LineageConsistencyError, UsageTypeError

__all__ = [
    "FrozenLineageView",
    "LineageCarrier",
    "ancestors_bfs",
    "descendants_dfs_preorder",
    "edge_pairs",
    "lineage_view_dataclass",
    "validate_acyclic",
]


@runtime_checkable
class LineageCarrier(Protocol):
    """Anything with an id and the ids of its parents: a session, a log's header, a record."""

    @property
    def id(self) -> UUID: ...
    @property
    def parent_session_ids(self) -> tuple[UUID, ...]: ...


@dataclass(frozen=True, slots=True)
class FrozenLineageView:
    """The lineage of a session, and nothing else of it."""

    session_id: UUID
    parent_session_ids: tuple[UUID, ...]
    lineage_operator: str
    lineage_kind_str: str
    lineage_extras: tuple[tuple[str, object], ...]


def lineage_view_dataclass(carrier: object) -> FrozenLineageView:
    """The lineage of ``carrier``. Raises :class:`UsageTypeError` if it has no id or no parents."""
    if not isinstance(carrier, LineageCarrier):
        raise UsageTypeError(f"{type(carrier).__name__} has no id and parent_session_ids")
    kind: Any = getattr(carrier, "lineage_kind", "")
    return FrozenLineageView(
        session_id=carrier.id,
        parent_session_ids=tuple(carrier.parent_session_ids),
        lineage_operator=str(getattr(carrier, "lineage_operator", "")),
        lineage_kind_str=str(getattr(kind, "value", kind)),
        lineage_extras=tuple((str(k), v) for k, v in getattr(carrier, "lineage_extras", ())),
    )


def ancestors_bfs(by_id: Mapping[UUID, LineageCarrier], start_id: UUID) -> tuple[UUID, ...]:
    """Every ancestor of ``start_id``, nearest first, each once.

    Raises:
        LineageConsistencyError: ``start_id`` or a parent is not in ``by_id``.
    """
    _require(by_id, start_id)
    seen: dict[UUID, None] = {}
    waiting = deque(by_id[start_id].parent_session_ids)
    while waiting:
        parent = waiting.popleft()
        if parent in seen:
            continue
        if parent not in by_id:
            raise LineageConsistencyError(f"session {parent}, an ancestor of {start_id}, is not in the graph")
        seen[parent] = None
        waiting.extend(by_id[parent].parent_session_ids)
    return tuple(seen)


def descendants_dfs_preorder(by_id: Mapping[UUID, LineageCarrier], root_id: UUID) -> tuple[UUID, ...]:
    """Every descendant of ``root_id``, depth first, a parent before its children, each once.

    Raises:
        LineageConsistencyError: ``root_id`` is not in ``by_id``.
    """
    _require(by_id, root_id)
    children: dict[UUID, list[UUID]] = {}
    for session_id, carrier in by_id.items():
        for parent in dict.fromkeys(carrier.parent_session_ids):
            children.setdefault(parent, []).append(session_id)
    seen: dict[UUID, None] = {}
    stack = list(reversed(children.get(root_id, ())))
    while stack:
        current = stack.pop()
        if current not in seen:
            seen[current] = None
            stack.extend(reversed(children.get(current, ())))
    return tuple(seen)


def edge_pairs(by_id: Mapping[UUID, LineageCarrier]) -> Iterator[tuple[UUID, UUID]]:
    """Every edge as ``(parent, child)``, in the order of the mapping and of each one's parents."""
    for session_id, carrier in by_id.items():
        for parent in carrier.parent_session_ids:
            yield parent, session_id


def validate_acyclic(by_id: Mapping[UUID, LineageCarrier]) -> None:
    """Return if every parent is there and nothing is its own ancestor.

    Raises:
        LineageConsistencyError: names a session that breaks this.
    """
    waiting_for: dict[UUID, int] = {}
    children: dict[UUID, list[UUID]] = {}
    for session_id, carrier in by_id.items():
        waiting_for[session_id] = len(carrier.parent_session_ids)
        for parent in carrier.parent_session_ids:
            if parent not in by_id:
                raise LineageConsistencyError(f"session {session_id} has the parent {parent}, which is not in the graph")
            children.setdefault(parent, []).append(session_id)
    ready = [session_id for session_id, count in waiting_for.items() if count == 0]
    done = 0
    while ready:
        done += 1
        for child in children.get(ready.pop(), ()):
            waiting_for[child] -= 1
            if waiting_for[child] == 0:
                ready.append(child)
    if done != len(by_id):
        on_cycle = next(session_id for session_id, count in waiting_for.items() if count)
        raise LineageConsistencyError(f"session {on_cycle} is part of, or descends from, a cycle")


def _require(by_id: Mapping[UUID, LineageCarrier], session_id: UUID) -> None:
    if session_id not in by_id:
        raise LineageConsistencyError(f"session {session_id} is not in the graph")
