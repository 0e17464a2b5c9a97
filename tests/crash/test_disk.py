"""Disks that are full, fill up under a run, refuse to be written, or hold huge rows; and clocks that jump."""

from __future__ import annotations

import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from rath.core.encoding import encode_json
from rath.errors import PersistenceError
from rath.flow.tool import tool
from rath.session import Session, list_persisted_sessions, run_session_loop
from rath.session.chunk import user_text_chunk
from rath.session.persistence import SessionWriter, load_session
from rath.session.persistence.lock import PathLock
from rath.session.persistence.paths import lock_file
from rath.testing import ScriptedClient
from tests.persistence.samples import rechained, records, write_sample


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", directory], capture_output=True, check=False)
    if mounted.returncode:
        if os.environ.get("RATH_REQUIRE_POWERCUT"):
            pytest.fail("cannot mount a tmpfs here")
        pytest.skip("cannot mount a tmpfs here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def fill(disk: Path) -> Path:
    """Leave no room, not even for one more byte in a file that has some left in its last page."""
    file = disk / "filler"
    with file.open("ab", buffering=0) as out, pytest.raises(OSError, match="No space"):
        while True:
            out.write(bytes(4096))
    return file


def test_a_disk_that_fills_during_a_run_fails_it_and_when_it_has_room_again_the_log_stays_as_it_was(disk: Path) -> None:
    filled = threading.Event()
    emptied = []

    @tool
    def work(size: int) -> str:
        """Fill the disk at the second call, make room at the third."""
        if size == 2:
            emptied.append(fill(disk))
            filled.set()
        return "x" * 6000

    def call(size: int) -> dict[str, object]:
        return {"text": f"call {size}", "tool_calls": [{"name": "work", "arguments": {"size": size}}]}

    path = disk / "a.jsonl"
    out = run_session_loop(
        Session.from_user_message("go"),
        Session.from_agent_prompt("a"),
        agent_provider=ScriptedClient([call(1), call(2), call(3), "done"]).as_provider(),
        tools=[work],
        persist_path=path,
    )
    with pytest.raises(PersistenceError, match="No space left on device.*no trailer") as caught:
        out.synchronize(30)
    assert filled.is_set()
    # The model's work is in the handle: its reply, and the result that the log had no room for.
    texts = [row.text for row in out.partial]
    assert texts[:2] == ["go", "call 1"]
    assert texts[3] == "call 2"
    assert len(texts) == 5
    left = path.read_bytes()
    loaded = load_session("", path=path)
    assert loaded.verdict in ("open", "torn")
    assert not loaded.closed
    assert 3 <= len(loaded.chunk_table) <= len(texts)
    assert list(loaded.chunk_table.rows) == list(out.partial.rows)[: len(loaded.chunk_table)]
    emptied[0].unlink()
    # The disk has room again: that run says what it said, its log is not touched, and the next one is written whole.
    with pytest.raises(PersistenceError) as again:
        out.synchronize(1)
    assert again.value is caught.value
    assert path.read_bytes() == left
    PathLock(lock_file(path), "the log").release()
    following = run_session_loop(
        Session(out.partial),
        Session.from_agent_prompt("a"),
        agent_provider=ScriptedClient(["done"]).as_provider(),
        persist_path=disk / "b.jsonl",
    ).synchronize(30)
    assert load_session(following.id, path=disk / "b.jsonl").verdict == "complete"


def test_on_a_full_disk_a_run_fails_before_the_model_is_asked_and_leaves_no_log(disk: Path) -> None:
    fill(disk)
    client = ScriptedClient(["never asked"], record=True)
    out = run_session_loop(
        Session.from_user_message("go"), Session.from_agent_prompt("a"), agent_provider=client.as_provider(),
        persist_path=disk / "a.jsonl",
    )
    with pytest.raises(PersistenceError, match="No space left on device"):
        out.synchronize(30)
    assert list(client.requests) == []
    assert [row.text for row in out.partial] == ["go"]
    assert sorted(path.name for path in disk.iterdir()) == ["filler"]


def test_on_a_read_only_disk_a_run_fails_before_the_model_is_asked_and_logs_can_be_read(disk: Path) -> None:
    session = write_sample(disk / "old.jsonl")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    client = ScriptedClient(["never asked"], record=True)
    out = run_session_loop(
        Session.from_user_message("go"), Session.from_agent_prompt("a"), agent_provider=client.as_provider(),
        persist_path=disk / "a.jsonl",
    )
    with pytest.raises(PersistenceError, match="Read-only file system"):
        out.synchronize(30)
    assert list(client.requests) == []
    assert load_session(session.id, path=disk / "old.jsonl").verdict == "complete"


@pytest.mark.parametrize("jump", [timedelta(days=-36500), timedelta(hours=-1), timedelta(days=36500)])
def test_a_clock_that_jumps_changes_no_order_and_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: timedelta) -> None:
    monkeypatch.setenv("OPENRATH_HOME", str(tmp_path))
    (tmp_path / "sessions").mkdir()
    session = Session.create("user", "go")
    path = tmp_path / "sessions" / f"{session.id}.jsonl"
    write_sample(path, session)
    before = load_session(session.id)
    edited = records(path)
    # The clock stood elsewhere when the run began: after its end, or a century away.
    began = datetime.fromisoformat(edited[0]["created_at"]) + jump
    edited[0]["created_at"] = began.isoformat()
    rechained(path, edited)
    loaded = load_session(session.id)
    assert loaded.verdict == before.verdict == "complete"
    assert loaded.chunk_table == before.chunk_table
    (listed,) = list_persisted_sessions()
    assert listed.id == session.id


@pytest.mark.slow
def test_a_row_of_a_hundred_megabytes_comes_back_byte_for_byte(tmp_path: Path) -> None:
    text = "\u2028\u0085\ud800\x00ab\n" * 4_000_000
    row = user_text_chunk(text)
    assert len(row.encoded) > 100_000_000
    with SessionWriter(Session.from_user_message("x"), path=tmp_path / "a.jsonl") as writer:
        writer.write_chunk(0, row)
        writer.write_chunk(1, user_text_chunk("after"))
    assert encode_json(text) in writer.path.read_bytes()
    loaded = load_session("", path=writer.path)
    assert loaded.verdict == "complete"
    first, second = loaded.chunk_table.rows
    assert first.encoded == row.encoded
    assert first.text == text
    assert second.text == "after"


@pytest.mark.slow
def test_a_process_that_may_open_no_more_files_is_told_what_to_do_and_its_other_runs_end_well(tmp_path: Path) -> None:
    def loop(number: int) -> Session:
        client = ScriptedClient(["done"], latency_s=0.3)
        user, agent = Session.from_user_message("go"), Session.from_agent_prompt("x")
        path = tmp_path / f"{number}.jsonl"
        return run_session_loop(user, agent, agent_provider=client.as_provider(), persist_path=path)

    loop(0).synchronize(30)  # the engine is there
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, hard))
    try:
        runs = [loop(number) for number in range(1, 31)]
        failed = []
        for session in runs:
            try:
                session.synchronize(30)
            except PersistenceError as error:
                failed.append(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert 10 <= len(failed) <= 20
    assert all("Too many open files" in text and "ulimit -n" in text for text in failed)
    assert sum(record["record_type"] == "trailer" for path in tmp_path.glob("*.jsonl") for record in records(path)) == 31 - len(failed)
    loop(31).synchronize(30)
