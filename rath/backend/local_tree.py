"""Directory trees on the host: copying, comparing and removing them, and those that are ours to remove."""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rath.backend.local_paths import Confined, Refused
from rath.errors import SandboxError

__all__ = ["Found", "copy_tree", "own_directory", "remove_own", "walk"]

PREFIX = "rath-local-"
_log = logging.getLogger("rath.backend.local")
_own: dict[str, int] = {}
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
_COPY_BYTES = 1024 * 1024


# -- directories of our own -------------------------------------------------------------------------------------------


def own_directory() -> str:
    """A new directory, for this user only, that is removed at the latest when this process exits."""
    path = tempfile.mkdtemp(prefix=PREFIX)
    _own[path] = os.getpid()
    return path


def remove_own(path: str) -> None:
    """Remove a directory that :func:`own_directory` made, and only such a one."""
    if _own.get(path) != os.getpid():  # a stranger's, gone already, or the parent's in a forked child
        return
    _remove(path)
    del _own[path]


def _remove(path: str) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if not os.path.lexists(path):
            return
    except (OSError, RecursionError):
        pass
    if os.path.lexists(path):
        # Directories without write permission, or nested deeper than Python can recurse: the system's own tools manage.
        # RuntimeError: Python 3.12 starts no process any more while it ends.
        with contextlib.suppress(OSError, RuntimeError):
            for command in (["chmod", "-R", "u+rwX", "--", path], ["rm", "-rf", "--", path]):
                subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if os.path.lexists(path):
        raise SandboxError(f"the workspace copy {path} could not be removed; remove it by hand")


@atexit.register
def _remove_all() -> None:
    """The last net: what no sandbox's close has removed, after Ctrl-C for example."""
    for path, pid in list(_own.items()):
        if pid == os.getpid():
            try:
                _remove(path)
            except SandboxError as error:
                _log.error("%s", error)


# -- reading a tree ---------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """Something in a tree: its path relative to the top, and its status (of a link: the link's own)."""

    path: str
    status: os.stat_result


def walk(root: Confined, skip: Callable[[str, bool], bool] = lambda _name, _is_dir: False) -> Iterator[Found]:
    """Everything below ``root``, a directory before what is in it. What vanishes meanwhile is left out.

    Args:
        skip: told a name and whether it is a directory's; true: leave it out, with what is below.
    """
    todo = ["."]
    while todo:
        top = todo.pop()
        try:
            with root.opened(top, os.O_RDONLY | os.O_DIRECTORY) as fd, os.scandir(fd) as entries:
                found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        except (OSError, Refused) as error:
            if top == "." or not vanished(error):
                raise
            continue
        found.sort(key=lambda item: item[0])
        for name, status in found:
            is_dir = stat.S_ISDIR(status.st_mode)
            if skip(name, is_dir):
                continue
            path = name if top == "." else f"{top}/{name}"
            yield Found(path, status)
            if is_dir:
                todo.append(path)


def vanished(error: OSError | Refused) -> bool:
    """Whether what was listed a moment ago is gone, or something else by now."""
    return isinstance(error, Refused) or error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def read_link(root: Confined, path: str) -> bytes:
    """Where the link at ``path`` leads, as it is written."""
    head, _, name = path.rpartition("/")
    with root.opened(head or ".", os.O_RDONLY | os.O_DIRECTORY) as fd:
        return os.fsencode(os.readlink(name, dir_fd=fd))


@contextlib.contextmanager
def open_file(root: Confined, path: str) -> Iterator[int]:
    """A regular file below ``root``; a link at its end is not followed."""
    head, _, name = path.rpartition("/")
    with root.opened(head or ".", os.O_RDONLY | os.O_DIRECTORY) as directory:
        fd = os.open(name, _READ | os.O_CLOEXEC, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


# -- copying ----------------------------------------------------------------------------------------------------------


def copy_tree(root: Confined, target: str, skip: Callable[[str, bool], bool] = lambda _name, _is_dir: False) -> None:
    """Copy everything below ``root`` into the empty directory ``target``: bytes, modes, times, links as links.

    Sockets, pipes and devices are left out, and what vanishes meanwhile. Each file is copied as long as it was when its
    turn came, so a program that writes for ever does not hold the copy up.

    Raises:
        SandboxError: something could not be read or written; the message says what.
    """
    directories: list[tuple[str, os.stat_result]] = [(target, os.fstat(root.fd))]
    path = "."
    try:
        for path, status in walk(root, skip):
            there = os.path.join(target, path)
            try:
                if stat.S_ISDIR(status.st_mode):
                    os.mkdir(there, 0o700)
                    directories.append((there, status))
                elif stat.S_ISLNK(status.st_mode):
                    os.symlink(read_link(root, path), os.fsencode(there))
                    _set_times(there, status)
                elif stat.S_ISREG(status.st_mode):
                    _copy_file(root, path, there)
            except (OSError, Refused) as error:
                if not vanished(error):
                    raise
    except OSError as error:
        raise SandboxError(f"the workspace {root.path} cannot be copied: {path}: {error.strerror}") from error
    # Modes last: a directory may forbid writing, and times change with each entry.
    for there, status in reversed(directories):
        os.chmod(there, stat.S_IMODE(status.st_mode) if there != target else 0o700)
        _set_times(there, status)


def _set_times(path: str, status: os.stat_result) -> None:
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _copy_file(root: Confined, path: str, there: str) -> None:
    with open_file(root, path) as source:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            return
        target = os.open(there, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _copy_bytes(source, target, status.st_size)
            os.fchmod(target, stat.S_IMODE(status.st_mode))
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(target)


def _copy_bytes(source: int, target: int, size: int) -> None:
    left = size
    try:
        while left > 0:  # in the kernel; on file systems that can, blocks are shared instead of copied
            copied = os.copy_file_range(source, target, left)
            if copied == 0:
                return
            left -= copied
        return
    except AttributeError:
        pass
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            raise
    while left > 0:
        data = os.read(source, min(left, _COPY_BYTES))
        if not data:
            return
        left -= len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
