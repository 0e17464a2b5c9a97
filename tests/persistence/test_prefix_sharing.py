"""What a session's log does not store again, because another log of the directory has it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from rath.errors import PersistenceError, ProviderError
from rath.session import Session, continue_session_loop, load_session, resume_session, run_session_compress
from rath.session.chunk import ChunkTable, user_text_chunk
from rath.session.persistence import open_dir, session_file, sessions_dir, verify
from rath.session.persistence.lock import directory_exclusive
from rath.session.persistence.runlog import open_run_log
from rath.testing import ScriptedClient
from tests.persistence.corpus import call, echo
from tests.persistence.corpus import run as run_at
from tests.persistence.samples import (
    USAGE,
    appended,
    assistant,
    finished,
    records,
    result,
    rows,
    run_until_results,
    started,
    used,
)
from tests.persistence.shared import chain, directory


def run(user: Session, *replies: Any, **options: Any) -> Session:
    """A run whose log is in the sessions directory."""
    return run_at(None, *(replies or (call("one", "two"), "done")), user=user, **options)  # type: ignore[arg-type]


def log_of(session: Session) -> list[dict[str, Any]]:
    return records(session_file(session.id))


def prefix_of(session: Session) -> tuple[UUID, int] | None:
    prefix = load_session(session.id).header.prefix
    return None if prefix is None else (prefix.session_id, prefix.length)


def own_rows(session: Session) -> list[int]:
    found = [record for record in log_of(session) if record["record_type"] in ("chunk", "tool_result")]
    return sorted(record["index"] for record in found)


def write_round(seed: ChunkTable, at: Path, number: int, size: int = 2000) -> tuple[Path, ChunkTable]:
    """The log of a small run that goes on with ``seed``: a question, a tool's result of ``size`` bytes, an answer."""
    session = Session.from_user_message("go")
    text = f"{number} " + "The linker says: undefined reference. " * 10
    seed = seed.extend(user_text_chunk(text))
    log = open_run_log(session, path=at / f"{session.id}.jsonl", durability="process", seed=seed)
    table, index = seed, len(seed)
    log.on_event(used())
    for row in (assistant("a"), None, assistant(text=text * 2)):
        if row is None:
            body = json.dumps({"stdout": f"{number} " + "x" * size})
            log.on_event(started("a"))
            log.on_event(finished("a", index, body))
            payload = result("a", body)
            table = table.extend(payload)
            log.on_event(appended(index, payload))
        else:
            table = table.extend(row)
            log.on_event(appended(index, row))
        index += 1
    log.close(usage=USAGE, lineage_extras=(), outcome={"status": "completed"}, table=table)
    return log.path, table


# -- what is shared -----------------------------------------------------------------------------------------------------


def test_a_session_that_continues_another_stores_its_own_rows_only() -> None:
    first = run(Session.from_user_message("go"))
    second = run(first.user("more"))
    third = run(second.user("and more"))
    assert (prefix_of(first), prefix_of(second)) == (None, (first.id, 5))
    assert prefix_of(third) == (second.id, 10)
    assert own_rows(third) == [10, 11, 12, 13, 14]
    for session in (first, second, third):
        loaded = load_session(session.id)
        assert (loaded.verdict, loaded.chunk_table, loaded.chunk_table.digest) == (
            "complete", session.chunk_table, session.digest,
        )  # fmt: skip
        assert (verify(session.id).verdict, verify(session.id).rows) == ("complete", len(session.chunk_table))


def test_forks_of_a_session_without_a_log_share_what_the_first_of_them_stored() -> None:
    root = Session.from_user_message("go").user("a long story")
    made = [run(root.fork().user(f"end {n}"), "done") for n in range(4)]
    assert [prefix_of(session) for session in made] == [None, *[(made[0].id, 2)] * 3]
    assert own_rows(made[3]) == [2, 3]


