"""Rows as a comparison sees them: what makes two alike, which tools they call, and what came of it.

Read from a row's redacted form (``row.encoded``), which may be anything that a log may hold.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from rath.core.encoding import decode_json
from rath.session.chunk import ChunkKind, ChunkRow

__all__ = ["CallMade", "CallOutcome", "RowRead", "calls_made", "likeness", "read_row"]

CallOutcome = Literal["ok", "nonzero", "failed", "unanswered"]

_ELAPSED = re.compile(r'"elapsed_ms":\s*-?[0-9.eE+-]+')
# So that 10,000 rows of many words, of one, or of Chinese take less than a second: letters take 0.1 µs each.
_COMPARED_CHARACTERS = 1000
_COMPARED_LETTERS = 160
_FEW_WORDS = 4


@dataclass(frozen=True, slots=True)
class CallMade:
    """A tool call in a transcript.

    Attributes:
        row: the index of the assistant's row.
        arguments: as the model wrote them, redacted.
        outcome: ``ok``, ``nonzero`` (ran, and exited with another code than 0, or raised), ``failed`` or ``unanswered``.
        shared: whether the other side made the same call too: same name, same arguments, each counted once.
    """

    row: int
    name: str
    arguments: str
    outcome: CallOutcome
    shared: bool = False


@dataclass(frozen=True, slots=True)
class RowRead:
    """What a comparison needs of a row.

    Attributes:
        key: equal for rows that say the same: identifiers of calls and measured times aside.
        role: equal for rows that can be versions of each other.
        calls: identifier, name and arguments of each.
        answers: the identifier of the call that it answers, and how that ended.
    """

    key: Hashable
    role: Hashable
    text: str
    calls: tuple[tuple[str, str, str], ...] = ()
    answers: tuple[str, CallOutcome] | None = None


class _Function(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: str


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    function: _Function
    type: Literal["function"] = "function"


class _Payload(msgspec.Struct, forbid_unknown_fields=True):
    content: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class _Result(msgspec.Struct):
    """The fields of a tool's result that say how it went; the others are read over."""

    ok: Any = None
    error_kind: Any = None
    exit_code: Any = None
    error: Any = None
    stdout: Any = None


_payload = msgspec.json.Decoder(_Payload).decode
_result = msgspec.json.Decoder(_Result).decode


def read_row(row: ChunkRow) -> RowRead:
    """What ``row`` says. Takes whatever a log may hold."""
    try:
        said = _payload(row.encoded_payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _unusual(row)
    text = said.content or ""
    if row.kind is ChunkKind.TOOL_RESULT:
        if said.tool_calls is not None:
            return _unusual(row)
        tool = said.name or ""
        key = (row.kind, tool, _ELAPSED.sub("", text) if '"elapsed_ms"' in text else text)
        return RowRead(key, (row.kind, tool), text, answers=(said.tool_call_id or "", _outcome(text)))
    if said.name is not None or said.tool_call_id is not None or (said.tool_calls and row.kind is not ChunkKind.ASSISTANT):
        return _unusual(row)
    calls = tuple((call.id, call.function.name, call.function.arguments) for call in said.tool_calls or ())
    asked = tuple(call[1:] for call in calls)
    return RowRead((row.kind, said.content, asked), (row.kind, tuple(name for name, _ in asked)), text, calls)


def _unusual(row: ChunkRow) -> RowRead:
    """A row that is not of rath's own making: compared byte by byte, its calls read as far as they are calls."""
    try:
        payload = decode_json(row.encoded)["payload"]
    except (ValueError, RecursionError):
        return RowRead(row.encoded, row.kind, "")
    content = payload.get("content")
    text = content if isinstance(content, str) else ""
    if row.kind is ChunkKind.TOOL_RESULT:
        answers = str(payload.get("tool_call_id") or ""), _outcome(text)
        return RowRead(row.encoded, (row.kind, str(payload.get("name") or "")), text, answers=answers)
    given = payload.get("tool_calls")
    calls = tuple(map(_call, given)) if isinstance(given, list) and row.kind is ChunkKind.ASSISTANT else ()
    return RowRead(row.encoded, (row.kind, tuple(name for _, name, _ in calls)), text, calls)


def _call(call: Any) -> tuple[str, str, str]:
    call = call if isinstance(call, Mapping) else {}
    function = call.get("function")
    function = function if isinstance(function, Mapping) else {}
    arguments = function.get("arguments")
    return str(call.get("id") or ""), str(function.get("name") or "?"), arguments if isinstance(arguments, str) else ""


def _outcome(body: str) -> CallOutcome:
    """How a call went by its result's text; ``ok`` where nothing in it says otherwise."""
    if not body.startswith("{"):
        return "ok"
    try:
        result = _result(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return "ok"
    if result.ok is False:
        return "failed"
    raised = bool(result.error) and result.stdout is not None
    return "nonzero" if raised or result.exit_code not in (None, 0) else "ok"


def calls_made(rows: Sequence[RowRead], first: int) -> tuple[CallMade, ...]:
    """The calls in ``rows`` and what came of each: by the first result after it with its identifier.

    Args:
        first: the index of ``rows[0]`` in its transcript.
    """
    made: list[list[Any]] = []
    waiting: dict[str, deque[int]] = {}
    for index, row in enumerate(rows, first):
        for call_id, name, arguments in row.calls:
            waiting.setdefault(call_id, deque()).append(len(made))
            made.append([index, name, arguments, "unanswered"])
        if row.answers is not None:
            call_id, outcome = row.answers
            asked = waiting.get(call_id)
            if asked:
                made[asked.popleft()][3] = outcome
    return tuple(CallMade(*call) for call in made)


def likeness(a: RowRead, b: RowRead) -> float:
    """From 0 to 1: how much of the words (of short texts: of the letters) two rows share. Reads their beginnings only."""
    left, right = _parts(a), _parts(b)
    return 2 * len(left & right) / (len(left) + len(right)) if left and right else 0.0


def _parts(row: RowRead) -> set[str]:
    text = row.text[:_COMPARED_CHARACTERS]
    for _, name, arguments in row.calls[:8]:
        text += f" {name} {arguments[:_COMPARED_CHARACTERS]}"
    words = set(text[:_COMPARED_CHARACTERS].split())
    # Few words: a short text, or a language that writes none apart.
    return words if len(words) >= _FEW_WORDS else {text[i:i + 2] for i in range(min(len(text), _COMPARED_LETTERS) - 1)}
