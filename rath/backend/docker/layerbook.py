"""Who uses which frozen layer: the counts behind :mod:`rath.backend.docker.layers`, and the removal of what nobody uses."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakSet

from rath.backend.docker.mounts import mounted_below, unmount_all
from rath.backend.host.own import clear
from rath.errors import SandboxError

__all__ = ["Books", "Frozen", "Layer", "owner_path", "sweep_dead", "sweep_directory"]

# Short: the old mount call has one page for the names of MAX_LAYERS layers.
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_log = logging.getLogger("rath.backend")


class Layer:
    """A directory with files, and the kernel's work directory while it is written to. Its count is the books' business."""

    __slots__ = ("path", "references")

    def __init__(self, path: str) -> None:
        self.path = path
        self.references = 1

    @property
    def files(self) -> str:
        return f"{self.path}/d"

    @property
    def work(self) -> str:
        return f"{self.path}/w"


class Frozen:
    """The files of a workspace at a moment: layers from the top down, none for an empty one. Made by a store."""

    __slots__ = ("gid", "layers", "uid")

    def __init__(self, layers: tuple[Layer, ...], uid: int, gid: int) -> None:
        self.layers = layers
        self.uid = uid
        self.gid = gid

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.layers)


class Books:
    """The layers and frozen workspaces of one owner. Safe to use from any thread.

    Args:
        path: the owner's directory, made when it is first needed.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        # Reentrant: the garbage collector may drop a reference in our own critical sections.
        self.lock = threading.RLock()
        self.closed = False
        self.frozen: set[Frozen] = set()
        self._count = 0
        # A layer for the longest tail of others that it equals. Holds one reference, until one of those is gone.
        self._merged: dict[tuple[Layer, ...], Layer] = {}
        self._thread = ThreadPoolExecutor(1, "rath-layers")
        self._lock_fd = -1
        _all.add(self)

    def new_directory(self, kind: str) -> str:
        """A new directory of our own.

        Raises:
            SandboxError: the books are closed.
            OSError: it cannot be made.
        """
        with self.lock:
            if self.closed:
                raise SandboxError("the layers of this process are gone: rath is shutting down")
            if self._lock_fd < 0:
                self._begin()
            self._count += 1
            path = f"{self.path}/{kind}{self._count}"
        os.mkdir(path, 0o700)
        return path

    def _begin(self) -> None:
        root = os.path.dirname(self.path)
        _make_private(root)
        with _locked(root):  # no sweep sees the directory without its lock
            _make_private(self.path)
            os.makedirs(f"{self.path}/e", 0o755, exist_ok=True)
            self._lock_fd = _lock(self.path)

    def lost_by_fork(self) -> None:
        """A forked child: with its copy of the descriptor, the lock would outlive the owner."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def names(self, layers: Sequence[Layer]) -> list[str]:
        """The directories of ``layers``, and an empty one at the end: an overlay needs two, or one and an upper."""
        return [*(layer.files for layer in layers), f"{self.path}/e"]

    # -- counting -----------------------------------------------------------------------------------------------------

    def new_layer(self, mode: int, uid: int, gid: int) -> Layer:
        """A layer with an empty directory, and one reference."""
        layer = Layer(self.new_directory("u"))
        os.mkdir(layer.files)
        os.chown(layer.files, uid, gid)
        os.chmod(layer.files, mode)
        return layer

    def new_frozen(self, layers: tuple[Layer, ...], uid: int, gid: int) -> Frozen:
        """Frozen files that hold ``layers``."""
        with self.lock:
            frozen = Frozen(self.held_short(layers), uid, gid)  # they may have been merged a moment ago
            self.frozen.add(frozen)
        return frozen

    def hold(self, layers: Sequence[Layer]) -> None:
        """One more reference to each."""
        with self.lock:
            for layer in layers:
                layer.references += 1

    def let_go(self, layers: Sequence[Layer]) -> None:
        """One reference less to each; the last removes it, soon."""
        with self.lock:
            for layer in layers:
                layer.references -= 1
                if layer.references == 0:
                    self._forget(layer)

    def _forget(self, layer: Layer) -> None:
        if not self.closed:
            self.later(_remove_or_tell, layer.path)
        for key in [key for key in self._merged if layer in key]:
            # Nobody can ask for these layers any more.
            self.let_go((self._merged.pop(key),))

    # -- merged layers ------------------------------------------------------------------------------------------------

    def short(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """``layers`` with a merged one for the longest tail that has one."""
        with self.lock:
            for at in range(len(layers)):
                merged = self._merged.get(layers[at:])
                if merged is not None:
                    return (*layers[:at], merged)
        return layers

    def held_short(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """:meth:`short`, and one more reference to each."""
        with self.lock:
            layers = self.short(layers)
            self.hold(layers)
        return layers

    def is_merged(self, layers: tuple[Layer, ...]) -> bool:
        """Whether there is one layer for these."""
        return layers in self._merged

    def replace(self, layers: tuple[Layer, ...], merged: Layer) -> None:
        """Let every frozen workspace have ``merged`` in place of ``layers``. Takes over the one reference to ``merged``."""
        with self.lock:
            if self.closed or layers in self._merged:
                self.let_go((merged,))
                return
            self._merged[layers] = merged
            for frozen in self.frozen:
                before = frozen.layers
                frozen.layers = self.held_short(before)
                self.let_go(before)

    # -- the thread that removes --------------------------------------------------------------------------------------

    def later(self, work: Callable[..., object], *args: object) -> None:
        """Do it in the thread that removes what is not needed."""
        try:
            self._thread.submit(work, *args)
        except RuntimeError:  # the interpreter ends: there are no threads any more
            work(*args)

    def settle(self) -> None:
        """Wait until all of that is done."""
        self._thread.submit(int).result()

    def stop(self) -> None:
        """End the thread and remove the directory, with everything that is mounted or lies there."""
        self._thread.shutdown(wait=True)
        _remove_all(self.path)
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)


_all: WeakSet[Books] = WeakSet()


def _reset_in_child() -> None:
    for books in list(_all):
        books.lost_by_fork()


os.register_at_fork(after_in_child=_reset_in_child)


# -- directories ------------------------------------------------------------------------------------------------------


def owner_path(owner_id: str, root: str) -> str:
    """The directory of an owner.

    Raises:
        ValueError: ``owner_id`` is none; it would lead elsewhere.
    """
    if not _OWNER.fullmatch(owner_id):
        raise ValueError(f"{owner_id!r} is no name for a directory of layers")
    return os.path.join(root, owner_id)


def sweep_directory(path: str) -> None:
    """Unmount and remove the directory of an owner, which is dead. Nothing there: does nothing.

    Raises:
        BlockingIOError: its owner lives.
        OSError: something cannot be removed.
    """
    if not os.path.lexists(path):
        return
    with _locked(os.path.dirname(path)):
        fd = _lock(path)
        try:
            _remove_all(path)
        finally:
            os.close(fd)


def sweep_dead(root: str) -> list[str]:
    """Unmount and remove the directories of all owners that are dead, by their locks; their names.

    After a restart of the machine this is all that is known of them.
    """
    removed: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(root)):
            try:
                sweep_directory(os.path.join(root, name))
            except BlockingIOError:
                continue
            except OSError as error:
                _log.warning("%s/%s of a dead process cannot be removed: %s", root, name, error)
                continue
            removed.append(name)
    return removed


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _lock(path: str) -> int:
    """The lock of an owner's directory: it ends with the descriptor.

    Raises:
        BlockingIOError: another process has it.
    """
    fd = os.open(f"{path}/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _remove_all(path: str) -> None:
    for point in mounted_below(path):
        unmount_all(point)
    if os.path.lexists(path):
        _remove(path)


def _make_private(path: str) -> None:
    """A directory that only root can enter.

    Raises:
        OSError: it cannot be made, or somebody else could enter it.
    """
    os.makedirs(path, 0o700, exist_ok=True)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(errno.EPERM, f"others may enter it: remove it, or chmod 0700 {path}")


def _remove(path: str) -> None:
    """Remove a directory of ours, whatever a sandbox has put into it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        clear(fd)
    finally:
        os.close(fd)
    os.rmdir(path)


def _remove_or_tell(path: str) -> None:
    try:
        _remove(path)
    except OSError as error:
        _log.warning("%s cannot be removed, and is left until the next sweep: %s", path, error)
