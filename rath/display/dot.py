"""The lineage graph for Graphviz."""

from __future__ import annotations

from collections.abc import Sequence

from rath.display.svg import short_id, summary
from rath.display.text import fit
from rath.session.graph.lineage import LineageNode

__all__ = ["lineage_dot"]

_STYLE = {"failed": ', color="#b00020", penwidth=2', "cancelled": ", style=dashed", "pending": ", style=dotted"}
_EDGE = {"system": " [style=dotted]", "merge": " [style=dashed]"}


def lineage_dot(nodes: Sequence[LineageNode]) -> str:
    """A ``digraph``: one box a session, one arrow a parent; dotted from instructions, dashed from a merge's second side."""
    lines = ["digraph lineage {", "  node [shape=box, fontname=sans];"]
    number = {node.id: index for index, node in enumerate(nodes)}
    for node in nodes:
        # Two lines: `\n` is Graphviz' own, so it is put between texts that are quoted by themselves.
        name = _quoted(fit(node.label or node.operator or "session", 60))
        label = f"{name}\\n{short_id(node.id)} · {_quoted(summary(node))}"
        lines.append(f'  s{number[node.id]} [label="{label}", tooltip="{node.id}"{_STYLE.get(node.status, "")}];')
    for node in nodes:
        lines += [
            f"  s{number[parent]} -> s{number[node.id]}{_EDGE.get(role, '')};"
            for parent, role in node.parents_and_roles
            if parent in number
        ]
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    """Text inside a quoted string: nothing in it ends the string, or is an escape like ``\\N`` or an entity."""
    return text.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
