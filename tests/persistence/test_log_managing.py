from __future__ import annotations

import logging
import os
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from rath.errors import PersistenceError, UsageTypeError, UsageValueError
from rath.session.chunk import user_text_chunk
from rath.session.graph.kind import LineageKind
from rath.session.persistence import (
    PersistedSessionMeta,
    SessionWriter,
    delete_session,
    ensure_sessions_dir,
    list_persisted_sessions,
    load_session,
    prune_sessions,
    session_file,
    session_partial_file,
    sessions_dir,
)
from rath.session.persistence.lock import DIRECTORY_LOCK
from rath.session.persistence.runlog import open_run_log
from rath.session.session import Session
from rath.testing.pace import within
from tests.persistence.samples import rechained, records, rows, run_until_results, write_sample


def write_log(created: datetime | None = None) -> UUID:
    session = Session.create("user", "go")
    path = session_file(session.id)
    write_sample(path, session)
    if created is not None:
        edited = records(path)
        edited[0]["created_at"] = created.isoformat()
        rechained(path, edited)
    return session.id


def left(home: Path) -> list[str]:
    """What is in the sessions directory, but its lock, which stays."""
    return [name for name in os.listdir(home / "sessions") if name != DIRECTORY_LOCK]


def test_an_empty_place_lists_nothing_and_makes_nothing(home: Path) -> None:
    assert list_persisted_sessions() == []
    assert prune_sessions(older_than=timedelta(0)) == []
    assert not home.exists()
    assert ensure_sessions_dir() == sessions_dir() == home / "sessions"
    assert list_persisted_sessions() == []


def test_logs_are_listed_newest_first(home: Path) -> None:
    now = datetime.now(UTC)
    made = [write_log(now - timedelta(days=days)) for days in (3, 1, 2)]
    listed = list_persisted_sessions()
    assert [meta.id for meta in listed] == [made[1], made[2], made[0]]
    assert listed[0] == PersistedSessionMeta(
        id=made[1],
        path=session_file(made[1]),
        created_at=now - timedelta(days=1),
        lineage_operator="Session.create",
        lineage_kind=LineageKind.LEAF_USER,
        chunk_count=5,
        closed=True,
    )


def test_a_listing_counts_the_rows_of_open_and_torn_logs(home: Path) -> None:
    log = open_run_log(Session.from_user_message("go"))
    assert list_persisted_sessions()[0].chunk_count == 0
    run_until_results(log)
    (meta,) = list_persisted_sessions()
    assert (meta.chunk_count, meta.closed) == (4, False)  # two results, whose rows are there as soon as they are
    for index in (2, 3):
        log.append_row(index, rows()[index])
    for index, size in enumerate((10, 5000, 100_000), start=4):
        log.append_row(index, user_text_chunk("x" * size))
        assert list_persisted_sessions()[0].chunk_count == index + 1
    log.abandon()
    data = log.path.read_bytes()
    log.path.write_bytes(data[:-50])
    (meta,) = list_persisted_sessions()
    assert (meta.chunk_count, meta.closed) == (6, False)


def test_a_closed_log_stays_closed_in_the_listing_whatever_its_size(home: Path) -> None:
    session = Session.from_user_message("x" * 10_000)
    with SessionWriter(session) as writer:
        for index in range(3):
            writer.write_chunk(index, user_text_chunk("x" * 100_000))
    (meta,) = list_persisted_sessions()
    assert (meta.chunk_count, meta.closed) == (3, True)
    with writer.path.open("ab") as file:
        file.write(b"torn")
    (meta,) = list_persisted_sessions()
    assert (meta.chunk_count, meta.closed) == (3, False)


def test_a_header_longer_than_a_page_is_listed(home: Path) -> None:
    extras = tuple((f"k{i}", "x" * 100) for i in range(100))
    session = Session(Session.from_user_message("x").chunk_table, lineage_extras=extras)
    write_sample(session_file(session.id), session)
    assert [meta.id for meta in list_persisted_sessions()] == [session.id]


