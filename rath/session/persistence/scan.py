"""Reading a log of schema 2 record by record, and judging what is found.

A :class:`Scanner` is fed whole lines and holds what they say. Whoever feeds it (:func:`scan_log`) finds, at
the first bad line, which verdict it is: a tail that was cut off (``torn``: what stands before is whole) or a
contradiction (``damaged``). Everything here is hostile input; nothing raises but :class:`BadLine` and
``OSError``.

The chunk record is what a log is made of, and its layout is fixed, so it is taken apart by position: two
hashes, one decoding of the payload, no decoding of the record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, BinaryIO

import msgspec

from rath.errors import UsageTypeError
from rath.session.chunk import DIGEST_BYTES, ChunkKind, ChunkRow
from rath.session.persistence.format import (
    EMPTY_DIGEST,
    HASH_BYTES,
    LONG_RECORDS,
    MAX_LINE_BYTES,
    MAX_OTHER_BYTES,
    SEAL_LENGTH,
    BadLine,
    chain_hash,
    decode_object,
    row_from_bytes,
    sealed_hash,
)

__all__ = ["Ending", "Finding", "LogScan", "Scanner", "check_length", "judge_line", "read_lines", "result_row"]

_BLOCK = 1 << 20
# Of other records only these fields are kept, and no structure in them: a log is as large in memory as its rows.
_KEPT = {
    "tool_intent": ("call_id", "name", "arguments_digest", "idempotent"),
    "tool_result": ("call_id", "index"),
    "usage": (
        *("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details"),
        *("model", "price"),
    ),
    "spill": ("digest", "bytes", "call_id"),
    "resume": ("epoch", "writer", "repaired"),
}
_MAX_KEPT_ENTRIES = 32
MAX_PENDING = 1 << 18
"""Most results that may wait for their rows. One turn has fewer calls: each takes six of a line's :data:`MAX_ELEMENTS`."""
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
        chunk_count: rows whose chunk record is there; ``digest`` is theirs.
        results: tool results whose chunk record is not there, by row index; ``None`` for one that is no row.
    """

    record_count: int
    h: bytes
    chunk_count: int
    digest: bytes
    results: dict[int, ChunkRow | None]


@dataclass
class LogScan:
    """What a log says: header record, whole rows, other records, trailer, and the verdict.

    ``whole_bytes``: where the last whole record ends. ``ending``: ``None`` for a damaged log and for schema 1.
    """

    header: dict[str, Any]
    rows: list[ChunkRow] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    trailer: dict[str, Any] | None = None
    finding: Finding | None = None
    whole_bytes: int = 0
    ending: Ending | None = None

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


class _ChunkRecord(msgspec.Struct):
    """A chunk record whose fields stand in another order than ours."""

    index: int
    row: msgspec.Raw
    digest: str


class _KindRecord(msgspec.Struct):
    """What kind of record a line is; the rest of it is read over, not decoded."""

    record_type: str


class _ResultRecord(msgspec.Struct):
    """The part of a tool_result that becomes a row, as it is spelt."""

    payload: msgspec.Raw


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
        self.scan = LogScan(header)
        self.seq = 0
        self.digest = EMPTY_DIGEST
        self._h = self._checked_hash(line, epoch.encode())
        self._pending: dict[int, bytes] = {}
        self._check_seq(header)
        self.seq = 1

    def feed(self, line: bytes) -> None:
        """Take the next line, without its newline. Raises :class:`BadLine`, and is then as it was before."""
        body = line[:-SEAL_LENGTH]
        h = blake2b(self._h + body, digest_size=HASH_BYTES).hexdigest().encode()
        if line[-SEAL_LENGTH:] != b',"h":"%b"}' % h:
            raise BadLine("a record does not match its hash")
        rows = self.scan.rows
        start = b'{"record_type":"chunk","seq":%d,"index":%d,"row":' % (self.seq, len(rows))
        if line.startswith(start) and self.scan.trailer is None:
            encoded = line[len(start) : -_CHUNK_TAIL]
            digest = blake2b(self.digest + encoded, digest_size=DIGEST_BYTES).digest()
            if line[-_CHUNK_TAIL:-SEAL_LENGTH] != b',"digest":"%b"' % digest.hex().encode():
                raise BadLine("a chunk's digest does not match the rows")
            rows.append(row_from_bytes(encoded))
            self.digest = digest
            if self._pending:
                self._pending.pop(len(rows) - 1, None)
        else:
            self._other(line)
        self._h = h
        self.seq += 1

    def finish(self) -> LogScan:
        """What the lines said. A tool's result stands for its row where the row itself never came."""
        rows = self.scan.rows
        results = {index: result_row(line) for index, line in self._pending.items()}
        self.scan.ending = Ending(self.seq, self._h, len(rows), self.digest, results)
        while (row := results.get(len(rows))) is not None:
            rows.append(row)
        return self.scan

    def _checked_hash(self, line: bytes, previous: bytes) -> bytes:
        h = chain_hash(previous, line[:-SEAL_LENGTH])
        if sealed_hash(line) != h:
            raise BadLine("a record does not match its hash")
        return h

    def _check_seq(self, record: dict[str, Any]) -> None:
        seq = record.get("seq")
        if type(seq) is not int or seq != self.seq:
            raise BadLine(f"seq is {seq!r:.40}, not {self.seq}")

    def _other(self, line: bytes) -> None:
        """Any record but a chunk of the usual layout."""
        check_length(line)
        record = decode_object(line)
        self._check_seq(record)
        kind = record.get("record_type")
        if self.scan.trailer is not None and kind != "resume":
            raise BadLine("a record after the trailer")
        if kind == "chunk":
            self._chunk(line)
        elif kind == "tool_result":
            self._tool_result(record, line)
        elif kind == "trailer":
            self._trailer(record)
        elif kind == "header":
            raise BadLine("a second header")
        elif isinstance(kind, str):
            # Unknown kinds are named too: a schema may gain records that readers can ignore.
            self.scan.trailer = None
            self.scan.records.append(_kept(record))
        else:
            raise BadLine("record_type is not text")

    def _chunk(self, line: bytes) -> None:
        try:
            record = msgspec.json.decode(line, type=_ChunkRecord)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise BadLine("a chunk without index, row and digest") from None
        if record.index != len(self.scan.rows):
            raise BadLine(f"row {record.index} where row {len(self.scan.rows)} belongs")
        encoded = bytes(record.row)
        digest = blake2b(self.digest + encoded, digest_size=DIGEST_BYTES).digest()
        if record.digest != digest.hex():
            raise BadLine("a chunk's digest does not match the rows")
        self.scan.rows.append(row_from_bytes(encoded))
        self.digest = digest
        self._pending.pop(record.index, None)

    def _tool_result(self, record: dict[str, Any], line: bytes) -> None:
        index, payload = record.get("index"), record.pop("payload", None)
        if type(index) is not int or index < 0 or not isinstance(payload, dict):
            raise BadLine("a tool_result without index and payload")
        earlier = self._pending.get(index)
        if earlier is not None and decode_object(earlier)["payload"] != payload:
            raise BadLine("two results for one row")
        if index >= len(self.scan.rows):
            if len(self._pending) >= MAX_PENDING:
                raise BadLine(f"more than {MAX_PENDING:,} results without their rows")
            self._pending[index] = line
        self.scan.records.append(_kept(record))

    def _trailer(self, record: dict[str, Any]) -> None:
        if record.get("final_chunk_count") != len(self.scan.rows):
            raise BadLine(f"the trailer counts {record.get('final_chunk_count')!r:.40} rows, not {len(self.scan.rows)}")
        if record.get("record_count") != self.seq + 1:
            raise BadLine(f"the trailer counts {record.get('record_count')!r:.40} records, not {self.seq + 1}")
        if record.get("digest") != self.digest.hex():
            raise BadLine("the trailer's digest does not match the rows")
        self.scan.trailer = record
        self._pending.clear()


