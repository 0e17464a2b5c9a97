"""One writer a log, and no removing while somebody begins to build on what is there.

A writer holds an exclusive lock on a file beside its log for its life. The kernel lets the lock go when its
holder dies, however it dies, so a lock file that nobody holds means nothing and is simply locked again. What it
says (pid, host) is for the message to whoever comes second.

A directory has a lock too, ``.directory.lock``. Whoever removes logs or blobs holds it alone
(:func:`directory_exclusive`); whoever writes down that it needs one that is there holds it together with others
like it (:func:`directory_shared`), from looking until it is written down. Both for moments only. The file stays
when nobody holds it: a lock on a file that lost its name would keep nobody out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from rath.core.encoding import decode_json, encode_json
from rath.errors import PersistenceError
from rath.session.persistence.paths import reason

__all__ = ["DIRECTORY_LOCK", "PathLock", "directory_exclusive", "directory_shared", "holder", "owner"]

DIRECTORY_LOCK = ".directory.lock"
_POLL_S = 0.005
_LOOK_S = 1.0
"""How long a writer waits for those who only look (:func:`holder`): each of them takes microseconds."""

_OWNER_FIELDS = {"pid", "boot_id", "host"}
_MAX_OWNER = 4096


def owner() -> dict[str, Any]:
    """This process, as logs name it: pid, boot id (where the system has one) and host."""
    return {"pid": os.getpid(), "boot_id": _boot_id(), "host": platform.node()}


@cache
def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


class PathLock:
    """The exclusive lock on ``path``, taken at once.

    Args:
        path: the lock file.
        what: what it protects, for the message.

    Raises:
        PersistenceError: somebody else holds it (says who), it cannot be made, or the file is something else,
            which then stays as it is.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self._fd = -1
        try:
            while self._fd < 0:
                self._fd = self._try(what)
        except OSError as error:
            raise PersistenceError(f"cannot lock {path}: {reason(error)}") from error

    def _try(self, what: str) -> int:
        """The locked descriptor; -1 when the file went away between opening and locking it."""
        # O_NONBLOCK: opening a pipe or a device must not wait for its other end.
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise self._foreign(what)
            _lock_alone(fd)
            # Its last holder removes the file while it has the lock: ours may have no name any more.
            if not _is_at(fd, self.path):
                os.close(fd)
                return -1
            if not _is_ours(fd):
                raise self._foreign(what)
            _write_owner(fd)
        except BlockingIOError:
            who = _read_owner(fd)
            os.close(fd)
            name = "another process" if who is None else f"process {who[0]} on {who[1]!r}"
            raise PersistenceError(
                f"{what} is being written by {name}: a log has one writer. Wait until it is done, or end it; "
                "load_session can read the log meanwhile"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _foreign(self, what: str) -> PersistenceError:
        return PersistenceError(
            f"{self.path} is needed as the lock of {what}, but is a file of something else; it was not changed. Move "
            "it away, or give the log another name"
        )

    def release(self) -> None:
        """Remove the file and let the lock go. Idempotent, never raises."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        # Only while locked is the name known to be ours. A name that stays is harmless.
        with contextlib.suppress(OSError):
            if _is_at(fd, self.path) and _is_ours(fd):
                os.unlink(self.path)
        with contextlib.suppress(OSError):
            # A forked child may still have the descriptor; closing ours alone would not let go.
            fcntl.flock(fd, fcntl.LOCK_UN)
        with contextlib.suppress(OSError):  # it is gone either way, and the log is whole
            os.close(fd)

    def disown(self) -> None:
        """In a forked child: forget the lock, which is the parent's."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _lock_alone(fd: int) -> None:
    """Lock it. Raises ``BlockingIOError``: another one has it alone, or many have kept on looking."""
    deadline = time.monotonic() + _LOOK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            # A writer would not let it be shared. Who looks does, and is no reason to refuse a run.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_UN)
            if time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_S / 10)


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _write_owner(fd: int) -> None:
    # A full disk must not keep anybody from deleting logs: the text is a courtesy, the lock is the lock.
    text = encode_json(owner()) + b"\n"
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        if os.pwrite(fd, text, 0) < len(text):
            os.ftruncate(fd, 0)  # half an owner would look like a file of something else


def _is_ours(fd: int) -> bool:
    """Whether the file is empty or says who held it, as :func:`_write_owner` does."""
    return os.fstat(fd).st_size == 0 or _read_owner(fd) is not None


def _read_owner(fd: int) -> tuple[int, str] | None:
    """Pid and host that the file names; ``None`` if it is not of our making."""
    try:
        encoded = os.pread(fd, _MAX_OWNER + 1, 0)
        found = decode_json(encoded) if len(encoded) <= _MAX_OWNER else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != _OWNER_FIELDS:
        return None
    pid, host = found["pid"], found["host"]
    return (pid, host[:200]) if type(pid) is int and 0 < pid < 2**63 and isinstance(host, str) else None


def holder(path: Path) -> str | None:
    """Who holds the lock at ``path``, in a few words; ``None`` if nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        who = _read_owner(fd)
        if who is None:
            return "another process"
        return f"pid {who[0]}" if who[1] == platform.node() else f"pid {who[0]} on {who[1]}"
    except OSError:
        return None
    finally:
        _let_go(fd)
    return None


# -- of a directory --------------------------------------------------------------------------------------------


@contextmanager
def directory_shared(directory: Path, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Keep logs and blobs of ``directory`` from being removed meanwhile. The value says whether that could be had.

    Any number of processes and threads may have it at a time. ``False``: somebody is removing, or the lock cannot be
    made (a directory that is not there or is read-only, a file system without locks). Never raises.

    Args:
        wait_s: how long to wait while somebody is removing.
    """
    try:
        fd = _directory_lock(directory, fcntl.LOCK_SH, wait_s)
    except OSError:
        fd = None
    try:
        yield fd is not None
    finally:
        if fd is not None:
            _let_go(fd)


@contextmanager
def directory_exclusive(directory: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Be the only one who removes logs and blobs of ``directory``; nobody begins to need one of them meanwhile.

    Args:
        wait_s: how long to wait while others have it.

    Raises:
        PersistenceError: it is not free, or cannot be made.
    """
    what = f"cannot remove anything from {directory} now, its {DIRECTORY_LOCK} "
    try:
        fd = _directory_lock(directory, fcntl.LOCK_EX, wait_s)
    except OSError as error:
        raise PersistenceError(f"{what}cannot be locked: {reason(error)}") from error
    if fd is None:
        raise PersistenceError(f"{what}is not free: another process is removing, or building on what is there. Try again")
    try:
        yield
    finally:
        _let_go(fd)


def _directory_lock(directory: Path, kind: int, wait_s: float) -> int | None:
    """A descriptor that holds the lock; ``None`` if it is not free in time. Raises ``OSError``."""
    # Network file systems want write access for an exclusive lock. O_NONBLOCK: opening a pipe must not wait.
    mode = os.O_RDWR if kind == fcntl.LOCK_EX else os.O_RDONLY
    flags = mode | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(directory / DIRECTORY_LOCK, flags, 0o600)
    deadline = time.monotonic() + wait_s
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        while True:
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    return None
            time.sleep(_POLL_S)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise


def _let_go(fd: int) -> None:
    with contextlib.suppress(OSError):
        # A forked child may still have the descriptor; closing ours alone would not let go.
        fcntl.flock(fd, fcntl.LOCK_UN)
    with contextlib.suppress(OSError):
        os.close(fd)
