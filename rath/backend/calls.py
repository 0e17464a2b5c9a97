"""The calls that a sandbox can run, its answers, and how backends are described."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from rath.core import ports

__all__ = [
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
    "checked_call",
]

NEW_FILE_MODE = 0o644
"""The permissions of a file that a write makes, unless it says otherwise. A file that is there keeps its own."""


# -- what is asked ----------------------------------------------------------------------------------------------------


class BackendTool:
    """A call that a sandbox can run. Base of the kinds below."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class BackendToolCommandRun(BackendTool):
    """Run a command: a line for the shell, or a program and its arguments.

    Args:
        env: variables added to the sandbox's own.
        cwd: directory in the workspace; the workspace itself by default.
        stdin: what the command reads; by default its input is empty.
        timeout: seconds, after which its whole process tree is killed.
    """

    cmd: str | Sequence[str]
    env: Mapping[str, str] | None = None
    cwd: str | None = None
    stdin: bytes | None = None
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class BackendToolFilesRead(BackendTool):
    """Read a file: text in ``encoding``, or bytes if that is ``None``."""

    path: str
    encoding: str | None = "utf-8"


@dataclass(frozen=True, slots=True)
class BackendToolFilesWrite(BackendTool):
    """Write a file, whole and at once, in place of what was there; text as UTF-8. Makes missing directories.

    Args:
        mode: the file's permissions. The default, ``0o644``, is for a file that is new: one that is there keeps its own.
            Any other mode is set in either case.
    """

    path: str
    data: bytes | str
    mode: int = NEW_FILE_MODE


@dataclass(frozen=True, slots=True)
class BackendToolFilesList(BackendTool):
    """List a directory, sorted by name; not what is below."""

    path: str


@dataclass(frozen=True, slots=True)
class BackendToolFilesExists(BackendTool):
    """Ask whether there is anything at a path. Answers with a plain ``bool``."""

    path: str


@dataclass(frozen=True, slots=True)
class BackendToolCodeRun(BackendTool):
    """Run a program given as text.

    Args:
        language: ``"python"``: in the sandbox's own interpreter, where it has one that keeps its state between calls (see
            ``Capabilities.keeps_state``), else in a fresh process; ``"python-script"``: always in a fresh process; ``"sh"``.
        timeout: seconds, after which its whole process tree is killed, the interpreter and its state with it.
    """

    code: str
    language: str = "python"
    timeout: float | None = None


# -- what is answered -------------------------------------------------------------------------------------------------


class ToolResult:
    """An answer to a call. Base of the kinds below."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class CommandResult(ToolResult):
    """A command that ended.

    Args:
        exit_code: 128 + N if signal N ended it.
        stdout: what it wrote; where there was too much, its head and tail around a line that says how much is missing.
        elapsed_ms: from start to end, in milliseconds.
        stdout_bytes: how much it wrote in all, exactly; ``None`` if the backend does not count.
        truncated: whether anything is missing from ``stdout`` or ``stderr``.
        timed_out: whether it was ended for taking too long.
        oom_killed: whether the sandbox ran out of memory and the kernel ended it for that.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    elapsed_ms: float
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    truncated: bool = False
    timed_out: bool = False
    oom_killed: bool = False


@dataclass(frozen=True, slots=True)
class FileContent(ToolResult):
    """A file's content: ``str`` if an encoding was given, else ``bytes``."""

    data: bytes | str


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One entry of a directory; ``path`` is what to pass to reach it."""

    name: str
    path: str
    is_dir: bool


@dataclass(frozen=True, slots=True)
class FileEntries(ToolResult):
    """A directory's entries, sorted by name."""

    entries: tuple[FileEntry, ...]


@dataclass(frozen=True, slots=True)
class FileWriteResult(ToolResult):
    """How many bytes were written."""

    bytes_written: int


@dataclass(frozen=True, slots=True)
class CodeResult(ToolResult):
    """A program that ended.

    Args:
        text: the value of its last expression, as Python's ``repr`` shows it; ``None`` if there is none.
        error: why it failed (its traceback, where it has one); ``None`` if it did not.
        figures: what it drew, as PNG files, where the interpreter has matplotlib.
        restarted: whether the state of earlier calls is gone, because the interpreter had to be started anew.
    """

    text: str | None
    stdout: bytes
    stderr: bytes
    error: str | None
    figures: tuple[bytes, ...] = ()
    restarted: bool = False


