"""The labels on everything that rath makes in the engine, and telling by them whether its owner still lives."""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from rath.backend.owner import Owner, alive, boot_id, machine_id

__all__ = ["OWNER", "SANDBOX", "UID", "VOLUME", "judge", "labels"]

OWNER = "rath.owner"
SANDBOX = "rath.sandbox"
UID = "rath.uid"
VOLUME = "rath.volume"
_BOOT, _MACHINE, _CREATED, _VERSION = "rath.boot", "rath.machine", "rath.created", "rath.version"


def labels(owner: Owner, sandbox: str, uid: int | None = None) -> dict[str, str]:
    """What to put on a container, network or volume of ``sandbox``, the sandbox's own id."""
    found = {
        OWNER: owner.id, SANDBOX: sandbox, _BOOT: boot_id(), _MACHINE: machine_id(),
        _CREATED: str(int(time.time())), _VERSION: _version(),
    }  # fmt: skip
    if uid is not None:
        found[UID] = str(uid)
    return found


@functools.cache
def _version() -> str:
    return version("rath")  # reads files, for a millisecond


def judge(found: Mapping[str, str]) -> tuple[bool | None, str]:
    """Whether the owner of what carries these labels lives, and how that is known. ``None``: nobody here can tell.

    Only an owner whose lock is here and free is dead, or one of this very machine before its last start.
    """
    owner = found.get(OWNER, "")
    living = alive(owner)
    if living is not None:
        return living, f"its owner {owner} {'lives' if living else 'is dead: its lock is free'}"
    same_machine = bool(machine_id()) and found.get(_MACHINE) == machine_id()
    other_boot = found.get(_BOOT, "") not in ("", boot_id())
    # A clone may call itself by the same name, hence the clock as well.
    if same_machine and other_boot and _seconds(found.get(_CREATED, "")) < _booted_at():
        return False, "this machine was started anew since"
    return None, f"its owner {owner or '(unnamed)'} is not of this machine, user and state directory: it cannot be asked"


def _seconds(text: str) -> float:
    """A label is whatever somebody wrote there: what is no number is no time that has been."""
    return float(text) if re.fullmatch("[0-9]{1,12}", text) else math.inf


def _booted_at() -> float:
    """When this machine started, in seconds since 1970; 0 if it does not say."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("btime ")))
    except (OSError, StopIteration, ValueError):
        return 0.0
