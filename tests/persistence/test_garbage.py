"""Blobs that no log mentions go; one that any log mentions, in whatever way, stays."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rath.errors import PersistenceError, UsageTypeError, UsageValueError
from rath.session.persistence import prune_sessions
from rath.session.persistence.blobs import BlobStore, blob_directory
from rath.session.persistence.garbage import collect_blobs, find_garbage
from rath.session.persistence.lock import directory_shared
from tests.persistence.shared import directory, log_at, shared_log
from tests.persistence.test_directory_needs import run_python

OLD_S = 7200


def blob(text: str, *, age_s: float = OLD_S, logs: Path | None = None) -> str:
    """A blob that was last touched so long ago; its digest."""
    store = BlobStore.of_log((logs or directory()) / "x.jsonl")
    digest = store.put(text.encode(), durable=False)
    then = time.time() - age_s
    os.utime(store.path(digest), (then, then))
    return digest


def stored(logs: Path | None = None) -> set[str]:
    place = blob_directory((logs or directory()) / "x.jsonl")
    return {path.name for path in place.glob("*/*")}


def test_a_blob_that_no_log_mentions_goes_when_it_is_old_enough() -> None:
    kept, gone, fresh = blob("kept"), blob("gone!"), blob("fresh", age_s=60)
    shared_log([f"result: {kept}"])
    found = find_garbage()
    assert (found.blobs, found.digests, found.size_bytes, found.blocked) == (3, (gone,), 5, None)
    assert stored() == {kept, gone, fresh}
    assert collect_blobs() == found
    assert stored() == {kept, fresh}
    assert collect_blobs(grace=timedelta()).digests == (fresh,)
    assert collect_blobs(grace=timedelta()).digests == ()


def test_without_blobs_there_is_nothing_to_do_and_nothing_is_made(home: Path) -> None:
    assert collect_blobs().digests == ()
    assert not home.exists()
    for wrong, error in ((timedelta(-1), UsageValueError), (5, UsageTypeError)):
        with pytest.raises(error):
            collect_blobs(grace=wrong)  # type: ignore[arg-type]


def test_pruning_a_log_frees_its_blobs_and_keeps_those_of_others() -> None:
    one, two = blob("one"), blob("two")
    shared_log([one, two], days=9)
    shared_log([two])
    assert find_garbage().digests == ()
    prune_sessions(older_than=timedelta(days=5), dry_run=True)
    assert stored() == {one, two}
    prune_sessions(older_than=timedelta(days=5))
    assert stored() == {two}


@pytest.mark.parametrize(
    "mention",
    [
        lambda d: d,
        lambda d: d + "\n",
        lambda d: "\0" * 5000 + d + "\0" * 5000,
        lambda d: '{"whole":{"stdout":"' + d + '"}}',
        lambda d: "f" * 500 + d + "0" * 500,  # inside a longer run of digits
        lambda d: d.upper(),
        lambda d: "x" * ((1 << 20) - 30) + d,  # across two blocks
        lambda d: "x" * ((1 << 20) - 64) + d,
        lambda d: "x" * ((2 << 20) + 1 - 64) + d + "a" * 70,
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.__partial__", ".a.jsonl.0123.tmp", "old.jsonl.bak"])
def test_a_mention_anywhere_in_a_file_keeps_a_blob(mention: object, name: str) -> None:
    digest = blob("kept")
    (directory() / name).write_bytes(mention(digest).encode("latin-1"))  # type: ignore[operator]
    assert collect_blobs().digests == ()
    assert stored() == {digest}


def test_a_log_of_any_name_keeps_its_blobs() -> None:
    digest = blob("kept")
    log_at(shared_log([digest])).rename(directory() / "run.log")
    assert collect_blobs().digests == ()


def test_logs_that_keep_their_blobs_in_one_place_keep_them_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "sessions").mkdir()
    one, two, three = (blob(text, logs=tmp_path) for text in ("one", "two", "three"))
    (tmp_path / "a.jsonl").write_text(one)
    (tmp_path / "sessions" / "b.jsonl").write_text(two)
    assert blob_directory(tmp_path / "a.jsonl") == blob_directory(tmp_path / "sessions" / "b.jsonl")
    assert collect_blobs(tmp_path).digests == (three,)
    blob("three", logs=tmp_path)
    assert collect_blobs(tmp_path / "sessions").digests == (three,)


def test_what_is_no_blob_is_left_alone(tmp_path: Path) -> None:
    digest = blob("gone")
    place = blob_directory(directory() / "x.jsonl")
    other = place / digest[:2]
    elsewhere = tmp_path / ("0" * 64)
    elsewhere.write_text("precious")
    strange = [
        place / "README",
        other / "notes.txt",
        other / digest.upper(),
        other / (digest[:2] + "g" * 62),
        other / ("f" * 64 if digest[:2] != "ff" else "0" * 64),  # not its directory
    ]
    for path in strange:
        path.write_text("x")
    (other / (digest[:2] + "0" * 62)).symlink_to(elsewhere)
    (other / (digest[:2] + "1" * 62)).mkdir()
    os.mkfifo(other / (digest[:2] + "2" * 62))
    (place / "00").symlink_to(tmp_path)
    for path in (*strange, elsewhere, *other.iterdir()):
        os.utime(path, (1, 1), follow_symlinks=False)
    assert collect_blobs().digests == (digest,)
    assert all(path.exists() for path in strange)
    assert len(list(other.iterdir())) == 7
    assert elsewhere.read_text() == "precious"


def test_what_a_writer_that_died_left_half_written_goes() -> None:
    digest = blob("whole")
    shared_log([digest])
    half = blob_directory(directory() / "x.jsonl") / digest[:2] / f".{digest}.0123456789abcdef.tmp"
    half.write_bytes(b"ha")
    assert collect_blobs().files == 0
    os.utime(half, (1, 1))
    found = collect_blobs()
    assert (found.files, found.size_bytes, found.digests) == (1, 2, ())
    assert stored() == {digest}


def test_files_that_are_no_logs_are_in_nobodys_way(tmp_path: Path) -> None:
    digest = blob("gone")
    place = directory()
    (place / "dir.jsonl").mkdir()
    os.mkfifo(place / "pipe.jsonl")
    (place / "nowhere.jsonl").symlink_to(tmp_path / "nowhere")
    (place / "circle.jsonl").symlink_to("circle.jsonl")
    (place / "device.jsonl").symlink_to("/dev/zero")
    assert collect_blobs().digests == (digest,)


def test_a_link_to_a_log_elsewhere_keeps_its_blobs(tmp_path: Path) -> None:
    digest = blob("kept")
    (tmp_path / "elsewhere").write_text(digest)
    (directory() / "link.jsonl").symlink_to(tmp_path / "elsewhere")
    assert collect_blobs().digests == ()


def test_blobs_behind_a_link_stay_for_logs_elsewhere_may_need_them(home: Path, tmp_path: Path) -> None:
    digest = blob("needed by a log of another home")
    blob_directory(directory() / "x.jsonl").rename(tmp_path / "disk")
    (home / "blobs").symlink_to(tmp_path / "disk")
    found = collect_blobs()
    assert (found.files, found.blobs) == (0, 1)
    assert "blobs is a link" in str(found.blocked)
    assert stored() == {digest}


@pytest.mark.slow
def test_while_others_share_the_directory_nothing_is_collected() -> None:
    digest = blob("gone")
    with directory_shared(directory()), pytest.raises(PersistenceError, match="is not free"):
        collect_blobs()
    assert stored() == {digest}
    assert collect_blobs().digests == (digest,)


AS_NOBODY = """
import os, tempfile
from pathlib import Path
from tests.persistence.shared import directory, log_at
from tests.persistence.test_garbage import blob, collect_blobs, find_garbage, stored

