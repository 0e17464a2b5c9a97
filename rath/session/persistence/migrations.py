"""Older schemas, lifted record by record, in memory. Files are never touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rath.errors import UsageTypeError, UsageValueError
from rath.session.persistence.format import CURRENT_SCHEMA_VERSION, BadLine

__all__ = [
    "CURRENT_SCHEMA_VERSION",
    "ChunkMigration",
    "HeaderMigration",
    "register_chunk_migration",
    "register_header_migration",
    "upgrade_chunk",
    "upgrade_header",
]

HeaderMigration = Callable[[dict[str, Any]], dict[str, Any]]
ChunkMigration = Callable[[dict[str, Any]], dict[str, Any]]


def _chunk_1_to_2(record: dict[str, Any]) -> dict[str, Any]:
    row = {"kind": record.get("kind"), "payload": record.get("payload")}
    return {"record_type": "chunk", "index": record.get("index"), "row": row}


# Keyed by the version that they lift to the next. A header keeps its fields from 1 to 2.
_headers: dict[int, HeaderMigration] = {1: dict}
_chunks: dict[int, ChunkMigration] = {1: _chunk_1_to_2}


def register_header_migration(from_version: int, fn: HeaderMigration) -> None:
    """Let ``fn`` lift header records from ``from_version`` to the next version, in memory.

    Raises:
        UsageValueError: ``from_version`` is not older than the current schema.
    """
    _check(from_version, fn)
    _headers[from_version] = fn


def register_chunk_migration(from_version: int, fn: ChunkMigration) -> None:
    """Let ``fn`` lift chunk records from ``from_version`` (their header's) to the next version, in memory.

    Raises:
        UsageValueError: ``from_version`` is not older than the current schema.
    """
    _check(from_version, fn)
    _chunks[from_version] = fn


def _check(from_version: int, fn: object) -> None:
    if not callable(fn):
        raise UsageTypeError(f"a migration is a function of one record, not {type(fn).__name__}")
    if not isinstance(from_version, int) or from_version >= CURRENT_SCHEMA_VERSION:
        raise UsageValueError(
            f"migrations lead from older schemas to the current one, {CURRENT_SCHEMA_VERSION}; got {from_version!r}"
        )


def upgrade_header(record: dict[str, Any], version: int) -> dict[str, Any]:
    """The header record, lifted to the current schema.

    Raises:
        BadLine: no migration leads there, or one failed.
    """
    for step in range(version, CURRENT_SCHEMA_VERSION):
        migrate = _headers.get(step)
        if migrate is None:
            raise BadLine(f"no migration from schema {step}: register one with register_header_migration")
        record = _apply(migrate, record) | {"schema_version": step + 1}
    return record


def upgrade_chunk(record: dict[str, Any], version: int) -> dict[str, Any]:
    """The chunk record, lifted to the current schema; a step without a migration leaves it as it is.

    Raises:
        BadLine: a migration failed.
    """
    for step in range(version, CURRENT_SCHEMA_VERSION):
        migrate = _chunks.get(step)
        if migrate is not None:
            record = _apply(migrate, record)
    return record


def _apply(migrate: HeaderMigration, record: dict[str, Any]) -> dict[str, Any]:
    try:
        made = migrate(record)
    except Exception as error:  # whatever a registered function raises, loading raises PersistenceError
        raise BadLine(f"a migration failed: {type(error).__name__}: {error!s:.200}") from error
    if not isinstance(made, dict):
        raise BadLine(f"a migration returned {type(made).__name__}, not a record")
    return made
