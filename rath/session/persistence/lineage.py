"""The lineage graph from logs: what the two ends of each say, at a cost that does not depend on their size."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from rath.errors import PersistenceError
from rath.llm.pricing import Bill
from rath.llm.types import RathLLMTokenUsage
from rath.session.chunk import ChunkTable
from rath.session.graph.lineage import OWNS_NOTHING, LineageNode, roles_of, short_label, snapshot_of
from rath.session.persistence.ancestry import MAX_TEXT, ancestry_nodes, digest_text, text_of, usage_of
from rath.session.persistence.costs import amount, bill_of, bill_of_records
from rath.session.persistence.edges import parse_header, read_edges, read_first_line
from rath.session.persistence.format import BadLine, decode_object
from rath.session.persistence.lock import holder
from rath.session.persistence.paths import (
    SESSION_FILE_SUFFIX,
    SESSION_PARTIAL_SUFFIX,
    SESSIONS_DIR_NAME,
    is_directory,
    lock_file,
    log_name,
    log_path,
    sessions_dir,
)
from rath.session.persistence.reader import load_session
from rath.session.persistence.records import PersistedSessionHeader
from rath.session.session import Session

__all__ = ["find_directory", "read_ancestors", "read_nodes", "read_transcript", "recalled"]

_EDGE = 4096
_MAX_TAIL = 1 << 20
_MAX_EXTRAS_LINE = 64 << 10
"""Extras of longer lines are left out: a directory of a million-byte headers must not fill the memory."""
_MAX_PARENTS = 1000
_MAX_ANCESTORS = 4000  # some 0.15 ms each
MAX_TRANSCRIPT_BYTES = 64 << 20
_STATUSES = ("completed", "failed", "cancelled")


def find_directory(given: str | os.PathLike[str] | None = None) -> Path:
    """The directory of logs that is meant: ``given``, or its ``sessions`` directory; by default the working directory's.

    Raises:
        PersistenceError: ``given`` is no directory.
    """
    if given is None:
        return sessions_dir()
    directory = log_path(os.fspath(given))
    if not is_directory(directory):
        raise PersistenceError(f"{directory} is no directory: lineage(dir=...) reads a directory of logs, or an .openrath")
    inside = directory / SESSIONS_DIR_NAME
    return inside if is_directory(inside) else directory


def read_nodes(directory: Path) -> dict[UUID, LineageNode]:
    """A node for each log in a directory, and for each ancestor without one that a log tells of.

    A log whose header cannot be read is a node if its name is an id: with the verdict, and nothing else. A directory that
    is not there has none.

    Raises:
        PersistenceError: it cannot be listed.
    """
    logged: dict[UUID, LineageNode] = {}
    told: dict[UUID, LineageNode] = {}
    for name in _names(directory):
        found, header = _read(directory, name)
        # Of several logs of one session that with its name counts; of two such, the one that was ended.
        if found is None or (found.id in logged and name != f"{found.id}{SESSION_FILE_SUFFIX}"):
            continue
        logged[found.id] = _heard(found, header, told)
    for session_id, node in told.items():
        logged[session_id] = _both(logged.get(session_id), node)
    return logged


def read_ancestors(path: Path, own: LineageNode) -> dict[UUID, LineageNode]:
    """What ``own``, whose log is at ``path``, descends from: at most 4,000, by its header and the logs beside it."""
    told: dict[UUID, LineageNode] = {}
    found: dict[UUID, LineageNode] = {}
    _heard(own, _read(path.parent, path.name)[1], told)
    waiting = deque(own.parents)
    while waiting and len(found) < _MAX_ANCESTORS:
        session_id = waiting.popleft()
        if session_id in found or session_id == own.id:
            continue
        log, header = _read(path.parent, log_name(session_id))
        log = _heard(log, header, told) if log is not None and log.id == session_id else None
        node = found[session_id] = _both(log, told.get(session_id, LineageNode(session_id)))
        waiting.extend(node.parents)
    return found


def _heard(node: LineageNode, header: bytes, told: dict[UUID, LineageNode]) -> LineageNode:
    """``node`` with what its ``header`` says of it beyond its parents; what it says of its ancestors goes into ``told``."""
    for ancestor in ancestry_nodes(header, told):
        if ancestor.id == node.id:
            node = _completed_by(node, ancestor)
        else:
            told[ancestor.id] = ancestor
    return node


def _both(log: LineageNode | None, told: LineageNode) -> LineageNode:
    """A session of which there may be a log, and of which another's header tells, or its id alone."""
    if log is None:
        return told
    # Somebody went on from it, so that its run has ended well, or was taken up: its log does not know.
    return replace(told, path=log.path, verdict=log.verdict) if log.status == "unknown" and told.created_at else log


