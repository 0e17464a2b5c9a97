"""The ``local`` backend: the host itself. Opt-in by name, and no isolation: a command can do whatever its user can.

What it does promise: file tools stay in the workspace, commands get none of the host's environment but
``PATH HOME LANG TERM``, output is bounded, a timeout, a cancellation and a close kill whole process trees, and no directory
is ever deleted but those that this backend made itself, whatever stands at their path by then.

Commands carry two variables by which their processes are found, ``RATH_CALL`` and ``RATH_SANDBOX``;
:mod:`rath.backend.local_kill` says who escapes a kill all the same. What a call leaves in the background may go on until
the sandbox closes.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, TypeVar
from weakref import WeakSet

from rath.backend import local_files
from rath.backend.answers import content, exit_status, output_so_far
from rath.backend.closing import ending
from rath.backend.code import command_for
from rath.backend.host.diff import Baseline, compare
from rath.backend.host.own import own_directory, remove_own, sweep_leftovers_once
from rath.backend.host.paths import DIRECTORY, Confined, Refused
from rath.backend.local_kill import ProcessGroups
from rath.backend.local_process import Ended, run_process
from rath.backend.local_start import Snapshot, copy_directory, enter_directory
from rath.backend.local_transfer import copy_in, copy_out
from rath.backend.spec import host_workspace, refuse_unsupported
from rath.backend.types import (
    Backend,
    BackendSandbox,
    BackendSandboxSpec,
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
    IsolationLevel,
    ToolExecutionFailure,
    ToolResult,
    WorkspaceDiff,
)
from rath.core import ports
from rath.errors import (
    SandboxBroken,
    SandboxClosed,
    SandboxError,
    UnsupportedBackendTool,
    UsageTypeError,
)
from rath.utils.decoding import decode_subprocess_output

__all__ = ["LocalBackend"]

T = TypeVar("T")
SPEC_FIELDS = frozenset({"env", "timeout", "working_dir", "workspace", "workspace_mode"})
HOST_VARIABLES = ("PATH", "HOME", "LANG", "TERM")
INLINE_BYTES = 256 * 1024
CLOSE_S = 1.0
FOREVER_S = 1e8  # years: no limit, and no number that a clock cannot take
# A directory's descriptor as a path: the one way to start a process in just the directory that was checked.
_DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else None


class _Workspace:
    """What an open sandbox consists of."""

    def __init__(self, root: Confined, own: bool, baseline: Baseline, spec: BackendSandboxSpec | None) -> None:
        self.root = root
        self.own = own
        self.baseline = baseline
        self.env = {} if spec is None or spec.env is None else dict(spec.env)
        self.timeout_s = None if spec is None or spec.timeout is None else spec.timeout.total_seconds()
        self.groups = ProcessGroups()
        self.pid = os.getpid()
        self.users = 0
        self._lock = threading.Lock()
        _workspaces.add(self)

    @contextlib.contextmanager
    def used(self) -> Iterator[Confined]:
        """The directory, whose descriptor is not closed in this block."""
        with self._lock:
            self.users += 1
        try:
            yield self.root
        finally:
            with self._lock:
                self.users -= 1

    def remove(self) -> None:
        """Remove what is ours. Blocks."""
        if self.own:
            remove_own(self.root.path)
        self.baseline.drop()


_workspaces: WeakSet[_Workspace] = WeakSet()


@atexit.register
def _kill_what_is_left() -> None:
    """The last net, before the directories go: commands of sandboxes that nothing closed."""
    for workspace in list(_workspaces):
        if workspace.pid == os.getpid():
            workspace.groups.kill_all()


class LocalSandbox(BackendSandbox):
    """A sandbox of this backend; ``handle`` is the path of its workspace."""

    workspace: _Workspace


class LocalBackend(Backend):
    """Host processes in a directory: one of its own that is removed at the close, or one that the spec names.

    ``working_dir``, or ``workspace`` with ``workspace_mode="bind"``, is worked in; it is made if it is missing, which is
    logged (INFO), and never removed. ``workspace`` alone is copied, and the copy worked in. ``env`` is added to every
    command's environment. ``timeout`` is the default of each call. Every other field is refused: it cannot be honoured.
    """

    name: ClassVar[str] = "local"
    works_after_fork: ClassVar[bool] = True

    @classmethod
    def capabilities(cls) -> Capabilities:
        return Capabilities(
            isolation=IsolationLevel.PROCESS,
            supports_command=True,
            supports_filesystem=True,
            supports_code_interpreter=True,
            cold_start_ms_p50=1,
            supports_copy=True,
            spec_fields=SPEC_FIELDS,
        )

    @classmethod
    def is_available(cls) -> bool:
        return os.name == "posix"

    # -- open and close -----------------------------------------------------------------------------------------------

    async def _aopen(self, spec: BackendSandboxSpec | None = None) -> BackendSandbox:
        checked = refuse_unsupported(spec, self.name, SPEC_FIELDS)
        sweep_leftovers_once()
        path = host_workspace(checked)
        if path is None:
            root = Confined(own_directory())
            return self._sandbox(_Workspace(root, True, Baseline(), spec), spec)
        if _works_in_place(checked):
            root, baseline = await ports.engine().call(enter_directory, path)
            return self._sandbox(_Workspace(root, False, baseline, spec), spec)
        copy = await ports.engine().call(copy_directory, path)
        return self._sandbox(_Workspace(Confined(copy.path), True, copy.baseline, spec), spec)

    def _sandbox(self, workspace: _Workspace, spec: BackendSandboxSpec | None) -> BackendSandbox:
        sandbox = LocalSandbox(self, workspace.root.path, spec)
        sandbox.workspace = workspace
        return sandbox

    async def _aclose(self, sandbox: BackendSandbox) -> None:
        workspace = _workspace(sandbox)
        workspace.groups.kill_all()
        # Who was killed is gone in a moment, and so is the call that waited for it. What writes on would be in the way.
        for _ in range(int(CLOSE_S / 0.005)):
            if workspace.users == 0 and workspace.groups.empty:
                break
            await asyncio.sleep(0.005)
        if workspace.users == 0:  # else a thread still works with the descriptor, whose number must not get another meaning
            workspace.root.close()
        if workspace.own or workspace.baseline.path is not None:
            await _tidy(workspace.remove)

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _adispatch(self, sandbox: BackendSandbox, call: BackendTool) -> ToolResult | bool:
        workspace = _workspace(sandbox)
        _check_there(workspace)
        try:
            with workspace.used() as root:
                match call:
                    case BackendToolCommandRun():
                        return await _run_command(workspace, call)
                    case BackendToolCodeRun():
                        return await _run_code(workspace, call)
                    case BackendToolFilesRead():
                        return await _read(workspace, call)
                    case BackendToolFilesWrite():
                        write = (root, root.relative(call.path), call.data, call.mode)
                        if len(call.data) <= INLINE_BYTES:
                            return local_files.write_file(*write)
                        return await _in_thread(workspace, local_files.write_file, *write)
                    case BackendToolFilesList():
                        return await _in_thread(workspace, local_files.list_directory, root, call.path)
                    case BackendToolFilesExists():
                        return local_files.exists(root, root.relative(call.path))
                    case _:
                        raise UnsupportedBackendTool(type(call), self.name)
        except Refused as refused:
            return ToolExecutionFailure(refused.kind, refused.message)
        except OSError as error:
            _check_there(workspace)
            what = getattr(call, "path", None) or getattr(call, "cwd", None) or "."
            return ToolExecutionFailure(local_files.failure_kind(error), f"{error.strerror or error}: {what!r}")

    # -- branching and comparing --------------------------------------------------------------------------------------

    def _shares_files(self, spec: BackendSandboxSpec | None) -> bool:
        return spec is not None and _works_in_place(spec)

    async def _asnapshot(self, sandbox: BackendSandbox, layer: str) -> object:
        workspace = _workspace(sandbox)
        _check_there(workspace)
        stop = threading.Event()
        take = _in_thread(workspace, Snapshot.take, workspace.root, workspace.baseline, stop.is_set)
        taking = asyncio.ensure_future(take)
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:  # nobody wants it any more
            stop.set()
            with contextlib.suppress(SandboxError):
                await self._adiscard(await taking)
            raise

    async def _arestore(self, spec: BackendSandboxSpec | None, snapshot: object) -> BackendSandbox:
        if not isinstance(snapshot, Snapshot):
            raise UsageTypeError(f"a snapshot of the local backend is needed, not {type(snapshot).__name__}")
        refuse_unsupported(spec, self.name, SPEC_FIELDS)
        return self._sandbox(_Workspace(Confined(snapshot.path), True, snapshot.baseline, spec), spec)

    async def _aclone(self, snapshot: object) -> object:
        if not isinstance(snapshot, Snapshot):
            raise UsageTypeError(f"a snapshot of the local backend is needed, not {type(snapshot).__name__}")
        kept = Confined(snapshot.path)
        try:
            return await ports.engine().call(Snapshot.take, kept, snapshot.baseline, lambda: False)
        finally:
            kept.close()

    async def _adiscard(self, snapshot: object) -> None:
        if isinstance(snapshot, Snapshot):
            await _tidy(snapshot.discard)

    async def _adiff(self, sandbox: BackendSandbox) -> WorkspaceDiff:
        workspace = _workspace(sandbox)
        _check_there(workspace)
        return await _in_thread(workspace, compare, workspace.baseline, workspace.root)

    async def _aupload(self, sandbox: BackendSandbox, host_path: str, path: str) -> None:
        workspace = _workspace(sandbox)
        _check_there(workspace)
        await _in_thread(workspace, copy_in, workspace.root, host_path, path)

    async def _adownload(self, sandbox: BackendSandbox, path: str, host_path: str) -> None:
        workspace = _workspace(sandbox)
        _check_there(workspace)
        await _in_thread(workspace, copy_out, workspace.root, path, host_path)


def _workspace(sandbox: BackendSandbox) -> _Workspace:
    if not isinstance(sandbox, LocalSandbox):
        raise UsageTypeError(f"sandbox {sandbox.handle} was not opened by the local backend")
    return sandbox.workspace


def _works_in_place(spec: BackendSandboxSpec) -> bool:
    """Whether the workspace is the user's own directory, not a copy of it."""
    return spec.working_dir is not None or (spec.workspace is not None and spec.workspace_mode == "bind")


