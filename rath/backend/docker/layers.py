"""Workspaces as overlay mounts on the host: a copy of one takes milliseconds, whatever its size.

A *slot* is a mount point that a container has as its workspace. On it stands an overlay: one writable directory, the
*upper*, over frozen *layers*. To freeze is to make the overlay read-only, call its upper a layer, and put a new overlay with
a fresh upper in its place: the mount reaches the running container, and the layers below it serve as many other slots as
one likes. A live upper must never be a layer (the kernel does not isolate the two), hence the order.

=====================  ==============================================================================================
a layer                is never written to again, and counted: the last reference removes it, in a thread
more than 16 of them   are merged into two in the background (a look-up of 1,000 files takes 11 ms in one layer, 31 in 10,
                       194 in 100); above ``MAX_LAYERS`` the freeze waits for that. What cannot be merged (a full disk, paths
                       longer than ``cp`` can take) stays as it is, and cannot be frozen any more above ``MAX_LAYERS``
a file open for        makes the freeze fail after 2 s with :class:`Busy`: nobody's processes are killed for a fork
writing
a process that has     keeps the frozen files it had open, and cannot write to them (``EROFS``); what it looks up by a path
files open             from the root is the new overlay's
=====================  ==============================================================================================

For root on Linux 5.10 or later only (``volatile`` mounts). Everything blocks, for about a millisecond unless it says so.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from rath.backend.docker.layerbook import Books, Frozen, Layer, owner_path, sweep_dead, sweep_directory
from rath.backend.docker.mounts import MAX_LAYERS, bind_shared, mount_overlay, set_read_only, unmount_all
from rath.backend.host.paths import Confined
from rath.backend.host.tree import check_space, copy_tree, walk
from rath.errors import SandboxError

__all__ = ["ROOT", "Busy", "Frozen", "LayerStore", "Slot", "sweep", "sweep_all"]

ROOT = "/var/lib/rath/layers"
FLATTEN_DEPTH = 16
PATIENCE_S = 2.0
_log = logging.getLogger("rath.backend")


class Busy(SandboxError):
    """A file of the workspace is open for writing: it cannot be frozen in place now."""


class Slot:
    """A mount point for a container. Made by a store; ``path`` is what the container binds, with propagation ``rslave``."""

    __slots__ = ("lock", "lowers", "path", "released", "upper")

    def __init__(self, path: str) -> None:
        self.path = path
        self.lock = threading.Lock()  # held while its mounts change
        self.released = False
        self.lowers: tuple[Layer, ...] = ()
        self.upper: Layer | None = None


class LayerStore:
    """The slots and layers of one owner, in a directory that only root can enter. Safe to use from any thread.

    Args:
        owner_id: names the directory; what is there when its owner is dead, :func:`sweep` removes.
        root: where the directories of all owners are.
        new_calls: use the new mount calls; by default where they work.
    """

    def __init__(self, owner_id: str, root: str = ROOT, *, new_calls: bool | None = None) -> None:
        self._books = Books(owner_path(owner_id, root))
        self._new_calls = new_calls
        self._slots: set[Slot] = set()
        self._merging: dict[tuple[Layer, ...], Future[None]] = {}
        self._copies: set[subprocess.Popen[bytes]] = set()
        self._obstacle: str | None = None
        self._pid = os.getpid()

    @property
    def path(self) -> str:
        """The directory of this owner."""
        return self._books.path

    @property
    def is_empty(self) -> bool:
        """Whether there is no slot, and nobody holds frozen files."""
        return not self._slots and not self._books.frozen

    # -- can it work at all -------------------------------------------------------------------------------------------

    def usable(self) -> bool:
        """Whether workspaces can be overlays here."""
        return not self.obstacle()

    def obstacle(self) -> str:
        """Why workspaces cannot be overlays here, or nothing. Tried once, by mounting one."""
        with self._books.lock:
            if self._obstacle is None:
                self._obstacle = self._try()
            return self._obstacle

    def _try(self) -> str:
        if os.uname().sysname != "Linux":
            return "overlay mounts need Linux"
        if os.geteuid() != 0:
            return "only root may mount"
        try:
            slot = self.slot()
            try:
                self.mount(slot, None, 0, 0)
                with open(f"{slot.path}/try", "xb"):
                    pass
                self.drop(self.freeze(slot))
            finally:
                self.release(slot)
        except (OSError, SandboxError) as error:
            return f"an overlay cannot be mounted in {self.path}: {error}"
        return ""

    # -- slots --------------------------------------------------------------------------------------------------------

    def slot(self) -> Slot:
        """A new, empty mount point.

        Raises:
            OSError: this process may not mount, or not write there.
        """
        slot = Slot(self._books.new_directory("s"))
        try:
            bind_shared(slot.path)
        except BaseException:
            os.rmdir(slot.path)
            raise
        with self._books.lock:
            self._slots.add(slot)
        return slot

    def mount(self, slot: Slot, frozen: Frozen | None, uid: int, gid: int) -> None:
        """Let ``slot``, which has nothing yet, show ``frozen``, writable; ``None``: nothing, owned by ``uid`` and ``gid``.

        Raises:
            SandboxError: ``frozen`` was given back.
            OSError: it cannot be mounted; the slot is as it was.
        """
        if slot.upper is not None:
            raise ValueError(f"{slot.path} has a workspace")
        layers: tuple[Layer, ...] = ()
        mode = 0o755
        if frozen is not None:
            with self._books.lock:
                self._check_known(frozen)
                layers = self._books.held_short(frozen.layers)
            uid, gid = frozen.uid, frozen.gid
        try:
            if layers:
                mode = stat.S_IMODE(os.stat(layers[0].files).st_mode)
            with slot.lock:
                _check_there(slot)
                self._overlay(slot, layers, mode, uid, gid)
        except BaseException:
            self._books.let_go(layers)
            raise

    def _overlay(
        self, slot: Slot, layers: tuple[Layer, ...], mode: int, uid: int, gid: int, *, replace: bool = False
    ) -> None:
        """Put an overlay with a fresh upper on ``layers``, which are held already, on the slot."""
        upper = self._books.new_layer(mode, uid, gid)
        try:
            os.mkdir(upper.work, 0o700)
            names = self._books.names(layers)
            mount_overlay(slot.path, names, upper.files, upper.work, replace=replace, new_calls=self._new_calls)
        except BaseException:
            self._books.let_go((upper,))
            raise
        slot.lowers, slot.upper = layers, upper

    def release(self, slot: Slot) -> None:
        """Unmount a slot and remove it. Its container should have ended: its workspace goes. Again: nothing."""
        with self._books.lock:
            if slot not in self._slots or self._pid != os.getpid():
                return
            self._slots.discard(slot)
        slot.released = True  # a freeze that waits for a writer ends
        with slot.lock:
            unmount_all(slot.path)
            os.rmdir(slot.path)
            upper, slot.upper = slot.upper, None
        if upper is not None:
            self._books.let_go((upper, *slot.lowers))

    # -- frozen workspaces --------------------------------------------------------------------------------------------

    def freeze(self, slot: Slot, patience_s: float = PATIENCE_S) -> Frozen:
        """The files of ``slot`` as they are now, for good; the slot goes on with a fresh upper. One at a time for a slot.

        Waits for files that are open for writing, ``patience_s`` at most. Where there are too many layers, waits until they
        are merged: as long as a copy takes.

        Raises:
            Busy: a file was open for writing all the time; nothing has changed.
            SandboxError: the slot was released, or there are too many layers and they cannot be merged.
            OSError: it cannot be mounted; nothing has changed.
        """
        with slot.lock:
            return self._freeze(slot, patience_s)

    def _freeze(self, slot: Slot, patience_s: float) -> Frozen:
        _check_there(slot)
        upper = slot.upper
        if upper is None:
            raise ValueError(f"{slot.path} has no workspace")
        top = os.stat(upper.files)
        if _is_unused(upper, slot.lowers, top):
            return self._books.new_frozen(slot.lowers, top.st_uid, top.st_gid)
        _make_read_only(slot, patience_s)
        before = (upper, *slot.lowers)
        try:
            layers = self._freeze_layers(before)
            try:
                top = os.stat(upper.files)  # until the workspace was read-only, its mode could change
                self._overlay(slot, layers, stat.S_IMODE(top.st_mode), top.st_uid, top.st_gid, replace=True)
            except BaseException:
                self._books.let_go(layers)
                raise
        except BaseException:
            set_read_only(slot.path, False)
            raise
        frozen = self._books.new_frozen(layers, top.st_uid, top.st_gid)
        self._books.let_go(before)
        if len(layers) > FLATTEN_DEPTH and len(layers) % FLATTEN_DEPTH == 1:
            # At 17; where that is slow or fails, at 33. Without the top: what was forked here has that much in common.
            self._merge_soon(layers[1:])
        return frozen

    def _freeze_layers(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        if len(self._books.short(layers)) >= MAX_LAYERS:
            for below, merging in list(self._merging.items()):
                if layers[-len(below) :] == below:
                    merging.result()
            if len(self._books.short(layers)) >= MAX_LAYERS:
                self._merge(self._books.short(layers))
        return self._books.held_short(layers)

    def share(self, frozen: Frozen) -> Frozen:
        """One more reference to the same files, to be dropped by itself.

        Raises:
            SandboxError: ``frozen`` was given back.
        """
        with self._books.lock:
            self._check_known(frozen)
            return self._books.new_frozen(frozen.layers, frozen.uid, frozen.gid)

    def drop(self, frozen: Frozen) -> None:
        """Let go of frozen files. The last reference removes them, soon. Again: nothing."""
        with self._books.lock:
            if frozen in self._books.frozen and self._pid == os.getpid():
                self._books.frozen.discard(frozen)
                self._books.let_go(frozen.layers)

    def adopt(self, directory: str, uid: int, gid: int, stop: Callable[[], bool] = lambda: False) -> Frozen:
        """A copy of a directory of the host as a frozen layer, owned by ``uid`` and ``gid``. Takes as long as the copy does.

        Modes, times, links and holes are kept; setuid and setgid bits, sockets, pipes and devices are not.

        Raises:
            SandboxError: it cannot be read, does not fit on the disk, or ``stop`` said so.
        """
        try:
            source = Confined(directory)
        except OSError as error:
            raise SandboxError(f"workspace {directory!r} cannot be used: {error.strerror}") from error
        try:
            layer = self._books.new_layer(0o755, uid, gid)
            try:
                check_space(source, layer.files, stop, f"mount a larger disk at {os.path.dirname(self.path)}")
                copy_tree(source, layer.files, stop=stop)
                _give(layer.files, uid, gid)
                return self._books.new_frozen((layer,), uid, gid)
            finally:
                self._books.let_go((layer,))
        finally:
            source.close()

    def view(self, frozen: Frozen) -> Slot:
        """A slot that shows ``frozen`` to this process, read-only. Give it back with :meth:`release`."""
        return self._view(frozen.layers)

    def _view(self, layers: tuple[Layer, ...]) -> Slot:
        slot = self.slot()
        try:
            if layers:  # else the slot is as empty as it has to be
                mount_overlay(slot.path, self._books.names(layers), None, None, new_calls=self._new_calls)
        except BaseException:
            self.release(slot)
            raise
        return slot

    def _check_known(self, frozen: Frozen) -> None:
        if frozen not in self._books.frozen:
            raise SandboxError("these frozen files were given back before, or are another process's")

    # -- merging ------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until what was to be merged is merged, and what was to be removed is gone."""
        for merging in list(self._merging.values()):
            merging.result()
        self._books.settle()

    def _merge_soon(self, layers: tuple[Layer, ...]) -> None:
        with self._books.lock:
            if self._books.closed or layers in self._merging or self._books.is_merged(layers):
                return
            self._books.hold(layers)
            done = self._merging[layers] = Future()
        # A thread of its own: removals need not wait for a copy that may take a minute.
        threading.Thread(target=self._merge_and_tell, args=(layers, done), name="rath-layers-merge", daemon=True).start()

    def _merge_and_tell(self, layers: tuple[Layer, ...], done: Future[None]) -> None:
        try:
            self._merge(layers)
        except (OSError, SandboxError) as error:
            if not self._books.closed:
                _log.warning("%d layers of a workspace could not be merged; they work as they are: %s", len(layers), error)
        finally:
            with self._books.lock:
                self._merging.pop(layers, None)
                self._books.let_go(layers)
            done.set_result(None)

    def _merge(self, layers: tuple[Layer, ...]) -> None:
        """Make one layer that equals ``layers``, for every frozen workspace to use instead. Takes as long as a copy."""
        top = os.stat(layers[0].files)
        merged = self._books.new_layer(stat.S_IMODE(top.st_mode), top.st_uid, top.st_gid)
        try:
            slot = self._view(layers)
            try:
                # cp keeps what copy_tree does not: hard links, extended attributes, owners. Nobody writes to either side.
                command = ["cp", "-a", "--reflink=auto", "--sparse=auto", "--", f"{slot.path}/.", f"{merged.files}/"]
                self._copy(command)
            finally:
                self.release(slot)
        except BaseException:
            self._books.let_go((merged,))
            raise
        self._books.replace(layers, merged)

    def _copy(self, command: list[str]) -> None:
        nothing = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=subprocess.PIPE) as process:
            with self._books.lock:
                self._copies.add(process)
                if self._books.closed:
                    process.kill()
            said = process.communicate()[1].decode(errors="replace").strip()
            self._copies.discard(process)
        if process.returncode:
            raise SandboxError(said[-500:] or f"cp ended with {process.returncode}")

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Unmount and remove everything. Containers should have ended. Again, or in a forked child: nothing."""
        with self._books.lock:
            if self._books.closed or self._pid != os.getpid():
                return
            self._books.closed = True
            merging = list(self._merging.values())
            slots = list(self._slots)
            for copy in self._copies:
                copy.kill()
        for slot in slots:
            self.release(slot)
        for one in merging:
            one.result()
        self._books.stop()


def sweep(owner_id: str, root: str = ROOT) -> None:
    """Unmount and remove everything of an owner, which must be dead. Nothing there: does nothing.

    Raises:
        BlockingIOError: the owner lives; nothing was touched.
        OSError: something cannot be removed.
    """
    sweep_directory(owner_path(owner_id, root))


def sweep_all(root: str = ROOT) -> list[str]:
    """:func:`sweep` for every owner whose lock is free; their names. For who may not look there: nothing."""
    return sweep_dead(root) if os.geteuid() == 0 else []


def _check_there(slot: Slot) -> None:
    if slot.released:
        raise SandboxError(f"the workspace {slot.path} is gone: its sandbox was closed")


def _make_read_only(slot: Slot, patience_s: float) -> None:
    until = time.monotonic() + patience_s
    pause_s = 0.001
    while True:
        try:
            set_read_only(slot.path, True)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            _check_there(slot)
            if time.monotonic() >= until:
                raise Busy(f"a file of the workspace was open for writing for {patience_s:g} s") from error
        time.sleep(pause_s)
        pause_s = min(0.05, pause_s * 2)


def _is_unused(upper: Layer, lowers: tuple[Layer, ...], top: os.stat_result) -> bool:
    """Whether a workspace is just as it was mounted: then its frozen files are what it was mounted on."""
    if not lowers:
        return False
    with os.scandir(upper.files) as entries:
        if next(entries, None) is not None:
            return False
    below = os.stat(lowers[0].files)
    return (top.st_mode, top.st_uid, top.st_gid) == (below.st_mode, below.st_uid, below.st_gid)


def _give(directory: str, uid: int, gid: int) -> None:
    """Let ``uid`` and ``gid`` own everything in a directory that nobody else can enter; without setuid and setgid."""
    root = Confined(directory)
    try:
        for path, status in walk(root):
            there = os.path.join(directory, path)
            os.chown(there, uid, gid, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                os.chmod(there, stat.S_IMODE(status.st_mode) & 0o1777)
    finally:
        root.close()
    os.chown(directory, uid, gid)
    os.chmod(directory, 0o755)
