"""Files between host and sandbox: what is kept, and that a hostile archive writes nowhere but below its target."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rath.backend import registry
from rath.backend.guest.archive import ArchiveReader, Record, archive
from rath.backend.guest.extract import Extractor
from rath.backend.guest.frames import ProtocolError
from rath.backend.guest.transfer import Limits, download
from rath.backend.host.paths import Confined
from rath.backend.types import BackendSandbox, BackendSandboxSpec, BackendToolCommandRun, CommandResult
from rath.core import ports
from rath.errors import SandboxError, SandboxUnavailable
from tests.backend.guest.plain import PlainGuestBackend, PlainGuestSandbox

pytestmark = pytest.mark.slow

RECORD = struct.Struct(">BIQqQII")
SEGMENT = struct.Struct(">QQ")
END = RECORD.pack(0, 0, 0, 0, 0, 0, 0)
LAST = SEGMENT.pack(2**64 - 1, 0)
DIRECTORY, FILE, LINK, HARD_LINK = 1, 2, 3, 4
MIB = 1 << 20


@pytest.fixture
def sandbox() -> Iterator[BackendSandbox]:
    with registry.get(PlainGuestBackend.name).open() as opened:
        yield opened


def run(sandbox: BackendSandbox, cmd: str) -> str:
    result = sandbox.dispatch(BackendToolCommandRun(cmd))
    assert isinstance(result, CommandResult)
    assert result.exit_code == 0, result
    return result.stdout.decode()


def up(sandbox: BackendSandbox, host_path: Path, path: str) -> None:
    ports.engine().run(sandbox.upload(str(host_path), path))


def down(sandbox: BackendSandbox, path: str, host_path: Path) -> None:
    ports.engine().run(sandbox.download(path, str(host_path)))


def shape(top: Path) -> dict[str, tuple[object, ...]]:
    """All that a copy of a tree is to keep."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for path in sorted(top.rglob("*")):
        name, status = str(path.relative_to(top)), path.lstat()
        if path.is_symlink():
            found[name] = ("link", os.readlink(path), status.st_mtime_ns)
        elif path.is_dir():
            found[name] = ("directory", stat.S_IMODE(status.st_mode), status.st_mtime_ns)
        elif path.is_file():
            same_as = first.setdefault(status.st_ino, name)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = (digest, stat.S_IMODE(status.st_mode), status.st_mtime_ns, same_as)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "d" / "deep").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "d" / "file").write_bytes(os.urandom(3 * MIB))
    (top / "d" / "deep" / "run.sh").write_text("#!/bin/sh\n")
    (top / "d" / "deep" / "run.sh").chmod(0o755)
    (top / "nothing").touch()
    os.link(top / "d" / "file", top / "second_name")
    os.symlink("d/file", top / "link")
    os.symlink("/nowhere", top / "dangling")
    with open(top / "sparse", "wb") as file:
        file.seek(50 * MIB)
        file.write(b"in the middle")
        file.truncate(100 * MIB)
    (top / "caf\udce9 \n'\"").write_text("strange")
    os.mkfifo(top / "d" / "pipe")
    for path in sorted(top.rglob("*"), reverse=True):
        os.utime(path, ns=(1_500_000_000_123_456_789,) * 2, follow_symlinks=False)
    return top


# -- there and back ---------------------------------------------------------------------------------------------------


def test_a_tree_comes_back_as_it_went(sandbox: BackendSandbox, tree: Path, tmp_path: Path) -> None:
    up(sandbox, tree, "in/side")
    assert run(sandbox, "./in/side/d/deep/run.sh; cat in/side/link | wc -c").strip() == str(3 * MIB)
    assert int(run(sandbox, "stat -c %b in/side/sparse")) * 512 < MIB
    down(sandbox, "in/side", tmp_path / "back")
    assert shape(tmp_path / "back") == {name: what for name, what in shape(tree).items() if name != "d/pipe"}
    assert (tmp_path / "back" / "sparse").stat().st_blocks * 512 < MIB
    assert sorted(os.listdir(tmp_path)) == ["back", "tree"]


