"""Where rath keeps a working directory's data."""

from __future__ import annotations

import os
from pathlib import Path

from rath.errors import UsageError

__all__ = ["DIRECTORY_NAME", "home_was_found", "openrath_home"]

DIRECTORY_NAME = ".openrath"


def openrath_home() -> Path:
    """The data directory, which need not exist yet.

    ``OPENRATH_HOME``; else the nearest ``.openrath`` at or above the working directory that this user owns; else
    ``~/.openrath``. It need not exist: who writes there creates it. Looked up at each call, so a program may change
    its directory.

    Raises:
        UsageError: there is none of them, because this user has no home directory.
    """
    named = os.environ.get("OPENRATH_HOME")
    if named:
        try:
            return Path(named).expanduser().absolute()
        except RuntimeError as error:
            raise UsageError(f"OPENRATH_HOME={named!r} names no directory: {error}; set it to an absolute path") from error
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the working directory was deleted
        return _of_user()
    for directory in (here, *here.parents):
        candidate = directory / DIRECTORY_NAME
        if _is_own_directory(candidate):
            return candidate
    return _of_user()


def home_was_found() -> bool:
    """Whether the data directory was met on the way up from the working directory, and nobody named it.

    Its files may then have come with a repository or an archive: they are not the user's own word.
    """
    if os.environ.get("OPENRATH_HOME"):
        return False
    found = openrath_home()
    try:
        return found != _of_user()
    except UsageError:
        return True


def _is_own_directory(path: Path) -> bool:
    # In a directory that others may write to, like /tmp, anybody can put a configuration in everybody's way.
    try:
        return path.is_dir() and path.stat().st_uid == os.geteuid() == path.lstat().st_uid
    except OSError:
        return False


def _of_user() -> Path:
    try:
        return Path.home() / DIRECTORY_NAME
    except RuntimeError as error:
        raise UsageError("this user has no home directory: set OPENRATH_HOME to a directory for rath's data") from error
