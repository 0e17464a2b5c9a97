"""No path leaves the workspace: by the kernel's own resolution, and by hand where the kernel has none."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rath.backend import local_files
from rath.backend.calls import FileWriteResult
from rath.backend.host.paths import DIRECTORY, Confined, Refused

# Exchanges a directory and a link in one step (RENAME_EXCHANGE is 2), as fast as it can.
SWAP = """
import ctypes, os, sys
swap, (a, b) = ctypes.CDLL(None).renameat2, map(os.fsencode, sys.argv[1:])
assert swap(-100, a, -100, b, 2) == 0
print("swapping", flush=True)
while True:
    swap(-100, a, -100, b, 2)
"""


@pytest.fixture(params=[True, False], ids=["openat2", "by hand"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Confined]:
    inside = tmp_path / "work"
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "a" / "b" / "file").write_text("inside")
    (tmp_path / "secret").write_text("secret")
    links = {
        "up": "..",
        "abs": "/",
        "abs_inside": str(inside / "a"),
        "a/ok": "b",
        "a/ok_up": "../a/b/file",
        "a/out": "../../secret",
        "loop": "loop",
        "dangling": "nowhere",
        "proc": "/proc/self/root",
        "twice": "a/ok_up",
    }
    for name, target in links.items():
        os.symlink(target, inside / name)
    confined = Confined(str(inside), kernel=request.param or None if request.param else False)
    if request.param and confined._call is None:
        pytest.skip("this kernel has no openat2")
    yield confined
    confined.close()


@pytest.mark.parametrize("path", ["a/b/file", "./a//b/./file", "a/ok/file", "a/ok_up", "twice", "a/b/../b/file", "a/ok/../ok/file"])
def test_paths_that_stay_inside_open(root: Confined, path: str) -> None:
    assert local_files.read_bytes(root, root.relative(path)) == b"inside"
    assert local_files.exists(root, root.relative(path))


def test_absolute_paths_inside_are_allowed_by_either_spelling(root: Confined, tmp_path: Path) -> None:
    os.symlink(root.path, tmp_path / "alias")
    alias = Confined(str(tmp_path / "alias"))
    for spelled in (alias.path, alias.real_path):
        assert local_files.read_bytes(alias, alias.relative(f"{spelled}/a/b/file")) == b"inside"
    alias.close()
    with pytest.raises(Refused):
        root.relative(root.path + "x/file")


@pytest.mark.parametrize(
    "path",
    ["..", "../secret", "a/../../secret", "up/secret", "abs/etc/passwd", "abs_inside/b/file", "a/out", "proc/etc", "a/b/../../.."],
)
def test_paths_that_lead_out_are_refused_to_every_tool(root: Confined, path: str, tmp_path: Path) -> None:
    for use in (
        lambda: local_files.read_bytes(root, path),
        lambda: local_files.write_file(root, path, "escaped", 0o644),
        lambda: local_files.list_directory(root, path),
        lambda: local_files.exists(root, path),
        lambda: os.close(root.open(path, DIRECTORY)),
    ):
        with pytest.raises(Refused) as refused:
            use()
        assert refused.value.kind == "path_outside_workspace"
    assert (tmp_path / "secret").read_text() == "secret"


def test_what_cannot_be_opened_says_why(root: Confined) -> None:
    for path, error in (("missing", FileNotFoundError), ("dangling", FileNotFoundError), ("a/b/file/x", NotADirectoryError)):
        with pytest.raises(error):
            local_files.read_bytes(root, path)
    with pytest.raises(OSError, match="symbolic links"):
        local_files.read_bytes(root, "loop")
    with pytest.raises(NotADirectoryError):
        local_files.read_bytes(root, "a/b/file/")
    assert not local_files.exists(root, "loop")
    for bad in ("a\0b", "\ud800", 3):
        with pytest.raises(Refused) as refused:
            root.relative(bad)  # type: ignore[arg-type]
        assert refused.value.kind == "invalid_tool_arguments"


def test_pipes_sockets_and_devices_are_refused_without_waiting(root: Confined) -> None:
    os.mkfifo(os.path.join(root.path, "pipe"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.path.join(root.path, "sock"))
    for name in ("pipe", "sock"):
        with pytest.raises((Refused, OSError)) as read:
            local_files.read_bytes(root, name)
        if isinstance(read.value, OSError):
            assert local_files.failure_kind(read.value) == "not_a_file"
        else:
            assert read.value.kind == "not_a_file"
        with pytest.raises(Refused) as write:
            local_files.write_file(root, name, "x", 0o644)
        assert write.value.kind == "not_a_file"
    listener.close()


def test_a_write_makes_directories_and_leaves_nothing_else(root: Confined) -> None:
    assert local_files.write_file(root, "new/deep/file", "x", 0o640) == FileWriteResult(1)
    made = os.stat(os.path.join(root.path, "new/deep/file"))
    assert stat.S_IMODE(made.st_mode) == 0o640
    assert os.listdir(os.path.join(root.path, "new/deep")) == ["file"]
    with pytest.raises(Refused):
        local_files.write_file(root, "new", "x", 0o644)
    with pytest.raises(Refused):
        local_files.write_file(root, "new/deep/file2", "\ud800", 0o644)
    assert os.listdir(os.path.join(root.path, "new/deep")) == ["file"]
    local_files.write_file(root, "dangling/x", "made", 0o644)
    assert local_files.read_bytes(root, "nowhere/x") == b"made"


def test_a_write_with_the_default_mode_keeps_the_mode_of_a_file_that_is_there(root: Confined) -> None:
    def mode(name: str) -> int:
        return stat.S_IMODE(os.stat(os.path.join(root.path, name)).st_mode)

    for kept in (0o755, 0o600, 0o440):
        local_files.write_file(root, "kept", "old", 0o644)
        os.chmod(os.path.join(root.path, "kept"), kept)
        local_files.write_file(root, "kept", "new", 0o644)
        assert mode("kept") == kept
    local_files.write_file(root, "kept", "new", 0o750)
    assert mode("kept") == 0o750
    old = os.umask(0o077)
    try:
        local_files.write_file(root, "fresh", "x", 0o644)
    finally:
        os.umask(old)
    assert mode("fresh") == 0o644


def test_a_write_is_seen_whole_or_not_at_all(root: Confined) -> None:
    contents = [bytes([65 + n]) * 200_000 for n in range(4)]
    local_files.write_file(root, "f", contents[0], 0o644)
    stop, torn = threading.Event(), []

    def reader() -> None:
        while not stop.is_set():
            data = local_files.read_bytes(root, "f")
            if data not in contents:
                torn.append(len(data))

    thread = threading.Thread(target=reader)
    thread.start()
    for n in range(100):
        local_files.write_file(root, "f", contents[n % 4], 0o644)
    stop.set()
    thread.join()
    assert torn == []


@pytest.mark.slow
def test_a_directory_that_becomes_a_link_in_the_middle_of_a_call_leads_nowhere(root: Confined, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("secret")
    flip, other = os.path.join(root.path, "flip"), os.path.join(root.path, "other")
    os.mkdir(flip)
    (Path(flip) / "file").write_text("inside")
    os.symlink(outside, other)
    attacker = subprocess.Popen([sys.executable, "-c", SWAP, flip, other], stdout=subprocess.PIPE)
    assert attacker.stdout is not None
    if attacker.stdout.readline() != b"swapping\n":
        attacker.wait()
        pytest.skip("no renameat2 here")
    outcomes = set()
    try:
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            for use in (
                lambda: local_files.write_file(root, "flip/planted", "x", 0o644),
                lambda: local_files.read_bytes(root, "flip/file"),
            ):
                try:
                    outcomes.add(use())
                except Refused as refused:
                    outcomes.add(refused.kind)
                except OSError:  # by hand: it became a link between the look and the open
                    outcomes.add("error")
    finally:
        attacker.kill()
        attacker.wait()
        attacker.stdout.close()
    assert os.listdir(outside) == ["file"]
    assert outcomes - {"error"} == {FileWriteResult(1), b"inside", "path_outside_workspace"}


def test_a_file_too_large_to_read_is_refused_before_it_is_read(root: Confined) -> None:
    with open(os.path.join(root.path, "huge"), "wb") as file:
        file.truncate(local_files.MAX_READ_BYTES + 1)
    with pytest.raises(Refused, match="at most") as refused:
        local_files.read_bytes(root, "huge")
    assert refused.value.kind == "file_too_large"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file system that can be full")
def test_a_full_disk_leaves_no_temporary_file(tmp_path: Path) -> None:
    import resource
    import signal

    root = Confined(str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            local_files.write_file(root, "f", b"x" * 1_000_000, 0o644)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert os.listdir(tmp_path) == []
    root.close()
