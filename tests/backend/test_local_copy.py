"""Copies of local workspaces: holes stay holes, a full disk is told before, and what nobody wants is not copied on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rath.backend import BackendToolCommandRun
from rath.backend.host.diff import Baseline
from rath.backend.host.own import own_directory, remove_own
from rath.backend.host.paths import Confined
from rath.backend.host.tree import copy_tree
from rath.backend.lease import Placement
from rath.backend.local_start import Snapshot
from rath.errors import SandboxError
from rath.testing.pace import within

MIB = 1 << 20


def test_a_copy_keeps_the_holes_of_a_file(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.write(b"head")
        file.seek(300 * MIB)
        file.write(b"middle")
        file.truncate(800 * MIB)
    if (tmp_path / "sparse").stat().st_blocks * 512 > MIB:
        pytest.skip("this file system has no holes")
    (tmp_path / "empty").touch()
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 5 * MIB)
    root, there = Confined(str(tmp_path)), own_directory()
    try:
        copy_tree(root, there)
        copied = Path(there, "sparse")
        assert copied.stat().st_size == 800 * MIB
        assert copied.stat().st_blocks * 512 < MIB
        with open(copied, "rb") as file:
            assert file.read(5) == b"head\0"
            file.seek(300 * MIB - 1)
            assert file.read(8) == b"\0middle\0"
        assert Path(there, "hole").read_bytes() == bytes(5 * MIB)
        assert Path(there, "empty").read_bytes() == b""
    finally:
        root.close()
        remove_own(there)


SMALL_DISK = """
import os, sys
from rath.backend import BackendToolCommandRun
from rath.backend.lease import Placement
from rath.errors import SandboxError
work, kind = sys.argv[1:]
with open(work + "/big", "wb") as file:
    if kind == "full":
        file.write(b"x" * 3_000_000)
    file.truncate(3_000_000)
parent = Placement("local", work).acquire()
parent.open_blocking()
copy = parent.placement.copy()
child = copy.acquire()
# The baseline fills nothing more: the disk has 4 MiB.
free = os.statvfs(work)
print(free.f_bavail * free.f_frsize)
copy.freeze()
try:
    child.open_blocking()
    print("copied")
except SandboxError as error:
    print(error)
child.release()
parent.release()
print(sorted(name for name in os.listdir(os.environ["TMPDIR"])))
"""


@pytest.mark.parametrize("kind", ["full", "sparse"])
def test_a_copy_that_does_not_fit_says_so_before_it_starts_and_holes_need_no_space(kind: str, tmp_path: Path) -> None:
    command = f"mount -t tmpfs -o size=4m none {tmp_path} && mkdir {tmp_path}/t {tmp_path}/w && exec \"$@\""
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command, "sh", sys.executable, "-c", SMALL_DISK, f"{tmp_path}/w", kind],
        env={**os.environ, "TMPDIR": f"{tmp_path}/t"},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode and ("unshare" in ran.stderr or "mount" in ran.stderr):
        pytest.skip("needs a user namespace")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    if kind == "full":
        assert "needs 2.9 MiB" in lines[1]
        assert "TMPDIR" in lines[1]
    else:
        assert lines[1] == "copied"
    assert lines[-1] == "[]"


def test_a_copy_that_is_stopped_ends_within_a_file_and_leaves_nothing(tmp_path: Path) -> None:
    for n in range(20):
        (tmp_path / str(n)).write_bytes(b"x")
    asked = []

    def stop() -> bool:
        asked.append(set(made()))
        return len(asked) > 5

    def made() -> list[str]:
        return [name for name in os.listdir(os.path.dirname(marker)) if name.startswith("rath-local-")]

    marker = own_directory()
    before = set(made())
    root = Confined(str(tmp_path))
    with pytest.raises(SandboxError, match="stopped"):
        Snapshot.take(root, Baseline(), stop)
    root.close()
    (copy,) = asked[0] - before
    assert copy not in made()
    remove_own(marker)


@pytest.mark.slow
def test_the_copy_of_a_released_child_holds_the_parent_up_no_longer(tmp_path: Path) -> None:
    # 20,000 names of one file: 4 GB to copy, and 200 kB to make.
    from_here = tmp_path / "many"
    from_here.mkdir()
    (from_here / "f").write_bytes(b"x" * 200_000)
    for n in range(20_000):
        os.link(from_here / "f", from_here / str(n))
    parent = Placement("local", str(tmp_path)).acquire()
    parent.open_blocking()
    copy = parent.placement.copy()
    child = copy.acquire()
    started = time.monotonic()
    copy.freeze()
    time.sleep(0.3)
    child.release()
    parent.dispatch_blocking(BackendToolCommandRun("true"))
    took = time.monotonic() - started
    parent.release()
    assert took < within(2), took
