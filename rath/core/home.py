"""Where rath keeps a working directory's data."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["DIRECTORY_NAME", "openrath_home"]

DIRECTORY_NAME = ".openrath"


def openrath_home() -> Path:
    """The data directory, which need not exist yet.

    ``OPENRATH_HOME``; else the nearest ``.openrath`` at or above the working directory; else ``~/.openrath``.
    It need not exist: who writes there creates it. Looked up at each call, so a program may change its
    directory.
    """
    named = os.environ.get("OPENRATH_HOME")
    if named:
        return Path(named).expanduser().absolute()
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the working directory was deleted
        return Path.home() / DIRECTORY_NAME
    for directory in (here, *here.parents):
        candidate = directory / DIRECTORY_NAME
        if candidate.is_dir():
            return candidate
    return Path.home() / DIRECTORY_NAME