def test_a_new_log_points_at_the_log_where_a_row_itself_stands() -> None:
    first = run(Session.from_user_message("go"), "done")
    # A compression has no rows of the session; a fork's log has none of its own before its reply.
    second = run(first, "again")
    assert (prefix_of(second), own_rows(second)) == ((first.id, 2), [2])
    path = sessions_dir() / f"{(empty := Session.from_user_message('x')).id}.jsonl"
    log = open_run_log(empty, path=path, seed=second.chunk_table)
    log.close(usage=None, lineage_extras=(), outcome={}, table=second.chunk_table)
    assert [record["record_type"] for record in records(path)] == ["header", "trailer"]
    assert prefix_of(run(Session(load_session(empty.id).chunk_table), "more")) == (second.id, 3)


def test_a_loaded_a_resumed_and_a_continued_session_share() -> None:
    first = run(Session.from_user_message("go"))
    assert prefix_of(run(Session(load_session(first.id).chunk_table).user("more"))) == (first.id, 5)
    assert prefix_of(run(resume_session(first.id).user("more"))) == (first.id, 5)
    again = continue_session_loop(first.id, agent_provider=ScriptedClient(["more"]).as_provider()).synchronize()
    assert again.id != first.id
    assert prefix_of(again) == (first.id, 5)


def test_a_log_that_is_gone_on_with_keeps_its_prefix_and_is_shared_too() -> None:
    first = run(Session.from_user_message("go"))
    second = run(first.user("more"))
    path, digest = session_file(second.id), second.digest
    lines = path.read_bytes().splitlines(keepends=True)
    cut_behind = next(n for n, r in enumerate(records(path)) if r["record_type"] == "tool_result")
    path.write_bytes(b"".join(lines[: cut_behind + 1]))
    assert len(load_session(second.id).chunk_table) == 8
    session = continue_session_loop(
        second.id, agent_provider=ScriptedClient(["done"]).as_provider(), tools=[echo]
    ).synchronize()
    assert (session.id, prefix_of(session)) == (second.id, (first.id, 5))
    assert own_rows(session) == [5, 6, 7, 8, 9]
    assert load_session(second.id).chunk_table.digest == session.digest != digest
    assert prefix_of(run(session.user("on"), "done")) == (second.id, 10)


def test_a_resumed_log_that_stopped_shares_what_has_its_own_record() -> None:
    first = run(Session.from_user_message("go"))
    second = run(first.user("more"))
    path = session_file(second.id)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    resumed = resume_session(second.id)
    assert len(resumed.chunk_table) == 9
    third = run(resumed.user("on"), "done")
    assert prefix_of(third) == (second.id, 7)  # the results that mark calls as interrupted are stored again
    assert load_session(third.id).chunk_table == third.chunk_table


def test_a_merge_shares_its_first_side_and_stores_the_other() -> None:
    left = run(Session.from_user_message("left"))
    right = run(Session.from_user_message("right"))
    merged = run(left.merge(right), "done")
    assert prefix_of(merged) == (left.id, 5)
    assert own_rows(merged) == [5, 6, 7, 8, 9, 10]
    assert load_session(merged.id).chunk_table == merged.chunk_table


def test_a_compression_has_no_prefix() -> None:
    first = run(Session.from_user_message("go"))
    short = run_session_compress(
        first, Session.from_agent_prompt("a"), agent_provider=ScriptedClient(["short"]).as_provider(), persist=True
    ).synchronize()
    assert prefix_of(short) is None
    assert own_rows(short) == [0]


def test_a_log_elsewhere_or_under_another_name_is_not_shared(tmp_path: Path) -> None:
    first = run(Session.from_user_message("go"))
    elsewhere = run_at(tmp_path / "a.jsonl", "done", user=first.user("more"))
    assert records(tmp_path / "a.jsonl")[0]["prefix"] is None
    assert prefix_of(run(elsewhere.user("on"), "done")) == (first.id, 5)
    # A child may have any name: only the log that others look for needs its own.
    run_at(session_file(first.id).with_name("b.jsonl"), "done", user=first.user("more"))
    assert records(session_file(first.id).with_name("b.jsonl"))[0]["prefix"]["session_id"] == str(first.id)


