"""Removing logs that nobody needs, and pinning those that somebody does."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from rath.errors import PersistenceError, UsageTypeError, UsageValueError
from rath.session.persistence.collection import LogCollection, LogEntry, open_dir
from rath.session.persistence.lock import PathLock
from rath.session.persistence.manage import remove, unwritten, writer_of
from rath.session.persistence.paths import pin_file
from rath.session.persistence.verdict import locate

__all__ = ["pin_session", "prunable", "prune_entries", "prune_sessions", "unpin_session"]

_DIRECTORY_LOCK = ".directory.lock"


def prune_sessions(
    *, older_than: timedelta, verdict: str | Collection[str] | None = None, dry_run: bool = False
) -> list[UUID]:
    """Remove the logs in the sessions directory that were created longer ago; their ids, newest first.

    A log that a process is writing stays, and so does one that is pinned, and a file that is no log.

    Args:
        verdict: only logs with this verdict, or one of these; each is read whole for that.
        dry_run: remove nothing; say what would be.

    Raises:
        UsageValueError: ``older_than`` is negative; or no such verdict.
        PersistenceError: a log cannot be removed, or another process is pruning.
    """
    found = prunable(older_than=older_than, verdict=verdict)
    gone = found if dry_run else prune_entries(found)
    return [entry.id for entry in gone if entry.id is not None]


def prunable(
    *, older_than: timedelta, verdict: str | Collection[str] | None = None, logs: LogCollection | None = None
) -> list[LogEntry]:
    """What :func:`prune_sessions` would remove now."""
    if not isinstance(older_than, timedelta):
        raise UsageTypeError(f"older_than is a timedelta, not {type(older_than).__name__}")
    if older_than < timedelta():
        raise UsageValueError(f"older_than is a span of time into the past; got {older_than}")
    wanted = verdict if verdict is None or isinstance(verdict, str) else set(verdict)
    logs = open_dir() if logs is None else logs
    try:
        logs = logs.where(until=datetime.now(UTC) - older_than)
    except OverflowError:  # longer than there has been time
        return []
    if wanted is not None:
        logs = logs.where(verdict=wanted)
    return [entry for entry in logs if entry.id is not None and not entry.pinned and writer_of(entry.path) is None]


def prune_entries(entries: Collection[LogEntry]) -> list[LogEntry]:
    """Remove these logs, but those that are pinned or written by now; what was removed."""
    if not entries:
        return []
    removed = []
    with _directory_locked(next(iter(entries)).path.parent):
        for entry in entries:
            if entry.pinned or writer_of(entry.path) is not None:
                continue
            try:
                with unwritten(entry.path):
                    if remove(entry.path):
                        removed.append(entry)
            except PersistenceError:
                # A writer may have come a moment ago; anything else is for the caller to know.
                if writer_of(entry.path) is None:
                    raise
    return removed


def pin_session(path_or_id: Path | str | UUID) -> Path:
    """Keep a log from being pruned; the log. Pinning again does nothing.

    Raises:
        PersistenceError: there is no such log, or the pin cannot be made.
    """
    log, _ = locate(path_or_id)
    if not log.is_file():
        raise PersistenceError(f"there is no log {log}")
    try:
        os.close(os.open(pin_file(log), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        raise PersistenceError(f"cannot pin {log}: {error.strerror or error}") from error
    return log


def unpin_session(path_or_id: Path | str | UUID) -> bool:
    """Let a log be pruned again; ``False`` if it was not pinned.

    Raises:
        PersistenceError: there is no such session, or the pin cannot be removed.
    """
    log, _ = locate(path_or_id)
    try:
        os.unlink(pin_file(log))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise PersistenceError(f"cannot unpin {log}: {error.strerror or error}") from error
    return True


@contextmanager
def _directory_locked(directory: Path) -> Iterator[None]:
    """Let nobody else remove logs of this directory meanwhile."""
    try:
        lock = PathLock(directory / _DIRECTORY_LOCK, f"the directory {directory}")
    except PersistenceError as error:
        raise PersistenceError(f"cannot prune {directory} now, its {_DIRECTORY_LOCK} is not free: {error}") from error
    try:
        yield
    finally:
        lock.release()
