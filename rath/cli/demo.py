"""``rath demo``: three agents fix a real failing test in overlapping branches.

What the agents say is scripted; every tool call runs, and which branch wins is decided by running the tests in it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rath.backend.types import BackendSandboxSpec, CommandResult
from rath.cli import signals
from rath.cli.console import Screen, Trouble, err, out, user_path
from rath.cli.demo_agents import BRANCHES, OPENING, DemoAgent, copy_project, scripted
from rath.cli.demo_story import Branch, Story, TestRun, as_json, honest, show, write_results
from rath.cli.placing import check_backend
from rath.cli.progress import RunWatch, cancel_all, follow, watch_live
from rath.core.home import openrath_home
from rath.display.text import count
from rath.flow.agent import Agent
from rath.flow.tool.builtin import flow_tool_command_run
from rath.flow.tool.edit import coding_tools
from rath.session.compress import run_session_compress
from rath.session.graph.lineage import collect
from rath.session.persistence.paths import session_file
from rath.session.primitives import create_system_session, create_user_session
from rath.session.session import Session

__all__ = ["run_demo"]

_TASK = "The tests of this project fail. Find out why, and mend it."
_TESTS_S = 60.0
_SUMMARY_LATENCY_S = 0.3


def run_demo(*, keep: Path | None, speed: float, json: bool, backend: str = "local") -> int:
    """Run the demo; 0 only if the tests pass in the branch that won."""
    check_backend(backend)
    screen = out()
    results = _results_directory(keep)
    try:
        with _workspace() as directory:
            story = _play(screen, directory, backend, speed, quiet=json)
            paths = write_results(story, results)
            if json:
                screen.json(as_json(story, paths))
            else:
                show(screen, story, paths)
    except _Interrupted as stop:
        with contextlib.suppress(OSError):  # after SIGHUP there may be nobody to tell
            err().line(f"interrupted; logs so far: {', '.join(map(str, stop.logs)) or 'none'}")
        return signals.exit_code()
    if story.winner is None:
        err().line(("error: ", "bold red"), "in no branch do the tests pass; the page has the transcripts")
        return 1
    return 0


class _Interrupted(Exception):
    def __init__(self, logs: list[Path]) -> None:
        super().__init__("interrupted")
        self.logs = logs


def _results_directory(keep: Path | None) -> Path:
    if keep is None:
        results = openrath_home() / "demo" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    else:
        results = user_path(keep).absolute()
    try:
        results.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Trouble(
            f"cannot make {results} for the results: {error.strerror or error}. Set OPENRATH_HOME, or name another "
            "place with --keep",
            code=1,
        ) from error
    return results


@contextmanager
def _workspace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rath-demo-", ignore_cleanup_errors=True) as directory:
        copy_project(Path(directory))
        yield Path(directory)


# -- what happens -----------------------------------------------------------------------------------------------------


def _play(screen: Screen, directory: Path, backend: str, speed: float, *, quiet: bool) -> Story:
    runs: list[Session] = []
    try:
        return _acts(screen, directory, backend, speed, runs, quiet=quiet)
    except KeyboardInterrupt:
        cancel_all(runs, f"interrupted by {signals.reason()}")
        raise _Interrupted([log for run in runs if (log := session_file(run.id)).exists()]) from None
    except BaseException as error:  # whoever read the output left, or the demo could not go on
        cancel_all(runs, f"the command ended: {type(error).__name__}")
        raise


def _acts(screen: Screen, directory: Path, backend: str, speed: float, runs: list[Session], *, quiet: bool) -> Story:
    say = _Narrator(screen, quiet)
    say.title(backend)
    task = create_user_session(_TASK).to(backend, spec=_spec(directory, backend))

    say.act(1, "One agent reproduces the failure.")
    opening = _agent(OPENING, speed)(task)
    runs.append(opening)
    opened = RunWatch(OPENING.name)
    if quiet:
        watch_live(screen, [opening], [opened], quiet=True)
    else:
        follow(screen, opening, opened)
    opening.synchronize()
    before = _run_tests(opening)
    if before.passed or before.ran == 0:
        raise Trouble(f"the demo's project should have failing tests here, but: {before}", code=1)

    say.act(2, "Three forks of that session, each with its own copy of the workspace, at the same time.")
    forks = [opening.fork(sandbox="copy") for _ in BRANCHES]
    attempts = [_agent(agent, speed)(fork) for agent, fork in zip(BRANCHES, forks, strict=True)]
    runs += attempts
    watches = [RunWatch(agent.name) for agent in BRANCHES]
    watch_live(screen, attempts, watches, quiet=quiet)
    branches = tuple(_judged(agent, s, w) for agent, s, w in zip(BRANCHES, attempts, watches, strict=True))
    winner = _winner(branches)
    say.verdicts(branches, winner)

    say.act(4, "The branches are merged, and an agent sums up what was found.")
    first = winner or branches[0]
    merged = first.session
    merges = []
    for branch in branches:
        if branch is not first:
            merged = merged.merge(branch.session)
            merges.append(merged)
    summariser = create_system_session("Sum up what the branches found.")
    provider = scripted([_findings(branches, winner)], latency_s=_SUMMARY_LATENCY_S / speed)
    summary = run_session_compress(merged, summariser, agent_provider=provider, persist=True)
    runs.append(summary)
    summary.synchronize()
    say.summary(summary)

    labels = {
        task.id: "task",
        opening.id: OPENING.name,
        summary.id: "findings",
        **{b.session.id: f"{b.agent.name}: {'pass' if b.tests.passed else 'fail'}" for b in branches},
    }
    nodes = collect([task, opening, *forks, *attempts, *merges, summariser, summary], labels=labels)
    return Story(backend, opening, opened, before, branches, winner, merged, summary, nodes)


def _agent(agent: DemoAgent, speed: float) -> Agent:
    return Agent(agent.prompt, agent.provider(speed), coding_tools(), max_tool_rounds=12, persist=True)


def _spec(directory: Path, backend: str) -> BackendSandboxSpec:
    quiet = {"PYTHONDONTWRITEBYTECODE": "1"}
    if backend != "local":
        return BackendSandboxSpec(workspace=directory, env=quiet)
    # The Python that runs rath is there for sure; one on the PATH may not be, or be an old one.
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return BackendSandboxSpec(working_dir=str(directory), env={"PATH": path, **quiet})


def _judged(agent: DemoAgent, session: Session, seen: RunWatch) -> Branch:
    error = session.exception()
    if error is not None:
        raise error
    diff = session.workspace_diff()
    touched = tuple(p for p in (*diff.added, *diff.removed, *diff.modified) if p.startswith("tests/"))
    return Branch(agent, session, seen, _run_tests(session, touched), diff)


def _run_tests(session: Session, touched: tuple[str, ...] = ()) -> TestRun:
    """Run the project's tests in the session's own sandbox: what an agent says of them counts for nothing."""
    result = flow_tool_command_run(session, [_python(session), "-B", "-m", "unittest"], timeout=_TESTS_S)
    if not isinstance(result, CommandResult):
        raise Trouble(f"the tests could not be run: {result}", code=1)
    said = result.stderr.decode("utf-8", "replace")
    ran = re.search(r"^Ran (\d+) tests?\b", said, re.MULTILINE)
    failed = re.search(r"^FAILED \((.*)\)$", said, re.MULTILINE)
    numbers = re.findall(r"(?:failures|errors)=(\d+)", failed[1]) if failed else []
    return TestRun(int(ran[1]) if ran else 0, sum(map(int, numbers)), result.exit_code, touched)


def _python(session: Session) -> str:
    return sys.executable if session.sandbox_backend == "local" else "python3"


def _winner(branches: Sequence[Branch]) -> Branch | None:
    passing = [branch for branch in branches if branch.tests.passed]
    return min(passing, key=lambda branch: (branch.seen.tokens, branch.seen.turn), default=None)


def _findings(branches: Sequence[Branch], winner: Branch | None) -> str:
    lines = [f"- {branch.agent.name} ({branch.tests}): {branch.seen.text}" for branch in branches]
    verdict = "No branch mended it." if winner is None else f"Take the change of “{winner.agent.name}”."
    return "\n".join([*lines, verdict])


# -- what is shown ----------------------------------------------------------------------------------------------------


class _Narrator:
    def __init__(self, screen: Screen, quiet: bool) -> None:
        self._screen = screen
        self._quiet = quiet

    def _line(self, *parts: Any) -> None:
        if not self._quiet:
            self._screen.line(*parts)

    def title(self, backend: str) -> None:
        self._line(("rath demo", "bold"), ": three agents and a test that fails")
        if not self._quiet:
            self._screen.prose((honest(backend), "dim"))

    def act(self, number: int, text: str) -> None:
        self._line()
        self._line((f"{number}  ", "bold cyan"), (text, "bold"))

    def verdicts(self, branches: Sequence[Branch], winner: Branch | None) -> None:
        self.act(3, "The tests decide: rath runs them in each branch's workspace.")
        wide = max(len(str(branch.tests)) for branch in branches)
        for branch in branches:
            mark = ("✓ ", "green") if branch.tests.passed else ("✗ ", "red")
            cost = f"  {count(branch.seen.turn, 'turn')}, {branch.seen.tokens:,} tokens"
            won = ("  ← taken: passes with the fewest tokens", "green") if branch is winner else ""
            self._line(mark, f"{branch.agent.name:11} {branch.tests!s:{wide}}", (cost, "dim"), won)

    def summary(self, summary: Session) -> None:
        if not self._quiet:
            self._screen.prose(summary.chunk_table[0].text or "")
