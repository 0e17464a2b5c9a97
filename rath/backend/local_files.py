"""The file tools of the ``local`` backend, on a confined directory. Plain blocking functions; small enough for the loop."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat

from rath.backend.answers import MAX_READ_BYTES, too_large
from rath.backend.calls import NEW_FILE_MODE, FileEntries, FileEntry, FileWriteResult
from rath.backend.host.paths import Confined, Refused

__all__ = ["exists", "failure_kind", "file_size", "list_directory", "read_bytes", "write_file"]

# Without O_NONBLOCK, opening a FIFO that nobody writes to would never return.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_EXISTS = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK)
_KINDS = {
    errno.ENOENT: "file_not_found",
    errno.EISDIR: "is_directory",
    errno.ENOTDIR: "not_a_directory",
    errno.ENXIO: "not_a_file",  # a socket
}


def failure_kind(error: OSError) -> str:
    """The ``kind`` of the failure that an operating system error becomes."""
    return _KINDS.get(error.errno or 0, "os_error")


def file_size(root: Confined, relative: str) -> int:
    """A file's size in bytes; refuses what is not a file, or too large to read."""
    with root.opened(relative, _READ) as fd:
        return _readable(fd, relative).st_size


def read_bytes(root: Confined, relative: str) -> bytes:
    """A file's content."""
    with root.opened(relative, _READ) as fd:
        _readable(fd, relative)
        with os.fdopen(fd, "rb", closefd=False) as file:
            data = file.read(MAX_READ_BYTES + 1)
    if len(data) > MAX_READ_BYTES:  # it grew, or is one of those whose size says nothing
        raise too_large(relative, "more")
    return data


def _readable(fd: int, relative: str) -> os.stat_result:
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise Refused("is_directory", f"{relative!r} is a directory: list it instead")
    if not stat.S_ISREG(status.st_mode):
        raise Refused("not_a_file", f"{relative!r} is not a regular file")
    if status.st_size > MAX_READ_BYTES:
        raise too_large(relative, f"{status.st_size:,}")
    return status


def write_file(root: Confined, relative: str, data: bytes | str, mode: int) -> FileWriteResult:
    """Replace a file in one step: readers see the old content or the new, never a part.

    With ``NEW_FILE_MODE``, the default of a write, a file that is there keeps its own permissions.
    """
    if isinstance(data, str):
        try:
            data = data.encode()
        except UnicodeEncodeError:
            raise Refused("encode_error", "the text holds half of a surrogate pair, which UTF-8 cannot encode") from None
    with root.parent(relative, create=True) as (directory, name):
        old = _refuse_special(directory, name, relative)
        if old is not None and mode == NEW_FILE_MODE:
            mode = stat.S_IMODE(old.st_mode)
        temporary = f".rath-{secrets.token_hex(8)}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            try:
                _write_all(fd, data)
                os.fchmod(fd, mode & 0o777)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
    return FileWriteResult(len(data))


def _refuse_special(directory: int, name: str, relative: str) -> os.stat_result | None:
    """The status of the file that a write replaces, if there is one."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise Refused("is_directory", f"{relative!r} is a directory: a file cannot take its place")
    if not stat.S_ISREG(status.st_mode):
        raise Refused("not_a_file", f"{relative!r} is not a regular file, and is not replaced by one")
    return status


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def list_directory(root: Confined, path: str) -> FileEntries:
    """A directory's entries. A link counts as a directory if it leads to one inside the workspace."""
    relative = root.relative(path)
    prefix = "" if path.strip("/") in ("", ".") and not path.startswith("/") else path.rstrip("/") + "/"
    entries = []
    with root.opened(relative, os.O_RDONLY | os.O_DIRECTORY) as fd, os.scandir(fd) as found:
        for entry in found:
            is_dir = entry.is_dir(follow_symlinks=False)
            if entry.is_symlink():
                is_dir = _is_directory(root, f"{relative}/{entry.name}")
            entries.append(FileEntry(entry.name, prefix + entry.name, is_dir))
    entries.sort(key=lambda entry: entry.name)
    return FileEntries(tuple(entries))


def _is_directory(root: Confined, relative: str) -> bool:
    try:
        with root.opened(relative, _EXISTS) as fd:
            return stat.S_ISDIR(os.fstat(fd).st_mode)
    except (OSError, Refused):
        return False


def exists(root: Confined, relative: str) -> bool:
    """Whether there is anything. Refuses paths that lead out: they must not tell what is there."""
    try:
        with root.opened(relative, _EXISTS):
            return True
    except OSError:
        return False
