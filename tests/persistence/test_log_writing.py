from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rath.backend.types import BackendSandboxSpec
from rath.core.redact import register_secret
from rath.errors import PersistenceError, UsageTypeError, UsageValueError
from rath.llm.provider import Provider
from rath.session.chunk import ChunkKind, ChunkTable, user_text_chunk
from rath.session.persistence import SessionWriter, load_session, session_file
from rath.session.persistence.lock import owner
from rath.session.persistence.paths import lock_file
from rath.session.persistence.runlog import arguments_digest, open_run_log
from rath.session.session import Session
from tests.persistence.samples import (
    USAGE,
    appended,
    finished,
    records,
    result,
    rows,
    run_until_results,
    started,
    used,
    write_sample,
)


def test_the_header_is_there_before_anything_else(tmp_path: Path) -> None:
    session = Session.create("user", "go")
    before = datetime.now(UTC)
    with SessionWriter(session, sandbox_handle_id="box-1", path=tmp_path / "a.jsonl") as writer:
        (header,) = records(writer.path)
    assert header["record_type"] == "header"
    assert header["schema_version"] == 2
    assert header["id"] == str(session.id)
    assert before <= datetime.fromisoformat(header["created_at"]) <= datetime.now(UTC)
    assert header["created_at"].endswith("+00:00")
    assert len(header["created_at"]) == len("2025-01-01T00:00:00.000000+00:00")
    assert header["writer"] == owner()
    assert header["lineage_kind"] == "leaf_user"
    assert header["lineage_extras"] == [["source", "Session.create"]]
    assert header["sandbox_handle_id"] == "box-1"
    assert header["prefix"] is None


