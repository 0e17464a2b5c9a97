"""Editing a file by replacing a piece of its text: what a coding agent does most."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rath.backend.types import (
    BackendSandbox,
    BackendToolCommandRun,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    CommandResult,
    FileContent,
    FileWriteResult,
)
from rath.errors import ToolError
from rath.flow.tool.base import (
    FlowToolCall,
    InvalidToolArguments,
    check_names,
    file_key,
    object_schema,
    optional_flag,
    required_path,
    required_text,
)
from rath.session.session import Session

__all__ = ["FlowToolFilesEdit", "coding_tools"]

_PARAMETERS = object_schema(
    {
        "path": {"type": "string", "description": "Path of the file, relative to the workspace."},
        "old": {
            "type": "string",
            "description": "The text to replace, exactly as it stands in the file, indentation included. "
            "It must occur once: take in enough lines around it.",
        },
        "new": {"type": "string", "description": "The text to put there. Empty to delete."},
    },
    {"replace_all": {"type": "boolean", "description": "Replace every occurrence. False by default."}},
)
_SHOWN_LINES = 10
# Asks GNU's or BusyBox' stat for the mode, then BSD's. "$1" keeps the path out of the shell's grammar.
_STAT = 'stat -L -c %a -- "$1" 2>/dev/null || stat -L -f %Lp -- "$1"'
_DEFAULT_MODE = 0o644


class FlowToolFilesEdit(FlowToolCall):
    """``edit_workspace_file(path, old, new, replace_all=False)``: replaces a string that occurs exactly once.

    Line endings, a byte order mark, bytes that are not UTF-8 and (where the sandbox can tell) the file's mode
    stay as they were. The result is ``{"ok": true, "path", "replacements", "line"}``; ``line`` is the first
    that changed.
    """

    parallel_safe = True

    @property
    def name(self) -> str:
        return "edit_workspace_file"

    @property
    def description(self) -> str | None:
        return (
            "Replace a piece of text in a file of the workspace. The old text must occur exactly once, "
            "unless replace_all is true. Better than rewriting the file: only what changes is sent."
        )

    @property
    def parameters(self) -> Mapping[str, Any]:
        return _PARAMETERS

    def resource_key(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        return file_key(arguments)

    def __call__(self, session: Session, arguments: Mapping[str, Any]) -> Any:
        edit = _Edit.of(arguments)
        sandbox = session.require_sandbox()
        found = sandbox.dispatch(BackendToolFilesRead(path=edit.path, encoding=None))
        if not isinstance(found, FileContent):
            return found
        before = found.data if isinstance(found.data, bytes) else found.data.encode()
        after, lines = edit.apply(before)
        mode = _mode(sandbox, edit.path)
        written = sandbox.dispatch(BackendToolFilesWrite(path=edit.path, data=after, mode=mode))
        if not isinstance(written, FileWriteResult):
            return written
        return {"ok": True, "path": edit.path, "replacements": len(lines), "line": lines[0]}


def coding_tools() -> list[FlowToolCall]:
    """Tools for agents that write code, to be given to a run beside the built-in ones."""
    return [FlowToolFilesEdit()]


@dataclass(frozen=True, slots=True)
class _Edit:
    path: str
    old: str
    new: str
    replace_all: bool

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> _Edit:
        check_names(arguments, _PARAMETERS["properties"])
        path = required_path(arguments, "path")
        old, new = required_text(arguments, "old"), required_text(arguments, "new")
        if not old:
            raise InvalidToolArguments(
                "argument 'old' is empty, which names no place; to create a file use write_workspace_file"
            )
        if old == new:
            raise InvalidToolArguments("arguments 'old' and 'new' are the same: nothing would change")
        return cls(path, old, new, optional_flag(arguments, "replace_all"))

    def apply(self, before: bytes) -> tuple[bytes, list[int]]:
        """The file's new bytes, and the lines that were replaced. Raises ``ToolError`` if it is unclear."""
        text = self._decoded(before)
        old, new = _with_line_breaks_of(text, self.old), _with_line_breaks_of(text, self.new)
        if old == new:
            raise InvalidToolArguments(
                "'old' and 'new' differ in line endings only, and an edit keeps those of the file: use a command"
            )
        places = _occurrences(text, old)
        if not places:
            raise ToolError(
                f"{self.path}: 'old' does not occur in the file. {_near_miss(text, old)}",
                kind="edit_not_found",
            )
        if len(places) > 1 and not self.replace_all:
            raise ToolError(
                f"{self.path}: 'old' occurs {len(places)} times, on lines "
                f"{_listed(_line_numbers(text, places))}. "
                "Take in lines around it until it is unique, or set replace_all",
                kind="edit_ambiguous",
            )
        if self.replace_all:
            places = _apart(places, len(old))
        return text.replace(old, new).encode("utf-8", "surrogateescape"), _line_numbers(text, places)

    def _decoded(self, data: bytes) -> str:
        if b"\0" in data:
            raise ToolError(f"{self.path} is not a UTF-8 text file: it holds NUL bytes", kind="edit_not_text")
        # Bytes that are no UTF-8 pass through unharmed as surrogate escapes; the arguments cannot hold those.
        text = data.decode("utf-8", "surrogateescape")
        if not (self.new.isascii() or text.isascii()):
            try:
                data.decode()
            except UnicodeDecodeError as error:
                raise ToolError(
                    f"{self.path} is not UTF-8 (byte {error.start}), and 'new' has characters beyond ASCII, "
                    "which would mix two encodings in one file: convert the file first",
                    kind="edit_not_text",
                ) from None
        return text


