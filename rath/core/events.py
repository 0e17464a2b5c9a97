"""What happens in a run: a closed union of past-tense events.

Everything that watches a run watches these: the log on disk, readers of ``session.events()``, progress, traces. The
terminal event (:data:`TERMINAL`) comes last, exactly once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

import msgspec

if TYPE_CHECKING:
    from rath.llm.types import RathLLMFinishReason, RathLLMTokenUsage
    from rath.session.chunk import ChunkRow

__all__ = [
    "DELTAS",
    "TERMINAL",
    "Compacted",
    "Event",
    "MessageFinished",
    "ReasoningDelta",
    "Retried",
    "RowAppended",
    "RunCancelled",
    "RunFailed",
    "RunFinished",
    "RunStarted",
    "TextDelta",
    "ToolCallDelta",
    "ToolFinished",
    "ToolStarted",
    "TurnFinished",
    "TurnStarted",
    "UsageReported",
]


class _Event(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Common to all: which run, which session, the position in the run's stream, and when (Unix time in seconds)."""

    run_id: UUID
    session_id: UUID
    seq: int
    at: float


class RunStarted(_Event, frozen=True, gc=False):
    """First event of a run. ``operator`` is the lineage operator."""

    operator: str


class TurnStarted(_Event, frozen=True, gc=False):
    """A model call begins. ``turn`` counts from 1."""

    turn: int


class TextDelta(_Event, frozen=True, gc=False):
    """A fragment of the assistant's text, while streaming."""

    text: str


class ReasoningDelta(_Event, frozen=True, gc=False):
    """A fragment of the model's visible reasoning, while streaming."""

    text: str


class ToolCallDelta(_Event, frozen=True, gc=False):
    """A fragment of a tool call, while streaming; ``index`` says of which call of the turn."""

    index: int
    call_id: str | None
    name: str | None
    arguments: str | None


class MessageFinished(_Event, frozen=True, gc=False):
    """The model's reply is whole."""

    turn: int
    text: str | None
    tool_calls: int
    finish_reason: RathLLMFinishReason


class ToolStarted(_Event, frozen=True, gc=False):
    """A tool call is about to run. ``index`` is its place among the turn's calls."""

    turn: int
    index: int
    call_id: str
    name: str
    arguments: str
    idempotent: bool


class ToolFinished(_Event, frozen=True, gc=False):
    """A tool call ended.

    ``body`` is the JSON text for the model; ``row_index`` the row it will become. ``spills``: digest (SHA-256, hex) and size
    in bytes of each text that was cut in it and is kept whole.
    """

    turn: int
    index: int
    call_id: str
    name: str
    ok: bool
    body: str
    row_index: int
    duration_s: float
    spills: tuple[tuple[str, int], ...] = ()


class RowAppended(_Event, frozen=True, gc=False):
    """A row stands at ``index`` of the session's table for good."""

    index: int
    row: ChunkRow


class UsageReported(_Event, frozen=True, gc=False):
    """The tokens of one completion."""

    usage: RathLLMTokenUsage
    model: str


class Retried(_Event, frozen=True, gc=False):
    """A model call failed and is made again after ``delay_s``. ``attempt`` counts from 1."""

    attempt: int
    reason: str
    delay_s: float


class Compacted(_Event, frozen=True, gc=False):
    """The history that goes to the model was shortened."""

    rows_before: int
    rows_after: int


class TurnFinished(_Event, frozen=True, gc=False):
    """A turn ended: its message and the results of its tool calls are rows."""

    turn: int
    duration_s: float


class RunFinished(_Event, frozen=True, gc=False):
    """The run ended well. ``truncated``: it used up ``max_tool_rounds``."""

    rows: int
    usage: RathLLMTokenUsage | None
    truncated: bool


class RunFailed(_Event, frozen=True, gc=False):
    """The run ended with an error: its type's name and its text, redacted."""

    error_type: str
    message: str


class RunCancelled(_Event, frozen=True, gc=False):
    """The run was cancelled."""

    reason: str


Event: TypeAlias = (
    RunStarted
    | TurnStarted
    | TextDelta
    | ReasoningDelta
    | ToolCallDelta
    | MessageFinished
    | ToolStarted
    | ToolFinished
    | RowAppended
    | UsageReported
    | Retried
    | Compacted
    | TurnFinished
    | RunFinished
    | RunFailed
    | RunCancelled
)
"""Any event of a run."""
DELTAS: tuple[type[Any], ...] = (TextDelta, ReasoningDelta, ToolCallDelta)
"""Fragments of a reply, which are there only while it streams."""
TERMINAL: tuple[type[Any], ...] = (RunFinished, RunFailed, RunCancelled)
"""The ends of a run: the last event is one of these."""
