"""Lineage as JSON lines: one session a line, edges implied by its parents."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rath.core.encoding import decode_json, encode_json
from rath.core.redact import redact_bytes
from rath.errors import RathError
from rath.session.graph.recording import LineageJournal, noted
from rath.session.manager import session_registry

if TYPE_CHECKING:
    from rath.session.session import Session

__all__ = ["export_journal_jsonl", "export_jsonl", "export_jsonl_string", "session_to_jsonl_row"]


def session_to_jsonl_row(session: Session) -> dict[str, Any]:
    """The session's lineage as a JSON object: ids, operator, kind, extras, number of rows, usage. Waits for the rows."""
    usage = session.cumulative_usage
    return {
        "id": str(session.id),
        "parent_session_ids": [str(parent) for parent in session.parent_session_ids],
        "lineage_operator": session.lineage_operator,
        "lineage_kind": session.lineage_kind.value,
        "lineage_extras": [[str(key), _jsonable(value)] for key, value in session.lineage_extras],
        "chunk_count": len(session.chunk_table),
        "cumulative_usage": usage
        and {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
    }


def _jsonable(value: Any) -> Any:
    try:
        return decode_json(encode_json(value))  # plain: the row is for any writer of JSON, and few know bytes or sets
    except RathError:
        return str(value)


def export_jsonl_string(sessions: Iterable[Session]) -> str:
    """One line a session, each ended by a newline."""
    return "".join(redact_bytes(encode_json(session_to_jsonl_row(s))).decode() + "\n" for s in sessions)


def export_jsonl(sessions: Iterable[Session], path: str | Path) -> None:
    """Write :func:`export_jsonl_string` to ``path`` (UTF-8), making its directory if needed."""
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(export_jsonl_string(sessions), encoding="utf-8", newline="\n")


def export_journal_jsonl(journal: LineageJournal, path: str | Path, *, skip_unknown: bool = True) -> None:
    """Write the journal's sessions to ``path``, as far as they are still alive.

    Raises:
        KeyError: a session is gone and ``skip_unknown`` is false.
    """
    registry = session_registry()
    sessions = []
    for session_id in journal.visit_order:
        session = registry.get(session_id) or noted(session_id)
        if session is not None:
            sessions.append(session)
        elif not skip_unknown:
            raise KeyError(f"session {session_id} is not alive any more: keep a reference to export it")
    export_jsonl(sessions, path)