def read_transcript(path: Path) -> ChunkTable | None:
    """The rows of a log; ``None`` if it is longer than 64 MiB, cannot be loaded, or has a path that no file can have."""
    try:
        if os.stat(path).st_size > MAX_TRANSCRIPT_BYTES:
            return None
        return load_session(UUID(int=0), path=path).chunk_table
    except (OSError, ValueError, PersistenceError):  # a NUL or a lone surrogate in the path is a ValueError
        return None


def recalled(session: Session, path: Path, records: Sequence[Mapping[str, Any]]) -> Session:
    """``session``, whose lineage record now has what the log that it was loaded from, and its ``records``, say of it."""
    node, _ = _read(path.parent, path.name)
    if node is not None and node.id == session.id and node.created_at is not None:
        record = session._record
        record.created_at = node.created_at.timestamp()
        record.model, record.duration_s = node.model, node.duration_s
        record.bill = bill_of_records(records, node.model)
        if record.bill == Bill() and node.cost_usd is not None:
            record.bill = Bill(node.cost_usd)
        record.log, record.verdict = str(path), node.verdict
        if node.digest is not None and node.rows == record.rows:
            record.digest = bytes.fromhex(node.digest)
    return session


def _names(directory: Path) -> list[str]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise PersistenceError(f"cannot list the logs in {directory}: {error.strerror or error}") from error
    return sorted(name for name in names if name.endswith((SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX)) and name[0] != ".")


def _read(directory: Path, name: str) -> tuple[LineageNode | None, bytes]:
    """The node of a log, and its header if that is one."""
    path = directory / name
    try:
        line, tail = _both_ends(path)
        header = parse_header(line)
        trailer = _trailer(tail)
        node = _open(path, header) if trailer is None else _ended(path, header, trailer)
    except FileNotFoundError:  # deleted since
        return None, b""
    except (BadLine, OSError) as error:
        return _unreadable(path, error), b""
    return node if len(line) <= _MAX_EXTRAS_LINE else replace(node, extras=(), snapshot=None), line


