"""A directory of logs as a collection, and what prune takes and leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from rath.errors import PersistenceError, UsageError, UsageTypeError, UsageValueError
from rath.llm.provider import Provider
from rath.session.persistence import (
    delete_session,
    open_dir,
    pin_session,
    prune_sessions,
    session_file,
    unpin_session,
    verify,
)
from rath.session.persistence.lock import DIRECTORY_LOCK
from rath.session.persistence.paths import pin_file
from rath.session.persistence.prune import prunable, prune_entries
from rath.session.persistence.runlog import open_run_log
from rath.session.session import Session
from tests.persistence.samples import rechained, records, run_until_results, write_sample

NOW = datetime.now(UTC)


def log_of(days: float = 0, *, cut: int = 0, damage: bool = False) -> Session:
    """A log in the sessions directory, created some days ago."""
    session = Session.create("user", "go")
    path = session_file(session.id)
    write_sample(path, session)
    edited = records(path)
    edited[0]["created_at"] = (NOW - timedelta(days=days)).isoformat()
    rechained(path, edited)
    data = path.read_bytes()
    if damage:
        data = data.replace(b'"call_id":"b"', b'"call_id":"c"', 1)
    path.write_bytes(data[: len(data) - cut])
    return session


def ids(logs: Any) -> list[Any]:
    return [entry.id for entry in logs]


def test_a_directory_that_is_not_there_is_empty_and_is_not_made(home: Path) -> None:
    logs = open_dir()
    assert (list(logs), len(logs), bool(logs)) == ([], 0, False)
    assert not home.exists()
    assert logs.path == home / "sessions"


def test_logs_come_newest_first_with_what_their_ends_say() -> None:
    old, new = log_of(2), log_of(1)
    logs = open_dir()
    assert ids(logs) == [new.id, old.id]
    assert len(logs) == 2
    entry = next(iter(logs))
    assert (entry.rows, entry.verdict, entry.checked) == (5, "complete", False)
    assert (entry.operator, entry.size_bytes) == (new.lineage_operator, session_file(new.id).stat().st_size)


def test_filters_compose_and_are_lazy(tmp_path: Path) -> None:
    logs = open_dir()
    recent = logs.where(since=NOW - timedelta(days=5)).where(until=(NOW - timedelta(days=1)).isoformat())
    first, second, _ = log_of(3), log_of(2), log_of(9)
    assert ids(recent) == [second.id, first.id]
    assert len(recent) == 2
    third = log_of(2.5)
    assert ids(recent) == [second.id, third.id, first.id]
    assert ids(recent.where(operator=first.lineage_operator)) == ids(recent)
    assert ids(recent.where(operator="another")) == []
    assert not recent.where(operator="another")


def test_a_verdict_is_that_of_the_whole_file() -> None:
    whole, cut, damaged = log_of(1), log_of(2, cut=5), log_of(3, damage=True)
    logs = open_dir()
    assert [entry.verdict for entry in logs] == ["complete", "torn", "complete"]
    assert ids(logs.where(verdict="complete")) == [whole.id]
    assert ids(logs.where(verdict=("torn", "damaged"))) == [cut.id, damaged.id]
    found = next(iter(logs.where(verdict="damaged")))
    assert (found.checked, found.rows) == (True, 2)
    assert "hash" in str(found.reason)


def test_what_is_no_log_or_of_a_newer_version_is_there_too() -> None:
    session_file(log_of().id)
    newer = session_file(log_of(1).id)
    rechained(newer, [records(newer)[0] | {"schema_version": 9}])
    (newer.parent / "x.jsonl").write_bytes(b"")
    (newer.parent / "y.jsonl").write_bytes(b"hello\n")
    os.mkfifo(newer.parent / "z.jsonl")
    (newer.parent / "notes.txt").write_text("no log")
    found = {entry.path.name: entry.verdict for entry in open_dir().verify_all()}
    assert len(found) == 5
    assert (found["x.jsonl"], found["y.jsonl"]) == ("torn", "damaged")
    assert (found[newer.name], found["z.jsonl"]) == ("unreadable", "unreadable")


def test_text_is_looked_for_in_what_rows_say() -> None:
    session = Session.create("user", "go")
    log = open_run_log(session, provider=Provider(model="openai:gpt-x"))
    run_until_results(log)
    log.abandon()
    log_of(1)
    logs = open_dir()
    assert ids(logs.where(text="ON IT", model="gpt-x")) == [session.id]
    assert ids(logs.where(model="other")) == []
    assert len(logs.where(text="done")) == 1
    assert len(logs.where(text="not there")) == 0
    assert len(logs.where(text='{"x":1}')) == 2  # a call's arguments


def test_a_session_is_loaded_by_its_id_from_its_directory(tmp_path: Path) -> None:
    session = Session.create("user", "go")
    write_sample(tmp_path / f"{session.id}.jsonl", session)
    logs = open_dir(tmp_path)
    assert logs.load(str(session.id)).header.id == session.id
    for name in ("../../x", str(uuid4()), ""):
        with pytest.raises(PersistenceError):
            logs.load(name)
    other = uuid4()
    (tmp_path / f"{session.id}.jsonl").rename(tmp_path / f"{other}.jsonl")
    with pytest.raises(PersistenceError, match=str(session.id)):
        logs.load(other)
    with pytest.raises(PersistenceError, match="not a directory"):
        open_dir(tmp_path / f"{other}.jsonl")


def test_progress_is_told_after_each_log() -> None:
    for days in range(3):
        log_of(days)
    told: list[tuple[int, int]] = []
    assert [entry.checked for entry in open_dir().verify_all(lambda *done: told.append(done))] == [True] * 3
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_records_are_plain_and_a_frame_needs_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    session = log_of()
    (record,) = open_dir().to_records()
    assert (record["id"], record["verdict"], record["rows"]) == (str(session.id), "complete", 5)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        open_dir().to_frame()


def test_a_frame_has_a_row_for_each_log() -> None:
    pytest.importorskip("pandas")
    session = log_of()
    frame = open_dir().to_frame()
    assert list(frame["id"]) == [str(session.id)]
    assert frame["created_at"].iloc[0].tzinfo is not None


def test_in_a_notebook_everything_is_text() -> None:
    path = session_file(log_of().id)
    edited = records(path)
    edited[0]["lineage_operator"] = "<script>alert(1)</script>\x1b[31m"
    edited[0]["provider"] = {"model": "<img src=x>"}
    rechained(path, edited)
    html = open_dir()._repr_html_()
    assert "&lt;script&gt;" in html
    assert "&lt;img" in html
    assert "<script" not in html
    assert "<img" not in html
    assert "\x1b" not in html


def test_what_is_no_verdict_or_time_is_said_to_be_none() -> None:
    for wrong in ({"verdict": "fine"}, {"verdict": ()}, {"since": "tomorrow"}, {"until": ""}):
        with pytest.raises(UsageValueError):
            open_dir().where(**wrong)
    with pytest.raises(UsageTypeError):
        open_dir().where(since=5)  # type: ignore[arg-type]
    for wrong in ({"verdict": 3}, {"operator": 3}, {"operator": [3]}, {"text": b"x"}, {"model": 3}):
        with pytest.raises(UsageTypeError):
            open_dir().where(**wrong)


def test_several_operators_can_be_asked_for() -> None:
    log_of()
    assert len(open_dir().where(operator=("implicit", "Session.create", "x"))) == 1
    assert len(open_dir().where(operator={"x"})) == 0


def test_a_data_directory_means_the_logs_in_it(home: Path) -> None:
    session = log_of()
    assert open_dir(home).path == home / "sessions"
    assert ids(open_dir(home)) == [session.id]
    log = home / "other.jsonl"
    log.write_bytes(session_file(session.id).read_bytes())
    assert [entry.path for entry in open_dir(home)] == [log]


@pytest.mark.parametrize("moment", [1e12, -1e12])
def test_a_file_that_was_changed_in_no_year_is_listed(tmp_path: Path, moment: float) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"")
    try:
        os.utime(path, (moment, moment))
    except OSError:
        pytest.skip("the file system has no such time")
    (entry,) = open_dir(tmp_path)
    assert (entry.verdict, entry.created_at.tzinfo) == ("torn", UTC)


# -- pruning ------------------------------------------------------------------------------------------------------------


def test_old_logs_go_and_pinned_and_living_ones_stay() -> None:
    old, pinned, young = log_of(9), log_of(8), log_of(1)
    pin_session(pinned.id)
    pin_session(session_file(pinned.id))
    log = open_run_log(Session.create("user", "go"))
    assert prune_sessions(older_than=timedelta(days=5), dry_run=True) == [old.id]
    assert session_file(old.id).exists()
    assert prune_sessions(older_than=timedelta(days=5)) == [old.id]
    assert prune_sessions(older_than=timedelta()) == [young.id]
    assert unpin_session(pinned.id)
    assert not unpin_session(pinned.id)
    assert prune_sessions(older_than=timedelta()) == [pinned.id]
    assert log.path.exists()
    log.abandon()
    assert [path.name for path in log.path.parent.iterdir() if path.name != DIRECTORY_LOCK] == [log.path.name]


def test_only_logs_of_a_verdict_go() -> None:
    log_of(9)
    cut, damaged = log_of(8, cut=5), log_of(7, damage=True)
    assert prune_sessions(older_than=timedelta(days=1), verdict="damaged", dry_run=True) == [damaged.id]
    assert prune_sessions(older_than=timedelta(days=1), verdict=["torn", "damaged"]) == [damaged.id, cut.id]
    assert len(open_dir()) == 1


def test_a_log_that_was_pinned_meanwhile_stays() -> None:
    session = log_of(9)
    found = prunable(older_than=timedelta(days=1))
    pin_session(session.id)
    assert prune_entries(found.gone).gone == ()
    assert verify(session.id).verdict == "complete"


@pytest.mark.slow
def test_two_processes_do_not_prune_at_once() -> None:
    session = log_of(9)
    lock = session_file(session.id).with_name(DIRECTORY_LOCK)
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(PersistenceError, match="is not free"):
            prune_sessions(older_than=timedelta(days=1))
        with pytest.raises(PersistenceError, match="is not free"):
            delete_session(session.id)
        with pytest.raises(PersistenceError, match="cannot pin"):
            pin_session(session.id)
    finally:
        holder.communicate("")
    assert prune_sessions(older_than=timedelta(days=1)) == [session.id]


_HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_pin_goes_with_its_log() -> None:
    session = log_of()
    pin_session(session.id)
    assert pin_file(session_file(session.id)).exists()
    assert delete_session(session.id)
    assert [path.name for path in session_file(session.id).parent.iterdir()] == [DIRECTORY_LOCK]
    with pytest.raises(PersistenceError, match="no log"):
        pin_session(session.id)
