"""Blobs: the whole texts of results that were cut, on the disk, by the SHA-256 of their bytes.

A blob is ``blobs/<first 2 digits>/<64 digits>``: UTF-8 (lone surrogates included), redacted before it was hashed. It has its
name only when it is whole: it is written under another one and renamed. What a crash leaves behind under that other name, or
what no log mentions because its writer died in between, is garbage (``garbage.py``). A blob never changes, so any number of
processes may write the same one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from rath.core.kept import Window, window
from rath.errors import PersistenceError, UsageValueError
from rath.session.persistence.lock import directory_shared
from rath.session.persistence.paths import SESSIONS_DIR_NAME, make_directory, session_file, sync_directory

__all__ = [
    "BLOBS_DIR_NAME",
    "MAX_BLOB_BYTES",
    "BlobStore",
    "CopiedBlobs",
    "blob_directory",
    "copy_blobs",
    "find_text",
    "is_digest",
]

BLOBS_DIR_NAME = "blobs"
MAX_BLOB_BYTES = 1 << 30
"""Longest blob: a longer result is refused, and a longer file is not read."""
_BLOCK = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MENTION = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
# A removal holds the lock for as long as it takes to look at what was appended meanwhile.
_PATIENCE_S = 0.2
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def blob_directory(log: Path) -> Path:
    """Where the blobs of ``log`` are: beside the directory ``sessions``; else in a directory beside the log."""
    directory = log.parent
    return (directory.parent if directory.name == SESSIONS_DIR_NAME else directory) / BLOBS_DIR_NAME


def is_digest(text: object) -> bool:
    """Whether ``text`` is the digest of a blob: 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


class BlobStore:
    """The blobs in one directory. Any thread may call any method.

    Args:
        directory: need not be there yet.
        logs: the directory of the logs that mention them; its lock keeps them from being collected while one is put there.
    """

    def __init__(self, directory: Path, logs: Path | None = None) -> None:
        self.directory = directory
        self._logs = directory.parent if logs is None else logs

    @classmethod
    def of_log(cls, log: Path) -> BlobStore:
        """That of a log."""
        return cls(blob_directory(log), log.parent)

    def path(self, digest: str) -> Path:
        """Where a blob is, or would be.

        Raises:
            UsageValueError: not a digest.
        """
        if not is_digest(digest):
            raise UsageValueError(f"a blob's digest is 64 hexadecimal digits, not {digest!r:.100}")
        return self.directory / digest[:2] / digest

    def put(self, data: bytes, *, digest: str | None = None, durable: bool = True) -> str:
        """Keep ``data``; its digest. What is there already is not written again, but counts as new.

        Args:
            digest: that of ``data``, where it is known.
            durable: whether it must survive a power cut once this returns.

        Raises:
            PersistenceError: it cannot be written, or is too long. There is no half blob then.
        """
        digest = sha256(data).hexdigest() if digest is None else digest
        path = self.path(digest)
        what = f"cannot keep a result of {len(data):,} bytes as {path}"
        if len(data) > MAX_BLOB_BYTES:
            raise PersistenceError(f"{what}: a blob has at most {MAX_BLOB_BYTES:,}. Let the tool return less")
        make_directory(self.directory)
        hint = "Make room, or let this process write there; OPENRATH_HOME says where rath keeps its data"
        with directory_shared(self._logs, wait_s=_PATIENCE_S), _failing(what, hint):
            with _directory(path.parent, make=True) as directory:
                if not _refreshed(directory, digest, data, durable):
                    _write(directory, digest, data, durable)
                if durable:
                    os.fsync(directory)
            if durable:
                sync_directory(self.directory)
        return digest

    def read(self, digest: str, offset: int = 0, limit: int | None = None) -> Window | None:
        """A piece of a text, which is checked whole; ``None`` if it is not here. Memory: as much as the piece, and 1 MiB.

        Args:
            offset, limit: in characters.

        Raises:
            PersistenceError: it cannot be read, is not what its digest says, or is no regular file.
        """
        try:
            with self._reading(digest) as blocks:
                return None if blocks is None else window(blocks, offset, limit)
        except UnicodeDecodeError as error:
            raise self._damaged(digest) from error

    def get(self, digest: str) -> bytes | None:
        """A whole blob; ``None`` if it is not here. Raises as :meth:`read` does."""
        with self._reading(digest) as blocks:
            return None if blocks is None else b"".join(blocks)

    @contextmanager
    def _reading(self, digest: str) -> Iterator[Iterator[bytes] | None]:
        """The blocks of a blob, to be read to their end; then they are checked."""
        path = self.path(digest)
        hashed = sha256()

        def blocks(fd: int) -> Iterator[bytes]:
            left = MAX_BLOB_BYTES
            while left > 0 and (block := os.read(fd, _BLOCK)):
                left -= len(block)
                hashed.update(block)
                yield block

        with _failing(f"cannot read the blob {path}", "It must be a regular file that this process may read"):
            fd = _open_blob(path)
            if fd is None:
                yield None
                return
            try:
                if os.fstat(fd).st_size > MAX_BLOB_BYTES:
                    raise self._damaged(digest)
                yield blocks(fd)
            finally:
                os.close(fd)
        if hashed.hexdigest() != digest:
            raise self._damaged(digest)

    def _damaged(self, digest: str) -> PersistenceError:
        return PersistenceError(
            f"the blob {self.path(digest)} is not what its name says: it was damaged or changed, and is not used. "
            "Delete it; a run that has the same result again keeps it again"
        )