def test_where_rows_stand_is_no_part_of_a_tables_value() -> None:
    table = run(Session.from_user_message("go")).chunk_table
    other = ChunkTable(table.rows)
    assert table.logged is not None
    assert other.logged is None
    assert (other, hash(other), other.digest) == (table, hash(table), table.digest)
    assert pickle.loads(pickle.dumps(table)).logged is None
    assert table.extend(user_text_chunk("x")).logged is table.concat(other).logged is table.logged
    assert other.concat(table).logged is None


# -- what is not, for it would not hold ---------------------------------------------------------------------------------


def damages(path: Path) -> Iterator[str]:
    """Changes of a log, one after the other."""
    whole, other = path.read_bytes(), session_file(run(Session.from_user_message("other")).id)
    for changed in (whole[:-1], whole[:-200], other.read_bytes(), b"", whole.replace(b"one", b"two")[:-30], b"x" * len(whole)):
        path.write_bytes(changed)
        yield f"{len(changed)} bytes"
    path.unlink()
    yield "gone"
    path.symlink_to(other)
    yield "a link"
    path.unlink()
    os.mkfifo(path)
    yield "a pipe"
    path.unlink()
    path.mkdir()
    yield "a directory"


def test_a_log_that_changed_under_a_session_is_not_built_on() -> None:
    first = run(Session.from_user_message("go"))
    place = first.chunk_table.logged
    assert place is not None
    for damage in damages(place.path):
        first.chunk_table.note_logged(place)
        second, third = run(first.user("more"), "done"), run(first.user("and more"), "done")
        assert (prefix_of(second), damage) == (None, damage)
        assert (prefix_of(third), damage) == ((second.id, 5), damage)  # who has stored the rows again is built on
        assert load_session(third.id).chunk_table == third.chunk_table


def test_while_somebody_removes_logs_of_the_directory_nothing_is_shared() -> None:
    first = run(Session.from_user_message("go"))
    with directory_exclusive(sessions_dir()):
        second = run(first.user("more"))
    assert prefix_of(second) is None
    assert prefix_of(run(first.user("more"))) == (second.id, 5)


def test_a_run_that_is_cancelled_or_fails_shares_what_it_began_with() -> None:
    first = run(Session.from_user_message("go"))
    failed = run(first.user("more"), call("x"), ProviderError("no"))
    assert failed.exception() is not None
    after = run(Session(failed.partial).user("on"), "done")
    assert prefix_of(after) in ((failed.id, 6), (first.id, 5))
    assert load_session(after.id).chunk_table == after.chunk_table


def test_a_log_that_cannot_be_written_shares_nothing_with_what_follows(tmp_path: Path) -> None:
    session, seed = Session.from_user_message("go"), ChunkTable((user_text_chunk("a"),))
    log = open_run_log(session, path=tmp_path / f"{session.id}.jsonl", seed=seed)
    log.abandon()
    log.close(usage=None, lineage_extras=(), outcome={}, table=seed.extend(user_text_chunk("b")))
    longer = seed.extend(user_text_chunk("b"))
    assert longer.logged is not None
    assert longer.logged.rows == 1  # the row that is in the file, not the one that was never written


# -- durability ---------------------------------------------------------------------------------------------------------

SYNCS = """
import sys
from pathlib import Path
from rath.session import Session
from rath.session.chunk import ChunkTable, user_text_chunk
from rath.session.persistence.runlog import open_run_log

table, directory = ChunkTable((user_text_chunk("0"),)), Path(sys.argv[1])
for number, level in enumerate(sys.argv[2:], 1):
    session = Session.from_user_message("x")
    sys.stderr.write(f"log {number} {session.id}\\n")
    log = open_run_log(session, path=directory / f"{session.id}.jsonl", durability=level, seed=table)
    table = table.extend(user_text_chunk(str(number)))
    log.append_row(number, table[-1])
    sys.stderr.write(f"opened {number}\\n")
    log.close(usage=None, lineage_extras=(), outcome={}, table=table)
"""


