"""Workspaces whose content is against us: odd trees, forged marks of the overlay's own, full disks, and haste."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rath import Session
from rath.backend import BackendSandboxSpec, BackendToolCommandRun, CommandResult
from rath.backend.docker.container import Identity
from rath.backend.docker.engine import Image
from rath.backend.docker.layers import FLATTEN_DEPTH, LayerStore, Slot
from rath.backend.docker.mounts import MAX_LAYERS, mounted_below
from rath.backend.docker.slots import SlotPlace
from rath.backend.guest.backend import Start
from rath.core import ports
from rath.errors import SandboxError, SandboxUnavailable
from tests.backend.docker.conftest import DEV

pytestmark = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may mount")
UID = 20_001


@pytest.fixture
def store() -> Iterator[LayerStore]:
    """A store of its own, of which nothing may be left but what is there from the start."""
    made = LayerStore(f"host-{os.getpid()}-{random.randrange(1 << 40):x}")
    if made.obstacle():
        pytest.skip(made.obstacle())
    yield made
    assert made.is_empty
    made.settle()
    assert mounted_below(made.path) == []
    assert sorted(os.listdir(made.path)) == ["e", "lock"]
    made.close()


@pytest.fixture
def slot(store: LayerStore) -> Iterator[Slot]:
    made = store.slot()
    store.mount(made, None, UID, UID)
    yield made
    store.release(made)


def make_deep(top: str, levels: int, name: str = "d" * 200) -> None:
    """Directories in directories, deeper than any path is long."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


# -- a merge ----------------------------------------------------------------------------------------------------------


def test_a_merge_follows_no_link_and_keeps_what_is_odd(store: LayerStore, slot: Slot, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("of the host")
    top = Path(slot.path)
    odd = os.path.join(os.fsencode(slot.path), b"a\n,:\\\xff --help")
    Path(os.fsdecode(odd)).write_text("odd")
    (top / "-rf").write_text("dash")
    (top / "out").symlink_to(tmp_path)
    (top / "loop").symlink_to("loop")
    os.mkfifo(top / "pipe")
    (top / "tool").write_text("x")
    (top / "tool").chmod(0o6755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(top / "socket"))
    os.setxattr(top / "tool", "user.overlay.metacopy", b"")
    os.setxattr(top / "tool", "user.overlay.redirect", b"/etc/passwd")
    before = {name: os.lstat(top / name).st_mode for name in os.listdir(top)}
    frozen = store.freeze(slot)
    for step in range(FLATTEN_DEPTH + 1):
        (top / "out" / "step").unlink(missing_ok=True) if step else None
        (top / "counter").write_text(str(step))
        store.drop(frozen)
        frozen = store.freeze(slot)
    store.settle()
    assert frozen.depth <= 3
    view = store.view(frozen)
    seen = Path(view.path)
    assert {name: os.lstat(seen / name).st_mode for name in os.listdir(seen) if name != "counter"} == before
    assert os.readlink(seen / "out") == str(tmp_path)
    assert (seen / "tool").read_text() == "x"
    assert os.statvfs(view.path).f_flag & os.ST_NOSUID
    store.release(view)
    store.drop(frozen)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"precious": "of the host"}


def test_what_cannot_be_merged_works_on_as_it_is_and_is_removed_whole(
    store: LayerStore, slot: Slot, caplog: pytest.LogCaptureFixture
) -> None:
    make_deep(slot.path, 400)
    kept = store.freeze(slot)
    for step in range(MAX_LAYERS - 2):
        Path(slot.path, "counter").write_text(str(step))
        store.drop(kept)
        kept = store.freeze(slot)
    Path(slot.path, "counter").write_text("one too many")
    with pytest.raises(SandboxError, match="too long"):
        store.freeze(slot)
    Path(slot.path, "counter").write_text("still writable")
    store.settle()
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert 1 <= len(told) <= MAX_LAYERS // FLATTEN_DEPTH, "a merge that fails is not tried again at every freeze"
    store.drop(kept)


def copies_of(store: LayerStore, name: str) -> int:
    return sum(os.path.lexists(f"{store.path}/{one}/d/{name}") for one in os.listdir(store.path))


@pytest.mark.slow
def test_quick_freezes_and_many_siblings_merge_what_they_have_in_common_once(store: LayerStore, slot: Slot) -> None:
    with open(f"{slot.path}/large", "wb") as large:
        for _ in range(32):
            large.write(os.urandom(1 << 20) * 4)
    frozens = []
    for step in range(FLATTEN_DEPTH):
        Path(slot.path, "counter").write_text(str(step))
        frozens.append(store.freeze(slot))
    with ExitStack() as held:
        for number in range(12):
            sibling = store.slot()
            held.callback(store.release, sibling)
            store.mount(sibling, frozens[FLATTEN_DEPTH - 1], UID, UID)
            Path(sibling.path, "own").write_text(str(number))
            frozens.append(store.freeze(sibling))
        merging = [thread for thread in threading.enumerate() if thread.name == "rath-layers-merge"]
        assert len(merging) <= 1
        store.settle()
        assert copies_of(store, "large") == 2
        assert frozens[-1].depth == 2
    for frozen in frozens:
        store.drop(frozen)


