"""A directory of logs that have their first rows in each other: what may be removed, and what may not."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from rath.errors import PersistenceError
from rath.session.persistence import delete_session, open_dir, pin_session, prune_sessions, unpin_session, verify
from rath.session.persistence.lock import DIRECTORY_LOCK, directory_exclusive, directory_shared
from rath.session.persistence.needs import read_needs
from rath.session.persistence.prune import prunable, prune_entries
from rath.session.persistence.runlog import open_run_log
from rath.session.session import Session
from rath.testing.pace import within
from tests.persistence.samples import rechained
from tests.persistence.shared import chain, digest_of, directory, header_of, log_at, shared_log

EVER = timedelta()


def there(*ids: UUID) -> list[bool]:
    return [log_at(session_id).exists() for session_id in ids]


# -- deleting -----------------------------------------------------------------------------------------------------------


def test_a_log_that_others_have_their_rows_in_is_not_deleted() -> None:
    parent = shared_log(["a", "b"])
    children = sorted(shared_log(["a", "b", str(n)], parent=parent, own=1) for n in range(7))
    with pytest.raises(PersistenceError, match=f"7 of the logs beside it .*{children[0]}, .*{children[4]}, …") as caught:
        delete_session(parent)
    assert str(children[5]) not in str(caught.value)
    assert verify(parent).verdict == "complete"
    for child in children:
        assert delete_session(child)
    assert delete_session(parent)


def test_only_the_log_of_that_name_is_needed() -> None:
    parent = shared_log(["a"])
    child = shared_log(["a", "b"], parent=parent, own=1)
    copy = log_at(parent).with_name("copy.jsonl")
    copy.write_bytes(log_at(parent).read_bytes())
    assert delete_session(parent, path=copy)
    with pytest.raises(PersistenceError, match=str(child)):
        delete_session(parent, path=log_at(parent))


def test_a_child_of_any_name_counts() -> None:
    parent = shared_log(["a"])
    child = shared_log(["a", "b"], parent=parent, own=1)
    for name in ("notes.txt", ".hidden.jsonl", "x.jsonl.bak", f"{child}.jsonl.__partial__"):
        renamed = log_at(child).rename(log_at(child).with_name(name))
        with pytest.raises(PersistenceError, match="1 of the logs beside it"):
            delete_session(parent)
        renamed.rename(log_at(child))


def test_logs_of_schema_1_need_none_and_can_be_needed() -> None:
    old = {**header_of(uuid4()), "schema_version": 1}
    log_at(old["id"]).write_text(json.dumps(old) + "\n")
    assert read_needs(directory()).parents == {}
    child = shared_log(["a", "b"], parent=UUID(old["id"]), own=1)
    with pytest.raises(PersistenceError, match=str(child)):
        delete_session(old["id"])


def flipped_headers(step: int) -> None:
    parent, child = chain(2)
    path = log_at(child)
    whole = path.read_bytes()
    for bit in range(0, 8 * (whole.index(b"\n") + 1), step):
        place = bit // 8
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit % 8)]) + whole[place + 1 :])
        with pytest.raises(PersistenceError, match="was not deleted"):
            delete_session(parent)
        assert prunable(older_than=EVER).gone == ()
    path.write_bytes(whole)
    assert verify(child).verdict == "complete"


def test_a_child_whose_header_lost_a_bit_still_protects_its_parent() -> None:
    flipped_headers(37)


@pytest.mark.slow
def test_a_child_whose_header_lost_any_one_bit_still_protects_its_parent() -> None:
    flipped_headers(1)


def test_a_damaged_header_blocks_only_what_it_may_need() -> None:
    parent, child = chain(2)
    other = shared_log(["x"])
    path = log_at(child)
    path.write_bytes(path.read_bytes().replace(b'"lineage_kind":"op', b'"lineage_kind":"oq', 1))
    with pytest.raises(PersistenceError, match=str(child)):
        delete_session(parent)
    assert delete_session(other)
    assert delete_session(child)
    assert delete_session(parent)


def test_where_it_cannot_be_told_which_log_is_needed_nothing_goes_but_the_file_itself() -> None:
    parent, child = chain(2)
    other = shared_log(["x"], days=9)
    path = log_at(child)
    digit = path.read_bytes().index(b'"session_id":"') + 15
    data = bytearray(path.read_bytes())
    data[digit] = ord("z")
    path.write_bytes(data)
    with pytest.raises(PersistenceError, match=f"may be needed: {path.name}: its header is damaged.* Move it to another"):
        delete_session(other)
    with pytest.raises(PersistenceError, match="was not deleted"):
        delete_session(parent)
    found = prunable(older_than=timedelta(days=5))
    assert (found.gone, [entry.id for entry, _ in found.kept]) == ((), [other])
    assert prune_sessions(older_than=EVER) == []
    assert delete_session(child)
    assert set(prune_sessions(older_than=EVER)) == {parent, other}


def test_a_log_of_a_newer_schema_protects_every_session_that_it_mentions() -> None:
    parent, other = shared_log(["a"]), shared_log(["b"])
    newer = {**header_of(uuid4()), "schema_version": 9, "rows_are_in": [str(parent).upper()]}
    rechained(log_at("newer"), [newer])
    with pytest.raises(PersistenceError, match="newer"):
        delete_session(parent)
    assert delete_session(other)


AS_NOBODY = """
import os, sys, tempfile
from pathlib import Path
from rath.errors import PersistenceError
from rath.session.persistence import delete_session
from tests.persistence.shared import directory, log_at, shared_log

