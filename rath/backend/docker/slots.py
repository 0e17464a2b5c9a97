"""Overlay workspaces for containers: whether this engine can have them, and the place of one container's workspace.

The engine has to see the same files at the same paths as this process, and the same users. Three things tell: what it says
about itself, whether it accepts the mount, and what the guest sees at its workspace. Where one says no, workspaces are the
engine's own volumes from then on, and copies are made through the guest: slower, and otherwise the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rath.backend.closing import ending
from rath.backend.docker import where
from rath.backend.docker.container import WORKSPACE, Identity
from rath.backend.docker.engine import DockerEngine, Image
from rath.backend.docker.layers import ROOT, Busy, Frozen, LayerStore, Slot
from rath.backend.guest.backend import Start
from rath.backend.spec import BackendSandboxSpec
from rath.core import ports
from rath.errors import SandboxError, SandboxUnavailable

__all__ = ["Elsewhere", "FrozenWorkspace", "SlotPlace", "Slots", "slots"]

# gVisor has a file system of its own: mounts of the host's do not reach it.
_RUNTIMES = (None, "runc", "crun")
_CANNOT = f"a workspace cannot be made or mounted in {ROOT}:"
_REMEDY = "Close sandboxes and snapshots that are not needed, or make room on that disk"
_log = logging.getLogger("rath.backend")
T = TypeVar("T")


async def _finished(function: Callable[..., T], *args: object, undo: Callable[[T], None]) -> T:
    """``function(*args)`` in a thread, awaited to its end even by a caller that is cancelled: then with ``undo`` of it.

    A freeze that nobody waits for would be under way when the next call runs, and what it made would be nobody's.
    """
    working = asyncio.ensure_future(ports.engine().call(function, *args))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        working.add_done_callback(lambda done: None if done.cancelled() or done.exception() else undo(done.result()))
        await asyncio.wait([working])
        raise


class Elsewhere(SandboxError):
    """The container does not see what is mounted here: its engine's files are others."""


class FrozenWorkspace:
    """Frozen layers as the files of a snapshot."""

    __slots__ = ("_store", "frozen", "image")

    def __init__(self, store: LayerStore, frozen: Frozen, image: Image) -> None:
        self._store = store
        self.frozen = frozen
        # Whatever its name means by then: a copy is of the same image. Asking the engine would cost more than all the rest.
        self.image = image

    @property
    def identity(self) -> Identity:
        """Whom they belong to, and so whom the commands of every copy have to run as."""
        return Identity(self.frozen.uid, self.frozen.gid)

    async def free(self) -> None:
        """Nobody will start from them any more."""
        self._store.drop(self.frozen)


class SlotPlace:
    """A workspace that is mounted on the host, into a container that may run already. A ``Place``.

    ``fill`` and ``freeze`` are for the engine's loop, one at a time.
    """

    __slots__ = ("_slot", "_store")

    owner = None  # what is mounted belongs to the right user

    def __init__(self, store: LayerStore, slot: Slot) -> None:
        self._store = store
        self._slot = slot

    @property
    def path(self) -> str:
        """Where it is mounted on the host."""
        return self._slot.path

    @property
    def host_config(self) -> dict[str, Any]:
        """A bind that later mounts get through."""
        bind = {
            "Type": "bind", "Source": self._slot.path, "Target": WORKSPACE, "ReadOnly": False,
            "BindOptions": {"Propagation": "rslave"},
        }  # fmt: skip
        return {"Mounts": [bind]}

    async def fill(self, start: Start, who: Identity) -> bool:
        """Mount what the workspace starts as. An archive has to be sent in, to an empty workspace.

        Raises:
            SandboxError: the directory to copy cannot be read, or does not fit.
            SandboxUnavailable: it cannot be mounted.
        """
        stopped = threading.Event()
        try:
            return await ports.engine().call(self._fill, start, who, stopped.is_set)
        except OSError as error:
            raise SandboxUnavailable(f"{_CANNOT} {error.strerror or error}. {_REMEDY}") from error
        finally:
            stopped.set()  # a thread goes on when the call that waits for it is cancelled

    def _fill(self, start: Start, who: Identity, stop: Callable[[], bool]) -> bool:
        if isinstance(start.kept, FrozenWorkspace):
            self._store.mount(self._slot, start.kept.frozen, who.uid, who.gid)
            return True
        if start.kind == "copy" and start.path is not None:
            self._copy_in(start.path, who, stop)
            return True
        self._store.mount(self._slot, None, who.uid, who.gid)
        return start.kind == "empty"

    def _copy_in(self, path: str, who: Identity, stop: Callable[[], bool]) -> None:
        frozen = self._store.adopt(path, who.uid, who.gid, stop)
        try:
            self._store.mount(self._slot, frozen, who.uid, who.gid)
        finally:
            self._store.drop(frozen)

    async def freeze(self, image: Image) -> FrozenWorkspace | None:
        """The files as they are now, for containers of ``image``; ``None``: one is open for writing, so copy them."""
        try:
            frozen = await _finished(self._store.freeze, self._slot, undo=self._store.drop)
        except Busy:
            return None
        except (OSError, SandboxError) as error:  # a full disk, a mount too many, layers that cannot be merged
            _log.warning("a workspace could not be frozen in place, and is copied: %s", error)
            return None
        return FrozenWorkspace(self._store, frozen, image)

    async def free(self) -> None:
        """The container has ended: unmount and forget."""
        if ending():
            self._store.release(self._slot)
        else:
            await ports.engine().call(self._store.release, self._slot)


