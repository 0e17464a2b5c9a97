"""The payloads where sessions carry text: said, called, answered; as names, models, paths and errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

from rath.session.chunk import ChunkKind, ChunkRow, ChunkTable, tool_feedback_chunk, user_text_chunk
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode

__all__ = ["hostile_nodes", "hostile_tables"]


def hostile_nodes(payloads: Sequence[str]) -> list[LineageNode]:
    """A node for each payload, which is its label, operator, status, model, sandbox, snapshot, path, verdict, extras, role."""
    return [
        LineageNode(
            UUID(int=(number + 1) << 64),
            (UUID(int=number << 64),) if number % 7 else (),
            operator=text,
            kind=LineageKind.OP_CUSTOM,
            status=text,
            rows=1,
            extras=((text, text),),
            label=text,
            roles=(text,),
            model=text,
            verdict=text,
            path=PurePosixPath("/logs") / text,  # type: ignore[arg-type]
            sandbox=text,
            snapshot=text,
            digest=text,
        )
        for number, text in enumerate(payloads)
    ]


def hostile_tables(payloads: Sequence[str]) -> dict[str, ChunkTable]:
    """A transcript for each place in a row where a payload may stand, with a row for each payload."""

    def call(name: str, arguments: Any) -> ChunkRow:
        wire = [{"id": name, "type": "function", "function": {"name": name, "arguments": arguments}}]
        return ChunkRow(ChunkKind.ASSISTANT, {"content": None, "tool_calls": wire})

    def command(text: str) -> str:
        return json.dumps({"exit_code": 1, "stdout": text, "stderr": text, "elapsed_ms": 3})

    def failure(text: str) -> str:
        return json.dumps({"ok": False, "error_kind": text, "message": text, "detail": text})

    def listing(text: str) -> str:
        return json.dumps({"entries": [{"name": text, "path": text, "is_dir": False}]})

    rows = {
        "said": [user_text_chunk(text) for text in payloads],
        "tool name": [call(text, "{}") for text in payloads],
        "arguments": [call("run", text) for text in payloads],
        "json arguments": [call("run", json.dumps({"path": text, text: "x"})) for text in payloads],
        "result": [tool_feedback_chunk(text, text, text) for text in payloads],
        "command": [tool_feedback_chunk("c", "run", command(text)) for text in payloads],
        "error": [tool_feedback_chunk("c", "run", failure(text)) for text in payloads],
        "listing": [tool_feedback_chunk("c", "run", listing(text)) for text in payloads],
        "odd": [ChunkRow(ChunkKind.ASSISTANT, {"content": {text: [text]}, "tool_calls": text}) for text in payloads],
    }
    return {place: ChunkTable(tuple(found)) for place, found in rows.items()}
