"""Going on with a log that stopped.

A log stops where its writer died: in the middle of a line, of a round of tool calls, or before the trailer. Two ways on:

*Repair* (:func:`repair_log`). The torn line is cut off, and each call of the last reply that has no durable result gets
one that says ``interrupted``. These records depend on nothing but the file, have no time and no process in them, and are
written in the order of the calls; so a repair that is itself cut off anywhere is finished by the next one, byte for byte.

*Reopening* (:func:`reopen_run_log`), for a run that goes on: a ``resume`` record, and then whatever the run writes. What the
file lacks is the run's to answer, because a tool that may be repeated can be run again.

Both hold the log's lock while they look, and refuse a log that they could only make worse.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args
from uuid import UUID

from rath.errors import DamagedLog, PersistenceError
from rath.llm.types import RathLLMTokenUsage, RathLLMToolCallFunction, RathLLMToolCallPart, add_usage
from rath.session.chunk import ChunkKind, ChunkRow, ChunkTable
from rath.session.graph.kind import LineageKind, SessionLineage
from rath.session.persistence.costs import bill_of_records
from rath.session.persistence.format import (
    CURRENT_SCHEMA_VERSION,
    MAX_OTHER_BYTES,
    BadLine,
    decode_header,
    decode_object,
    encode_fields,
    result_fields,
)
from rath.session.persistence.lineage import recalled
from rath.session.persistence.lock import owner
from rath.session.persistence.logfile import Durability, LogFile
from rath.session.persistence.migrations import upgrade_header
from rath.session.persistence.paths import log_path
from rath.session.persistence.reader import (
    PersistedSession,
    checked_header,
    damaged,
    find_log,
    load_session,
    noted,
    open_log,
    place,
    scan_file,
    scan_log,
)
from rath.session.persistence.records import PersistedSessionHeader, header_from_record, usage_from_json
from rath.session.persistence.runlog import JsonlRunLog
from rath.session.persistence.scan import Finding, LogScan
from rath.session.persistence.sharing import make_durable
from rath.session.persistence.transcript import acceptable, unanswered
from rath.session.persistence.writer import SessionLog
from rath.session.request import LoggedSoFar
from rath.session.session import Session

__all__ = ["LogPeek", "Repair", "peek_log", "reopen_run_log", "repair_log", "resume_session"]


@dataclass(frozen=True, slots=True)
class LogPeek:
    """What the first and the last line of a log say; nothing between them was looked at.

    Attributes:
        legacy: whether it is of an older schema, which nothing is written to.
        ended: whether no run can go on with it: the last whole line is a trailer, or it is of an older schema.
        clean: whether that trailer is the last thing in it.
    """

    path: Path
    header: PersistedSessionHeader
    legacy: bool
    ended: bool
    clean: bool

    def place(self, session: Session) -> Session:
        """``session``, placed as the log's session was."""
        return place(session, self.header)

    def producers(self) -> SessionLineage | None:
        """The sessions that the log's session was made from, if a run made it."""
        return _producers(self.header)


@dataclass(frozen=True, slots=True)
class Repair:
    """A log that stopped, and what was done to it.

    Attributes:
        session: resolved, with the log's id, rows, lineage and placement.
        verdict: what the log was before.
        torn_bytes: how many bytes were cut off its end.
        interrupted: ``(call id, tool)`` of each call that was marked as interrupted, in order.
    """

    path: Path
    session: Session
    verdict: str
    torn_bytes: int = 0
    interrupted: tuple[tuple[str, str], ...] = ()


def resume_session(path_or_id: UUID | Path | str) -> Session:
    """The session in a log, whatever its writer's end, in a state that any provider accepts. Opens no sandbox.

    A log without a trailer is repaired first: a line that was cut off goes, and a tool call without a result gets one that
    says ``interrupted``. The repair is on the disk when this returns, and it depends on the file only: resuming again gives
    the same rows and the same digest. The log's lock is held meanwhile and then let go; nothing else will be written
    until :func:`rath.session.continue_session_loop` goes on with the run.

    The session has the log's id, lineage and placement, without the environment variables of its sandbox, whose values
    are in no log. A log of schema 1, and one whose rows were written by hand and would not be accepted, are loaded, and
    not changed. May read the whole file: from ``async`` code, call it in a thread.

    Args:
        path_or_id: a session's id, or the path of a log; a ``str`` that is a UUID is an id.

    Raises:
        DamagedLog: the log contradicts itself.
        PersistenceError: a process is writing it (says which), there is none, it cannot be read or written, or its
            backend is not here.
    """
    return repair_log(path_or_id).session


