"""What a log's two ends say: enough for a listing, at a cost that does not depend on the log's size."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rath.session.persistence.format import (
    CURRENT_SCHEMA_VERSION,
    SEAL_LENGTH,
    BadLine,
    chain_hash,
    decode_header,
    decode_object,
    sealed_hash,
)
from rath.session.persistence.migrations import upgrade_header
from rath.session.persistence.records import PersistedSessionHeader, header_from_record

__all__ = ["Edges", "parse_header", "read_edges", "read_first_line"]

_EDGE = 4096
# Read further only when the file's end lies inside one long line, as after a crash while writing a large row.
_WINDOWS = (_EDGE, 1 << 16, 1 << 20)
_MAX_HEADER = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Edges:
    """A log's header, and how it ends.

    Attributes:
        rows: by the trailer; without one, up to the last row near the file's end. Those of a prefix are counted.
        ending: ``complete`` (its last line is a trailer), ``open`` or ``torn``: its verdict, if what stands between is good.
    """

    header: PersistedSessionHeader
    rows: int
    ending: str
    size_bytes: int


def read_edges(path: Path) -> Edges:
    """The first line and the last 4 KiB of a log (at most 1 MiB of each end, where one line is longer).

    Raises:
        BadLine: it is no log, or has no whole header.
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        start = os.pread(fd, _EDGE, 0)
        header = _header(fd, start)
        size = len(start)
        if size == _EDGE:
            size = os.fstat(fd).st_size
        rows, ending = _ending(fd, start, size, header.prefix.length if header.prefix else 0)
    finally:
        os.close(fd)
    return Edges(header=header, rows=rows, ending=ending, size_bytes=size)


def _header(fd: int, start: bytes) -> PersistedSessionHeader:
    line = read_first_line(fd, start)
    if line is None:
        raise BadLine("no whole header")
    return parse_header(line)


def read_first_line(fd: int, start: bytes) -> bytes | None:
    """The first line of a file, without its newline; ``None`` if none ends within the first MiB.

    Args:
        start: the file's first 4 KiB.
    """
    line, newline, _ = start.partition(b"\n")
    if not newline and len(start) >= _EDGE:
        line, newline, _ = os.pread(fd, _MAX_HEADER, 0).partition(b"\n")
    return line if newline else None


def parse_header(line: bytes) -> PersistedSessionHeader:
    """The header that a log's first line is.

    Raises:
        BadLine: it is none, is of a newer schema, or does not match its own hash.
    """
    record = decode_header(line)
    version = record.get("schema_version")
    if record.get("record_type") != "header" or type(version) is not int or version > CURRENT_SCHEMA_VERSION:
        raise BadLine(f"not the header of a session log of schema {CURRENT_SCHEMA_VERSION} or older")
    if version < CURRENT_SCHEMA_VERSION:
        return header_from_record(upgrade_header(record, version))
    header = header_from_record(record)
    if sealed_hash(line) != chain_hash((header.epoch or "").encode(), line[:-SEAL_LENGTH]):
        raise BadLine("a record does not match its hash")
    return header


def _ending(fd: int, start: bytes, size: int, shared_rows: int) -> tuple[int, str]:
    """How many rows the log has, as far as its end tells, and how it ends."""
    cut = False
    results: set[int] = set()
    for window in _WINDOWS:
        tail = start if size <= len(start) else os.pread(fd, window, max(0, size - window))
        lines = tail.split(b"\n")
        cut = lines.pop() != b""
        unfinished = "torn" if cut else "open"
        if window < size:
            del lines[:1]  # begins somewhere inside a line
        results = set()
        for place, line in enumerate(reversed([line for line in lines if line.strip()])):
            record = _record(line)
            kind = record.get("record_type")
            if kind == "trailer":
                return _count(record.get("final_chunk_count")), "complete" if place == 0 and not cut else unfinished
            if kind == "chunk":
                return _with_results(_count(record.get("index")) + 1, results), unfinished
            if kind == "tool_result":
                results.add(_count(record.get("index")))
        if window >= size:
            break
    # Results may be so long that the row before them is out of sight: then theirs are the rows that are known.
    unseen = bool(results) and size > _WINDOWS[-1]
    return _with_results(min(results) if unseen else shared_rows, results), "torn" if cut else "open"


def _with_results(rows: int, results: set[int]) -> int:
    """So many rows, and the tools' results that come right after them."""
    while rows in results:
        rows += 1
    return rows


def _record(line: bytes) -> dict[str, Any]:
    """The line's record; an empty one where it is none, which loading will report."""
    try:
        return decode_object(line, lenient=True)
    except BadLine:
        return {}


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**63 else 0
