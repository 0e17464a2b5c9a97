"""Blobs: whole texts by digest. They are whole or not there, and what is read is what was written."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rath.core.kept import KeptTexts, window
from rath.errors import PersistenceError, UsageValueError
from rath.session.persistence.blobs import BlobStore, blob_directory, copy_blobs, find_text, is_digest
from rath.session.persistence.lock import DIRECTORY_LOCK
from rath.testing.pace import within

TEXT = "héllo\n" * 1000
DATA = TEXT.encode()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    (tmp_path / "sessions").mkdir()
    return BlobStore.of_log(tmp_path / "sessions" / "a.jsonl")


def files(store: BlobStore) -> list[Path]:
    return [path for path in store.directory.rglob("*") if not path.is_dir()]


# -- where, and what -----------------------------------------------------------------------------------------------------


def test_the_blobs_of_a_log_are_beside_the_sessions_or_beside_the_log(tmp_path: Path) -> None:
    assert blob_directory(tmp_path / "sessions" / "a.jsonl") == tmp_path / "blobs"
    assert blob_directory(tmp_path / "elsewhere" / "a.jsonl") == tmp_path / "elsewhere" / "blobs"


def test_a_blob_is_a_private_file_that_is_named_by_its_sha256(store: BlobStore) -> None:
    digest = store.put(DATA)
    assert digest == sha256(DATA).hexdigest()
    assert files(store) == [store.directory / digest[:2] / digest] == [store.path(digest)]
    assert store.path(digest).read_bytes() == DATA  # plain text: grep finds what is in it
    assert stat.S_IMODE(store.path(digest).stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path(digest).parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["", "\0\r\n\u2028\u0085", "\ud800 alone \udfff", "\U0001f600" * 3])
def test_any_text_comes_back_byte_for_byte(store: BlobStore, text: str) -> None:
    digest = store.put(text.encode("utf-8", "surrogatepass"))
    found = store.read(digest)
    assert found == (text, 0, len(text))
    assert store.get(digest) == text.encode("utf-8", "surrogatepass")


def test_what_is_not_there_is_none(store: BlobStore) -> None:
    assert store.read("0" * 64) is None
    assert store.get("0" * 64) is None
    store.put(DATA)
    assert store.read("0" * 64) is None


@pytest.mark.parametrize("bad", ["", "../../etc/passwd", "0" * 63, "0" * 65, "0" * 62 + "/x", "A" * 64, "0" * 64 + "\n", None, 7])
def test_only_64_hexadecimal_digits_become_a_path(store: BlobStore, bad: object) -> None:
    assert not is_digest(bad)
    with pytest.raises(UsageValueError, match="64 hexadecimal digits"):
        store.path(bad)  # type: ignore[arg-type]
    with pytest.raises(UsageValueError):
        store.read(bad)  # type: ignore[arg-type]


# -- pieces --------------------------------------------------------------------------------------------------------------


def test_a_piece_is_counted_in_characters(store: BlobStore) -> None:
    digest = store.put("aé日😀\ud800z".encode("utf-8", "surrogatepass"))
    assert store.read(digest, 1, 3) == ("é日😀", 1, 6)
    assert store.read(digest, 4) == ("\ud800z", 4, 6)
    assert store.read(digest, 6, 10) == ("", 6, 6)
    assert store.read(digest, 99, 10) == ("", 99, 6)
    assert store.read(digest, 2, 0) == ("", 2, 6)


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters(exclude_categories=()) | st.sampled_from("aé日😀\ud800"), max_size=40),
    st.integers(0, 45),
    st.none() | st.integers(0, 45),
    st.lists(st.integers(0, 160), max_size=8),
)
def test_a_piece_is_the_slice_however_the_bytes_come(text: str, offset: int, limit: int | None, cuts: list[int]) -> None:
    data = text.encode("utf-8", "surrogatepass")
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    blocks = [data[start:end] for start, end in zip(edges, edges[1:], strict=False)]
    expected = text[offset:] if limit is None else text[offset : offset + limit]
    assert window(blocks, offset, limit) == (expected, offset, len(text))


# -- writing -------------------------------------------------------------------------------------------------------------


def test_a_blob_that_is_there_is_touched_and_not_written_again(store: BlobStore) -> None:
    path = store.path(store.put(DATA))
    os.utime(path, (1, 1))
    before = path.stat()
    store.put(DATA)
    after = path.stat()
    assert after.st_ino == before.st_ino
    assert time.time() - after.st_mtime < 60


@pytest.mark.parametrize("wrong", [b"", DATA[:-1], DATA[:-1] + b"x", DATA + b"x"])
def test_a_blob_that_is_not_what_it_should_be_is_put_right_by_the_next_writer(store: BlobStore, wrong: bytes) -> None:
    path = store.path(store.put(DATA))
    path.write_bytes(wrong)
    store.put(DATA)
    assert path.read_bytes() == DATA
    assert files(store) == [path]


def test_many_writers_of_one_blob_make_one_blob(store: BlobStore) -> None:
    data = os.urandom(1 << 16).hex().encode()
    start, wrong = threading.Barrier(16), []

    def write() -> None:
        start.wait()
        digest = BlobStore(store.directory, store.directory.parent / "sessions").put(data, durable=False)
        if store.get(digest) != data:
            wrong.append(digest)

    threads = [threading.Thread(target=write) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(files(store)) == 1


_CHILD = """
    import os, resource, signal, sys
    from pathlib import Path
    from rath.errors import PersistenceError
    from rath.session.persistence.blobs import BlobStore
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = BlobStore(Path(sys.argv[1]))
"""


def child(store: BlobStore, code: str) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(_CHILD) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program, str(store.directory)], capture_output=True, text=True, check=False)


def test_a_disk_that_fills_while_a_blob_is_written_is_an_error_and_leaves_nothing(store: BlobStore) -> None:
    done = child(
        store,
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            store.put(b"x" * 1_000_000)
        except PersistenceError as error:
            print(error)
        """,
    )
    assert "cannot keep a result of 1,000,000 bytes" in done.stdout, done.stderr
    assert os.strerror(errno.EFBIG) in done.stdout
    assert files(store) == []