def repair_log(path_or_id: UUID | Path | str) -> Repair:
    """:func:`resume_session`, and what it did."""
    seen = peek_log(path_or_id)
    if seen.legacy or seen.clean:
        with _with_remedy(seen.path):
            loaded = load_session("", path=seen.path)
        if seen.legacy or loaded.closed:
            return Repair(seen.path, _loaded_session(loaded), loaded.verdict)
    with _reopened(seen, "turn") as (file, scan, header):
        return _repaired(file, scan, header)


def reopen_run_log(path: Path, *, durability: Durability | None = None, model: str | None = None) -> JsonlRunLog:
    """The open log of a run that goes on, its ``resume`` record written; what it has is in ``so_far``.

    Args:
        durability: that which its header names, by default.
        model: which one will be asked.

    Raises:
        DamagedLog: the log contradicts itself.
        PersistenceError: somebody writes it; it is complete; its run had not begun; its rows are no transcript.
    """
    seen = peek_log(path)
    if durability is None:
        durability = cast(Durability, seen.header.durability) if seen.header.durability in get_args(Durability) else "turn"
    with _reopened(seen, durability) as (file, scan, header):
        so_far = _so_far(file.path, scan, header)
        log = _log_after(file, scan, header)
        torn_bytes = _go_on(file, scan)
        repaired = {"torn_bytes": torn_bytes, "open_calls": so_far.results.count(None)}
        file.append("resume", encode_fields({"epoch": file.epoch, "writer": owner(), "repaired": repaired}))
        return JsonlRunLog(log, so_far, model)


# -- looking ----------------------------------------------------------------------------------------------------------


def peek_log(path_or_id: UUID | Path | str) -> LogPeek:
    """What the ends of a log say. Reads at most 1 MiB of each: quick, whatever the log's size.

    Raises:
        DamagedLog: the first line is no header, or another session's.
        PersistenceError: there is no such log, it cannot be read, or it is of a newer schema.
    """
    path, session_id = _target(path_or_id)
    with open_log(path) as file:
        line = file.readline(MAX_OTHER_BYTES)
        header, legacy = _peeked_header(path, line, session_id)
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - MAX_OTHER_BYTES))
        tail = file.read(MAX_OTHER_BYTES)
    lines = tail.split(b"\n")
    ended = len(lines) > 1 and _is_trailer(lines[-2])
    return LogPeek(path, header, legacy, legacy or ended, ended and lines[-1] == b"")


def _target(path_or_id: UUID | Path | str) -> tuple[Path, UUID | None]:
    if isinstance(path_or_id, UUID):
        return find_log(path_or_id), path_or_id
    if isinstance(path_or_id, str):
        try:
            session_id = UUID(path_or_id)
        except ValueError:
            pass
        else:
            return find_log(session_id), session_id
    return log_path(path_or_id), None


def _peeked_header(path: Path, line: bytes, session_id: UUID | None) -> tuple[PersistedSessionHeader, bool]:
    """The header that ``line`` is, and whether it is of an older schema."""
    reason = "the first line is no header"
    try:
        record = decode_header(line) if line.endswith(b"\n") else {}
        version = record.get("schema_version")
        if record.get("record_type") == "header" and type(version) is int and version <= CURRENT_SCHEMA_VERSION:
            legacy = version < CURRENT_SCHEMA_VERSION
            header = header_from_record(upgrade_header(record, version) if legacy else record)
            if session_id is None or header.id == session_id:
                return header, legacy
            reason = f"the header is of session {header.id}"
    except BadLine as error:
        reason = str(error)
    with _with_remedy(path):
        scan_log(path)  # says exactly what is wrong: cut off, of a newer schema, no log at all
        raise damaged(path, Finding("damaged", reason, 1, 0))


def _is_trailer(line: bytes) -> bool:
    try:
        return decode_object(line).get("record_type") == "trailer"
    except BadLine:
        return False


