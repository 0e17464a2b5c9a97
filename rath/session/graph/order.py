"""Nodes from wherever they were found, as one graph: complete, in one order, without cycles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from heapq import heapify, heappop, heappush
from uuid import UUID

from rath.core.redact import redact_text
from rath.session.graph.lineage import LineageNode, fold

__all__ = ["assemble"]

_EARLIEST = datetime.min.replace(tzinfo=UTC)


def assemble(
    found: Mapping[UUID, LineageNode], labels: Mapping[UUID, str] | None = None, *, fold_appends: bool = False
) -> list[LineageNode]:
    """The nodes of a graph: those ``found``, and one with status ``unknown`` for each parent that is not among them.

    Parents stand before children, else what was made earlier, else the smaller id: the same graph in the same order
    wherever its nodes were found. Only a forged log can have a cycle: it is cut above its earliest session.
    """
    nodes = dict(found)
    for node in found.values():
        for parent in node.parents:
            if parent not in nodes:
                nodes[parent] = LineageNode(parent, label="elsewhere")
    ordered = _in_order(list(nodes.values()))
    named = _labelled(fold(ordered) if fold_appends else ordered)
    if labels:
        named = [replace(node, label=redact_text(labels[node.id])) if node.id in labels else node for node in named]
    return named


def _labelled(nodes: list[LineageNode]) -> list[LineageNode]:
    """What has no label gets the word for what it was used as."""
    used_as: dict[UUID, str] = {}
    for node in nodes:
        if "user" in node.roles:
            for parent, role in zip(node.parents, node.roles, strict=True):
                if used_as.get(parent) != "user":
                    used_as[parent] = role
    return [
        node if node.label else replace(node, label="session" if node.parents else used_as.get(node.id, "session"))
        for node in nodes
    ]


def _in_order(nodes: list[LineageNode]) -> list[LineageNode]:
    # Over places, not ids: hashing a UUID takes as long as all the rest.
    place = {node.id: at for at, node in enumerate(nodes)}
    parents = [tuple(map(place.__getitem__, node.parents)) for node in nodes]
    children: list[list[int]] = [[] for _ in nodes]
    for at, above in enumerate(parents):
        for parent in above:
            children[parent].append(at)
    waiting = {at: len(above) for at, above in enumerate(parents) if above}
    ready = [_key(node, at) for at, node in enumerate(nodes) if not node.parents]
    heapify(ready)
    ordered: list[LineageNode] = []
    placed = [False] * len(nodes)
    cut: dict[int, set[UUID]] = {}
    while True:
        while ready:
            at = heappop(ready)[2]
            placed[at] = True
            ordered.append(_without(nodes[at], cut[at]) if at in cut else nodes[at])
            for child in children[at]:
                if child in waiting:
                    waiting[child] -= 1
                    if not waiting[child]:
                        del waiting[child]
                        heappush(ready, _key(nodes[child], child))
        if not waiting:
            return ordered
        first = min(_key(nodes[at], at) for at in _on_cycles(parents, waiting))
        del waiting[first[2]]
        cut[first[2]] = {nodes[parent].id for parent in parents[first[2]] if not placed[parent]}
        ready.append(first)


def _key(node: LineageNode, at: int) -> tuple[datetime, int, int]:
    return node.created_at or _EARLIEST, node.id.int, at


def _on_cycles(parents: list[tuple[int, ...]], waiting: Mapping[int, int]) -> list[int]:
    """Of nodes that wait for each other: those on a cycle, or between two, but not those that only descend from one."""
    needed = dict.fromkeys(waiting, 0)
    for at in waiting:
        for parent in parents[at]:
            if parent in needed:
                needed[parent] += 1
    gone = [at for at, count in needed.items() if not count]
    while gone:
        at = gone.pop()
        del needed[at]
        for parent in parents[at]:
            if parent in needed:
                needed[parent] -= 1
                if not needed[parent]:
                    gone.append(parent)
    return list(needed)


def _without(node: LineageNode, parents: set[UUID]) -> LineageNode:
    kept = [(parent, role) for parent, role in zip(node.parents, node.roles, strict=True) if parent not in parents]
    return replace(node, parents=tuple(parent for parent, _ in kept), roles=tuple(role for _, role in kept))
