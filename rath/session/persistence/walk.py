"""Going through a log once, from its start to its first fault, without keeping it: memory is bounded, whatever its size.

The scanners (``scan.py``, ``legacy.py``) hold what they read, for whoever loads a session. Here their tables are
replaced by ones that count: a row is checked and let go, and a tool's result that waits for its row is a place in
the file, read again when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from rath.session.chunk import ChunkRow
from rath.session.persistence.format import CURRENT_SCHEMA_VERSION, SEAL_LENGTH, BadLine, chain_hash, sealed_hash
from rath.session.persistence.legacy import LegacyScanner
from rath.session.persistence.reader import refuse_prefix, scanner_for
from rath.session.persistence.records import PersistedSessionHeader, header_from_record
from rath.session.persistence.scan import Finding, Scanner, judge_line, read_lines, result_row

__all__ = ["Walk"]

T = TypeVar("T")


class _Tally(list[T]):
    """A list that counts what is appended to it, hands it on, and keeps nothing."""

    def __init__(self, each: Callable[[T], None] | None) -> None:
        super().__init__()
        self._each = each
        self._count = 0

    def append(self, item: T) -> None:
        self._count += 1
        if self._each is not None:
            self._each(item)

    def __len__(self) -> int:
        return self._count


class _Places(dict[int, bytes]):
    """Lines by row index, each kept as its place in the file. ``at``: the place of the line that is set next."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.at = (0, 0)
        self._file = file
        self._places: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __bool__(self) -> bool:
        return bool(self._places)

    def __setitem__(self, index: int, line: bytes) -> None:
        self._places[index] = self.at

    def get(self, index: int, default: Any = None) -> Any:
        place = self._places.get(index)
        return default if place is None else self._read(place)

    def pop(self, index: int, default: Any = None) -> Any:
        return self._places.pop(index, default)  # nobody looks at what a row has replaced

    def clear(self) -> None:
        self._places.clear()

    def _read(self, place: tuple[int, int]) -> bytes:
        here = self._file.tell()
        self._file.seek(place[0])
        line = self._file.read(place[1])
        self._file.seek(here)
        return line


class Walk:
    """One pass over a log. Iterate it to the end; what it found stands in its attributes.

    Args:
        file: the log, at its start.
        end: how far to read.
        path: for messages.
        each_row, each_record: called with every row, and every record that is none, as they are found.

    Attributes:
        header: ``None`` until there is a whole one.
        finding: the first fault; ``None`` for a log that is complete or open.
        records: whole ones before the fault; ``offset`` is where the last of them ends.
        chunks: rows that have their own record.

    Raises (while iterating):
        PersistenceError: the log is of a newer schema.
    """

    def __init__(
        self,
        file: BinaryIO,
        end: int,
        path: Path,
        *,
        each_row: Callable[[ChunkRow], None] | None = None,
        each_record: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.header: PersistedSessionHeader | None = None
        self.finding: Finding | None = None
        self.records = self.offset = 0
        self.schema: int | None = None
        self._file, self._end, self._path = file, end, path
        self._rows = _Tally[ChunkRow](each_row)
        self._others = _Tally[dict[str, Any]](each_record)
        self._places = _Places(file)
        self._scanner: Scanner | LegacyScanner | None = None
        self._lines = 0

    def __iter__(self) -> Iterator[bytes]:
        """Every whole line before the fault, without its newline, once it is checked."""
        line = b""
        try:
            for lines, ended in read_lines(self._file, self._end):
                if not ended:
                    self._cut_off()
                    return
                for line in lines:
                    self._take(line)
                    yield line
                line = b""  # what read_lines raises is about a line that nobody has
        except BadLine as error:
            self.finding = judge_line(line, self._lines, self.offset, error, self._file, self._end)
            return
        if self._scanner is None:
            self._cut_off()

    def _take(self, line: bytes) -> None:
        if self._scanner is None:
            self._begin(line)
        else:
            self._places.at = (self.offset, len(line))
            self._scanner.feed(line)
        self._lines += 1
        self.offset += len(line) + 1
        if line and not line.isspace():  # schema 1 has empty lines
            self.records += 1

    def _begin(self, line: bytes) -> None:
        scanner = scanner_for(self._path, line)
        scan = scanner.scan
        header = header_from_record(scan.header)
        refuse_prefix(self._path, scan.header)
        scan.rows, scan.records = self._rows, self._others
        if isinstance(scanner, Scanner):
            scanner._pending = self._places
        self._scanner, self.header = scanner, header
        self.schema = scanner.version if isinstance(scanner, LegacyScanner) else CURRENT_SCHEMA_VERSION

    def _cut_off(self) -> None:
        reason = "no whole header" if self._scanner is None else "the last line was cut off"
        self.finding = Finding("torn", reason, self._lines + 1, self.offset)

    @property
    def verdict(self) -> str:
        """``complete``, ``open``, ``torn`` or ``damaged``, at the end of the walk."""
        if self.finding is not None:
            return self.finding.verdict
        return "open" if self.trailer is None else "complete"

    @property
    def header_record(self) -> dict[str, Any]:
        """The header as it stands; of an older schema, lifted to the current one."""
        assert self._scanner is not None
        return self._scanner.scan.header

    @property
    def trailer(self) -> dict[str, Any] | None:
        """The trailer, if it is the last record so far."""
        return None if self._scanner is None else self._scanner.scan.trailer

    @property
    def chunks(self) -> int:
        """How many rows have a record of their own."""
        return len(self._rows)

    @property
    def digest(self) -> bytes:
        """Of those rows; for schema 2 only."""
        assert isinstance(self._scanner, Scanner)
        return self._scanner.digest

    def rows_from_results(self) -> Iterator[ChunkRow]:
        """The rows after those: tools' results that never became rows, as far as there is one for the next row."""
        index = self.chunks
        while (line := self._places.get(index)) is not None and (row := result_row(line)) is not None:
            yield row
            index += 1

    def records_after(self) -> int:
        """How many records behind the fault continue the line before them. Reads the rest of the file."""
        if self.finding is None or not isinstance(self._scanner, Scanner):
            return 0
        self._file.seek(self.finding.offset)
        previous: bytes | None = None
        found = 0
        try:
            for lines, ended in read_lines(self._file, self._end):
                for line in lines:
                    h = sealed_hash(line) if ended else None
                    if h is not None and previous is not None and chain_hash(previous, line[:-SEAL_LENGTH]) == h:
                        found += 1
                    previous = h
        except BadLine:  # an endless line
            pass
        return found
