"""How a copied placement gets its files: the part of ``fork(sandbox="copy")`` that sandboxes are concerned with.

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
the parent.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import weakref
from typing import TYPE_CHECKING

from rath.backend import registry
from rath.backend.closing import track
from rath.backend.gate import Reservation
from rath.backend.stream import arrival
from rath.backend.types import Backend, BackendSandbox
from rath.core import ports
from rath.errors import SandboxClosed, UsageError

if TYPE_CHECKING:
    from rath.backend.lease import Lease

__all__ = ["Branch", "serve_early"]

PATIENCE_S = 2.0
"""How long a freeze waits for calls under way. Then it copies what is there: a fork never kills anybody's processes."""

_takes: set[asyncio.Task[None]] = set()


class Branch:
    """What makes a placement a copy. Owned by it alone; :meth:`freeze` is for any thread, the coroutines for the engine."""

    __slots__ = ("__weakref__", "_asked", "_backend", "_copying", "_early", "_parent", "_snapshot", "_taken", "abandoned")

    def __init__(self, backend: str, parent: Lease) -> None:
        self._backend = backend
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

    async def take(self, sandbox: BackendSandbox, turn: Reservation) -> None:
        """Take the snapshot of the parent's sandbox, in its turn."""
        try:
            try:
                await sandbox.gate.alone(turn, PATIENCE_S)
                sandbox.check()
                copying = self._copying = asyncio.create_task(_snapshot(sandbox))
                # In this order: abandon() may run on another thread, and sees either the task or us the flag.
                if self.abandoned:
                    copying.cancel()
                await asyncio.wait([copying])
                self._snapshot = None if copying.cancelled() else copying.result()
            finally:
                started, self._copying = self._copying, None
                if started is not None:
                    started.cancel()  # of a task that has ended: nothing
                sandbox.gate.done(turn)
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
        return self._snapshot

    def used(self) -> None:
        """The snapshot has become a sandbox."""
        self._snapshot = None

    async def shut(self) -> None:
        """Free a snapshot that was not used."""
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


async def _snapshot(sandbox: BackendSandbox) -> object:
    return await sandbox.backend._asnapshot(sandbox)


def serve_early(sandbox: BackendSandbox, turns: list[tuple[Branch, Reservation | None]]) -> None:
    """The parent is open now: take the snapshots that wait for it; ``None`` stands for a copy that needs none."""
    for branch, turn in turns:
        if turn is None:
            branch.start_fresh()
            continue
        task = asyncio.create_task(branch.take(sandbox, turn))
        _takes.add(task)
        task.add_done_callback(_takes.discard)
