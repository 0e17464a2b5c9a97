"""Reading a log of schema 2 record by record.

A :class:`Scanner` is fed whole lines and holds what they say. Whoever feeds it (:func:`scan_log`) has the first bad
line judged (``judging.py``). Everything here is hostile input; nothing raises but :class:`BadLine` and ``OSError``.

Rows are what a log is made of: each in a chunk record, or in the tool_result record that came before it. Both have a
fixed layout, so they are taken apart by position: two hashes, one decoding of the payload, no decoding of the record.
"""

from __future__ import annotations

import re
from binascii import hexlify
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, BinaryIO

from rath.core.encoding import decode_json
from rath.session.chunk import DIGEST_BYTES, ChunkRow
from rath.session.logplace import LogPlace
from rath.session.persistence.format import (
    EMPTY_DIGEST,
    HASH_BYTES,
    MAX_LINE_BYTES,
    SEAL_LENGTH,
    BadLine,
    chain_hash,
    decode_object,
    decode_strictly,
    row_from_bytes,
    sealed_hash,
)
from rath.session.persistence.recordparts import RESULT, RESULT_ROW, check_length, check_payload, kept, spelt

__all__ = ["Ending", "Finding", "LogScan", "Scanner", "read_lines"]

_BLOCK = 1 << 20
MAX_PENDING = 1 << 18
"""Most results that may wait for their rows. One turn has fewer calls: each takes six of a line's :data:`MAX_ELEMENTS`."""
_CHUNK_START = b'{"record_type":"chunk","seq":'
_RESULT_START = b'{"record_type":"tool_result","seq":'
_CHUNK = re.compile(rb'\{"record_type":"chunk","seq":[0-9]+,"index":([0-9]{1,16}),"row":')
_CHUNK_FORM = b'{"record_type":"chunk","seq":%d,"index":%d,"row":'
_CHUNK_TAIL = len(',"digest":""') + 2 * DIGEST_BYTES + SEAL_LENGTH


@dataclass
class Finding:
    """The first bad line: what it makes of the log, why, and where (1-based line, byte offset)."""

    verdict: str
    reason: str
    line: int
    offset: int


@dataclass
class Ending:
    """Where a log of schema 2 stops, for whoever goes on with it.

    Attributes:
        record_count: whole records.
        h: of the last of them.
        chunk_count: rows up to the last one that has a chunk record, or that a trailer counts; ``digest`` is theirs.
        row_end: where that record ends, and ``row_h`` its hash; 0 if the log has no such row of its own.
        results: tool results behind these rows, by row index.
    """

    record_count: int
    h: bytes
    chunk_count: int
    digest: bytes
    row_end: int
    row_h: bytes
    results: dict[int, ChunkRow]


@dataclass
class LogScan:
    """What a log says: header record, whole rows, other records, trailer, and the verdict.

    ``whole_bytes``: where the last whole record ends. ``ending``: ``None`` for a damaged log and for schema 1.
    ``shared``: where the rows before the log's own stand, if that is known.
    """

    header: dict[str, Any]
    rows: list[ChunkRow] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    trailer: dict[str, Any] | None = None
    finding: Finding | None = None
    whole_bytes: int = 0
    ending: Ending | None = None
    shared: LogPlace | None = None

    @property
    def verdict(self) -> str:
        """``complete``, ``open``, ``torn`` or ``damaged``."""
        if self.finding is not None:
            return self.finding.verdict
        return "open" if self.trailer is None else "complete"


def read_lines(file: BinaryIO, end: int) -> Iterator[tuple[list[bytes], bool]]:
    """Lists of lines, newlines removed, and whether a newline ended them; the unended rest comes last, alone.

    Args:
        end: how far to read. A log may grow faster than it is read, so its size is taken once.

    Raises:
        BadLine: a line is longer than :data:`MAX_LINE_BYTES`; no more than that was read of it.
    """
    parts: list[bytes] = []
    size = 0
    left = end - file.tell()
    while left > 0 and (block := file.read(min(left, _BLOCK))):
        left -= len(block)
        lines = block.split(b"\n")
        size += len(lines[0])
        if size > MAX_LINE_BYTES:
            raise BadLine(f"a line is longer than {MAX_LINE_BYTES:,} bytes")
        parts.append(lines[0])
        if len(lines) == 1:
            continue
        lines[0] = b"".join(parts)
        parts = [lines.pop()]
        size = len(parts[0])
        yield lines, True
    if size:
        yield [b"".join(parts)], False


