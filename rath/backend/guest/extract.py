"""Writing a hostile archive to the host: below one directory, by descriptors, and through no link."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from rath.backend.guest.archive import DIRECTORY, FILE, HARD_LINK, LINK, Record
from rath.backend.guest.frames import ProtocolError
from rath.errors import SandboxError

__all__ = ["Extractor", "Limits"]

_BELOW = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Limits:
    """How much may come out of a sandbox; counted as it comes."""

    def __init__(self, entries: int = 1_000_000, size_bytes: int = 64 << 30) -> None:
        self.entries = entries
        self.size_bytes = size_bytes

    def take(self, entries: int, size_bytes: int) -> None:
        """Count so much more.

        Raises:
            SandboxError: it is too much.
        """
        self.entries -= entries
        self.size_bytes -= size_bytes
        if self.entries < 0 or self.size_bytes < 0:
            what = "entries" if self.entries < 0 else "bytes"
            raise SandboxError(f"there are more {what} in it than a download takes; choose a directory below it")


class Extractor:
    """Makes the entries of an archive in the empty directory ``top`` (a descriptor, which it does not close). Blocks.

    Every directory on the way to an entry is opened without following links, so what the archive itself or anybody else
    puts in the way is an error and no way out. Of modes only the nine permission bits are set; no entry can be a device.
    Links are made as they are told, and lead where they say: who reads the result should not follow them blindly.

    Raises (all methods):
        ProtocolError: the archive contradicts itself.
        SandboxError: a limit is reached.
        OSError: the host cannot.
    """

    def __init__(self, top: int, limits: Limits) -> None:
        self._top = top
        self._limits = limits
        self._directories: list[Record] = []
        self._fd = -1
        self._record: Record | None = None

    def entry(self, record: Record, _digest: bytes) -> None:
        self._limits.take(1, 0)
        with self._parent(record.path) as (directory, name):
            try:
                self._make(record, directory, name)
            except FileExistsError:
                raise ProtocolError(f"an archive with {record.path[:80]!r} twice") from None

    def _make(self, record: Record, directory: int, name: bytes) -> None:
        if record.kind == DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=directory)
            self._directories.append(record)
        elif record.kind == FILE:
            self._fd = os.open(name, _CREATE, 0o600, dir_fd=directory)
            self._record = record
        elif record.kind == LINK:
            os.symlink(record.link, name, dir_fd=directory)
            os.utime(name, ns=(record.mtime_ns, record.mtime_ns), dir_fd=directory, follow_symlinks=False)
        elif record.kind == HARD_LINK:
            with self._parent(record.link) as (source, old):
                try:
                    os.link(old, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
                except FileNotFoundError:
                    raise ProtocolError(f"an archive with a second name for {record.link[:80]!r}, not in it") from None

    def content(self, offset: int, data: bytes) -> None:
        self._limits.take(0, len(data))
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            offset += written
            view = view[written:]

    def file_end(self) -> None:
        record, fd = self._record, self._fd
        assert record is not None
        os.ftruncate(fd, record.size)  # a hole may be at the end
        os.fchmod(fd, record.mode)
        os.utime(fd, ns=(record.mtime_ns, record.mtime_ns))
        self.close()

    def finish(self) -> None:
        """All entries are there: set what is set last, as a directory may forbid writing and its time changes."""
        for record in reversed(self._directories):
            with self._parent(record.path) as (directory, name):
                fd = os.open(name, _BELOW, dir_fd=directory)
                try:
                    os.utime(fd, ns=(record.mtime_ns, record.mtime_ns))
                    os.fchmod(fd, record.mode)
                finally:
                    os.close(fd)

    def close(self) -> None:
        """Give the descriptor of an unfinished file back."""
        fd, self._fd, self._record = self._fd, -1, None
        if fd >= 0:
            os.close(fd)

    @contextlib.contextmanager
    def _parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        *above, name = path.split(b"/")
        fd = os.dup(self._top)
        try:
            for part in above:
                try:
                    below = os.open(part, _BELOW, dir_fd=fd)
                except OSError as error:
                    raise _no_way(path, error) from None
                os.close(fd)
                fd = below
            yield fd, name
        finally:
            os.close(fd)


def _no_way(path: bytes, error: OSError) -> Exception:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return ProtocolError(f"an archive with {path[:80]!r} below something that is no directory of it")
    return error
