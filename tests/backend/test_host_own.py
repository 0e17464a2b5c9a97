"""The local backend's own directories: what is removed is what it made; what killed processes left is swept up."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rath.backend import BackendSandboxSpec, BackendToolCommandRun, get
from rath.backend.host.own import own_directory, remove_own


def foreign(tmp_path: Path) -> Path:
    made = tmp_path / "foreign"
    (made / "sub").mkdir(parents=True)
    (made / "sub/keep").write_text("x")
    (made / "sub").chmod(0o500)
    return made


@pytest.mark.parametrize("how", ["moved", "linked"])
def test_a_foreign_directory_in_the_place_of_a_workspace_is_left_alone_and_warned_of(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = foreign(tmp_path)
    put = f"mv {other}" if how == "moved" else f"ln -s {other}"
    with caplog.at_level(logging.WARNING, "rath.backend"), get("local").open() as sandbox:
        path = Path(sandbox.handle)
        sandbox.dispatch(BackendToolCommandRun(f"mv {path} {tmp_path}/away; {put} {path}"))
    try:
        assert (path / "sub/keep").read_text() == "x"
        assert (path / "sub").stat().st_mode & 0o777 == 0o500
        assert (tmp_path / "away").is_dir()
        assert [record.name for record in caplog.records] == ["rath.backend"]
        assert str(path) in caplog.text
    finally:
        path.unlink() if path.is_symlink() else path.rename(tmp_path / "back")


def test_a_workspace_that_was_moved_away_is_left_there_and_one_that_is_gone_is_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved, gone = own_directory(), own_directory()
    os.rename(moved, tmp_path / "moved")
    os.rmdir(gone)
    with caplog.at_level(logging.WARNING, "rath.backend"):
        remove_own(moved)
        remove_own(gone)
    assert (tmp_path / "moved").is_dir()
    assert len(caplog.records) == 1
    assert moved in caplog.text


def test_a_removal_follows_no_link_and_changes_no_mode_behind_one(tmp_path: Path) -> None:
    other = foreign(tmp_path)
    path = own_directory()
    os.makedirs(f"{path}/a/b/c")
    os.symlink(other, f"{path}/link")
    os.symlink(other / "sub", f"{path}/a/b/link")
    os.chmod(f"{path}/a/b", 0)
    os.chmod(f"{path}/a", 0o500)
    remove_own(path)
    assert not os.path.lexists(path)
    assert (other / "sub/keep").read_text() == "x"
    assert (other / "sub").stat().st_mode & 0o777 == 0o500


def test_a_user_who_is_not_root_gets_rid_of_locked_directories_too() -> None:
    if os.geteuid() != 0:
        pytest.skip("the test above is that already")
    script = """
import os
from rath.backend.host.own import own_directory, remove_own
os.setgid(65534); os.setuid(65534)
path = own_directory()
os.makedirs(path + "/a/b/c/d")
for name in ("a/b/c", "a/b", "a"):
    os.chmod(f"{path}/{name}", 0)
os.chmod(path, 0o500)
remove_own(path)
assert not os.path.lexists(path)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


HELD = """
import sys
from rath.backend import get
from rath.backend.host.own import own_directory
print(get("local").open().handle, own_directory(), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HELD]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def handles(process: subprocess.Popen[str]) -> list[Path]:
        assert process.stdout is not None
        return [Path(path) for path in process.stdout.readline().split()]

    old = time.time() - 120
    killed, alive = start(), start()
    left, used = handles(killed), handles(alive)
    killed.kill()
    killed.communicate()
    outside = foreign(tmp_path)
    others = [tmp_path / "rath-local-mine", tmp_path / "rath-local-open1234.own", tmp_path / "rath-local-link1234.own"]
    others[0].mkdir(0o700)
    others[1].mkdir(0o755)
    others[2].symlink_to(outside)
    (left[0] / "link").symlink_to(outside)
    young = left.pop()
    for path in (*left, *used, *others):
        os.utime(path, (old, old), follow_symlinks=False)
    sweeper = start()
    mine = handles(sweeper)
    end = time.monotonic() + 10
    while left[0].exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not left[0].exists()
    assert all(path.is_dir() for path in (*used, *mine, *others, young))
    assert (outside / "sub/keep").read_text() == "x"
    for process in (alive, sweeper):
        process.communicate()
    assert not any(path.exists() for path in (*used, *mine))


def test_an_own_directory_is_locked_from_its_start_to_its_end() -> None:
    path = own_directory()
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    remove_own(path)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_a_working_dir_that_is_made_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = BackendSandboxSpec(working_dir=str(tmp_path / "typo" / "path"))
    for _ in range(2):
        with caplog.at_level(logging.INFO, "rath.backend"), get("local").open(spec):
            pass
    told = [(r.name, r.levelname) for r in caplog.records if "typo" in r.getMessage()]
    assert told == [("rath.backend", "INFO")]
