"""The demo's story when it is over: on the screen, as a page, as JSON, and as files to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from rath.backend.types import WorkspaceDiff
from rath.cli.console import Screen, own_command
from rath.cli.demo_agents import OPENING, DemoAgent, copy_project
from rath.cli.progress import RunWatch
from rath.core.redact import redact_text
from rath.display.html import Section, html_page
from rath.display.svg import lineage_svg, short_id
from rath.display.text import count, duration
from rath.display.tree import lineage_tree
from rath.llm.types import RathLLMTokenUsage
from rath.session.graph.lineage import LineageNode, total_usage
from rath.session.persistence.paths import session_file
from rath.session.session import Session

__all__ = ["Branch", "Story", "TestRun", "as_json", "honest", "show", "write_results"]

_HOST = (
    "It runs on this machine itself, in `local`, which has no isolation: only `rath demo`, whose commands are known, "
    "chooses that for you."
)


def honest(backend: str) -> str:
    """What of the demo is real, and where that runs."""
    where = _HOST if backend == "local" else f"It runs in sandboxes of the backend `{backend}`."
    return f"The agents are scripted: what they say was written beforehand. Every tool call is real. {where}"


@dataclass(frozen=True, slots=True)
class TestRun:
    """What the project's tests said in one workspace, when the demo itself ran them there."""

    __test__ = False  # pytest, it is none of yours

    ran: int
    failed: int
    exit_code: int
    touched: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all tests passed and are still the project's own."""
        return self.exit_code == 0 and self.ran > 0 and self.failed == 0 and not self.touched

    def __str__(self) -> str:
        if self.touched:
            return f"changed the tests ({', '.join(self.touched)}), so they prove nothing"
        if self.passed:
            return f"all {count(self.ran, 'test')} pass"
        if self.ran == 0:
            return f"no test ran (exit code {self.exit_code})"
        if self.failed == 0:
            return f"no test failed, but the run of {count(self.ran, 'test')} ended with exit code {self.exit_code}"
        return f"{self.failed} of {count(self.ran, 'test')} fail{'s' if self.failed == 1 else ''}"


@dataclass(frozen=True, slots=True)
class Branch:
    """One agent's attempt, when it is over."""

    agent: DemoAgent
    session: Session
    seen: RunWatch
    tests: TestRun
    diff: WorkspaceDiff


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that happened, for the screen, the page and JSON alike."""

    backend: str
    opening: Session
    opened: RunWatch
    before: TestRun
    branches: tuple[Branch, ...]
    winner: Branch | None
    merged: Session
    summary: Session
    nodes: list[LineageNode]

    @property
    def wall_s(self) -> float:
        """From the first branch's start to the last one's end, by their events."""
        return max(b.seen.ended or 0.0 for b in self.branches) - min(b.seen.began or 0.0 for b in self.branches)

    @property
    def sum_s(self) -> float:
        """The branches' times added up: what they take one after the other."""
        return sum(b.seen.seconds for b in self.branches)

    @property
    def times(self) -> str:
        return f"three branches in {duration(self.wall_s)}; one after the other: {duration(self.sum_s)}"

    @property
    def tokens(self) -> str:
        usage = total_usage(self.nodes) or RathLLMTokenUsage(0, 0, 0)
        return f"{usage.total_tokens:,} (estimated at four characters each)"

    @property
    def logs(self) -> list[Path]:
        runs = [self.opening, *(branch.session for branch in self.branches), self.summary]
        return [session_file(session.id) for session in runs]


def show(screen: Screen, story: Story, paths: dict[str, Path]) -> None:
    """Print lineage, fix, times and where everything is."""
    _heading(screen, "Lineage")
    for line in lineage_tree(story.nodes).splitlines():
        screen.line(line)
    if story.winner is not None:
        _heading(screen, "The fix")
        screen.diff(story.winner.diff.text)
    _heading(screen, "Results")
    screen.line(("time    ", "dim"), story.times)
    screen.line(("tokens  ", "dim"), story.tokens)
    for name, path in paths.items():
        screen.line((f"{name:8}", "dim"), str(path))
    for place, log in enumerate(story.logs):
        screen.line(("logs    " if place == 0 else "        ", "dim"), str(log))
    last = story.winner or story.branches[0]
    screen.line()
    screen.line("Look at one: ", (f"{own_command()} sessions show {short_id(last.session.id)}", "bold"))


