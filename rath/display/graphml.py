"""The lineage graph as GraphML, which Gephi, yEd and networkx read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from rath.display.text import clean
from rath.session.graph.lineage import LineageNode
from rath.session.graph.tables import node_columns

__all__ = ["lineage_graphml"]

_NAMESPACE = "http://graphml.graphdrawing.org/xmlns"
_TYPES = {
    **dict.fromkeys(("operator", "kind", "label", "status", "model", "created_at"), "string"),
    **dict.fromkeys(("verdict", "path", "sandbox", "snapshot", "digest"), "string"),
    **dict.fromkeys(("rows", "folded", "prompt_tokens", "completion_tokens", "total_tokens"), "long"),
    **dict.fromkeys(("cost_usd", "duration_s"), "double"),
}


def lineage_graphml(nodes: Sequence[LineageNode]) -> str:
    """A GraphML document: ids as node ids, the columns of the table of sessions as data; edges with their ``role``.

    What is unknown has no data element. XML has no form for most control characters: they are made visible.
    """
    root = ElementTree.Element("graphml", xmlns=_NAMESPACE)
    for name, kind in _TYPES.items():
        ElementTree.SubElement(root, "key", {"id": name, "for": "node", "attr.name": name, "attr.type": kind})
    ElementTree.SubElement(root, "key", {"id": "role", "for": "edge", "attr.name": "role", "attr.type": "string"})
    graph = ElementTree.SubElement(root, "graph", edgedefault="directed", id="lineage")
    known = {node.id for node in nodes}
    for node in nodes:
        element = ElementTree.SubElement(graph, "node", id=str(node.id))
        _data(element, node_columns(node))
    for node in nodes:
        for parent, role in node.parents_and_roles:
            if parent in known:
                edge = ElementTree.SubElement(graph, "edge", source=str(parent), target=str(node.id))
                _data(edge, {"role": role}, ("role",))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _data(element: ElementTree.Element, values: Mapping[str, Any], names: Sequence[str] = tuple(_TYPES)) -> None:
    for name in names:
        value = values.get(name)
        if value is not None:
            text = value.isoformat() if hasattr(value, "isoformat") else str(value)
            ElementTree.SubElement(element, "data", key=name).text = clean(text)
