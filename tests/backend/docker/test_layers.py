"""Workspaces as overlays: frozen files stay what they were, copies do not see each other, and nothing is left behind."""

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rath.backend.docker.layers import ROOT, Busy, LayerStore, sweep, sweep_all
from rath.backend.docker.mounts import MAX_LAYERS, bind_shared, mounted_below, unmount_all
from rath.errors import SandboxError
from rath.testing.pace import within

pytestmark = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may mount")
UID = 20_001


def new_owner() -> str:
    return f"test-{os.getpid()}-{random.randrange(1 << 40):x}"


def tree(top) -> dict[str, object]:
    """Everything in a directory: content and mode of files, modes of directories, targets of links."""
    found: dict[str, object] = {}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, top)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                found[relative] = ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                found[relative] = ("dir", stat.S_IMODE(status.st_mode))
            else:
                found[relative] = ("file", stat.S_IMODE(status.st_mode), Path(path).read_bytes())
    return found


def put(top, **files: str) -> None:
    for name, text in files.items():
        Path(top, name).write_text(text)


@pytest.fixture(params=[None, False], ids=["this kernel's calls", "the old mount call"])
def store(request):
    """A store of its own; at the end of the test nothing of it may be left, neither mounted nor on the disk."""
    store = LayerStore(new_owner(), new_calls=request.param)
    if store.obstacle():
        pytest.skip(store.obstacle())
    yield store
    assert store.is_empty
    store.settle()
    assert mounted_below(store.path) == []
    assert sorted(os.listdir(store.path)) == ["e", "lock"]
    store.close()
    assert not os.path.exists(store.path)


def copy_of(store, slot):
    """A second workspace with the files of ``slot`` as they are now."""
    frozen = store.freeze(slot)
    child = store.slot()
    store.mount(child, frozen, UID, UID)
    store.drop(frozen)
    return child


@pytest.fixture
def slot(store):
    slot = store.slot()
    store.mount(slot, None, UID, UID)
    yield slot
    store.release(slot)


def test_an_empty_workspace_belongs_to_the_user_and_honours_no_setuid_programs_and_no_devices(slot):
    status = os.stat(slot.path)
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (UID, UID, 0o755)
    flags = os.statvfs(slot.path).f_flag
    assert flags & os.ST_NOSUID
    assert flags & os.ST_NODEV


def test_only_root_can_enter_the_store(store, slot):
    entered = subprocess.run(
        ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "ls", slot.path], capture_output=True, check=False
    )
    assert entered.returncode != 0
    assert b"Permission denied" in entered.stderr


def test_copies_do_not_see_each_other_whatever_either_does(store, slot):
    top = Path(slot.path)
    for round_ in range(50):
        for name in ("kept", "gone", "changed", "moded"):
            (top / name).write_text(f"{name} {round_}")
            (top / name).chmod(0o644)
        for name in ("moved", "cleared", "filled"):
            (top / name / "deep").mkdir(parents=True, exist_ok=True)
            (top / name / "deep" / "file").write_text(f"{name} {round_}")
        before = tree(top)
        child = copy_of(store, slot)
        other = Path(child.path)
        assert tree(other) == before
        one, two = (top, other) if round_ % 2 else (other, top)
        (one / "gone").unlink()
        (one / "changed").write_text("changed")
        (one / "moded").chmod(0o600)
        (one / "moved").rename(one / "elsewhere")
        subprocess.run(["rm", "-r", str(one / "cleared")], check=True)
        (one / "cleared").mkdir()  # an opaque directory: nothing of the one below shines through
        (one / "cleared" / "new").write_text("new")
        (one / "filled" / "deep" / "more").write_text("more")
        assert tree(two) == before
        mine = tree(one)
        (two / "new").write_text("theirs")
        (two / "kept").unlink()
        assert tree(one) == mine
        store.release(child)
        subprocess.run(["rm", "-rf", *map(str, top.iterdir())], check=True)


def test_a_frozen_workspace_is_restored_as_often_as_one_likes(store, slot):
    put(slot.path, a="1", b="2")
    os.symlink("a", f"{slot.path}/link")
    frozen = store.freeze(slot)
    before = tree(slot.path)
    for _ in range(3):
        put(slot.path, a="changed by the parent")
        again = store.slot()
        store.mount(again, frozen, UID, UID)
        assert tree(again.path) == before
        put(again.path, a="changed by a child", c="3")
        store.release(again)
    store.drop(frozen)


