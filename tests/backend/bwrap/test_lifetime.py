"""Opening, closing and dying: what a bubblewrap sandbox costs, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rath.backend.bwrap import preflight, process
from rath.backend.bwrap.arguments import Plan
from rath.backend.bwrap.backend import BwrapSandbox
from rath.backend.host import own
from rath.backend.types import (
    Backend,
    BackendSandbox,
    BackendSandboxSpec,
    BackendToolCommandRun,
    BackendToolFilesRead,
    BackendToolFilesWrite,
    CommandResult,
    FileContent,
)
from rath.core import ports
from rath.errors import SandboxBroken, SandboxClosed, SandboxUnavailable, UsageValueError
from rath.testing.pace import within

OWNER = """
import sys
from rath.backend import registry
from rath.backend.types import *

sandbox = registry.get("bwrap").open()
sandbox.dispatch(BackendToolCommandRun("setsid sleep 4242 > /dev/null 2>&1 &"))
print(sandbox.place.top, sandbox.running.process.pid, flush=True)
sys.stdin.read()
"""


def _sleepers(command: str) -> list[str]:
    done = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line == command]


def _within(limit_s: float, holds: Callable[[], bool]) -> bool:
    until = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.slow
@pytest.mark.usefixtures("works")
def test_the_owners_death_ends_everything(usable_directory: Path) -> None:
    usable_directory.chmod(0o777)
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(usable_directory)},
    ) as owner:
        assert owner.stdout is not None
        top, pid = owner.stdout.readline().split()
        assert _within(10, lambda: bool(_sleepers("sleep 4242")))
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert _within(3, lambda: not _sleepers("sleep 4242") and not Path(f"/proc/{pid}").exists())
    # Its directory is what the next process sweeps up, a minute later.
    assert Path(top).parent == usable_directory
    os.utime(top, (0, 0))
    assert [left.fate for left in own.sweep_leftovers(str(usable_directory))] == ["removed"]
    assert not Path(top).exists()


OPENER = """
import sys
from rath.backend import registry
from rath.backend.types import *
print("go", flush=True)
while True:
    sandbox = registry.get("bwrap").open()
    sandbox.dispatch(BackendToolCommandRun("setsid sleep 4243 > /dev/null 2>&1 &"))
    sandbox.dispatch(BackendToolCommandRun("true"))
    registry.get("bwrap").close(sandbox)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("works")
def test_a_hundred_deaths_of_an_owner_at_any_moment_leave_nothing(usable_directory: Path) -> None:
    """Killed while it opens, calls or closes; directories go with the next sweep, notes too."""
    usable_directory.chmod(0o777)
    state = usable_directory.parent / "state"
    state.mkdir(mode=0o700)
    env = {**os.environ, "TMPDIR": str(usable_directory), "XDG_RUNTIME_DIR": str(state)}
    for n in range(100):
        with subprocess.Popen([sys.executable, "-c", OPENER], stdout=subprocess.PIPE, text=True, env=env) as owner:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "go\n"
            time.sleep(n * 0.003)
            owner.send_signal(signal.SIGKILL)
    inside = f"{usable_directory}/"
    assert _within(5, lambda: not _sleepers("sleep 4243") and not _mounting(inside))
    for left in (*usable_directory.iterdir(), *(state / "rath").rglob("*")):
        os.utime(left, (0, 0))
    subprocess.run([sys.executable, "-c", "from rath.backend.bwrap.sweep import sweep; sweep()"], env=env, check=True)
    assert [left for left in usable_directory.iterdir() if left.name.endswith(".own")] == []
    assert [path for path in (state / "rath").rglob("*") if not path.is_dir() or path.parent.name == "owners"] == []


