"""Repairing a log that stopped: every shape of its end, and a repair that is itself cut off."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from uuid import uuid4

import pytest

from rath.backend.types import BackendSandboxSpec
from rath.errors import DamagedLog, PersistenceError
from rath.session import resume_session
from rath.session.chunk import INTERRUPTED_BODY, ChunkKind, ChunkTable, user_text_chunk
from rath.session.graph import LineageKind, SessionLineage
from rath.session.persistence import SessionWriter, load_session
from rath.session.persistence.paths import lock_file
from rath.session.persistence.resume import repair_log
from rath.session.persistence.runlog import JsonlRunLog, open_run_log
from rath.session.session import Session
from rath.testing import check_history
from tests.persistence.samples import (
    OK,
    appended,
    assistant,
    finished,
    rechained,
    records,
    result,
    rows,
    started,
    used,
    write_sample,
)


@pytest.fixture
def log(tmp_path: Path) -> JsonlRunLog:
    """The log of a run that asked for calls ``a``, ``b`` and ``c``."""
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl", seed=ChunkTable((user_text_chunk("go"),)))
    log.on_event(used())
    log.on_event(appended(1, assistant("a", "b", "c")))
    return log


def left(log: JsonlRunLog) -> bytes:
    """The log's bytes once its writer is gone."""
    log.abandon()
    return log.path.read_bytes()


def bodies(session: Session) -> list[tuple[str | None, str | None]]:
    return [(row.tool_call_id, row.text) for row in session.chunk_table if row.kind is ChunkKind.TOOL_RESULT]


def test_a_call_without_a_result_is_marked_in_the_log_and_nothing_else_is_written(log: JsonlRunLog) -> None:
    log.on_event(started("a"))
    before = left(log)
    session = resume_session(log.path)
    assert bodies(session) == [("a", INTERRUPTED_BODY), ("b", INTERRUPTED_BODY), ("c", INTERRUPTED_BODY)]
    check_history(session)
    assert log.path.read_bytes().startswith(before)
    added = records(log.path)[5:]
    assert [(r["record_type"], r["call_id"], r["index"]) for r in added] == [
        ("tool_result", "a", 2),
        ("tool_result", "b", 3),
        ("tool_result", "c", 4),
    ]
    assert added[0].keys() == {"record_type", "seq", "call_id", "index", "payload", "h"}
    assert load_session("", path=log.path).chunk_table.digest == session.digest
    assert not lock_file(log.path).exists()


def test_durable_results_of_a_parallel_round_are_kept_in_their_places(log: JsonlRunLog) -> None:
    for call in "abc":
        log.on_event(started(call))
    log.on_event(finished("b", 3, '{"b":1}'))
    left(log)
    repair = repair_log(log.path)
    assert bodies(repair.session) == [("a", INTERRUPTED_BODY), ("b", '{"b":1}'), ("c", INTERRUPTED_BODY)]
    assert repair.interrupted == (("a", "probe"), ("c", "probe"))
    assert (repair.verdict, repair.torn_bytes) == ("open", 0)
    check_history(repair.session)
    assert load_session("", path=log.path).chunk_table == repair.session.chunk_table


def test_a_round_whose_rows_are_half_written_is_completed(log: JsonlRunLog) -> None:
    for at, call in enumerate("abc"):
        log.on_event(started(call))
        log.on_event(finished(call, 2 + at))
    log.on_event(appended(2, result("a")))
    before = left(log)
    session = resume_session(log.path)
    assert bodies(session) == [("a", OK), ("b", OK), ("c", OK)]
    assert log.path.read_bytes() == before  # everything was durable: there was nothing to write


def test_a_torn_line_is_cut_off(log: JsonlRunLog) -> None:
    before = left(log)
    with log.path.open("ab") as file:
        file.write(b'{"record_type":"tool_intent","seq":3,"call_id":"a\xff\x00')
    repair = repair_log(log.path)
    assert (repair.verdict, repair.torn_bytes) == ("torn", 51)
    assert log.path.read_bytes().startswith(before + b'{"record_type":"tool_result"')
    assert records(log.path)
    check_history(repair.session)


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\0\0\n", b"\0" * 10 + b"\n" + b"\0" * 10])
def test_what_a_power_cut_leaves_of_blocks_is_cut_off(log: JsonlRunLog, tail: bytes) -> None:
    before = left(log)
    log.path.write_bytes(before + tail)
    repair = repair_log(log.path)
    assert (repair.verdict, repair.torn_bytes) == ("torn", len(tail))
    check_history(repair.session)
    assert records(log.path)


