"""A lineage graph for a notebook's cell: a drawing whose nodes unfold their transcripts, without scripts or a server.

A node is the label of a hidden radio button, and what stands after a chosen button is shown: HTML and CSS alone, so it
works in a notebook that is not running, and in a page that was made of one.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from uuid import UUID

from rath.core.redact import redact_text
from rath.display.html import badge, cell, transcript_html
from rath.display.style import GRAPH_STYLE
from rath.display.svg import family, lineage_key, lineage_svg, measures, short_id
from rath.display.text import clean, count, cut, money, one_line
from rath.display.tree import lineage_tree
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode, fold
from rath.session.graph.model import SessionGraph

__all__ = ["GRAPH_BYTES", "graph_cell", "graph_html"]

GRAPH_BYTES = 900_000
"""How much a graph's cell holds at most: notebooks keep their output in the file."""
MOST_NODES = 400
"""More are a wall of boxes: then the latest are drawn."""
MOST_TRANSCRIPTS = 60
_TRANSCRIPT_BYTES = (6_000, 60_000)
"""What one transcript may take: as much as there is for each, between these."""
_READING_S = 0.3
"""After so long, no further transcript is read: logs may be slow, and a cell is not."""
# Their first rows are those of their first parent.
_CONTINUES = frozenset({LineageKind.OP_SESSION_LOOP, LineageKind.OP_APPEND, LineageKind.OP_FORK, LineageKind.OP_MERGE})
_EXTRAS, _RELATIVES = 12, 12
_TREE_CHARACTERS = 30_000
_UNTRUSTED = "<p>The drawing and the transcripts show in a trusted notebook (in JupyterLab: the command Trust Notebook).</p>"


_NOT_HERE = (
    '<p class="soft">Its transcript is not in this cell: <code>graph.transcript(id)</code> has it, and '
    "<code>graph.to_html(path)</code> writes a page with all of them.</p>"
)


def graph_html(graph: SessionGraph) -> str:
    """The graph for a notebook's cell. Never waits for a session; at most 1 MB, whatever the graph holds."""
    return graph_cell(graph, name=f"rg{secrets.token_hex(5)}", plain=True)