def _mounting(inside: str) -> list[str]:
    """Processes that have a directory below ``inside`` mounted."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if inside in Path(f"/proc/{name}/mountinfo").read_text():
                found.append(name)
    return found


def test_a_sandbox_that_is_killed_breaks_its_calls_at_once(bwrap: Backend) -> None:
    sandbox = bwrap.open()
    assert isinstance(sandbox, BwrapSandbox)

    async def kill() -> BaseException | None:
        under_way = asyncio.ensure_future(sandbox.perform(BackendToolCommandRun("sleep 30")))
        await asyncio.sleep(0.1)
        sandbox.running.kill()
        await asyncio.wait([under_way], timeout=2)
        return under_way.exception()

    began = time.monotonic()
    assert isinstance(ports.engine().run(kill()), SandboxBroken)
    assert time.monotonic() - began < within(2)
    with pytest.raises(SandboxBroken):
        sandbox.dispatch(BackendToolCommandRun("true"))
    bwrap.close(sandbox)
    assert sandbox.place.top is not None
    assert not Path(sandbox.place.top).exists()


def test_a_sandbox_is_ready_in_less_than_a_tenth_of_a_second(bwrap: Backend) -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        sandbox = bwrap.open()
        times.append(time.perf_counter() - began)
        bwrap.close(sandbox)
    assert min(times) < within(0.1), times  # 0.024 on an idle machine


@pytest.mark.slow
def test_many_open_at_once(bwrap: Backend) -> None:
    async def open_and_ask() -> bytes:
        sandbox = await bwrap.open_in_loop(None)
        try:
            result = await sandbox.perform(BackendToolCommandRun("echo $$; readlink /proc/self/ns/pid"))
            assert isinstance(result, CommandResult)
            return result.stdout
        finally:
            await sandbox.shut()

    async def all_of_them() -> list[bytes]:
        return await asyncio.gather(*(open_and_ask() for _ in range(20)))

    said = ports.engine().run(all_of_them())
    assert len({line.splitlines()[1] for line in said}) == 20


# -- workspaces -------------------------------------------------------------------------------------------------------


def _tree(at: Path) -> None:
    (at / "sub").mkdir()
    (at / "sub" / "run.sh").write_text("echo ran\n")
    (at / "sub" / "run.sh").chmod(0o750)
    (at / "link").symlink_to("sub/run.sh")


def test_a_workspace_is_copied_and_the_original_is_not_touched(bwrap: Backend, tmp_path: Path) -> None:
    _tree(tmp_path)
    with bwrap.open(BackendSandboxSpec(workspace=tmp_path)) as sandbox:
        ran = sandbox.dispatch(BackendToolCommandRun("sh link; echo changed > sub/run.sh; rm link; stat -c '%a %u' sub/run.sh ."))
        assert isinstance(ran, CommandResult)
        assert ran.stdout == b"ran\n750 20000\n700 20000\n"
        diff = ports.engine().run(sandbox.diff())
        assert (diff.modified, diff.removed) == (("sub/run.sh",), ("link",))
    assert (tmp_path / "sub" / "run.sh").read_text() == "echo ran\n"
    assert (tmp_path / "link").is_symlink()


def test_a_bound_directory_is_worked_in(bwrap: Backend, usable_directory: Path) -> None:
    spec = BackendSandboxSpec(workspace=usable_directory, workspace_mode="bind")
    with bwrap.open(spec) as sandbox:
        sandbox.dispatch(BackendToolFilesWrite("made", "inside"))
    made = usable_directory / "made"
    assert made.read_text() == "inside"
    assert made.stat().st_uid == usable_directory.stat().st_uid


def test_a_directory_of_root_is_not_bound(bwrap: Backend, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has directories of root")
    with pytest.raises(UsageValueError, match="chown"):
        bwrap.open(BackendSandboxSpec(workspace=tmp_path, workspace_mode="bind"))


def test_a_bound_directory_that_cannot_be_reached_is_refused(bwrap: Backend, usable_directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root runs commands as somebody else")
    usable_directory.parent.chmod(0o700)
    with pytest.raises(SandboxUnavailable, match="may not enter"):
        bwrap.open(BackendSandboxSpec(workspace=usable_directory, workspace_mode="bind"))


def test_a_directory_that_is_swapped_while_it_is_bound_opens_nothing(
    bwrap: Backend, usable_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a sandbox that is bound to a directory above could do."""
    above = usable_directory.parent
    above.chmod(0o777)
    secret = above / "secret"
    secret.mkdir()
    os.chown(secret, *(usable_directory.stat().st_uid, usable_directory.stat().st_gid))
    swap = f"mv {usable_directory} {above}/moved && ln -s {secret} {usable_directory}"
    (above / "bwrap").write_text(f'#!/bin/sh\n[ -e {above}/armed ] && {swap}\nexec {shutil.which("bwrap")} "$@"\n')
    (above / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{above}:{os.environ['PATH']}")
    preflight.check()
    (above / "armed").touch()
    with pytest.raises(SandboxUnavailable, match="something else was put in its place"):
        bwrap.open(BackendSandboxSpec(workspace=usable_directory, workspace_mode="bind"))
    assert usable_directory.is_symlink()
    (above / "armed").unlink()
    usable_directory.unlink()


def test_extra_mounts_are_there_and_read_only(bwrap: Backend, usable_directory: Path) -> None:
    (usable_directory / "data.txt").write_text("data")
    (usable_directory / "data.txt").chmod(0o644)
    spec = BackendSandboxSpec(mounts={"/data": usable_directory, "/one/file": usable_directory / "data.txt"})
    with bwrap.open(spec) as sandbox:
        shown = sandbox.dispatch(BackendToolCommandRun("cat /data/data.txt /one/file; touch /data/x || touch /one/x || echo > /one/file"))
        assert isinstance(shown, CommandResult)
        assert (shown.stdout, shown.exit_code != 0) == (b"datadata", True)


@pytest.mark.parametrize(
    "spec",
    [
        BackendSandboxSpec(network="bridge"),
        BackendSandboxSpec(network=["pypi.org:443"]),
        BackendSandboxSpec(image="python:3.12"),
        BackendSandboxSpec(disk="1g"),
        BackendSandboxSpec(gpus="all"),
        BackendSandboxSpec(user="0"),
        BackendSandboxSpec(user="me"),
        BackendSandboxSpec(mounts={"/etc/x": "/usr"}),
        BackendSandboxSpec(mounts={"//etc": "/usr"}),
        BackendSandboxSpec(mounts={"/data": "/no/such/place"}),
        BackendSandboxSpec(mounts={"/data": "/dev/null"}),
    ],
)
def test_what_cannot_be_honoured_is_refused(bwrap: Backend, spec: BackendSandboxSpec) -> None:
    with pytest.raises(UsageValueError):
        bwrap.open(spec)


def test_commands_see_the_user_that_the_spec_names(bwrap: Backend) -> None:
    with bwrap.open(BackendSandboxSpec(user="1234:1235", network="none")) as sandbox:
        said = sandbox.dispatch(BackendToolCommandRun("id -u; id -g; id -un; touch mine; stat -c %u mine"))
        assert isinstance(said, CommandResult)
        assert said.stdout == b"1234\n1235\nsandbox\n1234\n"


# -- snapshots --------------------------------------------------------------------------------------------------------


def _text(sandbox: BackendSandbox, path: str) -> str | bytes:
    read = sandbox.dispatch(BackendToolFilesRead(path))
    assert isinstance(read, FileContent), read
    return read.data


def test_a_snapshot_is_restored_any_number_of_times_and_the_last_takes_its_files(bwrap: Backend) -> None:
    run = ports.engine().run
    with bwrap.open() as sandbox:
        sandbox.dispatch(BackendToolFilesWrite("f", "frozen"))
        snapshot = run(sandbox.frozen("layer"))
        sandbox.dispatch(BackendToolFilesWrite("f", "later"))
    first, second = run(bwrap._aclone(snapshot)), run(bwrap._aclone(snapshot))
    made = [run(bwrap._arestore(None, one)) for one in (first, second, snapshot)]
    assert [_text(one, "f") for one in made] == ["frozen"] * 3
    made[0].dispatch(BackendToolFilesWrite("f", "mine"))
    assert [_text(one, "f") for one in made] == ["mine", "frozen", "frozen"]
    tops = [one.place.top for one in made if isinstance(one, BwrapSandbox)]
    for one in made:
        bwrap.close(one)
    assert not any(Path(top).exists() for top in tops if top)


def test_a_descriptor_that_a_thread_still_uses_outlives_the_close(bwrap: Backend) -> None:
    """Its number must not get another meaning while a copy or a diff of the workspace is under way."""
    sandbox = bwrap.open()
    assert isinstance(sandbox, BwrapSandbox)
    with sandbox.place.used() as root:
        bwrap.close(sandbox)
        assert os.fstat(root.fd).st_nlink == 0  # removed, and still held
    assert root.fd == -1
    with pytest.raises(SandboxClosed):
        sandbox.place.used().__enter__()


def test_a_freeze_that_is_cancelled_leaves_nothing_and_the_sandbox_goes_on(bwrap: Backend) -> None:
    with bwrap.open() as sandbox:
        filled = sandbox.dispatch(BackendToolCommandRun("for i in $(seq 3000); do echo $i > f$i; done"))
        assert isinstance(filled, CommandResult)
        before = set(own._own)

        async def cancel() -> None:
            freezing = asyncio.ensure_future(bwrap._asnapshot(sandbox, "layer"))
            await asyncio.sleep(0.02)
            freezing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await freezing

        ports.engine().run(cancel())
        assert _within(5, lambda: set(own._own) <= before)
        assert isinstance(sandbox.dispatch(BackendToolCommandRun("true")), CommandResult)


def test_a_restore_that_fails_leaves_the_snapshot_as_it_was(bwrap: Backend) -> None:
    run = ports.engine().run
    with bwrap.open() as sandbox:
        sandbox.dispatch(BackendToolFilesWrite("f", "frozen"))
        snapshot = run(sandbox.frozen("layer"))
    with pytest.raises(SandboxUnavailable):
        run(bwrap._arestore(BackendSandboxSpec(mounts={"/bin/x": "/usr"}), snapshot))
    restored = run(bwrap._arestore(None, snapshot))
    assert _text(restored, "f") == "frozen"
    bwrap.close(restored)


# -- why not ----------------------------------------------------------------------------------------------------------


def test_without_bwrap_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not preflight.is_likely()
    with pytest.raises(SandboxUnavailable, match="apt install bubblewrap"):
        preflight.check()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("case $1 in --version) echo bubblewrap 0.8.0;; *) echo 'No permissions to create new namespace' >&2; exit 1;; esac",
         "No permissions to create new namespace"),
        ("echo bubblewrap 0.3.1", "0.5 or later"),
        ("exit 1", "cannot be run"),
        # One that isolates nothing at all: it just runs the command behind "--".
        ("case $1 in --version) echo bubblewrap 0.8.0; exit;; esac; while [ \"$1\" != -- ]; do shift; done; shift; exec \"$@\"",
         "does not work here"),
    ],
    ids=["forbidden", "old", "broken", "fake"],
)  # fmt: skip
def test_a_bwrap_that_does_not_hold_what_it_has_to_opens_nothing(
    script: str, said: str, monkeypatch: pytest.MonkeyPatch, usable_directory: Path
) -> None:
    fake = usable_directory / "bwrap"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{usable_directory}:{os.environ['PATH']}")
    with pytest.raises(SandboxUnavailable, match=said):
        preflight.check()


def test_a_tmpdir_that_only_root_may_enter_is_named(works: None, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("others may enter their own")
    tmp_path.chmod(0o700)
    code = "from rath.backend.bwrap import preflight; preflight.check()"
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "set TMPDIR to a directory that every user may enter" in ran.stderr


@pytest.mark.usefixtures("works")
def test_a_sandbox_never_runs_as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root could")
    ready = preflight.check()
    with pytest.raises(AssertionError):
        process.start(ready.bwrap, Plan("/tmp", ready.python, 0, 0), b"", who=None)
    who = process.stand_in()
    assert who is not None
    assert who.uid > 1000
    assert replace(who) == process.stand_in()
