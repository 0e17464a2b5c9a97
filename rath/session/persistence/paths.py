"""Where session logs are.

Every id is parsed as a UUID before it becomes part of a path, so no id can point out of the directory.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from uuid import UUID

from rath.core.home import openrath_home
from rath.errors import PersistenceError

__all__ = [
    "SESSIONS_DIR_NAME",
    "SESSION_FILE_SUFFIX",
    "SESSION_PARTIAL_SUFFIX",
    "ensure_sessions_dir",
    "lock_file",
    "make_directory",
    "parse_session_id",
    "session_file",
    "session_partial_file",
    "sessions_dir",
    "sync_directory",
]

SESSIONS_DIR_NAME = "sessions"
SESSION_FILE_SUFFIX = ".jsonl"
SESSION_PARTIAL_SUFFIX = ".jsonl.__partial__"
"""What OpenRath 1.2 called a log that was not closed. Read here, never written."""
_LOCK_SUFFIX = ".lock"


def sessions_dir() -> Path:
    """The directory of the session logs, whether or not it is there."""
    return openrath_home() / SESSIONS_DIR_NAME


def session_file(session_id: UUID | str) -> Path:
    """The log of one session, whether or not it is there.

    Raises:
        PersistenceError: ``session_id`` is not a UUID.
    """
    return sessions_dir() / f"{parse_session_id(session_id)}{SESSION_FILE_SUFFIX}"


def session_partial_file(session_id: UUID | str) -> Path:
    """Where OpenRath 1.2 kept the log of a session that was not closed.

    Raises:
        PersistenceError: ``session_id`` is not a UUID.
    """
    return sessions_dir() / f"{parse_session_id(session_id)}{SESSION_PARTIAL_SUFFIX}"


def ensure_sessions_dir() -> Path:
    """:func:`sessions_dir`, made (0700, with its parents) if it was not there.

    Raises:
        PersistenceError: it cannot be made.
    """
    directory = sessions_dir()
    make_directory(directory)
    return directory


def parse_session_id(session_id: UUID | str) -> UUID:
    """``session_id`` as a UUID.

    Raises:
        PersistenceError: it is none.
    """
    if isinstance(session_id, UUID):
        return session_id
    try:
        return UUID(session_id)
    except (ValueError, TypeError, AttributeError):
        raise PersistenceError(f"not a session id: {session_id!r:.100}; ids are UUIDs") from None


def lock_file(log: Path) -> Path:
    """What the writer of ``log`` holds locked: ``<name>.lock`` beside it, without the log's own suffix."""
    name = log.name
    for suffix in (SESSION_PARTIAL_SUFFIX, SESSION_FILE_SUFFIX):
        if name.endswith(suffix) and name != suffix:
            name = name.removesuffix(suffix)
            break
    return log.with_name(name + _LOCK_SUFFIX)


def make_directory(directory: Path) -> None:
    """Make ``directory`` and what is missing above it, private (0700) and durable.

    Raises:
        PersistenceError: it cannot be made.
    """
    missing: list[Path] = []
    nearest = directory
    try:
        while not nearest.exists() and nearest.parent != nearest:
            missing.append(nearest)
            nearest = nearest.parent
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
            sync_directory(path.parent)
    except OSError as error:
        raise PersistenceError(
            f"cannot make the directory {directory} for session logs: {error.strerror or error}. "
            "Set OPENRATH_HOME (or pass a path) to where this process may write"
        ) from error


def sync_directory(directory: Path) -> None:
    """Make the entries of ``directory`` durable. Raises ``OSError``."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