def _mode(sandbox: BackendSandbox, path: str) -> int:
    """The file's permission bits, so that a script stays executable."""
    told = sandbox.dispatch(BackendToolCommandRun(cmd=["sh", "-c", _STAT, "sh", path], timeout=10.0))
    if not isinstance(told, CommandResult) or told.exit_code != 0:
        return _DEFAULT_MODE
    digits = told.stdout.strip()
    return int(digits, 8) & 0o777 if re.fullmatch(rb"[0-7]{1,5}", digits) else _DEFAULT_MODE


def _with_line_breaks_of(text: str, part: str) -> str:
    """``part`` with the line breaks of a file that has one kind; with both ``part`` is taken literally."""
    crlf = text.count("\r\n")
    if not crlf:
        return part.replace("\r\n", "\n") if "\n" in text else part
    if crlf == text.count("\n"):
        return part.replace("\r\n", "\n").replace("\n", "\r\n")
    return part


def _occurrences(text: str, part: str) -> list[int]:
    """Where ``part`` occurs, overlapping places too: each is one that the model may have meant."""
    places, at = [], text.find(part)
    while at >= 0:
        places.append(at)
        at = text.find(part, at + 1)
    return places


def _apart(places: list[int], length: int) -> list[int]:
    """Those that a replacement from left to right reaches."""
    kept: list[int] = []
    for place in places:
        if not kept or place >= kept[-1] + length:
            kept.append(place)
    return kept


def _line_numbers(text: str, places: list[int]) -> list[int]:
    numbers, line, seen = [], 1, 0
    for place in places:
        line += text.count("\n", seen, place)
        seen = place
        numbers.append(line)
    return numbers


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN_LINES]))
    return shown if len(numbers) <= _SHOWN_LINES else f"{shown} and {len(numbers) - _SHOWN_LINES} more"


def _near_miss(text: str, old: str) -> str:
    """Where the file has nearly ``old``, and what the difference is."""
    lines, wanted = text.split("\n"), old.split("\n")
    for what, simplified in (
        ("spaces, tabs or line endings", _without_space),
        ("capitals or spaces", _caseless),
    ):
        starts = _windows([simplified(line) for line in lines], [simplified(line) for line in wanted])
        if starts:
            first = starts[0]
            shown = _quoted("\n".join(lines[first : first + len(wanted)]))
            return (
                f"It does but for {what} on line{'s' if len(starts) > 1 else ''} "
                f"{_listed([start + 1 for start in starts])}, where the file has {shown}"
            )
    return _first_difference(lines, wanted)


def _without_space(line: str) -> str:
    return "".join(line.split())


def _caseless(line: str) -> str:
    return _without_space(line).casefold()


def _windows(lines: list[str], wanted: list[str]) -> list[int]:
    """Where ``wanted`` stands in ``lines``: whole lines, but for the outer two, which may be parts of one."""
    if not any(wanted):
        return []
    last = len(wanted) - 1
    if last == 0:
        return [index for index, line in enumerate(lines) if wanted[0] in line]
    return [
        index
        for index in range(len(lines) - last)
        if lines[index].endswith(wanted[0])
        and lines[index + last].startswith(wanted[-1])
        and lines[index + 1 : index + last] == wanted[1:-1]
    ]


def _first_difference(lines: list[str], wanted: list[str]) -> str:
    known = next((index for index, line in enumerate(wanted) if line.strip()), None)
    if known is None or len(wanted) == 1:
        return "Nothing in the file is like it: read the file again"
    starts = [index for index, line in enumerate(lines) if line.strip() == wanted[known].strip()]
    if not starts:
        return f"Not even its line {_quoted(wanted[known])} does: read the file again"
    best, reach = starts[0], 0
    for start in starts:
        same = 0
        while (
            known + same < len(wanted)
            and start + same < len(lines)
            and lines[start + same].strip() == wanted[known + same].strip()
        ):
            same += 1
        if same > reach:
            best, reach = start, same
    if best + reach >= len(lines) or known + reach >= len(wanted):
        return f"It begins like line {best + 1} of the file, but the file ends before it does"
    return (
        f"It begins like line {best + 1} of the file, but line {best + reach + 1} reads "
        f"{_quoted(lines[best + reach])}, not {_quoted(wanted[known + reach])}"
    )


def _quoted(text: str) -> str:
    # repr shows what a difference in white space is; the bytes that are no UTF-8 show as escapes.
    return repr(text if len(text) <= 400 else f"{text[:400]}…")
