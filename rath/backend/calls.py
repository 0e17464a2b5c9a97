"""The calls that a sandbox can run, its answers, and how backends and sandboxes are described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum

__all__ = [
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
    """Run a program given as text. ``timeout``: seconds, after which its whole process tree is killed."""

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
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    elapsed_ms: float
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    truncated: bool = False
    timed_out: bool = False


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
    """

    text: str | None
    stdout: bytes
    stderr: bytes
    error: str | None


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


# -- backends and their sandboxes -------------------------------------------------------------------------------------


@dataclass
class BackendSandboxSpec:
    """How to open a sandbox; ``None`` leaves a field to the backend.

    Args:
        image: what the file system starts as, for backends that have images.
        entrypoint: the sandbox's own main program, for backends that have one.
        env: environment variables of every command.
        timeout: how long a call may take that does not say so itself.
        working_dir: the workspace.
    """

    image: str | None = None
    entrypoint: Sequence[str] | None = None
    env: Mapping[str, str] | None = None
    timeout: timedelta | None = None
    working_dir: str | None = None


class IsolationLevel(str, Enum):
    """What stands between a sandbox and the host."""

    PROCESS = "process"
    CONTAINER = "container"
    MICROVM = "microvm"
    VM = "vm"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a kind of backend can do, on any machine.

    Args:
        cold_start_ms_p50: the median time to open a sandbox, in milliseconds.
        max_sandboxes: how many may be open at once; ``None`` for no limit.
    """

    isolation: IsolationLevel
    supports_command: bool
    supports_filesystem: bool
    supports_code_interpreter: bool
    cold_start_ms_p50: int | None = None
    max_sandboxes: int | None = None
