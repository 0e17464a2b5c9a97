"""Removing logs that nobody needs, and pinning those that somebody does.

A log that a staying one has its first rows in stays too. Children go before the logs that they need, so that a
pruning which dies half-way leaves no log without its rows.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from rath.errors import PersistenceError, UsageTypeError, UsageValueError
from rath.session.persistence.collection import LogCollection, LogEntry, open_dir
from rath.session.persistence.garbage import collect_blobs
from rath.session.persistence.lock import DIRECTORY_LOCK, directory_exclusive, directory_shared
from rath.session.persistence.manage import PATIENCE_S, remove, unwritten, writer_of
from rath.session.persistence.needs import read_needs
from rath.session.persistence.paths import is_regular_file, pin_file, sync_directory
from rath.session.persistence.verdict import locate

__all__ = ["Pruning", "pin_session", "prunable", "prune_entries", "prune_sessions", "unpin_session"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruning:
    """What pruning removes, or has removed: children before the logs that they need.

    Attributes:
        kept: logs that would have gone, each with the reason why it stays.
        failed: logs that the system does not let be removed, each with its error.
    """

    gone: tuple[LogEntry, ...] = ()
    kept: tuple[tuple[LogEntry, str], ...] = ()
    failed: tuple[tuple[LogEntry, PersistenceError], ...] = ()

    @property
    def size_bytes(self) -> int:
        """How much the logs that go take."""
        return sum(entry.size_bytes for entry in self.gone)


def prune_sessions(
    *, older_than: timedelta, verdict: str | Collection[str] | None = None, dry_run: bool = False
) -> list[UUID]:
    """Remove the logs in the sessions directory that were created longer ago; their ids, newest first.

    A log that a process is writing stays, and so does one that is pinned, one that a log that stays has its first rows
    in, and a file that is no log. Blobs that no log mentions any more go too (``collect_blobs``).

    Args:
        verdict: only logs with this verdict, or one of these; each is read whole for that.
        dry_run: remove nothing; say what would be.

    Raises:
        UsageValueError: ``older_than`` is negative; or no such verdict.
        PersistenceError: a log cannot be removed (all others are gone by then), or another process is removing from the
            directory.
    """
    logs = open_dir()
    found = prunable(older_than=older_than, verdict=verdict, logs=logs)
    if not dry_run:
        found = prune_entries(found.gone)
        collect_blobs(logs.path)
        for _, error in found.failed:
            raise error
    gone = sorted(found.gone, key=lambda entry: (entry.created_at, entry.path.name), reverse=True)
    return [entry.id for entry in gone if entry.id is not None]


def prunable(
    *,
    older_than: timedelta,
    verdict: str | Collection[str] | None = None,
    logs: LogCollection | None = None,
    entries: Iterable[LogEntry] | None = None,
) -> Pruning:
    """What :func:`prune_sessions` would remove now.

    Args:
        logs: the directory's.
        entries: those logs, where they have been read already.
    """
    if not isinstance(older_than, timedelta):
        raise UsageTypeError(f"older_than is a timedelta, not {type(older_than).__name__}")
    if older_than < timedelta():
        raise UsageValueError(f"older_than is a span of time into the past; got {older_than}")
    wanted = verdict if verdict is None or isinstance(verdict, str) else set(verdict)
    logs = open_dir() if logs is None else logs
    try:
        logs = logs.where(until=datetime.now(UTC) - older_than)
    except OverflowError:  # longer than there has been time
        return Pruning()
    if wanted is not None:
        logs = logs.where(verdict=wanted)
    found = logs if entries is None else logs.among(entries)
    going = {entry.path.name: entry for entry in found if entry.id is not None and _is_free(entry)}
    needs = read_needs(logs.path)
    reasons = needs.kept(going)
    gone = tuple(going[name] for name in needs.order(going) if name not in reasons)
    return Pruning(gone=gone, kept=tuple((going[name], why) for name, why in reasons.items()))


def _is_free(entry: LogEntry) -> bool:
    return not entry.pinned and writer_of(entry.path) is None


def prune_entries(entries: Collection[LogEntry]) -> Pruning:
    """Remove these logs of one directory, but those that are pinned, written or needed by now; what was removed.

    Raises:
        PersistenceError: the directory's lock is not free.
    """
    if not entries:
        return Pruning()
    gone: list[LogEntry] = []
    failed: list[tuple[LogEntry, PersistenceError]] = []
    directory = next(iter(entries)).path.parent
    with directory_exclusive(directory, wait_s=PATIENCE_S):
        # Read again: nobody can begin to need one of them any more.
        going = {entry.path.name: entry for entry in entries if _is_free(entry)}
        needs = read_needs(directory)
        reasons = needs.kept(going)
        unsynced: set[str] = set()  # what logs need whose removal may not be on the disk yet
        for name in needs.order(going):
            if name not in reasons:
                try:
                    if name in unsynced:
                        _sync(directory)
                        unsynced.clear()
                    if _remove(going[name]):
                        gone.append(going[name])
                        unsynced |= needs.parents.get(name, frozenset())
                        continue
                except PersistenceError as error:  # somebody else's file is no reason to keep all others
                    failed.append((going[name], error))
            why = f"{going[name].id} has its first rows in it"
            reasons |= {parent: why for parent in needs.parents.get(name, ()) if parent not in reasons}
    kept = tuple((going[name], why) for name, why in reasons.items() if name in going)
    return Pruning(gone=tuple(gone), kept=kept, failed=tuple(failed))


def _sync(directory: Path) -> None:
    """Let no power cut bring a log back whose rows are in one that is about to go. Once a level of children."""
    try:
        sync_directory(directory)
    except OSError as error:
        raise PersistenceError(f"cannot sync {directory}: {error.strerror or error}") from error


def _remove(entry: LogEntry) -> bool:
    """Whether the log is gone; ``False`` if a writer came a moment ago."""
    try:
        with unwritten(entry.path):
            remove(entry.path)
    except PersistenceError:
        if writer_of(entry.path) is None:
            raise
        return False
    return True


def pin_session(path_or_id: Path | str | UUID) -> Path:
    """Keep a log, and those that it has its first rows in, from being pruned; the log. Pinning again does nothing.

    Raises:
        PersistenceError: there is no such log, or the pin cannot be made.
    """
    log, _ = locate(path_or_id)
    # Looked for under the lock: a log that is being pruned is not said to be pinned.
    with directory_shared(log.parent, wait_s=PATIENCE_S) as ours:
        if not is_regular_file(log):
            raise PersistenceError(f"there is no log {log}")
        if not ours:
            raise PersistenceError(
                f"cannot pin {log} now: {DIRECTORY_LOCK} beside it cannot be locked. Another process is removing logs (then "
                "try again), or this one may not write there, or the file system has no locks"
            )
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
