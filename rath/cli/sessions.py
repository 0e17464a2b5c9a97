"""``rath sessions``: what the logs say."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rath.cli.console import Screen, Trouble, out, user_path
from rath.core.encoding import decode_json
from rath.display.svg import short_id
from rath.display.text import clean, count, one_line
from rath.display.transcript import CallView, ResultView, view_row
from rath.llm.types import RathLLMTokenUsage
from rath.session.chunk import ChunkRow
from rath.session.persistence.manage import PersistedSessionMeta, list_persisted_sessions, writer_of
from rath.session.persistence.paths import SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX, sessions_dir
from rath.session.persistence.reader import PersistedSession, load_session
from rath.session.persistence.records import usage_from_json

__all__ = ["find_session_log", "list_logs", "show_log", "show_row"]

_FOLDED_LINES = 5
_FOLDED_COLUMNS = 160
_ID_PART = re.compile(r"[0-9a-fA-F-]{1,36}")


def list_logs(*, as_json: bool, limit: int) -> int:
    """Print the session logs, newest first."""
    metas = list_persisted_sessions()
    shown = metas[:limit] if limit else metas
    screen = out()
    if as_json:
        screen.json([_meta_json(meta) for meta in shown])
        return 0
    if not shown:
        screen.line(f"no session logs in {sessions_dir()}")
        screen.line(("`rath demo` makes some; runs with persist=True do.", "dim"))
        return 0
    operators = [one_line(meta.lineage_operator, 24) for meta in shown]
    wide = max(8, *map(len, operators))
    screen.line((f"{'id':8}  {'created':19}  {'operator':{wide}}  {'rows':>6}  state", "bold"))
    for meta, operator in zip(shown, operators, strict=True):
        state, style = ("closed", "green") if meta.closed else ("open", "yellow")
        known = f"{short_id(meta.id)}  {_when(meta.created_at)}  {operator:{wide}}  {meta.chunk_count:6,}  "
        screen.line(known, (state, style))
    if len(shown) < len(metas):
        screen.line((f"… {len(metas) - len(shown):,} more (--limit 0 shows all)", "dim"))
    return 0


def show_log(session: str, *, as_json: bool, full: bool) -> int:
    """Print one log: its header and its transcript."""
    path = find_session_log(session)
    loaded = load_session(path.name.partition(".")[0], path=path)
    if as_json:
        out().json(_session_json(loaded))
        return 0
    screen = out()
    _show_header(screen, loaded)
    for index, row in enumerate(loaded.chunk_table):
        screen.line()
        show_row(screen, index, row, full)
    if loaded.verdict != "complete":
        screen.line()
        screen.line((f"the log {_why_unfinished(loaded)}", "yellow"))
    return 0


def find_session_log(session: str) -> Path:
    """The log that an id, the beginning of an id, or a path means.

    Raises:
        Trouble: none, or more than one.
    """
    if os.sep in session or session.endswith((SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX)):
        path = user_path(session)
        if not path.exists():
            raise Trouble(f"there is no log {path}", code=1)
        return path
    if not _ID_PART.fullmatch(session):
        raise Trouble(f"{session!r:.100} is neither an id, nor the beginning of one, nor a path to a log")
    found = _logs_that_begin_with(session.lower())
    if not found:
        where = f"no session in {sessions_dir()} has an id that begins with {session}"
        raise Trouble(f"{where}: see `rath sessions list`", code=1)
    if len(found) > 1:
        names = ", ".join(path.name.partition(".")[0] for path in found[:5]) + (", …" if len(found) > 5 else "")
        raise Trouble(f"{len(found)} sessions begin with {session}: {names}. Give more of the id")
    return found[0]


def _logs_that_begin_with(prefix: str) -> list[Path]:
    directory = sessions_dir()
    bare = prefix.replace("-", "")
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [
        directory / name
        for name in names
        if name.endswith((SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX)) and name.replace("-", "").startswith(bare)
    ]


# -- as text ----------------------------------------------------------------------------------------------------------


def _show_header(screen: Screen, loaded: PersistedSession) -> None:
    header = loaded.header
    usage = loaded.cumulative_usage or _usage_so_far(loaded.records)
    facts = [("session", str(header.id)), ("created", _when(header.created_at)), ("operator", header.lineage_operator)]
    if header.parent_session_ids:
        facts.append(("parents", ", ".join(map(str, header.parent_session_ids))))
    if header.provider:
        names = (header.provider.get("kind"), header.provider.get("model"))
        facts.append(("model", ":".join(str(name) for name in names if name)))
    if header.sandbox_backend:
        where = header.sandbox_spec.working_dir if header.sandbox_spec else None
        facts.append(("sandbox", f"{header.sandbox_backend} {where or ''}".strip()))
    tokens = "" if usage is None else f" · {usage.total_tokens:,} tokens"
    facts += [("rows", f"{len(loaded.chunk_table):,}{tokens}"), ("state", _state(loaded)), ("log", str(loaded.path))]
    for name, value in facts:
        screen.line((f"{name:9}", "dim"), one_line(value, 400))


def _state(loaded: PersistedSession) -> str:
    if loaded.closed:
        outcome = (loaded.trailer_raw or {}).get("outcome")
        status = outcome.get("status") if isinstance(outcome, Mapping) else None
        return f"closed, {status}" if status else "closed"
    return {"open": "open (no trailer)", "torn": "torn (the last line was cut off)"}.get(loaded.verdict, loaded.verdict)


def _why_unfinished(loaded: PersistedSession) -> str:
    writer = writer_of(loaded.path)
    if writer is not None:
        return f"is being written by {writer}"
    if loaded.verdict == "torn":
        return "was cut off within its last line: its process died"
    return "has no trailer: its run failed, was cancelled, or its process died"


def _usage_so_far(records: Sequence[Mapping[str, Any]]) -> RathLLMTokenUsage | None:
    found = [usage_from_json(record) for record in records if record.get("record_type") == "usage"]
    known = [usage for usage in found if usage is not None]
    if not known:
        return None
    return RathLLMTokenUsage(
        sum(usage.prompt_tokens for usage in known),
        sum(usage.completion_tokens for usage in known),
        sum(usage.total_tokens for usage in known),
    )


def show_row(screen: Screen, index: int, row: ChunkRow, full: bool) -> None:
    """Print one row of a transcript; long results are folded unless ``full``."""
    try:
        view = view_row(row)
    except (ValueError, OverflowError, RecursionError) as error:  # a row that somebody made to be a nuisance
        screen.line((f"[{index}] ", "dim"), (f"{row.kind.value}: cannot be shown: {one_line(str(error), 100)}", "yellow"))
        return
    if view.result is not None:
        _show_result(screen, index, view.tool, view.result, full)
        return
    style = {"user": "bold cyan", "assistant": "bold green"}.get(view.role, "bold")
    screen.line((f"[{index}] ", "dim"), (view.role, style))
    if view.text:
        _show_lines(screen, view.text, folded=False)
    for call in view.calls:
        _show_call(screen, call, full)


def _show_call(screen: Screen, call: CallView, full: bool) -> None:
    screen.line("    → ", (one_line(call.name), "cyan"), f" {call.short}")
    if full and len(call.arguments) > len(call.short):
        _show_lines(screen, call.arguments, folded=False, style="dim")


def _show_result(screen: Screen, index: int, tool: str, result: ResultView, full: bool) -> None:
    style = "green" if result.ok and result.clean_exit else "yellow" if result.ok else "bold red"
    mark = (result.mark if result.ok else f"{result.mark} failed:", style)
    head = ((f"[{index}] ", "dim"), ("tool ", "bold"), (one_line(tool), "cyan"))
    screen.line(*head, " ", mark, f" {one_line(result.summary)}")
    for name, text in result.parts:
        if name:
            screen.line((f"    {one_line(name)}:", "dim"))
        _show_lines(screen, text, folded=not full, style="dim")


def _show_lines(screen: Screen, text: str, *, folded: bool, style: str = "") -> None:
    lines = clean(text).rstrip("\n").split("\n")
    shown = lines[:_FOLDED_LINES] if folded and len(lines) > _FOLDED_LINES + 1 else lines
    for line in shown:
        cut = folded and len(line) > _FOLDED_COLUMNS
        screen.line("    ", (line[:_FOLDED_COLUMNS] + "…" if cut else line, style))
    if len(shown) < len(lines):
        screen.line((f"    … {count(len(lines) - len(shown), 'more line')} (--full)", "dim italic"))


def _when(moment: datetime) -> str:
    try:
        return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # the first or last day of all, in another time zone
        return moment.isoformat(" ", "seconds")[:19]


# -- as JSON ----------------------------------------------------------------------------------------------------------


def _meta_json(meta: PersistedSessionMeta) -> dict[str, Any]:
    return {
        "id": str(meta.id),
        "path": str(meta.path),
        "created_at": meta.created_at.isoformat(),
        "lineage_operator": meta.lineage_operator,
        "lineage_kind": meta.lineage_kind.value,
        "rows": meta.chunk_count,
        "closed": meta.closed,
    }


def _session_json(loaded: PersistedSession) -> dict[str, Any]:
    header = loaded.header
    usage = loaded.cumulative_usage or _usage_so_far(loaded.records)
    return {
        "id": str(header.id),
        "path": str(loaded.path),
        "created_at": header.created_at.isoformat(),
        "verdict": loaded.verdict,
        "closed": loaded.closed,
        "parent_session_ids": [str(parent) for parent in header.parent_session_ids],
        "lineage_operator": header.lineage_operator,
        "lineage_kind": header.lineage_kind.value,
        "lineage_extras": [list(pair) for pair in header.lineage_extras],
        "provider": header.provider,
        "sandbox_backend": header.sandbox_backend,
        "usage": usage and {name: getattr(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
        "rows": [decode_json(row.encoded) for row in loaded.chunk_table],
    }
