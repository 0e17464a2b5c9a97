"""Removing blobs that no log mentions any more.

A blob is kept as long as its digest stands anywhere in any log of its directory: in a row, in a record, in a line that
is damaged. So what is looked for is the text of the digest, not a field. Whoever writes a blob touches it first and
mentions it then; a blob is left alone for an hour after it was last touched, which covers the time between.

The logs are read without the directory's lock, for that takes as long as they are large. Under it, what has changed
meanwhile is read again.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from rath.errors import PersistenceError, UsageTypeError, UsageValueError
from rath.session.persistence.blobs import blob_directory
from rath.session.persistence.lock import directory_exclusive
from rath.session.persistence.manage import PATIENCE_S
from rath.session.persistence.needs import is_file
from rath.session.persistence.paths import SESSION_FILE_SUFFIX, SESSIONS_DIR_NAME, is_directory, log_path, sessions_dir

__all__ = ["Garbage", "collect_blobs", "find_garbage"]

GRACE = timedelta(hours=1)
_BLOCK = 1 << 20
_DIGEST = 64
_HEX_RUN = re.compile(rb"[0-9a-f]{64,}", re.IGNORECASE)
_IS_HEX = bytes(b"0123456789abcdefABCDEF".find(code) >= 0 for code in range(256))
_STRIDE = 8
_SAMPLES = re.compile(rb"\x01{%d,}" % (_DIGEST // _STRIDE))
_SUBDIRECTORY = re.compile(r"[0-9a-f]{2}")
_NAME = re.compile(r"[0-9a-f]{64}")
_HALF = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{16}\.tmp")
_LOG_START = b'{"record_type":"header"'


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Blobs beside a directory of logs, and which of them no log mentions.

    Attributes:
        directory: where the blobs are.
        blobs, total_bytes: all of them.
        digests: of those that may go, or are gone.
        files, size_bytes: how many that are, with what writers that died have left half written.
        blocked: why none may; ``None`` if nothing is in the way.
    """

    directory: Path
    blobs: int = 0
    total_bytes: int = 0
    digests: tuple[str, ...] = ()
    files: int = 0
    size_bytes: int = 0
    blocked: str | None = None


def collect_blobs(directory: Path | str | None = None, *, grace: timedelta = GRACE) -> Garbage:
    """Remove the blobs that no log beside them mentions, and that were not touched for ``grace``; what is gone.

    Args:
        directory: of the logs; by default the sessions directory.

    Raises:
        UsageValueError: ``grace`` is negative.
        PersistenceError: a directory or a blob cannot be read or removed, or the directory's lock is not free. A log
            that cannot be read is no error: then nothing goes, and ``blocked`` says why.
    """
    logs = sessions_dir() if directory is None else log_path(directory)
    found = _Search(logs, grace)
    found.run(())
    if not found.digests or found.blocked is not None:
        return found.result()
    with ExitStack() as locks:
        for place in found.places():
            locks.enter_context(directory_exclusive(place, wait_s=PATIENCE_S))
        found.run(())
        if found.blocked is None:
            found.remove()
    return found.result()


def find_garbage(
    directory: Path | str | None = None, *, grace: timedelta = GRACE, without: Collection[Path] = ()
) -> Garbage:
    """What :func:`collect_blobs` would remove now.

    Args:
        without: logs that count as if they were gone.
    """
    found = _Search(sessions_dir() if directory is None else log_path(directory), grace)
    found.run(without)
    return found.result()


@dataclass(slots=True)
class _Seen:
    """A log as it was when it was searched."""

    identity: tuple[int, int]
    size: int
    mtime_ns: int


@dataclass(slots=True)
class _Blob:
    path: Path
    size: int
    mtime: float


