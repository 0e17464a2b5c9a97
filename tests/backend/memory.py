"""A backend whose sandboxes are dictionaries: real in all that leases and streams need, with delays to order."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from rath.backend import registry
from rath.backend.types import (
    Backend,
    BackendSandbox,
    BackendSandboxSpec,
    BackendTool,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    Capabilities,
    FileContent,
    FileWriteResult,
    IsolationLevel,
    ToolExecutionFailure,
    ToolResult,
    UnsupportedBackendTool,
)
from rath.errors import SandboxBroken, SandboxUnavailable


@dataclass(frozen=True)
class Sleep(BackendTool):
    """Take a while, then note it."""

    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Die(BackendTool):
    """Break the sandbox."""


class MemorySandbox(BackendSandbox):
    def __init__(self, backend: Backend, handle: str, spec: BackendSandboxSpec | None) -> None:
        super().__init__(backend, handle, spec)
        self.files: dict[str, object] = {}


@registry.register("memory-for-tests")
class MemoryBackend(Backend):
    name: ClassVar[str] = "memory-for-tests"

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.reset()

    def reset(self) -> None:
        self.opened = self.closed = self.restored = 0
        self.open_delay_s = self.snapshot_delay_s = 0.0
        self.open_failures = self.restore_failures = 0
        self.notes: list[str] = []
        self.live_snapshots = 0
        self.opening = threading.Event()

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities(IsolationLevel.PROCESS, False, True, False)

    async def _aopen(self, spec: BackendSandboxSpec | None = None) -> BackendSandbox:
        self.opening.set()
        await asyncio.sleep(self.open_delay_s)
        if self.open_failures:
            self.open_failures -= 1
            raise SandboxUnavailable("ordered to fail")
        self.opened += 1
        return MemorySandbox(self, f"memory-{next(self._numbers)}", spec)

    async def _aclose(self, sandbox: BackendSandbox) -> None:
        self.closed += 1

    async def _adispatch(self, sandbox: BackendSandbox, call: BackendTool) -> ToolResult | bool:
        assert isinstance(sandbox, MemorySandbox)
        match call:
            case Sleep():
                await asyncio.sleep(call.seconds)
                self.notes.append(call.note)
                return True
            case BackendToolFilesWrite():
                sandbox.files[call.path] = call.data
                return FileWriteResult(len(call.data))
            case BackendToolFilesRead():
                if call.path not in sandbox.files:
                    return ToolExecutionFailure("file_not_found", call.path)
                return FileContent(sandbox.files[call.path])  # type: ignore[arg-type]
            case Die():
                raise SandboxBroken("the sandbox died: outcome unknown")
        raise UnsupportedBackendTool(type(call), self.name)

    def _shares_files(self, spec: BackendSandboxSpec | None) -> bool:
        return spec is not None and spec.working_dir is not None

    async def _asnapshot(self, sandbox: BackendSandbox, layer: str) -> object:
        assert isinstance(sandbox, MemorySandbox)
        files = dict(sandbox.files)
        await asyncio.sleep(self.snapshot_delay_s)
        self.live_snapshots += 1
        self.notes.append("snapshot")
        return files

    async def _arestore(self, spec: BackendSandboxSpec | None, snapshot: object) -> BackendSandbox:
        await asyncio.sleep(self.open_delay_s)
        if self.restore_failures:
            self.restore_failures -= 1
            raise SandboxUnavailable("ordered to fail")
        made = MemorySandbox(self, f"memory-{next(self._numbers)}", spec)
        made.files = snapshot  # type: ignore[assignment]
        self.restored += 1
        self.live_snapshots -= 1
        return made

    async def _aclone(self, snapshot: object) -> object:
        self.live_snapshots += 1
        return dict(snapshot)  # type: ignore[call-overload]

    async def _adiscard(self, snapshot: object) -> None:
        self.live_snapshots -= 1


@contextmanager
def fresh_memory() -> Iterator[MemoryBackend]:
    backend = registry.get("memory-for-tests")
    assert isinstance(backend, MemoryBackend)
    backend.reset()
    yield backend
    backend.reset()
