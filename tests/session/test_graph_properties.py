"""Whatever a program does, its graph is whole, its sums are right, its questions are answered as by brute force, and its
logs tell the same graph as its memory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rath.session import lineage, validate_acyclic
from rath.session.graph.kind import LineageKind
from rath.session.graph.model import SessionGraph
from rath.session.graph.sums import Total
from rath.session.primitives import create_user_session
from rath.session.session import Session
from tests.session.graphs import answer, compressed, home_at

# A step: what is done, to which of the sessions so far, and whether the run is logged.
Step = tuple[str, int, int, bool]
steps = st.lists(
    st.tuples(
        st.sampled_from(["user", "append", "fork", "fork", "merge", "merge", "detach", "loop", "loop", "loop", "compress"]),
        st.integers(0, 1000),
        st.integers(0, 1000),
        st.booleans(),
    ),
    min_size=1,
    max_size=24,
)


@dataclass
class Program:
    """What a program made.

    Attributes:
        tokens: of each run.
        trails: of each session, for each row the sessions through which it came to that place.
        logged: whose runs have logs.
    """

    sessions: list[Session] = field(default_factory=list)
    tokens: dict[int, int] = field(default_factory=dict)
    trails: list[list[frozenset[int]]] = field(default_factory=list)
    parents: list[tuple[int, ...]] = field(default_factory=list)
    logged: list[int] = field(default_factory=list)


def run(program: list[Step]) -> Program:
    made = Program()
    for step in [("user", 0, 0, False), *program]:
        _run_step(made, *step)
    for session in made.sessions:
        session.synchronize(30)
    return made


def _run_step(made: Program, what: str, first: int, second: int, logged: bool) -> None:
    here = len(made.sessions)
    a = first % here if here else 0
    b = second % here if here else 0
    parents: tuple[int, ...] = (a,)
    added = 1
    carried = made.trails[a] if here else []
    if what == "user":
        session, parents, carried = create_user_session(f"task {here}"), (), []
    elif what == "append":
        session = made.sessions[a].user(f"and {here}")
    elif what == "fork":
        session, added = made.sessions[a].fork(), 0
    elif what == "merge":
        session, parents, added = made.sessions[a].merge(made.sessions[b]), (a, b), len(made.trails[b])
    elif what == "detach":
        session, parents, carried, added = made.sessions[a].detach(), (), [], len(made.trails[a])
    else:
        made.tokens[here] = 10 + here
        if what == "loop":
            session = answer(made.sessions[a], text=f"answer {here}", tokens=10 + here, persist=logged)
        else:
            session = compressed(made.sessions[a], text=f"short {here}", tokens=10 + here, persist=logged)
            carried = []
        if logged:
            made.logged.append(here)
    made.sessions.append(session)
    made.parents.append(parents)
    made.trails.append([trail | {here} for trail in carried] + [frozenset({here})] * added)


def history(made: Program, at: int) -> set[int]:
    """A session and everything it was made from."""
    found, waiting = set(), [at]
    while waiting:
        place = waiting.pop()
        if place not in found:
            found.add(place)
            waiting.extend(made.parents[place])
    return found


def begins_with(made: Program, at: int) -> set[int]:
    """The sessions all of whose rows came to ``at`` in their own places."""
    return {
        other
        for other in history(made, at)
        if len(made.trails[other]) <= len(made.trails[at])
        and all(other in trail for trail in made.trails[at][: len(made.trails[other])])
    }


def check_whole(graph: SessionGraph) -> None:
    validate_acyclic(graph.by_id)
    places = {node.id: at for at, node in enumerate(graph)}
    assert len(places) == len(graph)
    assert len(graph.edges) == sum(len(node.parents) for node in graph)
    for node in graph:
        assert all(places[parent] < places[node.id] for parent in node.parents)
        assert len(node.roles) == len(node.parents)


def check_sums(made: Program, graph: SessionGraph) -> None:
    own = {made.sessions[at].id: tokens + 1 for at, tokens in made.tokens.items()}
    assert {node.id: node.usage.total_tokens for node in graph if node.usage is not None} == own
    assert graph.total() == Total(sum(own.values()))
    subtree = graph.subtree_totals()
    for at, session in enumerate(made.sessions):
        charged = sum(made.tokens[place] + 1 for place in history(made, at) if place in made.tokens)
        assert graph.subtree_total(session) == subtree[session.id] == Total(charged)


def check_questions(made: Program, graph: SessionGraph) -> None:
    number = {session.id: at for at, session in enumerate(made.sessions)}
    histories = [history(made, at) for at in range(len(made.sessions))]
    prefixes = [begins_with(made, at) for at in range(len(made.sessions))]
    for a, b in combinations_with_replacement(range(len(made.sessions)), 2):
        one, other = made.sessions[a], made.sessions[b]
        shared = prefixes[a] & prefixes[b]
        # The longest; of those with the same rows the last that was made from the others.
        expected = max(shared, key=lambda at: (len(made.trails[at]), len(histories[at])), default=None)
        found = graph.fork_point(one, other)
        assert (None if found is None else number[found.id]) == expected
        assert graph.fork_point(other, one) == found
        common = histories[a] & histories[b]
        ancestor = graph.common_ancestor(one, other)
        assert (ancestor is None) == (not common)
        if ancestor is not None:
            lowest = {at for at in common if not any(at in histories[below] - {below} for below in common)}
            assert number[ancestor.id] in lowest
            assert graph.common_ancestor(other, one) == ancestor
        way = graph.path(one, other)
        assert bool(way) == (a in histories[b] or b in histories[a])
        if way:
            assert (way[0].id, way[-1].id) == (one.id, other.id)
            assert all(x.id in y.parents or y.id in x.parents for x, y in zip(way, way[1:], strict=False))


def check_branches(graph: SessionGraph) -> None:
    inside = [node for branch in graph.branches() for node in branch]
    instruct = {node.id for node in graph if node.kind is LineageKind.LEAF_SYSTEM}
    assert sorted(node.id for node in inside) == sorted(node.id for node in graph if node.id not in instruct)
    for branch in graph.branches():
        for before, after in zip(branch, branch[1:], strict=False):
            assert [parent for parent in after.parents if parent not in instruct] == [before.id]
            assert [child for child in graph.children(before) if child.id not in instruct] == [after]


def check_program(program: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory, home_at(Path(directory) / "home"):
        made = run(program)
        graph = lineage(made.sessions)
        check_whole(graph)
        check_sums(made, graph)
        check_questions(made, graph)
        check_branches(graph)
        # Of the sessions that have logs, and what they descend from, logs know all that memory knows.
        logged = [made.sessions[at] for at in made.logged]
        assert list(lineage()) == list(lineage(logged))
        assert len(lineage()) == len({place for at in made.logged for place in history(made, at)}) + sum(
            1 for node in lineage() if node.kind is LineageKind.LEAF_SYSTEM
        )


CHECKS = [HealthCheck.too_slow]


# Two runs that share one, merged, merged again with what is in it already, compressed, copied without descent.
KNOTTED: list[Step] = [
    *(("loop", 0, 0, True), ("fork", 1, 0, False), ("loop", 2, 0, False), ("append", 1, 0, False), ("loop", 4, 0, True)),
    *(("merge", 3, 5, False), ("merge", 6, 3, False), ("compress", 7, 0, True), ("detach", 7, 0, False)),
    *(("loop", 9, 0, True), ("merge", 10, 8, False), ("merge", 11, 11, False), ("loop", 12, 0, True)),
]


@given(steps)
@example(KNOTTED)
@settings(max_examples=8, deadline=None, suppress_health_check=CHECKS)
def test_a_random_program_has_a_whole_graph_the_same_from_memory_and_from_logs(program: list[Step]) -> None:
    check_program(program)


@pytest.mark.slow
@given(steps)
@settings(max_examples=120, deadline=None, suppress_health_check=CHECKS)
def test_many_random_programs_have_whole_graphs_the_same_from_memory_and_from_logs(program: list[Step]) -> None:
    check_program(program)
