"""Opening a log for reading."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rath.errors import PersistenceError

__all__ = ["open_log"]


@contextmanager
def open_log(path: Path) -> Iterator[BinaryIO]:
    """The file, for reading; ``PersistenceError`` for any error of the file system, inside the block too."""
    try:
        # O_NONBLOCK: opening a pipe must not wait for its writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise PersistenceError(f"cannot read the session log {path!s:.1000}: {error}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise PersistenceError(f"{path} is not a regular file")
        with open(fd, "rb", closefd=False) as file:
            yield file
        fd, done = -1, fd
        os.close(done)  # network file systems report here what went wrong earlier
    except OSError as error:
        raise PersistenceError(f"cannot read the session log {path}: {error.strerror or error}") from error
    finally:
        if fd >= 0:
            with suppress(OSError):  # there is an error already
                os.close(fd)