def test_one_file_takes_the_place_of_another(sandbox: BackendSandbox, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("new")
    (tmp_path / "f").chmod(0o700)
    run(sandbox, "echo old > f; mkdir d; ln -s f to_f")
    up(sandbox, tmp_path / "f", "f")
    assert run(sandbox, "cat f; stat -c %a f") == "new700\n"
    up(sandbox, tmp_path / "f", "made/below/f")
    assert run(sandbox, "cat made/below/f") == "new"
    run(sandbox, "echo inside > f; chmod 640 f; touch -d @1000000000 f")
    down(sandbox, "to_f", tmp_path / "f")
    assert (tmp_path / "f").read_text() == "inside\n"
    down(sandbox, "f", tmp_path / "f")
    status = (tmp_path / "f").stat()
    assert (stat.S_IMODE(status.st_mode), int(status.st_mtime)) == (0o640, 1_000_000_000)
    assert sorted(os.listdir(tmp_path)) == ["f"]


def test_a_directory_is_added_to_what_is_there(sandbox: BackendSandbox, tmp_path: Path) -> None:
    (tmp_path / "up" / "d").mkdir(parents=True)
    (tmp_path / "up" / "d" / "f").write_text("up")
    run(sandbox, "mkdir -p to/d; echo mine > to/d/mine; echo old > to/d/f")
    up(sandbox, tmp_path / "up", "to")
    assert run(sandbox, "cat to/d/f to/d/mine") == "upmine\n"


def test_an_empty_directory_may_be_there_and_nothing_else(sandbox: BackendSandbox, tmp_path: Path) -> None:
    run(sandbox, "mkdir d; echo x > d/f")
    (tmp_path / "empty").mkdir()
    down(sandbox, "d", tmp_path / "empty")
    assert (tmp_path / "empty" / "f").read_text() == "x\n"
    with pytest.raises(SandboxError, match="not empty"):
        down(sandbox, "d", tmp_path / "empty")
    os.symlink("empty", tmp_path / "link")
    (tmp_path / "file").touch()
    for there in ("link", "file"):
        with pytest.raises(SandboxError, match="cannot be copied"):
            down(sandbox, "d", tmp_path / there)
    with pytest.raises(SandboxError, match="cannot be copied"):
        down(sandbox, "d/f", tmp_path / "empty")
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "link"]