@dataclass(frozen=True, slots=True)
class ToolExecutionFailure(ToolResult):
    """The call could not be done, and the sandbox is as good as before.

    Args:
        kind: ``timeout``, ``file_not_found``, ``is_directory``, ``not_a_directory``, ``not_a_file``,
            ``path_outside_workspace``, ``file_too_large``, ``decode_error``, ``encode_error``, ``os_error``,
            ``invalid_tool_arguments``, ``unsupported_tool``; a backend may have more.
        message: what happened, in a sentence.
        detail: more: after a timeout, the output so far.
    """

    kind: str
    message: str
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class WorkspaceDiff:
    """What changed in a workspace since its start. True if anything did; as text, a unified diff in git's form.

    Args:
        text: the changes of text files; of binary ones a line each.
        added: paths, relative to the workspace, sorted; so in the other fields.
        binary: those of the changed files that are not text, or too large to show.
    """

    text: str
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    binary: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.modified)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """What Jupyter shows: the diff as far as a cell can hold it, as text and HTML."""
        bundle: dict[str, Any] = ports.load("display", "workspace_diff_bundle")(self, include, exclude)
        return bundle

    def _repr_html_(self) -> str:
        """The diff as HTML."""
        html: str = ports.load("display", "workspace_diff_html")(self)
        return html


# -- backends and their sandboxes -------------------------------------------------------------------------------------


class IsolationLevel(str, Enum):
    """What stands between a sandbox and the host."""

    PROCESS = "process"
    CONTAINER = "container"
    MICROVM = "microvm"
    VM = "vm"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a kind of backend, or one sandbox, can do.

    Args:
        supports_copy: whether a workspace can be copied: ``fork(sandbox="copy")``, ``snapshot``.
        kills_exactly: whether a timeout or a cancellation ends everything that the call started and nothing else, whatever
            it did to hide. False: a process that left its session, its parents and its environment may live until the close.
        keeps_state: whether ``language="python"`` runs in one interpreter that lives between calls.
        spec_fields: the fields of :class:`BackendSandboxSpec` that it honours; others are refused.
        cold_start_ms_p50: the median time to open a sandbox, in milliseconds.
        max_sandboxes: how many may be open at once; ``None`` for no limit.
    """

    isolation: IsolationLevel
    supports_command: bool
    supports_filesystem: bool
    supports_code_interpreter: bool
    cold_start_ms_p50: int | None = None
    max_sandboxes: int | None = None
    supports_copy: bool = False
    kills_exactly: bool = False
    keeps_state: bool = False
    spec_fields: frozenset[str] = frozenset()


# -- whether a call can be one ---------------------------------------------------------------------------------------


class _Wrong(Exception):
    """The kind of failure, and its message."""


def checked_call(call: BackendTool) -> BackendTool | ToolExecutionFailure:
    """``call``, its bytes as ``bytes``; or the answer to one with an argument of a type that it cannot have.

    So no backend meets any. What the type does not tell (a NUL in a path) is left to them.
    """
    try:
        return _checked(call)
    except _Wrong as wrong:
        return ToolExecutionFailure(*wrong.args)


def _checked(call: BackendTool) -> BackendTool:
    match call:
        case BackendToolCommandRun():
            _check_command(call.cmd, call.env, call.cwd)
            _check_timeout(call.timeout)
            stdin = None if call.stdin is None else _data("stdin", call.stdin)
            return call if stdin is call.stdin else replace(call, stdin=stdin)
        case BackendToolCodeRun():
            _check_text("code", call.code)
            _check_text("language", call.language)
            _check_timeout(call.timeout)
        case BackendToolFilesRead():
            _check_text("path", call.path)
            if call.encoding is not None:
                _check_text("encoding", call.encoding)
        case BackendToolFilesWrite():
            _check_text("path", call.path)
            _check_mode(call.mode)
            data = call.data if isinstance(call.data, str) else _data("data", call.data)
            return call if data is call.data else replace(call, data=data)
        case BackendToolFilesList() | BackendToolFilesExists():
            _check_text("path", call.path)
    return call


def _check_command(cmd: Any, env: Any, cwd: Any) -> None:
    if isinstance(cmd, (bytes, bytearray, memoryview, Mapping)) or not isinstance(cmd, Iterable):
        raise _wrong("cmd", "a command line, or a list of a program and its arguments", cmd)
    if env is not None and not isinstance(env, Mapping):
        raise _wrong("env", "a dict of names and values", env)
    if cwd is not None:
        _check_text("cwd", cwd)


def _check_text(name: str, given: Any) -> None:
    if not isinstance(given, str):
        raise _wrong(name, "a string", given)


def _check_mode(mode: Any) -> None:
    if not isinstance(mode, int):
        raise _wrong("mode", "a number, such as 0o755", mode)


def _check_timeout(timeout: Any) -> None:
    if timeout is not None and not isinstance(timeout, (int, float)):
        raise _wrong("timeout", "a number of seconds", timeout)


def _data(name: str, given: Any) -> bytes:
    if isinstance(given, bytes):
        return given
    if isinstance(given, (bytearray, memoryview)):
        return bytes(given)
    if not isinstance(given, str):
        raise _wrong(name, "bytes or text", given)
    try:
        return given.encode()
    except UnicodeEncodeError:
        raise _Wrong("encode_error", f"{name} holds half of a surrogate pair, which UTF-8 cannot encode") from None


def _wrong(name: str, wanted: str, given: Any) -> _Wrong:
    return _Wrong("invalid_tool_arguments", f"{name} is {wanted}; not {type(given).__name__}")
