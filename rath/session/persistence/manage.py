"""The sessions directory: what is in it, and removing from it."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from rath.errors import PersistenceError, UsageTypeError, UsageValueError
from rath.session.graph.kind import LineageKind
from rath.session.persistence.format import CURRENT_SCHEMA_VERSION, BadLine, decode_object
from rath.session.persistence.lock import PathLock, holder
from rath.session.persistence.migrations import upgrade_header
from rath.session.persistence.paths import (
    SESSION_FILE_SUFFIX,
    SESSION_PARTIAL_SUFFIX,
    lock_file,
    log_path,
    session_file,
    session_partial_file,
    sessions_dir,
)
from rath.session.persistence.records import PersistedSessionHeader, header_from_record

__all__ = ["PersistedSessionMeta", "delete_session", "list_persisted_sessions", "prune_sessions", "writer_of"]

_log = logging.getLogger("rath.session.persistence")
_EDGE = 4096
# Read further only when the file's end lies inside one long line, as after a crash while writing a large row.
_WINDOWS = (_EDGE, 1 << 16, 1 << 20)
_MAX_HEADER = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class PersistedSessionMeta:
    """What a listing says of a log.

    Attributes:
        chunk_count: how many rows; without a trailer, those up to the last chunk record near the file's end.
        closed: whether it ends in a trailer. Only :func:`load_session` checks what stands before it.
    """

    id: UUID
    path: Path
    created_at: datetime
    lineage_operator: str
    lineage_kind: LineageKind
    chunk_count: int
    closed: bool


def list_persisted_sessions() -> list[PersistedSessionMeta]:
    """The sessions directory's logs, newest first.

    Reads the first line and the last 4 KiB of each file (at most 1 MiB of each end, where one line is
    longer), whatever its size. A file that is no log gets one line of warning on ``rath.session.persistence``
    and is left out.

    Raises:
        PersistenceError: the directory cannot be read.
    """
    directory = sessions_dir()
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PersistenceError(f"cannot list the session logs in {directory}: {error.strerror or error}") from error
    found = []
    for name in names:
        if name.endswith((SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX)):
            path = directory / name
            try:
                found.append(_meta(path))
            except FileNotFoundError:  # deleted since
                continue
            except (OSError, BadLine) as error:
                _log.warning("not listed: %s: %s", path, error)
    found.sort(key=lambda meta: (meta.created_at, str(meta.path)), reverse=True)
    return found


def delete_session(session_id: UUID | str, *, path: Path | str | None = None) -> bool:
    """Remove the log of a session; ``False`` if there was none.

    Args:
        path: remove this file instead, whatever ``session_id`` is.

    Raises:
        PersistenceError: a process is writing it, or it cannot be removed.
    """
    if path is None:
        candidates = [session_file(session_id), session_partial_file(session_id)]
    else:
        candidates = [log_path(path)]
    removed = False
    for log in candidates:
        if log.is_file():
            with _unwritten(log):
                removed = _unlink(log) or removed
    return removed


def prune_sessions(*, older_than: timedelta) -> list[UUID]:
    """Remove every log in the sessions directory that was created longer ago; their ids, newest first.

    A log that a process is writing stays, and so does a file that is no log.

    Raises:
        UsageValueError: ``older_than`` is negative.
        PersistenceError: a log cannot be removed.
    """
    if not isinstance(older_than, timedelta):
        raise UsageTypeError(f"older_than is a timedelta, not {type(older_than).__name__}")
    if older_than < timedelta():
        raise UsageValueError(f"older_than is a span of time into the past; got {older_than}")
    try:
        before = datetime.now(UTC) - older_than
    except OverflowError:  # longer than there has been time
        return []
    removed = []
    for meta in list_persisted_sessions():
        if meta.created_at < before:
            try:
                guard = PathLock(lock_file(meta.path), str(meta.path))
            except PersistenceError:
                continue  # being written
            try:
                if not _flocked(meta.path) and _unlink(meta.path):
                    removed.append(meta.id)
            finally:
                guard.release()
    return removed


def writer_of(log: Path) -> str | None:
    """Who is writing ``log``, in a few words; ``None`` if nobody is."""
    return holder(lock_file(log)) or ("another process" if _flocked(log) else None)


@contextmanager
def _unwritten(log: Path) -> Iterator[None]:
    """Keep writers off ``log`` meanwhile; raise if there is one."""
    guard = PathLock(lock_file(log), f"the session log {log}")
    try:
        if _flocked(log):
            raise PersistenceError(f"the session log {log} is being written by another process: end it first")
        yield
    finally:
        guard.release()


def _flocked(log: Path) -> bool:
    """Whether OpenRath 1.2, which locks the log itself, is writing it."""
    try:
        fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _unlink(log: Path) -> bool:
    try:
        os.unlink(log)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise PersistenceError(f"cannot remove the session log {log}: {error.strerror or error}") from error
    return True


# -- a log's edges -------------------------------------------------------------------------------------------


def _meta(path: Path) -> PersistedSessionMeta:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        start = os.pread(fd, _EDGE, 0)
        header = _header(fd, start)
        size = len(start)
        if size == _EDGE:
            size = os.fstat(fd).st_size
        count, closed = _ending(fd, start, size)
    finally:
        os.close(fd)
    return PersistedSessionMeta(
        id=header.id,
        path=path,
        created_at=header.created_at,
        lineage_operator=header.lineage_operator,
        lineage_kind=header.lineage_kind,
        chunk_count=count,
        closed=closed,
    )


def _header(fd: int, start: bytes) -> PersistedSessionHeader:
    line, newline, _ = start.partition(b"\n")
    if not newline and len(start) == _EDGE:
        line, newline, _ = os.pread(fd, _MAX_HEADER, 0).partition(b"\n")
    if not newline:
        raise BadLine("no whole header")
    record = decode_object(line)
    version = record.get("schema_version")
    if record.get("record_type") != "header" or type(version) is not int or version > CURRENT_SCHEMA_VERSION:
        raise BadLine(f"not the header of a session log of schema {CURRENT_SCHEMA_VERSION} or older")
    if version < CURRENT_SCHEMA_VERSION:
        record = upgrade_header(record, version)
    return header_from_record(record)


def _ending(fd: int, start: bytes, size: int) -> tuple[int, bool]:
    """How many rows the log has, as far as its end tells, and whether it ends in a trailer."""
    for window in _WINDOWS:
        tail = start if size <= len(start) else os.pread(fd, window, max(0, size - window))
        lines = tail.split(b"\n")
        cut = lines.pop() != b""
        if window < size:
            del lines[:1]  # begins somewhere inside a line
        for place, line in enumerate(reversed([line for line in lines if line.strip()])):
            record = _record(line)
            kind = record.get("record_type")
            if kind == "trailer":
                return _count(record.get("final_chunk_count")), place == 0 and not cut
            if kind == "chunk":
                return _count(record.get("index")) + 1, False
        if window >= size:
            break
    return 0, False


def _record(line: bytes) -> dict[str, Any]:
    """The line's record; an empty one where it is none, which loading will report."""
    try:
        return decode_object(line)
    except BadLine:
        return {}


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**63 else 0