def check_length(line: bytes) -> None:
    """Raise :class:`BadLine` for a line that is longer than a record of its kind may be, before it is decoded."""
    if len(line) < MAX_OTHER_BYTES:
        return
    try:
        if msgspec.json.decode(line, type=_KindRecord).record_type in LONG_RECORDS:
            return
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Lone surrogates, which msgspec refuses even where it only reads over them; rath writes the kind first.
        if any(line.startswith(b'{"record_type":"%b",' % kind.encode()) for kind in LONG_RECORDS):
            return
    raise BadLine(f"a record without a row is longer than {MAX_OTHER_BYTES:,} bytes")


def _kept(record: dict[str, Any]) -> dict[str, Any]:
    kind = record["record_type"]
    kept = {"record_type": kind, "seq": record["seq"]}
    for name in _KEPT.get(kind, ()):
        if name in record and _is_small(record[name]):
            kept[name] = record[name]
    return kept


def _is_small(value: Any) -> bool:
    """Whether a value is no structure, or a short object without structure in it."""
    if isinstance(value, dict):
        return len(value) <= _MAX_KEPT_ENTRIES and not any(isinstance(item, (dict, list)) for item in value.values())
    return not isinstance(value, list)


def result_row(line: bytes) -> ChunkRow | None:
    """The row that a tool_result record would have become; ``None`` if it could not have become one."""
    try:
        payload = bytes(msgspec.json.decode(line, type=_ResultRecord).payload)
        return row_from_bytes(b'{"kind":"tool_result","payload":' + payload + b"}")
    except (msgspec.MsgspecError, UnicodeDecodeError):  # escaped lone surrogates, which msgspec refuses
        pass
    try:
        return ChunkRow(ChunkKind.TOOL_RESULT, decode_object(line)["payload"])
    except UsageTypeError:  # numbers of more than 64 bits, which no writer of ours writes
        return None


