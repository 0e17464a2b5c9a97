"""Session logs as sides of a comparison (:func:`rath.session.diff`): rows, and as much lineage as logs have."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from rath.core.redact import redact_text
from rath.errors import PersistenceError, UsageTypeError
from rath.llm.types import RathLLMTokenUsage, add_usage
from rath.session.graph.diff_sides import Compared
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode, roles_of
from rath.session.graph.order import assemble
from rath.session.persistence.costs import bill_of_records
from rath.session.persistence.lineage import read_ancestors
from rath.session.persistence.paths import log_name
from rath.session.persistence.reader import PersistedSession, load_session
from rath.session.persistence.records import usage_from_json

__all__ = ["compared_log", "spent"]

_MAX_ANCESTOR_BYTES = 16 << 20


def compared_log(source: PersistedSession | UUID | str | os.PathLike[str]) -> Compared:
    """A log to compare: one that was loaded, or a session's id, or the path of a log; a ``str`` that is a UUID is an id.

    Raises:
        PersistenceError: there is no such log, or it cannot be read.
        UsageTypeError: ``source`` is something else.
    """
    if isinstance(source, PersistedSession):
        loaded = source
    elif isinstance(source, UUID) or (isinstance(source, str) and _is_id(source)):
        loaded = load_session(source)
    elif isinstance(source, (str, os.PathLike)):
        loaded = load_session("", path=Path(source))
    else:
        raise UsageTypeError(
            f"compare sessions, loaded logs, or the ids or paths of logs; not {type(source).__name__}"
        )
    header = loaded.header
    return Compared(
        header.id,
        redact_text(header.lineage_operator),
        _status(loaded),
        loaded.chunk_table,
        _lineage(loaded),
        no_files="unknown: only its log is left",
    )


def _is_id(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _lineage(loaded: PersistedSession) -> list[LineageNode]:
    """Its node and those of its ancestors, as far as the headers in its directory tell; parents first."""
    own = _node(loaded)
    found = read_ancestors(loaded.path, own)
    left_bytes = _MAX_ANCESTOR_BYTES
    for session_id, node in found.items():
        # Without an end, a log has what its run used in its records only.
        if node.path is not None and node.usage is None and node.verdict != "complete" and left_bytes > 0:
            log = _log_beside(loaded.path, session_id)
            if log is not None:
                left_bytes -= sum(len(row.encoded) for row in log.chunk_table)
                found[session_id] = _node(log)
    return assemble({**found, own.id: own})


def _log_beside(path: Path, session_id: UUID) -> PersistedSession | None:
    beside = path.parent / log_name(session_id)
    try:
        if beside.stat().st_size <= _MAX_ANCESTOR_BYTES:
            loaded = load_session(session_id, path=beside)
            return loaded if loaded.header.id == session_id else None
    except (OSError, PersistenceError):  # there is none, or none that can be read: its id is all that is known
        pass
    return None


def _node(loaded: PersistedSession) -> LineageNode:
    header = loaded.header
    usage, cost = spent(loaded)
    model = (header.provider or {}).get("model")
    parents = tuple(dict.fromkeys(parent for parent in header.parent_session_ids if parent != header.id))
    return LineageNode(
        header.id,
        parents=parents,
        operator=header.lineage_operator,
        kind=header.lineage_kind,
        roles=roles_of(header.lineage_kind, parents),
        status=_status(loaded),
        rows=len(loaded.chunk_table),
        # Only these have completions of their own; what another adds up is not its.
        usage=usage if header.lineage_kind in _WITH_USAGE else None,
        model=model if isinstance(model, str) else None,
        cost_usd=cost,
        created_at=header.created_at,
        duration_s=_duration_s(loaded),
        verdict=loaded.verdict,
        path=loaded.path,
    )


_WITH_USAGE = frozenset(
    {LineageKind.OP_SESSION_LOOP, LineageKind.OP_SESSION_COMPRESS, LineageKind.OP_CUSTOM, LineageKind.UNKNOWN}
)


def _status(loaded: PersistedSession) -> str:
    outcome = (loaded.trailer_raw or {}).get("outcome")
    status = outcome.get("status") if loaded.closed and isinstance(outcome, Mapping) else None
    return status if isinstance(status, str) and status else loaded.verdict


def spent(loaded: PersistedSession) -> tuple[RathLLMTokenUsage | None, float | None]:
    """The tokens and the cost of the log's own completions; a cost only where each has a price, in the log or registered."""
    usage: RathLLMTokenUsage | None = None
    for record in loaded.records:
        if record.get("record_type") == "usage":
            usage = add_usage(usage, usage_from_json(record))
    asked = (loaded.header.provider or {}).get("model")
    return loaded.cumulative_usage or usage, bill_of_records(loaded.records, asked).cost_usd


def _duration_s(loaded: PersistedSession) -> float | None:
    closed = (loaded.trailer_raw or {}).get("closed_at")
    try:
        moment = datetime.fromisoformat(closed) if isinstance(closed, str) else None
        if moment is None:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, (moment - loaded.header.created_at).total_seconds())
    except (ValueError, OverflowError):
        return None
