"""Copies of a container's workspace: isolated both ways, whichever way they were made, and nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from rath import Session
from rath.backend import (
    BackendSandbox,
    BackendSandboxSpec,
    BackendToolCodeRun,
    BackendToolCommandRun,
    CodeResult,
    CommandResult,
)
from rath.backend.closing import tracked
from rath.backend.docker.engine import DockerEngine, engine
from rath.backend.docker.layers import ROOT
from rath.backend.docker.mounts import mounted_below
from rath.backend.docker.pool import Pool
from rath.backend.docker.sweep import everything
from rath.backend.owner import owner
from rath.core import ports
from rath.errors import SandboxClosed
from tests.backend.docker.conftest import BASE

pytestmark = pytest.mark.docker
IDLE = timedelta(milliseconds=300)
IN_PLACE = "in place"
COPIED = "copied"


def mounts() -> list[str]:
    return mounted_below(f"{ROOT}/{owner().id}")


def until(true, timeout_s: float = 15.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def no_mounts_left(docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RATH_SANDBOX_IMAGE", BASE)
    before = mounts()
    yield
    for one in tracked():
        if isinstance(one, Pool):
            ports.engine().run(one.shut())
    until(lambda: set(mounts()) <= set(before))


def containers(owner_id: str) -> list[str]:
    return [one.id for one in everything(engine(), owner_id) if one.kind == "container"]


def spec_for(how: str, **fields: object) -> BackendSandboxSpec:
    """A sandbox whose workspace is frozen in place where that works, or never."""
    if how == IN_PLACE and os.geteuid() != 0:
        pytest.skip("only root may mount")
    if how == COPIED:
        fields["disk"] = "64m"  # in memory, which is no place for an overlay's layers
    return BackendSandboxSpec(**fields)  # type: ignore[arg-type]


def placed(spec: BackendSandboxSpec | None = None) -> Session:
    return Session.from_user_message("go").to("docker", spec=spec or BackendSandboxSpec())


def sh(session: Session, command: str, timeout: float = 30) -> str:
    result = session.require_sandbox().dispatch(BackendToolCommandRun(command, timeout=timeout))
    assert isinstance(result, CommandResult), result
    assert result.exit_code == 0, (command, result)
    return os.fsdecode(result.stdout)


def py(session: Session, code: str) -> str | None:
    result = session.require_sandbox().dispatch(BackendToolCodeRun(code))
    assert isinstance(result, CodeResult), result
    assert result.error is None, result.error
    return result.text


LISTING = (
    "find . -mindepth 1 -type d -printf '%P %m\\0' | sort -z | tr '\\0' '\\n'; "
    "find . ! -type d -printf '%P %y %m %s %l\\0' | sort -z | tr '\\0' '\\n'; "
    "find . -type f -print0 | sort -z | xargs -0r md5sum"
)


def is_in_place(session: Session) -> bool:
    return "overlay" in sh(session, "grep ' /workspace ' /proc/self/mounts | tail -1")


@pytest.mark.parametrize("how", [IN_PLACE, COPIED])
def test_parent_and_copy_do_not_see_what_the_other_does(how: str) -> None:
    with placed(spec_for(how)) as parent:
        sh(parent, "mkdir -p d/e moved cleared; echo 1 > gone; echo 2 > changed; echo 3 > d/e/f; echo 4 > moved/f; echo 5 > cleared/f")
        sh(parent, "ln -s changed link; ln gone hard; chmod 640 changed; printf 'x' > \"$(printf 'a\\nb\\377')\"; truncate -s 1M hole")
        assert is_in_place(parent) == (how == IN_PLACE)
        child = parent.fork(sandbox="copy")
        before = sh(parent, LISTING)
        sh(parent, "rm gone; echo parent > changed; mv moved elsewhere; rm -r cleared; mkdir cleared; echo new > cleared/g; chmod 600 changed")
        after = sh(parent, LISTING)
        assert after != before
        assert sh(child, LISTING) == before
        sh(child, "echo child > d/e/f; rm -r moved; mv d renamed; echo theirs > mine; chmod 755 changed")
        assert sh(parent, LISTING) == after
        assert sh(child, "stat -c %U:%G .; id -u") == sh(child, "stat -c %U:%G changed; stat -c %u .")
        child.close_sandbox()
        assert sh(parent, LISTING) == after


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_fifty_copies_of_a_workspace_that_goes_on_changing() -> None:
    with placed(spec_for(IN_PLACE, pool=2)) as parent, ExitStack() as held:
        for step in range(50):
            sh(parent, f"echo {step} > step; echo parent > side")
            child = parent.fork(sandbox="copy")
            held.callback(child.close_sandbox)
            sh(parent, "echo later > step")
            assert sh(child, "cat step side") == f"{step}\nparent\n"
            sh(child, "echo child > side; rm step")
            assert sh(parent, "cat step side") == "later\nparent\n"
            if step % 5 != 4:
                child.close_sandbox()


@pytest.mark.slow
def test_siblings_and_their_children_each_have_their_own() -> None:
    with placed() as parent, ExitStack() as held:
        sh(parent, "echo root > f")
        sessions = [parent]
        for depth in range(3):
            for session in list(sessions):
                child = session.fork(sandbox="copy")
                held.callback(child.close_sandbox)
                sh(child, f"echo {len(sessions)} at {depth} >> f")
                sessions.append(child)
        seen = [sh(session, "cat f") for session in sessions]
        assert len(set(seen)) == len(sessions) == 8
        assert all(text.startswith("root\n") for text in seen)


def test_a_copy_of_a_copy_that_was_never_used_is_right_too() -> None:
    with placed() as parent:
        sh(parent, "echo 1 > f")
        child = parent.fork(sandbox="copy")
        grandchild = child.fork(sandbox="copy")
        sh(parent, "echo 2 > f")
        assert sh(grandchild, "cat f") == "1\n"
        sh(grandchild, "echo 3 > f")
        assert sh(child, "cat f") == "1\n"
        child.close_sandbox()
        grandchild.close_sandbox()


@pytest.mark.parametrize("how", [IN_PLACE, COPIED])
def test_a_snapshot_is_restored_three_times(how: str) -> None:
    with placed(spec_for(how)) as parent:
        sh(parent, "echo 1 > f")
        with parent.snapshot() as kept:
            sh(parent, "echo 2 > f")
            for _ in range(3):
                with parent.restore(kept) as restored:
                    assert sh(restored, "cat f") == "1\n"
                    sh(restored, "echo 3 > f")
        assert sh(parent, "cat f") == "2\n"


def test_a_directory_of_the_host_is_copied_in_and_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "program").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "program").chmod(0o4755)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "text").write_text("one\n")
    with placed(BackendSandboxSpec(workspace=tmp_path)) as parent:
        assert sh(parent, "./program; cat sub/text") == "hello\none\n"
        assert sh(parent, "stat -c %a program").strip() == "755"
        sh(parent, "echo two >> sub/text; rm program")
        child = parent.fork(sandbox="copy")
        sh(child, "echo three >> sub/text")
        assert "+two" in parent.workspace_diff().text
        assert "+three" not in parent.workspace_diff().text
        assert "+three" in child.workspace_diff().text
        child.close_sandbox()
    assert (tmp_path / "sub" / "text").read_text() == "one\n"
    assert (tmp_path / "program").exists()


def bound_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "bound"
    directory.mkdir()
    (directory / "f").write_text("1\n")
    for path in (directory, directory / "f"):
        if os.geteuid() == 0:
            os.chown(path, 20_001, 20_001)
    return directory


@pytest.mark.slow
def test_a_copy_of_a_bound_directory_never_touches_it(tmp_path: Path) -> None:
    directory = bound_directory(tmp_path)
    with placed(BackendSandboxSpec(workspace=directory, workspace_mode="bind", idle_timeout=IDLE)) as parent:
        sandbox = parent.require_sandbox()
        sh(parent, "echo 2 > g")
        child = parent.fork(sandbox="copy")
        assert sh(child, "cat f g; echo 3 > f; echo 4 > h") == "1\n2\n"
        grandchild = child.fork(sandbox="copy")
        assert sh(grandchild, "cat f h; rm *") == "3\n4\n"
        assert sh(child, "cat f h") == "3\n4\n"
        assert {path.name: path.read_text() for path in directory.iterdir()} == {"f": "1\n", "g": "2\n"}
        until(lambda: is_parked(sandbox))
        late = parent.fork(sandbox="copy")
        assert sh(late, "cat f; rm f") == "1\n"
        until(lambda: is_parked(sandbox))
        (directory / "new").write_text("from outside")
        assert sh(parent, "cat new; rm g") == "from outside"
        assert sorted(os.listdir(directory)) == ["f", "new"]
        for session in (child, grandchild, late):
            session.close_sandbox()


# -- what runs at the moment of the freeze ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_that_has_a_file_open_for_writing_goes_on_writing() -> None:
    with placed(spec_for(IN_PLACE)) as parent:
        sh(parent, "echo whole > f; (for i in $(seq 600); do echo $i; sleep 0.05; done) > log 2>&1 &")
        child = parent.fork(sandbox="copy")
        lines = int(sh(child, "wc -l < log"))
        assert sh(child, "cat f") == "whole\n"
        until(lambda: int(sh(parent, "wc -l < log")) > lines + 3)
        child.close_sandbox()


@pytest.mark.slow
def test_a_call_that_takes_long_is_not_disturbed_by_a_copy() -> None:
    with placed(spec_for(IN_PLACE)) as parent:
        sandbox = parent.require_sandbox()
        with sandbox.stream() as calls:
            running = calls.submit(BackendToolCommandRun("for i in $(seq 50); do sleep 0.1; echo $i > now || exit 1; done"))
            until(lambda: "now" in sh(parent, "ls"))
            child = parent.fork(sandbox="copy")
            assert 1 <= int(sh(child, "cat now")) < 50
            ended = running.result()
        assert isinstance(ended, CommandResult)
        assert ended.exit_code == 0, ended
        assert sh(parent, "cat now") == "50\n"
        child.close_sandbox()


def test_the_interpreter_keeps_its_state_and_its_directory_and_can_write_after_a_copy() -> None:
    with placed() as parent:
        py(parent, "import os; os.makedirs('sub'); os.chdir('sub'); n = 41; open('a', 'w').write('1')")
        child = parent.fork(sandbox="copy")
        assert sh(child, "cat sub/a") == "1"
        assert py(parent, "open('b', 'w').write('2'); (n + 1, os.getcwd())") == "(42, '/workspace/sub')"
        assert sh(parent, "cat sub/b") == "2"
        assert sh(child, "ls sub") == "a\n"
        child.close_sandbox()


def test_a_background_process_that_only_reads_goes_on() -> None:
    with placed(spec_for(IN_PLACE)) as parent:
        sh(parent, "echo page > index; (while :; do cat /workspace/index > /tmp/seen; sleep 0.02; done) > /dev/null 2>&1 &")
        child = parent.fork(sandbox="copy")
        assert sh(child, "cat index") == "page\n"
        sh(parent, "echo changed > index")
        until(lambda: sh(parent, "cat /tmp/seen") == "changed\n")
        child.close_sandbox()


def test_a_background_process_with_its_directory_in_the_workspace_keeps_the_frozen_files_and_cannot_write_there() -> None:
    with placed(spec_for(IN_PLACE)) as parent:
        loop = "while :; do (echo x > relative) 2>> /tmp/errors; echo x > /workspace/absolute; cp index /tmp/seen; sleep 0.02; done"
        sh(parent, f"echo old > index; ({loop}) > /dev/null 2>&1 &")
        until(lambda: "relative" in sh(parent, "ls"))
        child = parent.fork(sandbox="copy")
        sh(parent, "echo new > index; rm relative absolute")
        until(lambda: "Read-only file system" in sh(parent, "cat /tmp/errors"))
        until(lambda: "absolute" in sh(parent, "ls"))
        assert "relative" not in sh(parent, "ls")
        assert sh(parent, "cat /tmp/seen") == "old\n"
        assert sh(child, "cat relative index") == "x\nold\n"
        child.close_sandbox()


# -- parking ----------------------------------------------------------------------------------------------------------


def is_parked(sandbox: BackendSandbox) -> bool:
    return sandbox.parking.is_parked  # type: ignore[attr-defined, no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("how", [IN_PLACE, COPIED])
def test_a_parked_sandbox_has_no_container_and_comes_back_with_its_files(how: str) -> None:
    with placed(spec_for(how, idle_timeout=IDLE)) as session:
        sandbox = session.require_sandbox()
        sh(session, "echo kept > f; sleep 100 > /dev/null 2>&1 &")
        until(lambda: is_parked(sandbox))
        until(lambda: containers(owner().id) == [])
        assert sh(session, "cat f; pgrep sleep || echo no processes") == "kept\nno processes\n"
        assert session.require_sandbox() is sandbox
        until(lambda: is_parked(sandbox))
        assert "+kept" in session.workspace_diff().text
        until(lambda: is_parked(sandbox))
        child = session.fork(sandbox="copy")
        assert sh(child, "cat f") == "kept\n"
        sh(child, "echo changed > f")
        assert sh(session, "cat f") == "kept\n"
        child.close_sandbox()
        until(lambda: is_parked(sandbox))
    with pytest.raises(SandboxClosed):
        sandbox.dispatch(BackendToolCommandRun("true"))


# -- who dies leaves nothing ------------------------------------------------------------------------------------------

OWNER = """
    import time
    from rath import Session
    from rath.backend.owner import owner
    from rath.backend import BackendSandboxSpec, BackendToolCommandRun
    session = Session.from_user_message("go").to("docker", spec=BackendSandboxSpec(pool=1))
    session.require_sandbox().dispatch(BackendToolCommandRun("echo 1 > f"))
    kept = []
    for _ in range(3):
        kept.append(session.fork(sandbox="copy"))
        session.require_sandbox().dispatch(BackendToolCommandRun("date > g"))
    kept[0].require_sandbox().dispatch(BackendToolCommandRun("cat f"))
    print(owner().id, flush=True)
    time.sleep(100)