def _check_there(workspace: _Workspace) -> None:
    if not workspace.root.exists():
        raise SandboxBroken(
            f"the workspace {workspace.root.path} is gone: somebody removed or replaced the directory. "
            "Place the session again: session = session.to(...)"
        )


async def _tidy(function: Callable[..., None], *args: object) -> None:
    """Remove directories: in a thread, while there are threads."""
    if ending():
        function(*args)
    else:
        await ports.engine().call(function, *args)


async def _in_thread(workspace: _Workspace, function: Callable[..., T], *args: object) -> T:
    def work() -> T:
        with workspace.used():  # in the thread: it goes on when the waiting call is cancelled
            return function(*args)

    return await ports.engine().call(work)


async def _read(workspace: _Workspace, call: BackendToolFilesRead) -> ToolResult:
    root, relative = workspace.root, workspace.root.relative(call.path)
    if local_files.file_size(root, relative) <= INLINE_BYTES:
        data = local_files.read_bytes(root, relative)
    else:
        data = await _in_thread(workspace, local_files.read_bytes, root, relative)
    return content(data, call.encoding, relative)


async def _run_command(workspace: _Workspace, call: BackendToolCommandRun) -> ToolResult:
    argv = ["/bin/sh", "-c", call.cmd] if isinstance(call.cmd, str) else list(call.cmd)
    stdin = call.stdin.encode() if isinstance(call.stdin, str) else call.stdin
    ended = await _run(workspace, argv, env=call.env, cwd=call.cwd, stdin=stdin, timeout=call.timeout)
    if isinstance(ended, ToolExecutionFailure):
        return ended
    return CommandResult(
        exit_code=exit_status(ended.exit_code),
        stdout=ended.stdout.value(),
        stderr=ended.stderr.value(),
        elapsed_ms=ended.elapsed_s * 1000.0,
        stdout_bytes=ended.stdout.total,
        stderr_bytes=ended.stderr.total,
        truncated=ended.stdout.truncated or ended.stderr.truncated,
    )