# -- a full disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_changes_nothing(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "none", str(tmp_path)], check=True)
    try:
        store = LayerStore("full", str(tmp_path))
        if store.obstacle():
            pytest.skip(store.obstacle())
        slot = store.slot()
        store.mount(slot, None, UID, UID)
        Path(slot.path, "kept").write_text("kept")
        empty = store.slot()
        store.settle()  # else what the first try has left goes later, and makes room
        inodes = os.statvfs(tmp_path)
        subprocess.run(["mount", "-o", f"remount,nr_inodes={inodes.f_files - inodes.f_ffree}", str(tmp_path)], check=True)
        with pytest.raises(OSError, match="No space left"):
            store.freeze(slot)
        with pytest.raises(SandboxUnavailable, match="No space left.*make room on that disk"):
            ports.engine().run(SlotPlace(store, empty).fill(Start(), Identity(UID, UID)))
        store.release(empty)
        subprocess.run(["mount", "-o", "remount,nr_inodes=10000", str(tmp_path)], check=True)
        Path(slot.path, "more").write_text("writable")
        frozen = store.freeze(slot)
        view = store.view(frozen)
        assert sorted(os.listdir(view.path)) == ["kept", "more"]
        store.release(view)
        store.drop(frozen)
        store.release(slot)
        (tmp_path / "source").mkdir()
        with open("/dev/urandom", "rb") as noise:
            (tmp_path / "source" / "large").write_bytes(noise.read(3 << 20))
        with pytest.raises(SandboxError, match=f"or mount a larger disk at {tmp_path}"):
            store.adopt(str(tmp_path / "source"), UID, UID)
        store.settle()
        assert sorted(os.listdir(store.path)) == ["e", "lock"]
        store.close()
    finally:
        subprocess.run(["umount", "--recursive", str(tmp_path)], check=True)


# -- who is cancelled -------------------------------------------------------------------------------------------------


def test_a_freeze_that_nobody_waits_for_any_more_is_over_before_the_caller_and_keeps_nothing(
    store: LayerStore, slot: Slot
) -> None:
    place = SlotPlace(store, slot)
    writer = os.open(f"{slot.path}/log", os.O_WRONLY | os.O_CREAT, 0o644)
    timer = threading.Timer(0.3, os.close, [writer])

    async def cancel_it() -> float:
        freezing = asyncio.create_task(place.freeze(Image("sha256:0", "none", {})))
        await asyncio.sleep(0.1)
        timer.start()
        freezing.cancel()
        began = time.monotonic()
        await asyncio.wait([freezing])
        assert freezing.cancelled()
        return time.monotonic() - began

    took_s = ports.engine().run(cancel_it())
    timer.join()
    assert took_s > 0.2, "the freeze was still under way, and the next call would have met it"
    Path(slot.path, "log").write_text("writable")
    store.settle()
    assert not store._books.frozen


# -- from inside ------------------------------------------------------------------------------------------------------


def sh(session: Session, command: str) -> str:
    result = session.require_sandbox().dispatch(BackendToolCommandRun(command, timeout=30))
    assert isinstance(result, CommandResult), result
    return os.fsdecode(result.stdout + result.stderr)


FORGE = """python3 - <<'END'
import ctypes, os
made = []
for space in ("trusted", "user"):
    for name, value in (("opaque", b"y"), ("redirect", b"/etc"), ("metacopy", b""), ("whiteout", b"y"), ("origin", b"x" * 29)):
        for where in (".", "dir", "dir/file"):
            try:
                os.setxattr(where, f"{space}.overlay.{name}", value)
                made.append(space)
            except OSError:
                pass
print("set", *sorted(set(made)))
for where in (".", "dir"):
    try:
        os.mknod(f"{where}/whiteout", 0o020644, os.makedev(0, 0))
        print("whiteout")
    except PermissionError:
        pass
libc = ctypes.CDLL(None, use_errno=True)
print("renamed", libc.renameat2(-100, b"gone", -100, b"gone2", 4))
END"""


@pytest.mark.docker
def test_a_command_cannot_forge_what_an_overlay_means(docker_engine: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATH_SANDBOX_IMAGE", DEV)
    with Session.from_user_message("go").to("docker", spec=BackendSandboxSpec()) as session, ExitStack() as held:
        sh(session, "mkdir dir; echo 1 > dir/file; echo 2 > gone")
        current = session
        for step in range(3):
            current = current.fork(sandbox="copy")
            held.callback(current.close_sandbox)
            # None of the marks that the kernel would believe, and those that can be set are nothing but names.
            assert sh(current, FORGE) == "set user\nrenamed -1\n"
            assert sh(current, f"cat dir/file gone; echo {step} > dir/{step}; ls dir") == "".join(
                ["1\n2\n", *(f"{number}\n" for number in range(step + 1)), "file\n"]
            )
        assert stat.S_ISDIR(os.stat("/etc").st_mode)
        assert sh(current, "unshare -Urm true").startswith("unshare: ")


@pytest.mark.docker
@pytest.mark.slow
def test_a_workspace_that_cannot_be_merged_is_copied_where_it_could_not_be_frozen_any_more(
    docker_engine: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RATH_SANDBOX_IMAGE", DEV)
    with Session.from_user_message("go").to("docker") as session:
        deep = "python3 -c \"import os\nfor _ in range(40): os.mkdir('d' * 200); os.chdir('d' * 200)\nopen('bottom', 'w')\""
        assert sh(session, deep) == ""
        for step in range(MAX_LAYERS + 3):
            sh(session, f"echo {step} > counter")
            snapshot = session.snapshot()
            if step < MAX_LAYERS + 2:
                snapshot.close()
        assert any("could not be frozen in place, and is copied" in record.getMessage() for record in caplog.records)
        with snapshot, session.restore(snapshot) as again:
            assert sh(again, "cat counter; find . -name bottom | wc -l") == f"{MAX_LAYERS + 2}\n1\n"