@pytest.mark.slow
def test_a_repair_cut_off_at_any_byte_is_finished_by_the_next_one_byte_for_byte(log: JsonlRunLog) -> None:
    log.on_event(started("b"))
    log.on_event(finished("b", 3))
    before = left(log)
    log.path.write_bytes(before + b'{"torn')
    digest = resume_session(log.path).digest
    whole = log.path.read_bytes()
    assert len(whole) > len(before) + 200
    for cut in range(len(before), len(whole) + 1):
        log.path.write_bytes(whole[:cut])
        assert resume_session(log.path).digest == digest, cut
        assert log.path.read_bytes() == whole, cut


def test_a_log_that_lacks_only_its_trailer_stays_as_it_is(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.jsonl")
    *lines, _trailer = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    session = resume_session(tmp_path / "a.jsonl")
    assert session.chunk_table.rows == tuple(rows())
    assert (session.cumulative_usage and session.cumulative_usage.total_tokens) == 120  # of its usage records
    assert (tmp_path / "a.jsonl").read_bytes() == b"".join(lines)


def test_a_complete_log_is_just_loaded_without_a_lock(tmp_path: Path) -> None:
    origin = Session.from_user_message("go")
    write_sample(tmp_path / "a.jsonl", origin)
    before = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "a.jsonl.lock").write_text("of something else")  # a lock could not be had
    repair = repair_log(tmp_path / "a.jsonl")
    assert (repair.verdict, repair.torn_bytes, repair.interrupted) == ("complete", 0, ())
    assert (repair.session.id, repair.session.chunk_table.rows) == (origin.id, tuple(rows()))
    assert (tmp_path / "a.jsonl").read_bytes() == before