async def _run_code(workspace: _Workspace, call: BackendToolCodeRun) -> ToolResult:
    command = command_for(call.language.strip().lower(), call.code, sys.executable or "python3")
    if command is None:
        return ToolExecutionFailure(
            "unsupported_tool", f"the local backend runs python and sh, not {call.language!r}. Use a command instead"
        )
    argv, stdin, has_value = command
    ended = await _run(workspace, argv, stdin=stdin, timeout=call.timeout, extra_pipe=has_value)
    if isinstance(ended, ToolExecutionFailure):
        return ended
    code, stderr = exit_status(ended.exit_code), ended.stderr.value()
    error = None if code == 0 else decode_subprocess_output(stderr).strip() or f"exit code {code}"
    text = decode_subprocess_output(ended.extra.value()) if ended.extra.total else None
    return CodeResult(text, ended.stdout.value(), stderr, error)


async def _run(
    workspace: _Workspace,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: bytes | None = None,
    timeout: float | None = None,
    extra_pipe: bool = False,
) -> Ended | ToolExecutionFailure:
    timeout_s = workspace.timeout_s if timeout is None else timeout
    if timeout_s is not None and not timeout_s > 0:
        raise Refused("invalid_tool_arguments", f"timeout={timeout_s!r}: a call needs more than 0 seconds")
    if not argv:
        raise Refused("invalid_tool_arguments", "cmd is empty: give a command line, or a program and its arguments")
    host = {name: os.environ[name] for name in HOST_VARIABLES if name in os.environ}
    with workspace.root.opened(workspace.root.relative(cwd or "."), DIRECTORY) as fd:
        try:
            ended = await run_process(
                argv,
                groups=workspace.groups,
                env={**host, **workspace.env, **(env or {})},
                cwd=f"{_DESCRIPTORS}/{fd}" if _DESCRIPTORS else os.path.join(workspace.root.real_path, cwd or "."),
                stdin=stdin,
                timeout_s=None if timeout_s is not None and timeout_s > FOREVER_S else timeout_s,
                extra_pipe=extra_pipe,
            )
        except (ValueError, TypeError) as error:  # a NUL character, "=" in a variable's name, something not a string
            raise Refused("invalid_tool_arguments", f"the command cannot be started: {error}") from None
        except OSError as error:
            raise Refused("os_error", f"{argv[0]!r} cannot be started: {error.strerror}") from None
    if ended.closed:
        raise SandboxClosed(f"sandbox {workspace.root.path} was closed while a command ran; the command was killed")
    if ended.timed_out:
        return ToolExecutionFailure(
            "timeout",
            f"timed out after {timeout_s:g} s; the command and everything it started were killed. The output so far is kept",
            output_so_far(ended.stdout.value(), ended.stderr.value()),
        )
    return ended