def test_a_writer_that_is_killed_leaves_no_half_blob_under_its_name(store: BlobStore) -> None:
    done = child(
        store,
        """
        real = os.write
        def write(fd, data):  # the kernel takes part of it, then the process dies
            real(fd, bytes(data[:1000]))
            os.kill(os.getpid(), signal.SIGKILL)
        os.write = write
        store.put(b"x" * 1_000_000)
        """,
    )
    assert done.returncode == -signal.SIGKILL
    left = files(store)
    assert [path.name.endswith(".tmp") for path in left] == [True]
    assert store.get(sha256(b"x" * 1_000_000).hexdigest()) is None
    store.put(b"x" * 1_000_000)
    assert store.get(sha256(b"x" * 1_000_000).hexdigest()) == b"x" * 1_000_000


def test_a_place_where_nothing_can_be_written_is_an_error() -> None:
    with pytest.raises(PersistenceError, match="OPENRATH_HOME"):
        BlobStore(Path("/proc/self/blobs")).put(DATA)  # not even for root


@pytest.mark.parametrize("place", ["blobs", "prefix"])
def test_a_file_where_a_directory_belongs_is_an_error(store: BlobStore, place: str) -> None:
    digest = sha256(DATA).hexdigest()
    if place == "prefix":
        store.directory.mkdir()
    (store.directory if place == "blobs" else store.path(digest).parent).write_bytes(b"in the way")
    with pytest.raises(PersistenceError, match="Not a directory"):
        store.put(DATA)


@pytest.mark.slow
def test_whoever_removes_is_waited_for_and_then_the_blob_is_written_all_the_same(store: BlobStore, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "sessions" / DIRECTORY_LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)

    def seconds() -> float:
        began = time.monotonic()
        store.put(DATA, durable=False)
        return time.monotonic() - began

    assert min(seconds() for _ in range(3)) > 0.15
    os.close(fd)
    assert store.get(sha256(DATA).hexdigest()) == DATA
    assert min(seconds() for _ in range(3)) < within(0.15)


# -- what must not be trusted --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [b"", DATA[:-1], b"X" + DATA[1:], DATA + b"\n", b"\xff" * 100])
def test_a_blob_that_was_changed_is_a_clear_failure(store: BlobStore, wrong: bytes) -> None:
    digest = store.put(DATA)
    store.path(digest).write_bytes(wrong)
    for read in (lambda: store.read(digest), lambda: store.read(digest, 5, 5), lambda: store.get(digest)):
        with pytest.raises(PersistenceError, match="not what its name says") as caught:
            read()
        assert str(store.path(digest)) in str(caught.value)


def test_a_whole_blob_that_is_no_text_is_a_failure_only_as_text(store: BlobStore) -> None:
    digest = store.put(b"\xff\xfe")
    assert store.get(digest) == b"\xff\xfe"
    with pytest.raises(PersistenceError):
        store.read(digest)


def test_a_link_in_place_of_a_blob_is_not_followed(store: BlobStore, tmp_path: Path) -> None:
    digest = store.put(DATA)
    aside = tmp_path / "aside"
    store.path(digest).rename(aside)
    store.path(digest).symlink_to(aside)
    with pytest.raises(PersistenceError, match="symbolic link"):
        store.read(digest)
    store.put(DATA)
    assert not store.path(digest).is_symlink()
    assert aside.stat().st_nlink == 1
    assert store.get(digest) == DATA


def test_a_link_in_place_of_a_directory_of_blobs_is_not_followed(store: BlobStore, tmp_path: Path) -> None:
    digest = store.put(DATA)
    store.path(digest).parent.rename(tmp_path / "aside")
    store.path(digest).parent.symlink_to(tmp_path / "aside")
    with pytest.raises(PersistenceError):
        store.read(digest)
    with pytest.raises(PersistenceError):
        store.put(DATA)
    assert len(list((tmp_path / "aside").iterdir())) == 1


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_what_is_no_file_is_refused_at_once(store: BlobStore, kind: str) -> None:
    path = store.path("0" * 64)
    path.parent.mkdir(parents=True)
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    with pytest.raises(PersistenceError, match="no regular file"):
        store.read("0" * 64)