with tempfile.TemporaryDirectory() as home:
    os.environ["OPENRATH_HOME"] = home
    first, session = shared_log(["a"]), shared_log(["b"])
    delete_session(first)
    locked = log_at("locked")
    locked.write_bytes(b"x")
    locked.chmod(0)
    (directory() / ".directory.lock").chmod(0o666)
    for path in (Path(home), directory()):
        path.chmod(0o777)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        delete_session(session)
    except PersistenceError as error:
        print(error)
    os.seteuid(os.getuid())
"""


def test_a_log_that_cannot_be_read_keeps_all_others(tmp_path: Path) -> None:
    said = run_python(AS_NOBODY, home=tmp_path)
    assert "was not deleted, because it may be needed: locked.jsonl: it cannot be read (Permission denied)" in said


def test_what_is_no_log_is_in_nobodys_way(tmp_path: Path) -> None:
    session = shared_log(["a"])
    place = directory()
    (place / "dir.jsonl").mkdir()
    os.mkfifo(place / "pipe.jsonl")
    (place / "nowhere.jsonl").symlink_to(tmp_path / "nowhere")
    (place / "circle.jsonl").symlink_to("circle.jsonl")
    (place / "device.jsonl").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(place)
        try:
            listening.bind("socket.jsonl")
        finally:
            os.chdir(here)
    (place / "empty.jsonl").touch()
    (place / "nul.jsonl").write_bytes(bytes(3 << 20))
    (place / "deep.jsonl").write_bytes(b'{"prefix":' + b"[" * 100_000 + b"\n")
    (place / "\x1b[31m\n; rm -rf.jsonl").write_bytes(b"x\n")
    (place / os.fsdecode(b"\xff.jsonl")).write_bytes(b'{"prefix":null}\n')
    started = time.perf_counter()
    assert read_needs(place).unclear == {}
    assert delete_session(session)
    assert time.perf_counter() - started < within(1)


def test_a_child_that_is_a_link_counts(tmp_path: Path) -> None:
    parent, child = chain(2)
    log_at(child).rename(tmp_path / "elsewhere.jsonl")
    log_at(child).symlink_to(tmp_path / "elsewhere.jsonl")
    assert verify(child).verdict == "complete"
    with pytest.raises(PersistenceError, match=str(child)):
        delete_session(parent)


# -- pruning ------------------------------------------------------------------------------------------------------------


def test_pruning_keeps_what_a_staying_log_needs_through_others() -> None:
    ids = chain(5, days=10)
    young = shared_log([f"row {n}" for n in range(3)] + ["new"], parent=ids[2], own=1)
    found = prunable(older_than=timedelta(days=5))
    assert [entry.id for entry in found.gone] == [ids[4], ids[3]]
    reasons = {entry.id: why for entry, why in found.kept}
    assert set(reasons) == set(ids[:3])
    assert reasons[ids[2]] == f"{young} has its first rows in it"
    assert reasons[ids[0]] == f"{ids[1]} has its first rows in it"
    assert prune_sessions(older_than=timedelta(days=5)) == [ids[4], ids[3]]
    assert verify(young).verdict == "complete"
    assert there(*ids) == [True, True, True, False, False]


def test_a_pin_keeps_the_logs_that_the_pinned_one_needs() -> None:
    ids = chain(4, days=10)
    pin_session(ids[2])
    assert prune_sessions(older_than=EVER) == [ids[3]]
    assert verify(ids[2]).verdict == "complete"
    unpin_session(ids[2])
    assert prune_sessions(older_than=EVER) == [ids[2], ids[1], ids[0]]


def test_a_log_that_is_written_keeps_the_logs_that_it_needs() -> None:
    parent, child = chain(2, days=10)
    fcntl_lock = log_at(child).with_suffix(".lock")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(fcntl_lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert prune_sessions(older_than=EVER) == []
        holder.communicate(b"")
    fcntl_lock.unlink()
    assert prune_sessions(older_than=EVER) == [child, parent]


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_only_logs_of_a_verdict_go_and_not_what_others_need() -> None:
    parent, child = chain(2, days=10)
    data = log_at(child).read_bytes()
    log_at(child).write_bytes(data[:-5])
    assert prune_sessions(older_than=EVER, verdict="complete") == []
    assert prune_sessions(older_than=EVER, verdict="torn") == [child]
    assert prune_sessions(older_than=EVER, verdict="complete") == [parent]


def test_a_child_that_came_since_keeps_its_parent() -> None:
    parent = shared_log(["a"], days=10)
    found = prunable(older_than=timedelta(days=5))
    child = shared_log(["a", "b"], parent=parent, own=1)
    done = prune_entries(found.gone)
    assert (done.gone, [(entry.id, why) for entry, why in done.kept]) == ((), [(parent, f"{child} has its first rows in it")])


def test_a_writer_that_comes_in_the_middle_of_a_pruning_keeps_its_log_and_what_that_needs() -> None:
    first, second, third = chain(3, days=10)
    held: list[int] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if active and event == "os.remove" and str(arguments[0]) == str(log_at(third)):
            fd = os.open(log_at(second).with_suffix(".lock"), os.O_RDWR | os.O_CREAT)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.append(fd)

    active = [1]
    sys.addaudithook(hook)
    try:
        assert prune_sessions(older_than=EVER) == [third]
    finally:
        active.clear()
        for fd in held:
            os.close(fd)
    assert there(first, second, third) == [True, True, False]
    assert verify(second).verdict == "complete"
    assert prune_sessions(older_than=EVER) == [second, first]


def test_a_log_that_cannot_be_removed_keeps_what_it_needs_and_nothing_else() -> None:
    eldest, youngest = chain(2)
    others = [shared_log(["a"], days=days) for days in (1, 9)]
    in_the_way = log_at(youngest).with_suffix(".lock")
    in_the_way.write_text("mine")
    with pytest.raises(PersistenceError, match="is needed as the lock of"):
        prune_sessions(older_than=EVER)
    assert there(eldest, youngest, *others) == [True, True, False, False]
    assert in_the_way.read_text() == "mine"
    again = prune_entries(prunable(older_than=EVER).gone)
    assert [entry.id for entry, _ in again.failed] == [youngest]
    assert [(entry.id, why) for entry, why in again.kept] == [(eldest, f"{youngest} has its first rows in it")]


def test_logs_that_need_each_other_in_a_circle_go_too() -> None:
    ids = sorted(uuid4() for _ in range(3))
    for number, session_id in enumerate(ids):
        rechained(log_at(session_id), [header_of(session_id, ids[number - 1], 1, digest_of(["a"]), days=9)])
    assert set(prune_sessions(older_than=EVER)) == set(ids)


def test_a_chain_of_ten_thousand_is_ordered_without_recursion() -> None:
    parents = {f"{n}": frozenset({f"{n - 1}"}) for n in range(1, 10_000)}
    needs = read_needs(directory())
    needs.parents.update(parents)
    names = [str(n) for n in range(10_000)]
    random.Random(1).shuffle(names)
    assert needs.order(names) == [str(n) for n in reversed(range(10_000))]
    assert len(needs.kept(set(names) - {"9999"})) == 9_999


def dangling(place: Path) -> list[str]:
    """Logs whose first rows are not there; read from the files alone."""
    missing = []
    for path in place.glob("*.jsonl"):
        try:
            header, newline, _ = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            continue
        prefix = json.loads(header)["prefix"] if newline else None
        if prefix is not None and not (place / f"{prefix['session_id']}.jsonl").exists():
            missing.append(path.name)
    return missing


def tree(size: int, seed: int) -> list[UUID]:
    chance = random.Random(seed)
    made: list[tuple[UUID, list[str]]] = [(shared_log(["root"], days=99), ["root"])]
    for number in range(size):
        parent, texts = chance.choice(made)
        length = chance.randint(1, len(texts))
        texts = [*texts[:length], f"row {number}"]
        made.append((shared_log(texts, parent=parent, own=1, days=chance.uniform(1, 90)), texts))
    return [session_id for session_id, _ in made]


def test_whatever_stays_has_its_rows() -> None:
    for seed in range(12):
        chance = random.Random(seed)
        ids = tree(12, seed)
        for pinned in chance.sample(ids, 2):
            pin_session(pinned)
        planned = prunable(older_than=timedelta(days=chance.randint(0, 60)))
        gone = prune_entries(planned.gone).gone
        assert sorted(entry.path for entry in gone) == sorted(entry.path for entry in planned.gone)
        assert dangling(directory()) == []
        assert {entry.verdict for entry in open_dir().verify_all()} <= {"complete"}
        for path in directory().iterdir():
            path.unlink()


KILLED_WHILE_PRUNING = """
import os, random, shutil, signal, sys, time
from datetime import timedelta
from rath.session.persistence import prune_sessions
from tests.persistence.test_directory_needs import dangling, tree
from tests.persistence.shared import directory