def test_an_empty_workspace_is_frozen_and_seen_too(store, slot):
    frozen = store.freeze(slot)
    view = store.view(frozen)
    assert os.listdir(view.path) == []
    store.release(view)
    store.drop(frozen)


def test_siblings_from_one_freeze_are_independent(store, slot):
    put(slot.path, a="1")
    frozen = store.freeze(slot)
    shared = store.share(frozen)
    store.drop(frozen)
    slots = [store.slot() for _ in range(5)]
    for number, one in enumerate(slots):
        store.mount(one, shared, UID, UID)
        put(one.path, a=f"of {number}")
    store.drop(shared)
    assert [Path(one.path, "a").read_text() for one in slots] == [f"of {number}" for number in range(5)]
    assert Path(slot.path, "a").read_text() == "1"
    for one in slots:
        store.release(one)


def test_freezing_what_was_not_changed_mounts_nothing(store, slot):
    put(slot.path, a="1")
    first = store.freeze(slot)
    device = os.stat(slot.path).st_dev
    second = store.freeze(slot)
    assert os.stat(slot.path).st_dev == device
    assert second.depth == first.depth == 1
    os.chmod(slot.path, 0o700)
    third = store.freeze(slot)
    again = store.slot()
    store.mount(again, third, UID, UID)
    assert stat.S_IMODE(os.stat(again.path).st_mode) == 0o700
    store.release(again)
    for frozen in (first, second, third):
        store.drop(frozen)


def test_a_file_open_for_writing_makes_the_freeze_fail_and_its_writer_go_on(store, slot):
    with open(f"{slot.path}/log", "w") as log:
        began = time.monotonic()
        with pytest.raises(Busy, match="open for writing"):
            store.freeze(slot, patience_s=0.2)
        assert 0.2 <= time.monotonic() - began < within(1)
        log.write("still here")
    assert Path(slot.path, "log").read_text() == "still here"
    put(slot.path, more="works")


