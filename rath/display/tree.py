"""The lineage as text: a tree for the terminal, in which what has several parents stands once."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from rath.display.svg import short_id, summary
from rath.display.text import duration, fit
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode

__all__ = ["STATUS_OF_MARK", "lineage_tree"]

_MARKS = {"completed": "✓", "failed": "✗", "cancelled": "–", "running": "▸", "pending": "○", "unknown": "?"}
STATUS_OF_MARK = {mark: status for status, mark in _MARKS.items()}
_INSTRUCTED = frozenset({LineageKind.OP_SESSION_LOOP, LineageKind.OP_SESSION_COMPRESS})
_LABEL_COLUMNS = 40


def lineage_tree(nodes: Sequence[LineageNode]) -> str:
    """One line a session: mark, short id, label, status; a line that continues the one above begins with ``↓``.

    A session with several parents stands under the first; the others' lines end in a reference to it. The sessions that
    only instruct agents are left out.

    Args:
        nodes: of :func:`rath.session.graph.lineage.collect`.
    """
    return "".join(line + "\n" for line in _Tree(nodes).lines())


class _Tree:
    def __init__(self, nodes: Sequence[LineageNode]) -> None:
        self._nodes = {node.id: node for node in nodes}
        self._children: dict[UUID, list[UUID]] = {node.id: [] for node in nodes}
        self._instructing: set[UUID] = set()
        for node in nodes:
            for place, parent in enumerate(node.parents):
                if parent not in self._nodes:
                    continue
                if place and node.kind in _INSTRUCTED and not self._nodes[parent].parents:
                    self._instructing.add(parent)
                else:
                    self._children[parent].append(node.id)
        self._instructing -= {parent for parent, children in self._children.items() if children}

    def lines(self) -> list[str]:
        roots = [
            node.id
            for node in self._nodes.values()
            if node.id not in self._instructing and not any(p in self._nodes for p in node.parents)
        ]
        out: list[str] = []
        stack: list[tuple[UUID, UUID | None, str, str]] = [(root, None, "", "") for root in reversed(roots)]
        while stack:
            session_id, parent, indent, connector = stack.pop()
            node = self._nodes[session_id]
            if parent is not None and self._first_parent(node) != parent:
                out.append(f"{indent}{connector}→ {short_id(session_id)} {self._label(node)}")
                continue
            out.append(f"{indent}{connector}{self._line(node)}")
            children = self._children[session_id]
            below = indent + {"├─ ": "│  ", "└─ ": "   "}.get(connector, "")
            # A single child stands right below, not one step in: a chain of a thousand has one indent.
            if len(children) == 1:
                stack.append((children[0], session_id, below, "↓ "))
                continue
            for place, child in enumerate(reversed(children)):
                stack.append((child, session_id, below, "├─ " if place else "└─ "))
        return out

    def _first_parent(self, node: LineageNode) -> UUID | None:
        return next((parent for parent in node.parents if parent in self._nodes), None)

    def _line(self, node: LineageNode) -> str:
        text = f"{_MARKS.get(node.status, '?')} {short_id(node.id)} {self._label(node)}  {_details(node)}"
        if len(node.parents) > 1 and node.kind not in _INSTRUCTED:
            text += f"  (joins {', '.join(short_id(parent) for parent in node.parents)})"
        return text

    def _label(self, node: LineageNode) -> str:
        return fit(node.label or node.operator or "session", _LABEL_COLUMNS)


def _details(node: LineageNode) -> str:
    """Status, rows, tokens; what it cost and how long it took, where that is known."""
    parts = [summary(node)]
    if node.cost_usd is not None:
        parts.append(f"${node.cost_usd:,.4f}")
    if node.duration_s is not None:
        parts.append(duration(node.duration_s))
    return " · ".join(parts)