def test_what_cannot_be_is_said_and_the_sandbox_goes_on(sandbox: BackendSandbox, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    run(sandbox, "mkdir d; mkfifo pipe; ln -s / out")
    for host_path, path in (
        (tmp_path / "missing", "x"), (tmp_path / "pipe", "x"), (tmp_path / "f", "d"), (tmp_path / "f", "../x"),
        (tmp_path / "f", "/etc/x"), (tmp_path / "f", "out/tmp/x"), (tmp_path, "out/tmp/x"), (tmp_path / "f", "a\0b"),
    ):  # fmt: skip
        with pytest.raises(SandboxError, match="cannot be copied to"):
            up(sandbox, host_path, path)
    for path, host_path in (
        ("missing", tmp_path / "x"), ("pipe", tmp_path / "x"), ("..", tmp_path / "x"), ("out/etc", tmp_path / "x"),
        ("d", tmp_path / "no" / "parent"), ("d", tmp_path / "f" / "x"),
    ):  # fmt: skip
        with pytest.raises(SandboxError, match="cannot be copied to"):
            down(sandbox, path, host_path)
    assert sorted(os.listdir(tmp_path)) == ["f", "pipe"]
    assert run(sandbox, "echo still good") == "still good\n"


def test_a_file_that_the_host_may_not_read_is_named(sandbox: BackendSandbox, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "secret").touch(mode=0)
    if os.access(tmp_path / "d" / "secret", os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(SandboxError, match="secret"):
        up(sandbox, tmp_path / "d", "d")
    assert run(sandbox, "echo still good") == "still good\n"


@pytest.mark.slow
def test_200_mb_each_way_need_little_memory(sandbox: BackendSandbox, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    block = os.urandom(MIB)
    with open(tmp_path / "up" / "large", "wb") as file:
        for _ in range(200):
            file.write(block)
    tracemalloc.start()
    try:
        up(sandbox, tmp_path / "up", "dir")
        up(sandbox, tmp_path / "up" / "large", "file")
        down(sandbox, "dir", tmp_path / "down")
        down(sandbox, "file", tmp_path / "file")
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()
    for copy in (tmp_path / "down" / "large", tmp_path / "file"):
        assert copy.stat().st_size == 200 * MIB
        assert copy.read_bytes()[-MIB:] == block


def test_more_than_the_limits_is_refused_and_leaves_nothing(sandbox: BackendSandbox, tmp_path: Path) -> None:
    run(sandbox, "mkdir d; head -c 3000000 /dev/zero > d/f; for n in 1 2 3 4 5; do touch d/$n; done")
    assert isinstance(sandbox, PlainGuestSandbox)
    channel = sandbox.channel
    for path, limits, what in (
        ("d", Limits(size_bytes=2_000_000), "bytes"),
        ("d/f", Limits(size_bytes=2_000_000), "bytes"),
        ("d", Limits(entries=5), "entries"),
    ):
        with pytest.raises(SandboxError, match=what):
            ports.engine().run(download(channel, path, str(tmp_path / "x"), limits))
    ports.engine().run(download(channel, "d", str(tmp_path / "y"), Limits(entries=6, size_bytes=3_000_000)))
    assert os.listdir(tmp_path) == ["y"]
    assert run(sandbox, "echo still good") == "still good\n"


def test_a_cancelled_download_leaves_nothing(sandbox: BackendSandbox, tmp_path: Path) -> None:
    run(sandbox, "mkdir d; head -c 300000000 /dev/zero > d/f")

    async def cancel() -> None:
        task = asyncio.create_task(sandbox.download("d", str(tmp_path / "x")))
        for _ in range(5_000):
            if any(path.name.startswith(".rath-") for path in tmp_path.iterdir()):
                break
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    ports.engine().run(cancel())
    assert os.listdir(tmp_path) == []
    assert run(sandbox, "echo still good") == "still good\n"


# -- the workspace as a copy, snapshots -------------------------------------------------------------------------------


def test_a_workspace_starts_as_a_copy_and_the_original_stays(tree: Path) -> None:
    (tree / "sparse").unlink()  # larger than what is kept for a diff
    before = shape(tree)
    with registry.get(PlainGuestBackend.name).open(BackendSandboxSpec(workspace=tree)) as sandbox:
        assert run(sandbox, "cat link | wc -c").strip() == str(3 * MIB)
        run(sandbox, "echo changed > nothing; rm -r d; echo new > new")
        diff = ports.engine().run(sandbox.diff())
        assert (diff.added, diff.removed, diff.modified) == (("new",), ("d/deep/run.sh", "d/file"), ("nothing",))
        assert "+changed" in diff.text
    assert shape(tree) == before


def test_a_workspace_that_is_not_there_is_said_and_nothing_stays_open(tmp_path: Path) -> None:
    backend = registry.get(PlainGuestBackend.name)
    with pytest.raises(SandboxUnavailable, match="Name one that is there"):
        backend.open(BackendSandboxSpec(workspace=tmp_path / "missing"))
    assert backend.sandbox_count() == 0


@pytest.mark.slow
def test_a_snapshot_of_a_busy_workspace_is_of_one_moment(sandbox: BackendSandbox) -> None:
    backend = sandbox.backend
    # Two files whose lengths only ever differ by one line; a copy that writers go on during would tear them apart.
    busy = "while :; do echo >> a; echo >> z; done"
    run(sandbox, f"head -c 60000000 /dev/urandom > m; touch a z; ({busy}) & sleep 0.2")

    def lines(of: BackendSandbox) -> tuple[int, int]:
        return int(run(of, "wc -c < a")), int(run(of, "wc -c < z"))

    kept = ports.engine().run(sandbox.frozen("layer"))
    now = lines(sandbox)
    time.sleep(0.2)
    assert lines(sandbox)[0] > now[0], "the writer goes on"
    with ports.engine().run(backend._arestore(None, kept)) as copy:
        a, z = lines(copy)
        assert 0 <= a - z <= 1
        assert 0 < a < now[0]


def test_a_snapshot_serves_many_and_goes_with_its_last_holder(sandbox: BackendSandbox) -> None:
    backend, engine = sandbox.backend, ports.engine()
    run(sandbox, "echo kept > f")
    first = engine.run(sandbox.frozen("layer"))
    second = engine.run(backend._aclone(first))
    spool = Path(first.kept.path).parent  # type: ignore[attr-defined]
    run(sandbox, "echo later > f")
    one = engine.run(backend._arestore(None, first))
    assert spool.exists()
    other = engine.run(backend._arestore(None, second))
    assert not spool.exists()
    with one, other:
        run(one, "echo mine > f")
        assert run(other, "cat f") == "kept\n"


# -- hostile archives -------------------------------------------------------------------------------------------------


def record(kind: int, path: bytes, *, mode: int = 0o644, size: int = 0, data: int = 0, link: bytes = b"") -> bytes:
    return RECORD.pack(kind, mode, size, 0, data, len(path), len(link)) + path + link


def file(path: bytes, content: bytes = b"evil", mode: int = 0o644) -> bytes:
    size = len(content)
    return record(FILE, path, mode=mode, size=size, data=size) + SEGMENT.pack(0, size) + content + LAST


def extract(top: Path, raw: bytes, limits: Limits | None = None) -> None:
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    extractor = Extractor(fd, limits or Limits())
    try:
        reader = ArchiveReader(extractor)
        reader.feed(raw)
        reader.check_ended()
        extractor.finish()
    finally:
        extractor.close()
        os.close(fd)


ESCAPES = {
    "parent": file(b"../out"),
    "parent within": record(DIRECTORY, b"d") + file(b"d/../../out"),
    "absolute": file(b"/tmp/out"),
    "empty part": file(b"d//out"),
    "dot": file(b"./out"),
    "only a dot": record(DIRECTORY, b"."),
    "no path": record(DIRECTORY, b""),
    "nul": file(b"a\0b"),
    "long name": file(b"x" * 256),
    "through a link": record(LINK, b"l", link=b"..") + file(b"l/out"),
    "through an absolute link": record(LINK, b"l", link=b"/tmp") + file(b"l/out"),
    "through a link to the inside": record(DIRECTORY, b"d") + record(LINK, b"l", link=b"d") + file(b"l/out"),
    "a directory in place of a link": record(LINK, b"l", link=b"..") + record(DIRECTORY, b"l") + file(b"l/out"),
    "a file in place of a link": record(LINK, b"l", link=b"../out") + file(b"l"),
    "a hard link to the outside": record(HARD_LINK, b"h", link=b"../victim"),
    "a hard link by an absolute path": record(HARD_LINK, b"h", link=b"/etc/passwd"),
    "a hard link through a link": record(LINK, b"l", link=b"..") + record(HARD_LINK, b"h", link=b"l/victim"),
    "a hard link to nothing": record(HARD_LINK, b"h", link=b"missing"),
    "below a file": file(b"f") + file(b"f/out"),
    "below nothing": file(b"missing/out"),
    "twice": file(b"f") + file(b"f"),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_no_archive_writes_beyond_its_target(name: str, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "top").mkdir()
    with pytest.raises(ProtocolError):
        extract(tmp_path / "top", ESCAPES[name] + END)
    assert sorted(os.listdir(tmp_path)) == ["top", "victim"]
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "victim").stat().st_nlink == 1
    assert not Path("/tmp/out").exists()


def test_setuid_is_dropped_and_a_device_cannot_be(tmp_path: Path) -> None:
    extract(tmp_path, file(b"f", mode=0o106755) + record(DIRECTORY, b"d", mode=0o42777) + END)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o777
    assert (tmp_path / "f").is_file()
    for kind in (5, 6, 255):
        with pytest.raises(ProtocolError):
            extract(tmp_path, record(kind, b"dev") + END)


LIES = {
    "more data than size": record(FILE, b"f", size=1, data=2) + END,
    "a segment beyond the end": record(FILE, b"f", size=4, data=4) + SEGMENT.pack(1, 4) + b"evil" + LAST + END,
    "a segment beyond all numbers": record(FILE, b"f", size=4, data=4) + SEGMENT.pack(2**64 - 2, 4) + b"evil" + LAST + END,
    "an endless segment": record(FILE, b"f", size=4, data=4) + SEGMENT.pack(0, 2**63) + b"evil",
    "segments that overlap": record(FILE, b"f", size=4, data=4) + (SEGMENT.pack(0, 2) + b"ab") * 2 + LAST + END,
    "a segment of nothing": record(FILE, b"f", size=4, data=4) + SEGMENT.pack(0, 0) * 2 + LAST + END,
    "less data than announced": record(FILE, b"f", size=4, data=4) + LAST + END,
    "a directory with data": record(DIRECTORY, b"d", size=4, data=4) + END,
    "a file with a link": record(FILE, b"f", link=b"x") + LAST + END,
    "a link to nowhere": record(LINK, b"l") + END,
    "a link with a nul": record(LINK, b"l", link=b"a\0b") + END,
    "an enormous path": RECORD.pack(1, 0, 0, 0, 0, 2**32 - 1, 0) + b"x" * 100,
    "an enormous file": RECORD.pack(2, 0, 2**64 - 1, 0, 0, 1, 0) + b"f" + LAST + END,
    "no end": file(b"f"),
    "more after the end": END + b"x",
    "nothing": b"",
}


@pytest.mark.parametrize("name", LIES)
def test_an_archive_that_contradicts_itself_is_no_archive(name: str, tmp_path: Path) -> None:
    with pytest.raises(ProtocolError):
        extract(tmp_path, LIES[name])


class Nowhere:
    """Takes everything in and keeps nothing."""

    def entry(self, record: Record, digest: bytes) -> None: ...
    def content(self, offset: int, data: bytes) -> None: ...
    def file_end(self) -> None: ...


@given(st.lists(st.binary(max_size=100), max_size=10), st.booleans())
def test_no_bytes_raise_anything_but_a_protocol_error(pieces: list[bytes], digests: bool) -> None:
    reader = ArchiveReader(Nowhere(), digests=digests)
    with contextlib.suppress(ProtocolError):
        for piece in pieces:
            reader.feed(piece)


@given(st.data())
def test_a_damaged_archive_is_read_or_refused_and_stays_inside(data: st.DataObject) -> None:
    good = record(DIRECTORY, b"d") + file(b"d/f") + record(LINK, b"l", link=b"d") + record(HARD_LINK, b"h", link=b"d/f") + END
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    reader = ArchiveReader(Nowhere())
    with contextlib.suppress(ProtocolError):
        for at in range(0, len(raw), 7):
            reader.feed(bytes(raw[at : at + 7]))


def test_a_tree_that_changes_while_it_is_read_is_still_an_archive(tmp_path: Path) -> None:
    for n in range(30):
        (tmp_path / f"{n}").write_bytes(bytes(200_000))
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for n in range(30):
                (tmp_path / f"{n}").write_bytes(bytes(100 if n % 2 else 300_000))

    thread = threading.Thread(target=change)
    thread.start()
    root = Confined(str(tmp_path))
    try:
        for _ in range(20):
            reader = ArchiveReader(Nowhere())
            for chunk in archive(root):
                reader.feed(chunk)
            reader.check_ended()
    finally:
        stop.set()
        thread.join()
        root.close()
