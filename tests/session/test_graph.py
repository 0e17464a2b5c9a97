"""The lineage graph of sessions of this process: nodes, names, questions, totals, tables; live, and holding nothing alive."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest

import rath
from rath.core.redact import REDACTED, register_secret
from rath.errors import LineageConsistencyError, UsageTypeError, UsageValueError
from rath.llm.pricing import register_price
from rath.llm.scripted import ScriptedClient
from rath.llm.types import RathLLMTokenUsage
from rath.session import (
    LineageRecorder,
    ancestors_bfs,
    descendants_dfs_preorder,
    edge_pairs,
    lineage,
    lineage_journal_tracking,
    lineage_view_dataclass,
    operator,
    run_session_loop,
    session_registry,
    validate_acyclic,
)
from rath.session.graph.export import export_journal_jsonl, export_jsonl, export_jsonl_string, session_to_jsonl_row
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode, collect
from rath.session.graph.model import Edge, SessionGraph
from rath.session.graph.record import LineageRecord
from rath.session.graph.sums import Total
from rath.session.graph.tables import COLUMNS
from rath.session.manager import SessionRegistry
from rath.session.primitives import create_system_session, create_user_session
from rath.session.session import Session
from rath.testing.pace import within
from tests.session.graphs import answer, compressed, family


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENRATH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def labels(nodes):
    return [node.label for node in nodes]


def chain(length: int) -> list[LineageNode]:
    first = uuid4().int & ~0xFFFFFFFF
    ids = [UUID(int=first + n) for n in range(length)]
    return [
        LineageNode(
            ids[n],
            ids[n - 1 : n] if n == 0 else (ids[n - 1],),
            "Session.fork",
            LineageKind.OP_FORK,
            "completed",
            roles=() if n == 0 else ("parent",),
        )
        for n in range(length)
    ]


# -- nodes, edges, names ------------------------------------------------------------------------------------------------


def test_a_graph_has_every_ancestor_once_parents_first_and_each_edge_with_its_role():
    made = family()
    graph = lineage(made["end"])
    places = {node.id: at for at, node in enumerate(graph)}
    assert len(places) == len(graph) == 10
    assert {edge.role for edge in graph.edges} == {"user", "system", "parent", "merge"}
    assert all(places[edge.parent] < places[edge.child] for edge in graph.edges)
    merged, a, b = made["merged"].id, made["a"].id, made["b"].id
    assert [edge for edge in graph.edges if edge.child == merged] == [Edge(a, merged, "parent"), Edge(b, merged, "merge")]
    assert [edge.role for edge in graph.edges if edge.child == a] == ["user", "system"]
    assert graph.parents(merged) == (graph[a], graph[b])
    assert graph.children(made["task"]) == (graph[made["left"]], graph[made["right"]])


def test_what_does_not_depend_on_each_other_stands_in_the_order_of_time():
    sessions = [create_user_session(str(n)) for n in range(8)]
    assert [node.id for node in lineage(reversed(sessions))] == [session.id for session in sessions]


def test_a_node_tells_of_its_run():
    before = datetime.now(UTC) - timedelta(seconds=1)
    session = answer(create_user_session("Go."), latency_s=0.05)
    session.synchronize(10)
    node = lineage(session)[session]
    assert (node.operator, node.kind, node.status, node.rows) == (
        "run_session_loop",
        LineageKind.OP_SESSION_LOOP,
        "completed",
        2,
    )
    assert node.usage == RathLLMTokenUsage(10, 1, 11)
    assert (node.model, node.cost_usd, node.verdict, node.path, node.sandbox) == ("model-a", None, None, None, None)
    assert node.created_at is not None
    assert before < node.created_at < datetime.now(UTC)
    assert node.duration_s is not None
    assert 0.05 <= node.duration_s < 5
    assert node.digest == session.digest.hex()


def test_nodes_say_where_their_sessions_were_placed_and_what_workspace_they_began_with(tmp_path):
    task = create_user_session("Go.").to("local", spec=str(tmp_path))
    task.to("bwrap")  # thrown away: changes nothing
    left = answer(task.fork())
    left.synchronize(10)
    graph = lineage(left)
    assert {node.label: node.sandbox for node in graph} == {"user": "local", "fork": "local", "loop": "local", "system": None}
    copied = LineageNode(uuid4(), extras=(("workspace_layer", "abc"),))
    assert copied.snapshot is None  # as given
    record = LineageRecord(uuid4(), operator="Session.fork", kind=LineageKind.OP_FORK, extras=(("workspace_layer", "abc"),))
    child = Session(task.chunk_table).with_lineage((), "x", LineageKind.OP_FORK, record.extras)
    assert lineage(child)[child].snapshot == "abc"


def test_a_session_is_named_by_itself_its_id_its_text_or_the_start_of_it():
    made = family()
    graph = lineage(made["end"])
    node = graph[made["a"]]
    for name in (made["a"].id, str(made["a"].id), made["a"].id.hex, str(made["a"].id)[:12], made["a"].id.hex[:9].upper(), node):
        assert graph[name] is node
        assert name in graph


def test_an_unknown_or_ambiguous_name_is_refused_with_what_to_do():
    nodes = chain(3)
    graph = SessionGraph(nodes)
    start = nodes[0].id.hex[:20]
    with pytest.raises(UsageValueError, match=f"several sessions have ids that begin with '{start}': {nodes[0].id}, {nodes[1].id}.*Give more"):
        graph[start]
    with pytest.raises(UsageValueError, match=f"no session {UUID(int=5)} among the 3 of this graph"):
        graph.ancestors(UUID(int=5))
    with pytest.raises(UsageValueError, match="'zz'"):
        graph.path("zz", nodes[0])
    with pytest.raises(UsageValueError, match="empty"):
        graph[" "]
    with pytest.raises(UsageTypeError, match="not by int"):
        graph[5]
    assert [name in graph for name in (start, UUID(int=5), "zz", "", 5, None)] == [False] * 6


def test_what_is_no_source_is_refused_with_the_remedy():
    for wrong in (5, "some/dir", b"x", {"a": 1}):
        with pytest.raises(UsageTypeError, match="dir="):
            lineage(wrong)
    with pytest.raises(UsageTypeError, match="one of those given is str"):
        lineage(["x"])


def test_a_parent_that_is_known_by_its_id_alone_is_a_node_too():
    gone = uuid4()
    child = Session(create_user_session("x").chunk_table, parent_session_ids=(gone,), lineage_operator="import")
    graph = lineage(child)
    assert graph.edges == (Edge(gone, child.id, "parent"),)
    assert (graph[gone].status, graph[gone].label) == ("unknown", "elsewhere")
    assert graph.total("tokens") == Total(None, 1)


def test_a_graph_is_a_value():
    made = family()
    assert lineage(made["end"]) == lineage([made["a"], made["end"]])
    assert hash(lineage(made["end"])) == hash(lineage(made["end"]))
    assert lineage(made["a"]) != lineage(made["b"])
    with pytest.raises(AttributeError):
        lineage(made["a"]).nodes = ()  # type: ignore[misc]


def test_labels_and_folded_appends():
    made = family()
    graph = lineage(made["end"], labels={made["a"].id: "the good one"}, fold_appends=True)
    assert graph[made["a"]].label == "the good one"
    assert made["right"] not in graph
    assert graph[made["b"]].folded == 1
    assert graph.parents(made["b"])[0].id == made["task"].id
    assert graph[made["b"]].roles == ("user", "system")
    plain = Session.from_user_message("x")
    loop = answer(plain, agent=Session.from_agent_prompt("y"))
    assert sorted(labels(lineage(loop))) == ["loop", "system", "user"]


def test_networkx_sees_the_same_graph_and_cannot_change_it():
    import networkx

    made = family()
    graph = lineage(made["end"])
    view = graph.nx
    assert set(view.edges) == {(edge.parent, edge.child) for edge in graph.edges}
    assert view.edges[made["b"].id, made["merged"].id] == {"role": "merge"}
    assert view.nodes[made["a"].id]["total_tokens"] == 11
    assert networkx.is_directed_acyclic_graph(view)
    with pytest.raises(networkx.NetworkXError, match="[Ff]rozen"):
        view.add_node(1)


def test_building_and_asking_loads_neither_networkx_nor_pandas():
    code = (
        "import sys, rath; s = rath.Session.create('user', 'x').fork(); g = rath.lineage(s); g.total(); g.tables(); g.branches()\n"
        "print(*(name for name in ('networkx', 'pandas') if name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_the_documented_helpers_work_on_a_graph():
    made = family()
    graph = lineage(made["end"])
    validate_acyclic(graph.by_id)
    assert set(ancestors_bfs(graph.by_id, made["end"].id)) == {node.id for node in graph.ancestors(made["end"])}
    assert set(descendants_dfs_preorder(graph.by_id, made["task"].id)) == {n.id for n in graph.descendants(made["task"])}
    assert set(edge_pairs(graph.by_id)) == {(edge.parent, edge.child) for edge in graph.edges}
    view = lineage_view_dataclass(graph[made["merged"]])
    assert (view.lineage_operator, view.lineage_kind_str) == ("Session.merge", "op_merge")
    with pytest.raises(LineageConsistencyError):
        ancestors_bfs(graph.by_id, uuid4())


def test_nodes_made_by_hand_have_edges_without_roles():
    a, b = uuid4(), uuid4()
    assert SessionGraph([LineageNode(a), LineageNode(b, parents=(a,))]).edges == (Edge(a, b, "parent"),)


def test_a_journal_exports_what_is_alive_whether_a_run_was_asked_for_it_or_not(tmp_path):
    with lineage_journal_tracking() as journal:
        task = create_user_session("Go.")
        fork = task.fork()
        stamped = LineageRecorder.stamp_new_session(
            fork.detach(), parent_session_ids=(task.id,), lineage_operator="by hand", lineage_kind=LineageKind.OP_FORK
        )
    export_journal_jsonl(journal, tmp_path / "all.jsonl", skip_unknown=False)
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(one) for one in (task.id, fork.id, stamped.id, stamped.id)]
    assert all(session_registry().get(one.id) is None for one in (task, fork, stamped))
    del fork
    gc.collect()
    with pytest.raises(KeyError, match="not alive any more"):
        export_journal_jsonl(journal, tmp_path / "all.jsonl", skip_unknown=False)


def test_what_is_stamped_by_hand_has_a_kind_and_parents_that_are_some():
    task = create_user_session("Go.")
    how = {"parent_session_ids": (), "lineage_operator": "o", "lineage_kind": "op_fork"}
    assert LineageRecorder.stamp_new_session(task, **how).lineage_kind is LineageKind.OP_FORK
    with pytest.raises(UsageValueError, match="no kind"):
        LineageRecorder.stamp_new_session(task, **(how | {"lineage_kind": "op_nothing"}))
    with pytest.raises(UsageTypeError, match="by its UUID"):
        LineageRecorder.stamp_new_session(task, **(how | {"parent_session_ids": ("x",)}))


def test_a_row_of_a_journal_is_json_whatever_the_extras_hold(tmp_path, monkeypatch):
    session_id = uuid4()
    extras = (("bytes", b"x"), ("id", session_id), ("nan", float("nan")), ("lone", "\ud800"), ("any", object))
    session = create_user_session("Go.").with_lineage((), "o", LineageKind.OP_CUSTOM, extras)
    row = session_to_jsonl_row(session)
    assert dict(row["lineage_extras"]) == {"bytes": "eA==", "id": str(session_id), "nan": None, "lone": "\ud800", "any": str(object)}
    assert json.loads(json.dumps(row, allow_nan=False)) == json.loads(export_jsonl_string([session]))
    monkeypatch.setenv("HOME", str(tmp_path))
    export_jsonl([session], "~/rows.jsonl")
    assert (tmp_path / "rows.jsonl").exists()


def test_no_secret_in_a_name_reaches_any_form_of_a_graph():
    secret = "swordfish-swordfish-swordfish"
    register_secret(secret)
    task = create_user_session("Go.").with_lineage((), f"by {secret}", LineageKind.OP_CUSTOM, ())
    asked = answer(task, model=f"model {secret}")
    graph = lineage(asked.synchronize(10), labels={asked.id: f"for {secret}"})
    assert (graph[task].operator, graph[asked].model, graph[asked].label) == tuple(f"{what} {REDACTED}" for what in ("by", "model", "for"))
    forms = (str(graph), graph.to_svg(), graph.to_mermaid(), graph.to_dot(), graph.to_html(), graph.to_graphml(), graph.to_jsonl())
    assert not any(secret in text for text in (*forms, graph._repr_html_(), json.dumps(graph.to_otlp())))
    by_hand = SessionGraph([LineageNode(uuid4(), path=Path("/") / secret, sandbox=secret, snapshot=secret)])
    assert secret not in by_hand.to_jsonl() + by_hand.to_graphml()


def test_labels_are_texts_by_id():
    session = create_user_session("Go.")
    for wrong in ({session.id: 5}, {str(session.id): "task"}):
        with pytest.raises(UsageTypeError, match="texts by UUID"):
            lineage(session, labels=wrong)


# -- questions ----------------------------------------------------------------------------------------------------------


def test_ways_through_the_family():
    made = family()
    graph = lineage(made["end"])
    assert labels(graph.path(made["task"], made["end"])) == ["user", "fork", "loop", "merge", "loop"]
    assert labels(graph.path(made["end"], made["right"])) == ["loop", "merge", "loop", "append"]
    assert graph.path(made["a"], made["b"]) == ()
    assert graph.path(made["a"], made["a"]) == (graph[made["a"]],)
    assert graph.fork_point(made["a"], made["b"]).id == made["task"].id
    assert graph.fork_point(made["end"], made["a"]).id == made["a"].id
    assert graph.fork_point(made["end"], made["b"]).id == made["task"].id  # b stands behind a's rows in the merge
    assert graph.common_ancestor(made["end"], made["b"]).id == made["b"].id
    assert labels(graph.leaves()) == ["loop"]
    assert sorted(labels(graph.roots())) == ["system"] * 3 + ["user"]
    assert [labels(branch) for branch in graph.branches()] == [
        ["user"],
        ["fork", "loop"],
        ["append", "loop"],
        ["merge", "loop"],
    ]
    assert labels(graph.ancestors(made["left"])) == ["user"]
    assert {node.id for node in graph.descendants(made["merged"])} == {made["end"].id}


def test_rows_are_not_shared_beyond_a_compression_or_a_detached_copy_but_ancestors_are():
    task = create_user_session("Go.")
    a, b = compressed(task), task.fork()
    detached = task.detach()
    a.synchronize(10)
    graph = lineage([a, b, detached])
    assert graph.fork_point(a, b) is None
    assert graph.common_ancestor(a, b).id == task.id
    assert graph.fork_point(detached, b) is None
    assert graph.common_ancestor(detached, b) is None


def test_an_agents_instructions_are_common_only_if_nothing_else_is():
    agent = create_system_session("You answer.")
    task = create_user_session("Go.")
    a, b = answer(task.fork(), agent=agent), answer(task.fork(), agent=agent)
    other = answer(create_user_session("Elsewhere."), agent=agent)
    graph = lineage([a, b, other])
    assert graph.common_ancestor(a, b).id == task.id
    assert graph.common_ancestor(a, other).id == agent.id
    assert graph.fork_point(a, other) is None


def test_the_critical_path_is_the_longest_by_the_time_of_its_runs():
    task = create_user_session("Go.")
    quick = answer(answer(task.fork()))
    slow = answer(task.fork(), latency_s=0.2)
    end = quick.merge(slow)
    end.synchronize(10)
    graph = lineage(end)
    assert [node.id for node in graph.critical_path()][-2:] == [slow.id, end.id]
    assert SessionGraph([]).critical_path() == ()


def test_where_finds_by_field_amount_time_text_and_function():
    made = family(model="model-b")
    graph = lineage(made["end"])
    loops = graph.where(kind="op_session_loop")
    assert isinstance(loops, SessionGraph)
    assert {node.id for node in loops} == {made["a"].id, made["b"].id, made["end"].id}
    assert loops.edges == ()
    assert len(graph.where(kind=[LineageKind.OP_FORK, "op_merge"])) == 2
    assert len(graph.where(model="model-b")) == 3
    assert len(graph.where(model=None)) == 7
    assert len(graph.where(lambda node: node.rows == 1, operator="Session.fork")) == 1
    assert len(graph.where(min_tokens=21)) == 2
    assert len(graph.where(min_rows=5, status="completed")) == 2
    assert len(graph.where(min_duration=1000)) == 0
    assert len(graph.where(min_cost=0)) == 0
    assert len(graph.where(text="SESSION.MER")) == 1
    assert len(graph.where(verdict=None, sandbox=None)) == 10
    middle = graph[made["merged"]].created_at
    assert len(graph.where(since=middle)) + len(graph.where(until=middle)) == len(graph)
    assert len(graph.where(until="2001-01-01")) == 0
    assert graph.where() == graph


def test_a_condition_that_is_none_is_refused():
    graph = lineage(create_user_session("x"))
    wrongs = ({"colour": 1}, {"kind": "fork"}, {"since": "yesterday"}, {"status": "complete"}, {"verdict": ["open", "bad"]})
    for wrong in (*wrongs, {"min_cost": float("nan")}):
        with pytest.raises(UsageValueError):
            graph.where(**wrong)
    for wrong in ({"min_cost": "1"}, {"text": 5}, {"since": 5}, {"min_rows": True}, {"label": 5}, {"status": [["failed"]]}):
        with pytest.raises(UsageTypeError):
            graph.where(**wrong)
    with pytest.raises(UsageTypeError):
        graph.where("completed")


# -- totals and prices --------------------------------------------------------------------------------------------------


def test_own_figures_sum_up_and_shared_parts_are_charged_once():
    made = family()
    graph = lineage(list(made.values()))
    assert graph.total() == Total(11 + 21 + 41)
    assert graph.total("usage").value == RathLLMTokenUsage(70, 3, 73)
    assert graph[made["merged"]].usage is None
    assert graph.subtree_total(made["merged"]) == Total(32)
    assert graph.subtree_total(made["left"]) == Total(0)
    # Both sides of this merge descend from `a`: it was paid for once.
    again = made["merged"].merge(made["a"].fork())
    assert lineage(again).subtree_total(again) == Total(32)
    with pytest.raises(UsageValueError, match="tokens, cost, usage"):
        graph.total("time")


def test_a_cost_is_there_only_where_a_price_is_and_what_is_missing_is_counted():
    priced = f"priced-{uuid4()}"
    session = answer(create_user_session("x"), tokens=1_000_000, model=priced)
    session.synchronize(10)
    assert lineage(session).total("cost") == Total(None, 1)
    assert lineage(session)[session].cost_usd is None
    register_price(priced, input_usd_per_mtok=2, output_usd_per_mtok=1_000_000)
    assert lineage(session).total("cost") == Total(3.0)
    further = answer(session, tokens=500_000, model=priced)
    other = answer(session.fork(), model=f"unpriced-{uuid4()}")
    end = further.merge(other)
    end.synchronize(10)
    graph = lineage(end)
    assert graph.total("cost") == Total(5.0, 1)
    assert not graph.total("cost").exact
    assert graph.subtree_total(further, "cost") == Total(5.0)
    assert graph[further].cost_usd == 2.0
    assert lineage(create_user_session("x")).total("cost") == Total(0.0)
    # What was paid stays what it was when prices change.
    register_price(priced, input_usd_per_mtok=100, output_usd_per_mtok=0)
    assert lineage(further)[further].cost_usd == 2.0


def test_a_run_that_failed_is_charged_for_what_it_used():
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    call = {"tool_calls": [{"name": "no_such_tool", "arguments": {}}], "usage": usage}
    client = ScriptedClient([call, {"error": {"status": 400, "message": "no"}}])
    session = run_session_loop(create_user_session("x"), create_system_session("y"), agent_provider=client.as_provider())
    with pytest.raises(rath.RathError):
        session.synchronize(10)
    node = lineage(session)[session]
    assert (node.status, node.usage) == ("failed", RathLLMTokenUsage(10, 1, 11))
    assert node.duration_s is not None


def test_runs_inside_an_operator_are_charged_to_it_once():
    inner = []

    @operator
    async def twice(session: Session) -> Session:
        inner.append(answer(session.fork(), tokens=10))
        inner.append(answer(inner[0], tokens=20))
        return await inner[1]

    out = twice(create_user_session("x"))
    out.synchronize(10)
    assert lineage(out).total() == Total(32)
    assert lineage(out)[out].covers == tuple(session.id for session in reversed(inner))
    assert lineage([out, *inner]).total() == Total(32)
    assert sum(total.value for total in [lineage(inner).total()]) == 32
    assert lineage([out, *inner]).subtree_totals()[out.id] == Total(32)


@pytest.mark.slow
def test_subtree_totals_are_those_of_each_node_and_give_up_on_knots():
    made = family()
    graph = lineage(made["end"])
    for what in ("tokens", "cost", "usage"):
        assert graph.subtree_totals(what) == {node.id: graph.subtree_total(node, what) for node in graph}
    # 3,000 merges of what all descends from everything before: 9 million nodes to look at.
    usage = RathLLMTokenUsage(1, 1, 2)
    nodes = [LineageNode(UUID(int=1), kind=LineageKind.OP_SESSION_LOOP, status="completed", usage=usage)]
    for n in range(2, 6002, 2):
        above = nodes[-1].id
        loop = LineageNode(UUID(int=n), (above,), kind=LineageKind.OP_SESSION_LOOP, usage=usage, roles=("user",))
        nodes += [loop, LineageNode(UUID(int=n + 1), (above, loop.id), kind=LineageKind.OP_MERGE, roles=("parent", "merge"))]
    knotted = SessionGraph(nodes)
    began = time.process_time()
    totals = knotted.subtree_totals()
    assert time.process_time() - began < within(5)
    assert totals[nodes[100].id] == Total(2 * 51)
    assert totals[nodes[-1].id] is None
    assert knotted.subtree_total(nodes[-1]) == Total(2 * 3001)


# -- tables -------------------------------------------------------------------------------------------------------------


def test_tables_have_their_columns_and_every_row_and_call_once():
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    client = ScriptedClient(
        [
            {"tool_calls": [{"name": "no_such_tool", "arguments": {"path": "x"}, "id": "c1"}], "usage": usage},
            {"text": "Done.", "usage": usage},
        ]
    )
    task = create_user_session("Go.")
    agent = create_system_session("y")
    loop = run_session_loop(task, agent, agent_provider=client.as_provider())
    forks = [loop.fork().user(str(n)) for n in range(3)]
    merged = forks[0].merge(forks[1])
    merged.synchronize(10)
    graph = lineage([merged, *forks, loop, task])
    for name in COLUMNS:
        assert all(tuple(row) == COLUMNS[name] for row in graph.tables(name)), name
        assert list(graph.to_frame(name).columns) == list(COLUMNS[name])
    rows = [row for row in graph.tables("rows") if row["session_id"] != str(agent.id)]
    assert [row["text"] for row in graph.tables("rows") if row not in rows] == ["y"]
    # The task is gone from the registry only with its last reference: it owns its row.
    assert [(row["session_id"], row["index"]) for row in rows][:4] == [(str(task.id), 0), *((str(loop.id), n) for n in (1, 2, 3))]
    assert [row["text"] for row in rows[4:]] == ["0", "1", "2"]
    assert [row["kind"] for row in rows][:4] == ["user", "assistant", "tool_result", "assistant"]
    (call,) = graph.tables("calls")
    assert (call["session_id"], call["call_id"], call["name"], call["index"], call["result_index"]) == (
        str(loop.id),
        "c1",
        "no_such_tool",
        1,
        2,
    )
    assert (call["ok"], call["error_kind"], call["arguments"]) == (False, "unknown_tool", '{"path":"x"}')
    assert len(graph.sessions_frame()) == len(graph)
    assert len(graph.edges_frame()) == len(graph.edges)
    assert len(graph.rows_frame()) == 8
    assert len(graph.calls_frame()) == 1
    with pytest.raises(UsageValueError, match="sessions, edges, rows, calls"):
        graph.tables("costs")


def test_rows_of_sessions_that_are_gone_are_told_by_what_continues_them():
    last = create_user_session("a").user("b").fork().user("c")
    gc.collect()
    rows = lineage(last).tables("rows")
    assert [row["text"] for row in rows] == ["a", "b", "c"]
    assert len({row["session_id"] for row in rows}) == 3


def test_a_data_frame_without_pandas_names_the_remedy():
    code = (
        "import sys; sys.modules['pandas'] = None\nimport rath\n"
        "try: rath.lineage(rath.Session.create('user', 'x')).to_frame()\n"
        "except rath.errors.UsageError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install pandas" in out
    assert "graph.tables" in out


# -- live ---------------------------------------------------------------------------------------------------------------


def test_a_graph_of_what_is_pending_comes_at_once_and_refreshes():
    task = create_user_session("Go.")
    slow = answer(task, latency_s=0.4)
    after = slow.fork()
    began = time.monotonic()
    graph = lineage(after)
    assert time.monotonic() - began < within(0.2)
    assert graph[slow].status in ("pending", "running")
    assert graph[after].status == "pending"
    after.synchronize(10)
    assert graph[slow].status in ("pending", "running")
    then = graph.refresh()
    assert [then[session].status for session in (slow, after)] == ["completed", "completed"]
    assert then.total() == Total(11)


def test_a_run_under_way_is_running_even_if_nobody_holds_its_handle():
    task = create_user_session("Go.")
    handle = answer(task, latency_s=0.3)
    session_id, graph = handle.id, lineage(handle)
    del handle
    deadline = time.monotonic() + 5
    while graph[session_id].status == "pending" and time.monotonic() < deadline:
        time.sleep(0.01)
        graph = graph.refresh()
    assert graph[session_id].status == "running"
    while graph[session_id].status == "running" and time.monotonic() < deadline:
        time.sleep(0.02)
        graph = graph.refresh()
    assert (graph[session_id].status, graph.total()) == ("completed", Total(11))


def test_the_registry_is_a_source_and_what_was_seen_stays():
    session = answer(create_user_session("Go."))
    session.synchronize(10)
    session_id = session.id
    graph = lineage(session_registry())
    assert session_id in graph
    conditioned = graph.where(lambda node: node.id == session_id)
    del session
    gc.collect()
    assert session_id in graph.refresh()
    assert len(conditioned.refresh()) == 1


@pytest.mark.slow
def test_the_registry_can_be_looked_at_while_threads_register_sessions():
    registry, over = SessionRegistry(), threading.Event()

    def register():
        while not over.is_set():
            kept = [create_user_session("x") for _ in range(200)]
            for session in kept:
                registry.register(session)

    threads = [threading.Thread(target=register) for _ in range(2)]
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            registry.alive()
    finally:
        over.set()
        sys.setswitchinterval(interval_s)
        for thread in threads:
            thread.join()
    assert lineage(registry).refresh() is not None


def test_a_graph_keeps_no_session_and_no_rows_alive():
    session = answer(create_user_session("Go."))
    session.synchronize(10)
    graph = lineage(session)
    graph.tables("rows")
    graph.nx
    seen, cell = weakref.ref(session), weakref.ref(session._cell)
    assert graph.transcript(session) == session.chunk_table
    session_id = session.id
    del session
    deadline = time.monotonic() + 5
    while (seen() is not None or cell() is not None) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert (seen(), cell()) == (None, None)
    assert graph.transcript(session_id) is None
    assert graph.refresh()[session_id].usage == graph[session_id].usage


@pytest.mark.slow
def test_a_transcript_of_a_running_session_is_what_is_there():
    session = answer(create_user_session("Go."), latency_s=0.8)
    graph = lineage(session)
    began = time.monotonic()
    rows = graph.transcript(session)
    assert time.monotonic() - began < within(0.2)
    assert rows is not None
    assert len(rows) <= 1
    session.synchronize(10)
    assert len(graph.transcript(session)) == 2


def test_a_lineage_record_stays_small():
    def size(value, seen):
        if id(value) in seen:
            return 0
        seen.add(id(value))
        own = sys.getsizeof(value)
        if isinstance(value, msgspec.Struct):
            return own + sum(size(getattr(value, name), seen) for name in value.__struct_fields__ if name != "parents")
        if isinstance(value, tuple):
            return own + sum(size(item, seen) for item in value)
        if isinstance(value, UUID):
            return own + sys.getsizeof(value.int)
        if isinstance(value, RathLLMTokenUsage):
            return own + sum(sys.getsizeof(count) for count in (value.prompt_tokens, value.completion_tokens))
        if isinstance(value, int) and value <= 256:  # the interpreter's
            return 0
        return own if not isinstance(value, (str, type(None), LineageKind)) else 0

    session = answer(create_user_session("Go."), persist=True)
    session.synchronize(10)
    record = session._record
    assert record.bill.unpriced
    path = sys.getsizeof(record.log)
    # The ids of parents are their records'.
    assert size(record, {id(parent) for parent in record.parent_ids}) + path < 1024


def test_displays_take_the_nodes_of_a_graph_and_of_collect():
    made = family()
    graph = lineage(made["end"])
    assert "merge" in str(graph)
    assert graph.to_svg().startswith("<svg")
    assert graph.to_mermaid().startswith("flowchart")
    assert repr(graph) == "SessionGraph(10 sessions)"
    assert {node.id for node in collect([made["end"]], fold_appends=False)} == {node.id for node in graph}


@pytest.mark.slow
def test_a_chain_of_100_000_is_built_and_asked_in_seconds():
    session = first = Session.from_user_message("x")
    for _ in range(100_000):
        session = session.fork()
    began = time.process_time()
    graph = lineage(session)
    assert len(graph) == 100_001
    assert len(graph.path(first, session)) == 100_001
    assert len(graph.ancestors(session)) == 100_000
    assert graph.fork_point(first, session).id == first.id
    assert graph.common_ancestor(first, session).id == first.id
    assert len(graph.branches()) == 1
    assert len(graph.critical_path()) == 100_001
    assert graph.subtree_total(session) == Total(0)
    # 1.6 s where nothing else runs; 3.4 to 4.1 s on two cores with a load of 15.
    assert time.process_time() - began < within(6)
    assert len(graph.subtree_totals()) == 100_001
    assert len(graph.tables()) == 100_001
    assert len(graph.nx) == 100_001
    assert len(lineage(session, fold_appends=True)) == 100_001
