"""Files between the host and a sandbox, as streams: neither side ever holds more than a few megabytes of them.

What comes out of a sandbox is hostile; see :mod:`rath.backend.guest.extract`. It is made beside its place and moved there
when it is whole, so nobody sees a part of it. File work on the host is done in tool threads, about a megabyte at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

from rath.backend.guest.archive import ArchiveReader, archive, pieces
from rath.backend.guest.channel import Channel
from rath.backend.guest.extract import Extractor, Limits
from rath.backend.guest.files import raw_path
from rath.backend.guest.frames import ProtocolError, number
from rath.backend.guest.inflight import Reply
from rath.backend.host.own import clear
from rath.backend.host.paths import Confined, Refused
from rath.core import ports
from rath.errors import SandboxError

__all__ = [
    "DirectoryTarget",
    "FileTarget",
    "Limits",
    "Target",
    "download",
    "receive_archive",
    "send_archive",
    "telling",
    "upload",
]

_UNLIMITED_BYTES = 1 << 62
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


# -- into a sandbox ---------------------------------------------------------------------------------------------------


async def upload(channel: Channel, host_path: str, path: str) -> None:
    """Copy ``host_path`` of the host to ``path`` in the workspace.

    A file takes the place of a file, in one step; missing directories are made. The content of a directory goes into the
    directory ``path``: what is there and has another name stays. Modes and times are kept (of a single file only the mode),
    holes, hard links, and links as links; sockets, pipes and devices are left out.

    Raises:
        SandboxError: it cannot be read, or not be written inside.
    """
    with telling(f"{host_path} cannot be copied to {path!r} in the sandbox"):
        source = await ports.engine().call(_open_source, host_path)
        async with contextlib.aclosing(source):
            if source.size_bytes is None:
                await channel.ask(_ignore, "import", raw_path(path), source=source.chunks(), slow=True)
            else:
                fields = (raw_path(path), b"%o" % source.mode, b"%d" % source.size_bytes)
                await channel.ask(_ignore, "write", *fields, source=source.chunks())


async def send_archive(channel: Channel, archive_path: str, path: str) -> None:
    """Make what the archive at ``archive_path`` of the host holds, below ``path`` in the workspace.

    Raises:
        SandboxError: it cannot be read, or not be written inside.
    """
    with telling("the files of the snapshot cannot be put into the sandbox"):
        source = await ports.engine().call(_open_source, archive_path)
        async with contextlib.aclosing(source):
            await channel.ask(_ignore, "import", raw_path(path), source=source.chunks(), slow=True)


class _Source:
    """Something of the host that is read in tool threads: a file with its size, or a directory as an archive."""

    def __init__(self, parts: Iterator[bytes], close: Callable[[], None], size_bytes: int | None, mode: int) -> None:
        self.size_bytes = size_bytes
        self.mode = mode
        self._parts = parts
        self._close = close
        # A cancelled upload does not wait for its thread, and a descriptor must not be closed under that.
        self._lock = threading.Lock()
        self._closed = False

    def _next(self) -> bytes:
        with self._lock:
            return b"" if self._closed else next(self._parts, b"")

    def _end(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._close()

    async def chunks(self) -> AsyncIterator[bytes]:
        engine = ports.engine()
        while chunk := await engine.call(self._next):
            yield chunk

    async def aclose(self) -> None:
        await asyncio.shield(ports.engine().call(self._end))


def _open_source(path: str) -> _Source:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    mode = stat.S_IMODE(status.st_mode) & 0o777
    if stat.S_ISREG(status.st_mode):
        return _Source(pieces(fd, 0, status.st_size), lambda: os.close(fd), status.st_size, mode)
    os.close(fd)
    if not stat.S_ISDIR(status.st_mode):
        raise Refused("not_a_file", "it is neither a file nor a directory")
    root = Confined(path)
    return _Source(archive(root), root.close, None, mode)


# -- out of a sandbox -------------------------------------------------------------------------------------------------


async def download(channel: Channel, path: str, host_path: str, limits: Limits | None = None) -> None:
    """Copy ``path`` of the workspace to ``host_path`` of the host, whole or not at all.

    A file takes the place of a file. For a directory, ``host_path`` is not there yet, or is an empty directory; its parent
    is there. Modes (without setuid), times, holes and links are kept; links lead where they led inside, so do not follow
    them blindly.

    Raises:
        SandboxError: there is no such thing, it is more than ``limits``, or it cannot be written.
        SandboxBroken: what came is not what any honest guest sends.
    """
    limits = limits or Limits()
    with telling(f"{path!r} of the sandbox cannot be copied to {host_path}"):
        kind, mode, mtime_ns = await channel.ask(_shape, "stat", raw_path(path))
        if kind != b"d":
            target: Target = FileTarget(host_path, mode if kind == b"f" else 0o644, mtime_ns, limits)
            try:
                await _receive(channel, target, "read", raw_path(path), b"0", b"")
                return
            except Refused as refused:
                if refused.kind != "is_directory":
                    raise
        target = DirectoryTarget(host_path, mode if kind == b"d" else 0o755, limits)
        await _receive(channel, target, "export", raw_path(path), b"")


async def receive_archive(channel: Channel, path: str, archive_path: str) -> None:
    """Keep ``path`` of the workspace as an archive in the new file ``archive_path`` of the host, which is not looked into.

    Everything in the sandbox is held meanwhile, so that nobody writes while it is read; nothing is killed.

    Raises:
        SandboxError: it cannot be read, or the host has no room for it.
    """
    with telling("the files of the sandbox cannot be kept as a snapshot"):
        await channel.ask(_ignore, "hold")
        try:
            target = FileTarget(archive_path, 0o600, None, Limits())
            await _receive(channel, target, "export", raw_path(path), b"")
        finally:
            if channel.is_open:
                await asyncio.shield(channel.ask(_ignore, "release"))


async def _receive(channel: Channel, target: Target, op: str, *fields: bytes) -> None:
    engine = ports.engine()
    try:
        await engine.call(target.begin)
        async with channel.stream(op, *fields, limit_bytes=_UNLIMITED_BYTES, slow=True) as stream:
            async for data in stream:
                with channel.believing():
                    await engine.call(target.feed, data)
        with channel.believing():
            await engine.call(target.commit)
    except BaseException:
        await asyncio.shield(engine.call(target.abort))
        raise


class Target(Protocol):
    """Something on the host that is made beside its place. All of it blocks, and may come from different threads."""

    def begin(self) -> None: ...
    def feed(self, data: bytes) -> None: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...


class _Beside:
    """A name of our own beside ``path``, in a directory that is held by a descriptor."""

    def __init__(self, path: str) -> None:
        self._directory, self._name = os.path.split(os.path.abspath(path))
        self._temporary = f".rath-{secrets.token_hex(8)}.tmp"
        self._parent = -1
        self._fd = -1
        # A cancelled caller does not wait for its thread, and the clean-up must come after that.
        self._lock = threading.Lock()
        self._over = False

    def _open_parent(self) -> None:
        if self._over:
            raise InterruptedError("nobody waits for it any more")
        self._parent = os.open(self._directory, _DIRECTORY)

    def _close(self) -> None:
        self._over = True
        for fd in (self._fd, self._parent):
            if fd >= 0:
                os.close(fd)
        self._fd = self._parent = -1

    def _move(self) -> None:
        os.rename(self._temporary, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        self._close()


class FileTarget(_Beside):
    """A file that takes the place of one at ``path``."""

    def __init__(self, path: str, mode: int, mtime_ns: int | None, limits: Limits) -> None:
        super().__init__(path)
        self._mode = mode & 0o777
        self._mtime_ns = mtime_ns
        self._limits = limits

    def begin(self) -> None:
        with self._lock:
            self._open_parent()
            self._fd = os.open(self._temporary, _CREATE, 0o600, dir_fd=self._parent)

    def feed(self, data: bytes) -> None:
        with self._lock:
            self._limits.take(0, len(data))
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]

    def commit(self) -> None:
        with self._lock:
            os.fchmod(self._fd, self._mode)
            if self._mtime_ns is not None:
                os.utime(self._fd, ns=(self._mtime_ns, self._mtime_ns))
            self._move()

    def abort(self) -> None:
        with self._lock:
            if self._fd >= 0:
                os.unlink(self._temporary, dir_fd=self._parent)
            self._close()


class DirectoryTarget(_Beside):
    """A directory at ``path``, where there is none or an empty one, from an archive. Nothing is written anywhere else."""

    def __init__(self, path: str, mode: int, limits: Limits) -> None:
        super().__init__(path)
        self._mode = mode & 0o777 | 0o700
        self._limits = limits
        self._extractor: Extractor | None = None

    def begin(self) -> None:
        with self._lock:
            self._open_parent()
            with contextlib.suppress(FileNotFoundError):
                there = os.open(self._name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self._parent)
                try:
                    if os.listdir(there):
                        raise Refused("os_error", "that directory is not empty")
                finally:
                    os.close(there)
            os.mkdir(self._temporary, 0o700, dir_fd=self._parent)
            self._fd = os.open(self._temporary, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self._parent)
            self._extractor = Extractor(self._fd, self._limits)
            self._reader = ArchiveReader(self._extractor)

    def feed(self, data: bytes) -> None:
        with self._lock:
            self._reader.feed(data)

    def commit(self) -> None:
        with self._lock:
            assert self._extractor is not None
            self._reader.check_ended()
            self._extractor.finish()
            os.fchmod(self._fd, self._mode)
            self._move()

    def abort(self) -> None:
        with self._lock:
            if self._extractor is not None:
                self._extractor.close()
            if self._fd >= 0:
                clear(self._fd)
                os.rmdir(self._temporary, dir_fd=self._parent)
            self._close()


def _shape(reply: Reply) -> tuple[bytes, int, int]:
    """Kind, mode and time of what ``stat`` found."""
    if len(reply.fields) != 7:
        raise ProtocolError(f"{len(reply.fields)} fields about a file")
    mode, _size, _uid, _gid, mtime_ns, kind, _link = reply.fields
    return kind, number(mode, maximum=0o7777), number(mtime_ns, minimum=-(1 << 62))


def _ignore(_reply: Reply) -> None:
    """Nothing in the answer matters but that there is one."""


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """A block whose failures become ``SandboxError``, which say ``what`` failed."""
    try:
        yield
    except Refused as refused:
        raise SandboxError(f"{what}: {refused.message}") from None
    except OSError as error:
        where = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, (str, bytes)) else ""
        raise SandboxError(f"{what}: {error.strerror or error}{where}") from error
