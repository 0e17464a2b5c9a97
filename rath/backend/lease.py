"""Placements and leases: the one count of who holds a sandbox, and the one way to open it.

A *placement* says where everything derived from a session runs its tools. It costs nothing until it is used. A *lease* is
one holder's hold on it: a session value has one, a run has one. The sandbox opens at the first use, once for all; it
closes when the last lease is released, explicitly or by garbage collection. Release is final.

A *copied* placement (``fork(sandbox="copy")``) has files of its own; see :mod:`rath.backend.branching`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from weakref import WeakSet

from rath.backend import registry
from rath.backend.branching import Branch, Restored, WorkspaceSnapshot, released, serve_early
from rath.backend.closing import close_all
from rath.backend.types import (
    Backend,
    BackendSandbox,
    BackendSandboxSpec,
    BackendTool,
    References,
    ToolResult,
    WorkspaceDiff,
    close_unheld,
)
from rath.core import ports
from rath.core.cell import Cell
from rath.errors import SandboxClosed, UsageError, UsageTypeError

__all__ = ["Lease", "Placement", "close_all"]

_placements: WeakSet[Placement] = WeakSet()
_placements_lock = threading.RLock()


class Placement:
    """Where a session and everything derived from it run their tools. Making one opens nothing.

    Args:
        backend: a registered backend's name.
        spec: how to open the sandbox; a string is its ``working_dir``. Kept as a copy.

    Raises:
        BackendNotFound: no backend has this name.
        UsageTypeError: ``spec`` is something else.
    """

    __slots__ = ("__weakref__", "_branch", "_opening", "_references", "_sandbox", "backend", "early", "spec")

    backend: str
    spec: BackendSandboxSpec | None

    def __init__(self, backend: str, spec: BackendSandboxSpec | str | os.PathLike[str] | None = None) -> None:
        registry.check_name(backend)
        self._fill(backend, _as_spec(spec), None)

    def _fill(self, backend: str, spec: BackendSandboxSpec | None, sandbox: BackendSandbox | None) -> None:
        self.backend = backend
        self.spec = spec
        self._sandbox = sandbox
        # The sandbox's own count once there is one. Until then the placement keeps it, and then hands it over.
        self._references = References() if sandbox is None else sandbox.references
        self._opening: asyncio.Task[BackendSandbox] | None = None
        self._branch: Branch | Restored | None = None
        self.early: list[weakref.ref[Branch]] = []  # copies that wait for this one to open
        with _placements_lock:
            _placements.add(self)

    @classmethod
    def of_sandbox(cls, sandbox: BackendSandbox) -> Placement:
        """The placement of an open sandbox: the same object each time, as long as anybody holds it."""
        if not isinstance(sandbox, BackendSandbox):
            raise UsageTypeError(f"bind a BackendSandbox (as backend.open() returns), not {type(sandbox).__name__}")
        with sandbox.references.lock:
            known: Placement | None = None if sandbox.placement_ref is None else sandbox.placement_ref()
            if known is None:
                known = object.__new__(cls)
                name = sandbox.backend.name or type(sandbox.backend).__name__
                known._fill(name, sandbox.spec, sandbox)
                sandbox.placement_ref = weakref.ref(known)
        return known

    @property
    def sandbox(self) -> BackendSandbox | None:
        """The sandbox; ``None`` until it is opened. Never opens, never waits."""
        return self._sandbox

    def acquire(self) -> Lease:
        """One more hold on it.

        Raises:
            SandboxClosed: its sandbox was opened and is closed.
        """
        with self.locked() as references:
            self._check_open()
            references.count += 1
        return Lease(self)

    @contextlib.contextmanager
    def locked(self) -> Iterator[References]:
        """The count, which nobody else changes meanwhile."""
        while True:
            references = self._references
            with references.lock:
                if references is not self._references:
                    continue  # handed over to the sandbox just now
                yield references
                return

    def _check_open(self) -> None:
        sandbox, branch = self._sandbox, self._branch
        if sandbox is not None:
            sandbox.check_open()
        elif branch is not None and branch.abandoned:
            raise released()

    def __repr__(self) -> str:
        state = "not opened" if self._sandbox is None else "closed" if self._sandbox.closed else self._sandbox.handle
        return f"Placement({self.backend!r}, {state}, {self._references.count} leases)"

    # -- opening ------------------------------------------------------------------------------------------------------

    async def open(self) -> BackendSandbox:
        """The sandbox, opened once however many ask at once. On the engine's loop; for holders of a lease."""
        sandbox = self._sandbox
        if sandbox is None:
            task = self._opening
            if task is None:
                task = self._opening = asyncio.create_task(self._open())
                # The error goes to every waiter; this keeps asyncio from reporting it if all of them left.
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            sandbox = await asyncio.shield(task)
        sandbox.check()
        return sandbox

    async def _open(self) -> BackendSandbox:
        try:
            backend = registry.get(self.backend)
            branch = self._branch
            snapshot = None if branch is None else await branch.files(backend)
            if branch is None or snapshot is None:
                sandbox = await backend.open_in_loop(self.spec)
            else:
                sandbox = await backend._arestore(self.spec, snapshot)
                branch.used()
            self._hand_over(sandbox, backend)
        except BaseException:
            self._opening = None
            if self._references.count == 0:
                self.unheld(block=False)
            raise
        self._opening = None
        if self._references.count == 0:
            await sandbox.shut(unless_held=True)
            raise SandboxClosed("every hold on the sandbox was released while it opened; it is closed again")
        return sandbox

    def _hand_over(self, sandbox: BackendSandbox, backend: Backend) -> None:
        mine = self._references
        with mine.lock, sandbox.references.lock:
            # Side by side and in this order: the garbage collector may release a lease here, on this very thread.
            self._sandbox = sandbox
            self._references = sandbox.references
            sandbox.references.count += mine.count
            if sandbox.placement_ref is None or sandbox.placement_ref() is None:
                sandbox.placement_ref = weakref.ref(self)
            gives = self.gives_files(backend)
            waiting = [branch for ref in self.early if (branch := ref()) is not None and not branch.abandoned]
            self.early.clear()
            # Before any call can enter: nobody has seen the sandbox yet.
            turns = [(branch, sandbox.gate.reserve() if gives else None) for branch in waiting]
        serve_early(sandbox, turns)

    # -- copies -------------------------------------------------------------------------------------------------------

    def copy(self, after: Cell[Any] | None = None) -> Placement:
        """A placement with its own copy of the files, as they are at the copy's :meth:`freeze`. Costs nothing yet.

        Args:
            after: what the caller's ``freeze`` will wait for. Who blocks for the copy waits for that first, and so is told
                where it would wait for itself.

        Raises:
            SandboxClosed: the sandbox is closed already.
        """
        child = object.__new__(Placement)
        child._fill(self.backend, self.spec, None)
        child._branch = Branch(self.backend, self.acquire(), new_layer(), after)
        return child

    @classmethod
    def of_snapshot(cls, snapshot: WorkspaceSnapshot) -> Placement:
        """A placement that starts with the files of ``snapshot``. Costs nothing until it is used.

        Raises:
            SandboxClosed: the snapshot is closed.
        """
        if not isinstance(snapshot, WorkspaceSnapshot):
            raise UsageTypeError(f"restore takes what session.snapshot() returned, not {type(snapshot).__name__}")
        if not snapshot.is_open:
            raise SandboxClosed(f"the snapshot {snapshot.id} is closed: restore it before, or take another")
        made = object.__new__(cls)
        made._fill(snapshot.backend.name, snapshot.spec, None)
        made._branch = Restored(snapshot)
        return made

    @property
    def layer(self) -> str | None:
        """The name of the snapshot that its files started with, if it is a copy."""
        return None if self._branch is None else self._branch.layer

    def freeze(self) -> None:
        """Fix the moment whose files this copy starts with: now. Any thread; returns at once. Once for each copy.

        A snapshot is queued on the parent before any later call; calls under way are awaited for 2 s at most.
        """
        if self._branch is None:
            raise UsageError("freeze() is for placements made by copy()")
        self._branch.freeze()

    def gives_files(self, backend: Backend) -> bool:
        """Whether a copy of this placement, not opened yet, needs more than another open of the same spec."""
        return self._branch is not None or backend._shares_files(self.spec)

    def unheld(self, *, block: bool) -> None:
        """The last lease is gone: close what is open, free what is kept. Waits only if told to."""
        if self._sandbox is not None:
            close_unheld(self._sandbox, block=block)
        elif self._branch is not None and self._opening is None:
            self._branch.abandon(block=block)


