"""What a log is worth: a verdict on every byte of it, without loading it."""

from __future__ import annotations

import dataclasses
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast
from uuid import UUID

from rath.session.persistence.manage import writer_of
from rath.session.persistence.paths import log_path
from rath.session.persistence.reader import find_log, open_log
from rath.session.persistence.walk import Walk

__all__ = ["Verdict", "locate", "verdict_of", "verify", "verify_file"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What was found in a log. Line numbers begin with 1, offsets are bytes from the file's start.

    Attributes:
        verdict: ``complete`` (nothing is missing), ``open`` (whole so far, no trailer), ``torn`` (the tail was cut
            off; what stands before it is good) or ``damaged`` (it contradicts itself).
        reason: what the first fault is, in a few words; it begins at ``line`` and ``offset``. ``None`` without one.
        records, rows: whole ones before the fault: what :func:`salvage` keeps. ``whole_bytes`` is where they end.
            A tool's result counts as a row where its row never came, and so do rows that stand in other logs.
            If those cannot be had, the reason begins with ``prefix:``, the fault is at the header, and these are the
            log's own.
        records_after: records behind the fault that continue the one before them; only in a damaged log.
        schema, session_id: ``None`` without a whole header.
        size_bytes: how much was read. A log that is being written may be longer by now.
        writer: who had the log open for writing when it was looked at, in a few words. While somebody has, ``open``
            and ``torn`` say only that it is being written: a record may be half there at any moment.
    """

    verdict: str
    reason: str | None
    line: int | None
    offset: int | None
    records: int
    rows: int
    whole_bytes: int
    records_after: int
    schema: int | None
    session_id: UUID | None
    size_bytes: int
    path: Path
    writer: str | None = None

    @property
    def writer_alive(self) -> bool:
        """Whether a process holds the log's lock."""
        return self.writer is not None

    @property
    def left_out_bytes(self) -> int:
        """How many bytes stand from the fault to the end of the file: what :func:`salvage` leaves out."""
        return self.size_bytes - self.whole_bytes

    def __str__(self) -> str:
        where = f": {self.reason} (line {self.line}, byte {self.offset})" if self.reason else ""
        return f"{self.verdict}{where}"


def verify(path_or_id: Path | str | UUID) -> Verdict:
    """The verdict on a log. Takes no lock, changes nothing, and needs the memory of the longest line, not of the log.

    Args:
        path_or_id: a log, or a session in the sessions directory. Text that is a UUID is an id.

    Raises:
        PersistenceError: there is no such log, it cannot be read, or it is of a newer schema. Nothing else,
            whatever is in the file.
    """
    path, session_id = locate(path_or_id)
    # Before reading: a writer that ends meanwhile explains why there is no trailer yet.
    writer = writer_of(path)
    with open_log(path) as file:
        found = verify_file(file, os.fstat(file.fileno()).st_size, path)
    if session_id is not None and found.session_id is not None and found.session_id != session_id:
        reason = f"the header is of session {found.session_id}"
        found = dataclasses.replace(
            found, verdict="damaged", reason=reason, line=1, offset=0, records=0, rows=0, whole_bytes=0
        )
    return dataclasses.replace(found, writer=writer)


def verify_file(file: BinaryIO, size_bytes: int, path: Path) -> Verdict:
    """:func:`verify` of an open file or a ``BytesIO``, from its start to ``size_bytes``. ``path`` is for messages."""
    walk = Walk(file, size_bytes, path)
    for _ in walk:
        pass
    return verdict_of(walk, size_bytes, path)


def verdict_of(walk: Walk, size_bytes: int, path: Path) -> Verdict:
    """What a walk that has come to its end found."""
    finding = walk.finding
    more = 0 if walk.trailer is not None else sum(1 for _ in walk.rows_from_results())
    return Verdict(
        verdict=walk.verdict,
        reason=None if finding is None else finding.reason,
        line=None if finding is None else finding.line,
        offset=None if finding is None else finding.offset,
        records=walk.records,
        rows=walk.rows + more,
        whole_bytes=walk.offset,
        records_after=walk.records_after() if walk.verdict == "damaged" else 0,
        schema=walk.schema,
        session_id=None if walk.header is None else walk.header.id,
        size_bytes=size_bytes,
        path=path,
    )


def locate(path_or_id: Path | str | UUID) -> tuple[Path, UUID | None]:
    """The log that is meant, and the session, if an id was given.

    Raises:
        PersistenceError: no session in the sessions directory has that id.
    """
    session_id = path_or_id if isinstance(path_or_id, UUID) else None
    if isinstance(path_or_id, str):
        with suppress(ValueError):
            session_id = UUID(path_or_id)
    if session_id is not None:
        return find_log(session_id), session_id
    return log_path(cast("Path | str", path_or_id)), None
