"""The lineage graph as JSON lines."""

from __future__ import annotations

from typing import Any, Protocol

from rath.core.encoding import encode_json

__all__ = ["graph_jsonl"]


class _Graph(Protocol):
    def tables(self, name: str = ...) -> list[dict[str, Any]]: ...


def graph_jsonl(graph: _Graph) -> str:
    """One JSON object a session, parents before children: the columns of the table of sessions, times in ISO 8601."""
    return "".join(encode_json(_plain(row)).decode() + "\n" for row in graph.tables("sessions"))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()}
