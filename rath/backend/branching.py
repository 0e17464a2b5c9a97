"""How a placement gets files of its own: from a parent (:class:`Branch`), or from a snapshot (:class:`Restored`).

What ``fork(sandbox="copy")`` gives:

==============================  =====================================================================================
the parent's sandbox, at the    the copy
freeze
==============================  =====================================================================================
is open                         gets a snapshot, taken before any later call on the parent
was never opened                is opened with the same spec, at its own first use. Where that would share files with the
                                parent (``local`` with a ``working_dir``), or the parent is itself a copy, it gets a snapshot
                                of the parent as opened: before the parent's first call, or at its own first use
==============================  =====================================================================================

So a copy that never touches files costs nothing but, at most, a snapshot. While it waits for its files it holds a lease on
the parent. Only files are copied: processes stay with the parent.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import weakref
from typing import TYPE_CHECKING, Any

from rath.backend import registry
from rath.backend.closing import track
from rath.backend.gate import Reservation
from rath.backend.stream import arrival
from rath.backend.types import Backend, BackendSandbox, BackendSandboxSpec
from rath.core import ports
from rath.core.cell import Cell
from rath.errors import SandboxClosed, UsageError

if TYPE_CHECKING:
    from rath.backend.lease import Lease

__all__ = ["Branch", "Restored", "WorkspaceSnapshot", "released", "serve_early"]

_takes: set[asyncio.Task[None]] = set()


class Branch:
    """What makes a placement a copy. Owned by it alone; :meth:`freeze` is for any thread, the coroutines for the engine."""

    __slots__ = (
        "__weakref__", "_after", "_asked", "_backend", "_copying", "_early", "_parent", "_snapshot", "_taken", "abandoned",
        "layer",
    )  # fmt: skip

    def __init__(self, backend: str, parent: Lease, layer: str, after: Cell[Any] | None) -> None:
        self._backend = backend
        self._after = after
        self.layer = layer
        self._parent: Lease | None = parent  # until the files are there; then let go, or a chain of forks would pile up
        self._asked = False
        self._early = False  # the parent was not open at the freeze
        self._snapshot: object | None = None
        self._copying: asyncio.Task[object] | None = None
        self._taken: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.abandoned = False
        track(self)

    @property
    def is_open(self) -> bool:
        """Whether it keeps a snapshot."""
        return self._snapshot is not None

    def freeze(self) -> None:
        """Fix the moment: now. Returns at once. Once for each copy."""
        if self._asked:
            raise UsageError("freeze() was called before on this copy: its files are fixed")
        self._asked = True
        self._after = None
        lease = self._parent
        if lease is None or self.abandoned:
            return
        parent = lease.placement
        with parent.locked():
            sandbox = parent.sandbox
            if sandbox is None:
                self._early = True
                parent.early.append(weakref.ref(self))
                return
            turn = sandbox.gate.reserve()
        ports.engine().start(lambda: self.take(sandbox, turn))

    def wait(self) -> None:
        """Wait for what the freeze waits for.

        Raises:
            WouldDeadlock: that waits for the caller.
        """
        after = self._after
        if after is not None:
            after.wait()

    async def take(self, sandbox: BackendSandbox, turn: Reservation) -> None:
        """Take the snapshot of the parent's sandbox, in its turn."""
        try:
            copying = self._copying = asyncio.create_task(sandbox.freeze_in_turn(turn, self.layer))
            # In this order: abandon() may run on another thread, and sees either the task or us the flag.
            if self.abandoned:
                copying.cancel()
            try:
                await asyncio.wait([copying])
            finally:
                self._copying = None
                copying.cancel()  # of a task that has ended: nothing
                sandbox.gate.done(turn)  # cancelled before it began, it did not do so itself
            self._snapshot = None if copying.cancelled() else copying.result()
        except BaseException as error:
            self._taken.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            self._taken.set_result(None)
        finally:
            lease, self._parent = self._parent, None
            if lease is not None:
                lease.release()
        if self.abandoned:
            await self.shut()

    def start_fresh(self) -> None:
        """The copy opens the same spec by itself."""
        lease, self._parent = self._parent, None
        if lease is not None:
            self._taken.set_result(None)
            lease.release()

    async def files(self, backend: Backend) -> object | None:
        """Wait for the freeze; the snapshot to start from, or ``None``: open afresh."""
        lease = self._parent
        if self.abandoned:
            raise released()
        if lease is not None and self._early and lease.placement.sandbox is None:
            if lease.placement.gives_files(backend):
                # Its opening takes the snapshots of all copies that wait for it, this one's too.
                hold = lease.placement.acquire()
                try:
                    await hold.open()
                    await arrival(self._taken)
                finally:
                    hold.release()
            else:
                self.start_fresh()
        await arrival(self._taken)
        self._taken.result()
        if self.abandoned:
            raise released()
        return self._snapshot

    def used(self) -> None:
        """The snapshot has become a sandbox."""
        self._snapshot = None

    async def shut(self) -> None:
        """Free a snapshot that was not used. Nobody starts from it any more: not from nothing instead, either."""
        self.abandoned = True
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            await registry.get(self._backend)._adiscard(snapshot)

    def abandon(self, *, block: bool) -> None:
        """Nobody holds the copy, and it was never opened."""
        self.abandoned = True
        copying = self._copying
        if copying is not None and not copying.done():
            with contextlib.suppress(RuntimeError):  # the engine has ended, and the copy with it
                copying.get_loop().call_soon_threadsafe(copying.cancel)
        lease = self._parent
        if lease is not None:
            lease.drop(block=block)
        if self._snapshot is not None:
            engine = ports.engine()
            if block and not engine.on_loop_thread():
                engine.run(self.shut())
            else:
                engine.start(self.shut)

    def lost_by_fork(self) -> None:
        """In a forked child: the snapshot is the parent's, and a freeze that has not happened will not."""
        if self._snapshot is not None or not self._taken.done():
            self._snapshot = self._parent = None
            self._taken = concurrent.futures.Future()
            self._taken.set_exception(SandboxClosed("the process forked before this copy of a workspace was used"))


