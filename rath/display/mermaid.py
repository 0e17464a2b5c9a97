"""The lineage graph as Mermaid text, for Markdown pages that draw it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rath.display.svg import short_id, summary
from rath.display.text import fit
from rath.session.graph.lineage import LineageNode

__all__ = ["lineage_mermaid"]

_ARROWS = {"system": "-.->"}
# Mermaid obeys these though they are entities: a newline, a formula, an icon. A mark that nobody sees keeps them apart.
_OBEYED = re.compile(r"\\(?=n)|\$(?=\$)|:(?=fa-)")


def lineage_mermaid(nodes: Sequence[LineageNode]) -> str:
    """A ``flowchart TD``: one node a session, one arrow a parent, dotted from instructions."""
    number = {node.id: index for index, node in enumerate(nodes)}
    lines = ["flowchart TD"]
    for node in nodes:
        label = _entity(fit(node.label or node.operator or "session", 40))
        lines.append(f'  s{number[node.id]}["{label}<br/>{short_id(node.id)} · {_entity(summary(node))}"]')
    for node in nodes:
        lines += [
            f"  s{number[parent]} {_ARROWS.get(role, '-->')} s{number[node.id]}"
            for parent, role in node.parents_and_roles
            if parent in number
        ]
    return "\n".join(lines) + "\n"


def _entity(text: str) -> str:
    """Everything that could end a label or be markup, as a numeric entity in Mermaid's spelling."""
    apart = _OBEYED.sub("\\g<0>\u2060", text)
    return "".join(c if c.isalnum() or c in " ._-·:,/" else f"#{ord(c)};" for c in apart)