@contextmanager
def _with_remedy(path: Path) -> Iterator[None]:
    try:
        yield
    except DamagedLog as error:
        if error.verdict == "damaged":
            remedy = f"`rath sessions salvage {path} OUT` writes a new log of what is whole in it"
        else:
            remedy = "No record of it was ever whole: delete it"
        raise DamagedLog(
            f"{error}. {remedy}", verdict=error.verdict, reason=error.reason, line=error.line, offset=error.offset
        ) from None


@contextmanager
def _reopened(seen: LogPeek, durability: Durability) -> Iterator[tuple[LogFile, LogScan, PersistedSessionHeader]]:
    """The locked file and what is in it. Let go at an error, and at the end unless the block keeps it in a log."""
    file = LogFile(seen.path, durability, existing=True)
    try:
        with _with_remedy(seen.path):
            with file.reading() as reading:
                scan = scan_file(seen.path, reading)
            header = checked_header(seen.path, scan, seen.header.id)
        if durability != "process":
            make_durable(file.path, header)
        yield file, scan, header
    except BaseException:
        file.abandon()
        raise


# -- what a log lacks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Gap:
    """The end of a log that can go on.

    Attributes:
        rows: those that have their own record.
        lacking: an ``interrupted`` row for each call of the last reply that has no row among them, in order.
        durable: for each of these, the row of its result record, if there is one.
    """

    rows: tuple[ChunkRow, ...]
    lacking: tuple[ChunkRow, ...]
    durable: tuple[ChunkRow | None, ...]


def _gap(scan: LogScan, header: PersistedSessionHeader) -> _Gap | str:
    """What the log lacks; or why nothing can be written to it that would make it a good transcript."""
    ending = scan.ending
    if ending is None:
        return "it is of an older schema"
    if ending.chunk_count < (header.seed_rows or 0):
        return f"its writer died before the run began: it has {ending.chunk_count} of the {header.seed_rows} rows before it"
    rows = tuple(scan.rows[: ending.chunk_count])
    lacking = unanswered(rows)
    if lacking is None:
        return "its rows are no transcript that a provider accepts, and rows once written do not change"
    places = range(len(rows), len(rows) + len(lacking))
    durable = tuple(map(ending.results.get, places))
    wrong = any(index not in places for index in ending.results)
    if wrong or any(row and row.tool_call_id != call.tool_call_id for row, call in zip(durable, lacking, strict=True)):
        return "it has tool results that belong to no call of its last reply"
    return _Gap(rows, lacking, durable)


def _go_on(file: LogFile, scan: LogScan) -> int:
    """Cut off what is not whole. How many bytes that were."""
    assert scan.ending is not None
    return file.go_on(whole_bytes=scan.whole_bytes, records=scan.ending.record_count, h=scan.ending.h)


def _log_after(file: LogFile, scan: LogScan, header: PersistedSessionHeader) -> SessionLog:
    ending = scan.ending
    assert ending is not None
    return SessionLog.reopened(
        file,
        header.id,
        rows=ending.chunk_count,
        shared_rows=0 if header.prefix is None else header.prefix.length,
        digest=ending.digest,
        results={index: row.encoded_payload for index, row in ending.results.items()},
    )


def _repaired(file: LogFile, scan: LogScan, header: PersistedSessionHeader) -> Repair:
    """Write what the log lacks, and let it go."""
    gap = None if scan.trailer is not None else _gap(scan, header)
    interrupted: tuple[tuple[str, str], ...] = ()
    torn_bytes = _go_on(file, scan)
    if isinstance(gap, _Gap):
        results = tuple(row or lack for row, lack in zip(gap.durable, gap.lacking, strict=True))
        interrupted = tuple(_write_missing(file, gap))
        rows = noted(ChunkTable(gap.rows + results), file.path, scan, header)
    else:
        rows = acceptable(noted(ChunkTable(tuple(scan.rows)), file.path, scan, header))
    file.sync()
    file.abandon()
    extras = _final_extras(scan.trailer, header)
    session = recalled(_session(header, rows, _usage(scan.trailer, scan.records), extras), file.path, scan.records)
    return Repair(file.path, session, scan.verdict, torn_bytes, interrupted)