@pytest.mark.slow
@pytest.mark.skipif(subprocess.run(["which", "strace"], capture_output=True).returncode != 0, reason="needs strace")
@pytest.mark.parametrize(
    ("levels", "synced"),
    [
        (("process", "process", "turn"), [2, 1]),
        (("process", "process", "process"), []),
        (("process", "turn", "process", "record"), [3, 2]),
        (("turn", "turn"), []),
    ],
)
def test_a_log_makes_what_it_builds_on_as_durable_as_itself(tmp_path: Path, levels: tuple[str, ...], synced: list[int]) -> None:
    command = ["strace", "-f", "-y", "-s", "100", "-e", "trace=fdatasync,write", "-o", str(tmp_path / "trace")]
    (logs := tmp_path / "logs").mkdir()
    subprocess.run([*command, sys.executable, "-c", SYNCS, str(logs), *levels], check=True, capture_output=True)
    lines = (tmp_path / "trace").read_text().splitlines()
    ids = {line.split('"log ')[1].split()[1][:36]: int(line.split('"log ')[1].split()[0]) for line in lines if '"log ' in line}
    last = next(n for n, line in enumerate(lines) if f'"log {len(levels)} ' in line)
    header = next(n for n, line in enumerate(lines) if n > last and "record_type" in line and "header" in line)
    found = [ids[name] for line in lines[last:header] if "fdatasync" in line for name in ids if name in line]
    assert found == synced
    assert len(list(logs.glob("*.jsonl"))) == len(levels)


RESUMED = """
import sys
from pathlib import Path
from rath.session import Session
from rath.session.chunk import ChunkTable, user_text_chunk
from rath.session.persistence.resume import repair_log, reopen_run_log
from rath.session.persistence.runlog import open_run_log

table, directory = ChunkTable((user_text_chunk("0"),)), Path(sys.argv[1])
for number in (1, 2):
    session = Session.from_user_message("x")
    sys.stderr.write(f"log {number} {session.id}\\n")
    log = open_run_log(session, path=directory / f"{session.id}.jsonl", durability="process", seed=table)
    table = table.extend(user_text_chunk(str(number)))
    log.append_row(number, table[-1])
    if number == 1:
        log.close(usage=None, lineage_extras=(), outcome={}, table=table)
log.abandon()
sys.stderr.write("going on\\n")
if sys.argv[2] == "repair":
    repair_log(log.path)
else:
    reopen_run_log(log.path, durability=sys.argv[2]).close(usage=None, lineage_extras=(), outcome={}, table=table)
"""


@pytest.mark.slow
@pytest.mark.skipif(subprocess.run(["which", "strace"], capture_output=True).returncode != 0, reason="needs strace")
@pytest.mark.parametrize(
    ("how", "durable"),
    [("turn", True), ("repair", True), ("process", False)],
)
def test_who_goes_on_with_a_log_makes_what_it_builds_on_as_durable_as_itself(tmp_path: Path, how: str, durable: bool) -> None:
    command = ["strace", "-f", "-y", "-s", "100", "-e", "trace=fdatasync,write", "-o", str(tmp_path / "trace")]
    (logs := tmp_path / "logs").mkdir()
    subprocess.run([*command, sys.executable, "-c", RESUMED, str(logs), how], check=True, capture_output=True)
    lines = (tmp_path / "trace").read_text().splitlines()
    first = next(line for line in lines if '"log 1' in line).split('"log 1 ')[1][:36]
    after = lines[next(n for n, line in enumerate(lines) if '"going on' in line) :]
    assert any("fdatasync" in line and first in line for line in after) is durable


PRUNED = """
from datetime import timedelta
from rath.session.persistence import prune_sessions

assert len(prune_sessions(older_than=timedelta())) == 9
"""


