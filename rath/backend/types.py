"""What a sandbox is asked, what it answers, and what a backend has to implement.

A failure inside a sandbox (a missing file, a timeout, a path that leads out) is an answer, ``ToolExecutionFailure``; an
exception means that the sandbox itself cannot go on.
"""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar
from weakref import ReferenceType

from rath.backend.calls import (
    BackendTool,
    BackendToolCodeRun,
    BackendToolCommandRun,
    BackendToolFilesExists,
    BackendToolFilesList,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    Capabilities,
    CodeResult,
    CommandResult,
    FileContent,
    FileEntries,
    FileEntry,
    FileWriteResult,
    IsolationLevel,
    ToolExecutionFailure,
    ToolResult,
    WorkspaceDiff,
    checked_call,
)
from rath.backend.closing import close_at_end, everything, track, tracked
from rath.backend.gate import Gate, Reservation
from rath.backend.spec import BackendSandboxSpec
from rath.backend.stream import Stream
from rath.core import ports
from rath.errors import (
    SandboxBroken,
    SandboxClosed,
    SandboxError,
    SandboxUnavailable,
    UnsupportedBackendTool,
    UsageTypeError,
)

__all__ = [
    "Backend",
    "BackendSandbox",
    "BackendSandboxSpec",
    "BackendTool",
    "BackendToolCodeRun",
    "BackendToolCommandRun",
    "BackendToolFilesExists",
    "BackendToolFilesList",
    "BackendToolFilesRead",
    "BackendToolFilesWrite",
    "Capabilities",
    "CodeResult",
    "CommandResult",
    "FileContent",
    "FileEntries",
    "FileEntry",
    "FileWriteResult",
    "IsolationLevel",
    "ToolExecutionFailure",
    "ToolResult",
    "WorkspaceDiff",
    "close_unheld",
    "open_sandboxes",
]


T = TypeVar("T")
PATIENCE_S = 2.0
"""How long a freeze waits for calls under way. Then it copies what is there: a fork never kills anybody's processes."""


# -- a sandbox --------------------------------------------------------------------------------------------------------


class References:
    """How many hold a sandbox: sessions and runs (through leases), and explicit ``acquire`` calls."""

    __slots__ = ("count", "lock")

    def __init__(self) -> None:
        self.count = 0
        # Reentrant: the garbage collector may release a lease inside any of our own critical sections.
        self.lock = threading.RLock()


class _Held:
    """The state of a sandbox that is not among its fields."""

    references: References
    gate: Gate
    placement_ref: ReferenceType[Any] | None
    _pid: int
    _broken: str
    _closing: asyncio.Future[None] | None
    closed: bool = False

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        # Not in `__init__`: a backend's own dataclass must not have to call it.
        self = super().__new__(cls)
        self.references = References()
        self.gate = Gate()
        self.placement_ref = None
        self._pid = os.getpid()
        self._broken = ""
        self._closing = None
        track(self)  # type: ignore[arg-type]  # only BackendSandbox derives from this
        return self


