"""What a log does to files that are not its own, and what hostile or careless values do to a log: nothing."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from rath.backend.types import BackendSandboxSpec
from rath.errors import DamagedLog, PersistenceError, UsageTypeError, UsageValueError
from rath.llm.types import RathLLMTokenUsage
from rath.session import gather, run_session_loop
from rath.session.chunk import ChunkKind, ChunkRow, user_text_chunk
from rath.session.persistence.format import MAX_OTHER_BYTES
from rath.session.persistence.manage import delete_session, list_persisted_sessions, writer_of
from rath.session.persistence.paths import lock_file
from rath.session.persistence.reader import load_session
from rath.session.persistence.runlog import open_run_log
from rath.session.persistence.writer import SessionWriter
from rath.session.session import Session
from rath.testing import ScriptedClient
from tests.persistence.samples import rechained, records, rows, used, write_sample

# -- locks --------------------------------------------------------------------------------------------------------------


def test_a_projects_own_lock_file_survives_a_log_of_nearly_its_name(tmp_path: Path) -> None:
    (tmp_path / "uv.lock").write_text("version = 1\n")
    with SessionWriter(Session.from_user_message("go"), path=tmp_path / "uv.jsonl") as writer:
        assert (tmp_path / "uv.jsonl.lock").exists()
        writer.write_chunk(0, user_text_chunk("go"))
    assert delete_session("", path=tmp_path / "uv.jsonl")
    assert (tmp_path / "uv.lock").read_text() == "version = 1\n"
    assert not (tmp_path / "uv.jsonl.lock").exists()


@pytest.mark.parametrize("text", ["mine\n", "{}", '{"pid":1,"boot_id":null,"host":"h","more":1}', "[1]", "\0" * 8, "x" * 10_000])
def test_a_file_that_is_no_lock_of_ours_is_never_touched(tmp_path: Path, text: str) -> None:
    log, lock = tmp_path / "a.jsonl", tmp_path / "a.jsonl.lock"
    lock.write_text(text)
    with pytest.raises(PersistenceError, match=r"a\.jsonl\.lock .*not changed\. Move"):
        SessionWriter(Session.from_user_message("go"), path=log)
    assert not log.exists()
    lock.unlink()
    write_sample(log)
    lock.write_text(text)
    with pytest.raises(PersistenceError, match="not changed"):
        delete_session("", path=log)
    assert log.exists()
    assert lock.read_text() == text


def test_a_lock_that_became_something_else_meanwhile_stays(tmp_path: Path) -> None:
    writer = SessionWriter(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    lock_file(writer.path).write_text("mine now")
    writer.close()
    assert lock_file(writer.path).read_text() == "mine now"


def test_who_writes_a_log_is_known_only_while_somebody_does(tmp_path: Path) -> None:
    with SessionWriter(Session.from_user_message("go"), path=tmp_path / "a.jsonl") as writer:
        assert str(writer_of(writer.path)).startswith("pid ")
    assert writer_of(writer.path) is None


# -- usage --------------------------------------------------------------------------------------------------------------

NO_COUNTS: list[Any] = [-1, 10**30, 2**63, math.inf, math.nan, 1.5, "9", None, True, [1]]


@pytest.mark.parametrize("value", NO_COUNTS)
def test_usage_that_is_none_is_left_out_and_the_log_loads(tmp_path: Path, value: Any) -> None:
    details: Any = {"cached_tokens": value, "reasoning_tokens": 3}
    usage = RathLLMTokenUsage(value, 5, value, details, value)
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    log.on_event(used(usage))
    log.close(usage=usage, lineage_extras=(), outcome={"status": "completed"})
    _header, record, trailer = records(log.path)
    assert (record["completion_tokens"], "prompt_tokens" in record, "total_tokens" in record) == (5, False, False)
    assert trailer["cumulative_usage"] == {"completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 3}}
    loaded = load_session("", path=log.path)
    assert loaded.cumulative_usage == RathLLMTokenUsage(0, 5, 0, {"reasoning_tokens": 3})


def test_usage_without_any_count_is_null(tmp_path: Path) -> None:
    nothing: Any = None
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    log.close(usage=RathLLMTokenUsage(nothing, nothing, -1), lineage_extras=(), outcome={})
    assert records(log.path)[-1]["cumulative_usage"] is None
    assert load_session("", path=log.path).cumulative_usage is None


@pytest.mark.parametrize(
    "usage", [[], "9", {"prompt_tokens": -1}, {"total_tokens": "9"}, {"total_tokens": 10**30}, {"prompt_tokens_details": [1]}]
)
def test_bad_usage_in_a_log_is_no_usage_and_its_rows_load(tmp_path: Path, usage: Any) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    edited = records(path)
    edited[-1]["cumulative_usage"] = usage
    rechained(path, edited)
    loaded = load_session("", path=path)
    assert (loaded.closed, loaded.cumulative_usage) == (True, None)
    assert list(loaded.chunk_table.rows) == rows()


# -- hostile logs -------------------------------------------------------------------------------------------------------


def _with_record(path: Path, record: dict[str, Any]) -> None:
    write_sample(path)
    edited = [{k: v for k, v in r.items() if k != "seq"} for r in records(path)]
    edited[-1]["record_count"] += 1
    rechained(path, [*edited[:2], record, *edited[2:]])


_PEAK = """
import resource, sys
from rath.errors import PersistenceError
from rath.session.persistence.reader import load_session
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load_session("", path=sys.argv[1])
except PersistenceError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.slow
@pytest.mark.parametrize("record_type", ["mood", "usage", "tool_result"])
def test_a_line_of_empty_lists_costs_little_more_than_its_length(tmp_path: Path, record_type: str) -> None:
    path = tmp_path / "a.jsonl"
    _with_record(path, {"record_type": record_type, "x": [[]] * (10 << 20)})
    done = subprocess.run([sys.executable, "-c", _PEAK, path], capture_output=True, text=True, check=True)
    said, mebibytes = done.stdout.splitlines()
    assert "damaged" in said
    assert int(mebibytes) < 200


