"""Files that OpenRath 1.2 wrote."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from rath.errors import DamagedLog, PersistenceError, UsageTypeError, UsageValueError
from rath.llm.types import RathLLMTokenUsage
from rath.session.chunk import ChunkKind, ChunkTable
from rath.session.graph.kind import LineageKind
from rath.session.persistence import (
    list_persisted_sessions,
    load_session,
    migrations,
    register_chunk_migration,
    register_header_migration,
    session_file,
    session_partial_file,
)
from tests.persistence.samples import rows

ID = UUID("6a1f8f0e-8d5b-4c0e-9d53-0a5d2c9f5a11")
PARENT = UUID("11111111-8d5b-4c0e-9d53-0a5d2c9f5a11")


def header(**fields: Any) -> dict[str, Any]:
    return {
        "record_type": "header",
        "schema_version": 1,
        "id": str(ID),
        "created_at": "2025-03-01T12:00:00.5+00:00",
        "parent_session_ids": [str(PARENT)],
        "lineage_operator": "run_session_loop",
        "lineage_kind": "op_session_loop",
        "lineage_extras": [["k", {"v": 1}]],
        "sandbox_backend": "local",
        "sandbox_spec": {
            "image": None,
            "entrypoint": ["sh"],
            "env": {"A": "b"},
            "timeout_seconds": 1.5,
            "working_dir": "/w",
        },
        "sandbox_handle_id": None,
        **fields,
    }


def chunks() -> list[dict[str, Any]]:
    return [
        {"record_type": "chunk", "index": i, "kind": row.kind.value, "payload": row.payload} for i, row in enumerate(rows())
    ]


def trailer(**fields: Any) -> dict[str, Any]:
    return {
        "record_type": "trailer",
        "closed_at": "2025-03-01T12:00:09+00:00",
        "final_chunk_count": 5,
        "cumulative_usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        **fields,
    }


def write(path: Path, *lines: dict[str, Any] | bytes, end: str = "\n") -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(
        line if isinstance(line, bytes) else (json.dumps(line, ensure_ascii=False) + end).encode() for line in lines
    )
    path.write_bytes(data)
    return data


def test_a_closed_file_loads_as_complete(home: Path) -> None:
    data = write(session_file(ID), header(), *chunks(), trailer())
    loaded = load_session(ID)
    assert (loaded.verdict, loaded.closed) == ("complete", True)
    assert loaded.chunk_table == ChunkTable(tuple(rows()))
    assert loaded.cumulative_usage == RathLLMTokenUsage(1, 2, 3)
    assert loaded.header.id == ID
    assert loaded.header.parent_session_ids == (PARENT,)
    assert loaded.header.lineage_kind is LineageKind.OP_SESSION_LOOP
    assert loaded.header.lineage_extras == (("k", {"v": 1}),)
    assert loaded.header.created_at == datetime(2025, 3, 1, 12, 0, 0, 500_000, tzinfo=UTC)
    spec = loaded.header.sandbox_spec
    assert spec is not None
    assert (spec.entrypoint, spec.env, spec.timeout) == (("sh",), {"A": "b"}, timedelta(seconds=1.5))
    assert session_file(ID).read_bytes() == data


def test_a_file_that_was_not_closed_loads_under_its_partial_name(home: Path) -> None:
    write(session_partial_file(ID), header(), *chunks()[:2])
    loaded = load_session(ID)
    assert (loaded.verdict, loaded.path, len(loaded.chunk_table)) == ("open", session_partial_file(ID), 2)
    (meta,) = list_persisted_sessions()
    assert (meta.id, meta.chunk_count, meta.closed, meta.path) == (ID, 2, False, session_partial_file(ID))


def test_files_from_windows_and_text_beyond_ascii_load(home: Path) -> None:
    record = {"record_type": "chunk", "index": 0, "kind": "user", "payload": {"content": "ä\u2028\x85 日本"}}
    write(session_file(ID), header(), record, trailer(final_chunk_count=1), end="\r\n")
    loaded = load_session(ID)
    assert loaded.closed
    assert loaded.chunk_table.rows[0].text == "ä\u2028\x85 日本"


def test_a_torn_tail_keeps_what_is_before_it(home: Path) -> None:
    write(session_file(ID), header(), *chunks(), b'{"record_type": "trai')
    loaded = load_session(ID)
    assert (loaded.verdict, loaded.closed, len(loaded.chunk_table)) == ("torn", False, 5)
    write(session_file(ID), header(), *chunks(), bytes(100))
    assert load_session(ID).verdict == "torn"
    write(session_file(ID), header(), *chunks(), bytes(100) + b"\n")
    assert load_session(ID).verdict == "torn"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([header(), *chunks(), trailer(final_chunk_count=4)], "counts 4 rows"),
        ([header(), *chunks(), trailer(), chunks()[0]], "after the trailer"),
        ([header(), header()], "record_type is 'header'"),
        ([header(), b"not json\n", *chunks()], "not JSON"),
        ([header(), {"record_type": "mood"}], "mood"),
        ([header(), {"record_type": "chunk", "index": 0, "kind": "alien", "payload": {}}], "no row"),
        ([header(), {"record_type": "chunk", "index": 0, "kind": "user", "payload": []}], "payload"),
        ([header(), {"record_type": "chunk", "index": 0, "kind": ["user"], "payload": {}}], "no row"),
        ([header(id="x")], "UUID"),
        ([header(epoch="0" * 16)], "hash chain"),
        ([header(h="0" * 16)], "hash chain"),
        ([header(schema_version=0)], "no migration from schema 0"),
        ([header(schema_version=-(10**30))], "no migration"),
    ],
)
def test_contradictions_are_refused(home: Path, lines: list[Any], reason: str) -> None:
    data = write(session_file(ID), *lines)
    with pytest.raises(DamagedLog, match=reason):
        load_session(ID)
    assert session_file(ID).read_bytes() == data


@pytest.mark.slow
def test_every_truncation_is_open_or_torn(home: Path) -> None:
    data = write(session_file(ID), header(), *chunks(), trailer())
    for length in range(len(data)):
        session_file(ID).write_bytes(data[:length])
        try:
            loaded = load_session(ID)
        except PersistenceError:
            assert length <= data.index(b"\n")
            continue
        assert not loaded.closed


@pytest.fixture
def schema_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of a test end with it."""
    monkeypatch.setattr(migrations, "_headers", dict(migrations._headers))
    monkeypatch.setattr(migrations, "_chunks", dict(migrations._chunks))