def judge_line(bad: bytes, number: int, offset: int, error: BadLine, file: BinaryIO, end: int) -> Finding:
    """The verdict on a log whose line ``number`` (from 0) is the first bad one.

    Args:
        bad: the line; ``offset`` is where it begins.
        error: what is wrong with it.
        file: the log up to ``end``; it is read again, before and after the line.
    """
    found = Finding("damaged", str(error), number + 1, offset)
    try:
        if _continues_earlier(bad, number, file, end):
            found.reason = "two writers: a second record continues an earlier one"
        elif _valid_after(offset, file, end):
            found.reason += "; whole records follow"
        elif b"\0" in bad:
            # What a file system leaves of blocks that it had promised and never wrote.
            found.verdict, found.reason = "torn", "NUL bytes at the end"
    except BadLine:  # an endless line further down: nothing that could be told from it
        pass
    return found


def _continues_earlier(bad: bytes, number: int, file: BinaryIO, end: int) -> bool:
    """Whether the line is a record that is valid on the chain of a record before the last one."""
    h = sealed_hash(bad)
    if h is None:
        return False
    try:
        record = decode_object(bad)
    except BadLine:
        return False
    seq = record.get("seq")
    if type(seq) is not int or not 0 <= seq < number:
        return False
    if seq == 0:
        previous = str(record.get("epoch")).encode("utf-8", "replace")
    else:
        # Every line before the bad one is in its place: line n has seq n.
        before = _line_at(seq - 1, file, end)
        previous = sealed_hash(before) or b""
    return chain_hash(previous, bad[:-SEAL_LENGTH]) == h


def _line_at(number: int, file: BinaryIO, end: int) -> bytes:
    file.seek(0)
    for lines, _ in read_lines(file, end):
        if number < len(lines):
            return lines[number]
        number -= len(lines)
    return b""


def _valid_after(offset: int, file: BinaryIO, end: int) -> bool:
    """Whether a whole record after the bad line continues the line before it."""
    file.seek(offset)
    previous: bytes | None = None  # what the line before says its hash is; nothing is before the first
    for lines, ended in read_lines(file, end):
        for line in lines:
            h = sealed_hash(line) if ended else None
            if h is not None and previous is not None and chain_hash(previous, line[:-SEAL_LENGTH]) == h:
                return True
            previous = h
    return False