class Scanner:
    """Takes a log's lines in order and checks each against all before it.

    Args:
        header: the decoded first line.
        line: that line.

    Raises:
        BadLine: it is not the header of a log of this schema, or does not match its own hash.
    """

    def __init__(self, header: dict[str, Any], line: bytes) -> None:
        epoch = header.get("epoch")
        if not isinstance(epoch, str) or len(epoch) != 2 * HASH_BYTES or not epoch.isascii():
            raise BadLine("header: epoch is not 16 hex digits")
        self.seq = 0
        h = chain_hash(epoch.encode(), line[:-SEAL_LENGTH])
        if sealed_hash(line) != h:
            raise BadLine("a record does not match its hash")
        self._check_seq(header)
        self._begin(LogScan(header), h, len(line) + 1)

    @classmethod
    def behind(cls, h: bytes, end: int) -> Scanner:
        """One that has taken a header before: ``h`` is its hash, ``end`` is where its line ends."""
        scanner = object.__new__(cls)
        scanner._begin(LogScan({}), h, end)
        return scanner

    def _begin(self, scan: LogScan, h: bytes, end: int) -> None:
        self.scan = scan
        self.seq = 1
        self.digest = EMPTY_DIGEST
        self.h = h
        self.end = end
        # Results whose row has not come: its bytes.
        self.pending: dict[int, bytes] = {}
        self._row_end, self._row_h = 0, b""

    def feed(self, line: bytes) -> None:
        """Take the next line, without its newline. Raises :class:`BadLine`, and is then as it was before."""
        # Spelt out, not called: half of what loading takes are calls, at some thousand bytes a line.
        h = hexlify(blake2b(self.h + line[:-SEAL_LENGTH], digest_size=HASH_BYTES).digest())
        if line[-SEAL_LENGTH:] != b',"h":"' + h + b'"}':
            raise BadLine("a record does not match its hash")
        end = self.end + len(line) + 1
        if line.startswith(_CHUNK_START) and self._usual_chunk(line):
            counts = True
        elif line.startswith(_RESULT_START) and self._usual_result(line):
            counts = False
        else:
            counts = self._other(line)
        if counts:
            self._row_end, self._row_h = end, h
        self.h = h
        self.end = end
        self.seq += 1

    def finish(self) -> LogScan:
        """What the lines said. A tool's result stands for its row, also where no later record counts it."""
        rows = self.scan.rows
        results = {index: ChunkRow.from_encoded(made) for index, made in self.pending.items()}
        self.scan.ending = Ending(self.seq, self.h, len(rows), self.digest, self._row_end, self._row_h, results)
        while (row := results.get(len(rows))) is not None:
            rows.append(row)
        return self.scan

    def waiting(self) -> Iterator[ChunkRow]:
        """The rows that results stand for, behind those that a chunk or a trailer has counted."""
        index = len(self.scan.rows)
        while (encoded := self.pending.get(index)) is not None:
            yield ChunkRow.from_encoded(encoded)
            index += 1

    def _usual_chunk(self, line: bytes) -> bool:
        """Take a chunk of the usual layout. ``False``: it is none."""
        # Where every result that waits is of a row before it, as behind a whole round. Else it says where it is.
        index = len(self.scan.rows) + len(self.pending)
        start = _CHUNK_FORM % (self.seq, index)
        if not line.startswith(start):
            found = _CHUNK.match(line) if self.pending else None
            if found is None:
                return False
            index = int(found[1])
            start = _CHUNK_FORM % (self.seq, index)
            if not line.startswith(start):
                return False
        if self.scan.trailer is not None:
            return False
        try:
            self._row(index, line[len(start) : -_CHUNK_TAIL], line[-_CHUNK_TAIL:-SEAL_LENGTH])
        except BadLine:  # or there are more fields behind the row: whoever decodes it will see
            return False
        return True

    def _row(self, index: int, encoded: bytes, digest_field: bytes) -> None:
        """Take row ``index`` from its chunk, after the rows before it that stand in results."""
        rows = self.scan.rows
        before = self._results(index) if self.pending else ()
        place = len(rows) + len(before)
        if place != index:
            raise BadLine(f"row {index} where row {place} belongs")
        digest = blake2b((before[-1][1] if before else self.digest) + encoded, digest_size=DIGEST_BYTES).digest()
        if digest_field != b',"digest":"' + hexlify(digest) + b'"':
            raise BadLine("a chunk's digest does not match the rows")
        row = row_from_bytes(encoded)
        if before:
            self._take(before)
        if self.pending:
            self.pending.pop(index, None)
        self.digest = digest
        rows.append(row)

    def _results(self, end: int) -> list[tuple[ChunkRow, bytes]]:
        """The next rows, up to row ``end`` or the first that no result stands for; with each, the digest up to it."""
        made: list[tuple[ChunkRow, bytes]] = []
        digest, waiting = self.digest, self.pending.get
        for index in range(len(self.scan.rows), end):
            encoded = waiting(index)
            if encoded is None:
                break
            digest = blake2b(digest + encoded, digest_size=DIGEST_BYTES).digest()
            made.append((ChunkRow.from_encoded(encoded), digest))
        return made

    def _take(self, results: list[tuple[ChunkRow, bytes]]) -> None:
        rows, pending = self.scan.rows, self.pending
        for row, digest in results:
            pending.pop(len(rows), None)
            # Before the row: whoever is handed it may ask for the digest up to it.
            self.digest = digest
            rows.append(row)

    def _check_seq(self, record: dict[str, Any]) -> None:
        seq = record.get("seq")
        if type(seq) is not int or seq != self.seq:
            raise BadLine(f"seq is {seq!r:.40}, not {self.seq}")

    def _other(self, line: bytes) -> bool:
        """Any record but a chunk of the usual layout. Whether it counts rows: a chunk, a trailer."""
        check_length(line)
        record = decode_object(line)
        self._check_seq(record)
        kind = record.get("record_type")
        if self.scan.trailer is not None and kind != "resume":
            raise BadLine("a record after the trailer")
        if kind == "usage" or kind == "tool_intent":
            self.scan.records.append(kept(record))
            return False
        if kind == "chunk":
            self._chunk(record, line)
        elif kind == "tool_result":
            self._tool_result(record, line)
        elif kind == "trailer":
            self._trailer(record)
        elif kind == "header":
            raise BadLine("a second header")
        elif isinstance(kind, str):
            # Unknown kinds are named too: a schema may gain records that readers can ignore.
            self.scan.trailer = None
            self.scan.records.append(kept(record))
        else:
            raise BadLine("record_type is not text")
        return kind in ("chunk", "trailer")

    def _chunk(self, record: dict[str, Any], line: bytes) -> None:
        index, digest = record.get("index"), record.get("digest")
        if type(index) is not int or type(digest) is not str or type(record.get("row")) is not dict:
            raise BadLine("a chunk without index, row and digest")
        self._row(index, spelt(line, "row"), b',"digest":"%b"' % digest.encode("utf-8", "surrogatepass"))

    def _usual_result(self, line: bytes) -> bool:
        """Take a tool_result of the usual layout. ``False``: it is none."""
        found = RESULT.match(line)
        if found is None or int(found[1]) != self.seq or self.scan.trailer is not None:
            return False
        payload = line[found.end() : -SEAL_LENGTH]
        try:
            check_payload(payload)
            call_id = decode_strictly(found[2])
        except (BadLine, ValueError):
            return False
        index = int(found[3])
        self._result(index, RESULT_ROW % payload)
        self.scan.records.append({"record_type": "tool_result", "seq": self.seq, "call_id": call_id, "index": index})
        return True

    def _tool_result(self, record: dict[str, Any], line: bytes) -> None:
        index = record.get("index")
        if type(index) is not int or index < 0 or not isinstance(record.get("payload"), dict):
            raise BadLine("a tool_result without index and payload")
        self._result(index, RESULT_ROW % spelt(line, "payload"))
        self.scan.records.append(kept(record))

    def _result(self, index: int, encoded: bytes) -> None:
        """Let ``encoded`` wait to become row ``index``."""
        if index in self.pending:
            earlier = self.pending.get(index)
            if earlier != encoded and (not earlier or decode_json(earlier) != decode_json(encoded)):
                raise BadLine("two results for one row")
        if index >= len(self.scan.rows):
            if len(self.pending) >= MAX_PENDING:
                raise BadLine(f"more than {MAX_PENDING:,} results without their rows")
            self.pending[index] = encoded

    def _trailer(self, record: dict[str, Any]) -> None:
        count = record.get("final_chunk_count")
        last = self._results(count) if type(count) is int else []
        rows = len(self.scan.rows) + len(last)
        if count != rows:
            raise BadLine(f"the trailer counts {count!r:.40} rows, not {rows}")
        if record.get("record_count") != self.seq + 1:
            raise BadLine(f"the trailer counts {record.get('record_count')!r:.40} records, not {self.seq + 1}")
        if record.get("digest") != (last[-1][1] if last else self.digest).hex():
            raise BadLine("the trailer's digest does not match the rows")
        self._take(last)
        self.scan.trailer = record
        self.pending.clear()
