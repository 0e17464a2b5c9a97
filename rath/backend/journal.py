"""What ``rath sandbox ps`` and ``logs`` tell of an open sandbox: its record, and a line for each call."""

from __future__ import annotations

import time
from dataclasses import replace

from rath.backend.calls import (
    BackendTool,
    BackendToolCodeRun,
    BackendToolCommandRun,
    CodeResult,
    CommandResult,
    ToolExecutionFailure,
    ToolResult,
)
from rath.backend.owner import CallLog, Owner, SandboxRecord

__all__ = ["Journal", "note"]


class Journal:
    """The notes about one sandbox, from its opening to :meth:`close`. ``record`` need not say who its owner is."""

    __slots__ = ("_id", "_log", "_owner")

    def __init__(self, owner: Owner, record: SandboxRecord) -> None:
        self._owner = owner
        self._id = record.id
        self._log = owner.opened(replace(record, owner=owner.id))

    def note(self, call: BackendTool, result: ToolResult | bool | None, begun: float) -> None:
        """As :func:`note`."""
        note(self._log, call, result, begun)

    def finish(self) -> None:
        """No call will end any more: write what is waiting."""
        self._log.close()

    def close(self) -> None:
        """The sandbox is gone, and its notes with it."""
        self._log.close()
        self._owner.closed(self._id)


def note(log: CallLog, call: BackendTool, result: ToolResult | bool | None, begun: float) -> None:
    """Note a call that ended; ``result``: ``None`` if it raised; ``begun``: as ``time.monotonic`` has it."""
    log.note(type(call).__name__, _text(call), _exit(result), (time.monotonic() - begun) * 1000)


def _text(call: BackendTool) -> str:
    match call:
        case BackendToolCommandRun(cmd=str() as line):
            return line
        case BackendToolCommandRun(cmd=argv):
            return " ".join(map(str, argv))
        case BackendToolCodeRun(code=code):
            return str(code)
    return str(getattr(call, "path", ""))


def _exit(result: ToolResult | bool | None) -> int | None:
    match result:
        case CommandResult(exit_code=code):
            return code
        case CodeResult(error=error):
            return 0 if error is None else 1
        case ToolExecutionFailure() | None:
            return None
    return 0