def test_a_freeze_waits_for_a_writer_that_ends(store, slot):
    log = os.open(f"{slot.path}/log", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(log, b"complete")
    timer = threading.Timer(0.2, os.close, [log])
    timer.start()
    child = copy_of(store, slot)
    timer.join()
    assert Path(child.path, "log").read_text() == "complete"
    store.release(child)


def test_a_slot_that_is_released_during_a_freeze_is_gone_at_once(store):
    slot = store.slot()
    store.mount(slot, None, UID, UID)
    told: list[str] = []

    def freeze() -> None:
        try:
            store.freeze(slot, patience_s=30)
        except SandboxError as error:
            told.append(str(error))

    with open(f"{slot.path}/log", "w"):
        freezing = threading.Thread(target=freeze)
        freezing.start()
        time.sleep(0.1)
        began = time.monotonic()
        store.release(slot)
        freezing.join()
        assert time.monotonic() - began < within(1)
    assert "was closed" in told[0]
    with pytest.raises(SandboxError, match="was closed"):
        store.freeze(slot)
    with pytest.raises(SandboxError, match="was closed"):
        store.mount(slot, None, UID, UID)


def test_a_reader_keeps_what_it_had_open(store, slot):
    put(slot.path, a="before")
    with open(f"{slot.path}/a") as reader:
        child = copy_of(store, slot)
        put(slot.path, a="after")
        assert reader.read() == "before"
    assert Path(slot.path, "a").read_text() == "after"
    store.release(child)


def test_a_process_left_in_the_old_overlay_cannot_write_to_what_is_frozen(store, slot):
    directory = os.open(slot.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        put(slot.path, a="frozen")
        child = copy_of(store, slot)
        with pytest.raises(OSError) as refused:
            os.open("a", os.O_WRONLY, dir_fd=directory)
        assert refused.value.errno == errno.EROFS
        assert Path(child.path, "a").read_text() == "frozen"
        store.release(child)
    finally:
        os.close(directory)


def test_a_mount_reaches_who_bound_the_empty_slot_before(store, tmp_path):
    slot = store.slot()
    script = 'mount --bind "$1" "$2"; mount --make-rslave "$2"; echo ready; read go; cat "$2/a"; echo more > "$2/b"; read go; cat "$2/b"'
    inside = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script, "sh", slot.path, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with inside:
        assert inside.stdout is not None
        assert inside.stdin is not None
        assert inside.stdout.readline() == "ready\n"
        store.mount(slot, None, UID, UID)
        put(slot.path, a="hello\n")
        print("go", file=inside.stdin, flush=True)
        assert inside.stdout.readline() == "hello\n"
        until = time.monotonic() + 5
        while not os.path.exists(f"{slot.path}/b") and time.monotonic() < until:
            time.sleep(0.005)
        frozen = store.freeze(slot)
        put(slot.path, b="changed after the freeze\n")
        print("go", file=inside.stdin, flush=True)
        assert inside.stdout.readline() == "changed after the freeze\n"
    store.drop(frozen)
    store.release(slot)
    unmount_all(str(tmp_path))  # the script's bind, where the host shares its mounts


def test_a_chain_of_40_copies_is_merged_on_the_way_and_stays_right(store, slot):
    model: dict[str, str] = {}
    current = slot
    frozens = []
    for step in range(40):
        name = f"f{step % 7}"
        Path(current.path, name).write_text(f"{step}")
        model[name] = f"{step}"
        if step % 3 == 2:
            Path(current.path, f"f{(step + 1) % 7}").unlink(missing_ok=True)
            model.pop(f"f{(step + 1) % 7}", None)
        frozens.append((store.freeze(current), dict(model)))
        child = store.slot()
        store.mount(child, frozens[-1][0], UID, UID)
        if current is not slot:
            store.release(current)
        current = child
    store.settle()
    assert max(frozen.depth for frozen, _ in frozens) <= 17
    assert frozens[-1][0].depth < 17
    for frozen, expected in [*frozens, (frozens[-1][0], model)]:
        view = store.view(frozen)
        assert {name: Path(view.path, name).read_text() for name in os.listdir(view.path)} == expected
        store.release(view)
    store.release(current)
    for frozen, _ in frozens:
        store.drop(frozen)


def test_one_workspace_frozen_many_times_keeps_few_layers(store, slot):
    kept = store.freeze(slot)
    for step in range(MAX_LAYERS + 10):
        put(slot.path, **{f"f{step}": str(step)})
        store.drop(kept)
        kept = store.freeze(slot)
    assert kept.depth < MAX_LAYERS
    store.settle()
    put(slot.path, last="1")
    store.drop(kept)
    kept = store.freeze(slot)
    store.settle()
    assert kept.depth <= 17
    assert len(os.listdir(slot.path)) == MAX_LAYERS + 11
    store.drop(kept)


def test_merging_keeps_owners_modes_times_links_holes_and_renamed_directories(store, slot):
    top = Path(slot.path)
    (top / "tree" / "below").mkdir(parents=True)
    put(top / "tree" / "below", file="x")
    frozens = [store.freeze(slot)]
    (top / "tree").rename(top / "renamed")
    put(top, one="1")
    os.link(top / "one", top / "two")
    os.chown(top / "one", UID, UID)
    os.chmod(top / "one", 0o640)
    os.utime(top / "one", ns=(1_000_000_007, 2_000_000_009))
    with open(top / "sparse", "wb") as sparse:
        sparse.truncate(64 << 20)
    for step in range(18):
        put(top, counter=str(step))
        frozens.append(store.freeze(slot))
    store.settle()
    put(top, counter="last")
    last = store.freeze(slot)
    assert last.depth < 17
    view = store.view(last)
    seen = Path(view.path)
    assert (seen / "renamed" / "below" / "file").read_text() == "x"
    assert not (seen / "tree").exists()
    status = (seen / "one").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode), status.st_mtime_ns, status.st_nlink) == (UID, 0o640, 2_000_000_009, 2)
    assert (seen / "sparse").stat().st_size == 64 << 20
    assert (seen / "sparse").stat().st_blocks * 512 < 1 << 20
    store.release(view)
    for frozen in [*frozens, last]:
        store.drop(frozen)


