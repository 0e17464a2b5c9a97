"""The graph as networkx has it. The one module that loads networkx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import networkx

from rath.session.graph.tables import node_columns

if TYPE_CHECKING:
    from rath.session.graph.model import SessionGraph

__all__ = ["digraph"]


def digraph(graph: SessionGraph) -> Any:
    """A frozen ``DiGraph``: ids as nodes with the columns of their table (but ``id``) as attributes, edges with ``role``."""
    view = networkx.DiGraph()
    for node in graph.nodes:
        columns = node_columns(node)
        del columns["id"]
        view.add_node(node.id, **columns)
    view.add_edges_from((edge.parent, edge.child, {"role": edge.role}) for edge in graph.edges)
    return networkx.freeze(view)