def released() -> SandboxClosed:
    """What a copy says that nobody held any more before it was opened."""
    return SandboxClosed("this copy of a workspace was released. Make another: fork(sandbox='copy') or restore(snapshot)")


class WorkspaceSnapshot:
    """The files of a workspace at one moment. Kept until :meth:`close`, the end of a ``with`` block or garbage collection.

    ``session.restore(snapshot)`` starts from them, any number of times. Of this process only: it does not outlive it.

    Attributes:
        id: its name; the ``workspace_layer`` in the lineage of sessions that start from it.
        backend: the backend that keeps it.
        spec: how sandboxes with its files are opened.
    """

    def __init__(self, id: str, backend: Backend, spec: BackendSandboxSpec | None, kept: object) -> None:
        self.id = id
        self.backend = backend
        self.spec = spec
        self._kept: object | None = kept
        self._cloning: set[asyncio.Task[object]] = set()
        self._pid = os.getpid()
        track(self)

    def __repr__(self) -> str:
        return f"WorkspaceSnapshot({self.id}, {self.backend.name}{'' if self.is_open else ', closed'})"

    @property
    def is_open(self) -> bool:
        """Whether it can be restored."""
        return self._kept is not None and self._pid == os.getpid()

    def close(self) -> None:
        """Free its files. Sandboxes that were restored from it keep theirs. Closing again does nothing."""
        engine = ports.engine()
        if engine.on_loop_thread():
            engine.start(self.shut)
        else:
            engine.run(self.shut())

    def __enter__(self) -> WorkspaceSnapshot:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        # At the interpreter's end everything this needs may be gone; `close_all` has run by then.
        with contextlib.suppress(Exception):
            if self.is_open:
                kept, backend = self._kept, self.backend
                ports.engine().start(lambda: backend._adiscard(kept))

    async def shut(self) -> None:
        """:meth:`close`, on the engine's loop."""
        if self.is_open:
            kept, self._kept = self._kept, None
            if self._cloning:  # what vanishes under a copy is missing in it, and nobody is told
                await asyncio.wait(self._cloning)
            await self.backend._adiscard(kept)

    async def clone(self) -> object:
        """What ``Backend._arestore`` takes, for one sandbox.

        Raises:
            SandboxClosed: it is closed.
        """
        if not self.is_open:
            raise SandboxClosed(f"the snapshot {self.id} is closed: restore it before, or take another")
        cloning = asyncio.create_task(self.backend._aclone(self._kept))
        self._cloning.add(cloning)
        cloning.add_done_callback(self._cloning.discard)
        return await cloning


class Restored:
    """What makes a placement start from a snapshot, at its first use; as :class:`Branch` does from a parent."""

    __slots__ = ("_backend", "_clone", "_kept", "abandoned", "layer")

    def __init__(self, kept: WorkspaceSnapshot) -> None:
        self._backend = kept.backend
        self._kept: WorkspaceSnapshot | None = kept  # not freed as long as this waits for its first use
        self._clone: object | None = None
        self.layer = kept.id
        self.abandoned = False

    def freeze(self) -> None:
        """Nothing: the files are fixed."""

    def wait(self) -> None:
        """Nothing: there is nothing to wait for."""

    async def files(self, backend: Backend) -> object | None:
        """The snapshot to start from."""
        if self._clone is None:
            if self._kept is None:
                raise released()
            self._clone = await self._kept.clone()
        return self._clone

    def used(self) -> None:
        """The snapshot has become a sandbox."""
        self._clone = self._kept = None

    def abandon(self, *, block: bool) -> None:
        """Nobody holds the placement, and it was never opened."""
        self.abandoned = True
        clone, self._clone, self._kept = self._clone, None, None
        if clone is not None:
            engine, backend = ports.engine(), self._backend
            if block and not engine.on_loop_thread():
                engine.run(backend._adiscard(clone))
            else:
                engine.start(lambda: backend._adiscard(clone))

    def lost_by_fork(self) -> None:
        """In a forked child: the snapshot is its parent process's, and says so when it is used."""
        self._clone = None


def serve_early(sandbox: BackendSandbox, turns: list[tuple[Branch, Reservation | None]]) -> None:
    """The parent is open now: take the snapshots that wait for it; ``None`` stands for a copy that needs none."""
    for branch, turn in turns:
        if turn is None:
            branch.start_fresh()
            continue
        task = asyncio.create_task(branch.take(sandbox, turn))
        _takes.add(task)
        task.add_done_callback(_takes.discard)