by_removals = sys.argv[1] == "removals"
OLD = timedelta(days=20)
tree(40, 7)
place, spare = directory(), directory().with_name("spare")
shutil.copytree(place, spare)
died, took_s = 0, 0.05

def die_before_removal(number):
    seen = []
    def hook(event, arguments):
        if event == "os.remove":  # raised before the system call
            seen.append(event)
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

for round_ in range(1, 150):
    shutil.rmtree(place)
    shutil.copytree(spare, place)
    begun = time.perf_counter()
    child = os.fork()
    if child == 0:
        if by_removals:
            die_before_removal(round_)
        prune_sessions(older_than=OLD)
        os._exit(0)
    if not by_removals:
        time.sleep(random.uniform(0, took_s))
        os.kill(child, signal.SIGKILL)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    died += killed
    if not killed:
        took_s = time.perf_counter() - begun
    assert not dangling(place), (round_, dangling(place))
    if by_removals and not killed:
        break
prune_sessions(older_than=OLD)
assert not dangling(place)
print(died, len(list(place.glob("*.jsonl"))))
"""


def run_python(code: str, *arguments: str, home: Path, timeout: float = 50) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        env={**os.environ, "OPENRATH_HOME": str(home)},
        cwd=Path(__file__).parents[2],
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.slow
@pytest.mark.parametrize(("by", "at_least"), [("removals", 20), ("time", 30)])
def test_a_pruning_that_is_killed_at_any_moment_leaves_no_log_without_its_rows(by: str, at_least: int, tmp_path: Path) -> None:
    died, left = map(int, run_python(KILLED_WHILE_PRUNING, by, home=tmp_path).split())
    assert died > at_least
    assert left > 0


# -- the directory's lock -----------------------------------------------------------------------------------------------


def test_many_may_share_the_directory_and_one_alone_may_remove(tmp_path: Path) -> None:
    with directory_shared(tmp_path) as one, directory_shared(tmp_path) as two:
        assert (one, two) == (True, True)
        with pytest.raises(PersistenceError, match="is not free"), directory_exclusive(tmp_path):
            pass
    with directory_exclusive(tmp_path), directory_shared(tmp_path) as ours:
        assert ours is False
    with directory_exclusive(tmp_path):
        pass
    assert os.listdir(tmp_path) == [DIRECTORY_LOCK]


def test_whoever_waits_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / DIRECTORY_LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with directory_shared(tmp_path, wait_s=0.02) as ours:
            assert ours is False
        os.kill(holder.pid, signal.SIGKILL)
        with directory_exclusive(tmp_path, wait_s=5):
            pass


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), os.mkfifo, lambda p: p.symlink_to("/etc/passwd")])
def test_something_else_of_the_locks_name_is_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    lock = tmp_path / DIRECTORY_LOCK
    make(lock)
    before = lock.lstat()
    with directory_shared(tmp_path) as ours:
        assert ours is False
    with pytest.raises(PersistenceError, match="cannot be locked"), directory_exclusive(tmp_path):
        pass
    assert lock.lstat().st_mtime == before.st_mtime


def test_without_a_directory_nothing_is_shared_and_nothing_made(tmp_path: Path) -> None:
    with directory_shared(tmp_path / "none") as ours:
        assert ours is False
    assert not (tmp_path / "none").exists()


def test_an_open_log_without_a_whole_header_is_in_nobodys_way() -> None:
    session = shared_log(["a"])
    log = open_run_log(Session.from_user_message("go"))
    assert delete_session(session)
    log.abandon()
