"""What Jupyter is given of a thing: the same in several forms, of which each front end shows the best that it can."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from rath.backend.calls import WorkspaceDiff
from rath.core.redact import redact_text
from rath.display.graph_html import graph_html
from rath.display.html import chunk_table_html, workspace_diff_html
from rath.display.mermaid import lineage_mermaid
from rath.display.text import clean, count, cut
from rath.display.tree import lineage_tree
from rath.session.chunk import ChunkTable, format_chunk_row_brief
from rath.session.graph.lineage import fold
from rath.session.graph.model import SessionGraph

__all__ = ["chunk_table_bundle", "graph_mimebundle", "workspace_diff_bundle"]

MERMAID = "text/vnd.mermaid"
"""The type that JupyterLab draws."""
_MERMAID_NODES = 120
"""Mermaid lays more out slowly, and small: then the latest are in it."""
_TREE_NODES = 300
_TEXT_CHARACTERS = 20_000
_ENDS = 10


def graph_mimebundle(graph: SessionGraph, include: Any = None, exclude: Any = None) -> dict[str, Any]:
    """A graph as text (a tree), Mermaid and HTML. Never waits; below 1 MB together.

    Args:
        include, exclude: MIME types, as IPython gives them.
    """
    nodes = fold(graph.nodes)
    return _bundle(
        {
            "text/plain": lambda: _less(lineage_tree(nodes[-_TREE_NODES:]), len(nodes) - _TREE_NODES),
            MERMAID: lambda: lineage_mermaid(nodes[-_MERMAID_NODES:]),
            "text/html": lambda: graph_html(graph),
        },
        include,
        exclude,
    )


def chunk_table_bundle(table: ChunkTable, include: Any = None, exclude: Any = None) -> dict[str, Any]:
    """A table of rows as text (its first and last rows, a line each) and HTML."""

    def text() -> str:
        total = len(table)
        shown = [*range(min(_ENDS, total)), *range(max(_ENDS, total - _ENDS), total)]
        lines = [f"    {clean(format_chunk_row_brief(at, table[at], max_payload=160))}" for at in shown]
        if len(shown) < total:
            lines.insert(_ENDS, f"    … {count(total - len(shown), 'row')} …")
        return "\n".join([f"ChunkTable of {count(total, 'row')}", *lines])

    return _bundle({"text/plain": text, "text/html": lambda: chunk_table_html(table)}, include, exclude)


def workspace_diff_bundle(diff: WorkspaceDiff, include: Any = None, exclude: Any = None) -> dict[str, Any]:
    """What changed in a workspace as text (a unified diff) and HTML."""

    def text() -> str:
        return clean(cut(redact_text(cut(diff.text, 2 * _TEXT_CHARACTERS)), _TEXT_CHARACTERS)) or "no change of a text file"

    return _bundle({"text/plain": text, "text/html": lambda: workspace_diff_html(diff)}, include, exclude)


def _bundle(
    forms: Mapping[str, Callable[[], str]], include: Collection[str] | None, exclude: Collection[str] | None
) -> dict[str, Any]:
    return {
        kind: made()
        for kind, made in forms.items()
        if (not include or kind in include) and not (exclude and kind in exclude)
    }


def _less(tree: str, missing: int) -> str:
    note = f"… {count(missing, 'earlier session')} not shown …\n" if missing > 0 else ""
    return (note + tree).rstrip("\n")