@pytest.mark.slow
@pytest.mark.skipif(subprocess.run(["which", "strace"], capture_output=True).returncode != 0, reason="needs strace")
def test_no_power_cut_in_a_pruning_brings_a_log_back_whose_rows_are_gone(tmp_path: Path) -> None:
    chains = [chain(3, days=1) for _ in range(3)]
    command = ["strace", "-f", "-y", "-s", "100", "-e", "trace=unlink,fsync", "-o", str(tmp_path / "trace")]
    subprocess.run([*command, sys.executable, "-c", PRUNED], check=True)
    level, levels = set[str](), []
    for line in (tmp_path / "trace").read_text().splitlines():
        if "fsync(" in line and f"<{directory()}>" in line and level:
            levels.append(level)
            level = set()
        elif "unlink(" in line and '.jsonl"' in line:
            level.add(line.split(".jsonl")[0][-36:])
    assert [*levels, level] == [{str(logs[depth]) for logs in chains} for depth in (2, 1, 0)]


def test_the_level_stands_in_the_header(tmp_path: Path) -> None:
    for level in ("process", "turn", "record"):
        log = open_run_log(Session.from_user_message("x"), path=tmp_path / f"{level}.jsonl", durability=level)  # type: ignore[arg-type]
        log.abandon()
        assert load_session("", path=log.path).header.durability == level


# -- a tool's row is written once -----------------------------------------------------------------------------------------


def test_a_tools_row_stands_in_its_result_and_nowhere_else() -> None:
    session = run(Session.from_user_message("go"))
    kinds = [(record["record_type"], record.get("index")) for record in log_of(session) if "index" in record]
    assert sorted(kinds) == [("chunk", 0), ("chunk", 1), ("chunk", 4), ("tool_result", 2), ("tool_result", 3)]
    assert load_session(session.id).chunk_table.digest == session.digest


def test_a_row_that_is_not_its_result_is_written(tmp_path: Path) -> None:
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    run_until_results(log)
    table = rows()
    table[2] = result("a", "changed by somebody on its way")
    for index in (2, 3, 4):
        log.append_row(index, table[index])
    log.close(usage=None, lineage_extras=(), outcome={})
    assert [r["index"] for r in records(log.path) if r["record_type"] == "chunk"] == [0, 1, 2, 4]
    assert list(load_session("", path=log.path).chunk_table) == table
    assert verify(log.path).verdict == "complete"


def test_a_second_result_for_a_row_does_not_spoil_the_log(tmp_path: Path) -> None:
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    log.append_row(0, assistant("a"))
    log.on_event(finished("a", 1, "first"))
    log.on_event(finished("a", 1, "second"))
    log.append_row(1, result("a", "second"))
    log.close(usage=None, lineage_extras=(), outcome={})
    assert [row.text for row in load_session("", path=log.path).chunk_table][1] == "second"


def test_a_result_that_comes_after_its_row_does_not_spoil_the_log(tmp_path: Path) -> None:
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    log.append_row(0, assistant("a"))
    log.on_event(finished("a", 1, "first"))
    log.append_row(1, result("a", "first"))
    log.on_event(finished("a", 1, "second"))  # of a middleware that runs a tool again
    log.append_row(2, assistant(text="done"))
    log.close(usage=None, lineage_extras=(), outcome={})
    assert verify(log.path).verdict == "complete"
    assert [row.text for row in load_session("", path=log.path).chunk_table][1:] == ["first", "done"]


def test_a_run_that_ends_in_results_is_whole() -> None:
    session = run(Session.from_user_message("go"), call("x"), max_tool_rounds=1)
    assert [record["record_type"] for record in log_of(session)][-2:] == ["tool_result", "trailer"]
    assert load_session(session.id).chunk_table.digest == session.digest
    assert prefix_of(run(session.user("on"), "done")) == (session.id, 3)


