"""What every sandbox with a guest server inside does: the calls of a backend as requests to the guest.

A backend derives from :class:`GuestBackend` and says how a sandbox is launched and stopped; all else is here. Its own class
of sandboxes derives from :class:`GuestSandbox`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from rath.backend.calls import (
    BackendTool,
    BackendToolCodeRun,
    BackendToolCommandRun,
    BackendToolFilesExists,
    BackendToolFilesList,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    ToolExecutionFailure,
    ToolResult,
    WorkspaceDiff,
)
from rath.backend.guest import commands, files, transfer
from rath.backend.guest.changes import changes
from rath.backend.guest.channel import Channel
from rath.backend.guest.config import GuestConfig
from rath.backend.guest.interpreter import Interpreter
from rath.backend.guest.snapshot import GuestSnapshot, Kept, Spooled, spool, tidy
from rath.backend.host.diff import Baseline
from rath.backend.host.paths import Confined, Refused
from rath.backend.journal import Journal
from rath.backend.owner import SandboxRecord, owner
from rath.backend.spec import BackendSandboxSpec, host_workspace, refuse_unsupported, timeout_of
from rath.backend.types import Backend, BackendSandbox
from rath.core import ports
from rath.errors import (
    SandboxBroken,
    SandboxError,
    SandboxUnavailable,
    UnsupportedBackendTool,
    UsageTypeError,
    UsageValueError,
)

__all__ = ["GuestBackend", "GuestSandbox", "Start"]

HELLO_S = 30.0
_log = logging.getLogger("rath.backend")
BASE_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "USER": "sandbox",
    # The workspace may belong to another user than the one that commands run as, which git refuses otherwise.
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
}


@dataclass(frozen=True, slots=True)
class Start:
    """What a workspace starts as.

    Args:
        kind: ``"empty"``; ``"copy"``: a copy of the host's directory ``path``; ``"bind"``: that directory itself;
            ``"snapshot"``: the files of ``kept``.
        path: the host's directory, absolute.
        kept: what the backend's own ``_freeze`` returned, or a :class:`~rath.backend.guest.snapshot.Spooled` archive.
    """

    kind: Literal["empty", "copy", "bind", "snapshot"] = "empty"
    path: str | None = None
    kept: Kept | None = None


@dataclass(eq=False, kw_only=True)
class GuestSandbox(BackendSandbox):
    """A sandbox with a guest server inside. ``_launch`` makes it: ``GuestSandbox(self, handle, spec, channel=…, config=…)``.

    Args:
        channel: the connection to the guest; its transport is connected, and nothing was said yet.
        config: how the guest is to work. ``env`` is filled in here: leave it out.
        workspace_ready: whether the workspace already holds what :class:`Start` says. If not, the files are sent in.
        python: the Python in the sandbox that runs code.
    """

    channel: Channel = field(repr=False)
    config: GuestConfig = field(repr=False)
    workspace_ready: bool = False
    python: str = "python3"
    baseline: Baseline = field(default_factory=Baseline, repr=False)
    interpreter: Interpreter = field(init=False, repr=False)
    journal: Journal | None = field(init=False, repr=False, default=None)
    timeout_s: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.interpreter = Interpreter(self.channel, self.python)
        self.timeout_s = None if self.spec is None else timeout_of(self.spec)
        self.channel.closed.add_done_callback(self._lost)

    def _lost(self, closed: asyncio.Future[str]) -> None:
        if not closed.cancelled() and self._closing is None:
            self.broke(closed.result())


class GuestBackend(Backend):
    """The base of backends whose sandboxes have a guest server inside."""

    # -- the hooks ----------------------------------------------------------------------------------------------------

    @abstractmethod
    async def _launch(self, spec: BackendSandboxSpec, start: Start) -> GuestSandbox:
        """Start a sandbox with a guest server and connect a channel to it. On the engine's loop; must not block it.

        The base does the rest: it waits for the guest's HELLO, sends CONFIG (``sandbox.config`` with the environment filled
        in), sends the files in unless ``sandbox.workspace_ready`` is set, and keeps the baseline of ``start.path`` for
        diffs, which it reads while this runs. After that it calls :meth:`_ready`.

        Where this raises or is cancelled, it cleans up what it began; once it has returned, the base calls :meth:`_stop`
        whatever happens.

        Args:
            spec: the checked spec (never ``None``).
            start: what the workspace has to start as. ``"bind"`` has to be done here; ``"copy"`` and ``"snapshot"`` may.

        Raises:
            SandboxUnavailable: this machine cannot, now; the message says what to do.
        """

    @abstractmethod
    async def _stop(self, sandbox: GuestSandbox) -> None:
        """Free everything that ``_launch`` made. The channel is closed already, so an honest guest is ending by itself.

        Called once for each launched sandbox, also for one that broke or was never ready. Where :func:`ending` of
        ``rath.backend.closing`` is true, no thread can be started any more.
        """

    async def _ready(self, sandbox: GuestSandbox, said: dict[str, str]) -> None:
        """The guest is configured and the files are there. ``said``: what its HELLO and READY said together.

        Raising closes the sandbox again.
        """

    def _record(self, sandbox: GuestSandbox) -> SandboxRecord | None:
        """What ``rath sandbox ps`` shows of a sandbox that is ready; ``None``: nothing, and ``logs`` none of its calls."""
        return None

    async def _freeze(self, sandbox: GuestSandbox, layer: str) -> Kept | None:
        """Keep the workspace as it is now, faster than by a copy; ``None`` where that cannot be: then it is copied.

        What this returns comes back as ``Start("snapshot", kept=…)``, any number of times, until its ``free()``.
        """
        return None

    def _check_spec(self, spec: BackendSandboxSpec | None) -> BackendSandboxSpec:
        """The spec with every field that this backend honours; raises ``UsageValueError`` for others."""
        checked = refuse_unsupported(spec, self.name, self.capabilities().spec_fields)
        try:
            commands.checked_env(checked.env or {})
        except Refused as refused:
            raise UsageValueError(refused.message) from None
        return checked

    # -- open and close -----------------------------------------------------------------------------------------------

    async def _aopen(self, spec: BackendSandboxSpec | None = None) -> BackendSandbox:
        checked = self._check_spec(spec)
        path = host_workspace(checked)
        if path is None:
            return await self._begin(checked, Start(), Baseline())
        if not os.path.isdir(path):
            raise SandboxUnavailable(f"workspace {path!r} cannot be used: no such directory. Name one that is there")
        start = Start("bind" if checked.workspace_mode == "bind" else "copy", path)
        reading = asyncio.ensure_future(ports.engine().call(_baseline_of, path))
        try:
            return await self._begin(checked, start, reading)
        except BaseException:
            reading.add_done_callback(_drop_baseline)
            raise

    async def _begin(
        self, spec: BackendSandboxSpec, start: Start, baseline: Baseline | asyncio.Future[Baseline]
    ) -> GuestSandbox:
        """A sandbox that is ready for calls; nothing is left of it where this raises."""
        sandbox = await self._launch(spec, start)
        try:
            said = await _introduce(sandbox, spec)
            if not sandbox.workspace_ready:
                await _send_in(sandbox, start)
                sandbox.workspace_ready = True
            await self._ready(sandbox, said)
            sandbox.journal = self._journal(sandbox)
            sandbox.baseline = baseline if isinstance(baseline, Baseline) else await baseline
        except BaseException as error:
            await asyncio.shield(sandbox.shut())
            if isinstance(error, (SandboxBroken, Refused)):
                raise SandboxUnavailable(f"a sandbox of the {self.name} backend could not be opened: {error}") from error
            raise
        return sandbox

    async def _aclose(self, sandbox: BackendSandbox) -> None:
        guest = self._own(sandbox)
        guest.channel.close()
        try:
            await self._leave(guest)
        finally:
            if guest.baseline.path is not None:
                await tidy(guest.baseline.drop)

    async def _leave(self, sandbox: GuestSandbox) -> None:
        """:meth:`_stop`, and what is noted of the sandbox goes too."""
        try:
            if sandbox.journal is not None:
                sandbox.journal.finish()
        finally:
            await self._stop(sandbox)
        if sandbox.journal is not None:
            sandbox.journal.close()

    def _journal(self, sandbox: GuestSandbox) -> Journal | None:
        record = self._record(sandbox)
        if record is None:
            return None
        try:
            return Journal(owner(names_things=False), record)
        except SandboxUnavailable as error:  # nobody will see it in a list; that is all
            _log.warning("sandbox %s is not noted for `rath sandbox ps`: %s", sandbox.handle, error)
            return None

    def _own(self, sandbox: BackendSandbox) -> GuestSandbox:
        if not isinstance(sandbox, GuestSandbox):
            raise UsageTypeError(f"sandbox {sandbox.handle} was not opened by the {self.name} backend")
        return sandbox

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _adispatch(self, sandbox: BackendSandbox, call: BackendTool) -> ToolResult | bool:
        guest = self._own(sandbox)
        begun = time.monotonic()
        result: ToolResult | bool | None = None
        try:
            result = await self._answer(guest, call)
        except Refused as refused:
            result = ToolExecutionFailure(refused.kind, refused.message)
        finally:
            if guest.journal is not None:
                guest.journal.note(call, result, begun)
        return result

    async def _answer(self, guest: GuestSandbox, call: BackendTool) -> ToolResult | bool:
        match call:
            case BackendToolCommandRun():
                return await commands.run_command(guest.channel, call, guest.timeout_s)
            case BackendToolCodeRun():
                return await _run_code(guest, call)
            case BackendToolFilesRead():
                return await files.read(guest.channel, call)
            case BackendToolFilesWrite():
                return await files.write(guest.channel, call)
            case BackendToolFilesList():
                return await files.list_directory(guest.channel, call)
            case BackendToolFilesExists():
                return await files.exists(guest.channel, call)
            case _:
                raise UnsupportedBackendTool(type(call), self.name)

    async def _aupload(self, sandbox: BackendSandbox, host_path: str, path: str) -> None:
        await transfer.upload(self._own(sandbox).channel, host_path, path)

    async def _adownload(self, sandbox: BackendSandbox, path: str, host_path: str) -> None:
        await transfer.download(self._own(sandbox).channel, path, host_path)

    # -- branching and comparing --------------------------------------------------------------------------------------

    def _shares_files(self, spec: BackendSandboxSpec | None) -> bool:
        return spec is not None and spec.workspace_mode == "bind"

    async def _asnapshot(self, sandbox: BackendSandbox, layer: str) -> object:
        guest = self._own(sandbox)
        kept = await self._freeze(guest, layer)
        if kept is None:
            kept = await spool(guest.channel)
        return GuestSnapshot(kept, guest.baseline.share())

    async def _aclone(self, snapshot: object) -> object:
        return _snapshot(snapshot, self.name).share()

    async def _arestore(self, spec: BackendSandboxSpec | None, snapshot: object) -> BackendSandbox:
        source = _snapshot(snapshot, self.name)
        baseline = source.baseline.share()
        try:
            sandbox = await self._begin(self._check_spec(spec), Start("snapshot", kept=source.kept), baseline)
        except BaseException:
            await asyncio.shield(tidy(baseline.drop))
            raise
        await source.discard()
        return sandbox

    async def _adiscard(self, snapshot: object) -> None:
        if isinstance(snapshot, GuestSnapshot):
            await snapshot.discard()

    async def _adiff(self, sandbox: BackendSandbox) -> WorkspaceDiff:
        guest = self._own(sandbox)
        return await changes(guest.channel, guest.baseline)


async def _run_code(sandbox: GuestSandbox, call: BackendToolCodeRun) -> ToolResult:
    language = call.language.strip().lower()
    if language in ("python", "python3"):
        return await sandbox.interpreter.run(call, sandbox.timeout_s)
    return await commands.run_script(sandbox.channel, call, language, sandbox.python, sandbox.timeout_s)


async def _introduce(sandbox: GuestSandbox, spec: BackendSandboxSpec) -> dict[str, str]:
    channel, config = sandbox.channel, sandbox.config
    hello = await channel.hello(HELLO_S)
    env = {**BASE_ENV, "HOME": config.workspace, **(config.env or {}), **(spec.env or {})}
    sandbox.config = GuestConfig(
        config.workspace, config.uid, config.gid, commands.checked_env(env), config.mode, config.mark, config.keep_bytes
    )
    return {**hello, **await channel.configure(sandbox.config, HELLO_S)}


async def _send_in(sandbox: GuestSandbox, start: Start) -> None:
    if start.kind == "copy" and start.path is not None:
        await transfer.upload(sandbox.channel, start.path, ".")
    elif isinstance(start.kept, Spooled):
        await transfer.send_archive(sandbox.channel, start.kept.path, ".")
    elif start.kind != "empty":
        raise SandboxError(f"the {start.kind} of files for sandbox {sandbox.handle} is missing: a fault of its backend")


def _baseline_of(path: str) -> Baseline:
    try:
        root = Confined(path)
    except OSError as error:
        raise SandboxUnavailable(
            f"workspace {path!r} cannot be used: {error.strerror}. Name a directory that is there"
        ) from error
    try:
        return Baseline.of(root)
    finally:
        root.close()


def _drop_baseline(reading: asyncio.Future[Baseline]) -> None:
    if not reading.cancelled() and reading.exception() is None:
        baseline = reading.result()
        ports.engine().start(lambda: tidy(baseline.drop))


def _snapshot(snapshot: object, name: str) -> GuestSnapshot:
    if not isinstance(snapshot, GuestSnapshot):
        raise UsageTypeError(f"a snapshot of the {name} backend is needed, not {type(snapshot).__name__}")
    return snapshot