def test_adopting_copies_and_leaves_the_original_alone(store, tmp_path):
    put(tmp_path, program="#!/bin/sh\n")
    (tmp_path / "program").chmod(0o6755)
    (tmp_path / "sub").mkdir(mode=0o750)
    (tmp_path / "sub").chmod(0o2750)
    (tmp_path / "out").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    os.utime(tmp_path / "program", ns=(5, 7))
    owner = os.stat("/etc/passwd").st_uid
    frozen = store.adopt(str(tmp_path), UID, UID + 1)
    slot = store.slot()
    store.mount(slot, frozen, 0, 0)
    store.drop(frozen)
    top = Path(slot.path)
    assert sorted(os.listdir(top)) == ["out", "program", "sub"]
    for name in (".", "program", "sub", "out"):
        assert ((top / name).lstat().st_uid, (top / name).lstat().st_gid) == (UID, UID + 1)
    assert stat.S_IMODE((top / "program").stat().st_mode) == 0o755
    assert (top / "program").stat().st_mtime_ns == 7
    assert stat.S_IMODE((top / "sub").stat().st_mode) == 0o750
    assert os.readlink(top / "out") == "/etc/passwd"
    assert os.stat("/etc/passwd").st_uid == owner
    (top / "program").write_text("changed")
    assert (tmp_path / "program").read_text() == "#!/bin/sh\n"
    store.release(slot)


def test_what_cannot_be_adopted_is_said_and_leaves_nothing(store, tmp_path):
    with pytest.raises(SandboxError, match="nowhere"):
        store.adopt(str(tmp_path / "nowhere"), UID, UID)
    put(tmp_path, a="1")
    with pytest.raises(SandboxError, match="stopped"):
        store.adopt(str(tmp_path), UID, UID, stop=lambda: True)


def test_files_given_back_twice_are_refused_or_ignored(store, slot):
    put(slot.path, a="1")
    frozen = store.freeze(slot)
    store.drop(frozen)
    store.drop(frozen)
    with pytest.raises(SandboxError, match="given back"):
        store.share(frozen)
    child = copy_of(store, slot)
    assert Path(child.path, "a").read_text() == "1"
    store.release(child)
    store.release(child)


def test_a_workspace_that_was_dropped_is_removed_from_the_disk(store, slot):
    (Path(slot.path) / "x" / ("y" * 200)).mkdir(parents=True)
    os.chmod(f"{slot.path}/x", 0)
    frozen = store.freeze(slot)
    path = frozen.layers[0].path
    subprocess.run(["rm", "-rf", f"{slot.path}/x"], check=True)
    child = store.slot()
    store.mount(child, frozen, UID, UID)
    store.drop(frozen)
    store.settle()
    assert os.path.exists(path)
    store.release(child)
    store.settle()
    assert os.path.exists(path)  # the parent still has it below its own files
    with pytest.raises(FileNotFoundError):
        os.stat(f"{slot.path}/x")


def test_a_thousand_copies_leave_nothing_mounted(store, slot):
    put(slot.path, a="1")
    frozen = store.freeze(slot)
    before = mounted_below(store.path)
    for _ in range(1_000):
        child = store.slot()
        store.mount(child, frozen, UID, UID)
        store.release(child)
    store.drop(frozen)
    assert mounted_below(store.path) == before


def test_copies_in_many_threads_at_once(store, slot):
    put(slot.path, a="1")
    frozen = store.freeze(slot)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            mine = store.share(frozen)
            for step in range(10):
                child = store.slot()
                store.mount(child, mine, UID, UID)
                store.drop(mine)
                put(child.path, own=f"{number} {step}")
                mine = store.freeze(child)
                assert Path(child.path, "own").read_text() == f"{number} {step}"
                assert Path(child.path, "a").read_text() == "1"
                store.release(child)
            store.drop(mine)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.drop(frozen)
    assert failed == []


# -- who dies leaves nothing ------------------------------------------------------------------------------------------

