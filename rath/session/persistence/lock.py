"""One writer a log: an exclusive lock on a file beside it, held for the writer's life.

The kernel lets the lock go when its holder dies, however it dies, so a lock file that nobody holds means
nothing and is simply locked again. What it says (pid, host) is for the message to whoever comes second.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

from rath.core.encoding import decode_json, encode_json
from rath.errors import PersistenceError

__all__ = ["PathLock", "owner"]


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
        PersistenceError: somebody else holds it (says who), or it cannot be made.
    """

    __slots__ = ("_fd", "path")

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self._fd = -1
        try:
            while self._fd < 0:
                self._fd = self._try(what)
        except OSError as error:
            raise PersistenceError(f"cannot lock {path}: {error.strerror or error}") from error

    def _try(self, what: str) -> int:
        """The locked descriptor; -1 when the file went away between opening and locking it."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder removes the file while it has the lock: ours may have no name any more.
            if not _is_at(fd, self.path):
                os.close(fd)
                return -1
            _write_owner(fd)
        except BlockingIOError:
            who = _read_owner(fd)
            os.close(fd)
            raise PersistenceError(
                f"{what} is being written by {who}: a log has one writer. Wait until it is done, or end it; "
                "load_session can read the log meanwhile"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def release(self) -> None:
        """Remove the file and let the lock go. Idempotent, never raises."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        # Only while locked is the name known to be ours. A name that stays is harmless.
        with contextlib.suppress(OSError):
            if _is_at(fd, self.path):
                os.unlink(self.path)
        with contextlib.suppress(OSError):
            # A forked child may still have the descriptor; closing ours alone would not let go.
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)

    def disown(self) -> None:
        """In a forked child: forget the lock, which is the parent's."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _write_owner(fd: int) -> None:
    # A full disk must not keep anybody from deleting logs: the text is a courtesy, the lock is the lock.
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, encode_json(owner()) + b"\n", 0)


def _read_owner(fd: int) -> str:
    try:
        found = decode_json(os.pread(fd, 4096, 0))
        return f"process {int(found['pid'])} on {str(found['host'])[:200]!r}"
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return "another process"