def _both_ends(path: Path) -> tuple[bytes, bytes]:
    """The first line; the last ones, whole from the second on."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        start = tail = os.pread(fd, _EDGE, 0)
        line = read_first_line(fd, start)
        if line is None:
            raise BadLine("no whole header")
        if len(start) == _EDGE:
            size = os.fstat(fd).st_size
            tail = os.pread(fd, _EDGE, max(0, size - _EDGE))
            if tail.find(b"\n") == len(tail) - 1:  # one long line
                tail = os.pread(fd, _MAX_TAIL, max(0, size - _MAX_TAIL))
        return line, tail
    finally:
        os.close(fd)


def _trailer(tail: bytes) -> dict[str, Any] | None:
    """The trailer, if the last line is one."""
    if not tail.endswith(b"\n"):
        return None
    line = tail[tail.rfind(b"\n", 0, len(tail) - 1) + 1 : -1]
    if not line.startswith(b'{"record_type"'):  # schema 1 spells its lines in other ways
        line = line.strip()
    try:
        record = decode_object(line, lenient=True)
    except BadLine:
        return None
    if record.get("record_type") != "trailer":
        return None
    if len(line) > _MAX_EXTRAS_LINE:
        record["lineage_extras"] = None
    return record


def _ended(path: Path, header: PersistedSessionHeader, trailer: dict[str, Any]) -> LineageNode:
    outcome = trailer.get("outcome")
    outcome = outcome if isinstance(outcome, dict) else {}
    rows = trailer.get("final_chunk_count")
    status = outcome.get("status", "completed")
    owns_nothing = header.lineage_kind in OWNS_NOTHING
    usage = None if owns_nothing else usage_of(trailer.get("cumulative_usage"))
    return _node(
        path,
        header,
        status=status if status in _STATUSES else "unknown",  # a salvaged log ends where its file did
        rows=rows if type(rows) is int and 0 <= rows < 2**53 else None,
        usage=usage,
        cost_usd=None if owns_nothing else _cost_usd(header, outcome, usage),
        duration_s=amount(outcome.get("duration_s")),
        extras=_pairs(trailer.get("lineage_extras"), header.lineage_extras),
        verdict="complete",
        digest=digest_text(trailer.get("digest")),
    )


def _cost_usd(header: PersistedSessionHeader, outcome: Mapping[str, Any], usage: RathLLMTokenUsage | None) -> float | None:
    bill = bill_of(outcome.get("cost_usd"), outcome.get("priced_usd"), outcome.get("unpriced"))
    if bill == Bill() and usage is not None:
        # The trailer is not a run's, or is older than prices: the sum is all that there is.
        bill = bill.plus(usage, "", text_of((header.provider or {}).get("model")))
    return bill.cost_usd


def _open(path: Path, header: PersistedSessionHeader) -> LineageNode:
    edges = read_edges(path)
    status = "unknown" if holder(lock_file(path)) is None else "running"
    return _node(path, header, status=status, rows=edges.rows, verdict=edges.ending, extras=header.lineage_extras)


def _node(path: Path, header: PersistedSessionHeader, *, extras: tuple[tuple[str, Any], ...], **known: Any) -> LineageNode:
    parents = header.parent_session_ids[:_MAX_PARENTS]
    operator = header.lineage_operator[:MAX_TEXT]
    return LineageNode(
        id=header.id,
        parents=parents if len(parents) < 2 else tuple(dict.fromkeys(parents)),
        operator=operator,
        kind=header.lineage_kind,
        extras=extras,
        label=short_label(header.lineage_kind, operator),
        roles=roles_of(header.lineage_kind, parents),
        model=text_of((header.provider or {}).get("model")),
        created_at=header.created_at,
        path=path,
        sandbox=text_of(header.sandbox_backend),
        snapshot=snapshot_of(extras),
        **known,
    )


def _pairs(given: object, otherwise: tuple[tuple[str, Any], ...]) -> tuple[tuple[str, Any], ...]:
    if not isinstance(given, list) or not all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in given):
        return otherwise
    return tuple((name, value) for name, value in given)


def _completed_by(node: LineageNode, entry: LineageNode) -> LineageNode:
    """A log that was written by hand: what its header says of its own session."""
    return replace(
        node,
        created_at=entry.created_at,
        duration_s=entry.duration_s,
        cost_usd=entry.cost_usd,
        model=entry.model,
        sandbox=entry.sandbox,
        covers=entry.covers,
    )


def _unreadable(path: Path, error: BadLine | OSError) -> LineageNode | None:
    try:
        session_id = UUID(path.name.removesuffix(SESSION_PARTIAL_SUFFIX).removesuffix(SESSION_FILE_SUFFIX))
    except ValueError:
        return None
    if isinstance(error, OSError):
        verdict = "unreadable"
    else:
        verdict = "torn" if str(error) == "no whole header" else "damaged"
    return LineageNode(session_id, label="unreadable", path=path, verdict=verdict)
