"""``rath graph``: the lineage of logged sessions, in the terminal and for other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import networkx
import pytest

from rath import Session, gather, register_price, run_session_loop
from rath.llm import Provider, RathLLMTokenUsage
from rath.testing import Reply, ScriptedClient
from tests.cli.support import CONTROL, Ran, rath_at_a_terminal

Rath = Callable[..., Ran]
HOSTILE = "m\x1b]8;;http://evil.example\x07<script>\x1b[31m"


def model(*texts: str, name: str = "graph-test-1") -> Provider:
    used = RathLLMTokenUsage(1_000_000, 0, 1_000_000)
    return ScriptedClient([Reply(text=text, usage=used) for text in texts], model=name).as_provider()


@pytest.fixture
def runs(rath_here: Rath) -> dict[str, Session]:
    """Two logged branches of a question and what came of their merge; all in the home that ``rath_here`` uses."""
    register_price("graph-test-1", input_usd_per_mtok=2.0, output_usd_per_mtok=0.0)
    agent, question = Session.from_agent_prompt("be"), Session.from_user_message("go")
    a, b = (run_session_loop(question.fork(), agent, agent_provider=model("x"), persist=True) for _ in range(2))
    gather(a, b)
    end = run_session_loop(a.merge(b).user("more"), agent, agent_provider=model("y", name=HOSTILE), persist=True)
    end.synchronize()
    return {"question": question, "a": a, "b": b, "end": end}


def test_the_tree_says_status_cost_and_time(rath_here: Rath, runs: dict[str, Session]) -> None:
    done = rath_here("graph")
    assert done.code == 0
    assert CONTROL.search(done.out.replace("\n", "")) is None
    (line,) = (line for line in done.out.splitlines() if f"✓ {runs['a'].id.hex[:8]}" in line)
    assert "2 rows" in line
    assert "$2.0000" in line
    assert line.rstrip().endswith("s")  # how long it took
    assert f"(joins {runs['a'].id.hex[:8]}, {runs['b'].id.hex[:8]})" in done.out
    last = done.out.splitlines()[-1]
    assert "3,000,000 tokens" in last
    assert "$4.0000 and 1 run without a price" in last


def test_sessions_that_were_never_logged_stand_between_those_that_were(rath_here: Rath, runs: dict[str, Session]) -> None:
    known = {row["id"]: row for row in rath_here("graph", "--json").json["sessions"]}
    (fork,) = known[str(runs["a"].id)]["parents"][:1]
    assert known[fork]["operator"] == "Session.fork"
    assert known[fork]["parents"] == [str(runs["question"].id)]


def test_one_session_is_shown_with_what_it_came_from_and_what_came_of_it(rath_here: Rath, runs: dict[str, Session]) -> None:
    whole = {row["id"] for row in rath_here("graph", "--json").json["sessions"]}
    around_a = {row["id"] for row in rath_here("graph", str(runs["a"].id)[:13], "--json").json["sessions"]}
    assert str(runs["b"].id) in whole - around_a
    assert {str(runs[name].id) for name in ("question", "a", "end")} <= around_a


def test_conditions_pick_sessions(rath_here: Rath, runs: dict[str, Session]) -> None:
    found = rath_here("graph", "--model", "graph-test-1", "--json").json["sessions"]
    assert {row["id"] for row in found} == {str(runs["a"].id), str(runs["b"].id)}
    assert "no session is like this" in rath_here("graph", "--status", "failed").out
    assert rath_here("graph", "--since", "not a time").code == 2


def test_every_form_is_written_where_it_was_asked_for(rath_here: Rath, runs: dict[str, Session], tmp_path: Path) -> None:
    done = rath_here("graph", "--html", "g.html", "--svg", "g.svg", "--graphml", "g.xml", "--otlp", "o.json", "--jsonl", "g.jsonl")
    assert (done.code, done.out) == (0, "")
    assert str(runs["end"].id) in (tmp_path / "g.jsonl").read_text()
    assert (tmp_path / "g.svg").read_text().startswith("<svg")
    assert "<!doctype html" in (tmp_path / "g.html").read_text()[:100].lower()
    graph = networkx.read_graphml(tmp_path / "g.xml")
    assert json.loads((tmp_path / "o.json").read_text())["resourceSpans"]
    assert len(graph) == len((tmp_path / "g.jsonl").read_text().splitlines())
    for form, start in (("--dot", "digraph"), ("--mermaid", "flowchart")):
        assert rath_here("graph", form).out.startswith(start)


def test_what_cannot_be_done_is_one_line(rath_here: Rath, runs: dict[str, Session]) -> None:
    for arguments, code in (
        (("graph", "nosuch"), 2),
        (("graph", "--dot", "--json"), 2),
        (("graph", "--dir", "missing"), 1),
        (("graph", "--svg", "/proc/nothing/x.svg"), 1),
    ):
        done = rath_here(*arguments)
        assert (done.code, done.out) == (code, "")
        assert done.err.count("\n") == 1


def test_without_logs_it_says_how_to_get_some(rath_here: Rath) -> None:
    assert "persist=True" in rath_here("graph").out


@pytest.mark.slow
def test_a_person_gets_the_end_of_a_large_tree_and_the_way_to_all_of_it(rath_here: Rath, tmp_path: Path) -> None:
    agent, question = Session.from_agent_prompt("be"), Session.from_user_message("go")
    gather(*(run_session_loop(question, agent, agent_provider=model("x"), persist=True) for _ in range(250)))
    _, shown = rath_at_a_terminal(tmp_path, "graph")
    assert "earlier lines" in shown
    assert "earlier lines" not in rath_at_a_terminal(tmp_path, "graph", "--all")[1]
    assert len(rath_here("graph").out.splitlines()) == 252
