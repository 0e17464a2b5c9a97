"""Owners and what is noted of their sandboxes: who lives is known at once, and noting never costs a call anything."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rath.backend import owner as owners
from rath.backend.owner import CallLog, Owner, SandboxRecord
from rath.core.redact import register_secret
from rath.errors import SandboxUnavailable


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of the test's own."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    return owners.state_directory()


def python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_an_owner_lives_as_long_as_its_process_and_not_a_moment_longer(state: Path) -> None:
    with python("from rath.backend.owner import owner; print(owner().id, flush=True); input()") as child:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        assert owners.alive(name) is True
        assert owners.owners()[name]["pid"] == child.pid
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert owners.alive(name) is False
    owners.forget_owner(name)
    assert owners.alive(name) is None
    assert name not in owners.owners()


def test_a_forked_child_neither_keeps_its_parent_alive_nor_is_it(state: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from rath.backend.owner import owner\n"
        "mine = owner().id\n"
        "child = os.fork()\n"
        "if child:\n"
        "    os._exit(0)\n"
        "print(mine, owner().id, flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with python(code) as process:
        assert process.stdout is not None
        parent, child = process.stdout.readline().split()
        process.wait()
        assert parent != child
        assert owners.alive(parent) is False
        assert owners.alive(child) is True
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("names_things", [True, False])
def test_only_of_dead_owners_that_name_nothing_elsewhere_every_note_may_go(state: Path, names_things: bool) -> None:
    code = (
        "from rath.backend.owner import SandboxRecord, owner\n"
        f"mine = owner(names_things={names_things})\n"
        "mine.opened(SandboxRecord('ab' * 8, '', 'bwrap', '1'))\n"
        "print(mine.id, flush=True); input()"
    )
    with python(code) as child:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        owners.forget_idle_owners()
        assert name in owners.owners()
        child.kill()
    rest, young = (state / "sandboxes" / f"{two * 8}.calls" for two in ("cd", "ef"))
    for path in (rest, young):
        path.touch()
    os.utime(rest, (0, 0))
    owners.forget_idle_owners()
    assert (name in owners.owners()) is names_things
    assert (rest.exists(), young.exists()) == (False, True)


def test_a_process_that_ends_in_order_and_leaves_nothing_is_forgotten(state: Path) -> None:
    code = "from rath.backend.owner import owner; import sys; print(owner(names_things=len(sys.argv) > 1).id)"
    names = [
        subprocess.run([sys.executable, "-c", code, *more], capture_output=True, text=True, check=True).stdout.strip()
        for more in ([], ["things"])
    ]
    assert [owners.alive(name) for name in names] == [None, False]


def test_asking_from_the_same_process_says_alive(state: Path) -> None:
    mine = Owner(state)
    assert owners.alive(mine.id) is True
    mine.drop()
    assert owners.alive(mine.id) is False


@pytest.mark.parametrize("name", ["", "../../etc", "0123456789abcdeg", "0123456789abcdef"])
def test_of_an_owner_that_is_not_here_nobody_can_tell(state: Path, name: str) -> None:
    assert owners.alive(name) is None


def test_a_directory_that_others_can_write_to_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, temporary = tmp_path / "run", tmp_path / "tmp"
    (runtime / "rath").mkdir(parents=True)
    (runtime / "rath").chmod(0o777)
    temporary.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (temporary / f"rath-{os.geteuid()}").symlink_to(elsewhere)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    if os.geteuid() == 0:
        assert owners.state_directory() == Path("/run/rath")
    else:
        with pytest.raises(SandboxUnavailable, match="TMPDIR"):
            owners.state_directory()


def test_open_sandboxes_and_their_calls_can_be_read_and_go_with_the_close(state: Path) -> None:
    mine = Owner(state)
    record = SandboxRecord("0" * 15 + "1", mine.id, "docker", "c0ffee", image="python:3.12-slim", uid=20001)
    log = mine.opened(record)

    async def work() -> None:
        log.note("BackendToolCommandRun", "make test", 2, 12.345)
        log.note("BackendToolFilesRead", "a.txt", None, 0.5)
        log.flush()

    asyncio.run(work())
    assert owners.sandboxes() == [record]
    first, second = owners.calls(record.id)
    assert (first["kind"], first["text"], first["exit"], first["ms"]) == ("BackendToolCommandRun", "make test", 2, 12.35)
    assert second["exit"] is None
    assert owners.calls(record.id, last=1) == [second]
    log.close()
    mine.closed(record.id)
    asyncio.run(work())  # a call that ends after the close
    assert owners.sandboxes() == []
    assert os.listdir(state / "sandboxes") == []
    mine.drop()


def test_secrets_do_not_reach_the_notes_even_where_the_text_is_cut(tmp_path: Path) -> None:
    register_secret("hunter2-hunter2-hunter2")
    log = CallLog(tmp_path / "calls")

    async def work() -> None:
        log.note("command", "x" * 190 + " hunter2-hunter2-hunter2", 0, 1.0)
        log.flush()

    asyncio.run(work())
    noted = json.loads((tmp_path / "calls").read_text())
    assert "hunter2" not in noted["text"]
    assert len(noted["text"]) == owners.TEXT_LENGTH


def test_notes_are_bounded_and_keep_the_latest(tmp_path: Path) -> None:
    log = CallLog(tmp_path / "calls")

    async def work() -> None:
        for n in range(12_000):
            log.note("command", f"{n} " + "y" * 150, 0, 1.0)
        log.flush()

    asyncio.run(work())
    lines = (tmp_path / "calls").read_bytes().splitlines()
    assert (tmp_path / "calls").stat().st_size <= owners.LOG_BYTES
    assert json.loads(lines[-1])["text"].startswith("11999 ")
    assert all(json.loads(line) for line in lines)


def test_a_note_costs_microseconds_and_a_full_disk_costs_nobody_a_call(tmp_path: Path) -> None:
    log = CallLog(tmp_path / "missing" / "calls")

    async def work() -> float:
        begun = time.perf_counter()
        for _ in range(owners.FLUSH_CALLS - 1):
            log.note("command", "pytest -q tests/test_everything.py", 0, 1.0)
        spent_s = time.perf_counter() - begun
        log.flush()
        return spent_s

    best_s = min(asyncio.run(work()) for _ in range(5))
    assert best_s / (owners.FLUSH_CALLS - 1) < 20e-6
