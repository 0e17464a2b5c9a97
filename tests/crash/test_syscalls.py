"""Every system call on a log and its lock fails once, in every way; the kernel says what happened, strace says it wrong.

``strace`` injects the fault into a child of its own. A fault that says that nothing was done does nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rath.errors import PersistenceError
from rath.session.persistence import load_session
from rath.session.persistence.lock import PathLock
from rath.session.persistence.paths import lock_file

ROOT = Path(__file__).parents[2]
CALLS = "openat,write,pwrite64,fsync,fdatasync,ftruncate,fchmod,flock,rename,renameat,renameat2,unlink,unlinkat,close"
# Whether the log can be written without it: what the lock says of its holder is a courtesy, and so is removing it.
HARMLESS = {"ftruncate", "pwrite64", "unlink", "unlinkat", "close"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def strace(tmp_path: Path) -> None:
    """Needs strace, and the right to trace."""
    try:
        done = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, check=False)
        why = done.stderr.decode()[:200] if done.returncode else ""
    except FileNotFoundError:
        why = "strace is not installed"
    if why:
        if os.environ.get("RATH_REQUIRE_STRACE"):
            pytest.fail(why)
        pytest.skip(why)


@dataclass
class Child:
    """What a child said, and left."""

    mode: str
    path: Path
    level: str
    inject: str | None = None
    trace: str = ""
    killed: bool = False
    said: list[str] = field(default_factory=list)

    def run(self) -> Child:
        trace = self.path.with_suffix(".trace")
        command = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={CALLS}"]
        for path in (self.path.parent, self.path, lock_file(self.path)):
            command += ["-P", str(path)]
        if self.inject is not None:
            command += ["-e", f"inject={self.inject}"]
        command += [sys.executable, "-m", "tests.crash.syscalls_child", self.mode, str(self.path), self.level]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        self.trace = trace.read_text()
        self.killed = "+++ killed by SIGKILL +++" in self.trace
        self.said = done.stdout.splitlines()
        assert self.killed or done.returncode == 0, done.stderr
        return self

    @property
    def end(self) -> dict[str, object]:
        return json.loads(self.said[-1].removeprefix("end "))  # type: ignore[no-any-return]

    def rows_promised(self) -> int:
        """How many rows survive this level's kind of fault by its promise."""
        # These faults leave the kernel alive: what `append` returned for is in its cache, whatever the level.
        return max((int(line.split()[1]) for line in self.said if not line.startswith("end ")), default=0)


def counted(child: Child) -> dict[str, int]:
    """How often each call is made by the thread that makes it most."""
    made = Counter(re.findall(r"^(\d+) +(\w+)\(", child.trace, re.MULTILINE))
    return {call: max(n for (_, name), n in made.items() if name == call) for _, call in made}


def faults(tmp_path: Path, mode: str, level: str, how: str, calls: set[str] | None = None) -> list[Child]:
    """A child for each call that the run without faults makes, in which that call fails as ``how`` says."""
    (tmp_path / "plain").mkdir()
    plain = Child(mode, tmp_path / "plain" / "a.jsonl", level).run()
    assert plain.end["error"] is None
    places = [(call, n) for call, most in counted(plain).items() for n in range(1, most + 1) if calls is None or call in calls]
    children = []
    for call, n in places:
        directory = tmp_path / f"{call}-{n}"
        directory.mkdir()
        children.append(Child(mode, directory / "a.jsonl", level, f"{call}:{how}:when={n}"))
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(Child.run, children))
    struck = [child for child in done if child.killed or "(INJECTED)" in child.trace]
    # Which of its threads a run asks for what is not the same each time.
    assert len(struck) >= (len(done) if mode == "log" else 12), [child.inject for child in done if child not in struck]
    return struck


def check_log(child: Child, all_rows: int) -> str | None:
    """The verdict; ``None`` if there is no log. Whatever happened: nothing promised is lost, nothing is called complete."""
    promised = child.rows_promised()
    try:
        loaded = load_session("", path=child.path)
    except PersistenceError as error:
        # Not one record: nothing was promised.
        assert promised == 0, f"{child.inject}: {promised} rows were acknowledged, and then: {error}"
        assert "damaged" not in str(error)
        return None
    assert len(loaded.chunk_table) >= promised, child.inject
    assert loaded.verdict in ("open", "torn", "complete"), child.inject
    if loaded.verdict == "complete":
        assert len(loaded.chunk_table) == all_rows, child.inject
    else:
        assert not any(line.startswith("closed") for line in child.said), child.inject
    return loaded.verdict


@pytest.mark.parametrize("level", ["process", "turn", "record"])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_call_that_fails_is_an_error_to_the_caller_or_does_not_matter(tmp_path: Path, error: str, level: str) -> None:
    for child in faults(tmp_path, "log", level, f"error={error}"):
        verdict = check_log(child, 5)
        call = str(child.inject).partition(":")[0]
        if child.end["error"] is None:
            letting_go = re.search(r"LOCK_UN\).*INJECTED", child.trace)
            assert call in HARMLESS or letting_go, child.inject
            assert verdict == "complete", child.inject
        else:
            assert child.end["error"] == "PersistenceError", child.inject
            assert str(child.path.parent) in str(child.end["text"]), child.inject
        # The lock is free, whatever failed.
        PathLock(lock_file(child.path), "the log").release()


def test_a_call_that_a_signal_interrupts_or_that_writes_nothing_is_made_again(tmp_path: Path) -> None:
    for name, how, calls in (
        ("interrupted", "error=EINTR", {"write", "fsync", "fdatasync", "openat", "ftruncate", "fchmod", "pwrite64"}),
        ("nothing", "retval=0", {"write"}),
    ):
        (tmp_path / name).mkdir()
        for child in faults(tmp_path / name, "log", "turn", how, calls):
            assert child.end["error"] is None, child.inject
            assert check_log(child, 5) == "complete", child.inject


@pytest.mark.parametrize("level", ["process", "turn", "record"])
def test_a_process_killed_at_a_call_loses_nothing_acknowledged(tmp_path: Path, level: str) -> None:
    for child in faults(tmp_path, "log", level, "signal=SIGKILL"):
        assert child.killed, child.inject
        check_log(child, 5)
        PathLock(lock_file(child.path), "the log").release()


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_run_whose_log_fails_says_so_and_keeps_the_models_work(tmp_path: Path, error: str) -> None:
    for child in faults(tmp_path, "run", "turn", f"error={error}", {"openat", "write", "fsync", "fdatasync"}):
        verdict = check_log(child, 9)
        assert child.end["error"] == "PersistenceError", child.inject
        if "no trailer" in str(child.end["text"]):
            # What the log has, and the row that it failed at, the caller has too.
            rows = 0 if verdict is None else len(load_session("", path=child.path).chunk_table)
            assert int(str(child.end["rows"])) >= max(rows, child.rows_promised()), child.inject
        else:
            assert "Nothing was written" in str(child.end["text"]) or "cannot lock" in str(child.end["text"]), child.inject


def test_a_run_killed_at_a_call_loses_nothing_acknowledged(tmp_path: Path) -> None:
    for child in faults(tmp_path, "run", "turn", "signal=SIGKILL", {"write", "fdatasync"}):
        assert child.killed, child.inject
        check_log(child, 9)