# -- how much it saves ----------------------------------------------------------------------------------------------------


def test_a_chain_of_loops_takes_less_than_twice_the_bytes_of_its_rows() -> None:
    session = Session.from_user_message("the first question " * 20)
    for number in range(25):
        session = run(session.user(f"question {number} " * 40), call("a line of output " * 60), f"answer {number} " * 100)
    unique = sum(len(row.encoded) for row in session.chunk_table)
    stored = sum(path.stat().st_size for path in sessions_dir().glob("*.jsonl"))
    assert unique < stored < 2 * unique
    assert load_session(session.id).chunk_table.digest == session.digest


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory whose making and syncing costs nothing, where there is one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as directory:
        yield Path(directory)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_thousand_loops_and_a_thousand_forks_of_them_take_less_than_twice_the_bytes_of_their_rows(in_memory: Path) -> None:
    table, unique, ends = ChunkTable(), 0, []
    for number in range(1000):
        before = table
        path, table = write_round(table, in_memory, number)
        unique += sum(len(row.encoded) for row in table.rows[len(before) :])
        ends.append(table)
    assert list(load_session("", path=path).chunk_table) == list(table)
    assert load_session("", path=path).chunk_table.digest == table.digest
    # A tree: each fork begins at another of the chain's sessions.
    for number in range(1000):
        base = ends[number * 7919 % 1000]
        path, fork = write_round(base, in_memory, 1000 + number)
        unique += sum(len(row.encoded) for row in fork.rows[len(base) :])
    stored = sum(log.stat().st_size for log in in_memory.glob("*.jsonl"))
    assert unique < stored < 2 * unique
    assert load_session("", path=path).chunk_table.digest == fork.digest
    assert len(list(in_memory.glob("*.jsonl"))) == 2000
    assert verify(path).verdict == "complete"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_thousand_logs_that_build_on_each_other_are_verified_in_linear_time(in_memory: Path) -> None:
    table = ChunkTable()
    for number in range(1000):
        path, table = write_round(table, in_memory, number, size=200)
    time.sleep(0.3)  # what changed a moment ago is read again
    began = time.process_time()
    alone = verify(path)
    one = time.process_time() - began
    began = time.process_time()
    checked = open_dir(in_memory).verify_all()
    everything = time.process_time() - began
    assert (alone.verdict, {entry.verdict for entry in checked}, len(checked)) == ("complete", {"complete"}, 1000)
    assert everything < 25 * one + 2  # the last alone goes through all logs: quadratic would be 500 times that


def test_runs_that_overlap_share_safely() -> None:
    root = run(Session.from_user_message("go"))
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: run(root.fork().user(f"{n}"), call("x"), "done"), range(24)))
    assert {prefix_of(session) for session in made} == {(root.id, 5)}
    assert all(load_session(session.id).chunk_table == session.chunk_table for session in made)


@pytest.mark.slow
def test_a_prefix_costs_less_than_half_a_millisecond(tmp_path: Path) -> None:
    _, table = write_round(ChunkTable(), tmp_path, 0)

    def open_one(seed: ChunkTable) -> float:
        began = time.thread_time()  # others that use the machine cost no time of ours
        log = open_run_log(Session.from_user_message("x"), path=tmp_path / f"{uuid4()}.jsonl", durability="process", seed=seed)
        took = time.thread_time() - began
        log.abandon()
        return took

    pairs = [(open_one(table), open_one(ChunkTable())) for _ in range(300)]
    with_prefix, without = map(min, zip(*pairs, strict=True))  # what others disturbed least
    assert with_prefix - without < 0.5e-3


def test_a_shared_log_that_is_there_already_is_refused_as_ever(tmp_path: Path) -> None:
    first = run(Session.from_user_message("go"))
    with pytest.raises(PersistenceError, match="already there"):
        open_run_log(Session.from_user_message("x"), path=session_file(first.id), seed=first.chunk_table)
    assert verify(first.id).verdict == "complete"
