"""``rath sessions tail``: the rows of a log as they come, from whichever process writes it."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nlargest
from pathlib import Path
from typing import Any, BinaryIO

from rath.cli.console import Trouble, err, out
from rath.cli.sessions import find_session_log
from rath.cli.sessions_show import show_row
from rath.core.encoding import decode_json
from rath.display.text import count, one_line
from rath.session.chunk import ChunkKind, ChunkRow
from rath.session.persistence.blobs import BlobStore
from rath.session.persistence.format import (
    CURRENT_SCHEMA_VERSION,
    SEAL_LENGTH,
    BadLine,
    chain_hash,
    decode_header,
    decode_object,
    sealed_hash,
)
from rath.session.persistence.manage import writer_of
from rath.session.persistence.migrations import upgrade_chunk
from rath.session.persistence.prefix import follow
from rath.session.persistence.records import PersistedSessionHeader, header_from_record
from rath.session.persistence.scan import read_lines
from rath.session.persistence.source import open_log

__all__ = ["tail_log"]

_POLL_S = 0.1


@dataclass(slots=True)
class _Reader:
    """The records of a log up to its last whole line, from where the last look ended."""

    file: BinaryIO
    offset: int = 0
    lines: int = 0
    trailer: dict[str, Any] | None = None
    version: int = CURRENT_SCHEMA_VERSION
    header: PersistedSessionHeader | None = None
    faults: list[str] = field(default_factory=list)
    _h: bytes = b""
    _early: set[int] = field(default_factory=set)

    def rows(self) -> Iterator[tuple[int, ChunkRow]]:
        """The rows that have come since; each once. A tool's result comes when the tool has ended, before its row does."""
        size = os.fstat(self.file.fileno()).st_size
        if size < self.offset:
            # Whole lines are never cut off by a writer: this is another file by now.
            self.faults.append(f"the log was cut to {size:,} bytes: here it is again from its start")
            self.offset, self.lines, self.trailer = 0, 0, None
            self._early.clear()
        self.file.seek(self.offset)
        try:
            for lines, ended in read_lines(self.file, size):
                for line in lines if ended else ():
                    self.offset += len(line) + 1
                    self.lines += 1
                    yield from self._row(line)
        except BadLine as error:
            raise Trouble(f"line {self.lines + 1}: {error}", code=1) from None

    def _row(self, line: bytes) -> Iterator[tuple[int, ChunkRow]]:
        try:
            lenient = self.version < CURRENT_SCHEMA_VERSION
            record = decode_header(line) if self.lines == 1 else decode_object(line, lenient=lenient)
            self._check(record, line)
            kind = record.get("record_type")
            self.trailer = record if kind == "trailer" else None
            if kind == "chunk":
                record = upgrade_chunk(record, self.version)
                index, row = _index(record), record["row"]
                if index in self._early:
                    self._early.discard(index)
                else:
                    yield index, ChunkRow(ChunkKind(row["kind"]), row["payload"])
            elif kind == "tool_result" and _index(record) not in self._early:
                yield _index(record), ChunkRow(ChunkKind.TOOL_RESULT, record["payload"])
                self._early.add(_index(record))
        except (BadLine, ValueError, TypeError, KeyError) as error:
            self.faults.append(f"line {self.lines}: {one_line(str(error) or type(error).__name__, 200)}")

    def _check(self, record: dict[str, Any], line: bytes) -> None:
        if self.lines == 1:
            version = record.get("schema_version")
            if record.get("record_type") != "header" or type(version) is not int or version > CURRENT_SCHEMA_VERSION:
                raise Trouble(f"the file does not begin with the header of a log of schema {CURRENT_SCHEMA_VERSION}", code=1)
            self.version, self._h = version, str(record.get("epoch")).encode("utf-8", "replace")
            self.header = header_from_record(record) if version == CURRENT_SCHEMA_VERSION else None
        if self.version < CURRENT_SCHEMA_VERSION:
            return
        h, before = sealed_hash(line), self._h
        self._h = h or b""
        if h is None or chain_hash(before, line[:-SEAL_LENGTH]) != h:
            raise BadLine("the record does not match its hash")


def tail_log(session: str, *, follow: bool, last: int, full: bool, as_json: bool) -> int:
    """Print the last rows of a log, and those that come; 0 if it is complete at the end."""
    path = find_session_log(session)
    with open_log(path) as file:
        reader = _Reader(file)
        # By their places: results come in the order in which tools ended.
        rows = nlargest(last, reader.rows(), key=_place) if last else list(reader.rows())
        show = _Printer(path, full, as_json)
        for index, row in (*_rows_before(path, reader, len(rows), last), *sorted(rows, key=_place)):
            show(index, row)
        _tell(reader)
        while follow and reader.trailer is None:
            # Asked before reading: what a writer that is gone has written is all there.
            gone = writer_of(path) is None
            for index, row in reader.rows():
                show(index, row)
            _tell(reader)
            if not _is_at(file, path):
                err().line((f"{path} is gone", "yellow"))
                return 1
            if gone:
                break
            if reader.trailer is None:
                time.sleep(_POLL_S)
    return _end(path, reader, as_json, ended=follow)


def _index(record: dict[str, Any]) -> int:
    if type(record.get("index")) is not int:
        raise BadLine("a row without an index")
    return int(record["index"])


def _place(row: tuple[int, ChunkRow]) -> int:
    return row[0]


def _rows_before(path: Path, reader: _Reader, shown: int, last: int) -> list[tuple[int, ChunkRow]]:
    """Rows that stand in other logs, where the log's own are fewer than are wanted."""
    prefix = None if reader.header is None else reader.header.prefix
    if reader.header is None or prefix is None or (last and shown >= last):
        return []
    rows: deque[ChunkRow] = deque(maxlen=last - shown if last else None)
    try:
        follow(path.parent, reader.header.id, prefix, rows.append)
    except BadLine as error:
        reader.faults.append(f"{count(prefix.length, 'row')} before these cannot be had: {one_line(str(error), 200)}")
        return []
    return list(enumerate(rows, prefix.length - len(rows)))


class _Printer:
    """Prints rows of a log."""

    def __init__(self, path: Path, full: bool, as_json: bool) -> None:
        self._full, self._as_json = full, as_json
        self._blobs = BlobStore.of_log(path)

    def __call__(self, index: int, row: ChunkRow) -> None:
        if self._as_json:
            out().json({"index": index, **decode_json(row.encoded)}, indent=None)
            return
        show_row(out(), index, row, self._full, self._blobs)
        out().console.file.flush()


def _tell(reader: _Reader) -> None:
    for fault in reader.faults:
        err().line((fault, "yellow"))
    reader.faults.clear()


def _end(path: Path, reader: _Reader, as_json: bool, *, ended: bool) -> int:
    if reader.trailer is not None:
        outcome = reader.trailer.get("outcome")
        status = outcome.get("status") if isinstance(outcome, dict) else None
        if not as_json:
            out().line((f"the log is closed{f', {status}' if status else ''}", "green"))
        return 0
    who = writer_of(path)
    if who is not None:
        err().line((f"{who} is writing it", "dim"))
        return 0
    err().line(("the log has no trailer, and nobody is writing it: `rath sessions verify` says more", "yellow"))
    return 1 if ended else 0


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
