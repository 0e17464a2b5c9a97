"""Rows as people read them: who says what, which tools are called, and what came of it. Data only, not yet text or HTML.

Taken from a row's redacted form (``row.encoded``), so that nothing secret can be shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rath.core.encoding import decode_json
from rath.display.text import count, one_line
from rath.session.chunk import ChunkKind, ChunkRow

__all__ = ["CallView", "ResultView", "RowView", "short_arguments", "view_result", "view_row"]

_QUIET = ("exit_code", "elapsed_ms", "ok")


@dataclass(frozen=True, slots=True)
class CallView:
    """A tool call. ``arguments``: as the model wrote them; ``short``: on one line."""

    name: str
    call_id: str
    arguments: str
    short: str


@dataclass(frozen=True, slots=True)
class ResultView:
    """What a tool call came to.

    Attributes:
        ok: ``False`` if the call failed; a command that ran and exits with another code than 0 did not.
        summary: a few words, e.g. ``exit 1``.
        parts: named texts, e.g. ``("stdout", …)``; a name may be empty.
        clean_exit: ``False`` for a command that exits with another code than 0, and for code that raises.
    """

    ok: bool
    summary: str
    parts: tuple[tuple[str, str], ...]
    clean_exit: bool = True

    @property
    def mark(self) -> str:
        """``✓``, ``•`` (ran, with another exit code than 0) or ``✗``."""
        return "✗" if not self.ok else "✓" if self.clean_exit else "•"


@dataclass(frozen=True, slots=True)
class RowView:
    """A row. ``text`` is empty in a tool result, whose body is in ``result``."""

    role: str
    text: str
    calls: tuple[CallView, ...] = ()
    tool: str = ""
    call_id: str = ""
    result: ResultView | None = None


def view_row(row: ChunkRow) -> RowView:
    """What ``row`` says. Takes whatever a log may hold: nothing about a payload's form is trusted."""
    payload = decode_json(row.encoded)["payload"]
    content = payload.get("content")
    text = "" if content is None else content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    if row.kind is ChunkKind.TOOL_RESULT:
        name, call_id = str(payload.get("name") or "tool"), str(payload.get("tool_call_id") or "")
        return RowView("tool", "", tool=name, call_id=call_id, result=view_result(text))
    calls = payload.get("tool_calls")
    return RowView(row.kind.value, text, tuple(map(_call, calls if isinstance(calls, list) else ())))


def _call(call: Any) -> CallView:
    call = call if isinstance(call, Mapping) else {}
    function = call.get("function")
    function = function if isinstance(function, Mapping) else {}
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return CallView(str(function.get("name") or "?"), str(call.get("id") or ""), text, short_arguments(text))


def short_arguments(arguments: str, limit: int = 90) -> str:
    """A call's arguments (JSON text) on one line: ``path=a.py  old=“x = 1”``; a single one without its name."""
    parsed = _object(arguments[:100_000])
    if parsed is None:
        return one_line(arguments, limit)
    if len(parsed) == 1:
        return one_line(_plain(next(iter(parsed.values()))), limit)
    return _summed_up(parsed, limit)


def _summed_up(fields: Mapping[str, Any], limit: int = 70) -> str:
    return one_line("  ".join(f"{key}={_quoted(value)}" for key, value in list(fields.items())[:8]), limit)


def _quoted(value: Any) -> str:
    text = one_line(_plain(value), 40)
    return text if not isinstance(value, str) or (text and " " not in text) else f"“{text}”"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def view_result(body: str) -> ResultView:
    """What the JSON text of a tool result says; text that is no such JSON is shown as it is."""
    result = _object(body)
    if result is None:
        return ResultView(True, _amount(body), (("", body),))
    if result.get("ok") is False and "error_kind" in result:
        parts = [("", _plain(result.get("message")))]
        if result.get("detail"):
            parts.append(("detail", _plain(result["detail"])))
        return ResultView(False, _plain(result["error_kind"]), tuple(parts))
    if "exit_code" in result:
        return _command(result)
    if isinstance(result.get("data"), str) and len(result) <= 2:
        return ResultView(True, _amount(result["data"]), (("", result["data"]),))
    if isinstance(result.get("entries"), list):
        return _listing(result["entries"])
    if "bytes_written" in result:
        return ResultView(True, f"{_plain(result['bytes_written'])} bytes written", ())
    if {"stdout", "stderr", "error"} <= result.keys():
        return _code(result)
    if result.keys() <= {"ok"}:
        return ResultView(True, "yes" if result.get("ok") else "no", ())
    rest = {key: value for key, value in result.items() if key != "ok"}
    summary = _summed_up(rest)
    # Small results are all in the summary.
    whole = (("", _pretty(result)),) if "…" in summary else ()
    return ResultView(result.get("ok") is not False, summary, whole)


def _command(result: Mapping[str, Any]) -> ResultView:
    parts = [(name, _plain(value)) for name, value in result.items() if name not in _QUIET and value not in ("", None)]
    return ResultView(True, f"exit {_plain(result['exit_code'])}", tuple(parts), result["exit_code"] == 0)


def _code(result: Mapping[str, Any]) -> ResultView:
    names = ("text", "stdout", "stderr", "error")
    parts = tuple((name, _plain(result[name])) for name in names if result.get(name) not in ("", None))
    return ResultView(True, "raised" if result["error"] else "ran", parts, not result["error"])


def _listing(entries: list[Any]) -> ResultView:
    known = [entry for entry in entries if isinstance(entry, Mapping)]
    lines = [_plain(entry.get("name")) + ("/" if entry.get("is_dir") else "") for entry in known]
    amount = "1 entry" if len(lines) == 1 else f"{len(lines):,} entries"
    return ResultView(True, amount, (("", "\n".join(lines)),) if lines else ())


def _amount(text: str) -> str:
    return count(text.count("\n") + (not text.endswith("\n") and bool(text)), "line")


def _pretty(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _object(text: str) -> dict[str, Any] | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