def test_a_log_has_the_documented_records_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    session = write_sample(path)
    found = records(path)
    assert [r["record_type"] for r in found] == [
        "header", "chunk", "usage", "chunk", "tool_intent", "tool_intent", "tool_result", "tool_result",
        "chunk", "trailer",
    ]  # fmt: skip
    # Rows 2 and 3 are the results: written once.
    assert [r["index"] for r in found if r["record_type"] == "chunk"] == [0, 1, 4]
    assert found[2] | {"h": "", "seq": 0} == {
        "record_type": "usage", "seq": 0, "prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120,
        "model": "model-1", "price": None, "h": "",
    }  # fmt: skip
    assert found[4]["call_id"] == "a"
    assert found[4]["name"] == "probe"
    assert found[4]["idempotent"] is True
    assert found[4]["arguments_digest"] == arguments_digest('{"x":1}')
    assert found[6]["call_id"] == "b"
    assert found[6]["index"] == 3
    assert found[6]["payload"] == result("b").payload
    trailer = found[-1]
    assert trailer["final_chunk_count"] == 5
    assert trailer["record_count"] == len(found)
    assert trailer["digest"] == ChunkTable(tuple(rows())).digest.hex()
    assert trailer["cumulative_usage"] == {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    assert trailer["lineage_extras"] == [list(pair) for pair in session.lineage_extras]
    assert trailer["outcome"] == {"status": "completed"}


def test_a_row_stands_in_the_log_in_its_own_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    data = path.read_bytes()
    for row in rows():
        as_chunk = b'"row":' + row.encoded + b"," in data
        as_result = b'"payload":' + row.encoded_payload + b"," in data
        assert (as_chunk, as_result) == ((False, True) if row.kind is ChunkKind.TOOL_RESULT else (True, False))


def test_a_tools_intent_is_in_the_file_when_on_event_returns(tmp_path: Path) -> None:
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    log.on_event(started("a"))
    assert records(log.path)[-1]["record_type"] == "tool_intent"
    log.on_event(finished("a", 0))
    assert records(log.path)[-1]["record_type"] == "tool_result"
    log.abandon()


def test_session_writer_writes_rows_in_order_only(tmp_path: Path) -> None:
    with SessionWriter(Session.from_user_message("go"), path=tmp_path / "a.jsonl") as writer:
        assert writer.chunks_written == 0
        with pytest.raises(UsageValueError, match="next index is 0"):
            writer.write_chunk(1, user_text_chunk("x"))
        writer.write_chunk(0, user_text_chunk("x"))
        with pytest.raises(UsageValueError, match="next index is 1"):
            writer.write_chunk(0, user_text_chunk("x"))
        with pytest.raises(UsageTypeError):
            writer.write_chunk(1, "x")  # type: ignore[arg-type]
        assert writer.chunks_written == 1
    assert load_session("", path=writer.path).closed  # a wrong call is no failed write


def test_the_log_has_its_name_from_the_first_byte(home: Path) -> None:
    session = Session.from_user_message("go")
    writer = SessionWriter(session)
    assert writer.path == writer.partial_path == session_file(session.id) == home / "sessions" / f"{session.id}.jsonl"
    assert writer.path.exists()
    assert not load_session(session.id).closed
    writer.close()
    assert load_session(session.id).closed
    assert os.listdir(home / "sessions") == [writer.path.name]


def test_leaving_with_an_exception_leaves_no_trailer(home: Path) -> None:
    session = Session.from_user_message("go")

    def fail_after_a_row() -> None:
        with SessionWriter(session) as writer:
            writer.write_chunk(0, user_text_chunk("x"))
            1 / 0

    with pytest.raises(ZeroDivisionError):
        fail_after_a_row()
    loaded = load_session(session.id)
    assert not loaded.closed
    assert loaded.verdict == "open"
    assert len(loaded.chunk_table) == 1


def test_closing_and_abandoning_twice_is_once(home: Path) -> None:
    writer = SessionWriter(Session.from_user_message("go"))
    writer.close()
    size = writer.path.stat().st_size
    writer.close()
    writer.abandon()
    assert writer.path.stat().st_size == size
    with pytest.raises(PersistenceError, match="closed"):
        writer.write_chunk(0, user_text_chunk("x"))
    other = SessionWriter(Session.from_user_message("go"))
    other.abandon()
    other.close()
    with pytest.raises(PersistenceError, match="abandoned"):
        other.write_chunk(0, user_text_chunk("x"))
    assert not load_session("", path=other.path).closed


def test_files_and_directories_are_private(home: Path) -> None:
    before = os.umask(0)
    try:
        writer = SessionWriter(Session.from_user_message("go"))
        lock = lock_file(writer.path)
        assert [p.stat().st_mode & 0o777 for p in (home, home / "sessions", writer.path, lock)] == [
            0o700, 0o700, 0o600, 0o600,
        ]  # fmt: skip
        writer.close()
    finally:
        os.umask(before)


def test_an_existing_log_is_refused_and_not_touched(home: Path) -> None:
    session = Session.from_user_message("go")
    for end in (SessionWriter.close, SessionWriter.abandon):
        writer = SessionWriter(session)
        end(writer)
        data = writer.path.read_bytes()
        with pytest.raises(PersistenceError, match=r"already there; load it .* or delete it"):
            SessionWriter(session)
        assert writer.path.read_bytes() == data
        assert not lock_file(writer.path).exists()
        writer.path.unlink()


@pytest.mark.parametrize("foreign", [b"notes", b"notes\n", b'{"record_type":"header",', b"{}\n"])
def test_only_a_header_that_never_became_whole_gives_way(tmp_path: Path, foreign: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(foreign)
    if foreign.startswith(b'{"r'):
        with SessionWriter(Session.from_user_message("go"), path=path):
            pass
        assert load_session("", path=path).closed
        assert path.stat().st_mode & 0o777 == 0o600
    else:
        with pytest.raises(PersistenceError, match="already there"):
            SessionWriter(Session.from_user_message("go"), path=path)
        assert path.read_bytes() == foreign


def test_an_empty_file_becomes_the_log(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.touch()
    with SessionWriter(Session.from_user_message("go"), path=path):
        pass
    assert load_session("", path=path).closed


def test_links_and_pipes_are_refused_without_waiting(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch()
    (tmp_path / "link.jsonl").symlink_to(target)
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("link.jsonl", "pipe.jsonl"):
        with pytest.raises(PersistenceError):
            SessionWriter(Session.from_user_message("go"), path=tmp_path / name)
    assert target.read_bytes() == b""


def test_an_unwritable_place_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PersistenceError, match=r"file/sub.*Not a directory.*OPENRATH_HOME"):
        SessionWriter(Session.from_user_message("go"), path=tmp_path / "file" / "sub" / "a.jsonl")
    with pytest.raises(PersistenceError, match=r"/proc/rath"):
        open_run_log(Session.from_user_message("go"), path="/proc/rath/a.jsonl")
    (tmp_path / "dir.jsonl").mkdir()
    with pytest.raises(PersistenceError, match=r"dir\.jsonl.*Is a directory"):
        SessionWriter(Session.from_user_message("go"), path=tmp_path / "dir.jsonl")


def test_missing_parent_directories_are_made(tmp_path: Path) -> None:
    path = tmp_path / "x" / "y" / "a.jsonl"
    with SessionWriter(Session.from_user_message("go"), path=path):
        pass
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_turn_needs_a_sync_after_every_write_process_and_record_never(tmp_path: Path) -> None:
    for durability, needed in (("turn", True), ("process", False), ("record", False)):
        log = open_run_log(
            Session.from_user_message("go"),
            path=tmp_path / f"{durability}.jsonl",
            durability=durability,  # type: ignore[arg-type]
        )
        assert log.needs_sync() is needed
        log.sync()
        assert not log.needs_sync()
        log.on_event(used())
        assert log.needs_sync() is needed
        log.close(usage=None, lineage_extras=(), outcome={})
    with pytest.raises(UsageValueError, match="durability"):
        open_run_log(Session.from_user_message("go"), path=tmp_path / "x.jsonl", durability="never")  # type: ignore[arg-type]


_SYNCS = """
import sys
from pathlib import Path
from rath.session.persistence.runlog import open_run_log
from rath.session.session import Session
from tests.persistence.samples import appended, rows
log = open_run_log(Session.from_user_message("go"), path=Path(sys.argv[1]), durability=sys.argv[2])
for index, row in enumerate(rows()[:3]):
    log.on_event(appended(index, row))
log.sync()
log.sync()
log.close(usage=None, lineage_extras=(), outcome={})
"""


@pytest.mark.slow
@pytest.mark.parametrize(("durability", "syncs"), [("process", 0), ("turn", 2), ("record", 5)])
def test_each_durability_syncs_as_often_as_it_says(tmp_path: Path, durability: str, syncs: int) -> None:
    trace = tmp_path / "trace"
    if subprocess.run(["sh", "-c", "command -v strace"], capture_output=True, check=False).returncode:
        pytest.skip("needs strace")
    command = ["strace", "-f", "-e", "trace=fdatasync,fsync", "-o", str(trace), sys.executable, "-c", _SYNCS]
    subprocess.run([*command, str(tmp_path / "a.jsonl"), durability], check=True, cwd=Path(__file__).parents[2])
    calls = trace.read_text()
    assert calls.count("fdatasync(") == syncs
    assert calls.count("fsync(") == 1  # the directory


def test_secrets_do_not_reach_the_log(tmp_path: Path) -> None:
    secret = "s3cr3t-\u00fc-value\nwith a line"
    number = "9182736455"
    register_secret(secret)
    register_secret(number)
    base = Session.from_user_message("go").to(
        "local", spec=BackendSandboxSpec(env={"MY_TOKEN": "env-secret-1", "PLAIN": "x"}, timeout=timedelta(seconds=2.5))
    )
    session = Session(
        base.chunk_table,
        sandbox_backend="local",
        lineage_operator=f"op {secret}",
        lineage_extras=(("note", {"deep": [secret]}), ("count", int(number)), ("object", object)),
    )
    provider = Provider(
        api_key="provider-key-1", model="m", temperature=0.5, stop=[secret], base_url="http://user:hunter22@host",
        extra_create_args={"extra_headers": {"authorization": "Bearer abcdefgh"}}, provider_kind="openai",
    )  # fmt: skip
    for number_of, logged in enumerate((base, session)):
        log = open_run_log(logged, path=tmp_path / f"{number_of}.jsonl", provider=provider, sandbox_handle_id=secret)
        log.on_event(started(f"call {secret}", f'{{"key":"{secret}"}}'))
        log.on_event(finished("a", 1, f"body {secret} provider-key-1 env-secret-1"))
        log.on_event(appended(0, user_text_chunk(f"text {secret} env-secret-1")))
        log.close(usage=USAGE, lineage_extras=session.lineage_extras, outcome={"error": secret})
        data = log.path.read_bytes()
        for value in (secret, number, "provider-key-1", "env-secret-1", "hunter22", "Bearer", json.dumps(secret)[1:-1]):
            assert value.encode() not in data
        assert load_session("", path=log.path).closed
    loaded = load_session("", path=tmp_path / "0.jsonl")
    spec = loaded.header.sandbox_spec
    assert spec is not None
    assert spec.env is None  # what was redacted is absent, not wrong
    assert records(tmp_path / "0.jsonl")[0]["sandbox_spec"]["env"] == {"MY_TOKEN": "[redacted]", "PLAIN": "[redacted]"}
    assert spec.timeout == timedelta(seconds=2.5)
    assert loaded.header.provider == {
        "kind": "openai", "model": "m", "parameters": {"temperature": 0.5, "stop": ["[redacted]"]},
    }  # fmt: skip
    # The digest in an intent is of the redacted text: nobody can try secrets against it.
    assert records(tmp_path / "0.jsonl")[1]["arguments_digest"] == arguments_digest('{"key":"[redacted]"}')


def test_sync_from_another_thread_meets_appends(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    with ThreadPoolExecutor(2) as pool:
        syncs = [pool.submit(log.sync) for _ in range(20)]
        for index in range(300):
            log.append_row(index, user_text_chunk(f"row {index}"))
        for sync in syncs:
            sync.result()
    log.close(usage=None, lineage_extras=(), outcome={})
    loaded = load_session("", path=log.path)
    assert loaded.closed
    assert len(loaded.chunk_table) == 300


def test_events_that_the_log_does_not_keep_write_nothing(tmp_path: Path) -> None:
    from rath.core.events import RunFinished, TextDelta, TurnStarted
    from tests.persistence.samples import RUN

    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    size = log.path.stat().st_size
    log.on_event(TurnStarted(RUN, RUN, 0, 0.0, 1))
    log.on_event(TextDelta(RUN, RUN, 0, 0.0, "x"))
    log.on_event(RunFinished(RUN, RUN, 0, 0.0, 1, None, False))
    assert log.path.stat().st_size == size
    log.abandon()


def test_a_log_that_nobody_holds_lets_its_lock_go(tmp_path: Path) -> None:
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    run_until_results(log)
    lock = lock_file(log.path)
    assert lock.exists()
    del log
    assert not lock.exists()
