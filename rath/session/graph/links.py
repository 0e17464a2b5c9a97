"""The edges of a graph by the places of its nodes: what questions walk over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast
from uuid import UUID

from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode

__all__ = ["CONTINUES", "SYSTEM", "Links"]

SYSTEM = "system"
CONTINUES = frozenset({LineageKind.OP_SESSION_LOOP, LineageKind.OP_APPEND, LineageKind.OP_FORK, LineageKind.OP_MERGE})
"""Kinds whose rows begin with all rows of their first parent."""


@dataclass(frozen=True, slots=True)
class Links:
    """Places of nodes, by place.

    Attributes:
        parents, children: of each node, those that are in the graph; parents in their order, children in the graph's.
        continued: the parents but for those that only instruct.
        row_parent: whose rows a node's begin with.
    """

    index: dict[UUID, int]
    parents: list[tuple[int, ...]]
    children: list[tuple[int, ...]]
    continued: list[tuple[int, ...]]
    row_parent: list[int | None]

    @classmethod
    def of(cls, nodes: Sequence[LineageNode]) -> Links:
        """The links of nodes in which parents stand before children."""
        index = {node.id: at for at, node in enumerate(nodes)}
        parents: list[tuple[int, ...]] = []
        continued: list[tuple[int, ...]] = []
        row_parent: list[int | None] = []
        below: list[list[int]] = [[] for _ in nodes]
        for at, node in enumerate(nodes):
            # Hashing an id costs as much as the rest of this loop: each is looked up once.
            found = tuple(map(index.get, node.parents))
            here = tuple(parent for parent in found if parent is not None) if None in found else cast(tuple[int, ...], found)
            parents.append(here)
            for parent in here:
                below[parent].append(at)
            if SYSTEM in node.roles:
                pairs = zip(found, node.roles, strict=True)
                continued.append(tuple(parent for parent, role in pairs if role != SYSTEM and parent is not None))
            else:
                continued.append(here)
            row_parent.append(found[0] if found and node.kind in CONTINUES else None)
        return cls(index, parents, [tuple(children) for children in below], continued, row_parent)