class Slots:
    """The overlay workspaces of one owner, as far as they are possible.

    Args:
        root: where the directories of all owners are, if not in the usual place.
    """

    def __init__(self, owner_id: str, root: str = ROOT) -> None:
        self.owner_id = owner_id
        self._store = LayerStore(owner_id, root)
        self._obstacle: str | None = None
        self._proven = False

    async def place(self, engine: DockerEngine, spec: BackendSandboxSpec) -> SlotPlace | None:
        """The place for the workspace of a new container; ``None`` where it cannot be an overlay."""
        if spec.workspace_mode == "bind" or spec.disk is not None or spec.runtime not in _RUNTIMES:
            return None
        if self._obstacle is None:
            self._obstacle = await self._look_for_obstacle(engine)
        if self._obstacle:
            return None
        try:
            return SlotPlace(self._store, await _finished(self._store.slot, undo=self._store.release))
        except OSError as error:
            raise SandboxUnavailable(f"{_CANNOT} {error.strerror or error}. {_REMEDY}") from error

    async def _look_for_obstacle(self, engine: DockerEngine) -> str:
        if os.geteuid() != 0:
            return "only root may mount"
        if not where.is_local():
            return "the engine is on another machine"
        for option in (await engine.info()).get("SecurityOptions") or ():
            if option.startswith(("name=rootless", "name=userns", "name=selinux")):
                return f"the engine runs with {option}"
        return await ports.engine().call(self._store.obstacle)

    @property
    def proven(self) -> bool:
        """Whether a container has seen what was mounted here."""
        return self._proven

    def give_up(self, reason: object) -> None:
        """Have no more overlays in this process."""
        if not self._obstacle:
            self._obstacle = str(reason)
            _log.info("workspaces are the engine's volumes from now on, and copied through the guest: %s", reason)

    def check_seen(self, place: SlotPlace, said: Mapping[str, str]) -> None:
        """Compare what the guest says about its workspace with what is mounted here.

        Raises:
            Elsewhere: they are not the same.
        """
        here = os.stat(place.path)
        if (said.get("workspace_dev"), said.get("workspace_ino")) != (str(here.st_dev), str(here.st_ino)):
            raise Elsewhere(f"the engine's container does not see what is mounted on {place.path}")
        self._proven = True

    def close(self) -> None:
        """Unmount and remove everything. Blocks."""
        self._store.close()


_lock = threading.Lock()
_slots: Slots | None = None


def slots(owner_id: str) -> Slots:
    """This process's overlay workspaces; a forked child has another owner and so others."""
    global _slots
    with _lock:
        if _slots is None or _slots.owner_id != owner_id:
            _slots = Slots(owner_id)
            _last_to_close(_slots)
        return _slots


def _last_to_close(made: Slots) -> None:
    async def close() -> None:
        made.close()

    # When the engine ends, after the sandboxes, whose closing was asked for before.
    ports.engine().at_close(close)


def _reset_in_child() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_reset_in_child)
