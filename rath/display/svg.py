"""The lineage graph as a static SVG: readable without colour, in light and in dark, without scripts or references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from uuid import UUID

from rath.core.redact import redact_text
from rath.display.layout import Layout, layered
from rath.display.style import DRAWING_STYLE
from rath.display.text import count, duration, fit, money, one_line
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode

__all__ = ["lineage_key", "lineage_svg", "measures", "short_id", "summary"]

_WIDE, _NARROW, _HIGH, _LINE = 216, 140, 50, 15
_GAP, _APART = 24, 40
_MARGIN = 16
_COLUMNS = 6
# Where a graph is too wide for its page it shrinks, but not below this, or nobody could read it: then it scrolls.
_LEAST_SCALE = 0.85
_MAX_NODES = 5000
_MAX_TOOLTIP = 1500
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
# One sign a family of operators, in a box of 12 by 12: a turn, a branch, a join, a hand's own work.
_SIGNS = {
    "loop": "M10.5 6A4.5 4.5 0 1 1 8.6 2.3M8.8 .2v2.4H6.4",
    "fork": "M6 11.5V7.5M6 7.5 2 2.5M6 7.5l4-5M1.8 5.2V2.3h2.9M10.2 5.2V2.3H7.3",
    "merge": "M2 .5 6 5 10 .5M6 5v6.5M3.6 9.2 6 11.5l2.4-2.3",
    "custom": "M6 .8 11.2 6 6 11.2 .8 6z",
}
# What a parent was for its child: a class of edges.
_EDGES = {"system": " sys", "merge": " mrg"}


def lineage_svg(
    nodes: Sequence[LineageNode],
    *,
    marked: Iterable[UUID] = (),
    name: str = "rl",
    picks: Mapping[UUID, str] | None = None,
    most: int = _MAX_NODES,
) -> str:
    """A lineage graph, top to bottom, as one ``<svg>`` element that stands alone or in a page.

    Solid edges are what a session continues; dotted ones the instructions of the agent that did; dashed ones what a merge
    added. A tooltip has more than a box. No more than six boxes stand side by side, where the graph allows it.

    Args:
        nodes: parents before children; beyond ``most`` the last are drawn, and it says so.
        marked: ids of nodes to draw with a thick border.
        name: what ids in it begin with: another one for each drawing of a page.
        picks: ids of the page's inputs that a click on a node chooses.
    """
    shown = list(nodes)[-most:]
    if not shown:
        return _document(name, [], 220, 40, "An empty lineage", '<text class="s" x="16" y="25">no sessions</text>')
    layout = layered(
        {node.id: node.parents for node in shown}, {node.id: _wide(node) for node in shown}, gap=_GAP, columns=_COLUMNS
    )
    lines = 2 if any(_third_line(node) for node in shown) else 1
    high = _HIGH + _LINE * (lines - 1)
    left_out = len(nodes) - len(shown)
    top = _MARGIN + (18 if left_out else 0)
    drawing = _Drawing(layout, name, high, top, picks or {})
    width = layout.width + 2 * _MARGIN
    height = (layout.layers - 1) * (high + _APART) + high + top + _MARGIN
    note = ""
    if left_out:
        note = f'<text class="s" x="{_MARGIN}" y="15">{left_out:,} earlier sessions are not drawn</text>'
    thick = set(marked)
    parts = [*drawing.edges(shown), *(drawing.box(node, node.id in thick) for node in shown)]
    return _document(name, parts, width, height, f"Lineage of {count(len(nodes), 'session')}", note)


def lineage_key(families: Iterable[str], roles: Iterable[str]) -> str:
    """What the signs and lines of a drawing mean: those of ``families`` and ``roles`` that need words."""
    names = {"loop": "loop or compress", "fork": "fork or detach", "merge": "merge", "custom": "your operator"}
    lines = {"parent": "continues", "system": "instructed by", "merge": "merged in"}
    parts = [
        f'<span><svg class="rl" width="13" height="13" viewBox="-.5 -.5 13 13"><g class="{family}">'
        f'<path class="k" d="{_SIGNS[family]}"/></g></svg>{names[family]}</span>'
        for family in names
        if family in families
    ]
    parts += [
        f'<span><svg class="rl" width="30" height="6" viewBox="0 0 30 6"><path class="e{_EDGES.get(role, "")}" d="M1 3H29"/>'
        f"</svg>{lines[role]}</span>"
        for role in lines
        if role in roles
    ]
    return f'<div class="rg-key soft">{"".join(parts)}</div>' if parts else ""


def family(node: LineageNode) -> str:
    """The family of a node's operator: ``loop fork merge custom``, or ``leaf``."""
    return _FAMILY.get(node.kind, "leaf")


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