"""


def children_of(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("keeper_too", [False, True], ids=["the keeper cleans up", "the next start cleans up"])
def test_what_a_killed_owner_had_mounted_goes(keeper_too: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    victim = subprocess.Popen([sys.executable, "-c", textwrap.dedent(OWNER)], stdout=subprocess.PIPE)
    with victim:
        try:
            assert victim.stdout is not None
            dead = victim.stdout.readline().decode().strip()
            path = f"{ROOT}/{dead}"
            assert len(mounted_below(path)) >= 4
            if keeper_too:
                (keeper,) = (pid for pid in children_of(victim.pid) if b"keeper" in Path(f"/proc/{pid}/cmdline").read_bytes())
                os.kill(keeper, signal.SIGKILL)
        finally:
            victim.kill()
    if keeper_too:
        time.sleep(0.5)
        assert os.path.exists(path)
        script = "from rath import Session; Session.from_user_message('go').to('docker').require_sandbox()"
        subprocess.run([sys.executable, "-c", script], check=True)
    until(lambda: mounted_below(path) == [] and not os.path.exists(path))
    until(lambda: containers(dead) == [])


# -- where the engine sees other files --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("hide", ["mount -t tmpfs none /var/lib/rath/layers", "true"])
def test_an_engine_that_does_not_see_our_mounts_gets_volumes_and_copies_instead(hide: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    Path(ROOT).mkdir(mode=0o700, parents=True, exist_ok=True)
    script = """
        from rath import Session
        from rath.backend import BackendToolCommandRun
        with Session.from_user_message("go").to("docker") as session:
            run = lambda s, c: s.require_sandbox().dispatch(BackendToolCommandRun(c)).stdout.decode()
            run(session, "echo 1 > f")
            assert "overlay" not in run(session, "grep ' /workspace ' /proc/self/mounts")
            child = session.fork(sandbox="copy")
            run(session, "echo 2 > f")
            assert run(child, "cat f") == "1\\n"
            child.close_sandbox()
        print("right")
    """
    command = ["unshare", "--mount", "sh", "-c", f'{hide} && chmod 700 {ROOT} && exec "$@"', "sh", sys.executable, "-c", textwrap.dedent(script)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.stdout == "right\n", told.stderr


@pytest.mark.slow
def test_a_container_that_sees_something_else_in_its_workspace_is_replaced_by_one_with_a_volume() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    script = """
        from rath.backend import BackendToolCommandRun
        from rath.backend.docker.backend import DockerBackend
        from rath.backend.docker.slots import SlotPlace

        class Astray(DockerBackend):
            async def _ready(self, sandbox, said):
                if isinstance(sandbox.made.place, SlotPlace):
                    said = {**said, "workspace_ino": "1"}
                await super()._ready(sandbox, said)

        backend = Astray()
        for _ in range(2):
            with backend.open() as sandbox:
                ran = sandbox.dispatch(BackendToolCommandRun("echo 1 > f && cat f && grep ' /workspace ' /proc/self/mounts"))
                assert ran.stdout.startswith(b"1\\n"), ran
                assert b"overlay" not in ran.stdout, ran
        print("right")
    """
    told = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert told.stdout == "right\n", told.stderr
