"""The tools that every run has: commands, files and code in the session's sandbox, and reading on in a result that was cut.

Each comes twice: as a tool for the model (``FlowTool…``) and as a function for you (``flow_tool_…``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from rath.backend.types import (
    BackendTool,
    BackendToolCodeRun,
    BackendToolCommandRun,
    BackendToolFilesExists,
    BackendToolFilesList,
    BackendToolFilesRead,
    BackendToolFilesWrite,
)
from rath.flow.tool.base import (
    FlowToolCall,
    InvalidToolArguments,
    SandboxTool,
    check_names,
    file_key,
    object_schema,
    optional_seconds,
    optional_text,
    required_path,
    required_text,
)
from rath.flow.tool.result import FlowToolResultRead
from rath.session.session import Session

__all__ = [
    "FlowToolCodeRun",
    "FlowToolCommandRun",
    "FlowToolFilesExists",
    "FlowToolFilesList",
    "FlowToolFilesRead",
    "FlowToolFilesWrite",
    "flow_tool_code_run",
    "flow_tool_command_run",
    "flow_tool_files_exists",
    "flow_tool_files_list",
    "flow_tool_files_read",
    "flow_tool_files_write",
    "global_system_tools",
]

# Linux takes 131,072 bytes in one argument of a process; backends may wrap the command in a few of their own.
MAX_COMMAND_BYTES = 128_000


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


_PATH = "Path of the {}, relative to the workspace."
_TIMEOUT = {"type": "number", "description": "Kill it after this many seconds."}


class _SystemTool(SandboxTool):
    NAME: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    PARAMETERS: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.NAME

    @property
    def description(self) -> str | None:
        return self.DESCRIPTION

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self.PARAMETERS

    def request(self, arguments: Mapping[str, Any]) -> BackendTool:
        check_names(arguments, self.PARAMETERS["properties"])
        return self._request(arguments)

    @abstractmethod
    def _request(self, arguments: Mapping[str, Any]) -> BackendTool:
        """:meth:`request`, of arguments whose names are known."""


class FlowToolCommandRun(_SystemTool):
    """``run_shell_command(cmd, timeout=None, cwd=None)``: one line or many, in the sandbox's shell."""

    NAME = "run_shell_command"
    DESCRIPTION = (
        "Run a shell command in the workspace and return its exit code, stdout and stderr. "
        "Pipes, redirections and several lines are fine; interactive programs are not: there is no terminal."
    )
    PARAMETERS = object_schema(
        {"cmd": _text("The command, as for sh -c.")},
        {"timeout": _TIMEOUT, "cwd": _text("Directory to run it in, relative to the workspace.")},
    )

    def resource_key(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exec",)

    def _request(self, arguments: Mapping[str, Any]) -> BackendTool:
        cmd = required_text(arguments, "cmd", empty=False)
        if "\0" in cmd:
            raise InvalidToolArguments("argument 'cmd' holds a NUL character, which no command can")
        size = len(cmd.encode())
        if size > MAX_COMMAND_BYTES:
            raise InvalidToolArguments(
                f"argument 'cmd' has {size:,} bytes; at most {MAX_COMMAND_BYTES:,} are possible. "
                "Write a script with write_workspace_file and run that"
            )
        cwd = None if arguments.get("cwd") is None else required_path(arguments, "cwd")
        return BackendToolCommandRun(cmd=cmd, cwd=cwd, timeout=optional_seconds(arguments, "timeout"))


class FlowToolFilesRead(_SystemTool):
    """``read_workspace_file(path, encoding="utf-8")``: a file's text."""

    NAME = "read_workspace_file"
    DESCRIPTION = "Read a text file of the workspace. Long files are cut in the middle: then read on with result_read."
    PARAMETERS = object_schema(
        {"path": _text(_PATH.format("file"))}, {"encoding": _text("Its text encoding; utf-8 by default.")}
    )
    parallel_safe = True
    idempotent = True

    def resource_key(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        return file_key(arguments)

    def _request(self, arguments: Mapping[str, Any]) -> BackendTool:
        path = required_path(arguments, "path")
        encoding = optional_text(arguments, "encoding", "utf-8")
        try:
            " ".encode(encoding)
        except (LookupError, ValueError):
            raise InvalidToolArguments(
                f"argument 'encoding': {encoding!r} is not a text encoding that Python knows"
            ) from None
        return BackendToolFilesRead(path=path, encoding=encoding)


class FlowToolFilesWrite(_SystemTool):
    """``write_workspace_file(path, content)``: a file with this text, in place of what was there; its permissions stay."""

    NAME = "write_workspace_file"
    DESCRIPTION = "Write a text file into the workspace, replacing it if it exists."
    PARAMETERS = object_schema({"path": _text(_PATH.format("file")), "content": _text("The whole text of the file.")})
    parallel_safe = True

    def resource_key(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        return file_key(arguments)

    def _request(self, arguments: Mapping[str, Any]) -> BackendTool:
        path, content = required_path(arguments, "path"), required_text(arguments, "content")
        return BackendToolFilesWrite(path=path, data=content)


class FlowToolFilesList(_SystemTool):
    """``list_workspace_files(path)``: the entries of a directory."""

    NAME = "list_workspace_files"
    DESCRIPTION = "List the files and directories in a directory of the workspace (not in those below it)."
    PARAMETERS = object_schema({"path": _text(_PATH.format("directory") + " . is the workspace itself.")})
    parallel_safe = True
    idempotent = True

    def resource_key(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        return file_key(arguments)

    def _request(self, arguments: Mapping[str, Any]) -> BackendTool:
        return BackendToolFilesList(path=required_path(arguments, "path"))


class FlowToolFilesExists(_SystemTool):
    """``workspace_path_exists(path)``: whether there is a file or directory."""

    NAME = "workspace_path_exists"
    DESCRIPTION = "Tell whether a file or directory exists in the workspace."
    PARAMETERS = object_schema({"path": _text(_PATH.format("file or directory"))})
    parallel_safe = True
    idempotent = True

    def resource_key(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        return file_key(arguments)

    def _request(self, arguments: Mapping[str, Any]) -> BackendTool:
        return BackendToolFilesExists(path=required_path(arguments, "path"))


class FlowToolCodeRun(_SystemTool):
    """``run_code(code, language="python", timeout=None)``: its output and last value."""

    NAME = "run_code"
    DESCRIPTION = (
        "Run code in the workspace and return its stdout, stderr, the value of its last expression as text, "
        "and the error if it failed. Where the sandbox can, python keeps its variables from call to call."
    )
    PARAMETERS = object_schema(
        {"code": _text("The source code.")},
        {"language": _text("python (the default), python-script (a fresh process each time) or sh."), "timeout": _TIMEOUT},
    )

    def resource_key(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        return ("code",)

    def _request(self, arguments: Mapping[str, Any]) -> BackendTool:
        return BackendToolCodeRun(
            code=required_text(arguments, "code", empty=False),
            language=optional_text(arguments, "language", "python"),
            timeout=optional_seconds(arguments, "timeout"),
        )


_SYSTEM_TOOLS: Mapping[str, FlowToolCall] = MappingProxyType(
    {
        made.name: made
        for made in (
            FlowToolCommandRun(),
            FlowToolFilesRead(),
            FlowToolFilesWrite(),
            FlowToolFilesList(),
            FlowToolFilesExists(),
            FlowToolCodeRun(),
            FlowToolResultRead(),
        )
    }
)


def global_system_tools() -> Mapping[str, FlowToolCall]:
    """The seven built-in tools by name: the same objects at every call; the mapping cannot be changed."""
    return _SYSTEM_TOOLS


# -- the same operations for people --------------------------------------------------------------------------
# Each opens the session's sandbox if need be and waits. ``SandboxError`` when the session is not placed; what
# fails inside the sandbox comes back as a ``ToolExecutionFailure``.


def flow_tool_command_run(
    session: Session,
    cmd: str | Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin: bytes | None = None,
    timeout: float | None = None,
) -> Any:
    """A ``CommandResult``: exit code, output as bytes, time in milliseconds.

    Args:
        cmd: a command line for the shell, or a program and its arguments.
        timeout: seconds, after which the whole process tree is killed.
    """
    request = BackendToolCommandRun(cmd=cmd, env=env, cwd=cwd, stdin=stdin, timeout=timeout)
    return session.require_sandbox().dispatch(request)


def flow_tool_files_read(session: Session, path: str, *, encoding: str | None = "utf-8") -> Any:
    """A ``FileContent``: text, or bytes when ``encoding`` is ``None``."""
    return session.require_sandbox().dispatch(BackendToolFilesRead(path=path, encoding=encoding))


def flow_tool_files_write(session: Session, path: str, data: bytes | str, *, mode: int = 0o644) -> Any:
    """A ``FileWriteResult`` with the number of bytes written.

    Args:
        mode: the file's permissions. The default is for a new file: one that is there keeps its own. Any other mode is
            set in either case.
    """
    return session.require_sandbox().dispatch(BackendToolFilesWrite(path=path, data=data, mode=mode))


def flow_tool_files_list(session: Session, path: str) -> Any:
    """A ``FileEntries``: name, path and is_dir of each entry."""
    return session.require_sandbox().dispatch(BackendToolFilesList(path=path))


def flow_tool_files_exists(session: Session, path: str) -> Any:
    """Whether ``path`` exists in the sandbox."""
    return session.require_sandbox().dispatch(BackendToolFilesExists(path=path))


def flow_tool_code_run(session: Session, code: str, *, language: str = "python", timeout: float | None = None) -> Any:
    """A ``CodeResult``: text, stdout, stderr, error.

    Args:
        timeout: seconds, after which the whole process tree is killed.
    """
    request = BackendToolCodeRun(code=code, language=language, timeout=timeout)
    return session.require_sandbox().dispatch(request)
