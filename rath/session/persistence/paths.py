"""Where session logs are.

Every id is parsed as a UUID before it becomes part of a path, so no id can point out of the directory.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from pathlib import Path
from uuid import UUID

from rath.core.home import openrath_home
from rath.errors import PersistenceError, UsageTypeError, UsageValueError

__all__ = [
    "SESSIONS_DIR_NAME",
    "SESSION_FILE_SUFFIX",
    "SESSION_PARTIAL_SUFFIX",
    "ensure_sessions_dir",
    "is_directory",
    "is_regular_file",
    "is_there",
    "lock_file",
    "log_name",
    "log_path",
    "make_directory",
    "parse_session_id",
    "pin_file",
    "reason",
    "session_file",
    "session_partial_file",
    "sessions_dir",
    "sync_directory",
]

SESSIONS_DIR_NAME = "sessions"
"""Where logs are, in the data directory."""
SESSION_FILE_SUFFIX = ".jsonl"
"""How a log's name ends, after the session's id."""
SESSION_PARTIAL_SUFFIX = ".jsonl.__partial__"
"""What OpenRath 1.2 called a log that was not closed. Read here, never written."""
_LOCK_SUFFIX = ".lock"
_PIN_SUFFIX = ".pin"


def sessions_dir() -> Path:
    """The directory of the session logs, whether or not it is there."""
    return openrath_home() / SESSIONS_DIR_NAME


def session_file(session_id: UUID | str) -> Path:
    """The log of one session, whether or not it is there.

    Raises:
        PersistenceError: ``session_id`` is not a UUID.
    """
    return sessions_dir() / f"{parse_session_id(session_id)}{SESSION_FILE_SUFFIX}"


def log_name(session_id: UUID) -> str:
    """The file name of a session's log: by it, logs that share its rows find it in their own directory."""
    return f"{session_id}{SESSION_FILE_SUFFIX}"


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


def log_path(path: Path | str) -> Path:
    """A path that a caller gave for a log: ``~`` expanded, absolute.

    Raises:
        UsageTypeError: not text and not a path.
        UsageValueError: empty, or with a NUL, or ``~`` of nobody.
        PersistenceError: relative, and there is no working directory any more.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(given := os.fspath(path), str):
        raise UsageTypeError(f"a log's path is a str or a Path, not {type(path).__name__}: {path!r:.100}")
    if not given or "\0" in given:
        raise UsageValueError(f"not a path for a log: {given!r:.200} is empty or has a NUL character in it")
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError as error:
        raise UsageValueError(f"cannot expand the ~ of {given!r:.200}: {error}. Pass the whole path") from error
    except OSError as error:
        raise PersistenceError(
            f"{given!r:.200} is relative, and there is no working directory: {error.strerror or error}. Pass the whole path"
        ) from error


def lock_file(log: Path) -> Path:
    """What the writer of ``log`` holds locked, beside it.

    ``<id>.lock`` for a log that is named by a session's id, else the log's whole name and ``.lock``:
    ``uv.jsonl`` must not lay its hands on ``uv.lock``. Only the name decides, so that processes with
    different data directories agree on the lock of a log that both can reach.
    """
    name = log.name
    for suffix in (SESSION_PARTIAL_SUFFIX, SESSION_FILE_SUFFIX):
        stem = name.removesuffix(suffix)
        if stem != name and _is_id(stem):
            return log.with_name(stem + _LOCK_SUFFIX)
    return log.with_name(name + _LOCK_SUFFIX)


def pin_file(log: Path) -> Path:
    """What says, by being there, that ``log`` is not to be pruned: the log's whole name and ``.pin``."""
    return log.with_name(log.name + _PIN_SUFFIX)


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def is_there(path: Path) -> bool:
    """Whether there is anything at ``path``; links are followed.

    Raises:
        PersistenceError: the system does not say: a directory on the way may not be searched, for instance.
    """
    return _mode(path) is not None


def is_directory(path: Path) -> bool:
    """Whether ``path`` is a directory. Raises as :func:`is_there`."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def is_regular_file(path: Path) -> bool:
    """Whether ``path`` is a regular file. Raises as :func:`is_there`."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PersistenceError(f"cannot look at {path}: {reason(error)}") from error


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


def reason(error: OSError) -> str:
    """What the system says of ``error``, and what to do where the limit is this process's own."""
    said = error.strerror or str(error)
    if error.errno == errno.EMFILE:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        said += f" (this process may have {limit:,}, and each logged run that goes on has two: raise it with `ulimit -n`)"
    return said


def sync_directory(directory: Path) -> None:
    """Make the entries of ``directory`` durable. Raises ``OSError``."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