class Lease:
    """One holder's hold on a placement."""

    __slots__ = ("__weakref__", "_released", "placement")

    def __init__(self, placement: Placement) -> None:
        self._released = False
        self.placement = placement

    @property
    def released(self) -> bool:
        """Whether it is released."""
        return self._released

    def check(self) -> None:
        """Raise :class:`SandboxClosed` if it is released."""
        if self._released:
            raise SandboxClosed(
                "this session's hold on its sandbox was released. Place the session again: session = session.to(...)"
            )

    def release(self) -> None:
        """Let go, once and for good. The last lease closes the sandbox: waiting for it, except on the engine's thread."""
        self.drop(block=True)

    def drop(self, *, block: bool) -> None:
        """:meth:`release`, waiting only if told to."""
        with self.placement.locked() as references:
            if self._released:
                return
            self._released = True
            references.count -= 1
            last = references.count == 0
        if last:
            self.placement.unheld(block=block)

    def __del__(self) -> None:
        # At the interpreter's end everything this needs may be gone; `close_all` has run by then.
        with contextlib.suppress(Exception):
            if not self._released:
                self.drop(block=False)

    async def open(self) -> BackendSandbox:
        """The sandbox, opened if need be. On the engine's loop.

        Raises:
            SandboxClosed: this lease is released, or the sandbox is closed.
            SandboxBroken: the sandbox died earlier.
            SandboxError: it could not be opened; a later call tries again.
        """
        self.check()
        sandbox = await self.placement.open()
        self.check()
        return sandbox

    async def dispatch(self, call: BackendTool) -> ToolResult | bool:
        """Run a call in the sandbox, opened if need be. On the engine's loop."""
        return await (await self.open()).perform(call)

    async def diff(self) -> WorkspaceDiff:
        """What changed in the workspace since its start; nothing, without opening it, if it was never used."""
        self.check()
        placement = self.placement
        if placement._sandbox is None and placement._branch is None:
            return WorkspaceDiff("")
        return await (await self.open()).diff()

    async def upload(self, host_path: str, path: str) -> None:
        """Copy a file or directory of the host to ``path`` in the workspace."""
        await (await self.open()).upload(host_path, path)

    async def download(self, path: str, host_path: str) -> None:
        """Copy a file or directory of the workspace to ``host_path`` of the host."""
        await (await self.open()).download(path, host_path)

    async def snapshot(self) -> WorkspaceSnapshot:
        """The files as they are now, between two calls."""
        sandbox, layer = await self.open(), new_layer()
        kept = await sandbox.frozen(layer)
        return WorkspaceSnapshot(layer, sandbox.backend, self.placement.spec, kept)

    def open_blocking(self) -> BackendSandbox:
        """:meth:`open`, for callers on ordinary threads."""
        self.check()
        sandbox = self.placement._sandbox
        if sandbox is not None:
            sandbox.check()
            return sandbox
        self._wait_for_the_freeze()
        return ports.engine().run(self.open())

    def dispatch_blocking(self, call: BackendTool) -> ToolResult | bool:
        """:meth:`dispatch`, for callers on ordinary threads."""
        self._wait_for_the_freeze()
        return ports.engine().run(self.dispatch(call))

    def _wait_for_the_freeze(self) -> None:
        branch = self.placement._branch
        if branch is not None:
            branch.wait()


def new_layer() -> str:
    """A name for a snapshot."""
    return secrets.token_hex(8)


def _as_spec(spec: BackendSandboxSpec | str | os.PathLike[str] | None) -> BackendSandboxSpec | None:
    if spec is None:
        return None
    if isinstance(spec, BackendSandboxSpec):
        return replace(spec)
    if isinstance(spec, (str, os.PathLike)):
        return BackendSandboxSpec(working_dir=os.fspath(spec))
    raise UsageTypeError(f"spec is a BackendSandboxSpec, or a string for its working_dir; not {type(spec).__name__}")


def _reset_in_child() -> None:
    """A forked child: fresh locks, and nothing under way."""
    global _placements_lock
    _placements_lock = threading.RLock()
    placements = list(_placements)
    for placement in placements:
        if placement._sandbox is None:
            placement._references.lock = threading.RLock()
        placement._opening = None
    for placement in placements:  # lets go of leases of others, and so takes their locks
        if placement._branch is not None:
            placement._branch.lost_by_fork()


os.register_at_fork(after_in_child=_reset_in_child)
