"""The lineage graph as a static SVG: readable without colour, in light and in dark, without scripts or references."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from uuid import UUID

from rath.display.layout import Layout, layered
from rath.display.style import DRAWING_STYLE
from rath.display.text import clean, count, fit, one_line
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode

__all__ = ["lineage_svg", "short_id", "summary"]

_WIDE, _NARROW, _HIGH = 192, 124, 50
_GAP, _ROW = 24, _HIGH + 44
_MARGIN = 16
# Where a graph is too wide for its page it shrinks, but not below this, or nobody could read it: then it scrolls.
_LEAST_SCALE = 0.72
_MAX_NODES = 5000
_INSTRUCTED = frozenset({LineageKind.OP_SESSION_LOOP, LineageKind.OP_SESSION_COMPRESS})
_FAMILY = {
    LineageKind.OP_SESSION_LOOP: "loop",
    LineageKind.OP_SESSION_COMPRESS: "loop",
    LineageKind.OP_FORK: "fork",
    LineageKind.OP_DETACH: "fork",
    LineageKind.OP_MERGE: "merge",
    LineageKind.OP_CUSTOM: "custom",
}
# One drawing a status, in a box of 16 by 16: told apart by shape, not by colour alone.
_ICONS = {
    "completed": '<circle class="i" cx="8" cy="8" r="7"/><path class="g" d="M4.5 8.3 7 10.8 11.6 5.6"/>',
    "failed": '<path class="i" d="M5 1h6l4 4v6l-4 4H5l-4-4V5z"/><path class="g" d="M5.3 5.3l5.4 5.4M10.7 5.3l-5.4 5.4"/>',
    "cancelled": '<rect class="i" x="1.5" y="1.5" width="13" height="13" rx="2"/><path class="g" d="M4.5 8h7"/>',
    "running": '<path class="i" d="M3 1.5v13L14.5 8z"/>',
    "pending": '<circle class="o" cx="8" cy="8" r="6.3" stroke-dasharray="3 2.2"/>',
    "unknown": '<path class="o" d="M8 1.2 14.8 8 8 14.8 1.2 8z"/>',
}


def lineage_svg(nodes: Sequence[LineageNode], *, marked: Iterable[UUID] = ()) -> str:
    """A lineage graph, top to bottom, as one ``<svg>`` element that stands alone or in a page.

    Solid edges are what a session continues; dashed ones the instructions of the agent that did. A tooltip has the whole
    of what a box sums up.

    Args:
        nodes: of :func:`rath.session.graph.lineage.collect`; beyond 5,000 the last 5,000 are drawn, and it says so.
        marked: ids of nodes to draw with a thick border.
    """
    shown = list(nodes)[-_MAX_NODES:]
    if not shown:
        return _document([], 220, 40, "An empty lineage", '<text class="s" x="16" y="25">no sessions</text>')
    layout = layered({node.id: node.parents for node in shown}, {node.id: _wide(node) for node in shown}, gap=_GAP)
    width = layout.width + 2 * _MARGIN
    height = (layout.layers - 1) * _ROW + _HIGH + 2 * _MARGIN
    note = ""
    if len(shown) < len(nodes):
        note = f'<text class="s" x="{_MARGIN}" y="12">{len(nodes) - len(shown):,} earlier sessions are not drawn</text>'
    by_id = {node.id: node for node in shown}
    parts = [_edge(by_id[parent], by_id[child], layout) for parent, child in layout.routes]
    thick = set(marked)
    parts += [_box(node, layout.at[node.id], node.id in thick) for node in shown]
    return _document(parts, width, height, f"Lineage of {count(len(nodes), 'session')}", note)


def short_id(session_id: UUID) -> str:
    """The first eight characters of an id: enough to tell sessions apart, and `rath sessions show` takes them."""
    return session_id.hex[:8]


def summary(node: LineageNode) -> str:
    """Status, rows and tokens of a node, in a few words."""
    parts = [one_line(node.status, 20)]
    if node.rows is not None:
        parts.append(count(node.rows, "row"))
    if node.usage is not None:
        parts.append(f"{node.usage.total_tokens:,} tok")
    return " · ".join(parts)


def _document(parts: list[str], width: float, height: float, title: str, note: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="rl" role="img" width="{width:.0f}" height="{height:.0f}" '
        f'style="min-width:{_LEAST_SCALE * width:.0f}px" viewBox="0 0 {width:.0f} {height:.0f}">'
        f"<title>{escape(title)}</title><style>{DRAWING_STYLE}</style>"
        '<defs><marker id="rl-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path class="h" d="M0 .8 7.4 4 0 7.2z"/></marker></defs>{note}{"".join(parts)}</svg>'
    )


def _wide(node: LineageNode) -> int:
    return _WIDE if node.kind in _FAMILY else _NARROW


def _box(node: LineageNode, at: tuple[float, int], marked: bool) -> str:
    wide = _wide(node)
    x, y = at[0] + _MARGIN - wide / 2, at[1] * _ROW + _MARGIN
    status = node.status if node.status in _ICONS else "unknown"
    classes = f"{_FAMILY.get(node.kind, 'leaf')} {status}{' marked' if marked else ''}"
    round_ = 9 if node.kind in _FAMILY else _HIGH / 2
    return (
        f'<g class="{classes}" transform="translate({x:.1f} {y:.1f})"><title>{escape(_tooltip(node))}</title>'
        f'<rect class="b" width="{wide}" height="{_HIGH}" rx="{round_:g}"/>'
        f'<g transform="translate(13 17)">{_ICONS[status]}</g>'
        f'<text x="38" y="22">{escape(fit(node.label or node.operator or "session", wide // 11))}</text>'
        f'<text class="s" x="38" y="38">{escape(fit(_second_line(node), wide * 2 // 15))}</text></g>'
    )


def _second_line(node: LineageNode) -> str:
    text = summary(node)
    # A plain result needs no word beside its tick; anything else does.
    return text.removeprefix("completed · ") if node.status == "completed" else text


def _tooltip(node: LineageNode) -> str:
    lines = [f"{clean(node.label)} · session {node.id}", f"{clean(node.operator)} ({node.kind.value}), {summary(node)}"]
    if node.folded:
        lines.append(f"after {count(node.folded, 'append')}")
    lines += [f"{one_line(str(key))}: {one_line(str(value), 200)}" for key, value in node.extras[:12]]
    return "\n".join(lines)


def _edge(parent: LineageNode, child: LineageNode, layout: Layout[UUID]) -> str:
    (x0, row0), (x1, row1) = layout.at[parent.id], layout.at[child.id]
    points = [(x0 + _MARGIN, row0 * _ROW + _MARGIN + _HIGH)]
    # A long edge passes its layers upright, so that it does not cut a corner through a box.
    for x, row in layout.routes[parent.id, child.id]:
        points += [(x + _MARGIN, row * _ROW + _MARGIN), (x + _MARGIN, row * _ROW + _MARGIN + _HIGH)]
    points.append((x1 + _MARGIN, row1 * _ROW + _MARGIN - 1))
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for index, ((ax, ay), (bx, by)) in enumerate(pairwise(points)):
        if index % 2:
            path += f"V{by:.1f}"
        else:
            half = (ay + by) / 2
            path += f"C{ax:.1f} {half:.1f} {bx:.1f} {half:.1f} {bx:.1f} {by:.1f}"
    kind = "e a" if _instructs(parent.id, child) else "e"
    return f'<path class="{kind}" d="{path}" marker-end="url(#rl-tip)"/>'


def _instructs(parent: UUID, child: LineageNode) -> bool:
    return child.kind in _INSTRUCTED and len(child.parents) > 1 and child.parents[-1] == parent