def measures(node: LineageNode) -> str:
    """What a node cost and how long it took, where that is known."""
    parts = [] if node.cost_usd is None else [money(node.cost_usd)]
    if node.duration_s is not None:
        parts.append(duration(node.duration_s))
    return " · ".join(parts)


class _Drawing:
    def __init__(self, layout: Layout[UUID], name: str, high: int, top: int, picks: Mapping[UUID, str]) -> None:
        self._layout = layout
        self._name = name
        self._high = high
        self._top = top
        self._picks = picks

    def box(self, node: LineageNode, marked: bool) -> str:
        wide, high = _wide(node), self._high
        x = self._layout.at[node.id][0] + _MARGIN - wide / 2
        y = self._y(self._layout.at[node.id][1])
        status = node.status if node.status in _ICONS else "unknown"
        kind = family(node)
        pick = self._picks.get(node.id)
        classes = f"{kind} {status}{' marked' if marked else ''}{f' {pick}-n' if pick else ''}"
        sign = f'<path class="k" transform="translate({wide - 21} 8)" d="{_SIGNS[kind]}"/>' if kind in _SIGNS else ""
        small = [line for line in (_second_line(node), _third_line(node)) if line]
        first = 22 + (high - _HIGH - _LINE * (len(small) - 1)) // 2  # the lines stand in the middle of the box
        lines = [
            f'<text class="s" x="38" y="{first + 1 + _LINE * number}">{escape(fit(line, _room(wide)))}</text>'
            for number, line in enumerate(small, 1)
        ]
        label = ""
        if pick:
            label = (
                f'<foreignObject width="{wide}" height="{high}"><label xmlns="http://www.w3.org/1999/xhtml" '
                f'for="{pick}"></label></foreignObject>'
            )
        return (
            f'<g class="{classes}" transform="translate({x:.0f} {y:.0f})"><title>{escape(_tooltip(node))}</title>'
            f'<rect class="b" width="{wide}" height="{high}" rx="{9 if kind != "leaf" else 25}"/>'
            f'<g transform="translate(13 {(high - 16) // 2})">{_ICONS[status]}</g>{sign}'
            f'<text x="38" y="{first}">{escape(fit(_named(node), wide // 11))}</text>{"".join(lines)}{label}</g>'
        )

    def edges(self, nodes: Sequence[LineageNode]) -> list[str]:
        """The lines, each part once: long edges of one parent go the same way."""
        parts: dict[str, None] = {}
        for node in nodes:
            for parent, role in node.parents_and_roles:
                kind = _EDGES.get(role, "")
                if (parent, node.id) in self._layout.routes:
                    *ways, last = self._parts(parent, node.id)
                    parts.update((f'<path class="e{kind}" d="{way}"/>', None) for way in ways)
                else:  # from a session that is not drawn
                    x, row = self._layout.at[node.id]
                    y = self._y(row) - 1
                    last = f"M{x + _MARGIN:.0f} {y - 13:.0f}V{y:.0f}"
                parts[f'<path class="e{kind}" d="{last}" marker-end="url(#{self._name}-tip)"/>'] = None
        return list(parts)

    def _parts(self, parent: UUID, child: UUID) -> list[str]:
        (x0, row0), (x1, row1) = self._layout.at[parent], self._layout.at[child]
        points = [(x0 + _MARGIN, self._y(row0) + self._high)]
        # A long edge passes its layers upright, so that it does not cut a corner through a box.
        for x, row in self._layout.routes[parent, child]:
            points += [(x + _MARGIN, self._y(row)), (x + _MARGIN, self._y(row) + self._high)]
        points.append((x1 + _MARGIN, self._y(row1) - 1))
        parts: list[str] = []
        for index, ((ax, ay), (bx, by)) in enumerate(pairwise(points)):
            if index % 2:
                # Upright parts are one with the bend above them.
                parts[-1] += f"V{by:.0f}"
            else:
                half = (ay + by) / 2
                parts.append(f"M{ax:.0f} {ay:.0f}C{ax:.0f} {half:.0f} {bx:.0f} {half:.0f} {bx:.0f} {by:.0f}")
        return parts

    def _y(self, row: int) -> float:
        return row * (self._high + _APART) + self._top


