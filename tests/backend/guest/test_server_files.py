"""Files through the guest server: what is written is what is read, and no path leads out."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from rath.testing.pace import within
from tests.backend.guest.client import Guest, Reply, pack, unpack
from tests.backend.guest.test_server_commands import peak

pytestmark = pytest.mark.slow

RECORD = struct.Struct(">BIQqQII")
SEGMENT = struct.Struct(">QQ")
HOSTILE = (
    "..",
    "../outside.txt",
    "sub/../../outside.txt",
    "/etc/passwd",
    "/proc/self/root/etc/passwd",
    "to_root/etc/passwd",
    "to_above/outside.txt",
    "to_passwd",
    "dangling_outside",
    "dangling_outside/x",
    "sub/chain",
)


# -- one file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"text\n", b"\x00\xff\r\n", os.urandom(3_000_000)], ids=["empty", "text", "bytes", "large"])
def test_what_is_written_is_what_is_read(guest: Guest, data: bytes) -> None:
    assert guest.put("a/b/file", data).done == [b"%d" % len(data)]
    reply = guest.get("a/b/file")
    assert (reply.data, reply.done) == (data, [b"%d" % len(data)])
    assert max((size for _, size in reply.frames), default=0) <= 65536
    assert guest.run("wc", "-c", "a/b/file").out.split()[0] == b"%d" % len(data)
    assert guest.call("list", "a/b").data == pack("file", "0")


@pytest.mark.parametrize("name", [b"new\nline", b" space ", b"-rf", b"quote'\"", b"caf\xe9", "é".encode(), b"a\\b", b"*"])
def test_strange_names_are_only_names(guest: Guest, name: bytes) -> None:
    assert guest.put(b"dir/" + name, name).done
    assert unpack(guest.call("list", "dir").data) == [name, b"0"]
    assert guest.get(b"dir/" + name).data == name
    assert guest.call("exists", b"dir/" + name).done == [b"1"]


def test_a_path_that_is_too_long_is_told_in_short(guest: Guest) -> None:
    reply = guest.get(b"\xff" * 60_000)
    assert reply.failure is not None
    assert (reply.kind, len(reply.failure[1]) < 5000) == ("os_error", True)
    assert guest.run(b"\xff" * 60_000).kind == "os_error"


def test_a_part_of_a_file_can_be_read_and_too_much_is_refused(guest: Guest) -> None:
    guest.put("file", b"0123456789")
    assert guest.call("read", "file", 4, "").data == b"456789"
    assert guest.call("read", "file", 0, 10).data == b"0123456789"
    refused = guest.call("read", "file", 0, 9)
    assert (refused.kind, refused.data) == ("file_too_large", b"")
    assert guest.call("read", "file", 99, "").data == b""


def test_a_write_keeps_a_mode_or_sets_it(guest: Guest) -> None:
    guest.put("run", b"#!/bin/sh\necho ran\n", "755")
    assert guest.run("./run").out == b"ran\n"
    guest.put("run", b"#!/bin/sh\necho again\n")
    assert guest.run("./run").out == b"again\n"
    guest.put("run", b"x", "600")
    assert guest.call("stat", "run").fields()[0] == b"%d" % 0o600


def test_a_write_appears_whole_or_not_at_all(guest: Guest) -> None:
    guest.put("file", b"old")
    call = guest.start("write", "file", "644", 100_000)
    guest.send(3, call, bytes(50_000))
    assert guest.get("file").data == b"old"
    guest.send(5, call)
    assert guest.wait(call).kind == "os_error"
    short = guest.start("write", "file", "644", 10)
    guest.send(3, short, b"12345")
    guest.send(4, short)
    assert guest.wait(short).kind == "invalid_tool_arguments"
    assert unpack(guest.call("list", ".").data) == [b"file", b"0"]
    assert guest.get("file").data == b"old"


def test_what_is_missing_or_of_another_kind_is_a_failure(guest: Guest) -> None:
    guest.put("dir/file", b"x")
    guest.sh("mkfifo pipe")
    for call, kind in (
        (("read", "missing", 0, ""), "file_not_found"),
        (("list", "missing"), "file_not_found"),
        (("stat", "missing"), "file_not_found"),
        (("read", "dir", 0, ""), "is_directory"),
        (("read", "dir/file/", 0, ""), "not_a_directory"),
        (("write", "dir", "644", 0), "is_directory"),
        (("write", "dir/.", "644", 0), "is_directory"),
        (("write", "", "644", 0), "is_directory"),
        (("write", "dir/file/x", "644", 0), "not_a_directory"),
        (("list", "dir/file"), "not_a_directory"),
        (("read", "a\0b", 0, ""), "invalid_tool_arguments"),
        (("read", "pipe", 0, ""), "not_a_file"),
        (("write", "pipe", "644", 0), "not_a_file"),
        (("list", "pipe"), "not_a_directory"),
        (("export", "missing", ""), "file_not_found"),
        (("manifest", "missing", ""), "file_not_found"),
        (("import", "dir/file"), "not_a_directory"),
    ):
        assert guest.call(*call).kind == kind, call
    assert [guest.call("exists", path).done for path in ("missing", "dir", "dir/file", "pipe")] == [[b"0"], [b"1"], [b"1"], [b"1"]]


def test_permissions_are_those_of_the_commands_user(switching: Guest) -> None:
    switching.sh("mkdir closed; echo x > closed/file; echo y > secret; chmod 0 closed secret")
    assert switching.get("secret").kind == "os_error"
    assert switching.get("closed/file").kind == "os_error"
    assert switching.put("closed/new", b"").kind == "os_error"
    switching.put("mine", b"")
    assert switching.run("stat", "-c", "%u %g", "mine").out == b"20001 20001\n"


def test_stat_tells_what_is_there(guest: Guest) -> None:
    guest.put("file", b"12345", "640")
    guest.sh("ln -s file link; mkdir dir; mkfifo pipe; touch -d @1000000000.5 file")
    mode, size, _, _, mtime, kind, link = guest.call("stat", "file").fields()
    assert (mode, size, mtime, kind, link) == (b"%d" % 0o640, b"5", b"1000000000500000000", b"f", b"")
    assert guest.call("stat", "link").fields()[5:] == [b"l", b"file"]
    assert [guest.call("stat", path).fields()[5] for path in ("dir", "pipe", ".")] == [b"d", b"o", b"d"]


@pytest.mark.slow
def test_a_large_directory_is_listed_in_pieces(guest: Guest) -> None:
    guest.sh("mkdir many; cd many; seq -f 'a-file-with-a-name-%06g' 20000 | xargs touch; ln -s . here; ln -s / out")
    reply = guest.call("list", "many")
    fields = unpack(reply.data)
    assert (len(fields), reply.done) == (40_004, [b"20002"])
    found = dict(zip(fields[::2], fields[1::2], strict=True))
    assert (found[b"here"], found[b"out"], found[b"a-file-with-a-name-000001"]) == (b"1", b"0", b"0")


# -- no way out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", HOSTILE)
def test_no_path_leads_out(guest: Guest, path: str) -> None:
    guest.sh(
        "mkdir sub; ln -s / to_root; ln -s .. to_above; ln -s /etc/passwd to_passwd; ln -s ../outside.txt dangling_outside; "
        "ln -s ../to_passwd sub/chain"
    )
    for call in (
        ("read", path, 0, ""),
        ("write", path, "644", 0),
        ("list", path),
        ("exists", path),
        ("export", path, ""),
        ("manifest", path, ""),
        ("import", path),
    ):
        assert guest.call(*call).kind == "path_outside_workspace", call
    assert guest.run("pwd", cwd=path).kind == "path_outside_workspace"
    assert guest.sh("test -e ../outside.txt").exit == "1"


def test_links_inside_are_followed(guest: Guest) -> None:
    guest.put("real/file", b"x")
    guest.sh('ln -s real link; ln -s real/file to_file; ln -s ../real/new real/to_new; ln -s "$PWD/real" absolute; ln -s loop loop')
    assert guest.get("link/file").data == b"x"
    assert guest.get("absolute/file").data == b"x"
    assert guest.get("real/../to_file").data == b"x"
    guest.put("to_file", b"y")
    assert guest.get("real/file").data == b"y"
    guest.put("real/to_new", b"z")
    assert guest.get("real/new").data == b"z"
    place = guest.sh("pwd").out.strip()
    assert guest.get(place + b"/real/new").data == b"z"
    assert guest.get("loop").kind == "os_error"


def test_a_directory_that_becomes_a_link_meanwhile_is_no_way_out(plain: Guest, workspace: Path) -> None:
    """``flip`` is a link in and a link out in turns; ``turn`` a directory, nothing, a link out, and nothing."""
    for name in ("inside", "turn"):
        (workspace / name).mkdir()
        (workspace / name / "file").write_text("inside")
    outside = workspace.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("SECRET")
    (workspace / "escape").symlink_to(outside)
    (workspace / "flip").symlink_to("inside")
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            for target in (outside, "inside"):
                os.symlink(target, workspace / "next")
                os.rename(workspace / "next", workspace / "flip")
                time.sleep(0.0001)
            os.rename(workspace / "turn", workspace / "away")
            os.symlink(outside, workspace / "turn")
            time.sleep(0.0001)
            os.unlink(workspace / "turn")
            os.rename(workspace / "away", workspace / "turn")

    thread = threading.Thread(target=flip)
    thread.start()
    ends: dict[str, int] = {}
    try:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            for name in ("flip", "turn"):
                replies = [plain.get(f"{name}/file"), plain.call("list", name), plain.run("cat", "file", cwd=name)]
                replies.append(plain.call("export", name, ""))
                for reply in replies:
                    assert b"SECRET" not in reply.data + reply.out
                    result = "fine" if reply.failure is None else reply.kind
                    ends[result] = ends.get(result, 0) + 1
            plain.put("flip/written", b"x")
    finally:
        stop.set()
        thread.join()
    assert ends["fine"] > 5
    assert ends["path_outside_workspace"] > 5, "the flip was never seen"
    assert os.listdir(outside) == ["file"]


def test_a_workspace_that_is_mounted_over_is_seen_anew(plain: Guest, workspace: Path) -> None:
    plain.put("file", b"old")
    workspace.rename(workspace.parent / "moved")
    workspace.mkdir()
    assert plain.call("exists", "file").done == [b"0"]
    plain.put("file", b"new")
    assert (workspace / "file").read_bytes() == b"new"
    assert plain.sh("cat file").out == b"new"


# -- trees ------------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    kind: int
    mode: int
    size: int
    mtime_ns: int
    data: int
    link: bytes
    segments: list[tuple[int, bytes]]
    digest: bytes


def parse(archive: bytes, *, digests: bool = False) -> dict[bytes, Entry]:
    found = {}
    at = 0
    while True:
        kind, mode, size, mtime, data, path_length, link_length = RECORD.unpack_from(archive, at)
        at += RECORD.size
        if kind == 0:
            assert at == len(archive)
            return found
        path, link = archive[at : at + path_length], archive[at + path_length : at + path_length + link_length]
        at += path_length + link_length
        segments, digest = [], b""
        if kind == 2 and digests:
            digest = archive[at : at + 32]
            at += 32
        elif kind == 2:
            while True:
                offset, length = SEGMENT.unpack_from(archive, at)
                at += SEGMENT.size
                if offset == 2**64 - 1:
                    break
                segments.append((offset, archive[at : at + length]))
                at += length
            assert sum(len(piece) for _, piece in segments) == data
        found[path] = Entry(kind, mode, size, mtime, data, link, segments, digest)


TREE = (
    "mkdir -p t/sub/empty t/closed; echo one > t/one; chmod 751 t/one; ln t/one t/sub/hard; ln -s ../one t/sub/link; "
    "ln -s /nowhere t/dangling; mkfifo t/pipe; head -c 300000 /dev/urandom > t/random; echo x > t/closed/in; "
    "printf head > t/sparse; dd if=/dev/zero of=t/sparse bs=1 count=0 seek=50000000 2>/dev/null; "
    "printf tail | dd of=t/sparse bs=1 seek=20000000 conv=notrunc 2>/dev/null; "
    "touch \"t/new\nline\" t/$(printf 'caf\\351'); mkdir t/.git t/sub/.git; touch t/sub/.git/HEAD; "
    "touch -d @1000000000.25 t/one t/sub; touch -h -d @1000000001 t/dangling; chmod 500 t/closed; chmod 0 t/random"
)


def export(guest: Guest, path: str = "t", exclude: bytes = b"") -> Reply:
    reply = guest.call("export", path, exclude)
    assert reply.failure is None, reply.failure
    return reply


def test_an_export_tells_everything_of_a_tree(guest: Guest) -> None:
    assert guest.sh(TREE).err == b""
    reply = export(guest)
    found = parse(reply.data)
    assert {path: entry.kind for path, entry in found.items()} == {
        b".git": 1, b"sub": 1, b"sub/empty": 1, b"sub/.git": 1, b"closed": 1, b"one": 2, b"random": 2, b"sparse": 2,
        b"closed/in": 2, b"sub/.git/HEAD": 2, b"new\nline": 2, b"caf\xe9": 2, b"sub/link": 3, b"dangling": 3, b"sub/hard": 4,
    }  # fmt: skip
    assert found[b"one"][:4] == (2, 0o751, 4, 1_000_000_000_250_000_000)
    assert (found[b"sub/link"].link, found[b"sub/hard"].link) == (b"../one", b"one")
    assert found[b"dangling"].mtime_ns == 1_000_000_001_000_000_000
    assert (found[b"closed"].mode, found[b"random"].mode) == (0o500, 0)
    sparse = found[b"sparse"]
    assert (sparse.size, sparse.data < 100_000) == (50_000_000, True)
    content = bytearray(20_000_100)
    for offset, piece in sparse.segments:
        content[offset : offset + len(piece)] = piece
    assert bytes(content).strip(b"\0") == b"head" + bytes(19_999_996) + b"tail"
    paths = list(found)
    assert all(paths.index(path.rpartition(b"/")[0]) < paths.index(path) for path in paths if b"/" in path)
    entries, size = map(int, reply.fields())
    assert (entries, size) == (len(found), sum(entry.data for entry in found.values()))


def test_what_is_excluded_stays_out(guest: Guest) -> None:
    guest.sh(TREE)
    found = parse(export(guest, exclude=b".git\0random").data)
    assert not [path for path in found if b".git" in path or path == b"random"]
    assert b"sub/link" in found


def test_one_file_can_be_exported(guest: Guest) -> None:
    guest.put("dir/file", b"content")
    ((path, entry),) = parse(export(guest, "dir/file").data).items()
    assert (path, entry.segments) == (b"file", [(0, b"content")])


def test_an_import_of_an_export_is_the_same_tree(guest: Guest) -> None:
    guest.sh(TREE)
    archive = export(guest).data
    call = guest.start("import", "copy/of")
    guest.feed(call, archive)
    assert guest.wait(call).done == export(guest).done
    assert parse(export(guest, "copy/of").data) == parse(archive)
    assert export(guest, "copy/of").data == archive
    facts = guest.sh("stat -c '%h %u' copy/of/one; stat -c %b copy/of/sparse; id -u").out.split()
    assert facts[:2] == [b"2", facts[3]]
    assert int(facts[2]) * 512 < 1_000_000


def test_an_import_over_a_tree_replaces_files_and_keeps_the_rest(guest: Guest) -> None:
    guest.sh("mkdir -p t/sub new/sub; echo old > t/file; echo kept > t/sub/kept; echo new > new/file; echo s > new/sub/s")
    call = guest.start("import", "t")
    guest.feed(call, export(guest, "new").data)
    assert guest.wait(call).failure is None
    assert guest.sh("cat t/file t/sub/kept t/sub/s").out == b"new\nkept\ns\n"


def record(kind: int, path: bytes, link: bytes = b"", content: bytes = b"") -> bytes:
    head = RECORD.pack(kind, 0o644, len(content), 0, len(content), len(path), len(link)) + path + link
    return head + SEGMENT.pack(0, len(content)) + content + SEGMENT.pack(2**64 - 1, 0) if kind == 2 else head


ATTACKS = {
    "above": [record(2, b"../escaped", content=b"x")],
    "absolute": [record(2, b"/tmp/escaped", content=b"x")],
    "inner": [record(1, b"d"), record(2, b"d/../../escaped", content=b"x")],
    "through a link": [record(3, b"l", b".."), record(2, b"l/escaped", content=b"x")],
    "hard link": [record(4, b"h", b"../escaped")],
    "empty": [record(1, b"")],
    "kind": [record(9, b"x")],
    "cut": [record(1, b"d")[:-1]],
    "no end": [record(1, b"d")],
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_archive_cannot_lead_out_of_its_target(guest: Guest, attack: str) -> None:
    archive = b"".join(ATTACKS[attack])
    call = guest.start("import", "target")
    guest.feed(call, archive + (RECORD.pack(0, 0, 0, 0, 0, 0, 0) if attack not in ("cut", "no end") else b""))
    assert guest.wait(call).kind == ("not_a_directory" if attack == "through a link" else "invalid_tool_arguments")
    assert guest.sh("ls -A ..; ls -A .").out.count(b"escaped") == 0


def test_a_manifest_has_digests_in_place_of_content(guest: Guest) -> None:
    guest.sh(TREE)
    reply = guest.call("manifest", "t", b".git")
    found = parse(reply.data, digests=True)
    archive = parse(export(guest, exclude=b".git").data)
    assert list(found) == list(archive)
    assert [entry[:4] for entry in found.values()] == [entry[:4] for entry in archive.values()]
    assert found[b"one"].digest == hashlib.sha256(b"one\n").digest()
    ((_, random),) = archive[b"random"].segments
    assert found[b"random"].digest == hashlib.sha256(random).digest()


def test_a_tree_that_changes_meanwhile_is_exported_whole(guest: Guest) -> None:
    change = "while :; do echo x >> t/grow; rm -rf t/d; mkdir -p t/d/e; echo > t/d/e/f; rm -f t/one; echo > t/one; done"
    guest.sh(TREE)
    changer = guest.spawn("sh", "-c", f"{change} 2>/dev/null")
    for _ in range(10):
        assert b"sparse" in parse(export(guest).data)
    guest.send(5, changer)
    guest.wait(changer)


def test_an_export_can_be_ended(guest: Guest) -> None:
    guest.sh("mkdir t; for n in 1 2 3 4 5 6; do head -c 20000000 /dev/zero | tr '\\0' x > t/$n; done")
    call = guest.start("export", "t", "")
    while not guest.reply(call).data:
        guest.pump(0.1)
    guest.send(5, call)
    assert guest.wait(call, 5).kind == "os_error"
    assert guest.sh("echo here").out == b"here\n"


def test_an_export_can_be_ended_when_only_its_data_is_on_the_way(guest: Guest) -> None:
    guest.sh("mkdir t; head -c 1080000 /dev/zero > t/zeros")
    guest.gives_credit = False
    call = guest.start("export", "t", "")
    while len(guest.reply(call).data) < 1 << 20:
        guest.pump(0.1)
    guest.pump(0.2)
    guest.send(5, call)
    assert guest.wait(call, 2).kind == "os_error"


def test_a_tree_too_deep_for_an_archive_is_a_failure(guest: Guest) -> None:
    deep = "import os\nfor _ in range(330): os.mkdir('d' * 200); os.chdir('d' * 200)"
    assert guest.run("python3", "-c", deep).exit == "0"
    refused = guest.call("export", ".", "")
    assert refused.kind == "os_error"
    assert guest.sh("rm -rf d*").exit == "0"


def test_a_deep_tree_comes_through(guest: Guest) -> None:
    deep = "import os\nfor _ in range(40): os.mkdir('d' * 200); os.chdir('d' * 200)"
    assert guest.run("python3", "-c", f"import os; os.mkdir('t'); os.chdir('t')\n{deep}").exit == "0"
    call = guest.start("import", "copy")
    guest.feed(call, export(guest).data)
    assert guest.wait(call).done == [b"40", b"0"]


def test_links_that_lead_far_hold_nobody_up(plain: Guest) -> None:
    maze = (
        "import os\nos.mkdir('z'); os.symlink('.', 'c0')\n"
        "for i in range(1, 39): os.symlink('z/../' * 800 + f'c{i - 1}', f'c{i}')\n"
        "for i in range(100): os.symlink('c38', f'y{i}')"
    )
    plain.put("maze/x", b"")
    assert plain.run("/usr/bin/python3", "-c", maze, cwd="maze").exit == "0"
    listing = plain.start("list", "maze")
    start = time.monotonic()
    plain.call("ping")
    assert time.monotonic() - start < within(1)
    assert plain.wait(listing).done == [b"141"]


def test_the_memory_of_the_server_is_bounded_in_both_directions(plain: Guest, workspace: Path) -> None:
    plain.put("warm", bytes(1_000_000))
    plain.get("warm")
    before = peak(plain)
    data = os.urandom(1 << 20) * 40
    assert plain.put("large", data).done
    assert plain.get("large").data == data
    assert len(export(plain, ".").data) > len(data)
    assert peak(plain) - before < 8_000
