"""Lineage collected, laid out and drawn: every session once, nothing waits, hostile labels are text."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rath.display.layout import layered
from rath.display.mermaid import lineage_mermaid
from rath.display.svg import lineage_svg, short_id
from rath.display.tree import lineage_tree
from rath.llm.scripted import ScriptedClient
from rath.llm.types import RathLLMTokenUsage
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode, collect, total_usage
from rath.session.loop import run_session_loop
from rath.session.primitives import create_system_session, create_user_session
from rath.session.session import Session
from rath.testing.pace import within
from tests.display.support import CONTROL, HOSTILE, assert_harmless

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def answer(session: Session, *, latency_s: float = 0.0) -> Session:
    client = ScriptedClient([{"text": "Done.", "usage": USAGE}], latency_s=latency_s)
    agent = create_system_session("You answer.")
    return run_session_loop(session, agent, agent_provider=client.as_provider())


def branched() -> tuple[Session, Session, list[Session], Session]:
    task = create_user_session("Go.")
    start = task.user("One more thing.")
    loops = [answer(start.fork()) for _ in range(3)]
    merged = loops[0].merge(loops[1]).merge(loops[2])
    merged.synchronize(10)
    return task, start, loops, merged


def test_every_ancestor_is_there_once_parents_first() -> None:
    task, _start, loops, merged = branched()
    nodes = collect([merged, task, *loops])
    ids = [node.id for node in nodes]
    assert len(set(ids)) == len(ids)
    for place, node in enumerate(nodes):
        assert set(node.parents) <= set(ids[:place])
    kinds = [node.kind for node in nodes]
    assert kinds.count(LineageKind.OP_FORK) == 3
    assert kinds.count(LineageKind.OP_MERGE) == 2
    assert kinds.count(LineageKind.LEAF_SYSTEM) == 3


def test_appends_are_folded_into_each_child_and_stay_where_nothing_follows() -> None:
    task, start, loops, _merged = branched()
    nodes = {node.id: node for node in collect(loops)}
    assert start.id not in nodes
    forks = [node for node in nodes.values() if node.kind is LineageKind.OP_FORK]
    assert [(fork.parents, fork.folded) for fork in forks] == [((task.id,), 1)] * 3
    unfolded = [node.id for node in collect(loops, fold_appends=False)]
    assert start.id in unfolded
    assert [node.id for node in collect([start])] == [task.id, start.id]


def test_usage_is_a_nodes_own_so_a_merge_adds_nothing() -> None:
    _task, _start, loops, merged = branched()
    nodes = collect([merged, *loops])
    by_id = {node.id: node for node in nodes}
    assert by_id[merged.id].usage is None
    assert merged.cumulative_usage == RathLLMTokenUsage(30, 15, 45)
    assert total_usage(nodes) == RathLLMTokenUsage(30, 15, 45)


def test_collecting_and_drawing_a_pending_graph_does_not_wait() -> None:
    slow = answer(create_user_session("Go."), latency_s=30)
    after = answer(slow.fork())
    began = time.monotonic()
    nodes = collect([after, slow])
    text, svg = lineage_tree(nodes), lineage_svg(nodes)
    assert time.monotonic() - began < within(1)
    status = {node.id: node.status for node in nodes}
    assert status[after.id] == "pending"
    assert status[slow.id] in ("pending", "running")
    assert "pending" in text
    assert "pending" in svg
    slow.cancel()


@pytest.mark.slow
def test_a_chain_of_ten_thousand_is_no_recursion() -> None:
    session = create_user_session("Go.")
    for _ in range(10_000):
        session = session.fork()
    nodes = collect([session])
    assert len(nodes) == 10_001
    lines = lineage_tree(nodes).splitlines()
    assert len(lines) == 10_001
    assert max(map(len, lines)) < 120
    assert "5,001 earlier sessions are not drawn" in lineage_svg(nodes)


def test_a_parent_known_by_its_id_alone_is_drawn_as_such() -> None:
    elsewhere = uuid4()
    child = create_user_session("x").with_lineage((elsewhere,), "loaded", LineageKind.OP_CUSTOM, ())
    nodes = collect([child])
    assert [(node.id, node.status) for node in nodes] == [(elsewhere, "unknown"), (child.id, "completed")]
    assert "unknown" in lineage_tree(nodes)


def test_labels_name_sessions_for_people() -> None:
    task, _start, loops, merged = branched()
    nodes = collect([task, *loops, merged], labels={loops[0].id: "the good one"})
    tree = lineage_tree(nodes)
    assert "the good one" in tree
    assert "the good one" in lineage_svg(nodes)


def test_a_tree_shows_a_merge_once_and_refers_to_it_elsewhere() -> None:
    _task, _start, loops, merged = branched()
    tree = lineage_tree(collect([merged, *loops]))
    lines = tree.splitlines()
    assert sum(f"✓ {short_id(merged.id)}" in line for line in lines) == 1
    assert sum(f"→ {short_id(merged.id)}" in line for line in lines) == 1
    assert sum("joins" in line for line in lines) == 2
    # Agents' instructions are no branches of their own.
    assert "system" not in tree


def hostile_nodes() -> list[LineageNode]:
    first, second = uuid4(), uuid4()
    return [
        LineageNode(first, (), HOSTILE, LineageKind.UNKNOWN, HOSTILE, None, None, ((HOSTILE, HOSTILE),), HOSTILE),
        LineageNode(second, (first,), HOSTILE, LineageKind.OP_CUSTOM, "failed", 3, None, (), "日本語" * 20),
    ]


def test_hostile_labels_are_text_in_every_display() -> None:
    nodes = hostile_nodes()
    svg = lineage_svg(nodes)
    page = assert_harmless(svg)
    assert "script" not in page.tags
    assert CONTROL.search(lineage_tree(nodes)) is None
    assert len(lineage_tree(nodes).splitlines()) == 2
    mermaid = lineage_mermaid(nodes)
    assert CONTROL.search(mermaid) is None
    assert "<script" not in mermaid
    for line in mermaid.splitlines()[1:]:
        assert re.fullmatch(r'  s\d+(\["[^"<>]*<br/>[^"<>]*"\]| --> s\d+)', line), line


@pytest.mark.parametrize("status", ["pending", "running", "completed", "failed", "cancelled", "unknown"])
def test_every_status_has_a_shape_and_only_success_lacks_the_word(status: str) -> None:
    svg = lineage_svg([LineageNode(uuid4(), status=status, kind=LineageKind.OP_SESSION_LOOP, rows=2, label="x")])
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["x", "2 rows" if status == "completed" else f"{status} · 2 rows"]


def test_a_drawing_is_well_formed_xml_with_a_tooltip_for_every_session() -> None:
    _task, _start, loops, merged = branched()
    nodes = collect([merged, *loops])
    root = ElementTree.fromstring(lineage_svg(nodes, marked=[merged.id]))
    titles = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    for node in nodes:
        assert any(str(node.id) in title for title in titles)
    assert ElementTree.fromstring(lineage_svg([])).tag.endswith("svg")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_boxes_of_a_layer_never_overlap_and_edges_go_down(data: st.DataObject) -> None:
    count = data.draw(st.integers(min_value=1, max_value=25))
    parents: dict[int, list[int]] = {}
    for node in range(count):
        above = st.lists(st.integers(min_value=0, max_value=max(0, node - 1)), max_size=3, unique=True)
        parents[node] = data.draw(above) if node else []
    widths = {node: data.draw(st.sampled_from([120.0, 190.0])) for node in parents}
    layout = layered(parents, widths, gap=24)
    rows: dict[int, list[tuple[float, float]]] = {}
    for node, (x, layer) in layout.at.items():
        assert x - widths[node] / 2 >= -0.01
        assert x + widths[node] / 2 <= layout.width + 0.01
        rows.setdefault(layer, []).append((x, widths[node]))
        for parent in parents[node]:
            assert layout.at[parent][1] < layer
            assert len(layout.routes[parent, node]) == layer - layout.at[parent][1] - 1
    for boxes in rows.values():
        boxes.sort()
        for (x0, w0), (x1, w1) in pairwise(boxes):
            assert x1 - x0 >= (w0 + w1) / 2 + 24 - 0.01


def test_forks_of_forks_are_drawn_without_a_crossing() -> None:
    parents: dict[int, list[int]] = {0: []}
    for node in range(1, 31):
        parents[node] = [(node - 1) // 2]
    layout = layered(parents, dict.fromkeys(parents, 100.0), gap=20)
    edges = [(layout.at[p[0]], layout.at[n]) for n, p in parents.items() if p]
    for (x0, row0), (x1, _row1) in edges:
        for (other0, other_row0), (other1, _other_row1) in edges:
            if row0 == other_row0:
                assert (x0 - other0) * (x1 - other1) >= 0


def test_ids_in_displays_are_what_the_command_line_takes() -> None:
    session_id = UUID("0123456789abcdef0123456789abcdef")
    assert short_id(session_id) == "01234567"
