"""Ancestors in a log's header: those of the session that have no log of their own, so that lineage has no gaps.

A header names the parents of its session; a fork, an append or a merge has no log in which theirs would stand. So the header
carries, under ``ancestry``, one object for each such ancestor, nearest first, until every line of descent has reached a
session with a complete log in the same directory, or there is no room left.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Container, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from rath.core.encoding import encode_json
from rath.core.redact import redact_text
from rath.llm.types import RathLLMTokenUsage
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import OWNS_NOTHING, LineageNode, roles_of, short_label, snapshot_of
from rath.session.graph.record import LineageRecord
from rath.session.persistence.costs import UnpricedJson, amount, bill_of
from rath.session.persistence.paths import SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX
from rath.session.persistence.records import pairs_to_json, plain, usage_from_json, usage_to_json

__all__ = ["MAX_TEXT", "ancestry_nodes", "digest_text", "lineage_fields", "moment_text", "text_of", "usage_of"]

_MAX_ENTRIES = 128
_MAX_BYTES = 32 << 10
_MAX_EXTRAS_BYTES = 2 << 10
MAX_TEXT = 200
"""Longest operator or model that a node takes from a log, in characters."""
_MAX_PARENTS = 1000
_DIGEST = re.compile(r"[0-9a-f]{32}")
_ENDED = ("completed", "failed", "cancelled")
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


# -- to JSON ---------------------------------------------------------------------------------------------------


def lineage_fields(session: object, log: Path) -> dict[str, Any]:
    """What the header of ``log`` has to say of ``session`` beyond its parents: ``ancestry``, and when its run began.

    Args:
        session: whose lineage record is known; of anything else there is nothing to say.
    """
    record = getattr(session, "_record", None)
    if not isinstance(record, LineageRecord):
        return {}
    fields: dict[str, Any] = {}
    if record.status == "running":
        fields["created_at"] = moment_text(record.created_at)
    entries = _entries(record, str(log.parent))
    return fields | {"ancestry": entries} if entries else fields


def moment_text(at: float) -> str:
    """Unix time as a log has it: ISO 8601, UTC, microseconds."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")


def _entries(record: LineageRecord, directory: str) -> list[dict[str, Any]]:
    # A log that is written when all is over, by hand, says of its own session too what only a run's trailer has.
    found: list[dict[str, Any]] = []
    room = _MAX_BYTES
    seen = {record.id}
    waiting = deque([record] if record.status in _ENDED else record.parents)
    while waiting and len(found) < _MAX_ENTRIES:
        ancestor = waiting.popleft()
        if ancestor is not record and (ancestor.id in seen or _has_log(ancestor, directory)):
            continue
        seen.add(ancestor.id)
        entry = _entry(ancestor)
        room -= len(encode_json(entry))
        if room < 0:
            break
        found.append(entry)
        waiting.extend(ancestor.parents)
    return found


def _has_log(record: LineageRecord, directory: str) -> bool:
    log = record.log
    return (
        log is not None
        and record.verdict == "complete"
        and os.path.dirname(log) == directory
        and log.endswith((SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX))
    )


def _entry(record: LineageRecord) -> dict[str, Any]:
    """A record as JSON, without what is usual or unknown."""
    extras = pairs_to_json(record.extras)
    entry: dict[str, Any] = {
        "id": str(record.id),
        "parents": [str(parent) for parent in record.parent_ids],
        "operator": redact_text(record.operator),
        "kind": record.kind.value,
        "extras": extras if len(encode_json(extras)) <= _MAX_EXTRAS_BYTES else [],
        "created_at": moment_text(record.created_at),
    }
    if record.status in _ENDED:
        entry |= {
            "status": record.status if record.status != "completed" else None,
            "rows": record.rows,
            "digest": None if record.digest is None else record.digest.hex(),
            "usage": None if record.kind in OWNS_NOTHING else usage_to_json(record.usage),
            "duration_s": record.duration_s,
            "covers": [str(one) for one in record.covers],
        }
        if record.kind not in OWNS_NOTHING:
            entry |= plain(record.bill.as_json())
    else:
        entry["status"] = "unknown"
    entry |= {"model": plain(record.model), "sandbox": plain(record.sandbox)}
    return {name: value for name, value in entry.items() if value not in (None, [])}


