"""The lineage graph as OpenTelemetry spans, in OTLP's JSON form.

The names of attributes are those of the semantic conventions for generative AI, version 1.41 (status: development); all of
rath that knows them is this module. What the conventions have no name for stands under ``rath.``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any, Protocol
from uuid import UUID

from rath.core.redact import redact_text
from rath.display.text import clean
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode

__all__ = ["graph_otlp"]

_INTERNAL = 1  # SpanKind
_LAST_NS = 2**64 - 1
"""The latest time that a span has room for, in the year 2554."""
_STATUS = {
    "completed": {"code": 1},
    "failed": {"code": 2, "message": "failed"},
    "cancelled": {"code": 2, "message": "cancelled"},
}
_OPERATIONS = {LineageKind.OP_SESSION_LOOP: "invoke_agent", LineageKind.OP_SESSION_COMPRESS: "chat"}


class _Graph(Protocol):
    @property
    def nodes(self) -> Sequence[LineageNode]: ...


def graph_otlp(graph: _Graph) -> tuple[dict[str, Any], str]:
    """The spans as an ``ExportTraceServiceRequest``, and its JSON text.

    One span a session, one trace for all that hangs together by more than instructions. A span's parent is the session that
    it continues; its other parents are links, with their role. Times are those of the runs; a session that nobody timed is
    a span without length at the end of its parents (``rath.time.estimated``). No transcript is in it. Ids depend on the
    sessions' ids only, so that the same graph gives the same spans again.
    """
    nodes = list(graph.nodes)
    traces = _traces(nodes)
    times = _times(nodes)
    known = {node.id for node in nodes}
    spans = [_span(node, traces[node.id].hex, times[node.id], known, traces) for node in nodes]
    made = {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes({"service.name": "rath"})},
                "scopeSpans": [{"scope": {"name": "rath.lineage"}, "spans": spans}],
            }
        ]
    }
    return made, json.dumps(made, ensure_ascii=False) + "\n"


def _span(
    node: LineageNode, trace: str, time_ns: tuple[int, int], known: set[UUID], traces: Mapping[UUID, UUID]
) -> dict[str, Any]:
    parents = [(parent, role) for parent, role in node.parents_and_roles if parent in known]
    above = next((parent for parent, role in parents if role in ("user", "parent")), None)
    links = [
        {
            "traceId": traces[parent].hex,
            "spanId": _span_id(parent),
            "attributes": _attributes({"rath.lineage.role": role}),
        }
        for parent, role in parents
        if parent != above
    ]
    operation = _OPERATIONS.get(node.kind)
    name = _text(node.operator or node.label or "session")
    span: dict[str, Any] = {
        "traceId": trace,
        "spanId": _span_id(node.id),
        "name": name if operation is None else " ".join(filter(None, (operation, _text(node.model or "")))),
        "kind": _INTERNAL,
        "startTimeUnixNano": str(time_ns[0]),
        "endTimeUnixNano": str(time_ns[1]),
        "attributes": _attributes(_facts(node, operation)),
        "links": links,
        "status": _STATUS.get(node.status, {}),
    }
    if above is not None:
        span["parentSpanId"] = _span_id(above)
    return span


def _facts(node: LineageNode, operation: str | None) -> dict[str, Any]:
    usage = node.usage
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.request.model": None if node.model is None else _text(node.model),
        "gen_ai.conversation.id": str(node.id),
        "gen_ai.usage.input_tokens": None if usage is None else usage.prompt_tokens,
        "gen_ai.usage.output_tokens": None if usage is None else usage.completion_tokens,
        "rath.operator": _text(node.operator),
        "rath.kind": node.kind.value,
        "rath.label": _text(node.label),
        "rath.status": node.status,
        "rath.rows": node.rows,
        "rath.cost_usd": node.cost_usd,
        "rath.verdict": node.verdict,
        "rath.sandbox": None if node.sandbox is None else _text(node.sandbox),
        "rath.snapshot": None if node.snapshot is None else _text(node.snapshot),
        "rath.time.estimated": True if node.created_at is None else None,
    }


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items() if value is not None]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}  # 64 bits do not fit into every reader's JSON number
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": value}


def _text(text: str) -> str:
    return clean(redact_text(text))


def _span_id(session_id: UUID) -> str:
    return blake2b(session_id.bytes, digest_size=8).hexdigest()


def _traces(nodes: Sequence[LineageNode]) -> dict[UUID, UUID]:
    """For each node, the first of those that it hangs together with."""
    order = {node.id: place for place, node in enumerate(nodes)}
    leader = {node.id: node.id for node in nodes}

    def first(session_id: UUID) -> UUID:
        while leader[session_id] != session_id:
            leader[session_id] = leader[leader[session_id]]
            session_id = leader[session_id]
        return session_id

    for node in nodes:
        for parent, role in node.parents_and_roles:
            # One agent may instruct everything that there is.
            if parent in leader and role != "system":
                low, high = sorted((first(parent), first(node.id)), key=order.__getitem__)
                leader[high] = low
    return {node.id: first(node.id) for node in nodes}


def _times(nodes: Iterable[LineageNode]) -> dict[UUID, tuple[int, int]]:
    """When each span begins and ends, in nanoseconds since 1970."""
    times: dict[UUID, tuple[int, int]] = {}
    for node in nodes:  # parents first
        if node.created_at is None:
            begin = max((times[parent][1] for parent in node.parents if parent in times), default=0)
        else:
            begin = _nanoseconds(node.created_at)
        times[node.id] = begin, min(begin + round((node.duration_s or 0.0) * 1e9), _LAST_NS)
    return times


def _nanoseconds(moment: datetime) -> int:
    whole = int(moment.replace(microsecond=0).timestamp())
    return min(max(0, whole * 1_000_000_000 + moment.microsecond * 1_000), _LAST_NS)