def graph_cell(
    graph: SessionGraph,
    *,
    name: str,
    max_bytes: int = GRAPH_BYTES,
    most_transcripts: int = MOST_TRANSCRIPTS,
    chosen: UUID | None = None,
    plain: bool = False,
) -> str:
    """The graph's drawing, and below it what is known of each node, folded.

    Args:
        name: what the ids in it begin with; another one for each display of a page.
        max_bytes: how long it becomes, give or take a row.
        most_transcripts: of the latest nodes; the others say where theirs is.
        chosen: the node that is unfolded at first; its transcript comes before others'.
        plain: with a tree of text, to be seen where a front end takes style sheets and drawings away.
    """
    nodes = fold(graph.nodes)
    drawn, svg, picks = _drawing(nodes, name, max_bytes // 2)
    rules = f"<style>{GRAPH_STYLE}{_chosen_rules(picks.values())}</style>"
    key = lineage_key({family(node) for node in drawn}, {role for node in drawn for role in node.roles})
    headline = _text(_headline(graph, nodes))
    head = f'<div class="head"><h3 class="tocSkip">Lineage</h3> <span class="soft">{headline}</span></div>'
    controls = _controls(name, len(drawn)) if drawn else ""
    body = [f'<div class="graph" tabindex="0">{svg}</div>', key, controls]
    words = _in_words(drawn) if plain else ""
    left = max_bytes - sum(len(part.encode()) for part in (rules, head, words, *body))
    panels = _Panels(graph, drawn, picks, name).made(left, most_transcripts, chosen)
    live = "".join([*body, *panels])
    return cell(f'{rules}{head}{words}<div class="rg-live" style="display:none">{live}</div>', " rg")


def _drawing(nodes: Sequence[LineageNode], name: str, max_bytes: int) -> tuple[Sequence[LineageNode], str, dict[UUID, str]]:
    """The nodes that are drawn, the drawing, and each one's id in the page. Fewer, where names are monstrous."""
    most = min(len(nodes), MOST_NODES)
    while True:
        drawn = nodes[len(nodes) - most :]
        picks = {node.id: f"{name}-{at}" for at, node in enumerate(drawn)}
        svg = lineage_svg(nodes, name=name, picks=picks, most=most or 1)
        if most <= 20 or len(svg.encode()) <= max_bytes:
            return drawn, svg, picks
        most //= 2


def _in_words(nodes: Sequence[LineageNode]) -> str:
    """The graph as a tree of text. Front ends sanitise what a notebook of somebody else's holds."""
    return f'<div class="rg-plain">{_UNTRUSTED}<pre>{escape(cut(lineage_tree(nodes), _TREE_CHARACTERS))}</pre></div>'


def _chosen_rules(picks: Iterable[str]) -> str:
    chosen = ",".join(f".rg:has(#{pick}:checked) .{pick}-n .b" for pick in picks)
    return f"{chosen}{{stroke-width:4}}" if chosen else ""


def _controls(name: str, many: int) -> str:
    return (
        f'<input class="rg-pick" type="radio" name="{name}" id="{name}-x" checked aria-label="none">'
        f'<input class="rg-pick rg-all" type="checkbox" id="{name}-all">'
        f'<label class="rg-b" for="{name}-all">{"List the session" if many == 1 else f"List all {many:,} sessions"}</label>'
        '<span class="soft"> or click one in the drawing</span>'
    )


def _headline(graph: SessionGraph, nodes: Sequence[LineageNode]) -> str:
    """How many sessions, in which state; what they used, once."""
    states = Counter(one_line(node.status, 20) for node in graph.nodes)
    parts = [count(len(graph), "session")]
    parts += [f"{many:,} {state}" for state, many in states.most_common(6) if len(states) > 1 or state != "completed"]
    tokens, cost = graph.total("tokens"), graph.total("cost")
    if tokens.value:
        parts.append(f"{tokens.value:,} tokens")
    if cost.value:
        parts.append(money(cost.value) + (f" and {count(cost.unknown, 'session')} of unknown cost" if cost.unknown else ""))
    if len(nodes) > MOST_NODES:
        parts.append(f"the latest {MOST_NODES} drawn; graph.to_html(path) writes a page with all")
    folded = len(graph) - len(nodes)
    if folded:
        parts.append(f"{count(folded, 'append')} folded")
    return " · ".join(parts)


@dataclass(slots=True)
class _Panels:
    graph: SessionGraph
    nodes: Sequence[LineageNode]
    picks: Mapping[UUID, str]
    name: str

    def made(self, max_bytes: int, most: int, chosen: UUID | None) -> Iterator[str]:
        """A panel for each node, parents first; the latest nodes' transcripts in them, as far as ``max_bytes`` reach."""
        children: dict[UUID, list[UUID]] = {}
        for node in self.nodes:
            for parent in node.parents:
                children.setdefault(parent, []).append(node.id)
        latest = sorted(self.nodes[::-1], key=lambda node: node.id != chosen)
        facts: dict[UUID, str] = {}
        left = max_bytes
        for node in latest:
            panel = self._facts(node, children.get(node.id, []), node.id == chosen)
            if left < len(panel.encode()) + 400:
                break
            facts[node.id] = panel
            left -= len(panel.encode()) + 400
        transcripts = self._transcripts([node for node in latest if node.id in facts], left, most)
        for node in self.nodes:
            if node.id in facts:
                yield f"{facts[node.id]}{transcripts.get(node.id, '')}</section>"

    def _transcripts(self, nodes: Sequence[LineageNode], max_bytes: int, most: int) -> dict[UUID, str]:
        known = {node.id: node for node in self.nodes}
        told = [node for node in nodes if node.rows != 0]
        least, longest = _TRANSCRIPT_BYTES
        share = min(longest, max(least, max_bytes // max(1, min(most, len(told)))))
        found: dict[UUID, str] = {}
        until = time.monotonic() + _READING_S
        left = max_bytes
        for node in told:
            if found and (len(found) >= most or left < least or time.monotonic() > until):
                text = _NOT_HERE
            else:
                text = self._transcript(node, known, min(share, left))
            left -= len(text.encode())
            found[node.id] = text
        return found

    def _transcript(self, node: LineageNode, known: Mapping[UUID, LineageNode], max_bytes: int) -> str:
        rows = self.graph.transcript(node.id)
        if rows is None:
            return '<p class="soft">No transcript: its session is gone, and no log of it is known.</p>'
        parent = known.get(node.parents[0]) if node.parents and node.kind in _CONTINUES else None
        before = 0 if parent is None or parent.rows is None else min(parent.rows, len(rows))
        own = len(rows) - before
        if not own and not before:
            return ""
        theirs = f"{count(before, 'row')} of {self._link(node.parents[0])}" if before else ""
        if not own:
            return f'<p class="soft">No rows of its own: {theirs}.</p>'
        what = count(own, "row") + (f" after the {theirs}" if before else "")
        body = transcript_html(rows, start=before, max_bytes=max_bytes)
        return f'<details class="rg-t"><summary>{what}</summary>{body}</details>'

    def _facts(self, node: LineageNode, children: Sequence[UUID], chosen: bool) -> str:
        """The panel of a node, but for its transcript and its end."""
        pick = self.picks[node.id]
        title = _text(one_line(redact_text((node.label or node.operator or "session")[:2000]), 80))
        parts = [
            f'<input class="rg-pick" type="radio" name="{self.name}" id="{pick}" data-session="{node.id}" '
            f'aria-label="{title}"{" checked" if chosen else ""}><section class="session rg-e">'
            f'<div class="head"><h3 class="tocSkip">{title}</h3> '
            f'{badge(node.status)} <code title="{node.id}">{short_id(node.id)}</code> '
            f'<span class="soft">{_text(_sum(node))}</span> <label class="rg-b" for="{self.name}-x">close</label></div>'
        ]
        if node.parents:
            words = {"system": "instructed by", "merge": "merged with"}
            made = [
                f"{words.get(role, 'from')} {self._link(parent)}"
                for parent, role in node.parents_and_roles[:_RELATIVES]
            ]
            parts.append(f"<p>{_text(one_line(node.operator))} {', '.join(made)}{_more(node.parents)}</p>")
        if children:
            made = [self._link(child) for child in children[:_RELATIVES]]
            parts.append(f'<p>continued by {", ".join(made)}{_more(children)}</p>')
        notes = _notes(node)
        if notes:
            parts.append(f'<p class="soft">{_text(notes)}</p>')
        return "".join(parts)

    def _link(self, session_id: UUID) -> str:
        """A session's short id, which chooses it if it is drawn."""
        pick, shown = self.picks.get(session_id), short_id(session_id)
        return f'<label class="rg-b" for="{pick}">{shown}</label>' if pick else f"<code>{shown}</code>"


def _more(relatives: Sequence[UUID]) -> str:
    return f" and {len(relatives) - _RELATIVES:,} more" if len(relatives) > _RELATIVES else ""


def _sum(node: LineageNode) -> str:
    parts = [one_line(redact_text(node.model[:400]))] if node.model else []
    if node.rows is not None:
        parts.append(count(node.rows, "row"))
    if node.usage is not None:
        parts.append(f"{node.usage.total_tokens:,} tokens")
    return " · ".join([*parts, *filter(None, [measures(node)])])


def _notes(node: LineageNode) -> str:
    """When and where it ran, its log, and what else its operator noted."""
    parts = [f"began {node.created_at:%Y-%m-%d %H:%M:%S} UTC"] if node.created_at is not None else []
    named = (("in", node.sandbox), ("from snapshot", node.snapshot), ("log", node.verdict), ("at", node.path))
    parts += [f"{what} {one_line(redact_text(str(value)[:2000]), 160)}" for what, value in named if value]
    if node.folded:
        parts.append(f"after {count(node.folded, 'append')}")
    for key, value in node.extras[:_EXTRAS]:
        parts.append(f"{one_line(redact_text(str(key)[:400]), 40)}: {one_line(redact_text(str(value)[:2000]), 100)}")
    return " · ".join(parts)


def _text(text: str) -> str:
    return escape(clean(text))
