"""Real faults: full disks, limits, killed and forked processes."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rath.errors import PersistenceError
from rath.session.chunk import user_text_chunk
from rath.session.persistence import SessionWriter, delete_session, load_session, prune_sessions, session_file
from rath.session.persistence.lock import PathLock
from rath.session.persistence.paths import lock_file
from rath.session.persistence.runlog import open_run_log
from rath.session.session import Session
from tests.persistence.samples import records

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond ``size`` bytes of a file fail in this process, the last one short: like a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextlib.contextmanager
def python(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that runs ``code``; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin
        assert process.stdout
        process.stdin.close()
        process.stdout.close()


def line_from(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    ready, _, _ = select.select([process.stdout], [], [], 20)
    assert ready, "the other process said nothing for 20 s"
    return process.stdout.readline().strip()


def test_a_failed_write_is_raised_at_every_later_call_and_there_is_never_a_trailer(tmp_path: Path) -> None:
    session = Session.from_user_message("go")
    log = open_run_log(session, path=tmp_path / "a.jsonl")
    log.append_row(0, user_text_chunk("kept"))
    size = log.path.stat().st_size
    # The write is short, and the rest of it fails.
    with file_size_limit(size + 100), pytest.raises(PersistenceError, match="File too large") as first:
        log.append_row(1, user_text_chunk("lost " * 100))
    assert isinstance(first.value.__cause__, OSError)
    assert log.path.stat().st_size == size + 100
    # The disk has room again, but the log's end is not known any more.
    for call in (
        lambda: log.append_row(1, user_text_chunk("x")),
        lambda: log.append_row(2, user_text_chunk("x")),
        log.sync,
        lambda: log.close(usage=None, lineage_extras=(), outcome={}),
        lambda: log.close(usage=None, lineage_extras=(), outcome={}),
    ):
        with pytest.raises(PersistenceError) as again:
            call()
        assert again.value is first.value
    log.abandon()
    assert log.path.stat().st_size == size + 100
    loaded = load_session("", path=log.path)
    assert (loaded.verdict, loaded.closed, len(loaded.chunk_table)) == ("torn", False, 1)
    assert not lock_file(log.path).exists()


def test_the_same_failure_does_not_pile_up_frames(tmp_path: Path) -> None:
    writer = SessionWriter(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    with file_size_limit(writer.path.stat().st_size), pytest.raises(PersistenceError):
        writer.write_chunk(0, user_text_chunk("x"))
    depths = []
    for _ in range(3):
        with pytest.raises(PersistenceError) as caught:
            writer.write_chunk(0, user_text_chunk("x"))
        depth, trace = 0, caught.value.__traceback__
        while trace is not None:
            depth, trace = depth + 1, trace.tb_next
        depths.append(depth)
    assert depths[0] == depths[1] == depths[2]
    writer.abandon()


def test_a_header_that_does_not_fit_leaves_no_file(home: Path) -> None:
    session = Session.from_user_message("go")
    with file_size_limit(50), pytest.raises(PersistenceError, match="File too large"):
        SessionWriter(session)
    assert os.listdir(home / "sessions") == []
    with SessionWriter(session) as writer:
        writer.write_chunk(0, user_text_chunk("x"))
    assert load_session(session.id).closed


def test_a_trailer_that_does_not_fit_leaves_the_log_open(tmp_path: Path) -> None:
    writer = SessionWriter(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    writer.write_chunk(0, user_text_chunk("x"))
    with file_size_limit(writer.path.stat().st_size + 30), pytest.raises(PersistenceError) as first:
        writer.close()
    with pytest.raises(PersistenceError) as second:
        writer.close()
    assert second.value is first.value
    loaded = load_session("", path=writer.path)
    assert (loaded.verdict, len(loaded.chunk_table)) == ("torn", 1)
    assert not lock_file(writer.path).exists()


def fill(writer: SessionWriter, rows: int = 2000) -> None:
    """Write rows until it fails, or there are so many."""
    while writer.chunks_written < rows:
        writer.write_chunk(writer.chunks_written, user_text_chunk("x" * 4000))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_latches(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        session = Session.from_user_message("go")
        writer = SessionWriter(session, path=disk / "a.jsonl")
        with pytest.raises(PersistenceError, match="No space left on device"):
            fill(writer)
        written = writer.chunks_written
        assert written > 3
        with pytest.raises(PersistenceError, match="No space left"):
            writer.close()
        loaded = load_session("", path=writer.path)
        assert (len(loaded.chunk_table), loaded.closed) == (written, False)
        with pytest.raises(OSError, match="No space left"):
            (disk / "rest").write_bytes(bytes(65536))
        # A log can be deleted although the disk is full.
        assert delete_session(session.id, path=writer.path)
    finally:
        subprocess.run(["umount", disk], check=True)


_HOLD = """
import sys
from rath.session.chunk import user_text_chunk
from rath.session.persistence import SessionWriter
from rath.session.session import Session
from uuid import UUID
from rath.session.chunk import ChunkTable
session = Session(ChunkTable(), id=UUID(sys.argv[1]))
writer = SessionWriter(session)
writer.write_chunk(0, user_text_chunk("x"))
print("holding", flush=True)
sys.stdin.readline()
writer.close()
print("closed", flush=True)
"""


def test_a_second_writer_is_refused_and_told_who_the_first_is(home: Path) -> None:
    session = Session.from_user_message("go")
    with python(_HOLD, session.id) as process:
        assert line_from(process) == "holding"
        data = session_file(session.id).read_bytes()
        with pytest.raises(PersistenceError, match=rf"process {process.pid} on '{os.uname().nodename}'"):
            SessionWriter(session)
        assert load_session(session.id).verdict == "open"  # reading is always possible
        with pytest.raises(PersistenceError, match=f"process {process.pid}"):
            delete_session(session.id)
        from datetime import timedelta

        assert prune_sessions(older_than=timedelta(0)) == []
        assert session_file(session.id).read_bytes() == data
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        assert line_from(process) == "closed"
        assert load_session(session.id).closed
        assert not lock_file(session_file(session.id)).exists()
        assert delete_session(session.id)


def test_a_second_writer_in_the_same_process_is_refused(home: Path) -> None:
    session = Session.from_user_message("go")
    with SessionWriter(session), pytest.raises(PersistenceError, match=f"process {os.getpid()}"):
        SessionWriter(session)


def test_a_dead_owners_lock_is_taken_over(home: Path) -> None:
    session = Session.from_user_message("go")
    with python(_HOLD, session.id) as process:
        assert line_from(process) == "holding"
        process.kill()
        process.wait()
        assert lock_file(session_file(session.id)).exists()
        assert delete_session(session.id)
    with SessionWriter(session) as writer:
        writer.write_chunk(0, user_text_chunk("x"))
    assert load_session(session.id).closed
    assert sorted(os.listdir(home / "sessions")) == [".directory.lock", f"{session.id}.jsonl"]


_FLOOD = """
import sys
from rath.session.chunk import user_text_chunk
from rath.session.persistence.runlog import open_run_log
from rath.session.session import Session
log = open_run_log(Session.from_user_message("x"), path=sys.argv[1], durability="process")
index = 0
while True:
    log.append_row(index, user_text_chunk(f"row {index} " + "x" * (index % 50 * 100)))
    index += 1
    sys.stdout.write(f"{index}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("number", range(3))
def test_sigkill_in_the_middle_of_writing_loses_no_acknowledged_row(tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.jsonl"
    acknowledged = 0
    with python(_FLOOD, path) as process:
        assert process.stdout
        assert line_from(process) == "1"
        threading.Timer(0.05 + 0.013 * number, process.kill).start()
        for line in process.stdout:
            if line.endswith("\n"):
                acknowledged = int(line)
    loaded = load_session("", path=path)
    assert acknowledged > 10
    assert len(loaded.chunk_table) >= acknowledged
    assert loaded.verdict in ("open", "torn")
    for index, row in enumerate(loaded.chunk_table.rows):
        assert row.payload["content"].startswith(f"row {index} ")


@pytest.mark.slow
def test_a_reader_beside_a_writer_sees_whole_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with python(_FLOOD, path) as process:
        assert line_from(process) == "1"
        assert process.stdout
        drain = threading.Thread(target=lambda: list(process.stdout or ()))
        drain.start()
        seen = 0
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            loaded = load_session("", path=path)
            assert not loaded.closed
            assert len(loaded.chunk_table) >= seen
            seen = len(loaded.chunk_table)
        process.kill()
        drain.join()
    assert seen > 1


def test_a_forked_child_cannot_write_its_parents_log(tmp_path: Path) -> None:
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    log.append_row(0, user_text_chunk("parent"))
    child = os.fork()
    if child == 0:  # pragma: no cover
        code = 1
        try:
            log.append_row(1, user_text_chunk("child"))
        except PersistenceError as error:
            log.abandon()
            code = 0 if "forked" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(PersistenceError, match=f"process {os.getpid()}"):
        PathLock(lock_file(log.path), "the log")  # the child's end did not let go of it
    log.append_row(1, user_text_chunk("parent again"))
    log.close(usage=None, lineage_extras=(), outcome={})
    assert load_session("", path=log.path).closed
    assert len(records(log.path)) == 4


def test_a_forked_child_that_lives_on_does_not_keep_the_lock(tmp_path: Path) -> None:
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        os.read(read, 1)
        os._exit(0)
    try:
        log.abandon()
        log.path.unlink()
        open_run_log(Session.from_user_message("go"), path=log.path).abandon()
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


@pytest.mark.slow
def test_many_processes_race_for_one_log_and_one_wins(home: Path) -> None:
    session = Session.from_user_message("go")
    code = _HOLD.replace("writer = SessionWriter(session)", "try:\n    writer = SessionWriter(session)\nexcept Exception as e:\n    print(type(e).__name__, flush=True)\n    sys.exit()")
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(python(code, session.id)) for _ in range(4)]
        said = sorted(line_from(process) for process in processes)
    assert said == ["PersistenceError"] * 3 + ["holding"]


def test_a_lock_is_let_go_and_taken_by_threads_without_two_holding_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    inside: list[int] = []
    overlaps: list[int] = []
    taken = [0]

    def contend() -> None:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            try:
                lock = PathLock(path, "the log")
            except PersistenceError:
                continue
            inside.append(1)
            if len(inside) > 1:
                overlaps.append(1)
            taken[0] += 1
            inside.pop()
            lock.release()

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken[0] > 10
    assert not overlaps
    assert not path.exists()


def test_ctrl_c_while_writing_leaves_a_log_that_loads(tmp_path: Path) -> None:
    writer = SessionWriter(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            fill(writer, 10**9)
    finally:
        timer.cancel()
        writer.abandon()
    loaded = load_session("", path=writer.path)
    assert len(loaded.chunk_table) in (writer.chunks_written, writer.chunks_written + 1)
    assert loaded.verdict in ("open", "torn")


def test_an_interrupted_write_latches(tmp_path: Path) -> None:
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    log._file.latch(KeyboardInterrupt())  # what append does when a Ctrl-C comes between its lines
    for call in (lambda: log.append_row(0, user_text_chunk("x")), log.sync):
        with pytest.raises(PersistenceError, match="interrupted by KeyboardInterrupt"):
            call()
    log.abandon()
    assert load_session("", path=log.path).verdict == "open"


def test_a_failed_sync_latches_like_a_failed_write(tmp_path: Path) -> None:
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    log.append_row(0, user_text_chunk("x"))
    read, write = os.pipe()
    os.dup2(write, log._file._fd, inheritable=False)  # a pipe cannot be synced: the kernel says so
    with pytest.raises(PersistenceError, match="Invalid argument") as first:
        log.sync()
    for call in (
        lambda: log.append_row(1, user_text_chunk("y")),
        lambda: log.close(usage=None, lineage_extras=(), outcome={}),
    ):
        with pytest.raises(PersistenceError) as again:
            call()
        assert again.value is first.value
    os.close(read)
    os.close(write)
    assert load_session("", path=log.path).verdict == "open"


@pytest.mark.slow
def test_a_row_too_long_for_a_line_latches(tmp_path: Path) -> None:
    from rath.session.persistence.format import MAX_LINE_BYTES

    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl", durability="process")
    size = log.path.stat().st_size
    with pytest.raises(PersistenceError, match="does not fit"):
        log.append_row(0, user_text_chunk("x" * MAX_LINE_BYTES))
    assert log.path.stat().st_size == size
    with pytest.raises(PersistenceError, match="does not fit"):
        log.close(usage=None, lineage_extras=(), outcome={})
    assert load_session("", path=log.path).verdict == "open"