@pytest.mark.usefixtures("schema_0")
def test_registered_migrations_lift_older_records_in_memory(home: Path) -> None:
    def lift_header(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "id": record["session"]}

    def lift_chunk(record: dict[str, Any]) -> dict[str, Any]:
        return {"record_type": "chunk", "index": record["n"], "kind": "user", "payload": {"content": record["text"]}}

    register_header_migration(0, lift_header)
    register_chunk_migration(0, lift_chunk)
    old = header(schema_version=0, session=str(ID), id=None)
    data = write(
        session_file(ID), old, {"record_type": "chunk", "n": 0, "text": "hi"}, trailer(final_chunk_count=1)
    )
    loaded = load_session(ID)
    assert loaded.closed
    assert (loaded.chunk_table.rows[0].kind, loaded.chunk_table.rows[0].text) == (ChunkKind.USER, "hi")
    assert session_file(ID).read_bytes() == data
    assert [meta.id for meta in list_persisted_sessions()] == [ID]


@pytest.mark.usefixtures("schema_0")
def test_a_migration_that_fails_is_a_persistence_error(home: Path) -> None:
    write(session_file(ID), header(schema_version=0), *chunks())
    for migrate, reason in ((lambda r: 1 / 0, "ZeroDivisionError"), (lambda r: None, "NoneType")):
        register_header_migration(0, migrate)  # type: ignore[arg-type]
        with pytest.raises(PersistenceError, match=reason):
            load_session(ID)


def test_migrations_lead_to_the_current_schema_from_older_ones() -> None:
    for register in (register_header_migration, register_chunk_migration):
        for version in (2, 3, "1"):
            with pytest.raises(UsageValueError):
                register(version, dict)  # type: ignore[arg-type]
        with pytest.raises(UsageTypeError):
            register(0, None)  # type: ignore[arg-type]


def test_a_newer_file_is_refused(home: Path) -> None:
    session_id = uuid4()
    write(session_file(session_id), header(schema_version=99))
    with pytest.raises(PersistenceError, match="schema 99"):
        load_session(session_id)
