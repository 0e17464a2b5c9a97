"""Removing what owners left that died: containers, networks, volumes, and the mounts and directories of their workspaces.

The second net. The first is that a container ends with the connection of its owner, and takes its volume along; this is
for what a crash of the engine or the machine left, and for what a container's end does not remove.

What carries no label of rath's is never looked at. What carries one is removed only if its owner is known to be dead; where
nobody can tell (an owner of another machine or user), it is kept and reported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rath.backend.docker import layers
from rath.backend.docker.engine import GOING, DockerEngine, NotThere
from rath.backend.docker.labels import OWNER, SANDBOX, judge
from rath.backend.owner import alive, forget_owner, owners
from rath.core import ports
from rath.errors import SandboxError

__all__ = ["Found", "Report", "everything", "sweep", "sweep_blocking"]

_log = logging.getLogger("rath.backend")


@dataclass(frozen=True, slots=True)
class Found:
    """Something of rath's in the engine. ``kind``: ``container``, ``network``, ``volume``; ``why`` it is removed or kept."""

    kind: str
    id: str
    labels: Mapping[str, str] = field(repr=False)
    why: str = ""

    @property
    def owner(self) -> str:
        return self.labels.get(OWNER, "")

    @property
    def sandbox(self) -> str:
        return self.labels.get(SANDBOX, "")


@dataclass(slots=True)
class Report:
    """What a sweep did, or would do: ``removed``, ``kept`` because its owner lives or cannot be asked, ``failed`` to go."""

    removed: list[Found] = field(default_factory=list)
    kept: list[Found] = field(default_factory=list)
    failed: list[Found] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)


# In this order: a network goes when nothing is on it, a volume when nothing uses it.
_KINDS: tuple[tuple[str, Callable[[Any, dict[str, str]], Any], str], ...] = (
    ("container", lambda client, where: client.containers(all=True, filters=where), "Id"),
    ("network", lambda client, where: client.networks(filters=where), "Id"),
    ("volume", lambda client, where: client.volumes(filters=where)["Volumes"] or (), "Name"),
)
_REMOVE: dict[str, Callable[[Any, str], Any]] = {
    "container": lambda client, name: client.remove_container(name, force=True, v=True),
    "network": lambda client, name: client.remove_network(name),
    "volume": lambda client, name: client.remove_volume(name, force=True),
}


def everything(engine: DockerEngine, owner: str | None = None) -> list[Found]:
    """What rath has in the engine, or one owner has; in the order in which it can be removed. Blocks, about 3 ms."""
    label = OWNER if owner is None else f"{OWNER}={owner}"
    found = []
    for kind, listing, key in _KINDS:
        rows = engine.ask_blocking(f"list its {kind}s", lambda client, listing=listing: listing(client, {"label": label}))  # type: ignore[misc]
        found += [Found(kind, row[key], row.get("Labels") or {}) for row in rows]
    return found


async def sweep(engine: DockerEngine, *, dry_run: bool = False) -> Report:
    """Remove what dead owners left; with ``dry_run``, only say what would go.

    Raises:
        SandboxUnavailable: no engine answers.
    """
    return await ports.engine().call(sweep_blocking, engine, dry_run)


def sweep_blocking(engine: DockerEngine, dry_run: bool = False, only: str | None = None) -> Report:
    """:func:`sweep`, for callers on ordinary threads. ``only``: one owner's things."""
    report = Report()
    for found in everything(engine, only):
        living, why = judge(found.labels)
        judged = Found(found.kind, found.id, found.labels, why)
        if living is not False:
            report.kept.append(judged)
        elif dry_run or _removed(engine, judged):
            report.removed.append(judged)
        else:
            report.failed.append(judged)
    stuck = {found.owner for found in report.failed}
    for name in owners() if only is None else (only,):
        if alive(name) is False and name not in stuck:
            report.owners.append(name)
            if not dry_run:
                _forget(name)
    if only is None and not dry_run:
        layers.sweep_all()  # after a restart of the machine, what is left of an owner is its directory of layers
    return report


def _removed(engine: DockerEngine, found: Found) -> bool:
    try:
        engine.ask_blocking(f"remove a {found.kind}", lambda client: _REMOVE[found.kind](client, found.id))
    except NotThere:
        return True  # it went by itself
    except SandboxError as error:
        if GOING in str(error):
            return True
        _log.warning("%s %s of a dead owner is still there: %s", found.kind, found.id[:12], error)
        return False
    return True


def _forget(owner: str) -> None:
    """Last, because without its lock nobody can judge its other things any more."""
    try:
        layers.sweep(owner)
    except OSError as error:
        _log.warning("the workspaces of the dead owner %s are still there: %s", owner, error)
        return
    forget_owner(owner)