@dataclass
class _Search:
    logs: Path
    grace: timedelta
    blocked: str | None = None
    digests: dict[str, _Blob] = field(default_factory=dict)
    _count: int = 0
    _total: int = 0
    _gone: list[tuple[str, int]] | None = None
    _searched: bool = False
    _mentioned: set[str] = field(default_factory=set)
    _seen: dict[Path, _Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.grace, timedelta):
            raise UsageTypeError(f"grace is a timedelta, not {type(self.grace).__name__}")
        if self.grace < timedelta():
            raise UsageValueError(f"grace is a span of time; got {self.grace}")
        self._blobs = blob_directory(self.logs / "x.jsonl")

    def places(self) -> list[Path]:
        """The directories whose logs may have blobs here: ``x`` and ``x/sessions`` both keep theirs in ``x/blobs``."""
        beside = self._blobs.parent
        found = {self.logs, beside / SESSIONS_DIR_NAME}
        # A directory that this process cannot write to, and that has no logs, needs no lock and could not have one.
        if os.access(beside, os.W_OK) or any(True for _ in _logs(beside)):
            found.add(beside)
        return sorted(place for place in found if is_directory(place))

    def run(self, without: Collection[Path]) -> None:
        """Look for blobs, then for their digests. Again: only for those that were left, at what has changed since."""
        before = self.digests
        self._find_blobs()
        if self._blobs.is_symlink():
            self.blocked = f"{self._blobs} is a link: logs elsewhere may need blobs in it. Make it a directory, or a mount"
            self.digests.clear()
            return
        if self._searched:
            self.digests = {digest: blob for digest, blob in self.digests.items() if digest in before}
        self._searched = True
        if not self.digests:
            return
        for place in self.places():
            for path in _logs(place):
                if path in without:
                    continue
                try:
                    self._search(path)
                except FileNotFoundError:  # deleted since
                    continue
                except OSError as error:
                    self.blocked = f"{path} cannot be read ({error.strerror or error}), so which blobs it needs is not known"
                    self.digests.clear()
                    return
        for digest in self._mentioned:
            self.digests.pop(digest, None)
        self._mentioned.clear()

    def _find_blobs(self) -> None:
        self.digests, self._count, self._total = {}, 0, 0
        until = time.time() - self.grace.total_seconds()
        try:
            for name, blob in _stored(self._blobs):
                self._count += _NAME.fullmatch(name) is not None
                self._total += blob.size
                if blob.mtime < until:
                    self.digests[name] = blob
        except OSError as error:
            raise PersistenceError(f"cannot list the blobs in {self._blobs}: {error.strerror or error}") from error

    def _search(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            now = _Seen((status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns)
            before = self._seen.get(path)
            if now == before or not stat.S_ISREG(status.st_mode):
                return
            # Logs only grow; what was read of this one is searched again only if it is another file by now.
            grown = before is not None and before.identity == now.identity and before.size <= now.size
            start = max(0, before.size - _DIGEST) if grown and before is not None else 0
            self._look(fd, start, now.size)
            self._seen[path] = now
        finally:
            os.close(fd)

    def _look(self, fd: int, offset: int, end: int) -> None:
        tail = b""
        while offset < end and (block := os.pread(fd, _BLOCK, offset)):
            offset += len(block)
            block = tail + block
            for run in _hex_runs(block):
                places = range(len(run) - _DIGEST + 1)
                self._mentioned.update(digest for at in places if (digest := run[at : at + _DIGEST]) in self.digests)
            tail = block[1 - _DIGEST :]

    def remove(self) -> None:
        """Remove them. Under the locks."""
        gone: list[tuple[str, int]] = []
        self._gone = gone
        until = time.time() - self.grace.total_seconds()
        for digest, blob in self.digests.items():
            try:
                # Whoever could not wait for the lock has touched it, or put another one in its place.
                if blob.path.lstat().st_mtime < until:
                    blob.path.unlink()
                    gone.append((digest, blob.size))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise PersistenceError(f"cannot remove the blob {blob.path}: {error.strerror or error}") from error

    def result(self) -> Garbage:
        found = [(digest, blob.size) for digest, blob in self.digests.items()] if self._gone is None else self._gone
        return Garbage(
            directory=self._blobs,
            blobs=self._count,
            total_bytes=self._total,
            digests=tuple(name for name, _ in found if _NAME.fullmatch(name)),
            files=len(found),
            size_bytes=sum(size for _, size in found),
            blocked=self.blocked,
        )


def _hex_runs(block: bytes) -> Iterator[str]:
    """The runs of 64 hex digits or more, in lower case.

    A regular expression alone goes through 40 MB/s of a log. So only every eighth byte is looked at first: eight of
    them that are hex digits, one after the other, are rare where there is no digest.
    """
    for sampled in _SAMPLES.finditer(block[::_STRIDE].translate(_IS_HEX)):
        start, end = sampled.span()
        for run in _HEX_RUN.finditer(block, max(0, (start - 1) * _STRIDE + 1), end * _STRIDE):
            yield run[0].decode().lower()


def _stored(directory: Path) -> Iterator[tuple[str, _Blob]]:
    """The blobs in a directory, and those that are half written; what else is there is left out. Raises ``OSError``."""
    try:
        with os.scandir(directory) as entries:
            places = [entry.path for entry in entries if _SUBDIRECTORY.fullmatch(entry.name) and _is_directory(entry)]
    except FileNotFoundError:
        return
    for place in sorted(places):
        with os.scandir(place) as entries:
            for entry in entries:
                digest = entry.name.lstrip(".")[:2]
                known = _NAME.fullmatch(entry.name) or _HALF.fullmatch(entry.name)
                if known and place.endswith(digest) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield entry.name, _Blob(Path(entry.path), status.st_size, status.st_mtime)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _logs(directory: Path) -> Iterator[Path]:
    """Every file of a directory that is, or may once have been, a log, whatever it is called now."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if is_file(entry) and (SESSION_FILE_SUFFIX in entry.name or _begins_like_one(entry)):
                    yield Path(entry.path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise PersistenceError(f"cannot list the session logs in {directory}: {error.strerror or error}") from error


def _begins_like_one(entry: os.DirEntry[str]) -> bool:
    try:
        fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # of others, by its name no log
        return False
    try:
        return os.pread(fd, len(_LOG_START), 0) == _LOG_START
    except OSError:
        return False
    finally:
        os.close(fd)
