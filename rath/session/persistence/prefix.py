"""The rows that a log has in other logs: found, checked, handed on in order.

A header's ``prefix`` says that the first rows stand in the log of another session in the same directory, which may
have its own first rows in a third one, and so on. Here the logs are visited one after the other, first up to the one
that all begin with, then down again: without recursion, each at most once, and only as far as its rows are needed. What
stands behind them in those logs is their own affair.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from rath.errors import PersistenceError
from rath.session.chunk import ChunkRow, row_digest
from rath.session.logplace import LogPlace
from rath.session.persistence.format import (
    CURRENT_SCHEMA_VERSION,
    EMPTY_DIGEST,
    MAX_OTHER_BYTES,
    BadLine,
    decode_object,
    sealed_hash,
)
from rath.session.persistence.paths import log_name
from rath.session.persistence.records import PersistedSessionHeader, Prefix, header_from_record
from rath.session.persistence.scan import Scanner, read_lines
from rath.session.persistence.source import open_log
from rath.session.persistence.tally import Places, Tally

__all__ = ["follow"]

EachRow = Callable[[ChunkRow], None]
_Identity = tuple[int, int, int, int, int]
_Key = tuple[str, int]

_MEMO_ENTRIES = 8192
_SETTLED_NS = 100_000_000
"""A file that was changed less than this ago may change again without another time stamp: it is not remembered."""


@dataclass(slots=True)
class _Link:
    """A log of which the first ``rows`` rows are needed, whose digest is to be ``digest``.

    ``identity``: of the file when its header was read, whose hash is ``h``; the line ends at ``end``.
    """

    path: Path
    session_id: UUID
    rows: int
    digest: bytes
    identity: _Identity | None = None
    h: bytes = b""
    end: int = 0

    @property
    def key(self) -> _Key:
        """What it is remembered by."""
        return str(self.path), self.rows


@dataclass(frozen=True, slots=True)
class _Known:
    """That so many first rows of a file were once found to have ``place.digest``. ``below``: the log they begin in."""

    identity: _Identity
    place: LogPlace
    below: _Key | None


def follow(directory: Path, session_id: UUID, prefix: Prefix, each_row: EachRow | None = None) -> LogPlace:
    """Go through the rows that a log has in others; where the last of them stands.

    Without ``each_row`` files that were gone through before, and are as they were, are not read again: verifying all
    logs of a directory reads each but once.

    Args:
        directory: where the log is that has the prefix.
        session_id: whose it is.
        each_row: called with every row, in order; with some of them also where an error comes later.

    Raises:
        BadLine: they cannot be had, or are others; it begins with ``prefix: ``.
    """
    place: LogPlace | None = None
    links: list[_Link] = []
    seen = {session_id}
    link: _Link | None = _Link(directory / log_name(prefix.session_id), prefix.session_id, prefix.length, prefix.digest)
    while link is not None:
        if each_row is None and (place := _memo.find(link)) is not None:
            break
        if link.session_id in seen:
            raise BadLine(f"prefix: {link.path.name} has its first rows, through others, in itself")
        seen.add(link.session_id)
        links.append(link)
        link = _look(link)
    below = None if link is None else link.key
    for link in reversed(links):
        place = _rows_of(link, place, each_row)
        _memo.keep(link, place, below)
        below = link.key
    assert place is not None
    return place


def _look(link: _Link) -> _Link | None:
    """Read the header of a log, and say which log its first rows are in."""
    try:
        with open_log(link.path) as file:
            link.identity = _identity(os.fstat(file.fileno()))
            own = _read_header(file, link).prefix
    except PersistenceError as error:
        raise BadLine(f"prefix: {_why(error, link)}") from None
    if own is None:
        return None
    path = link.path.with_name(log_name(own.session_id))
    if own.length >= link.rows:  # all that is needed stands there
        return _Link(path, own.session_id, link.rows, link.digest)
    return _Link(path, own.session_id, own.length, own.digest)


def _read_header(file: BinaryIO, link: _Link) -> PersistedSessionHeader:
    name = link.path.name
    line = file.readline(MAX_OTHER_BYTES)
    if not line.endswith(b"\n"):
        raise BadLine(f"prefix: {name} has no whole header")
    try:
        record = decode_object(line)
        version = record.get("schema_version")
        if record.get("record_type") != "header" or type(version) is not int:
            raise BadLine("the first record is no header")
        if version != CURRENT_SCHEMA_VERSION:
            raise BadLine(f"it is of schema {str(version)[:40]}")
        scanner, header = Scanner(record, line[:-1]), header_from_record(record)
        link.h, link.end = scanner.h, scanner.end
    except BadLine as error:
        raise BadLine(f"prefix: {name}: {error}") from None
    if header.id != link.session_id:
        raise BadLine(f"prefix: {name} is of session {header.id}")
    return header


def _rows_of(link: _Link, below: LogPlace | None, each_row: EachRow | None) -> LogPlace:
    """Go through the rows that ``link`` adds to those ``below``; where the last row stands."""
    if below is not None and below.rows == link.rows:
        place: LogPlace | None = below if below.digest == link.digest else None
    else:
        try:
            with open_log(link.path) as file:
                place = _Part(link, below, each_row).read(file)
        except PersistenceError as error:
            raise BadLine(f"prefix: {_why(error, link)}") from None
    if place is None:
        raise BadLine(f"prefix: the first {link.rows:,} rows of {link.path.name} are not those that were meant")
    return place


@dataclass(slots=True)
class _Part:
    """The rows that a log adds to those below it, as they are found."""

    link: _Link
    below: LogPlace | None
    each_row: EachRow | None
    count: int = 0
    digest: bytes | None = None
    scanner: Scanner = field(init=False)

    def read(self, file: BinaryIO) -> LogPlace | None:
        """Take what is needed; ``None`` if it has another digest."""
        link, base = self.link, 0 if self.below is None else self.below.rows
        if sealed_hash(file.read(link.end)[:-1]) != link.h:
            raise BadLine(f"prefix: {link.path.name} was changed meanwhile")
        self.scanner = Scanner.behind(link.h, link.end)
        self.count = base
        self.scanner.digest = EMPTY_DIGEST if self.below is None else self.below.digest
        self.scanner.scan.rows = Tally(self._take, base)
        self.scanner.scan.records = Tally(None)
        self.scanner.pending = places = Places(file)
        try:
            for lines, ended in read_lines(file, os.fstat(file.fileno()).st_size):
                for line in lines if ended else ():
                    places.at = (self.scanner.end, len(line))
                    self.scanner.feed(line)
                    if self.count >= link.rows:
                        return self._place(self.scanner.end, self.scanner.h)
        except BadLine as error:
            raise BadLine(f"prefix: {link.path.name}, line {self.scanner.seq + 1}: {error}") from None
        for row in self.scanner.waiting():
            if self.count < link.rows:
                self.scanner.digest = row_digest(self.scanner.digest, row)
                self._take(row)
        if self.count < link.rows:
            raise BadLine(f"prefix: {link.path.name} has only {self.count:,} of the {link.rows:,} rows")
        return self._place(0, b"")

    def _take(self, row: ChunkRow) -> None:
        if self.count < self.link.rows:
            self.count += 1
            if self.each_row is not None:
                self.each_row(row)
            if self.count == self.link.rows:
                self.digest = self.scanner.digest

    def _place(self, end: int, h: bytes) -> LogPlace | None:
        link = self.link
        return LogPlace(link.path, link.session_id, link.rows, link.digest, end, h) if self.digest == link.digest else None


def _why(error: PersistenceError, link: _Link) -> str:
    cause = error.__cause__
    if isinstance(cause, FileNotFoundError):
        return f"{link.path.name} is not there"
    return f"{link.path.name} cannot be read ({cause.strerror if isinstance(cause, OSError) else error})"


def _identity(status: os.stat_result) -> _Identity | None:
    """What changes with a file's content; ``None`` while that could be too coarse."""
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _SETTLED_NS:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Memo:
    """What was found in files that have not changed since. Of bounded size; any thread."""

    def __init__(self) -> None:
        self._entries: dict[_Key, _Known] = {}
        self._mutex = threading.Lock()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._mutex = threading.Lock()

    def find(self, link: _Link) -> LogPlace | None:
        """Where the last row stands, if the rows are known to be those that are meant."""
        key = link.key
        passed: list[_Key] = []
        place: LogPlace | None = None
        while True:
            with self._mutex:
                known = self._entries.get(key)
            if known is None or not _is_still(key[0], known.identity):
                break
            passed.append(key)
            place = place or known.place
            if known.below is None:
                return place if place.digest == link.digest else None
            key = known.below
        with self._mutex:
            for key in passed:  # what was built on it holds no more: nobody has to go this way again
                self._entries.pop(key, None)
        return None

    def keep(self, link: _Link, place: LogPlace, below: _Key | None) -> None:
        """Remember that ``link`` was found to be good; ``below`` is the log that it begins in."""
        if link.identity is None:
            return
        with self._mutex:
            if len(self._entries) >= _MEMO_ENTRIES:
                del self._entries[next(iter(self._entries))]
            self._entries[link.key] = _Known(link.identity, place, below)


_memo = _Memo()


def _is_still(path: str, identity: _Identity) -> bool:
    try:
        return _identity(os.stat(path)) == identity
    except OSError:
        return False
