"""A graph as tables with stable columns: for data frames, exports and displays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

from rath.core.encoding import decode_json
from rath.core.redact import redact_text
from rath.errors import UsageValueError
from rath.session.chunk import ChunkKind, ChunkRow, ChunkTable
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode

if TYPE_CHECKING:
    from rath.session.graph.model import SessionGraph

__all__ = ["COLUMNS", "columns", "node_columns", "table"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "sessions": (
        *("id", "parents", "roles", "operator", "kind", "label", "status", "model", "rows", "folded"),
        *("prompt_tokens", "completion_tokens", "total_tokens", "cost_usd", "created_at", "duration_s"),
        *("verdict", "path", "sandbox", "snapshot", "digest"),
        *("subtree_tokens", "subtree_tokens_unknown", "subtree_cost_usd", "subtree_cost_unknown"),
    ),
    "edges": ("parent", "child", "role"),
    "rows": ("session_id", "index", "kind", "text", "tool_calls", "tool_name", "tool_call_id", "size_bytes"),
    "calls": (
        *("session_id", "index", "call_id", "name", "arguments", "result_index", "result", "ok", "error_kind"),
        "result_size_bytes",
    ),
}
"""The columns of each table. Ids are text; tokens, sizes and costs are numbers, or ``None`` where they are unknown."""


def columns(name: str) -> tuple[str, ...]:
    """The columns of a table. Raises ``UsageValueError`` if there is none of that name."""
    try:
        return COLUMNS[name]
    except (KeyError, TypeError):
        raise UsageValueError(f"no table {name!r:.60}; there are {', '.join(COLUMNS)}") from None


def table(graph: SessionGraph, name: str) -> list[dict[str, Any]]:
    """A table of ``graph``; what it holds of rows is redacted."""
    columns(name)
    makers: dict[str, Callable[[SessionGraph], list[dict[str, Any]]]] = {
        "sessions": _sessions,
        "edges": _edges,
        "rows": lambda graph: list(_rows(graph)),
        "calls": lambda graph: list(_calls(graph)),
    }
    return makers[name](graph)


def node_columns(node: LineageNode) -> dict[str, Any]:
    """What the table of sessions says of a node by itself."""
    usage = node.usage
    return {
        "id": str(node.id),
        "parents": [str(parent) for parent in node.parents],
        "roles": list(node.roles),
        "operator": redact_text(node.operator),
        "kind": node.kind.value,
        "label": redact_text(node.label),
        "status": node.status,
        "model": None if node.model is None else redact_text(node.model),
        "rows": node.rows,
        "folded": node.folded,
        "prompt_tokens": None if usage is None else usage.prompt_tokens,
        "completion_tokens": None if usage is None else usage.completion_tokens,
        "total_tokens": None if usage is None else usage.total_tokens,
        "cost_usd": node.cost_usd,
        "created_at": node.created_at,
        "duration_s": node.duration_s,
        "verdict": node.verdict,
        "path": None if node.path is None else redact_text(str(node.path)),
        "sandbox": node.sandbox and redact_text(node.sandbox),
        "snapshot": node.snapshot and redact_text(node.snapshot),
        "digest": node.digest,
    }


def _sessions(graph: SessionGraph) -> list[dict[str, Any]]:
    tokens, costs = graph.subtree_totals("tokens"), graph.subtree_totals("cost")
    made = []
    for node in graph.nodes:
        row = node_columns(node)
        for name, value, totals in (("tokens", "tokens", tokens), ("cost", "cost_usd", costs)):
            total = totals[node.id]
            row[f"subtree_{value}"] = None if total is None else total.value
            row[f"subtree_{name}_unknown"] = None if total is None else total.unknown
        made.append(row)
    return made


def _edges(graph: SessionGraph) -> list[dict[str, Any]]:
    return [{"parent": str(edge.parent), "child": str(edge.child), "role": edge.role} for edge in graph.edges]


# -- what stands in transcripts ---------------------------------------------------------------------------------------


def own_rows(graph: SessionGraph) -> Iterator[tuple[UUID, ChunkTable, int, int]]:
    """Each row of the graph once, as ``(session, table, start, stop)``: it is of the first session that has it.

    A session whose rows are gone is spoken for by the first that continues it, or merges it in.
    """
    links = graph._links
    told: set[int] = set()
    for at, node in enumerate(graph.nodes):
        rows = graph.transcript(node.id)
        if rows is None:
            continue
        # Up to where the first rows have been told: each session on the way owns what it added.
        line = [at]
        while (above := links.row_parent[line[-1]]) is not None and above not in told:
            line.append(above)
        start = 0 if above is None else min(graph.nodes[above].rows or 0, len(rows))
        for place in reversed(line):
            if graph.nodes[place].kind is LineageKind.OP_MERGE and told.issuperset(links.parents[place][1:]):
                start = max(start, min(graph.nodes[place].rows or 0, len(rows)))
                continue
            stop = len(rows) if place == at else min(graph.nodes[place].rows or 0, len(rows))
            if stop > start:
                yield graph.nodes[place].id, rows, start, stop
                start = stop
        told.update(line)


def _rows(graph: SessionGraph) -> Iterator[dict[str, Any]]:
    for session_id, rows, start, stop in own_rows(graph):
        for index in range(start, stop):
            row = rows[index]
            payload = _payload(row)
            content = payload.get("content")
            yield {
                "session_id": str(session_id),
                "index": index,
                "kind": row.kind.value,
                "text": None if content is None else str(content),
                "tool_calls": len(_wire_calls(row, payload)),
                "tool_name": _text(payload.get("name")) if row.kind is ChunkKind.TOOL_RESULT else None,
                "tool_call_id": _text(payload.get("tool_call_id")) if row.kind is ChunkKind.TOOL_RESULT else None,
                "size_bytes": len(row.encoded),
            }


def _calls(graph: SessionGraph) -> Iterator[dict[str, Any]]:
    for session_id, rows, start, stop in own_rows(graph):
        for index in range(start, stop):
            row = rows[index]
            calls = _wire_calls(row, _payload(row)) if row.kind is ChunkKind.ASSISTANT else []
            results = _results(rows, index) if calls else {}
            for call in calls:
                call_id = _text(call.get("id"))
                function = call.get("function")
                function = function if isinstance(function, dict) else {}
                yield {
                    "session_id": str(session_id),
                    "index": index,
                    "call_id": call_id,
                    "name": _text(function.get("name")),
                    "arguments": _text(function.get("arguments")),
                    **_result(rows, results.get(call_id)),
                }


def _results(rows: ChunkTable, index: int) -> dict[str | None, int]:
    """Where the results stand that follow the reply at ``index``, by the calls that they answer."""
    found: dict[str | None, int] = {}
    for at in range(index + 1, len(rows)):
        row = rows[at]
        if row.kind is not ChunkKind.TOOL_RESULT:
            break
        found.setdefault(_text(_payload(row).get("tool_call_id")), at)
    return found


def _result(rows: ChunkTable, at: int | None) -> dict[str, Any]:
    if at is None:
        return dict.fromkeys(("result_index", "result", "ok", "error_kind", "result_size_bytes"))
    text = _text(_payload(rows[at]).get("content")) or ""
    failed: Any = None
    if text.startswith("{"):
        try:
            said = decode_json(text.encode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError):
            said = {}
        failed = said.get("error_kind") if isinstance(said, dict) and said.get("ok") is False else None
    return {
        "result_index": at,
        "result": text,
        "ok": failed is None,
        "error_kind": None if failed is None else str(failed),
        "result_size_bytes": len(text.encode("utf-8", "surrogatepass")),
    }


def _payload(row: ChunkRow) -> dict[str, Any]:
    payload: dict[str, Any] = decode_json(row.encoded_payload)
    return payload


def _wire_calls(row: ChunkRow, payload: dict[str, Any]) -> list[dict[str, Any]]:
    calls = payload.get("tool_calls") if row.kind is ChunkKind.ASSISTANT else None
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def _text(value: object) -> str | None:
    return None if value is None else str(value)