def _write_missing(file: LogFile, gap: _Gap) -> Iterator[tuple[str, str]]:
    for index, (row, durable) in enumerate(zip(gap.lacking, gap.durable, strict=True), len(gap.rows)):
        if durable is None:
            call_id = row.tool_call_id or ""
            file.append("tool_result", result_fields(call_id, index, row.encoded_payload))
            yield call_id, str(row.payload["name"])


def _so_far(path: Path, scan: LogScan, header: PersistedSessionHeader) -> LoggedSoFar:
    if scan.trailer is not None:
        raise PersistenceError(f"the session log {path} is complete by now: ask again, and a new session will continue it")
    gap = _gap(scan, header)
    if isinstance(gap, str):
        raise PersistenceError(
            f"the session log {path} cannot be gone on with: {gap}. Start a new session from what is in it: "
            "run_session_loop(resume_session(path), ...)"
        )
    own = gap.rows[max(0, header.seed_rows or 0) :]
    replies = [row for row in own if row.kind is ChunkKind.ASSISTANT]
    return LoggedSoFar(
        table=noted(ChunkTable(gap.rows), path, scan, header),
        calls=_calls(gap),
        results=gap.durable,
        usage=_usage(None, scan.records),
        bill=bill_of_records(scan.records, (header.provider or {}).get("model")),
        turns=len(replies),
        answered=bool(own) and own[-1].kind is ChunkKind.ASSISTANT and not gap.lacking,
    )


def _calls(gap: _Gap) -> tuple[RathLLMToolCallPart, ...]:
    """The calls whose rows are lacking."""
    if not gap.lacking:
        return ()
    reply = next(row for row in reversed(gap.rows) if row.kind is ChunkKind.ASSISTANT)
    by_id = {call["id"]: call for call in reply.tool_calls}
    calls = [by_id[row.tool_call_id] for row in gap.lacking]
    return tuple(
        RathLLMToolCallPart(
            call["id"],
            str(call.get("type") or "function"),
            RathLLMToolCallFunction(call["function"]["name"], call["function"]["arguments"]),
        )
        for call in calls
    )


# -- sessions ---------------------------------------------------------------------------------------------------------


def _loaded_session(loaded: PersistedSession) -> Session:
    extras = _final_extras(loaded.trailer_raw, loaded.header)
    usage = _usage(loaded.trailer_raw, loaded.records)
    return recalled(_session(loaded.header, acceptable(loaded.chunk_table), usage, extras), loaded.path, loaded.records)


def _session(
    header: PersistedSessionHeader,
    table: ChunkTable,
    usage: RathLLMTokenUsage | None,
    extras: tuple[tuple[str, Any], ...],
) -> Session:
    session = Session(
        table,
        id=header.id,
        lineage=_producers(header),
        parent_session_ids=header.parent_session_ids,
        lineage_operator=header.lineage_operator,
        lineage_kind=header.lineage_kind,
        lineage_extras=extras,
        cumulative_usage=usage,
    )
    return place(session, header)


def _producers(header: PersistedSessionHeader) -> SessionLineage | None:
    """The sessions that a run was made from."""
    if header.lineage_kind not in _WITH_PRODUCERS or len(header.parent_session_ids) != 2:
        return None
    return SessionLineage(*header.parent_session_ids, header.lineage_operator)


_WITH_PRODUCERS = (LineageKind.OP_SESSION_LOOP, LineageKind.OP_SESSION_COMPRESS)


def _final_extras(trailer: dict[str, Any] | None, header: PersistedSessionHeader) -> tuple[tuple[str, Any], ...]:
    """What the trailer has: all of them. The header's where there is none that is one."""
    found = (trailer or {}).get("lineage_extras")
    if not isinstance(found, list):
        return header.lineage_extras
    pairs = [tuple(pair) for pair in found if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)]
    return tuple(pairs) if len(pairs) == len(found) else header.lineage_extras


def _usage(trailer: dict[str, Any] | None, records: Sequence[dict[str, Any]]) -> RathLLMTokenUsage | None:
    """The trailer's sum, or that of all completions that the log knows of."""
    total = usage_from_json((trailer or {}).get("cumulative_usage"))
    if total is not None:
        return total
    for record in records:
        if record["record_type"] == "usage":
            total = add_usage(total, usage_from_json(record))
    return total
