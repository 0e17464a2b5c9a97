"""Directories on the host that rath makes for itself, and removes: those it made, and nothing that took their place.

A path says nothing about what stands there: a command can move the workspace away and put another directory, or a link,
in its place. So each directory is held by a descriptor from its start, which pins its identity, and is removed through
that descriptor. The same descriptor carries an exclusive lock, which ends with this process: what is unlocked and a
minute old was left by a process that was killed, and the next one sweeps it up.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import stat
import tempfile
import threading
import time
from typing import NamedTuple

from rath.errors import SandboxError

__all__ = ["Leftover", "clear", "own_directory", "remove_own", "sweep_leftovers", "sweep_leftovers_once"]

PREFIX, SUFFIX = "rath-local-", ".own"
MIN_AGE_S = 60.0
STAND_INS = range(1_900_000_000, 1_900_100_000)
"""Whom root lets sandboxes run as, and gives their directories to: above all that systemd gives to people and services."""
LOW_STAND_INS = range(50_000, 60_000)
"""The same where only 65,536 users are mapped, as in many containers."""
_NAME = re.compile(re.escape(PREFIX) + r"[a-z0-9_]{8}" + re.escape(SUFFIX))
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_log = logging.getLogger("rath.backend")


class _Held(NamedTuple):
    fd: int
    status: os.stat_result


_own: dict[str, _Held] = {}
_sweep_lock = threading.Lock()
_swept = False


def own_directory() -> str:
    """A new directory, for this user only, that is removed at the latest when this process exits."""
    path = tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX)
    try:
        fd = os.open(path, _OPEN)
    except BaseException:
        os.rmdir(path)
        raise
    with contextlib.suppress(OSError):  # a file system without locks: nobody can sweep there either
        fcntl.flock(fd, fcntl.LOCK_EX)  # waits, if at all, for a sweep that takes a look
    _own[path] = _Held(fd, os.fstat(fd))
    return path


def remove_own(path: str) -> None:
    """Remove a directory that :func:`own_directory` made, and only such a one. Blocks.

    If something else stands at ``path`` by now, that is left alone, and a warning says so.

    Raises:
        SandboxError: it is there and cannot be removed.
    """
    held = _own.pop(path, None)
    if held is None:  # a stranger's, gone already, or the parent's in a forked child
        return
    try:
        _remove(path, held)
    except BaseException as error:
        _own[path] = held  # the exit tries once more
        if not isinstance(error, OSError):
            raise
        raise SandboxError(
            f"the workspace copy {path} could not be removed ({error.strerror or error}); remove it by hand"
        ) from error
    os.close(held.fd)


def _remove(path: str, held: _Held) -> None:
    for last in (False, False, True):
        try:
            if not os.path.samestat(os.lstat(path), held.status):
                _log.warning("%s is not the directory that rath made there; what stands there now is left alone", path)
                return
        except FileNotFoundError:
            if os.fstat(held.fd).st_nlink:
                _log.warning("the workspace %s was moved away by a command; it is left where it is now", path)
            return
        try:
            clear(held.fd)
            os.rmdir(path)
            return
        except OSError as error:
            if last or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # else somebody wrote while we removed


def clear(top: int) -> None:
    """Remove what is in the directory ``top``, by descriptors only, and with two of them however deep it is.

    What is in a subdirectory's subdirectory is first moved up to ``top``: so no depth needs recursion or a long path.
    """
    todo: list[str] = []
    _clear_one(top, top, todo)
    while todo:
        name = todo.pop()
        try:
            fd = _open_below(top, name)
        except FileNotFoundError:
            continue
        try:
            _clear_one(fd, top, todo)
        finally:
            os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(name, dir_fd=top)


def _clear_one(fd: int, top: int, todo: list[str]) -> None:
    if stat.S_IMODE(os.fstat(fd).st_mode) & 0o700 != 0o700:
        os.fchmod(fd, 0o700)
    with os.scandir(fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_dir in found:
        with contextlib.suppress(FileNotFoundError):
            if not is_dir:
                os.unlink(name, dir_fd=fd)
            elif fd == top:
                todo.append(name)
            else:
                todo.append(_raise_to_top(fd, name, top))


def _raise_to_top(fd: int, name: str, top: int) -> str:
    new = secrets.token_hex(16)
    try:
        os.rename(name, new, src_dir_fd=fd, dst_dir_fd=top)
    except PermissionError:  # ".." is written too when a directory moves
        _allow(fd, name)
        os.rename(name, new, src_dir_fd=fd, dst_dir_fd=top)
    return new


def _open_below(top: int, name: str) -> int:
    try:
        fd = os.open(name, _OPEN, dir_fd=top)
    except PermissionError:
        _allow(top, name)
        fd = os.open(name, _OPEN, dir_fd=top)
    if os.fstat(fd).st_dev != os.fstat(top).st_dev:
        os.close(fd)
        raise OSError(errno.EXDEV, "another file system is mounted in it", name)
    return fd


def _allow(directory: int, name: str) -> None:
    """Let this user read and change a subdirectory; a link in its place is not followed."""
    if hasattr(os, "O_PATH"):
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        finally:
            os.close(fd)
    else:
        os.chmod(name, 0o700, dir_fd=directory, follow_symlinks=False)


@atexit.register
def _remove_all() -> None:
    """The last net: what no sandbox's close has removed, after Ctrl-C for example."""
    for path in list(_own):
        try:
            remove_own(path)
        except SandboxError as error:
            _log.error("%s", error)