def _heading(screen: Screen, text: str) -> None:
    screen.line()
    screen.line((text, "bold cyan"))


def write_results(story: Story, results: Path) -> dict[str, Path]:
    """Write the page, the graph, the patch, and the project that it applies to; their paths by name."""
    copy_project(results / "project")
    paths = {"page": results / "index.html", "graph": results / "lineage.svg", "project": results / "project"}
    marked = [] if story.winner is None else [story.winner.session.id]
    paths["page"].write_text(_page(story, marked), encoding="utf-8")
    paths["graph"].write_text(lineage_svg(story.nodes, marked=marked), encoding="utf-8")
    if story.winner is not None:
        paths["patch"] = results / "fix.patch"
        paths["patch"].write_text(redact_text(story.winner.diff.text), encoding="utf-8", newline="\n")
    return paths


def _page(story: Story, marked: Sequence[UUID]) -> str:
    winner = story.winner
    facts = [
        ("before", str(story.before)),
        *((branch.agent.name, str(branch.tests)) for branch in story.branches),
        ("taken", "nothing" if winner is None else f"{winner.agent.name}: it passes with the fewest tokens"),
        ("time", story.times),
        ("tokens", story.tokens),
    ]
    sections = [_section(story.opening, OPENING.name, story.opened)]
    for branch in story.branches:
        notes = (f"The tests, run by rath in this branch's workspace: {branch.tests}.",)
        shared = len(story.opening.chunk_table)
        sections.append(_section(branch.session, branch.agent.name, branch.seen, notes, branch.diff.text, shared))
    sections.append(_section(story.summary, "findings", None))
    return html_page(
        "rath demo: three agents and a test that fails",
        intro=(honest(story.backend).replace("`", ""),),
        facts=facts,
        nodes=story.nodes,
        marked=marked,
        diff=None if winner is None else (f"The fix, by “{winner.agent.name}”", winner.diff.text),
        sections=sections,
    )


def _section(
    session: Session,
    title: str,
    seen: RunWatch | None,
    notes: tuple[str, ...] = (),
    diff: str = "",
    inherited: int = 0,
) -> Section:
    return Section(
        session.id,
        title,
        session.partial,
        inherited=inherited,
        status=session.status,
        usage=session.cumulative_usage,
        wall_s=None if seen is None else seen.seconds,
        notes=notes,
        log=str(session_file(session.id)),
        diff=diff,
    )


def as_json(story: Story, paths: dict[str, Path]) -> dict[str, Any]:
    """The story for programs."""
    return {
        "ok": story.winner is not None,
        "agents": "scripted",
        "backend": story.backend,
        "before": {"ran": story.before.ran, "failed": story.before.failed},
        "branches": [
            {
                "name": branch.agent.name,
                "session_id": str(branch.session.id),
                "passed": branch.tests.passed,
                "tests": {"ran": branch.tests.ran, "failed": branch.tests.failed},
                "turns": branch.seen.turn,
                "tool_calls": branch.seen.tools,
                "total_tokens": branch.seen.tokens,
                "seconds": round(branch.seen.seconds, 3),
                "says": branch.seen.text,
                "diff": branch.diff.text,
                "log": str(session_file(branch.session.id)),
            }
            for branch in story.branches
        ],
        "winner": None if story.winner is None else story.winner.agent.name,
        "findings": story.summary.chunk_table[0].text,
        "wall_s": round(story.wall_s, 3),
        "sum_s": round(story.sum_s, 3),
        "logs": [str(log) for log in story.logs],
        **{name: str(path) for name, path in paths.items()},
    }
