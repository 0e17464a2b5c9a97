"""Loading a session log: rows, header and verdict, or a ``PersistenceError``. Never anything else.

A log is input that anybody may have written. Lines, depth and numbers are bounded (``format.py``), ids are
parsed as UUIDs before they become paths, and whatever else is wrong is a :class:`rath.errors.DamagedLog` that
says where.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from rath.errors import DamagedLog, PersistenceError, SandboxError, UsageError
from rath.llm.types import RathLLMTokenUsage
from rath.session.chunk import ChunkKind, ChunkTable
from rath.session.logplace import LogPlace
from rath.session.persistence.format import CURRENT_SCHEMA_VERSION, BadLine, decode_header
from rath.session.persistence.judging import judge_line
from rath.session.persistence.legacy import LegacyScanner
from rath.session.persistence.paths import is_there, log_name, log_path, parse_session_id, session_file, session_partial_file
from rath.session.persistence.prefix import follow
from rath.session.persistence.recordparts import check_length
from rath.session.persistence.records import PersistedSessionHeader, header_from_record, usage_from_json
from rath.session.persistence.scan import Finding, LogScan, Scanner, read_lines
from rath.session.persistence.source import open_log
from rath.session.persistence.transcript import acceptable
from rath.session.session import Session

__all__ = [
    "PersistedSession",
    "PersistedSessionHeader",
    "checked_header",
    "damaged",
    "find_log",
    "load_session",
    "noted",
    "open_log",
    "place",
    "scan_file",
    "scan_log",
    "scanner_for",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class PersistedSession:
    """A session as its log has it.

    Attributes:
        chunk_table: every row that is whole in the file, after those that it has in other logs.
        cumulative_usage: from the trailer; ``None`` while there is none, or if it has none that is one.
        closed: whether the log is complete: ``verdict == "complete"``.
        trailer_raw: the trailer record as it stands.
        verdict: ``"complete"``, ``"open"`` (no trailer) or ``"torn"`` (the last line was cut off).
        records: the other records in order: ``tool_intent``, ``tool_result`` (without its payload, which is a
            row), ``usage``, ``spill``, ``resume``, with their documented fields; of any other kind
            ``record_type`` and ``seq``.
    """

    header: PersistedSessionHeader
    chunk_table: ChunkTable
    cumulative_usage: RathLLMTokenUsage | None
    closed: bool
    path: Path
    trailer_raw: dict[str, Any] | None = field(default=None, repr=False)
    verdict: str = "open"
    records: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    def to_resumable_pair(self, *, agent_prompt: str | None = None) -> tuple[Session, Session]:
        """A user session and an agent session to go on with: new ids, the log is not continued.

        The user session has the log's rows, made acceptable to any provider: a tool call that has no result
        gets one that says it was interrupted, a result without a call is left out. It is placed as the log's
        session was, but without its environment variables, whose values are in no log. The agent session has
        ``agent_prompt``, or else the log's first system row, or else no rows.

        Raises:
            PersistenceError: the session was placed in a backend that is not here.
        """
        user = place(Session(acceptable(self.chunk_table)), self.header)
        prompt = self._system_prompt() if agent_prompt is None else agent_prompt
        agent = Session(ChunkTable()) if prompt is None else Session.from_agent_prompt(prompt)
        return user, agent

    def _system_prompt(self) -> str | None:
        for row in self.chunk_table.rows:
            if row.kind is ChunkKind.SYSTEM:
                return row.text
        return None


def load_session(session_id: UUID | str, *, path: Path | str | None = None) -> PersistedSession:
    """The session in a log, whether that is closed, being written or cut off. No lock; changes nothing.

    Args:
        session_id: whose log; ``<id>.jsonl``, else ``<id>.jsonl.__partial__``, in the sessions directory.
        path: read this file instead, whatever ``session_id`` is.

    Raises:
        DamagedLog: the file contradicts itself; says where and how.
        PersistenceError: there is no such log, it cannot be read, or it is of a newer schema.
    """
    target = find_log(session_id) if path is None else log_path(path)
    scan = scan_log(target)
    header = checked_header(target, scan, None if path is not None else parse_session_id(session_id))
    return PersistedSession(
        header=header,
        chunk_table=noted(ChunkTable(tuple(scan.rows)), target, scan, header),
        cumulative_usage=usage_from_json((scan.trailer or {}).get("cumulative_usage")),
        closed=scan.verdict == "complete",
        path=target,
        trailer_raw=scan.trailer,
        verdict=scan.verdict,
        records=tuple(scan.records),
    )


def checked_header(path: Path, scan: LogScan, session_id: UUID | None = None) -> PersistedSessionHeader:
    """The header of the log that was scanned.

    Args:
        session_id: whose log it should be; ``None``: anybody's.

    Raises:
        DamagedLog: the log contradicts itself.
        PersistenceError: this version cannot read it.
    """
    finding = scan.finding
    if finding is not None and finding.verdict == "damaged":
        raise damaged(path, finding)
    try:
        header = header_from_record(scan.header)
    except BadLine as error:
        raise damaged(path, Finding("damaged", str(error), 1, 0)) from None
    if session_id is not None and header.id != session_id:
        raise damaged(path, Finding("damaged", f"the header is of session {header.id}", 1, 0))
    return header


def noted(table: ChunkTable, path: Path, scan: LogScan, header: PersistedSessionHeader) -> ChunkTable:
    """``table``, which begins with the rows of the log that was scanned, knowing where these stand.

    Results of a log without a trailer whose row nothing counts yet are left out of that: the row may become another.
    """
    where = scan.shared
    ending = scan.ending
    if ending is not None and ending.chunk_count > (0 if where is None else where.rows):
        borrowed, where = where, None
        # A log under another name can lend no rows, but what continues it finds its blobs.
        if path.name == log_name(header.id) or borrowed is None:
            end, h = (ending.row_end, ending.row_h) if scan.trailer is None else (scan.whole_bytes, ending.h)
            where = LogPlace(path, header.id, ending.chunk_count, ending.digest, end, h)
    if where is not None:
        table.note_logged(where)
    return table


def place(session: Session, header: PersistedSessionHeader) -> Session:
    """``session``, placed as the log's session was; not opened.

    Raises:
        PersistenceError: the backend is not here.
    """
    if header.sandbox_backend is None:
        return session
    try:
        return session.to(header.sandbox_backend, spec=header.sandbox_spec)
    except (SandboxError, UsageError, KeyError) as error:
        raise PersistenceError(
            f"session {header.id} was placed in {header.sandbox_backend!r:.100}, which cannot be used here: {error}. "
            "Its rows are there all the same: Session(load_session(id).chunk_table)"
        ) from error


def find_log(session_id: UUID | str) -> Path:
    """The log of a session in the sessions directory.

    Raises:
        PersistenceError: there is none.
    """
    for path in (session_file(session_id), session_partial_file(session_id)):
        if is_there(path):
            return path
    raise PersistenceError(f"no log of session {parse_session_id(session_id)}: looked for {session_file(session_id)}")


def damaged(path: Path, finding: Finding) -> DamagedLog:
    """The error for a log that contradicts itself."""
    return DamagedLog(
        f"{path}: line {finding.line} (byte {finding.offset}): {finding.reason}. The log is {finding.verdict} "
        "and was not changed",
        verdict=finding.verdict,
        reason=finding.reason,
        line=finding.line,
        offset=finding.offset,
    )


def scan_log(path: Path) -> LogScan:
    """What the log at ``path`` says, whichever its schema and verdict.

    Raises:
        DamagedLog: there is no whole header.
        PersistenceError: it cannot be read, or is of a newer schema.
    """
    with open_log(path) as file:
        return scan_file(path, file)


def scan_file(path: Path, file: BinaryIO) -> LogScan:
    """:func:`scan_log` of an open file, from its start; ``path`` is for the messages. Raises ``OSError`` too."""
    scanner: Scanner | LegacyScanner | None = None
    end = os.fstat(file.fileno()).st_size
    number = offset = 0  # of the line at hand
    line = b""
    try:
        for lines, ended in read_lines(file, end):
            if not ended:
                return _cut_off(path, scanner, number, offset)
            for line in lines:
                if scanner is None:
                    scanner = scanner_for(path, line)
                    found = _shared_rows(path, scanner)
                    if found is not None:
                        scanner.scan.finding = found
                        return scanner.scan
                else:
                    scanner.feed(line)
                number += 1
                offset += len(line) + 1
            line = b""  # what read_lines raises is about a line that nobody has
        if scanner is None:
            return _cut_off(path, None, 0, 0)
        scan = scanner.finish()
    except BadLine as error:
        finding = judge_line(line, number, offset, error, file, end)
        if scanner is None:
            raise damaged(path, finding) from None
        scan = scanner.finish() if finding.verdict == "torn" else scanner.scan
        scan.finding = finding
    scan.whole_bytes = offset
    return scan


def _shared_rows(path: Path, scanner: Scanner | LegacyScanner) -> Finding | None:
    """Let the scanner begin behind the rows that the log has in others; why that cannot be."""
    scan = scanner.scan
    if isinstance(scanner, LegacyScanner) or scan.header.get("prefix") is None:
        return None
    try:
        header = header_from_record(scan.header)
        if header.prefix is not None:
            scan.shared = follow(path.parent, header.id, header.prefix, scan.rows.append)
            scanner.digest = scan.shared.digest
    except BadLine as error:
        return Finding("damaged", str(error), 1, 0)
    return None


def _cut_off(path: Path, scanner: Scanner | LegacyScanner | None, number: int, offset: int) -> LogScan:
    """The file ends in a line without its newline."""
    if scanner is None:
        raise damaged(path, Finding("torn", "no whole header", 1, 0))
    scan = scanner.finish()
    scan.finding = Finding("torn", "the last line was cut off", number + 1, offset)
    scan.whole_bytes = offset
    return scan


def scanner_for(path: Path, line: bytes) -> Scanner | LegacyScanner:
    """What reads a log that begins with ``line``."""
    check_length(line)
    header = decode_header(line)
    version = header.get("schema_version")
    if header.get("record_type") != "header" or type(version) is not int:
        raise BadLine("the first record is no header")
    if version > CURRENT_SCHEMA_VERSION:
        raise PersistenceError(
            f"{path} is of schema {str(version)[:40]}; this version of rath reads up to {CURRENT_SCHEMA_VERSION}. "
            "It was not changed: use a newer rath"
        )
    return Scanner(header, line) if version == CURRENT_SCHEMA_VERSION else LegacyScanner(header, version)