@dataclass(eq=False)
class BackendSandbox(_Held):
    """An open sandbox. Held by counting: ``with sandbox:`` or ``acquire``/``release``; the last release closes it.

    Methods may be called from any thread. A backend may derive its own class from it.

    Args:
        handle: what the backend knows it by; ``local``: the path of the workspace.
        closed: whether it is closed, or never was open.
    """

    backend: Backend
    handle: str
    spec: BackendSandboxSpec | None = None
    closed: bool = False

    @property
    def is_open(self) -> bool:
        """Whether this process opened it and has not closed it."""
        return not self.closed and self._pid == os.getpid()

    @property
    def refcount(self) -> int:
        """How many hold it. 0 when just opened."""
        return self.references.count

    def acquire(self) -> BackendSandbox:
        """Hold it once more; returns itself.

        Raises:
            SandboxClosed: it is closed.
        """
        with self.references.lock:
            self.check_open()
            self.references.count += 1
        return self

    def release(self) -> None:
        """Hold it once less; the last one closes it, and waits until it is closed. Of a closed sandbox: nothing."""
        with self.references.lock:
            self.references.count = max(0, self.references.count - 1)
            last = self.references.count == 0
        if last:
            close_unheld(self, block=True)

    def __enter__(self) -> BackendSandbox:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def dispatch(self, call: BackendTool) -> ToolResult | bool:
        """Run a call and wait for its answer.

        Raises:
            SandboxClosed: it is closed.
            SandboxBroken: it died; the outcome of the call under way is unknown.
        """
        self.check()
        return ports.engine().run(self.perform(call))

    def stream(self, *, buffer: int = 0) -> Stream:
        """A queue of calls that run in order. ``buffer``: at most so many unfinished, ``submit`` waits; 0: no limit."""
        return Stream(self, buffer=buffer)

    # -- for the rest of rath, on the engine's loop -------------------------------------------------------------------

    def check(self) -> None:
        """Raise :class:`SandboxClosed` or :class:`SandboxBroken` if no call can run."""
        self.check_open()
        if self._pid != os.getpid() and not self.backend.works_after_fork:
            # Its connection and its loop are the parent's: a call would wait for ever.
            raise SandboxClosed(
                f"sandbox {self.handle} belongs to the process that forked this one. Place the session again here: "
                "session = session.to(...)"
            )
        if self._broken:
            raise SandboxBroken(
                f"sandbox {self.handle} broke earlier ({self._broken}). Place the session again: session = session.to(...)"
            )

    def check_open(self) -> None:
        if self.closed or self._closing is not None:
            raise SandboxClosed(
                f"sandbox {self.handle} is closed. Open another, or place the session again: session = session.to(...)"
            )

    async def perform(self, call: BackendTool) -> ToolResult | bool:
        """Run a call."""
        checked = checked_call(call)
        if isinstance(checked, ToolExecutionFailure):
            self.check()
            return checked
        try:
            return await self._inside(lambda: self.backend._adispatch(self, checked))
        except UnsupportedBackendTool as error:
            return ToolExecutionFailure("unsupported_tool", str(error))

    async def diff(self) -> WorkspaceDiff:
        """What changed in the workspace since its start."""
        return await self._inside(lambda: self.backend._adiff(self))

    async def upload(self, host_path: str, path: str) -> None:
        """Copy a file or directory of the host into the workspace."""
        await self._inside(lambda: self.backend._aupload(self, host_path, path))

    async def download(self, path: str, host_path: str) -> None:
        """Copy a file or directory of the workspace to the host."""
        await self._inside(lambda: self.backend._adownload(self, path, host_path))

    async def _inside(self, work: Callable[[], Awaitable[T]]) -> T:
        """The one way in, past the gate."""
        await self.gate.enter()
        try:
            self.check()
            return await work()
        except SandboxBroken as error:
            self.broke(str(error))
            raise
        finally:
            self.gate.leave()

    async def frozen(self, layer: str) -> object:
        """A snapshot of the workspace, taken before any later call; calls under way are awaited for 2 s at most."""
        return await self.freeze_in_turn(self.gate.reserve(), layer)

    async def freeze_in_turn(self, turn: Reservation, layer: str) -> object:
        """:meth:`frozen`, with a place in the line that was reserved before."""
        try:
            await self.gate.alone(turn, PATIENCE_S)
            self.check()
            return await self.backend._asnapshot(self, layer)
        finally:
            self.gate.done(turn)

    def broke(self, reason: str) -> None:
        """The sandbox died: no further call is tried. The first reason stays."""
        self._broken = self._broken or reason

    def capabilities(self) -> Capabilities:
        """What this very sandbox can do; may be less than its backend can."""
        return self.backend.capabilities()

    async def shut(self, *, unless_held: bool = False) -> None:
        """Close it, once; who comes later waits for the first. Does nothing in a forked child: it is its parent's."""
        with self.references.lock:
            if not self.is_open or (unless_held and self.references.count):
                return
            under_way = self._closing
            if under_way is None:
                closing = self._closing = asyncio.get_running_loop().create_future()
        if under_way is not None:
            await asyncio.shield(under_way)
            return
        try:
            # Backends may take `closed` for "nothing to do", so it is set when they are done.
            await self.backend._aclose(self)
        finally:
            self.closed = True
            closing.set_result(None)


def close_unheld(sandbox: BackendSandbox, *, block: bool) -> None:
    """Close a sandbox that nobody holds: and wait if told to and not on the engine's own thread."""
    if not sandbox.is_open:
        return
    engine = ports.engine()
    if block and not engine.on_loop_thread():
        engine.run(sandbox.shut(unless_held=True))
    else:
        engine.start(lambda: sandbox.shut(unless_held=True))


def open_sandboxes() -> list[BackendSandbox]:
    """Every sandbox that this process opened and has not closed."""
    return [one for one in tracked() if isinstance(one, BackendSandbox)]


def _reset_in_child() -> None:
    """A forked child has no threads but one: locks that others held, and calls that were under way, are gone."""
    for one in everything():
        if isinstance(one, BackendSandbox):
            one.references.lock = threading.RLock()
            one.gate.reset()


os.register_at_fork(after_in_child=_reset_in_child)


# -- a backend --------------------------------------------------------------------------------------------------------


