"""Looking at logs keeps no writer out, and a file system without locks keeps nobody from looking."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rath.errors import PersistenceError
from rath.session.persistence import open_dir, pin_session, verify
from rath.session.persistence.lock import PathLock
from rath.session.persistence.manage import writer_of
from rath.session.persistence.paths import lock_file
from tests.persistence.shared import directory, log_at, shared_log

LOOK = """
import sys
from datetime import timedelta
from rath.session.persistence import load_session, open_dir, verify
from rath.session.persistence.prune import prunable

assert verify(sys.argv[1]).verdict == "complete"
assert verify(sys.argv[1]).writer is None
assert load_session(sys.argv[1]).closed
assert [entry.verdict for entry in open_dir().where(verdict="complete")] == ["complete"]
assert len(prunable(older_than=timedelta()).gone) == 1
print("looked")
"""


def test_a_writer_waits_for_who_only_looks_whether_somebody_writes(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"  # left by a process that was killed
    lock.touch()
    with lock.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        ends = threading.Timer(0.1, fcntl.flock, (looking, fcntl.LOCK_UN))
        ends.start()
        PathLock(lock, "the log").release()
        ends.join()


def test_a_writer_refuses_another_at_once(tmp_path: Path) -> None:
    lock = PathLock(tmp_path / "a.lock", "the log")
    with pytest.raises(PersistenceError, match=f"process {os.getpid()} on .*a log has one writer"):
        PathLock(tmp_path / "a.lock", "the log")
    lock.release()


def test_who_looks_at_a_log_is_not_taken_for_its_writer() -> None:
    log = log_at(shared_log(["a"]))
    with log.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert writer_of(log) is None
        fcntl.flock(looking, fcntl.LOCK_UN)
        fcntl.flock(looking, fcntl.LOCK_EX)  # as OpenRath 1.2 writes
        assert writer_of(log) == "another process"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("error", ["ENOLCK", "EOPNOTSUPP", "EBADF"])
def test_without_locks_logs_can_be_looked_at(error: str, home: Path) -> None:
    session = shared_log(["a"])
    lock_file(log_at(session)).touch()
    arguments = ["strace", "-f", "-o", "/dev/null", "-e", "trace=flock", "-e", f"inject=flock:error={error}"]
    done = subprocess.run(
        [*arguments, sys.executable, "-c", LOOK, str(session)], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (0, "looked\n"), done.stderr


def test_a_pin_that_cannot_be_had_says_what_is_in_the_way() -> None:
    session = shared_log(["a"])
    (directory() / ".directory.lock").mkdir()
    with pytest.raises(PersistenceError, match=r"\.directory\.lock beside it cannot be locked"):
        pin_session(session)


def test_a_log_that_is_deleted_while_others_are_checked_is_left_out() -> None:
    for _ in range(4):
        shared_log(["a"])
    asked = iter(open_dir().where(verdict=("complete", "unreadable")))
    first = next(asked)
    for path in open_dir().files():
        if path != first.path:
            path.unlink()
    assert list(asked) == []

    gone = shared_log(["b"], days=1)

    def remove(done: int, of: int) -> None:
        log_at(gone).unlink(missing_ok=True)

    assert [(entry.id, entry.verdict) for entry in open_dir().verify_all(remove)] == [(first.id, "complete")]
    assert verify(first.path).verdict == "complete"