def test_broken_files_are_left_out_and_named(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = write_log()
    broken: dict[str, bytes] = {
        "empty": b"",
        "text": b"hello\n",
        "torn": b'{"record_type":"head',
        "nul": bytes(5000),
        "newer": b'{"record_type":"header","schema_version":3}\n',
        "deep": b"[" * 100_000 + b"\n",
        "no id": b'{"record_type":"header","schema_version":2}\n',
        "early": b'{"record_type":"header","schema_version":1,"id":"%b","created_at":"0001-01-01T00:00+14:00"}\n'
        % str(good).encode(),
    }
    for name, data in broken.items():
        (home / "sessions" / f"{name}.jsonl").write_bytes(data)
    (home / "sessions" / "dir.jsonl").mkdir()
    os.mkfifo(home / "sessions" / "pipe.jsonl")
    (home / "sessions" / "other.txt").write_bytes(b"not ours")
    (home / "sessions" / "dangling.jsonl").symlink_to(home / "nowhere")
    with caplog.at_level(logging.WARNING, "rath.session.persistence"):
        assert [meta.id for meta in list_persisted_sessions()] == [good]
    named = " ".join(record.getMessage() for record in caplog.records)
    for name in (*broken, "dir", "pipe"):
        assert f"{name}.jsonl" in named
    assert "other.txt" not in named
    assert prune_sessions(older_than=timedelta(0)) == [good]
    assert len(left(home)) == len(broken) + 4


def test_a_sessions_directory_that_is_none_is_a_persistence_error(home: Path) -> None:
    home.mkdir()
    (home / "sessions").touch()
    with pytest.raises(PersistenceError, match="Not a directory"):
        list_persisted_sessions()
    with pytest.raises(PersistenceError, match="Not a directory"):
        ensure_sessions_dir()


@pytest.mark.slow
def test_listing_reads_only_the_edges_of_a_file(home: Path) -> None:
    session_id = write_log()
    path = session_file(session_id)
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    with path.open("wb") as file:  # 8 GB of nothing between header and end: to read it would take seconds
        file.write(data[:first])
        file.truncate(8 << 30)
        file.seek(8 << 30)
        file.write(b"\n" + data[first:])
    tracemalloc.start()
    started = time.perf_counter()
    (meta,) = list_persisted_sessions()
    took = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (meta.id, meta.chunk_count, meta.closed) == (session_id, 5, True)
    assert took < within(0.5)
    assert peak < 1_000_000
    with pytest.raises(PersistenceError):
        load_session(session_id)


@pytest.mark.slow
def test_ten_thousand_logs_are_listed_within_a_second(home: Path) -> None:
    data = session_file(write_log()).read_bytes()
    for number in range(9_999):
        session_file(UUID(int=number)).write_bytes(data)
    took_s = []
    for _ in range(3):  # this process's own time: the files are in memory, and machines have other things to do
        started = time.process_time()
        assert len(list_persisted_sessions()) == 10_000
        took_s.append(time.process_time() - started)
    assert min(took_s) < within(1)


def test_deleting_says_whether_there_was_a_log(home: Path, tmp_path: Path) -> None:
    session_id = write_log()
    assert delete_session(str(session_id)) is True
    assert delete_session(session_id) is False
    assert left(home) == []
    write_sample(tmp_path / "elsewhere.jsonl")
    assert delete_session(session_id, path=tmp_path / "elsewhere.jsonl") is True
    assert delete_session(session_id, path=tmp_path / "elsewhere.jsonl") is False
    with pytest.raises(PersistenceError, match="not a session id"):
        delete_session("../../etc/passwd")


def test_deleting_removes_the_older_form_too(home: Path) -> None:
    session_id = uuid4()
    ensure_sessions_dir()
    for path in (session_file(session_id), session_partial_file(session_id)):
        path.write_bytes(b"x")
    assert delete_session(session_id)
    assert left(home) == []


def test_a_log_that_openrath_is_writing_is_not_deleted(home: Path) -> None:
    import fcntl

    session_id = write_log(datetime.now(UTC) - timedelta(days=9))
    partial = session_partial_file(session_id)
    session_file(session_id).rename(partial)
    with partial.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as OpenRath 1.2 does
        with pytest.raises(PersistenceError, match="being written"):
            delete_session(session_id)
        assert prune_sessions(older_than=timedelta(days=1)) == []
    assert prune_sessions(older_than=timedelta(days=1)) == [session_id]


def test_pruning_removes_what_is_older_and_nothing_else(home: Path) -> None:
    now = datetime.now(UTC)
    old = [write_log(now - timedelta(days=days)) for days in (40, 31)]
    young = write_log(now - timedelta(days=29))
    assert prune_sessions(older_than=timedelta(days=30)) == [old[1], old[0]]
    assert [meta.id for meta in list_persisted_sessions()] == [young]
    assert prune_sessions(older_than=timedelta.max) == []
    assert left(home) == [f"{young}.jsonl"]


def test_pruning_never_removes_a_log_whose_lock_is_held(home: Path) -> None:
    with SessionWriter(Session.from_user_message("go")) as writer:
        time.sleep(0.001)
        assert prune_sessions(older_than=timedelta(0)) == []
    assert prune_sessions(older_than=timedelta(0)) == [UUID(writer.path.stem)]


def test_pruning_takes_a_span_into_the_past() -> None:
    with pytest.raises(UsageValueError):
        prune_sessions(older_than=timedelta(seconds=-1))
    with pytest.raises(UsageTypeError):
        prune_sessions(older_than=5)  # type: ignore[arg-type]