def _reset_in_child() -> None:
    """The parent's directories are the parent's; with our copies of its descriptors its locks would outlive it."""
    global _sweep_lock
    _sweep_lock = threading.Lock()
    for held in _own.values():
        with contextlib.suppress(OSError):
            os.close(held.fd)
    _own.clear()


os.register_at_fork(after_in_child=_reset_in_child)


# -- leftovers --------------------------------------------------------------------------------------------------------


class Leftover(NamedTuple):
    """A directory that a killed process left. ``fate``: ``removed``, ``kept`` or ``failed``; ``why`` says why."""

    path: str
    fate: str
    why: str


def sweep_leftovers_once() -> None:
    """Start removing what killed processes of this user left, in a thread, the first time in this process."""
    global _swept
    with _sweep_lock:
        if _swept:
            return
        _swept = True
    threading.Thread(target=sweep_leftovers, name="rath-local-sweep", daemon=True).start()


def sweep_leftovers(parent: str | None = None, *, dry_run: bool = False) -> list[Leftover]:
    """Remove the directories below ``parent`` that killed processes of this user left, and say what became of each. Blocks.

    Args:
        parent: by default where directories for temporary files are made.
        dry_run: only say what would be removed.
    """
    parent = tempfile.gettempdir() if parent is None else parent
    try:
        names = sorted(name for name in os.listdir(parent) if _NAME.fullmatch(name))
    except OSError as error:
        _log.warning("cannot look for leftover workspaces in %s: %s", parent, error.strerror)
        return []
    found = []
    for name in names:
        path = os.path.join(parent, name)
        try:
            left = _sweep_one(path, dry_run)
        except FileNotFoundError:  # another process was faster
            continue
        except OSError as error:
            _log.warning("the leftover workspace %s cannot be removed: %s", path, error.strerror)
            left = Leftover(path, "failed", error.strerror or str(error))
        if left is not None:
            found.append(left)
    return found


def _is_ours(uid: int) -> bool:
    me = os.geteuid()
    return uid == me or (me == 0 and (uid in STAND_INS or uid in LOW_STAND_INS))


def _sweep_one(path: str, dry_run: bool) -> Leftover | None:
    """What became of it; ``None`` if it is nobody's leftover."""
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or not _is_ours(status.st_uid) or stat.S_IMODE(status.st_mode) != 0o700:
        return None
    fd = os.open(path, _OPEN)
    try:
        if not os.path.samestat(os.fstat(fd), status):
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # in use, or nobody can tell
            return None
        age_s = time.time() - status.st_mtime
        if age_s < MIN_AGE_S:  # whoever makes one has it for a moment before its lock
            return Leftover(path, "kept", f"it is {max(0.0, age_s):.0f} s old, and goes when it is {MIN_AGE_S:g} s old")
        if not dry_run:
            _remove(path, _Held(fd, status))
            _log.info("removed the workspace %s, which a killed process had left", path)
        return Leftover(path, "removed", "its process was killed")
    finally:
        os.close(fd)
