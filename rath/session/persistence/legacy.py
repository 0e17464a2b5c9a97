"""Reading logs of schemas before 2: the same records without ``seq`` and hashes.

Without a chain only the count in the trailer can contradict the rows. OpenRath 1.2 wrote these, under
``<id>.jsonl`` and, while open, ``<id>.jsonl.__partial__``.
"""

from __future__ import annotations

from typing import Any

from rath.errors import UsageTypeError
from rath.session.chunk import ChunkKind, ChunkRow
from rath.session.persistence.format import BadLine, decode_object
from rath.session.persistence.migrations import upgrade_chunk, upgrade_header
from rath.session.persistence.scan import LogScan

__all__ = ["LegacyScanner"]


class LegacyScanner:
    """Takes the lines of an older log in order.

    Args:
        header: the decoded first line.
        version: its schema.

    Raises:
        BadLine: it cannot be lifted to the current schema.
    """

    def __init__(self, header: dict[str, Any], version: int) -> None:
        if "h" in header or "epoch" in header:
            raise BadLine(f"a header with a hash chain that claims schema {version}, which has none")
        if header.get("prefix") is not None:
            raise BadLine(f"prefix: a log of schema {version} has none")
        self.version = version
        self.scan = LogScan(upgrade_header(header, version))

    def feed(self, line: bytes) -> None:
        """Take the next line, without its newline. Raises :class:`BadLine`."""
        if not line.strip():
            return
        record = decode_object(line, lenient=True)
        if self.scan.trailer is not None:
            raise BadLine("a record after the trailer")
        kind = record.get("record_type")
        if kind == "chunk":
            self.scan.rows.append(_row(upgrade_chunk(record, self.version)))
        elif kind == "trailer":
            count = record.get("final_chunk_count")
            if count != len(self.scan.rows):
                raise BadLine(f"the trailer counts {count!r:.40} rows, not {len(self.scan.rows)}")
            self.scan.trailer = record
        else:
            raise BadLine(f"record_type is {kind!r:.40}")

    def finish(self) -> LogScan:
        """What the lines said."""
        return self.scan


def _row(record: dict[str, Any]) -> ChunkRow:
    row = record.get("row")
    kind, payload = (row.get("kind"), row.get("payload")) if isinstance(row, dict) else (None, None)
    if not isinstance(payload, dict):
        raise BadLine("a chunk without a payload")
    try:
        return ChunkRow(ChunkKind(kind), payload)
    except (ValueError, UsageTypeError) as error:
        raise BadLine(f"a chunk that is no row: {error!s:.100}") from None
