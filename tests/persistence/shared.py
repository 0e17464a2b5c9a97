"""Logs that share rows, written by hand to the letter of docs/log-format.md."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import UUID

from rath.session.persistence import sessions_dir
from tests.persistence.samples import rechained

__all__ = ["chain", "digest_of", "directory", "header_of", "log_at", "shared_log"]


def directory() -> Path:
    """The sessions directory, made."""
    made = sessions_dir()
    made.mkdir(parents=True, exist_ok=True)
    return made


def log_at(session_id: UUID | str) -> Path:
    return directory() / f"{session_id}.jsonl"


def _row(text: str) -> bytes:
    return b'{"kind":"user","payload":{"content":%b}}' % json.dumps(text).encode()


def digest_of(texts: Sequence[str]) -> bytes:
    """The digest of a table of one user row for each text."""
    digest = bytes(16)
    for text in texts:
        digest = blake2b(digest + _row(text), digest_size=16).digest()
    return digest


def header_of(session_id: UUID, parent: UUID | None = None, length: int = 0, digest: bytes = b"", days: float = 0) -> dict[str, Any]:
    """A header record; with a ``parent``, one whose first ``length`` rows stand in its log."""
    created = datetime.now(UTC) - timedelta(days=days)
    return {
        "record_type": "header",
        "schema_version": 2,
        "id": str(session_id),
        "created_at": created.isoformat(timespec="microseconds"),
        "epoch": "00112233445566ff",
        "parent_session_ids": [] if parent is None else [str(parent)],
        "lineage_operator": "run_session_loop",
        "lineage_kind": "op_session_loop",
        "durability": "turn",
        "prefix": None if parent is None else {"session_id": str(parent), "length": length, "digest": digest.hex()},
    }


def shared_log(
    texts: Sequence[str], *, parent: UUID | None = None, own: int | None = None, days: float = 0, session_id: UUID | None = None
) -> UUID:
    """A complete log with a row for each of ``texts``, of which the last ``own`` stand in it and the others in ``parent``'s."""
    session_id = session_id or UUID(int=random.getrandbits(128))
    first = 0 if parent is None or own is None else len(texts) - own
    made = [header_of(session_id, parent if first else None, first, digest_of(texts[:first]), days)]
    for index in range(first, len(texts)):
        row = json.loads(_row(texts[index]))
        made.append({"record_type": "chunk", "index": index, "row": row, "digest": digest_of(texts[: index + 1]).hex()})
    made.append(
        {
            "record_type": "trailer",
            "closed_at": made[0]["created_at"],
            "final_chunk_count": len(texts),
            "record_count": len(made) + 1,
            "digest": digest_of(texts).hex(),
            "cumulative_usage": None,
            "lineage_extras": [],
            "outcome": {"status": "completed"},
        }
    )
    rechained(log_at(session_id), made)
    return session_id


def chain(length: int, *, days: float = 0) -> list[UUID]:
    """So many logs, each with one row of its own behind those of the one before it. The first is the eldest."""
    made: list[UUID] = []
    texts: list[str] = []
    for number in range(length):
        texts.append(f"row {number}")
        made.append(shared_log(texts, parent=made[-1] if made else None, own=1, days=days + length - number))
    return made