def test_a_file_without_end_is_not_read(store: BlobStore) -> None:
    path = store.path("0" * 64)
    path.parent.mkdir(parents=True)
    path.touch()
    os.truncate(path, 1 << 40)
    began = time.monotonic()
    with pytest.raises(PersistenceError, match="not what its name says"):
        store.get("0" * 64)
    assert time.monotonic() - began < within(1)


# -- looking in several places -------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENRATH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_text_is_found_beside_any_of_the_logs_or_in_the_data_directory(tmp_path: Path, home: Path) -> None:
    logs = [tmp_path / "a" / "x.jsonl", tmp_path / "b" / "y.jsonl"]
    for log in logs:
        log.parent.mkdir()
    beside = BlobStore.of_log(logs[1]).put(b"beside the second")
    assert find_text(beside, 0, 6, logs) == ("beside", 0, 17)
    assert find_text(beside, 0, 6, logs[:1]) is None
    at_home = BlobStore(home / "blobs").put(b"at home")
    assert find_text(at_home, 0, None, ()) == ("at home", 0, 7)


def test_a_damaged_blob_does_not_hide_a_whole_one(tmp_path: Path, home: Path) -> None:
    logs = [tmp_path / "a" / "x.jsonl", tmp_path / "b" / "y.jsonl"]
    for log in logs:
        log.parent.mkdir()
        digest = BlobStore.of_log(log).put(DATA)
    BlobStore.of_log(logs[0]).path(digest).write_bytes(b"changed")
    found = find_text(digest, 0, None, logs)
    assert found is not None
    assert found.text == TEXT
    with pytest.raises(PersistenceError, match="not what its name says"):
        find_text(digest, 0, None, logs[:1])


# -- copying -------------------------------------------------------------------------------------------------------------


def test_a_copy_of_a_log_gets_the_blobs_that_it_mentions_and_no_others(store: BlobStore, tmp_path: Path) -> None:
    log = tmp_path / "sessions" / "a.jsonl"
    mentioned = [store.put(f"text {i}".encode()) for i in range(5)]
    store.put(b"not mentioned")
    damaged = store.put(b"damaged")
    store.path(damaged).write_bytes(b"otherwise")
    to = tmp_path / "out" / "copy.jsonl"
    to.parent.mkdir()
    # Digests wherever a reader of blocks may cut them, and some that are in no store.
    filler = ["ab" * 500_000, "x" * 48_563, "0" * 64, "f" * 65]
    to.write_text("\n".join(f'{fill}"{digest}"' for fill, digest in zip([*filler, ""], mentioned, strict=True)) + f'"{damaged}"')
    found = copy_blobs(log, to)
    assert sorted(found.copied) == sorted(mentioned)
    assert found.damaged == (damaged,)
    copies = BlobStore.of_log(to)
    assert copies.directory == tmp_path / "out" / "blobs"
    assert sorted(path.name for path in files(copies)) == sorted(mentioned)
    assert copies.get(mentioned[3]) == b"text 3"


@pytest.mark.slow
def test_a_digest_is_found_wherever_a_block_ends(store: BlobStore, tmp_path: Path) -> None:
    digest = store.put(DATA)
    for before in range((1 << 20) - 70, (1 << 20) + 6, 5):
        to = tmp_path / f"out{before}" / "copy.jsonl"
        to.parent.mkdir()
        to.write_bytes(b" " * before + b'"' + digest.encode() + b'"')
        assert copy_blobs(tmp_path / "sessions" / "a.jsonl", to).copied == (digest,), before


def test_a_log_without_blobs_is_copied_without_any(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("0" * 64)
    (tmp_path / "b.jsonl").write_text("0" * 64)
    assert copy_blobs(tmp_path / "a.jsonl", tmp_path / "b.jsonl") == ((), ())
    assert not (tmp_path / "blobs").exists()
    with pytest.raises(PersistenceError, match="cannot read"):
        copy_blobs(tmp_path / "a.jsonl", tmp_path / "none.jsonl")


# -- in memory -----------------------------------------------------------------------------------------------------------


def test_memory_keeps_the_newest_texts_within_its_bound() -> None:
    kept = KeptTexts(limit_bytes=100)
    for name in "abc":
        kept.keep(name, b"x" * 40)
    assert [kept.get(name) is not None for name in "abc"] == [False, True, True]
    kept.keep("b", b"x" * 40)  # again: now it is the newest
    kept.keep("d", b"x" * 40)
    assert [kept.get(name) is not None for name in "bcd"] == [True, False, True]
    kept.keep("large", b"x" * 101)
    assert kept.get("large") is None
    assert kept.get("d") is not None


# -- large ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_piece_of_a_hundred_megabytes_costs_no_hundred_megabytes(store: BlobStore) -> None:
    line = "é" * 49 + "\n"
    store.put((line * 1_000_000).encode())
    digest = sha256((line * 1_000_000).encode()).hexdigest()
    done = child(
        store,
        f"""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = store.read({digest!r}, 49_999_950, 50)
        assert found.text == {line!r} and found.characters == 50_000_000, found
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000  # kB
