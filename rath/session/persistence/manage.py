"""The sessions directory: what is in it, and removing from it."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

from rath.errors import PersistenceError
from rath.session.graph.kind import LineageKind
from rath.session.persistence.edges import Edges, read_edges
from rath.session.persistence.format import BadLine
from rath.session.persistence.lock import PathLock, directory_exclusive, holder
from rath.session.persistence.needs import read_needs
from rath.session.persistence.paths import (
    SESSION_FILE_SUFFIX,
    SESSION_PARTIAL_SUFFIX,
    is_regular_file,
    lock_file,
    log_path,
    pin_file,
    session_file,
    session_partial_file,
    sessions_dir,
)

__all__ = [
    "PATIENCE_S",
    "PersistedSessionMeta",
    "delete_session",
    "list_persisted_sessions",
    "remove",
    "unwritten",
    "writer_of",
]

PATIENCE_S = 2.0
"""How long removing waits for the directory's lock: others hold it for moments."""
_NAMED = 5
_log = logging.getLogger("rath.session.persistence")


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
                found.append(_meta(path, read_edges(path)))
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
        PersistenceError: other logs of its directory have their first rows in it, or may have; a process is writing
            it; or it cannot be removed.
    """
    if path is None:
        candidates = [session_file(session_id), session_partial_file(session_id)]
    else:
        candidates = [log_path(path)]
    if not any(is_regular_file(log) for log in candidates):
        return False
    removed = False
    with directory_exclusive(candidates[0].parent, wait_s=PATIENCE_S):
        for log in candidates:
            if is_regular_file(log):
                _refuse_if_needed(log)
                with unwritten(log):
                    removed = remove(log) or removed
    return removed


def _refuse_if_needed(log: Path) -> None:
    needs = read_needs(log.parent)
    children = needs.children(log.name)
    if children:
        names = ", ".join(name.removesuffix(SESSION_FILE_SUFFIX)[:100] for name in children[:_NAMED])
        more = ", …" if len(children) > _NAMED else ""
        raise PersistenceError(
            f"{log} was not deleted: {len(children):,} of the logs beside it have their first rows in it ({names}{more}). "
            "Delete those first; export_session makes whole copies of those that you want to keep"
        )
    for reason in needs.kept({log.name}).values():
        raise PersistenceError(f"{log} was not deleted, because it may be needed: {reason}")


def writer_of(log: Path) -> str | None:
    """Who is writing ``log``, in a few words; ``None`` if nobody is."""
    return holder(lock_file(log)) or ("another process" if _flocked(log) else None)


@contextmanager
def unwritten(log: Path) -> Iterator[None]:
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
        # Shared is enough to meet a writer, keeps no other look out, and needs no right to write where NFS wants one.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)  # a forked child may still have the descriptor
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(fd)
    return False


def remove(log: Path) -> bool:
    """Remove a log and its pin; ``False`` if it was not there."""
    try:
        os.unlink(log)
        with suppress(FileNotFoundError):
            os.unlink(pin_file(log))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise PersistenceError(f"cannot remove the session log {log}: {error.strerror or error}") from error
    return True


def _meta(path: Path, edges: Edges) -> PersistedSessionMeta:
    header = edges.header
    return PersistedSessionMeta(
        id=header.id,
        path=path,
        created_at=header.created_at,
        lineage_operator=header.lineage_operator,
        lineage_kind=header.lineage_kind,
        chunk_count=edges.rows,
        closed=edges.ending == "complete",
    )