def find_text(digest: str, offset: int, limit: int | None, logs: Iterable[Path]) -> Window | None:
    """:meth:`BlobStore.read` from wherever the text is: among the blobs of ``logs``, or of the sessions directory.

    Raises:
        PersistenceError: it is in none of them whole, and in one damaged.
    """
    damaged: PersistenceError | None = None
    seen: set[Path] = set()
    for log in chain(logs, (None,)):
        directory = blob_directory(session_file(UUID(int=0)) if log is None else log)
        if directory in seen:
            continue
        seen.add(directory)
        try:
            found = BlobStore(directory).read(digest, offset, limit)
        except PersistenceError as error:
            damaged = damaged or error
        else:
            if found is not None:
                return found
    if damaged is not None:
        raise damaged
    return None


class CopiedBlobs(NamedTuple):
    """Digests of blobs that were copied, and of those that could not be: what is there is not what its name says."""

    copied: tuple[str, ...]
    damaged: tuple[str, ...]


def copy_blobs(log: Path, to: Path) -> CopiedBlobs:
    """Copy the blobs of ``log`` that ``to``, a copy of it, mentions: to where :func:`blob_directory` of ``to`` says.

    A mention is the text of a digest, anywhere in the file. What is not there (collected, never kept) is left out.

    Raises:
        PersistenceError: ``to`` cannot be read, or a blob cannot be written.
    """
    source, target = BlobStore.of_log(log), BlobStore.of_log(to)
    copied: dict[str, bool] = {}
    with _failing(f"cannot read {to}", "Check that it is there"):
        for digest in _mentions(to):
            if digest in copied or not os.path.lexists(source.path(digest)):
                continue
            try:
                data = source.get(digest)
            except PersistenceError:
                copied[digest] = False
                continue
            if data is not None:
                target.put(data)
                copied[digest] = True
    return CopiedBlobs(
        tuple(digest for digest, whole in copied.items() if whole), tuple(d for d, whole in copied.items() if not whole)
    )


def _mentions(log: Path) -> Iterator[str]:
    with open(log, "rb") as file:
        tail = b""
        while block := file.read(_BLOCK):
            block = tail + block
            yield from (found[0].decode() for found in _MENTION.finditer(block))
            tail = block[-64:]  # with what stands before a digest that the next block completes


# -- files ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _failing(what: str, remedy: str) -> Iterator[None]:
    """Errors of the file system as what they mean here."""
    try:
        yield
    except OSError as error:
        # What opening a link with O_NOFOLLOW says.
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise PersistenceError(f"{what}: {reason}. {remedy}") from error


@contextmanager
def _directory(path: Path, *, make: bool = False) -> Iterator[int]:
    """A descriptor of a directory that is no link: what is done by name in it is done there. Raises ``OSError``."""
    flags = os.O_RDONLY | os.O_DIRECTORY | _OPEN
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        if not make:
            raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def _open_blob(path: Path) -> int | None:
    """A descriptor to read a blob; ``None`` if there is none. Links, pipes and devices are refused. Raises ``OSError``."""
    try:
        with _directory(path.parent) as directory:
            return _open_regular(path.name, directory)
    except FileNotFoundError:
        return None


def _open_regular(name: str, directory: int) -> int:
    fd = os.open(name, os.O_RDONLY | _OPEN, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file")
    return fd


def _refreshed(directory: int, digest: str, data: bytes, durable: bool) -> bool:
    """Whether the blob is there, whole; its time is now, then.

    It is compared: a power cut may have left an empty file under a name that nobody had synced.
    """
    try:
        fd = _open_regular(digest, directory)
    except OSError:  # none, or something else, which is replaced
        return False
    try:
        if not _equal(fd, data):
            return False
        os.utime(fd)
        if durable:
            os.fsync(fd)
        return True
    finally:
        os.close(fd)


def _equal(fd: int, data: bytes) -> bool:
    if os.fstat(fd).st_size != len(data):
        return False
    view, at = memoryview(data), 0
    while block := os.read(fd, _BLOCK):
        if block != view[at : at + len(block)]:
            return False
        at += len(block)
    return at == len(data)


def _write(directory: int, digest: str, data: bytes, durable: bool) -> None:
    temporary = f".{digest}.{os.urandom(8).hex()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=directory)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, digest, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