# -- from JSON: hostile ----------------------------------------------------------------------------------------


class _Entry(msgspec.Struct, gc=False):
    """One object of ``ancestry``, its types checked while it is decoded: in a tenth of the time that looking takes."""

    id: UUID
    created_at: datetime
    parents: tuple[UUID, ...] = ()
    operator: str = ""
    kind: str = "unknown"
    extras: tuple[tuple[str, Any], ...] = ()
    status: str = "completed"
    rows: int | None = None
    digest: str | None = None
    usage: dict[str, Any] | None = None
    cost_usd: float | None = None
    priced_usd: float | None = None
    unpriced: tuple[UnpricedJson, ...] = ()
    duration_s: float | None = None
    model: str | None = None
    sandbox: str | None = None
    covers: tuple[UUID, ...] = ()


_decoder = msgspec.json.Decoder(list[_Entry])
_START = b',"ancestry":['
_kinds = {kind.value: kind for kind in LineageKind}


def ancestry_nodes(header: bytes, known: Container[UUID]) -> Iterator[LineageNode]:
    """The nodes that the ``ancestry`` of a header tells of, but for those that are ``known``; none if it is not of its form.

    Args:
        header: a log's first line, which is JSON of bounded depth.
    """
    start = header.rfind(_START)
    if start < 0:
        return
    try:
        entries = _decoder.decode(header[start + len(_START) - 1 : header.rfind(b"]") + 1])
    except (ValueError, RecursionError):
        return
    for entry in entries[:_MAX_ENTRIES]:
        node = _node(entry) if entry.id not in known else None
        if node is not None:
            yield node


def _node(entry: _Entry) -> LineageNode | None:
    try:
        created_at = entry.created_at.astimezone(UTC)
    except OverflowError:  # the first or last day of all, in another time zone
        return None
    kind = _kinds.get(entry.kind, LineageKind.UNKNOWN)
    parents = entry.parents[:_MAX_PARENTS]
    if len(parents) > 1:
        parents = tuple(dict.fromkeys(parents))
    operator = entry.operator[:MAX_TEXT]
    owns_nothing = kind in OWNS_NOTHING
    return LineageNode(
        id=entry.id,
        parents=parents,
        operator=operator,
        kind=kind,
        status=entry.status if entry.status in _ENDED else "unknown",
        rows=entry.rows if entry.rows is not None and 0 <= entry.rows < 2**53 else None,
        usage=None if owns_nothing else usage_of(entry.usage),
        extras=entry.extras,
        label=short_label(kind, operator),
        roles=roles_of(kind, parents),
        model=text_of(entry.model),
        cost_usd=None if owns_nothing else bill_of(entry.cost_usd, entry.priced_usd, entry.unpriced).cost_usd,
        created_at=created_at,
        duration_s=amount(entry.duration_s),
        sandbox=text_of(entry.sandbox),
        snapshot=snapshot_of(entry.extras),
        digest=digest_text(entry.digest),
        covers=entry.covers,
    )


def usage_of(value: object) -> RathLLMTokenUsage | None:
    """The tokens that ``value`` tells of, if it has all three counts: to a graph, one that is left out is unknown, not 0."""
    counted = isinstance(value, dict) and all(value.get(name) is not None for name in _COUNTS)
    return usage_from_json(value) if counted else None


def text_of(value: object) -> str | None:
    """``value`` if it is text, cut."""
    return value[:MAX_TEXT] if isinstance(value, str) else None


def digest_text(value: object) -> str | None:
    """``value`` if it is the digest of rows."""
    return value if isinstance(value, str) and _DIGEST.fullmatch(value) else None
