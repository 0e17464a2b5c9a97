"""Making a whole log of what is whole in another one. The source is read, never touched."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

from rath.errors import PersistenceError, UsageTypeError
from rath.llm.types import RathLLMTokenUsage, add_usage
from rath.session.chunk import ChunkRow, row_digest
from rath.session.persistence.blobs import CopiedBlobs, copy_blobs
from rath.session.persistence.format import (
    CURRENT_SCHEMA_VERSION,
    EMPTY_DIGEST,
    SEAL_LENGTH,
    chunk_fields,
    decode_object,
    encode_fields,
    line_body,
    result_fields,
    seal,
)
from rath.session.persistence.lock import owner
from rath.session.persistence.manage import writer_of
from rath.session.persistence.paths import log_path, sync_directory
from rath.session.persistence.reader import open_log
from rath.session.persistence.recordparts import result_bytes
from rath.session.persistence.records import plain, timestamp, usage_from_json, usage_to_json
from rath.session.persistence.verdict import Verdict, locate, verdict_of, verify_file
from rath.session.persistence.walk import Walk

__all__ = ["Salvage", "export_session", "export_with_blobs", "salvage"]

_BLOCK = 1 << 20
_NO_BLOBS = CopiedBlobs((), ())
_START = re.compile(rb'(\{"record_type":"([a-z_]+)","seq":)[0-9]+(?=,)')


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Salvage:
    """What :func:`salvage` did: the verdict on the source, and on the new log (always ``complete``).

    ``missing_rows``: how many rows the source had before these in other logs, which could not be had. ``blobs``: the whole
    texts of cut results that were copied, and of those that could not be.
    """

    source: Verdict
    result: Verdict
    missing_rows: int = 0
    blobs: CopiedBlobs = _NO_BLOBS

    @property
    def left_out_bytes(self) -> int:
        """How much of the source is not in the new log."""
        return self.source.left_out_bytes

    @property
    def left_out_records(self) -> int:
        """How many records behind the fault were whole in themselves and are not in the new log."""
        return self.source.records_after


def salvage(path_or_id: Path | str | UUID, out: Path | str) -> Salvage:
    """Write a new, complete log at ``out`` of everything before the first fault of a log.

    The records stand in it as they were written, on a chain of their own; a tool's result whose row never came is
    followed by that row. Rows that the log has in others are written out before its own; where they cannot be had, its
    own are numbered from 0. The trailer's ``outcome`` has the status ``salvaged`` and says from where, with what verdict,
    and what was left out. A log of schema 1 becomes one of schema 2. ``out`` is there whole or not at all, and so are the
    blobs that its rows name, as far as the source has them.

    Raises:
        PersistenceError: the log is complete, has no whole header, or is being written; ``out`` is there already; a
            file cannot be read or written.
    """
    source, _ = locate(path_or_id)
    target = _free(out)
    who = writer_of(source)
    if who is not None:
        raise PersistenceError(f"{source} is being written by {who}: salvage it when that has ended")
    with open_log(source) as file, _new_file(target) as (made, temporary):
        size = os.fstat(file.fileno()).st_size
        copy = _Copy(made, file, size, source)
        copy.run(owner())
        found = verdict_of(copy.walk, size, source)
        if found.verdict == "complete":
            raise PersistenceError(f"{source} is complete: there is nothing to salvage. export_session copies it")
        if copy.walk.header is None:
            raise PersistenceError(f"nothing can be salvaged from {source}: {found}, so that there is no whole header")
        copy.finish(found)
        result = _checked(made, target)
        blobs = copy_blobs(source, temporary)
    return Salvage(source=found, result=result, missing_rows=copy.walk.missing, blobs=blobs)


def export_session(path_or_id: Path | str | UUID, out: Path | str) -> Verdict:
    """Copy a log to ``out``, checked, and return the verdict on the copy: ``complete``, or ``open``.

    Of a log that is torn, or being written, the whole records are copied. Rows that the log has in others are written
    out before its own, so that the copy needs no other; blobs that its rows name are copied too. ``out`` is there whole or
    not at all.

    Raises:
        PersistenceError: the log is damaged (salvage it); ``out`` is there already; a file cannot be read or written.
    """
    return export_with_blobs(path_or_id, out)[0]


def export_with_blobs(path_or_id: Path | str | UUID, out: Path | str) -> tuple[Verdict, CopiedBlobs]:
    """:func:`export_session`, and which blobs were copied."""
    source, _ = locate(path_or_id)
    target = _free(out)
    with open_log(source) as file, _new_file(target) as (made, temporary):
        size = os.fstat(file.fileno()).st_size
        walk = Walk(file, size, source)
        for _ in walk:
            pass
        found = verdict_of(walk, size, source)
        if found.verdict == "damaged" or walk.header is None:
            raise PersistenceError(f"{source} is {found}. It was not copied: salvage makes a log of what is whole in it")
        file.seek(0)
        if walk.header.prefix is not None:
            copy = _Copy(made, file, found.whole_bytes, source)
            copy.run(walk.header.writer)
            copy.end()
        else:
            left = found.whole_bytes
            while left > 0 and (block := file.read(min(left, _BLOCK))):
                made.write(block)
                left -= len(block)
        # Before the copy has its name: a log that names a blob is never there without it.
        return _checked(made, target), copy_blobs(source, temporary)


class _Copy:
    """The records of a log, on a new chain, after the rows that it has in others."""

    def __init__(self, out: BinaryIO, file: BinaryIO, end: int, path: Path) -> None:
        self.walk = Walk(file, end, path, each_row=self._see_row, each_record=self._see, each_shared=self._take_row)
        self._file = out
        self._epoch = os.urandom(8).hex()
        self._h = self._epoch.encode()
        self._seq = self._rows = 0
        self._digest = EMPTY_DIGEST
        self._usage: RathLLMTokenUsage | None = None
        self._writer: dict[str, Any] | None = None
        self._row: ChunkRow | None = None
        self._trailer = b""

    def run(self, writer: dict[str, Any] | None) -> None:
        """Copy every whole record but the trailer that is the last; ``writer`` is for the header."""
        self._writer = writer
        for number, line in enumerate(self.walk):
            if number == 0:
                self._write_header()
            elif self.walk.schema == CURRENT_SCHEMA_VERSION:  # schema 1 is written row by row
                self.end()  # a log that was resumed
                if self.walk.trailer is None:
                    self._copy(line)
                else:
                    self._trailer = line

    def end(self) -> None:
        """Copy the trailer, if it is the last record so far."""
        if self._trailer:
            self._copy(self._trailer)
            self._trailer = b""

    def _see_row(self, row: ChunkRow) -> None:
        if self.walk.schema != CURRENT_SCHEMA_VERSION:
            self._take_row(row)
        else:
            self._row, self._digest = row, row_digest(self._digest, row)
            self._rows += 1

    def _take_row(self, row: ChunkRow) -> None:
        self._write_header()
        self._digest = row_digest(self._digest, row)
        self._write(line_body("chunk", self._seq, chunk_fields(self._rows, row.encoded, self._digest)))
        self._rows += 1

    def _see(self, record: dict[str, Any]) -> None:
        usage = usage_from_json(record) if record.get("record_type") == "usage" else None
        self._usage = add_usage(self._usage, usage)

    def _write_header(self) -> None:
        if self._seq:
            return
        record = {name: value for name, value in self.walk.header_record.items() if name not in ("seq", "h")}
        record |= {"epoch": self._epoch, "writer": self._writer, "schema_version": CURRENT_SCHEMA_VERSION, "prefix": None}
        if self.walk.missing:
            record["seed_rows"] = None
        fields = {name: value for name, value in record.items() if name != "record_type"}
        self._write(line_body("header", 0, _encoded(fields)))

    def _copy(self, line: bytes) -> None:
        header = self.walk.header
        if header is not None and header.prefix is None:
            self._write(line[:-SEAL_LENGTH])  # its seq stays: nothing before it is left out
        elif (body := self._renumbered(line)) is not None:
            self._write(body)

    def _renumbered(self, line: bytes) -> bytes | None:
        """The record's body where it stands now; ``None`` for a result of a row that is missing."""
        found = _START.match(line)
        record = {} if found else decode_object(line)
        kind = found[2].decode() if found else record["record_type"]
        if kind == "chunk" and self._row is not None and (self.walk.missing or not found):
            return line_body(kind, self._seq, chunk_fields(self._rows - 1, self._row.encoded, self._digest))
        if kind == "tool_result" and (self.walk.missing or not found):
            return self._result(line)
        if found and kind != "trailer":
            return b"%b%d%b" % (found[1], self._seq, line[found.end() : -SEAL_LENGTH])
        fields = {name: value for name, value in decode_object(line).items() if name not in ("record_type", "seq", "h")}
        if kind == "trailer":
            counts = {"final_chunk_count": self._rows, "record_count": self._seq + 1, "digest": self._digest.hex()}
            fields |= counts
        return line_body(kind, self._seq, _encoded(fields))

    def _result(self, line: bytes) -> bytes | None:
        record = decode_object(line)
        index, encoded = record["index"] - self.walk.missing, result_bytes(line)
        if index < 0:
            return None
        payload = ChunkRow.from_encoded(encoded).encoded_payload
        return line_body("tool_result", self._seq, result_fields(record.get("call_id"), index, payload))

    def _write(self, body: bytes) -> None:
        line, self._h = seal(body, self._h)
        self._file.write(line)
        self._seq += 1

    def finish(self, found: Verdict) -> None:
        """Write the rows of results that have none, and the trailer."""
        for row in self.walk.rows_from_results():
            self._take_row(row)
        last = self.walk.trailer or {}
        trailer = {
            "closed_at": timestamp(),
            "final_chunk_count": self._rows,
            "record_count": self._seq + 1,
            "digest": self._digest.hex(),
            "cumulative_usage": last.get("cumulative_usage", usage_to_json(self._usage)),
            "lineage_extras": last.get("lineage_extras", self.walk.header_record.get("lineage_extras") or []),
            "outcome": plain(_outcome(found, self.walk.missing, last.get("outcome"))),
        }
        self._write(line_body("trailer", self._seq, _encoded(trailer)))


