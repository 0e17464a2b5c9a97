"""Going through a log once, from its start to its first fault, without keeping it: memory is bounded, whatever its size.

The scanners (``scan.py``, ``legacy.py``) hold what they read, for whoever loads a session. Here their tables are
replaced by ones that count (``tally.py``): a row is checked and let go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rath.errors import PersistenceError
from rath.session.chunk import ChunkRow
from rath.session.persistence.format import CURRENT_SCHEMA_VERSION, SEAL_LENGTH, BadLine, chain_hash, sealed_hash
from rath.session.persistence.judging import judge_line
from rath.session.persistence.legacy import LegacyScanner
from rath.session.persistence.prefix import follow
from rath.session.persistence.reader import scanner_for
from rath.session.persistence.records import PersistedSessionHeader, Prefix, header_from_record
from rath.session.persistence.scan import Finding, Scanner, read_lines
from rath.session.persistence.tally import Places, Tally

__all__ = ["Walk"]


class Walk:
    """One pass over a log. Iterate it to the end; what it found stands in its attributes.

    Args:
        file: the log, at its start.
        end: how far to read.
        path: for messages, and its directory for the rows that the log has in others.
        each_row, each_record: called with every row, and every record that carries none, as they are found.
        each_shared: called with the rows that the log has in others, before its own; by default, ``each_row`` is.

    Attributes:
        header: ``None`` until there is a whole one.
        finding: the first fault; ``None`` for a log that is complete or open. Rows in other logs that cannot be had are
            one, at the header; the walk then goes on through the log's own records, as if they were there.
        missing: how many rows these are.
        records: whole ones before the fault in them; ``offset`` is where the last of them ends.

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
        each_shared: Callable[[ChunkRow], None] | None = None,
    ) -> None:
        self.header: PersistedSessionHeader | None = None
        self.finding: Finding | None = None
        self.records = self.offset = self.missing = 0
        self.schema: int | None = None
        self._file, self._end, self._path = file, end, path
        self._each_row, self._each_shared = each_row, each_shared or each_row
        self._rows = Tally[ChunkRow](each_row)
        self._others = Tally[dict[str, Any]](each_record)
        self._places = Places(file)
        self._own_fault: Finding | None = None
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
            self._found(judge_line(line, self._lines, self.offset, error, self._file, self._end))
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
        self._scanner, self.header = scanner, header
        self.schema = scanner.version if isinstance(scanner, LegacyScanner) else CURRENT_SCHEMA_VERSION
        if isinstance(scanner, Scanner):
            scanner.pending = self._places
            if header.prefix is not None:
                scanner.digest = header.prefix.digest
                self._rows = Tally(self._each_row, header.prefix.length)
                self._follow(header, header.prefix)
        scan.rows, scan.records = self._rows, self._others

    def _follow(self, header: PersistedSessionHeader, prefix: Prefix) -> None:
        directory = self._path.parent
        try:
            follow(directory, header.id, prefix)
        except BadLine as error:
            self.finding = Finding("damaged", str(error), 1, 0)
            self.missing = prefix.length
            return
        if self._each_shared is not None:
            try:
                follow(directory, header.id, prefix, self._each_shared)
            except BadLine as error:  # they were good a moment ago, and some have been handed on
                raise PersistenceError(f"a log that {self._path} has rows in was changed meanwhile: {error}") from None

    def _cut_off(self) -> None:
        reason = "no whole header" if self._scanner is None else "the last line was cut off"
        self._found(Finding("torn", reason, self._lines + 1, self.offset))

    def _found(self, fault: Finding) -> None:
        self._own_fault = fault
        self.finding = self.finding or fault

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
    def rows(self) -> int:
        """How many rows there are, without those that are missing, and without results that nothing counts yet."""
        return len(self._rows) - self.missing

    @property
    def digest(self) -> bytes:
        """Of those rows; for schema 2 only."""
        assert isinstance(self._scanner, Scanner)
        return self._scanner.digest

    def rows_from_results(self) -> Iterator[ChunkRow]:
        """The rows after those: tools' results that no record counts, as far as there is one for the next row."""
        return self._scanner.waiting() if isinstance(self._scanner, Scanner) else iter(())

    def records_after(self) -> int:
        """How many records behind the fault continue the line before them. Reads the rest of the file."""
        if self._own_fault is None or not isinstance(self._scanner, Scanner):
            return 0
        self._file.seek(self._own_fault.offset)
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
