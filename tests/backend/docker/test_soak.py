"""The same things many times over: whatever goes wrong, and however often, nothing is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rath import Session, run_session_loop
from rath.backend import BackendSandbox, BackendSandboxSpec, BackendToolCommandRun, CommandResult, ToolExecutionFailure, get
from rath.backend.docker.engine import DockerEngine
from rath.backend.docker.layers import ROOT
from rath.backend.docker.sweep import everything
from rath.errors import SandboxBroken
from rath.testing import ScriptedClient
from rath.testing.pace import within
from tests.backend.docker.conftest import BASE

pytestmark = [pytest.mark.docker, pytest.mark.slow]

TIMEOUTS, KILLED_OWNERS, REMOVALS = 200, 100, 50
SPEC = BackendSandboxSpec(image=BASE)

NASTY = [
    "sleep 60",
    "sh -c 'sleep 60' & sh -c 'sleep 60' & wait",
    "setsid sleep 60 & sleep 60",
    "setsid setsid sh -c 'sleep 60 & sleep 60' & sleep 60",
    "env -i setsid sh -c '(sleep 60 &) ; exec sleep 60' & sleep 60",
    "(setsid sh -c '(env -i sleep 60 >/dev/null 2>&1 </dev/null &)' &) ; sleep 60",
    "trap '' TERM INT HUP QUIT; while :; do sleep 1; done",
    "sh -c 'kill -STOP $$' & sleep 60",
    "yes | cat > /dev/null",
    "while :; do echo flood; done",
    "(while :; do (setsid true &) ; done) & exec sleep 60",
    "(b() { b | b & }; b) & exec sleep 60",
    "python3 -c 'import os\nwhile 1: os.fork() or os.setsid()'",
    "exec 1>&- 2>&-; sleep 60",
]


@pytest.fixture
def sandbox(docker_engine: DockerEngine) -> Iterator[BackendSandbox]:
    with get("docker").open(BackendSandboxSpec(image=BASE, pids=200)) as opened:
        yield opened


def processes(sandbox: BackendSandbox) -> int:
    """How many there are but the guest and this very command."""
    result = sandbox.dispatch(BackendToolCommandRun("n=0; for p in /proc/[0-9]*; do n=$((n+1)); done; echo $n"))
    assert isinstance(result, CommandResult), result
    return int(result.stdout) - 2


@pytest.mark.timeout(300)
def test_200_adversarial_timeouts_leave_no_process(sandbox: BackendSandbox) -> None:
    order = random.Random(20261121)
    bystander = sandbox.stream().submit(BackendToolCommandRun(["sleep", "600"]))
    assert processes(sandbox) == 1
    for n in range(TIMEOUTS):
        timeout = order.uniform(0.05, 0.3)
        start = time.monotonic()
        result = sandbox.dispatch(BackendToolCommandRun(NASTY[n % len(NASTY)], timeout=timeout))
        assert time.monotonic() - start < timeout + 2, NASTY[n % len(NASTY)]
        assert isinstance(result, ToolExecutionFailure), result
        assert result.kind == "timeout"
        assert processes(sandbox) == 1, f"something survived {NASTY[n % len(NASTY)]!r}"
    assert not bystander.done(), "a kill hit the wrong command"


OWNER = textwrap.dedent(
    """
    import sys
    from rath import Session
    from rath.backend import BackendSandboxSpec, BackendToolCommandRun
    from rath.backend.owner import owner
    session = Session.from_user_message("x").to("docker", spec=BackendSandboxSpec(image=sys.argv[1]))
    print(owner().id, flush=True)
    sandbox = session.require_sandbox()
    stream = sandbox.stream()
    stream.submit(BackendToolCommandRun("setsid sleep 100 & sleep 100"))
    print("open", flush=True)
    branch = session.fork(sandbox="copy")
    branch.require_sandbox().dispatch(BackendToolCommandRun("echo x > file; sync; sleep 100"))
    """
)


@pytest.mark.timeout(600)
def test_100_killed_owners_leave_nothing(docker_engine: DockerEngine) -> None:
    order = random.Random(20261121)
    names: list[str] = []
    for _ in range(KILLED_OWNERS // 4):
        owners = [
            subprocess.Popen([sys.executable, "-c", OWNER, BASE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for _ in range(4)
        ]
        for owner in owners:
            assert owner.stdout is not None
            names.append(owner.stdout.readline().strip())
        time.sleep(order.uniform(0.0, 1.5))  # from before the container is there to long after
        for owner in owners:
            owner.send_signal(signal.SIGKILL)
        for owner in owners:
            owner.wait()
            assert owner.stdout is not None
            owner.stdout.close()
    assert len(set(names)) == KILLED_OWNERS
    until = time.monotonic() + 15
    while (left := [what for name in names for what in remains(docker_engine, name)]) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left


def remains(engine: DockerEngine, owner: str) -> list[str]:
    """What an owner left: in the engine, mounted, on the disk."""
    left = [f"{one.kind} {one.id}" for one in everything(engine, owner)]
    left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if owner in line]
    if os.path.isdir(f"{ROOT}/{owner}"):
        left.append(f"{ROOT}/{owner}")
    return left


@pytest.mark.timeout(300)
def test_50_containers_removed_under_a_run_each_fail_it_at_once_and_the_model_never_hears(docker_engine: DockerEngine) -> None:
    agent = Session.from_agent_prompt("x")
    for n in range(REMOVALS):
        model = ScriptedClient(
            [{"tool_calls": [{"name": "run_shell_command", "arguments": {"cmd": "touch begun; sleep 60"}}]}, "never asked"],
            record=True,
        )
        with Session.from_user_message("go").to("docker", spec=SPEC) as session:
            sandbox = session.require_sandbox()
            run = run_session_loop(session, agent, agent_provider=model.as_provider())
            removed_at: list[float] = []

            def remove(sandbox: BackendSandbox = sandbox, at: list[float] = removed_at, n: int = n) -> None:
                time.sleep(0.01 * (n % 10))
                at.append(time.monotonic())
                if n % 2:
                    docker_engine.ask_blocking("kill it", lambda client: client.kill(sandbox.handle))
                else:
                    docker_engine.ask_blocking("remove it", lambda client: client.remove_container(sandbox.handle, force=True))

            remover = threading.Thread(target=remove)
            remover.start()
            with pytest.raises(SandboxBroken):
                run.chunk_table
            remover.join()
            assert time.monotonic() - removed_at[0] < within(3)
            assert len(model.requests) <= 1, "a dead sandbox was reported to the model as a tool's result"
            run.close_sandbox()
        # A new placement works.
        if n % 10 == 0:
            with Session.from_user_message("again").to("docker", spec=SPEC) as again:
                assert get("docker").dispatch(again.require_sandbox(), BackendToolCommandRun("echo hi")).stdout == b"hi\n"  # type: ignore[union-attr]