def _encoded(fields: dict[str, Any]) -> bytes:
    try:
        return encode_fields(fields)
    except UsageTypeError as error:  # a number of more than 64 bits, which no writer of ours writes
        raise PersistenceError(f"a record of this log cannot be written again: {error}") from error


def _outcome(found: Verdict, missing_rows: int, before: object) -> dict[str, Any]:
    return {
        "status": "salvaged",
        "source": str(found.path),
        "verdict": found.verdict,
        "reason": found.reason,
        "line": found.line,
        "offset": found.offset,
        "left_out_bytes": found.left_out_bytes,
        "left_out_records": found.records_after,
        "missing_rows": missing_rows,
        "outcome": before,
    }


# -- a file that is there whole or not at all ------------------------------------------------------------------


def _free(out: Path | str) -> Path:
    target = log_path(out)
    if os.path.lexists(target):
        raise _taken(target)
    return target


def _taken(target: Path) -> PersistenceError:
    return PersistenceError(f"{target} is there already, and is not overwritten: give another name")


@contextmanager
def _new_file(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file, under a name beside ``target``: it gets that one when the block ends well, and is removed when it does not."""
    temporary = target.with_name(f".{target.name[:200]}.{os.urandom(6).hex()}.tmp")
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(fd, "w+b") as file:
                yield file, temporary
                file.flush()
                os.fsync(file.fileno())
            _name(temporary, target)
            sync_directory(target.parent)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as error:
        raise PersistenceError(f"cannot write {target}: {error.strerror or error}. It is not there") from error


def _name(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)  # unlike a rename, never in place of another file
    except FileExistsError:
        raise _taken(target) from None
    except OSError:  # a file system without links
        if os.path.lexists(target):
            raise _taken(target) from None
        os.rename(temporary, target)


def _checked(file: BinaryIO, target: Path) -> Verdict:
    """The verdict on what was written; an error if a reader would not take it."""
    file.flush()
    size = file.tell()
    file.seek(0)
    found = verify_file(file, size, target)
    if found.verdict not in ("complete", "open"):
        raise PersistenceError(f"a copy of this log would be {found}, so that none was made")
    return found
