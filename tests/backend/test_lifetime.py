"""Whatever happens to the sessions of a placement, each sandbox stops once, when its last reference goes; nothing is left."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rath import Session, gather, run_session_loop
from rath.backend import BackendSandbox, BackendSandboxSpec, BackendToolCommandRun, registry
from rath.backend.branching import WorkspaceSnapshot
from rath.backend.docker.engine import DockerEngine
from rath.backend.docker.layers import ROOT
from rath.backend.docker.mounts import mounted_below
from rath.backend.docker.slots import slots
from rath.backend.docker.sweep import everything
from rath.backend.owner import owner
from rath.core import ports
from rath.errors import RunCancelled, SandboxError
from rath.testing import ScriptedClient
from rath.testing.pace import within
from tests.backend.docker.conftest import BASE, docker_engine
from tests.backend.memory import Die, MemoryBackend, Sleep, fresh_memory

__all__ = ["docker_engine"]

AGENT = Session.from_agent_prompt("x")
# One tool call that opens the sandbox, and one reply; slow enough to be cancelled in between.
SCRIPT = [{"tool_calls": [{"name": "workspace_path_exists", "arguments": {"path": "x"}}]}, "done"]
SHARING = ["fork", "detach", "user", "loop", "cancel", "use", "close", "forget", "with", "crash", "await"]
COPYING = ["copy", "copy", "snapshot", "restore", "restore", "end snapshot", "forget snapshot", "fail", "diff"]


def steps(*what: str, most: int, least: int = 1) -> st.SearchStrategy[list[tuple[str, int]]]:
    return st.lists(st.tuples(st.sampled_from(what), st.integers(0, 30)), min_size=least, max_size=most)


@dataclass
class Family:
    """The sessions derived from one placement, and the snapshots, that somebody still holds."""

    use: Callable[[BackendSandbox], object]
    crash: Callable[[BackendSandbox], object]
    fail: Callable[[], object]
    held: list[Session] = field(default_factory=list)
    running: list[Session] = field(default_factory=list)
    kept: list[WorkspaceSnapshot] = field(default_factory=list)
    placements: int = 1

    def go(self, steps: list[tuple[str, int]]) -> None:
        for what, which in steps:
            if self.held:
                self.step(what, self.held[which % len(self.held)], which)
            for one in self.held:
                assert one.sandbox is None or not one.sandbox.closed, "closed under somebody who holds it"
        self.settle()
        self.held.clear()
        self.kept.clear()
        gc.collect()

    def step(self, what: str, one: Session, which: int) -> None:
        match what:
            case "fork":
                self.held.append(one.fork())
            case "detach":
                self.held.append(one.detach())
            case "user":
                self.held.append(one.user("and?"))
            case "loop" | "cancel":
                provider = ScriptedClient(SCRIPT, latency_s=0.002, by_turn=True).as_provider()
                made = run_session_loop(one, AGENT, agent_provider=provider)
                self.held.append(made)
                self.running.append(made)
                if what == "cancel":
                    made.cancel()
            case "use":
                self.quietly(lambda: self.use(one.require_sandbox()))
            case "crash":
                self.quietly(lambda: self.crash(one.require_sandbox()))
            case "fail":
                self.fail()
            case "diff":
                self.quietly(one.workspace_diff)
            case "close":
                self.held.remove(one.close_sandbox())
            case "forget":
                self.held.remove(one)
            case "with":
                self.held.remove(one)
                self.quietly(lambda: one.__enter__())
                one.close_sandbox()
            case "await":
                self.settle()
            case "copy":
                self.placements += 1
                self.held.append(one.fork(sandbox="copy"))
            case "snapshot":
                self.quietly(lambda: self.kept.append(one.snapshot()))
            case "restore" if self.kept:
                self.placements += 1
                self.held.append(one.restore(self.kept[which % len(self.kept)]))
            case "end snapshot" if self.kept:
                self.kept.pop(which % len(self.kept)).close()
            case "forget snapshot" if self.kept:
                self.kept.pop(which % len(self.kept))

    def quietly(self, use: Callable[[], object]) -> None:
        """What was closed or broken before says so, which is not the question here."""
        with contextlib.suppress(SandboxError):
            use()

    def settle(self) -> None:
        for outcome in gather(*self.running, return_exceptions=True):
            assert not isinstance(outcome, BaseException) or isinstance(outcome, (RunCancelled, SandboxError)), outcome
        self.running.clear()


def until(true: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def memory() -> Iterator[MemoryBackend]:
    with fresh_memory() as backend:
        yield backend


def in_memory(memory: MemoryBackend, steps: list[tuple[str, int]], delay_s: float = 0.0) -> None:
    memory.reset()
    family = Family(lambda one: one.dispatch(Sleep(0)), lambda one: one.dispatch(Die()), lambda: fail_once(memory))
    memory.open_delay_s = memory.snapshot_delay_s = delay_s
    family.held.append(Session.from_user_message("go").to("memory-for-tests"))
    family.go(steps)
    until(lambda: memory.closed >= memory.opened + memory.restored and memory.live_snapshots <= 0, 5)
    assert memory.closed == memory.opened + memory.restored <= family.placements
    assert memory.live_snapshots == 0


def fail_once(memory: MemoryBackend) -> None:
    """The next open fails, and the next restore: with files in its hand."""
    memory.open_failures = memory.restore_failures = 1


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps(*SHARING, most=25))
def test_a_sandbox_stops_exactly_once_when_the_last_reference_goes(memory: MemoryBackend, steps: list[tuple[str, int]]) -> None:
    in_memory(memory, steps)
    assert memory.opened <= 1


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps(*SHARING, *COPYING, *COPYING, most=30))
def test_with_copies_and_snapshots_too_each_stops_once_and_no_files_are_kept(
    memory: MemoryBackend, steps: list[tuple[str, int]]
) -> None:
    in_memory(memory, steps, delay_s=0.001)


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(280)
def test_in_an_engine_no_container_volume_or_mount_is_left(
    docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATH_SANDBOX_IMAGE", BASE)
    mine = owner().id

    def remove(sandbox: BackendSandbox) -> None:
        docker_engine.ask_blocking("remove it", lambda client: client.remove_container(sandbox.handle, force=True, v=True))

    def left() -> list[object]:
        return [*everything(docker_engine, mine), *mounted_below(f"{ROOT}/{mine}")]

    before = left()

    @settings(max_examples=10, deadline=None, database=None)
    @given(
        steps(*SHARING, *COPYING, "copy", "use", "use", least=6, most=16),
        # Memory is no place for layers: its copies are made through the guest.
        st.sampled_from([BackendSandboxSpec(), BackendSandboxSpec(disk="16m"), BackendSandboxSpec(pool=1)]),
    )
    def run(steps: list[tuple[str, int]], spec: BackendSandboxSpec) -> None:
        family = Family(lambda one: one.dispatch(BackendToolCommandRun("date > now")), remove, lambda: None)
        family.held.append(Session.from_user_message("go").to("docker", spec=spec))
        family.go(steps)
        close_pools()
        until(lambda: left() == before, 10)
        assert slots(mine)._store.is_empty

    run()


def close_pools() -> None:
    ports.engine().run(registry.get("docker").close_pools())  # type: ignore[attr-defined]


LEFT_OPEN = """
import time
from rath import Session
from rath.backend import BackendToolCommandRun
session = Session.from_user_message("go").to("docker")
session.require_sandbox().dispatch(BackendToolCommandRun("echo 1 > f"))
snapshot = session.snapshot()
restored = session.restore(snapshot)
restored.require_sandbox()
waiting, copy = session.restore(snapshot), session.fork(sandbox="copy")
print(time.monotonic(), flush=True)
"""


@pytest.mark.docker
@pytest.mark.slow
def test_at_the_interpreters_end_containers_are_told_before_they_are_waited_for(docker_engine: DockerEngine) -> None:
    env = {**os.environ, "RATH_SANDBOX_IMAGE": BASE}
    ended = subprocess.run([sys.executable, "-W", "error", "-c", LEFT_OPEN], capture_output=True, text=True, env=env, check=True)
    # One that is not told is waited for in vain for 3 s, and the two one after the other.
    assert time.monotonic() - float(ended.stdout) < within(2)
    assert ended.stderr == ""
