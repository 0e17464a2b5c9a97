"""Directory trees on the host: reading and copying them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rath.backend.host.paths import Confined, Refused
from rath.errors import SandboxError

__all__ = ["Found", "check_space", "copy_tree", "data_ranges", "open_file", "read_link", "vanished", "walk"]

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
_COPY_BYTES = 1024 * 1024
# In the kernel; between two such steps a copy can be stopped.
_KERNEL_COPY_BYTES = 32 * 1024 * 1024
_FICLONE = 0x40049409  # share all blocks of a file with another one; Linux on btrfs, XFS, bcachefs


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


def check_space(
    root: Confined, target: str, stop: Callable[[], bool], remedy: str = "set TMPDIR to a directory on a larger disk"
) -> None:
    """Raise ``SandboxError`` if a copy of everything below ``root`` does not fit where ``target`` is, or ``stop`` says so.

    The error advises to remove large files, or else the ``remedy``.
    Counted is what the files really occupy: holes need nothing.
    """
    need = 0
    largest: tuple[int, str] = (0, "")
    try:
        for path, status in walk(root):
            _go_on(stop)
            if stat.S_ISREG(status.st_mode):
                size = status.st_blocks * 512
                need += size
                largest = max(largest, (size, path))
    except OSError as error:
        raise SandboxError(f"the workspace {root.path} cannot be copied: {error.strerror}") from error
    free = shutil.disk_usage(target).free
    if need > free and not _shares_blocks(root, largest[1], target):
        raise SandboxError(
            f"a copy of the workspace {root.path} needs {need / 2**20:,.1f} MiB, and {os.path.dirname(target)} has "
            f"{free / 2**20:,.1f} MiB free. Remove large files from the workspace, or {remedy}"
        )


def _shares_blocks(root: Confined, path: str, target: str) -> bool:
    """Whether a copy in ``target`` takes no space of its own, tried with one file."""
    try:
        with open_file(root, path) as source, tempfile.TemporaryFile(dir=target) as probe:
            fcntl.ioctl(probe.fileno(), _FICLONE, source)
    except (OSError, Refused):
        return False
    return True


def copy_tree(
    root: Confined,
    target: str,
    skip: Callable[[str, bool], bool] = lambda _name, _is_dir: False,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Copy everything below ``root`` into the empty directory ``target``: bytes, holes, modes, times, links as links.

    Sockets, pipes and devices are left out, and what vanishes meanwhile. Each file is copied as long as it was when its
    turn came, so a program that writes for ever does not hold the copy up.

    Args:
        stop: asked now and then; true ends the copy with an error.

    Raises:
        SandboxError: something could not be read or written, the message says what; or ``stop`` said so.
    """
    directories: list[tuple[str, os.stat_result]] = [(target, os.fstat(root.fd))]
    path = "."
    try:
        for path, status in walk(root, skip):
            _go_on(stop)
            there = os.path.join(target, path)
            try:
                if stat.S_ISDIR(status.st_mode):
                    os.mkdir(there, 0o700)
                    directories.append((there, status))
                elif stat.S_ISLNK(status.st_mode):
                    os.symlink(read_link(root, path), os.fsencode(there))
                    _set_times(there, status)
                elif stat.S_ISREG(status.st_mode):
                    _copy_file(root, path, there, stop)
            except (OSError, Refused) as error:
                if not vanished(error):
                    raise
    except OSError as error:
        raise SandboxError(f"the workspace {root.path} cannot be copied: {path}: {error.strerror}") from error
    # Modes last: a directory may forbid writing, and times change with each entry.
    for there, status in reversed(directories):
        os.chmod(there, stat.S_IMODE(status.st_mode) if there != target else 0o700)
        _set_times(there, status)


def _go_on(stop: Callable[[], bool]) -> None:
    if stop():
        raise SandboxError("the copy of the workspace was stopped: nobody waits for it any more")


def _set_times(path: str, status: os.stat_result) -> None:
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _copy_file(root: Confined, path: str, there: str, stop: Callable[[], bool]) -> None:
    with open_file(root, path) as source:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            return
        target = os.open(there, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for start, end in data_ranges(source, status.st_size):
                _copy_range(source, target, start, end, stop)
            os.ftruncate(target, min(status.st_size, os.fstat(source).st_size))  # a hole may be at the end
            os.fchmod(target, stat.S_IMODE(status.st_mode))
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(target)


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file holds data: ranges of bytes, between which are holes that read as zeros."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
        except (AttributeError, OSError) as error:
            if getattr(error, "errno", None) != errno.ENXIO:  # a system without: all of it is data
                yield at, size
            return
        yield start, min(at, size)


def _copy_range(source: int, target: int, start: int, end: int, stop: Callable[[], bool]) -> None:
    try:
        while start < end:  # on file systems that can, blocks are shared instead of copied
            _go_on(stop)
            copied = os.copy_file_range(source, target, min(end - start, _KERNEL_COPY_BYTES), start, start)
            if copied == 0:
                return
            start += copied
        return
    except AttributeError:
        pass
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            raise
    while start < end:
        _go_on(stop)
        data = os.pread(source, min(end - start, _COPY_BYTES), start)
        if not data:
            return
        view = memoryview(data)
        while view:
            written = os.pwrite(target, view, start)
            start += written
            view = view[written:]
