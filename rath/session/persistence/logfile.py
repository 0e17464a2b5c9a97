"""An open session log: one file, one writer, one chain.

The theory, in one page. A log is worth what its worst moment leaves behind, so every rule here is about a
moment:

*Between two records* nothing is pending: a record is one ``write(2)`` of one whole line on a descriptor
opened with ``O_APPEND``, and returns when the kernel has it. A process that dies (SIGKILL included) after
``append`` returned has lost nothing of it.

*Inside a record* a death leaves a line without ``\\n``. That is a torn tail: readers drop it, the next writer
cuts it off. The chain of hashes tells a torn line from one that was damaged later.

*At a failure* (disk full, I/O error, a limit) the file's end is unknown. The first error latches: it is
raised, every later call raises the same one, and the trailer, which says "this is all", is never written.

*At a power cut* what the kernel had not written is gone. ``durability`` says when it must have been:
``"process"`` never (SIGKILL only), ``"turn"`` at :meth:`LogFile.sync`, which a run calls before tools and at
the end of each turn, ``"record"`` in each append. The trailer is written only after everything before it was
synced, so that it cannot reach the disk first.

*With two writers* lines would interleave: an exclusive lock beside the file (``lock.py``) is held for the
writer's life. A forked child inherits the descriptors but not the right to use them.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, get_args

from rath.core.ports import Durability
from rath.errors import PersistenceError, UsageValueError
from rath.session.persistence.format import (
    LONG_RECORDS,
    MAX_ELEMENTS,
    MAX_LINE_BYTES,
    MAX_OTHER_BYTES,
    line_body,
    seal,
    too_many_elements,
)
from rath.session.persistence.lock import PathLock
from rath.session.persistence.paths import lock_file, make_directory, reason, sync_directory

__all__ = ["Durability", "LogFile"]

_HEADER_START = b'{"record_type":"header",'
_MAX_TORN_HEADER = 1 << 20
_open_files: weakref.WeakSet[LogFile] = weakref.WeakSet()


class LogFile:
    """An open log: its descriptor, lock, chain and latch. Any thread may call any method.

    Args:
        existing: take up the log that is there; :meth:`go_on` comes before the first record. Else make a new one.

    Raises (each method but :meth:`abandon`):
        PersistenceError: the file cannot be made, locked, written or synced; from then on always the same
            one.
    """

    def __init__(self, path: Path, durability: Durability = "turn", *, existing: bool = False) -> None:
        self._fd = -1
        self._lock: PathLock | None = None
        if durability not in get_args(Durability):
            raise UsageValueError(f"durability is one of {', '.join(get_args(Durability))}; got {durability!r}")
        self.path = Path(path).absolute()
        self.durability = durability
        self.epoch = os.urandom(8).hex()
        self.records = 0
        self.size_bytes = 0
        self.mutex = threading.RLock()
        # Held while syncing and closing only: a slow disk must not hold up appends from another thread.
        self._sync_mutex = threading.RLock()
        self.h = self.epoch.encode()
        self._synced = 0
        self._failure: PersistenceError | None = None
        self.finished = False
        self._existing = existing
        if not existing:
            make_directory(self.path.parent)
        self._lock = PathLock(lock_file(self.path), f"the session log {self.path}")
        try:
            self._fd = _open_existing(self.path) if existing else _create(self.path)
        except BaseException:
            self._release()
            raise
        _open_files.add(self)

    @contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        """The existing file, for reading it under its lock. Errors of the file system come out as they should."""
        try:
            with open(self._fd, "rb", closefd=False) as file:
                yield file
        except OSError as error:
            raise PersistenceError(f"cannot read the session log {self.path}: {error.strerror or error}") from error

    def go_on(self, *, whole_bytes: int, records: int, h: bytes) -> int:
        """Go on behind the existing file's last whole record; what stands after it is cut off, durably.

        Args:
            whole_bytes: where that record ends.
            records: how many there are.
            h: its hash.

        Returns:
            How many bytes were cut off.
        """
        with self.mutex:
            self.check()
            try:
                torn_bytes = os.fstat(self._fd).st_size - whole_bytes
                if torn_bytes:
                    os.ftruncate(self._fd, whole_bytes)
                    os.fdatasync(self._fd)
            except BaseException as error:
                self._fail(error)
                raise
            # Not yet `_synced`: what the writer before this one left may not be on the disk.
            self.records = records
            self.size_bytes = whole_bytes
            self.h = h
            return torn_bytes

    def append(self, record_type: str, fields: bytes) -> None:
        """Write one record: when this returns, the kernel has all of it (at ``"record"``, the disk)."""
        with self.mutex:
            self.check()
            try:
                line, h = seal(line_body(record_type, self.records, fields), self.h)
                self._check_size(record_type, line)
                written = os.write(self._fd, line)
                while written < len(line):
                    written += os.write(self._fd, memoryview(line)[written:])
                self.h = h
                self.records += 1
                self.size_bytes += len(line)
                if self.durability == "record":
                    os.fdatasync(self._fd)
                    self._synced = self.records
            except BaseException as error:  # a Ctrl-C in here too leaves the end of the file unknown
                self._fail(error)
                raise

    def _check_size(self, record_type: str, line: bytes) -> None:
        """Refuse what readers refuse."""
        row = record_type in LONG_RECORDS
        limit = MAX_LINE_BYTES if row else MAX_OTHER_BYTES
        if len(line) > limit:
            remedy = "Cut large results before they become rows" if row else "Keep large values out of lineage_extras"
            raise PersistenceError(
                f"a {record_type} record of {len(line):,} bytes does not fit into the session log {self.path}: its line "
                f"has at most {limit:,}. {remedy}"
            )
        if too_many_elements(line):
            raise PersistenceError(
                f"a {record_type} record does not fit into the session log {self.path}: it has more than "
                f"{MAX_ELEMENTS:,} brackets and commas. Keep large structures as text"
            )

    def needs_sync(self) -> bool:
        """Whether :meth:`sync` has anything to do."""
        return self.durability == "turn" and self._synced < self.records

    def sync(self) -> None:
        """Make what was appended durable, if this log's durability asks for it. May wait for the disk."""
        with self._sync_mutex:
            with self.mutex:
                self.check()
                if not self.needs_sync():
                    return
                fd, records = self._fd, self.records
            try:
                os.fdatasync(fd)
            except BaseException as error:
                with self.mutex:
                    self._fail(error)
                raise
            with self.mutex:
                self._synced = max(self._synced, records)

    def finish(self, record_type: str, fields: Callable[[], bytes]) -> bool:
        """Write the last record, make everything durable, let go. ``False`` if it had been finished or abandoned.

        Args:
            fields: makes the record's fields, when all others are written.
        """
        with self._sync_mutex, self.mutex:
            if self.finished:
                return False
            try:
                self.sync()
                self.append(record_type, fields())
                self.sync()
            except BaseException as error:
                self.latch(error)
                self._release()
                raise
            failed = self._release()
            if failed is not None:  # network file systems report a failed write here
                self._fail(failed)
            self.finished = True
            self._failure = PersistenceError(f"the session log {self.path} is closed: nothing can be appended to it")
            return True

    def abandon(self) -> None:
        """Let go without a last record; :meth:`finish` does nothing any more. Idempotent, never raises."""
        with self._sync_mutex, self.mutex:
            if self._failure is None:
                self.finished = True
                self._failure = PersistenceError(
                    f"the session log {self.path} was abandoned: it keeps what was written and has no trailer"
                )
            self._release()

    def discard(self) -> None:
        """:meth:`abandon`, and remove a new file that holds no whole record. Never raises."""
        with self._sync_mutex, self.mutex:
            if self.records == 0 and self._fd >= 0 and not self._existing:
                try:
                    os.unlink(self.path)
                except OSError:  # it stays: a file without a header, which the next writer may use
                    pass
            self.abandon()

    def latch(self, error: BaseException) -> None:
        """Let ``error`` be what every later call raises, unless there is one already."""
        if self._failure is None:
            if isinstance(error, PersistenceError):
                self._failure = error
            else:
                self._failure = _failure(self.path, error)
                self._failure.__cause__ = error

    def _fail(self, error: BaseException) -> None:
        """Latch ``error`` and raise what stands for it; a Ctrl-C is latched and left for the caller to raise."""
        self.latch(error)
        if isinstance(error, Exception):
            self.check()

    def check(self) -> None:
        """Raise the failure that has latched, if there is one."""
        if self._failure is not None:
            # Without the frames of earlier raises: it may be raised for as long as the run lasts.
            raise self._failure.with_traceback(None)

    def _release(self) -> OSError | None:
        failed = None
        fd, self._fd = self._fd, -1
        if fd >= 0:
            try:
                os.close(fd)
            except OSError as error:
                failed = error
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
        return failed

    def _disown(self) -> None:
        """In a forked child: the log stays the parent's."""
        self.mutex, self._sync_mutex = threading.RLock(), threading.RLock()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        if self._lock is not None:
            self._lock.disown()
            self._lock = None
        self._failure = PersistenceError(f"the session log {self.path} belongs to the process that this one forked from")

    def __del__(self) -> None:
        self._release()