class Backend(ABC):
    """A way to open sandboxes. Derive from it and put ``@rath.backend.register("name")`` on the class.

    Implement the coroutines ``_aopen``, ``_aclose`` and ``_adispatch``, which run on the engine's loop and must not block
    it; or, where the work is synchronous, ``open``, ``close`` and ``dispatch``, which then run in tool threads.
    """

    name: ClassVar[str] = ""
    works_after_fork: ClassVar[bool] = False
    """Whether a forked child can call in the sandboxes of its parent: where that takes no connection."""

    @classmethod
    @abstractmethod
    def capabilities(cls) -> Capabilities:
        """What this kind of backend can do."""

    @classmethod
    def is_available(cls) -> bool:
        """Whether it works on this machine. Cheap: no network, no process."""
        return True

    @classmethod
    def supported_calls(cls) -> frozenset[type[BackendTool]]:
        """The kinds of call that it answers."""
        can = cls.capabilities()
        calls: set[type[BackendTool]] = set()
        if can.supports_command:
            calls.add(BackendToolCommandRun)
        if can.supports_filesystem:
            calls |= {BackendToolFilesRead, BackendToolFilesWrite, BackendToolFilesList, BackendToolFilesExists}
        if can.supports_code_interpreter:
            calls.add(BackendToolCodeRun)
        return frozenset(calls)

    def sandbox_count(self) -> int:
        """How many of its sandboxes are open."""
        return sum(sandbox.backend is self for sandbox in open_sandboxes())

    # -- synchronous, for callers; each waits on the engine -----------------------------------------------------------

    def open(self, spec: BackendSandboxSpec | None = None) -> BackendSandbox:
        """Open a sandbox. Nobody holds it yet: use ``with``, or close it yourself."""
        return ports.engine().run(self.open_in_loop(spec))

    def close(self, sandbox: BackendSandbox) -> None:
        """Close a sandbox, whoever holds it. Closing again does nothing."""
        if not sandbox.closed:
            ports.engine().run(sandbox.shut())

    def dispatch(self, sandbox: BackendSandbox, call: BackendTool) -> ToolResult | bool:
        """Run a call in a sandbox and wait for its answer."""
        return sandbox.dispatch(call)

    async def open_in_loop(self, spec: BackendSandboxSpec | None) -> BackendSandbox:
        """:meth:`open`, on the engine's loop."""
        close_at_end()
        return await self._aopen(spec)

    # -- the hooks ----------------------------------------------------------------------------------------------------

    async def _aopen(self, spec: BackendSandboxSpec | None = None) -> BackendSandbox:
        """Open a sandbox."""
        self._require("open", "_aopen")
        return await ports.engine().call(self.open, spec)

    async def _aclose(self, sandbox: BackendSandbox) -> None:
        """Free what a sandbox uses; what still runs in it is killed."""
        self._require("close", "_aclose")
        await ports.engine().call(self.close, sandbox)

    async def _adispatch(self, sandbox: BackendSandbox, call: BackendTool) -> ToolResult | bool:
        """Run a call. A cancelled call kills what it started.

        Raises:
            UnsupportedBackendTool: it has no way to run this kind; becomes a :class:`ToolExecutionFailure`.
            SandboxBroken: the sandbox died. No further call will be tried.
        """
        self._require("dispatch", "_adispatch")
        return await ports.engine().call(self.dispatch, sandbox, call)

    def _require(self, method: str, hook: str) -> None:
        if getattr(type(self), method) is getattr(Backend, method):
            raise UsageTypeError(f"{type(self).__name__} implements neither {hook} nor {method}: a backend has one of them")

    async def _acheck(self) -> None:
        """Find out whether a sandbox can be opened here and now, by trying what that takes.

        Raises:
            SandboxUnavailable: none can; the message says why not and what to do.
        """
        if not self.is_available():
            raise SandboxUnavailable(f"backend {self.name!r} does not work on this machine; `rath doctor` says why")

    # -- optional hooks: branching and comparing workspaces -----------------------------------------------------------

    def _shares_files(self, spec: BackendSandboxSpec | None) -> bool:
        """Whether two sandboxes opened with ``spec`` would share files."""
        return False

    async def _asnapshot(self, sandbox: BackendSandbox, layer: str) -> object:
        """A frozen copy of the workspace, for :meth:`_arestore`; calls wait meanwhile. ``layer``: its name."""
        raise UnsupportedBackendTool("a copy of a workspace (fork(sandbox='copy'))", self.name)

    async def _aclone(self, snapshot: object) -> object:
        """One more snapshot of the same files, to be restored or discarded by itself."""
        raise UnsupportedBackendTool("a snapshot that is kept (session.snapshot())", self.name)

    async def _arestore(self, spec: BackendSandboxSpec | None, snapshot: object) -> BackendSandbox:
        """A new sandbox with the files of ``snapshot``, which is used up unless this raises."""
        raise UnsupportedBackendTool("a copy of a workspace (fork(sandbox='copy'))", self.name)

    async def _adiscard(self, snapshot: object) -> None:  # noqa: B027 - where there are no snapshots, nothing is to be freed
        """Free a snapshot that nobody will restore."""

    async def _adiff(self, sandbox: BackendSandbox) -> WorkspaceDiff:
        """What changed in the workspace since its start."""
        raise SandboxError(f"backend {self.name!r} cannot tell what changed in a workspace; `local` can")

    async def _aupload(self, sandbox: BackendSandbox, host_path: str, path: str) -> None:
        """Copy ``host_path`` of the host, a file or a directory, to ``path`` in the workspace."""
        raise SandboxError(f"backend {self.name!r} cannot take files from the host; write them one by one")

    async def _adownload(self, sandbox: BackendSandbox, path: str, host_path: str) -> None:
        """Copy ``path`` of the workspace, a file or a directory, to ``host_path`` of the host."""
        raise SandboxError(f"backend {self.name!r} cannot give files to the host; read them one by one")
