"""Whether a new log may refer to the rows that its session has in another log, in place of storing them again.

It may if they stand in the same directory, under the name by which readers look for them, and are there now; and, where
the new log promises to survive a power cut, if they will too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rath.errors import PersistenceError
from rath.session.logplace import LogPlace
from rath.session.persistence.edges import parse_header, read_first_line
from rath.session.persistence.format import SEAL_LENGTH, BadLine
from rath.session.persistence.lock import directory_shared
from rath.session.persistence.logfile import Durability
from rath.session.persistence.paths import log_name
from rath.session.persistence.records import PersistedSessionHeader, Prefix

__all__ = ["make_durable", "shared_prefix"]

_EDGE = 4096
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@contextmanager
def shared_prefix(place: LogPlace | None, log: Path, durability: Durability) -> Iterator[Prefix | None]:
    """What the header of the new log ``log`` may refer to; ``None``: nothing, all rows are to be stored.

    Until the block ends, nobody removes a log of the directory: write the header in it.

    Args:
        place: where the first rows of its session are said to stand.
        durability: of the new log. Unless it is ``process``, what it refers to is made durable first.
    """
    if place is None or place.path == log or place.path != log.with_name(log_name(place.session_id)):
        yield None
        return
    with directory_shared(log.parent) as held:
        usable = held and _is_there(place, durability)
        yield Prefix(place.session_id, place.rows, place.digest) if usable else None


def _is_there(place: LogPlace, durability: Durability) -> bool:
    try:
        fd = os.open(place.path, _FLAGS)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or place.end <= SEAL_LENGTH:
            return False
        # The hash stands for everything before it: a log that was cut, or is another one by now, has another there.
        if os.pread(fd, SEAL_LENGTH + 1, place.end - SEAL_LENGTH - 1) != b',"h":"%b"}\n' % place.h:
            return False
        if durability != "process" and not place.durable:
            os.fdatasync(fd)
            _sync_below(place.path, _header(fd))
        return True
    except (OSError, BadLine):
        return False
    finally:
        with suppress(OSError):
            os.close(fd)


def make_durable(path: Path, header: PersistedSessionHeader) -> None:
    """Make durable the rows that a log has in others. A run that goes on with it may promise more than the one before.

    Raises:
        PersistenceError: they cannot be had.
    """
    try:
        _sync_below(path, header)
    except (OSError, BadLine) as error:
        why = error.strerror or error if isinstance(error, OSError) else error
        raise PersistenceError(f"a log that {path} has its first rows in cannot be synced: {why}") from error


def _sync_below(path: Path, header: PersistedSessionHeader) -> None:
    """Make durable what a log has in others, up to one whose writer has done it. Raises ``OSError``, ``BadLine``."""
    seen = {header.id}
    while header.durability not in ("turn", "record") and (prefix := header.prefix) is not None:
        if prefix.session_id in seen:
            raise BadLine("prefix: a circle")
        seen.add(prefix.session_id)
        fd = os.open(path.with_name(log_name(prefix.session_id)), _FLAGS)
        try:
            os.fdatasync(fd)
            header = _header(fd)
        finally:
            os.close(fd)


def _header(fd: int) -> PersistedSessionHeader:
    line = read_first_line(fd, os.pread(fd, _EDGE, 0))
    if line is None:
        raise BadLine("no whole header")
    return parse_header(line)