@pytest.mark.slow
def test_many_records_that_are_no_rows_do_not_stay_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    edited = [{k: v for k, v in r.items() if k != "seq"} for r in records(path)]
    bulk = [{"record_type": kind, "x": [[]] * 200_000, "price": [[]] * 50_000} for kind in ("mood", "usage") * 6]
    rechained(path, [*edited[:-1], *bulk])
    tracemalloc.start()
    try:
        loaded = load_session("", path=path)
        kept, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert loaded.verdict == "open"
    assert loaded.records[-1].keys() == {"record_type", "seq"}
    assert kept < 5 << 20


@pytest.mark.slow
def test_only_rows_may_be_longer_than_a_mebibyte(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    _with_record(path, {"record_type": "mood", "text": "x" * MAX_OTHER_BYTES})
    with pytest.raises(DamagedLog, match="1,048,576"):
        load_session("", path=path)
    long = ChunkRow(ChunkKind.USER, {"content": "[{,\ud800" * MAX_OTHER_BYTES})
    with SessionWriter(Session.from_user_message("go"), path=tmp_path / "b.jsonl") as writer:
        writer.write_chunk(0, long)
    assert load_session("", path=writer.path).chunk_table.rows == (long,)


def test_the_writer_refuses_what_the_reader_would(tmp_path: Path) -> None:
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    with pytest.raises(PersistenceError, match="trailer record of .* lineage_extras"):
        log.close(usage=None, lineage_extras=(("k", "x" * MAX_OTHER_BYTES),), outcome={})
    writer = SessionWriter(Session.from_user_message("go"), path=tmp_path / "b.jsonl")
    with pytest.raises(PersistenceError, match="brackets and commas"):
        writer.write_chunk(0, ChunkRow(ChunkKind.USER, {"content": [[]] * (1 << 20)}))
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "c.jsonl")
    log.close(usage=None, lineage_extras=(("k", deep),), outcome={})
    for name in "abc":
        assert load_session("", path=tmp_path / f"{name}.jsonl").closed is (name == "c")


def test_a_count_of_thousands_of_digits_does_not_stop_a_listing(home: Path) -> None:
    session = write_sample(home / "sessions" / "x.jsonl")
    path = home / "sessions" / "x.jsonl"
    data = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(data[0] + b'{"record_type":"chunk","index":' + b"9" * 4300 + b"}\n")
    [meta] = list_persisted_sessions()
    assert (meta.id, f"{meta.chunk_count:,}") == (session.id, "1")


# -- what is written and asked for --------------------------------------------------------------------------------------


def test_no_value_of_an_environment_variable_is_written(tmp_path: Path) -> None:
    spec = BackendSandboxSpec(env={"PGUSER": "harmless-looking", "EMPTY": ""}, working_dir="/w")
    session = Session.from_user_message("go").to("local", spec=spec)
    log = open_run_log(session, path=tmp_path / "a.jsonl")
    log.close(usage=None, lineage_extras=(), outcome={})
    assert b"harmless-looking" not in log.path.read_bytes()
    assert records(log.path)[0]["sandbox_spec"]["env"] == {"PGUSER": "[redacted]", "EMPTY": "[redacted]"}
    loaded = load_session("", path=log.path).header.sandbox_spec
    assert loaded == BackendSandboxSpec(working_dir="/w")


@pytest.mark.parametrize(("path", "error"), [(7, UsageTypeError), (b"a", UsageTypeError), ("a\0b", UsageValueError), ("", UsageValueError)])
def test_what_is_no_path_is_said_to_be_none_everywhere(path: Any, error: type[Exception]) -> None:
    session = Session.from_user_message("go")
    for use in (
        lambda: load_session("", path=path),
        lambda: delete_session("", path=path),
        lambda: SessionWriter(session, path=path),
        lambda: open_run_log(session, path=path),
    ):
        with pytest.raises(error):
            use()


def test_a_tilde_means_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with SessionWriter(Session.from_user_message("go"), path="~/logs/a.jsonl") as writer:
        pass
    assert writer.path == tmp_path / "logs" / "a.jsonl"
    assert load_session("", path="~/logs/a.jsonl").closed
    assert delete_session("", path=Path("~/logs/a.jsonl"))
    assert not writer.path.exists()


@pytest.mark.slow
def test_a_relative_path_means_the_directory_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    agent = Session.from_agent_prompt("a")
    slow = ScriptedClient(["one", "two", "three"], latency_s=0.2).as_provider()
    before = run_session_loop(Session.from_user_message("go"), agent, agent_provider=slow)
    after = run_session_loop(before, agent, agent_provider=slow, persist_path="a.jsonl")
    monkeypatch.setenv("OPENRATH_HOME", "data")
    beside = run_session_loop(before, agent, agent_provider=slow, persist=True)
    monkeypatch.chdir(tmp_path / "there")  # neither run can have begun
    monkeypatch.delenv("OPENRATH_HOME")
    gather(after, beside)
    assert load_session("", path=tmp_path / "a.jsonl").closed
    assert load_session("", path=tmp_path / "data" / "sessions" / f"{beside.id}.jsonl").closed
    assert not list((tmp_path / "there").iterdir())
