"""Exec mode: sandboxes of images that have ``sh`` but no Python for the guest. Slower, and with less to promise.

Every call is an *exec* of the engine (50 to 80 ms, one after the other in a container), running one of the scripts of
:mod:`rath.backend.docker.exec_scripts` as the unprivileged user. The main process is a shell that waits for the end of its
input, so the container still dies with its owner. What does not hold here, and ``capabilities()`` says so:

- a timeout or cancellation finds processes by a variable in their environment; one that cleared it lives until the close;
- there are no copies of the workspace, no diff, no persistent interpreter, no verdict on running out of memory;
- a path is looked up and then used: a command that swaps a link in between may redirect it, within the sandbox.
"""

from __future__ import annotations

import asyncio
import posixpath
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from rath.backend.answers import MAX_READ_BYTES, content, output_so_far, too_large
from rath.backend.calls import (
    NEW_FILE_MODE,
    BackendTool,
    BackendToolCodeRun,
    BackendToolCommandRun,
    BackendToolFilesExists,
    BackendToolFilesList,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    CodeResult,
    CommandResult,
    FileEntries,
    FileEntry,
    FileWriteResult,
    ToolExecutionFailure,
    ToolResult,
)
from rath.backend.docker import exec_scripts as scripts
from rath.backend.docker.carrier import connect
from rath.backend.docker.container import Identity
from rath.backend.docker.engine import DockerEngine, EngineRefusal, NotThere
from rath.backend.docker.exec_streams import ExecStreams, Kept, MainStreams
from rath.backend.guest.commands import checked_env, limit_of
from rath.backend.guest.files import raw_path
from rath.backend.host.paths import Refused
from rath.errors import SandboxBroken, SandboxClosed, SandboxError, UnsupportedBackendTool

__all__ = ["ExecContainer"]

KEEP_BYTES = 4 << 20
KILL_S = 1.7
LAST_WORDS_S = 0.5
"""Streams end in the moment that their container does, but not in order."""

_REFUSALS = {
    "missing": ("file_not_found", "there is no {path!r}"),
    "outside": ("path_outside_workspace", "{path!r} leads out of the workspace"),
    "directory": ("is_directory", "{path!r} is a directory"),
    "not_directory": ("not_a_directory", "{path!r} is not a directory, or goes through something that is none"),
    "special": ("not_a_file", "{path!r} is not a regular file"),
    "circle": ("os_error", "{path!r}: too many levels of symbolic links"),
    "no_program": ("os_error", "the program cannot be started: it is not there, or not executable"),
}


class _TimedOut(Exception):
    def __init__(self, timeout_s: float, output: str) -> None:
        super().__init__(timeout_s, output)
        self.failure = ToolExecutionFailure(
            "timeout",
            f"timed out after {timeout_s:g} s; the command and what it started were killed. The output so far is kept",
            output,
        )


@dataclass(frozen=True, slots=True)
class _Ran:
    stdout: Kept
    stderr: Kept
    verdict: str
    elapsed_s: float


# -- the container ----------------------------------------------------------------------------------------------------


