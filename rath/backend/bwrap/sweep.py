"""Removing what killed owners of bubblewrap sandboxes left: directories, control groups, and notes about them.

Their processes are gone already: a sandbox ends with its owner.
"""

from __future__ import annotations

import os
import threading

from rath.backend.bwrap import limits
from rath.backend.host.own import Leftover, sweep_leftovers
from rath.backend.owner import forget_idle_owners
from rath.errors import SandboxUnavailable

__all__ = ["sweep", "sweep_once"]

_swept_by = 0


def sweep_once() -> None:
    """:func:`sweep` in a thread of its own, the first time in this process. On the engine's loop."""
    global _swept_by
    if _swept_by != os.getpid():
        _swept_by = os.getpid()
        threading.Thread(target=_sweep_quietly, name="rath-bwrap-sweep", daemon=True).start()


def sweep(*, dry_run: bool = False) -> list[Leftover]:
    """Remove what killed processes left, and say what became of it; with ``dry_run``, only say what would go. Blocks.

    Raises:
        SandboxUnavailable: there is no place where owners are noted.
    """
    found = sweep_leftovers(dry_run=dry_run)
    if not dry_run:
        limits.sweep_groups()
        forget_idle_owners()
    return found


def _sweep_quietly() -> None:
    try:
        sweep()
    except SandboxUnavailable:
        return  # then nothing is noted there, either
