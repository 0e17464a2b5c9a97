"""Files between a ``local`` workspace and the rest of the host, as ``upload`` and ``download`` copy them. Blocks."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator

from rath.backend.guest.archive import archive, pieces
from rath.backend.guest.transfer import DirectoryTarget, FileTarget, Limits, Target, telling
from rath.backend.host.paths import DIRECTORY, Confined, Refused, outside
from rath.backend.host.tree import open_file, read_link, walk

__all__ = ["copy_in", "copy_out"]

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_in(root: Confined, host_path: str, path: str) -> None:
    """Copy ``host_path`` to ``path`` below ``root``: as :func:`rath.backend.guest.transfer.upload` does.

    Raises:
        SandboxError: it cannot be read, or not be written there.
    """
    with telling(f"{host_path} cannot be copied to {path!r} in the workspace {root.path}"):
        relative = root.relative(path)
        fd = os.open(host_path, _READ)
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                with root.parent(relative, create=True) as (directory, name):
                    _copy(directory, name, fd, status)
                return
        finally:
            os.close(fd)
        source = Confined(host_path)
        try:
            _put_directory(root, relative)
            for found in walk(source):
                _put(root, f"{relative}/{found.path}", source, found.path, found.status)
        finally:
            source.close()


def _put(root: Confined, relative: str, source: Confined, path: str, status: os.stat_result) -> None:
    """One entry of a directory whose own entry came before. What is there and is a link is replaced, not followed."""
    if stat.S_ISDIR(status.st_mode):
        _put_directory(root, relative)
        return
    head, _, name = relative.rpartition("/")
    with root.opened(head, os.O_RDONLY | os.O_DIRECTORY) as directory:
        if stat.S_ISREG(status.st_mode):
            with open_file(source, path) as fd:
                _copy(directory, name, fd, os.fstat(fd))
        elif stat.S_ISLNK(status.st_mode):
            with _beside(directory, name) as temporary:
                os.symlink(read_link(source, path), os.fsencode(temporary), dir_fd=directory)


def _put_directory(root: Confined, relative: str) -> None:
    if relative == ".":
        return
    with root.parent(relative, create=True) as (directory, name):
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=directory)
    with root.opened(relative, DIRECTORY):  # what is there already is a directory, and leads nowhere else
        pass


def _copy(directory: int, name: str, source: int, status: os.stat_result) -> None:
    with _beside(directory, name) as temporary:
        fd = os.open(temporary, _CREATE, 0o600, dir_fd=directory)
        try:
            for piece in pieces(source, 0, status.st_size):
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
            os.fchmod(fd, stat.S_IMODE(status.st_mode) & 0o777)
            os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(fd)


@contextlib.contextmanager
def _beside(directory: int, name: str) -> Iterator[str]:
    """A name to make something under, which takes the place of ``name`` in one step."""
    temporary = f".rath-{secrets.token_hex(8)}.tmp"
    try:
        yield temporary
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def copy_out(root: Confined, path: str, host_path: str) -> None:
    """Copy ``path`` below ``root`` to ``host_path``: as :func:`rath.backend.guest.transfer.download` does.

    Raises:
        SandboxError: there is no such thing, or it cannot be written.
    """
    with telling(f"{path!r} of the workspace {root.path} cannot be copied to {host_path}"):
        relative = root.relative(path)
        with root.opened(relative, os.O_RDONLY | os.O_NONBLOCK) as fd:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                file = FileTarget(host_path, status.st_mode, status.st_mtime_ns, Limits())
                _receive(file, pieces(fd, 0, status.st_size))
                return
            if not stat.S_ISDIR(status.st_mode):
                raise Refused("not_a_file", "it is neither a file nor a directory")
            source = Confined(f"/proc/self/fd/{fd}" if os.path.isdir("/proc/self/fd") else f"{root.real_path}/{relative}")
        try:
            if not f"{source.real_path}/".startswith(f"{root.real_path}/"):
                raise outside(path)  # moved away in this moment
            _receive(DirectoryTarget(host_path, stat.S_IMODE(status.st_mode), Limits()), archive(source))
        finally:
            source.close()


def _receive(target: Target, parts: Iterable[bytes]) -> None:
    try:
        target.begin()
        for part in parts:
            target.feed(part)
        target.commit()
    except BaseException:
        target.abort()
        raise