class ExecContainer:
    """A running container without a guest, and the calls that it can answer.

    Args:
        env: the variables of every command, the image's among them.
        timeout_s: the time limit of calls that have none of their own.
    """

    def __init__(
        self, engine: DockerEngine, id: str, who: Identity, env: Mapping[str, str], timeout_s: float | None
    ) -> None:
        self.id = id
        self._engine = engine
        self._user = f"{who.uid}:{who.gid}"
        self._env = dict(env)
        self._timeout_s = timeout_s
        self._main: MainStreams | None = None
        self._closing = False
        self.started = False
        self._answers: dict[type[BackendTool], Callable[..., Awaitable[ToolResult | bool]]] = {
            BackendToolCommandRun: self._command,
            BackendToolCodeRun: self._code,
            BackendToolFilesRead: self._read,
            BackendToolFilesWrite: self._write,
            BackendToolFilesList: self._list,
            BackendToolFilesExists: self._exists,
        }

    @staticmethod
    def command(who: Identity, *, give: bool) -> list[str]:
        """The main process of such a container. ``give``: whether it has to give the workspace to ``who``."""
        return ["/bin/sh", "-c", scripts.MAIN, "sh", f"{who.uid}:{who.gid}" if give else ""]

    async def begin(self, timeout_s: float) -> None:
        """Attach, start, and wait until the main process is ready.

        Raises:
            SandboxError: it ended, or is not ready in time.
        """
        self._main = await connect(await self._engine.attach(self.id), MainStreams())
        self.started = True
        await self._engine.start(self.id)
        async with asyncio.timeout(timeout_s):
            await self._main.ready
        if self._main.closed.done():
            said = self._main.said.decode("utf-8", "replace").strip()
            raise SandboxError(f"the container ended as soon as it was started: {said or 'it said nothing'}")

    @property
    def closed(self) -> asyncio.Future[None]:
        """Done when the container has ended."""
        assert self._main is not None
        return self._main.closed

    def end(self) -> None:
        """End the container: the end of its main process's input is its end."""
        self._closing = True
        if self._main is not None and self._main.transport is not None:
            self._main.transport.abort()

    async def answer(self, call: BackendTool, backend: str) -> ToolResult | bool:
        """Run a call.

        Raises:
            SandboxBroken: the container ended.
            UnsupportedBackendTool: this kind of call is not known.
        """
        answer = self._answers.get(type(call))
        if answer is None:
            raise UnsupportedBackendTool(type(call), backend)
        try:
            return await answer(call)
        except Refused as refused:
            return ToolExecutionFailure(refused.kind, refused.message)
        except _TimedOut as ended:
            return ended.failure

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _command(self, call: BackendToolCommandRun) -> ToolResult:
        argv = ["/bin/sh", "-c", call.cmd] if isinstance(call.cmd, str) else list(call.cmd)
        if not argv:
            raise Refused("invalid_tool_arguments", "cmd is empty: give a command line, or a program and its arguments")
        ran = await self._run(argv, env=call.env, cwd=call.cwd, stdin=call.stdin, timeout=call.timeout)
        return CommandResult(
            exit_code=int(ran.verdict),
            stdout=ran.stdout.value(),
            stderr=ran.stderr.value(),
            elapsed_ms=ran.elapsed_s * 1000,
            stdout_bytes=ran.stdout.total,
            stderr_bytes=ran.stderr.total,
            truncated=ran.stdout.truncated or ran.stderr.truncated,
        )

    async def _code(self, call: BackendToolCodeRun) -> ToolResult:
        if call.language.strip().lower() not in ("sh", "shell"):
            raise Refused("unsupported_tool", f"this sandbox's image has no Python: it runs sh, not {call.language!r}")
        ran = await self._run(["/bin/sh", "-c", call.code], timeout=call.timeout)
        stderr = ran.stderr.value()
        error = stderr.decode("utf-8", "replace").strip() or f"exit code {ran.verdict}"
        return CodeResult(None, ran.stdout.value(), stderr, None if ran.verdict == "0" else error)

    async def _run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bytes | str | None = None,
        timeout: float | None = None,
    ) -> _Ran:
        timeout_s = limit_of(timeout, self._timeout_s)
        given = stdin.encode() if isinstance(stdin, str) else stdin
        raw_path(cwd or ".")
        arguments = [scripts.path_below(cwd or "."), b"" if given is None else str(len(given)).encode(), *map(_bytes, argv)]
        variables = {**self._env, **checked_env(env or {})}
        ran = await self._script(scripts.RUN, arguments, given, variables, timeout_s, KEEP_BYTES)
        if not ran.verdict.isdigit():
            raise self._refused(ran, cwd or ".")
        return ran

    async def _read(self, call: BackendToolFilesRead) -> ToolResult:
        ran = await self._file(scripts.READ, call.path, str(MAX_READ_BYTES).encode(), keep=2 * MAX_READ_BYTES)
        return content(ran.stdout.value(), call.encoding, call.path)

    async def _write(self, call: BackendToolFilesWrite) -> ToolResult:
        try:
            data = call.data.encode() if isinstance(call.data, str) else bytes(call.data)
        except UnicodeEncodeError:
            raise Refused("encode_error", "the text holds half of a surrogate pair, which UTF-8 cannot encode") from None
        mode = b"" if call.mode == NEW_FILE_MODE else f"{call.mode & 0o777:o}".encode()
        await self._file(scripts.WRITE, call.path, mode, str(len(data)).encode(), stdin=data)
        return FileWriteResult(len(data))

    async def _list(self, call: BackendToolFilesList) -> ToolResult:
        ran = await self._file(scripts.LIST, call.path, keep=2 * MAX_READ_BYTES)
        entries = []
        for one in ran.stdout.value().split(b"\0")[:-1]:
            name = one[1:].decode("utf-8", "surrogateescape")
            entries.append(FileEntry(name, posixpath.normpath(posixpath.join(call.path, name)), one[:1] == b"d"))
        return FileEntries(tuple(sorted(entries, key=lambda entry: entry.name)))

    async def _exists(self, call: BackendToolFilesExists) -> ToolResult | bool:
        try:
            ran = await self._file(scripts.EXISTS, call.path, good=("0", "1"))
        except Refused as refused:
            if refused.kind in ("file_not_found", "not_a_directory"):
                return False
            raise
        return ran.verdict == "0"

    async def _file(
        self,
        text: str,
        path: str,
        *more: bytes,
        stdin: bytes | None = None,
        keep: int = KEEP_BYTES,
        good: tuple[str, ...] = ("0",),
    ) -> _Ran:
        raw_path(path)
        ran = await self._script(text, [scripts.path_below(path), *more], stdin, {"LC_ALL": "C"}, None, keep)
        if ran.verdict not in good:
            raise self._refused(ran, path)
        return ran

    def _refused(self, ran: _Ran, path: str) -> Refused:
        verdict = ran.verdict
        lexical = posixpath.normpath(posixpath.join("/workspace", path))
        if verdict == "missing" and lexical != "/workspace" and not lexical.startswith("/workspace/"):
            verdict = "outside"
        if verdict == "large":
            return too_large(path, f"more than {MAX_READ_BYTES:,}")
        if verdict in _REFUSALS:
            kind, message = _REFUSALS[verdict]
            return Refused(kind, message.format(path=path))
        reason = ran.stderr.value().decode("utf-8", "replace").strip()
        return Refused("os_error", f"{reason or 'it failed'}: {path!r}")

    # -- running a script ---------------------------------------------------------------------------------------------

    async def _script(
        self,
        text: str,
        arguments: Sequence[bytes],
        stdin: bytes | None,
        env: Mapping[str, str],
        timeout_s: float | None,
        keep: int,
    ) -> _Ran:
        if any(b"\0" in one for one in arguments):
            raise Refused("invalid_tool_arguments", "a NUL character cannot be passed to a program")
        nonce = secrets.token_hex(8)
        variables = [f"{name}={value}" for name, value in {**env, "RATH_CALL": nonce}.items()]
        command = scripts.script(text, nonce, arguments)
        begun = time.monotonic()
        started = asyncio.ensure_future(self._start(command, nonce, variables, keep))
        try:
            exec_ = await asyncio.shield(started)
        except asyncio.CancelledError:
            # It may start all the same, and nobody would end it.
            await asyncio.shield(self._end_unwanted(started, nonce))
            raise
        try:
            exec_.send(stdin)
            async with asyncio.timeout(timeout_s):
                await self._end_of(exec_)
        except TimeoutError:
            await self._kill(nonce)
            await asyncio.wait([exec_.ended], timeout=KILL_S)
            exec_.stdout.end()
            exec_.stderr.end()
            raise _TimedOut(timeout_s or 0, output_so_far(exec_.stdout.value(), exec_.stderr.value())) from None
        except asyncio.CancelledError:
            await asyncio.shield(self._kill(nonce))
            raise
        finally:
            exec_.close()
        if exec_.verdict is None:
            await self._check_alive()
        # Killed together with the script that would have told.
        return _Ran(exec_.stdout, exec_.stderr, exec_.verdict or "137", time.monotonic() - begun)

    async def _end_of(self, exec_: ExecStreams) -> None:
        """Wait until it has ended, or the container has: an engine does not always end the streams of what it stops."""
        await asyncio.wait([exec_.ended, self.closed], return_when=asyncio.FIRST_COMPLETED)
        if not exec_.ended.done():
            await asyncio.wait([exec_.ended], timeout=LAST_WORDS_S)

    async def _start(self, command: list[str], nonce: str, variables: list[str], keep: int) -> ExecStreams:
        try:
            sock = await self._engine.exec_stream(self.id, command, user=self._user, env=variables)
        except (NotThere, EngineRefusal) as error:
            await self._check_alive()
            raise Refused("os_error", f"the command could not be started: {error}") from None
        return await connect(sock, ExecStreams(nonce, keep))

    async def _check_alive(self) -> None:
        """Raise if the container has ended: its streams end in the same moment, but not in order."""
        await asyncio.wait([self.closed], timeout=LAST_WORDS_S)
        if self._closing:
            raise SandboxClosed(f"sandbox {self.id[:12]} was closed while a call ran")
        if self.closed.done():
            raise SandboxBroken(f"sandbox {self.id[:12]} ended under a call, whose outcome is unknown")

    async def _end_unwanted(self, started: asyncio.Future[ExecStreams], nonce: str) -> None:
        try:
            exec_ = await started
        except (Refused, SandboxError):
            return
        await self._kill(nonce)
        exec_.close()

    async def _kill(self, nonce: str) -> None:
        """End what carries this nonce; if that cannot be done in time, end the container."""
        try:
            async with asyncio.timeout(KILL_S):
                command = ["/bin/sh", "-c", scripts.KILL, "sh", nonce]
                sock = await self._engine.exec_stream(self.id, command, user=self._user, env=["LC_ALL=C"])
                killer = await connect(sock, ExecStreams(nonce, KEEP_BYTES))
                await killer.ended
        except (TimeoutError, SandboxError):
            self.end()
            raise SandboxBroken(
                f"sandbox {self.id[:12]}: a command could not be ended in time, so the whole sandbox was ended"
            ) from None


def _bytes(argument: str) -> bytes:
    if not isinstance(argument, str):
        raise Refused("invalid_tool_arguments", f"an argument of a command is a string, not {type(argument).__name__}")
    try:
        return argument.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise Refused("invalid_tool_arguments", f"the command cannot be started: {error}") from None
