"""What the page of a lineage knows of its nodes: facts and places, as columns of plain JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from rath.core.redact import redact_text
from rath.display.layout import layered
from rath.display.packed import BESIDE, BUS, packed
from rath.display.text import one_line
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode

__all__ = ["Edges", "edges_of", "node_columns"]

Edges = Iterable[tuple[UUID, UUID, str]]

WIDE, HIGH, SIDE = 184, 50, 116
_GAP, _ROW = 24, 92
# Layers read best while they fit a window or two.
_MAX_LAYERED, _MAX_LAYERED_WIDTH = 400, 3600
_INSTRUCTED = frozenset({LineageKind.OP_SESSION_LOOP, LineageKind.OP_SESSION_COMPRESS})
_LABEL, _FACT, _EXTRAS = 120, 300, 12
# How an edge runs, beside the styles of `packed`: anywhere, and through given points.
_LOOSE, _ROUTED = 4, 5
# Stands for the session's id in a path, so that ten thousand paths are one string; no shown text has it.
_ID_MARK = "\x00"


def edges_of(nodes: Iterable[LineageNode]) -> list[tuple[UUID, UUID, str]]:
    """The edges that the nodes tell of, with the parents' roles; where none are recorded, by the node's kind."""
    found = []
    for node in nodes:
        for place, parent in enumerate(node.parents):
            if place < len(node.roles):
                role = node.roles[place]
            elif place and node.kind in _INSTRUCTED:
                role = "system"
            elif place and node.kind is LineageKind.OP_MERGE:
                role = "merge"
            else:
                role = "parent"
            found.append((parent, node.id, role))
    return found


class _Pool:
    """Strings by number, each once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str | None, limit: int = _FACT) -> int:
        if text is None:
            return -1
        shown = one_line(redact_text(text), limit)
        return self.numbers.setdefault(shown, len(self.numbers))

    def path(self, node: LineageNode) -> int:
        if node.path is None:
            return -1
        head, found, tail = str(node.path).rpartition(str(node.id))
        if not found:
            return self(tail)
        shown = one_line(redact_text(head), _FACT) + _ID_MARK + one_line(redact_text(tail), 40)
        return self.numbers.setdefault(shown, len(self.numbers))


def node_columns(nodes: Sequence[LineageNode], edges: Edges, *, extras: bool = True) -> dict[str, Any]:
    """The columns of ``nodes`` and their edges (those whose ends are both there); texts are made visible and cut.

    Args:
        extras: whether to tell what operators recorded beside the usual.
    """
    number = {node.id: index for index, node in enumerate(nodes)}
    known = [(number[p], number[c], role) for p, c, role in edges if p in number and c in number and p != c]
    pool = _Pool()
    roles = _Pool()
    columns: dict[str, Any] = {
        "id": [node.id.hex for node in nodes],
        "label": [pool(node.label or node.operator or "session", _LABEL) for node in nodes],
        "operator": [pool(node.operator) for node in nodes],
        "kind": [pool(node.kind.value) for node in nodes],
        "status": [pool(node.status, 40) for node in nodes],
        "rows": [node.rows for node in nodes],
        "tokens": [None if node.usage is None else node.usage.total_tokens for node in nodes],
        "input": [None if node.usage is None else node.usage.prompt_tokens for node in nodes],
        "cost": [_rounded(node.cost_usd, 9) for node in nodes],
        "duration": [_rounded(node.duration_s, 6) for node in nodes],
        "created": [None if node.created_at is None else round(node.created_at.timestamp(), 3) for node in nodes],
        "model": [pool(node.model) for node in nodes],
        "verdict": [pool(node.verdict) for node in nodes],
        "sandbox": [pool(node.sandbox) for node in nodes],
        "snapshot": [pool(node.snapshot) for node in nodes],
        "path": [pool.path(node) for node in nodes],
        "digest": {str(at): one_line(node.digest, 64) for at, node in enumerate(nodes) if node.digest is not None},
        "folded": {str(at): node.folded for at, node in enumerate(nodes) if node.folded},
        "extras": _extras(nodes) if extras else {},
    }
    edge_columns = {
        "from": [parent for parent, _child, _role in known],
        "to": [child for _parent, child, _role in known],
        "role": [roles(role, 40) for _parent, _child, role in known],
        "roles": list(roles.numbers),
    }
    places = _places(len(nodes), known)
    edge_columns |= {"style": places.pop("style"), "via": places.pop("via")}
    return {"strings": list(pool.numbers), "nodes": columns, "edges": edge_columns, "places": places}


def _extras(nodes: Sequence[LineageNode]) -> dict[str, list[list[str]]]:
    def shown(value: Any, limit: int) -> str:
        return one_line(redact_text(str(value)), limit)

    return {
        str(at): [[shown(key, 60), shown(value, 200)] for key, value in node.extras[:_EXTRAS]]
        for at, node in enumerate(nodes)
        if node.extras
    }


def _rounded(value: float | None, digits: int) -> float | None:
    # NaN and infinity are no JSON, and no measurements.
    return None if value is None or value != value or abs(value) == float("inf") else round(value, digits)


def _places(count: int, edges: Sequence[tuple[int, int, str]]) -> dict[str, Any]:
    parents: dict[int, list[int]] = {node: [] for node in range(count)}
    for parent, child, _role in edges:
        if parent < child:
            parents[child].append(parent)
    sizes = {"wide": WIDE, "high": HIGH, "side": SIDE}
    if 0 < count <= _MAX_LAYERED and len(edges) <= 4 * _MAX_LAYERED:
        layout = layered(parents, dict.fromkeys(parents, float(WIDE)), gap=_GAP)
        if layout.width <= _MAX_LAYERED_WIDTH:
            down = [layout.at[node][1] * _ROW + HIGH // 2 for node in range(count)]
            routes = [layout.routes.get((parent, child)) for parent, child, _role in edges]
            return {
                **sizes,
                "x": [round(layout.at[node][0]) for node in range(count)],
                "y": down,
                "beside": [],
                "style": [_LOOSE if route is None else _ROUTED for route in routes],
                "via": _via({at: [(x, y * _ROW + HIGH // 2) for x, y in route] for at, route in enumerate(routes) if route}),
            }
    found = packed([parents[node] for node in range(count)], wide=WIDE, high=HIGH, side=SIDE, gap=_GAP, row=_ROW)
    style, trunks = [], {}
    for at, (parent, child, _role) in enumerate(edges):
        if found.stem[child] == parent and found.style[child] != BESIDE:
            style.append(found.style[child])
            if found.style[child] == BUS:
                trunks[str(at)] = [round(found.trunk[child])]
        elif found.style[parent] == BESIDE and found.stem[parent] == child:
            style.append(BESIDE)
        else:
            style.append(_LOOSE)
    return {
        **sizes,
        "x": [round(x) for x in found.x],
        "y": [round(y) for y in found.y],
        "beside": [node for node, how in enumerate(found.style) if how == BESIDE],
        "style": style,
        "via": trunks,
    }


def _via(routes: Mapping[int, Sequence[tuple[float, int]]]) -> dict[str, list[int]]:
    return {str(at): [round(part) for point in route for part in point] for at, route in routes.items()}