def _disown_all() -> None:
    for file in list(_open_files):
        file._disown()


os.register_at_fork(after_in_child=_disown_all)


def _create(path: Path) -> int:
    """A descriptor for appending to the new file ``path``; its lock is held."""
    flags = os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600)
        except FileExistsError:
            # O_NONBLOCK: opening a pipe must not wait for its reader.
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | flags)
        try:
            _make_empty(fd, path)
            os.fchmod(fd, 0o600)
            sync_directory(path.parent)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise PersistenceError(
            f"cannot create the session log {path}: {reason(error)}. Nothing was written"
            + ("" if error.errno == errno.EMFILE else "; pass a path to where this process may write")
        ) from error
    return fd


def _open_existing(path: Path) -> int:
    """A descriptor for reading, and appending to, the log that is at ``path``; its lock is held."""
    try:
        # O_NONBLOCK: opening a pipe must not wait for its reader.
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise PersistenceError(f"cannot open the session log {path} to go on with it: {reason(error)}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise PersistenceError(f"{path} is not a regular file")
    return fd


def _make_empty(fd: int, path: Path) -> None:
    """Make sure that the file is empty: cut off a header that never became whole, refuse anything else."""
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        if status.st_size == 0:
            return
        found = os.pread(fd, _MAX_TORN_HEADER + 1, 0)
        torn = b"\n" not in found and len(found) <= _MAX_TORN_HEADER
        if torn and found[: len(_HEADER_START)] == _HEADER_START[: len(found)]:
            os.ftruncate(fd, 0)
            return
    raise PersistenceError(f"{path} is already there; load it (load_session) or delete it (delete_session)")


def _failure(path: Path, error: BaseException) -> PersistenceError:
    why = (error.strerror or str(error)) if isinstance(error, OSError) else f"interrupted by {type(error).__name__}"
    return PersistenceError(
        f"the session log {path} could not be written: {why}. It keeps every record written before and has no trailer; "
        "nothing more is written to it"
    )