OWNER = """
import sys, time
from rath.backend.docker.layers import LayerStore
store = LayerStore(sys.argv[1])
kept = []
for number in range(5):
    slot = store.slot()
    store.mount(slot, kept[-1] if kept else None, 20001, 20001)
    open(f"{slot.path}/file{number}", "w").write("x")
    kept.append(store.freeze(slot))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_sweep_removes_what_a_killed_owner_left_and_nothing_else():
    owner, bystander = new_owner(), LayerStore(new_owner())
    if bystander.obstacle():
        pytest.skip(bystander.obstacle())
    slot = bystander.slot()
    bystander.mount(slot, None, UID, UID)
    with pytest.raises(BlockingIOError):
        sweep(os.path.basename(bystander.path))
    dead = subprocess.Popen([sys.executable, "-c", OWNER, owner], stdout=subprocess.PIPE)
    with dead:
        assert dead.stdout is not None
        assert dead.stdout.readline() == b"ready\n"
        dead.send_signal(signal.SIGKILL)
    path = f"{ROOT}/{owner}"
    assert len(mounted_below(path)) >= 10
    held = os.open(mounted_below(path)[0], os.O_RDONLY)
    try:
        sweep(owner)
    finally:
        os.close(held)
    assert mounted_below(path) == []
    assert not os.path.exists(path)
    put(slot.path, still="here")
    bystander.release(slot)
    bystander.close()
    sweep(owner)  # nothing there


def test_the_next_start_removes_what_was_left_by_all_who_are_dead_and_nothing_of_the_living(tmp_path):
    tmp_path.chmod(0o700)
    living = LayerStore("living", str(tmp_path))
    if living.obstacle():
        pytest.skip(living.obstacle())
    slot = living.slot()
    living.mount(slot, None, UID, UID)
    code = OWNER.replace("sys.argv[1]", f"sys.argv[1], {str(tmp_path)!r}").replace("time.sleep(60)", "")
    for name in ("one", "two"):
        code_of_one = f"{code}\nimport os; os._exit(9)"
        subprocess.run([sys.executable, "-c", code_of_one, name], stdout=subprocess.DEVNULL, check=False)
    (tmp_path / "from-before-a-restart").mkdir()
    assert len(mounted_below(f"{tmp_path}/one")) >= 10
    child = os.fork()
    if child == 0:
        time.sleep(1)  # what a child has inherited must not keep the lock of its parent, nor what it frees unmount anything
        living.release(slot)
        living.close()
        os._exit(0)
    assert sweep_all(str(tmp_path)) == ["from-before-a-restart", "one", "two"]
    os.waitpid(child, 0)
    assert os.listdir(tmp_path) == ["living"]
    put(slot.path, still="here")
    living.release(slot)
    living.close()
    assert mounted_below(str(tmp_path)) == []


def test_a_sweep_takes_no_name_that_leads_elsewhere(tmp_path):
    (tmp_path / "precious").mkdir()
    for name in ("..", "../precious", "/etc", "", "a/b", "."):
        with pytest.raises(ValueError, match="no name"):
            sweep(name, str(tmp_path))
    assert (tmp_path / "precious").exists()


def test_a_store_that_others_could_enter_is_refused(tmp_path):
    tmp_path.chmod(0o755)
    store = LayerStore("mine", str(tmp_path))
    assert "chmod 0700" in store.obstacle()
    assert os.listdir(tmp_path) == []
    tmp_path.chmod(0o700)


def test_a_user_who_may_not_mount_is_told_so():
    code = "from rath.backend.docker.layers import LayerStore; print(LayerStore('mine').obstacle())"
    told = subprocess.run(
        ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", sys.executable, "-c", code],
        capture_output=True, text=True, check=False, cwd="/", env={"PYTHONPATH": os.getcwd(), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    if told.returncode and "Permission denied" in told.stderr:
        pytest.skip("the interpreter is not readable by other users")
    assert told.stdout.strip() == "only root may mount"


def test_a_closed_store_is_empty_and_refuses_new_workspaces():
    store = LayerStore(new_owner())
    if store.obstacle():
        pytest.skip(store.obstacle())
    slot = store.slot()
    store.mount(slot, None, UID, UID)
    put(slot.path, a="1")
    store.freeze(slot)
    store.close()
    store.close()
    assert mounted_below(store.path) == []
    assert not os.path.exists(store.path)
    with pytest.raises(SandboxError, match="shutting down"):
        store.slot()


def test_bind_shared_of_nothing_says_where(tmp_path):
    with pytest.raises(OSError, match="nothing-here"):
        bind_shared(str(tmp_path / "nothing-here"))


def test_closing_ends_a_merge_that_is_under_way():
    before = set(threading.enumerate())
    store = LayerStore(new_owner())
    if store.obstacle():
        pytest.skip(store.obstacle())
    slot = store.slot()
    store.mount(slot, None, UID, UID)
    with open(f"{slot.path}/large", "wb") as large:
        for _ in range(64):
            large.write(os.urandom(1 << 20) * 8)
    for step in range(17):
        put(slot.path, step=str(step))
        store.freeze(slot)
    store.close()
    assert mounted_below(store.path) == []
    assert not os.path.exists(store.path)
    assert set(threading.enumerate()) <= before