def test_what_stands_behind_a_trailer_and_is_no_record_is_cut_off(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.jsonl")
    before = (tmp_path / "a.jsonl").read_bytes()
    for tail in (b'{"record_type":"resu', b"\0\0\n"):
        (tmp_path / "a.jsonl").write_bytes(before + tail)
        assert repair_log(tmp_path / "a.jsonl").torn_bytes == len(tail)
        assert (tmp_path / "a.jsonl").read_bytes() == before


def test_the_session_is_who_the_log_says_it_is(tmp_path: Path) -> None:
    spec = BackendSandboxSpec(working_dir=str(tmp_path), env={"TOKEN": "x"})
    parents = (uuid4(), uuid4())
    origin = Session.from_user_message("go").to("local", spec=spec)
    origin = origin.with_lineage(parents, "run_session_loop", LineageKind.OP_SESSION_LOOP, (("k", [1]),))
    open_run_log(origin, path=tmp_path / "a.jsonl").abandon()
    session = resume_session(tmp_path / "a.jsonl")
    assert (session.id, session.parent_session_ids) == (origin.id, parents)
    assert (session.lineage_operator, session.lineage_kind) == ("run_session_loop", LineageKind.OP_SESSION_LOOP)
    assert session.lineage_extras == (("k", [1]),)
    assert session.lineage == SessionLineage(*parents, "run_session_loop")
    assert (session.sandbox_backend, session.sandbox) == ("local", None)  # placed, not opened
    assert session.sandbox_spec == BackendSandboxSpec(working_dir=str(tmp_path))  # no value of a variable is in a log
    assert (session.status, session.cumulative_usage) == ("completed", None)


def test_a_log_is_found_by_id_as_uuid_or_text_and_by_path(home: Path) -> None:
    origin = Session.from_user_message("go")
    path = home / "sessions" / f"{origin.id}.jsonl"
    write_sample(path, origin)
    for given in (origin.id, str(origin.id), str(origin.id).upper(), path, str(path)):
        assert resume_session(given).id == origin.id
    for missing in (uuid4(), str(uuid4()), path.with_name("other.jsonl"), "nothing"):
        with pytest.raises(PersistenceError):
            resume_session(missing)
    other = uuid4()
    path.rename(path.with_name(f"{other}.jsonl"))
    with pytest.raises(DamagedLog, match=f"the header is of session {origin.id}"):
        resume_session(other)


def test_a_living_writer_is_named_and_not_disturbed(home: Path) -> None:
    origin = Session.from_user_message("go")
    with SessionWriter(origin) as writer:
        writer.write_chunk(0, user_text_chunk("x"))
        before = writer.path.read_bytes()
        with pytest.raises(PersistenceError, match=f"process {os.getpid()} on '{platform.node()}'"):
            resume_session(origin.id)
        assert writer.path.read_bytes() == before
    assert resume_session(origin.id).chunk_table.rows == (user_text_chunk("x"),)


def test_a_damaged_log_is_refused_with_the_remedy_and_stays_as_it_is(log: JsonlRunLog) -> None:
    data = left(log)
    changed = data.replace(b'"model-1"', b'"model-2"')
    log.path.write_bytes(changed)
    with pytest.raises(DamagedLog, match="does not match its hash.*`rath sessions salvage ") as caught:
        resume_session(log.path)
    assert (caught.value.verdict, caught.value.line) == ("damaged", 3)
    assert log.path.read_bytes() == changed
    assert not lock_file(log.path).exists()


@pytest.mark.parametrize("data", [b"", b'{"record_type":"header","se', b"\0" * 100])
def test_a_file_without_a_whole_header_has_nothing_to_go_on_with(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(DamagedLog, match="delete it"):
        resume_session(tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == data


def test_a_log_of_schema_1_is_loaded_and_not_changed(tmp_path: Path) -> None:
    session_id = uuid4()
    header = {
        "record_type": "header", "schema_version": 1, "id": str(session_id), "created_at": "2026-01-02T03:04:05+00:00",
        "parent_session_ids": [], "lineage_operator": "x", "lineage_kind": "unknown", "lineage_extras": [],
        "sandbox_backend": None, "sandbox_spec": None, "sandbox_handle_id": None,
    }  # fmt: skip
    lines = [header, {"record_type": "chunk", "index": 0, "kind": "user", "payload": {"content": "go"}}]
    call = {"id": "a", "type": "function", "function": {"name": "probe", "arguments": "{}"}}
    lines.append({"record_type": "chunk", "index": 1, "kind": "assistant", "payload": {"content": None, "tool_calls": [call]}})
    data = "".join(json.dumps(line) + "\n" for line in lines).encode() + b'{"record'
    (tmp_path / "a.jsonl").write_bytes(data)
    session = resume_session(tmp_path / "a.jsonl")
    assert (session.id, bodies(session)) == (session_id, [("a", INTERRUPTED_BODY)])
    check_history(session)
    assert (tmp_path / "a.jsonl").read_bytes() == data


UNFIT = {
    "a call in the middle without a result": [assistant("a"), user_text_chunk("x")],
    "a result without a call": [result("a")],
    "two results for a call": [assistant("a"), result("a"), result("a")],
}


@pytest.mark.parametrize("table", UNFIT.values(), ids=UNFIT)
def test_rows_written_by_hand_that_no_provider_takes_are_mended_in_memory_only(tmp_path: Path, table: list) -> None:
    with SessionWriter(Session.from_user_message("x"), path=tmp_path / "a.jsonl") as writer:
        writer.write_chunk(0, user_text_chunk("go"))
        for index, row in enumerate(table, 1):
            writer.write_chunk(index, row)
        before = writer.path.read_bytes()
        writer.abandon()
    session = resume_session(writer.path)
    check_history(session)
    assert resume_session(writer.path).digest == session.digest
    assert writer.path.read_bytes() == before


@pytest.mark.parametrize("event", [finished("x", 2), finished("b", 2), finished("a", 5), finished("a", 9)], ids=str)
def test_results_that_belong_to_no_call_of_the_last_reply_are_not_built_on(log: JsonlRunLog, event: object) -> None:
    log.on_event(event)  # type: ignore[arg-type]
    before = left(log)
    session = resume_session(log.path)
    check_history(session)
    assert log.path.read_bytes() == before
    assert resume_session(log.path).digest == session.digest


def test_calls_of_rows_from_before_a_run_that_had_not_begun_are_not_marked(tmp_path: Path) -> None:
    # Their results were known to whoever started the run; the log had not got so far.
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl", seed=ChunkTable(tuple(rows())))
    left(log)
    before = b"".join(log.path.read_bytes().splitlines(keepends=True)[:3])
    log.path.write_bytes(before)
    check_history(resume_session(log.path))
    assert log.path.read_bytes() == before


def test_readers_take_a_resume_record_anywhere_and_other_records_behind_a_trailer_only_after_it(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.jsonl")
    edited = records(tmp_path / "a.jsonl")
    for record in edited:
        del record["seq"]
    resume = {"record_type": "resume", "epoch": "0" * 16, "writer": {}, "repaired": {"torn_bytes": 0, "open_calls": 0}}
    row = {"record_type": "usage", "model": "m"}
    for extra, verdict in (([resume], "open"), ([resume, row], "open"), ([row], None), ([row, resume], None)):
        rechained(tmp_path / "b.jsonl", edited + extra)
        if verdict is None:
            with pytest.raises(DamagedLog, match="a record after the trailer"):
                load_session("", path=tmp_path / "b.jsonl")
            continue
        loaded = load_session("", path=tmp_path / "b.jsonl")
        assert (loaded.verdict, len(loaded.chunk_table)) == (verdict, 5)
    again = {**edited[-1], "record_count": len(edited) + 2}
    rechained(tmp_path / "b.jsonl", [*edited, resume, again])
    assert load_session("", path=tmp_path / "b.jsonl").closed
    rechained(tmp_path / "b.jsonl", [*edited, resume, edited[-1]])
    with pytest.raises(DamagedLog, match="the trailer counts"):
        load_session("", path=tmp_path / "b.jsonl")