def _document(name: str, parts: list[str], width: float, height: float, title: str, note: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="rl" role="img" width="{width:.0f}" height="{height:.0f}" '
        f'style="min-width:{_LEAST_SCALE * width:.0f}px" viewBox="0 0 {width:.0f} {height:.0f}">'
        f"<title>{escape(title)}</title><style>{DRAWING_STYLE}</style>"
        f'<defs><marker id="{name}-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto" markerUnits="userSpaceOnUse"><path class="h" d="M0 .8 7.4 4 0 7.2z"/></marker></defs>'
        f'{note}{"".join(parts)}</svg>'
    )


def _wide(node: LineageNode) -> int:
    return _WIDE if node.kind in _FAMILY else _NARROW


def _room(wide: int) -> int:
    """How many small characters a box holds, in the widest of the fonts (6.2 px each)."""
    return int((wide - 40) / 6.2)


def _named(node: LineageNode) -> str:
    return node.label or node.operator or "session"


def _second_line(node: LineageNode) -> str:
    # A plain result needs no word beside its tick; anything else does.
    parts = [] if node.status == "completed" else [one_line(node.status, 20)]
    if node.rows is not None:
        parts.append(count(node.rows, "row"))
    return " · ".join(parts)


def _third_line(node: LineageNode) -> str:
    parts = [f"{_brief(node.usage.total_tokens)} tok"] if node.usage is not None else []
    if node.cost_usd is not None:
        parts.append(money(node.cost_usd))
    if node.duration_s is not None:
        parts.append(duration(node.duration_s) if node.duration_s < 60 else f"{node.duration_s / 60:,.0f} min")
    return " · ".join(parts)


def _brief(number: int) -> str:
    """``950``, ``9,500``, ``12.3k``, ``4.5M``."""
    if abs(number) < 10_000:
        return f"{number:,}"
    return f"{number / 1e3:.1f}k" if abs(number) < 1_000_000 else f"{number / 1e6:,.1f}M"


def _tooltip(node: LineageNode) -> str:
    lines = [
        f"{one_line(_named(node), 200)} · session {node.id}",
        f"{one_line(node.operator)} ({node.kind.value}), {summary(node)}",
    ]
    more = [one_line(node.model)] if node.model else []
    more += [text for text in (measures(node),) if text]
    if more:
        lines.append(" · ".join(more))
    if node.folded:
        lines.append(f"after {count(node.folded, 'append')}")
    for key, value in node.extras[:12]:
        if sum(map(len, lines)) > _MAX_TOOLTIP:
            break
        lines.append(f"{one_line(redact_text(str(key)[:400]), 60)}: {one_line(redact_text(str(value)[:2000]), 120)}")
    return "\n".join(lines)[:_MAX_TOOLTIP]
