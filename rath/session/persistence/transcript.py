"""A transcript that any provider accepts, from one that was cut off anywhere.

Providers want every tool call of an assistant's message answered by exactly one result, right after that
message, and no result without its call. A log that ends in the middle of a round has calls without results;
their outcome is unknown, and that is what the model is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rath.session.chunk import INTERRUPTED_BODY, ChunkKind, ChunkRow, ChunkTable, tool_feedback_chunk

__all__ = ["acceptable", "unanswered"]


def acceptable(table: ChunkTable) -> ChunkTable:
    """``table`` with every tool call answered once and nothing answered that was not asked.

    Rows that are fine stay as they are; if all are, so does the table. Depends on the rows only: the same
    rows give the same result.
    """
    made = tuple(_rows(table.rows))
    return table if made == table.rows else ChunkTable(made)


def unanswered(rows: tuple[ChunkRow, ...]) -> tuple[ChunkRow, ...] | None:
    """What ``rows`` lack at their end: an ``interrupted`` result a call without one, in the order of the calls.

    ``None`` if more than that is wrong with them, so that no rows that follow could make them acceptable.
    """
    made = acceptable(ChunkTable(rows)).rows
    return made[len(rows) :] if made[: len(rows)] == rows else None


def _rows(rows: Iterable[ChunkRow]) -> Iterator[ChunkRow]:
    open_calls: dict[str, str] = {}
    for row in rows:
        if row.kind is ChunkKind.TOOL_RESULT:
            if open_calls.pop(row.tool_call_id or "", None) is not None:
                yield row
            continue
        yield from _interrupted(open_calls)
        open_calls = {}
        if row.kind is ChunkKind.ASSISTANT:
            row, open_calls = _checked(row)
        yield row
    yield from _interrupted(open_calls)


def _interrupted(calls: dict[str, str]) -> Iterator[ChunkRow]:
    for call_id, name in calls.items():
        yield tool_feedback_chunk(call_id, name, INTERRUPTED_BODY)


def _checked(row: ChunkRow) -> tuple[ChunkRow, dict[str, str]]:
    """The assistant's row, without what is no tool call, and its calls: id to name."""
    payload = row.payload
    given = payload.get("tool_calls")
    if not given:
        return row, {}
    wire = given if isinstance(given, list) else []
    calls: dict[str, str] = {}
    kept = []
    for call in wire:
        call_id, name = _identity(call)
        if call_id and name and call_id not in calls:
            calls[call_id] = name
            kept.append(call)
    if kept != given:
        row = ChunkRow(row.kind, {**payload, "tool_calls": kept or None})
    return row, calls


def _identity(call: Any) -> tuple[str, str]:
    """A call's id and function name; empty where it has none that a provider would take."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return "", ""
    call_id, name = call.get("id"), function.get("name")
    return (call_id, name) if isinstance(call_id, str) and isinstance(name, str) else ("", "")
