"""Whatever happens to the sessions of a placement, its sandbox opens once and stops once: when the last reference goes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rath import Session, gather, run_session_loop
from rath.core import ports
from rath.errors import RunCancelled, SandboxError
from rath.testing import ScriptedClient
from tests.backend.memory import Die, MemoryBackend, Sleep, fresh_memory

AGENT = Session.from_agent_prompt("x")
# One tool call that opens the sandbox, and one reply; slow enough to be cancelled in between.
SCRIPT = [{"tool_calls": [{"name": "workspace_path_exists", "arguments": {"path": "x"}}]}, "done"]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["fork", "detach", "user", "loop", "cancel", "use", "close", "forget", "with", "crash", "await"]),
        st.integers(0, 30),
    ),
    min_size=1,
    max_size=25,
)


@dataclass
class Family:
    """The sessions derived from one placement that somebody still holds."""

    held: list[Session] = field(default_factory=list)
    running: list[Session] = field(default_factory=list)

    def step(self, what: str, which: int) -> None:
        if not self.held:
            return
        one = self.held[which % len(self.held)]
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
                self.quietly(lambda: one.require_sandbox().dispatch(Sleep(0)))
            case "crash":
                self.quietly(lambda: one.require_sandbox().dispatch(Die()))
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

    def quietly(self, use: object) -> None:
        """What was closed or broken before says so, which is not the question here."""
        try:
            use()  # type: ignore[operator]
        except SandboxError:
            pass

    def settle(self) -> None:
        for outcome in gather(*self.running, return_exceptions=True):
            assert not isinstance(outcome, BaseException) or isinstance(outcome, (RunCancelled, SandboxError)), outcome
        self.running.clear()


@pytest.fixture(scope="module")
def memory() -> Iterator[MemoryBackend]:
    with fresh_memory() as backend:
        yield backend


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_a_sandbox_stops_exactly_once_when_the_last_reference_goes(memory: MemoryBackend, steps: list[tuple[str, int]]) -> None:
    memory.reset()
    family = Family([Session.from_user_message("go").to("memory-for-tests")])
    for what, which in steps:
        family.step(what, which)
        if family.held:
            assert memory.closed == 0, "closed under somebody who holds it"
    family.settle()
    family.held.clear()
    gc.collect()
    engine = ports.engine()
    for _ in range(3):
        engine.run(_nothing())
    assert memory.opened <= 1
    assert memory.closed == memory.opened


async def _nothing() -> None:
    pass
