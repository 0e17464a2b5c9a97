"""Rows, runs and logs for the tests; and the smallest reader of schema 2, written from docs/log-format.md alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from uuid import UUID

from rath.core.events import RowAppended, ToolFinished, ToolStarted, UsageReported
from rath.llm.types import RathLLMTokenUsage, RathLLMToolCallFunction, RathLLMToolCallPart
from rath.session.chunk import ChunkRow, assistant_turn_chunk, tool_feedback_chunk, user_text_chunk
from rath.session.persistence.format import seal
from rath.session.persistence.runlog import JsonlRunLog, open_run_log
from rath.session.session import Session

RUN = UUID(int=7)
USAGE = RathLLMTokenUsage(100, 20, 120)
OK = '{"ok": true}'


def assistant(*call_ids: str, text: str | None = "on it") -> ChunkRow:
    calls = tuple(RathLLMToolCallPart(i, "function", RathLLMToolCallFunction("probe", '{"x":1}')) for i in call_ids)
    return assistant_turn_chunk(tool_calls=calls or None, content=text)


def result(call_id: str, body: str = OK) -> ChunkRow:
    return tool_feedback_chunk(call_id, "probe", body)


def started(call_id: str, arguments: str = '{"x":1}') -> ToolStarted:
    return ToolStarted(RUN, RUN, 0, 0.0, 1, 0, call_id, "probe", arguments, True)


def finished(call_id: str, row_index: int, body: str = OK) -> ToolFinished:
    return ToolFinished(RUN, RUN, 0, 0.0, 1, 0, call_id, "probe", True, body, row_index, 0.1)


def appended(index: int, row: ChunkRow) -> RowAppended:
    return RowAppended(RUN, RUN, 0, 0.0, index, row)


def used(usage: RathLLMTokenUsage = USAGE) -> UsageReported:
    return UsageReported(RUN, RUN, 0, 0.0, usage, "model-1")


def rows() -> list[ChunkRow]:
    """A whole small run: question, two parallel calls, their results, answer."""
    return [user_text_chunk("go"), assistant("a", "b"), result("a"), result("b"), assistant(text="done")]


def run_until_results(log: JsonlRunLog) -> None:
    """The run of :func:`rows` up to the results of both calls, whose rows are not there yet."""
    table = rows()
    log.append_row(0, table[0])
    log.on_event(used())
    log.on_event(appended(1, table[1]))
    log.on_event(started("a"))
    log.on_event(started("b"))
    log.on_event(finished("b", 3))
    log.on_event(finished("a", 2))


def write_sample(path: Path, session: Session | None = None) -> Session:
    """The complete log of the run of :func:`rows`."""
    session = session or Session.create("user", "go")
    log = open_run_log(session, path=path)
    run_until_results(log)
    for index, row in list(enumerate(rows()))[2:]:
        log.on_event(appended(index, row))
    log.close(usage=USAGE, lineage_extras=session.lineage_extras, outcome={"status": "completed"})
    return session


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a log, each checked against the chain by the rules of docs/log-format.md."""
    found: list[dict[str, Any]] = []
    previous = b""
    for line in path.read_bytes().split(b"\n")[:-1]:
        record = json.loads(line)
        if not found:
            previous = record["epoch"].encode()
        at = line.rindex(b',"h":"')
        assert line[at:] == b',"h":"' + record["h"].encode() + b'"}'
        assert hashlib.blake2b(previous + line[:at], digest_size=8).hexdigest() == record["h"]
        assert record["seq"] == len(found)
        previous = record["h"].encode()
        found.append(record)
    return found


def rechained(path: Path, edited: list[dict[str, Any]]) -> None:
    """Write records with valid hashes, whatever they say; ``seq`` where one has none. With :mod:`json`, to the letter."""
    previous = str(edited[0].get("epoch", "")).encode()
    data = b""
    for seq, record in enumerate(edited):
        fields = {"record_type": record["record_type"], "seq": seq} if "seq" not in record else {}
        fields |= {name: value for name, value in record.items() if name != "h"}
        line, previous = seal(json.dumps(fields, separators=(",", ":"))[:-1].encode(), previous)
        data += line
    path.write_bytes(data)