with tempfile.TemporaryDirectory() as home:
    os.environ["OPENRATH_HOME"] = home
    blob("old")
    collect_blobs()
    digest = blob("old")
    locked = log_at("locked")
    locked.write_bytes(b"x")
    locked.chmod(0)
    for path in (Path(home), *Path(home).rglob("*")):
        if path.is_dir():
            path.chmod(0o777)
    if os.geteuid() == 0:
        os.seteuid(65534)
    print(find_garbage().blocked)
    print(collect_blobs().digests, stored() == {digest})
    os.seteuid(os.getuid())
"""


@pytest.mark.slow
def test_while_a_log_cannot_be_read_no_blob_goes(tmp_path: Path) -> None:
    blocked, collected = run_python(AS_NOBODY, home=tmp_path).splitlines()
    assert blocked.endswith("locked.jsonl cannot be read (Permission denied), so which blobs it needs is not known")
    assert collected == "() True"


@contextmanager
def between(change: object) -> Iterator[None]:
    """Do something when a collection has searched the logs, and is about to lock the directory."""
    done: list[int] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if active and event == "open" and str(arguments[0]).endswith(".directory.lock") and not done:
            done.append(1)
            change()  # type: ignore[operator]

    active = [1]
    sys.addaudithook(hook)
    yield
    active.clear()
    assert done


def test_a_mention_that_comes_while_the_logs_are_searched_counts() -> None:
    one, two, three, gone = blob("one"), blob("two"), blob("three"), blob("gone")
    log = directory() / "a.jsonl"
    log.write_text("x" * 1000 + one[:40])
    other = directory() / "other.jsonl"
    other.write_text("y" * 1000)

    def change() -> None:
        with log.open("a") as file:
            file.write(one[40:])
        (directory() / "new.jsonl").write_text(two)
        temporary = directory() / "t"
        temporary.write_text(three + "y" * 936)
        temporary.rename(other)

    with between(change):
        assert collect_blobs().digests == (gone,)
    assert stored() == {one, two, three}


def test_a_blob_that_is_touched_while_the_logs_are_searched_stays() -> None:
    one, gone = blob("one"), blob("gone")
    with between(lambda: BlobStore.of_log(directory() / "x.jsonl").put(b"one", durable=False)):
        assert collect_blobs().digests == (gone,)
    assert stored() == {one}


def test_a_blob_that_grew_old_while_the_logs_were_searched_waits_for_the_next_time() -> None:
    mentioned, gone = blob("mentioned", age_s=10), blob("gone")
    shared_log([mentioned])

    def grow_old() -> None:
        os.utime(BlobStore.of_log(directory() / "x.jsonl").path(mentioned), (1, 1))

    with between(grow_old):
        assert collect_blobs().digests == (gone,)
    assert stored() == {mentioned}


FILLER = st.sampled_from([b"", b"x", b'"', b"\n", b"\0" * 9, b"ab" * 33, b'{"record_type":"header"', b"\xff\xfe", b"0" * 63])
PLACES = st.sampled_from(["a.jsonl", "b.jsonl", "c.jsonl.__partial__", ".d.jsonl.tmp", "e.jsonl.bak", "nolog"])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    logs=st.lists(st.tuples(PLACES, st.lists(st.one_of(FILLER, st.integers(0, 7)), max_size=8)), max_size=5),
    flips=st.lists(st.tuples(PLACES, st.integers(0, 10**6)), max_size=3),
    ages=st.lists(st.sampled_from([0, 60, 3500, 3700, 10**7]), min_size=8, max_size=8),
)
def test_no_blob_that_any_log_mentions_is_ever_removed(
    logs: list[tuple[str, list[bytes | int]]], flips: list[tuple[str, int]], ages: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("logs")
    digests = [blob(f"text {number}", age_s=ages[number], logs=place) for number in range(8)]
    for name, parts in logs:
        with (place / name).open("ab") as file:
            file.write(b"".join(digests[part].encode() if isinstance(part, int) else part for part in parts))
    for name, at in flips:
        if (place / name).exists() and (data := bytearray((place / name).read_bytes())):
            data[at % len(data)] ^= 1 << at % 8
            (place / name).write_bytes(data)
    said = b"\0".join(path.read_bytes() for path in place.iterdir() if ".jsonl" in path.name).lower()
    foretold = find_garbage(place)
    assert collect_blobs(place) == foretold
    for number, digest in enumerate(digests):
        if digest.encode() in said or ages[number] < 3600:
            assert digest in stored(place)
        elif not any(path.name == "nolog" for path in place.iterdir()):
            assert digest in foretold.digests
            assert digest not in stored(place)
