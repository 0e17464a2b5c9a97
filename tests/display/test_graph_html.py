"""A graph in a notebook's cell: drawn, unfolded without scripts, bounded, never waiting; and the other forms of its bundle."""

from __future__ import annotations

import gc
import json
import re
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from uuid import UUID, uuid4
from weakref import ref

import pytest

import rath
from rath.backend.calls import WorkspaceDiff
from rath.core.redact import register_secret
from rath.display.graph_html import graph_cell, graph_html
from rath.display.html import chunk_table_html, session_html, workspace_diff_html
from rath.display.layout import layered
from rath.display.mimebundle import MERMAID
from rath.display.svg import lineage_svg
from rath.display.text import money
from rath.llm.scripted import ScriptedClient
from rath.llm.types import RathLLMTokenUsage
from rath.session.chunk import ChunkKind, ChunkRow, ChunkTable, user_text_chunk
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode
from rath.session.graph.model import SessionGraph
from rath.session.loop import run_session_loop
from rath.session.primitives import create_system_session, create_user_session
from rath.session.session import Session
from rath.testing.pace import within
from tests.display.support import HOSTILE, Page, assert_harmless

HOSTILE_TEXT = HOSTILE.replace("\ud800", "")
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def answered(session: Session, text: str = "Done.", **script: float) -> Session:
    client = ScriptedClient([{"text": text, "usage": USAGE}], **script)
    return run_session_loop(session, create_system_session("You answer."), agent_provider=client.as_provider())


def chain(length: int, **fields: object) -> list[LineageNode]:
    """Loops one after the other."""
    ids = [UUID(int=(at + 1) << 64 | at) for at in range(length)]
    return [
        LineageNode(
            ids[at],
            ids[at - 1 : at] if not at else (ids[at - 1],),  # type: ignore[arg-type]
            kind=LineageKind.OP_SESSION_LOOP,
            status="completed",
            rows=at + 1,
            label=f"loop {at}",
            roles=("user",) if at else (),
            **fields,  # type: ignore[arg-type]
        )
        for at in range(length)
    ]


def fan(width: int) -> list[LineageNode]:
    """A task, forked ``width`` times, with a loop on each fork; one agent instructs them all."""
    task, agent = UUID(int=1 << 64), UUID(int=2 << 64)
    nodes = [
        LineageNode(task, kind=LineageKind.LEAF_USER, status="completed", rows=1, label="user"),
        LineageNode(agent, kind=LineageKind.LEAF_SYSTEM, status="completed", rows=1, label="system"),
    ]
    for at in range(width):
        fork, loop = UUID(int=(2 * at + 3) << 64), UUID(int=(2 * at + 4) << 64)
        nodes.append(LineageNode(fork, (task,), "fork", LineageKind.OP_FORK, "completed", 1, label="fork", roles=("parent",)))
        nodes.append(
            LineageNode(
                loop, (fork, agent), "run", LineageKind.OP_SESSION_LOOP, "completed", 3, RathLLMTokenUsage(10, 5, 15),
                label="loop", roles=("user", "system"), model="a-model", cost_usd=0.0012, duration_s=1.3,
            )
        )  # fmt: skip
    return nodes


# -- a cell -------------------------------------------------------------------------------------------------------------


def test_every_node_is_a_label_for_the_button_that_shows_its_panel() -> None:
    task = create_user_session("What is it?")
    loops = [answered(task.fork(), f"It is {number}.") for number in range(2)]
    merged = loops[0].merge(loops[1])
    merged.synchronize(10)
    page = assert_harmless(rath.lineage([merged])._repr_html_())
    radios = {value for tag, name, value in page.attributes if tag == "input" and name == "id"}
    labels = [value for tag, name, value in page.attributes if tag == "label" and name == "for"]
    assert set(labels) <= radios
    # 1 task, 2 forks, 2 agents, 2 loops, 1 merge, "none" and "all".
    assert len(radios) == 10
    assert {radio for radio in radios if not radio.endswith(("-x", "-all"))} <= set(labels)
    assert "It is 0." in page.text
    assert "It is 1." in page.text
    assert "script" not in page.tags


def test_a_transcript_has_its_own_rows_and_names_whose_the_others_are() -> None:
    task = create_user_session("What is it?")
    loop = answered(task, "It is so.")
    loop.synchronize(10)
    page = Page(graph_html(rath.lineage([task, loop])))
    assert page.text.count("What is it?") == 1
    assert page.text.count("It is so.") == 1
    assert f"1 row after the 1 row of {task.id.hex[:8]}" in page.text
    fork = loop.fork()
    assert f"No rows of its own: 2 rows of {loop.id.hex[:8]}." in Page(graph_html(rath.lineage([fork, loop]))).text


def test_two_displays_of_one_graph_share_no_id() -> None:
    graph = SessionGraph(chain(3))
    first, second = (set(re.findall(r' id="([^"]+)"', graph_html(graph))) for _ in range(2))
    assert first
    assert not first & second


def test_model_tokens_cost_and_time_are_shown_where_they_are_known_and_only_there() -> None:
    usage = RathLLMTokenUsage(12_000, 345, 12_345)
    known = LineageNode(uuid4(), kind=LineageKind.OP_SESSION_LOOP, status="completed", rows=3, usage=usage, label="dear",
                        model="a-model", cost_usd=0.0123, duration_s=90.0)  # fmt: skip
    unknown = LineageNode(uuid4(), kind=LineageKind.OP_SESSION_LOOP, status="completed", rows=3, usage=usage, label="who knows")
    page = Page(graph_html(SessionGraph([known, unknown])))
    assert "12.3k tok · $0.0123 · 2 min" in page.text
    assert "a-model · 3 rows · 12,345 tokens · $0.0123 · 1 min 30 s" in page.text
    assert "24,690 tokens · $0.0123 and 1 session of unknown cost" in page.text
    assert "$0.00" not in Page(graph_html(SessionGraph([unknown]))).text


def test_appends_are_folded_and_counted() -> None:
    task = create_user_session("Go.").user("And then?").user("And then?")
    loop = answered(task)
    loop.synchronize(10)
    text = Page(graph_html(rath.lineage([loop]))).text
    assert "2 appends folded" in text
    assert "after 2 appends" in text
    assert "append ·" not in text


def test_showing_a_graph_or_a_session_that_never_ends_does_not_wait() -> None:
    slow = answered(create_user_session("Go."), latency_s=30)
    after = slow.fork()
    while not len(slow.partial):  # until its run has begun: its first row is there, its reply will not be
        time.sleep(0.01)
    began = time.monotonic()
    text = Page(graph_html(rath.lineage([after, slow]))).text
    bundle = rath.lineage([after, slow])._repr_mimebundle_()
    shown = session_html(after) + session_html(slow) + chunk_table_html(slow.partial)
    assert time.monotonic() - began < within(1)
    assert re.search(r"\d pending", text)
    assert "pending" in bundle["text/plain"]
    assert "Go." in shown
    slow.cancel()


def test_a_display_keeps_no_session_alive() -> None:
    session = Session.from_user_message("Go.")
    graph = rath.lineage([session])
    graph_html(graph)
    alive = ref(session)
    del session
    gc.collect()
    assert alive() is None
    assert "its session is gone" in graph_html(graph)


def test_what_secrets_there_are_is_redacted() -> None:
    secret = f"s3cret-{uuid4().hex}"
    register_secret(secret)
    node = LineageNode(uuid4(), operator=secret, kind=LineageKind.OP_CUSTOM, status="failed", label=secret, model=secret,
                       extras=((secret, secret),), sandbox=secret, path=Path(secret))  # fmt: skip
    session = Session(ChunkTable((user_text_chunk(secret),)))
    diff = WorkspaceDiff(f"--- a/x\n+++ b/x\n@@ -0,0 +1 @@\n+{secret}\n", added=(secret,))
    bundle = diff._repr_mimebundle_()
    for html in (graph_html(rath.lineage([session])), workspace_diff_html(diff), bundle["text/plain"], bundle["text/html"]):
        assert secret not in html
        assert "[redacted]" in html
    panel = re.search(r"<section.*</section>", graph_html(SessionGraph([node])), re.DOTALL)
    assert panel is not None
    assert secret not in panel[0]


# -- how much -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [chain(10_000), fan(5_000)], ids=["chain", "fan"])
def test_ten_thousand_nodes_are_shown_in_part_soon_and_below_a_megabyte(nodes: list[LineageNode]) -> None:
    graph = SessionGraph(nodes)
    began = time.process_time()
    bundle = graph._repr_mimebundle_()
    assert time.process_time() - began < within(1)
    assert len("".join(bundle.values()).encode()) < 1_000_000
    page = Page(bundle["text/html"])
    assert "the latest 400 drawn; graph.to_html(path) writes a page with all" in page.text
    assert f"{len(nodes) - 400:,} earlier sessions are not drawn" in page.text
    assert f"{len(nodes) - 300:,} earlier sessions not shown" in bundle["text/plain"]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("character", ['"', "\x1b", "日", "&", "𝔘", "\U000e0041"])
def test_monstrous_names_and_rows_stay_below_a_megabyte(character: str) -> None:
    text = character * 20_000
    monsters = [
        LineageNode(UUID(int=(at + 1) << 64), (UUID(int=at << 64),) if at else (), text, LineageKind.OP_CUSTOM, text, 3, None,
                    ((text, text),) * 30, text, roles=(text,) if at else (), model=text, path=Path("/x") / text[:4000],
                    sandbox=text, snapshot=text, verdict=text)
        for at in range(450)
    ]
    html = graph_html(SessionGraph(monsters))
    assert len(html.encode()) < 1_000_000
    assert_harmless(html)
    sessions = [Session(ChunkTable((user_text_chunk(text),) * 20)) for _ in range(30)]
    html = graph_html(rath.lineage(sessions))
    assert len(html.encode()) < 1_000_000
    assert "left out" in html
    diff = WorkspaceDiff("--- a/x\n+++ b/x\n@@ -0,0 +1,9999999 @@\n" + f"+{text[:30]}\n" * 30_000, added=(text,) * 1000)
    assert len(workspace_diff_html(diff).encode()) < 1_000_000


def test_transcripts_beyond_the_bound_say_where_they_are() -> None:
    sessions = [Session.from_user_message(f"message {number}") for number in range(70)]
    page = Page(graph_html(rath.lineage(sessions)))
    assert page.text.count("Its transcript is not in this cell") == 10
    assert sum(f"message {number}" in page.text for number in range(70)) >= 60


def test_a_chosen_node_is_unfolded_and_its_transcript_is_there_whatever_else_is() -> None:
    sessions = [Session.from_user_message(f"message {number}") for number in range(20)]
    graph = rath.lineage(sessions)
    first = graph.nodes[0]
    html = graph_cell(graph, name="g", most_transcripts=1, chosen=first.id)
    page = Page(html)
    assert page.text.count("Its transcript is not in this cell") == 19
    chosen = [at for at, (tag, name, _value) in enumerate(page.attributes) if (tag, name) == ("input", "checked")]
    assert len(chosen) == 2  # "none", then the one: of a group of radio buttons the last that is checked is
    assert ("input", "data-session", str(first.id)) in page.attributes[chosen[1] - 4 : chosen[1]]


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_shown_within_a_tenth_of_a_second() -> None:
    table = ChunkTable(tuple(map(user_text_chunk, (f"row {number}" for number in range(100_000)))))
    session = Session(table)
    session_html(Session.from_user_message("warm"))
    for show in (lambda: session_html(session), lambda: chunk_table_html(table), lambda: table._repr_mimebundle_()["text/plain"]):
        times = []
        for _ in range(3):
            began = time.process_time()
            text = show()
            times.append(time.process_time() - began)
        assert min(times) < within(0.1)
        assert len(text.encode()) < 1_000_000
        assert "100,000 rows" in text


# -- drawing ------------------------------------------------------------------------------------------------------------


def test_edges_tell_what_a_parent_was_for_a_child() -> None:
    ids = [uuid4() for _ in range(4)]
    nodes = [
        LineageNode(ids[0], label="a"),
        LineageNode(ids[1], label="b"),
        LineageNode(ids[2], (ids[0], ids[1]), kind=LineageKind.OP_SESSION_LOOP, roles=("user", "system")),
        LineageNode(ids[3], (ids[2], ids[0]), kind=LineageKind.OP_MERGE, roles=("parent", "merge")),
    ]
    classes = [element.get("class") for element in ElementTree.fromstring(lineage_svg(nodes)).iter() if element.get("marker-end")]
    assert sorted(map(str, classes)) == ["e", "e", "e mrg", "e sys"]


def test_a_session_whose_parent_is_not_drawn_still_has_an_edge() -> None:
    nodes = chain(3)
    assert lineage_svg(nodes[1:]).count("marker-end") == 2


def test_a_thousand_children_become_bands_that_fit_a_page() -> None:
    nodes = fan(500)
    parents = {node.id: node.parents for node in nodes}
    layout = layered(parents, dict.fromkeys(parents, 200.0), gap=24, columns=6)
    rows: dict[int, list[float]] = {}
    for node in nodes:
        x, row = layout.at[node.id]
        rows.setdefault(row, []).append(x)
        assert all(layout.at[parent][1] < row for parent in node.parents)
        assert x + 0.01 >= 100
        assert x + 100 <= layout.width + 0.01
    assert max(map(len, rows.values())) <= 6
    assert layout.width < 6 * 224 + 150
    # A fork and the loop on it are next to each other.
    apart = [layout.at[node.id][1] - layout.at[node.parents[0]][1] for node in nodes if node.label == "loop"]
    assert max(apart) <= 2


def test_one_long_way_is_drawn_once_for_all_that_share_it() -> None:
    drawing = lineage_svg(fan(200)[:400])
    assert len(drawing) < 400_000
    paths = re.findall(r'<path class="e[^"]*" d="[^"]*"', drawing)
    assert len(paths) == len(set(paths))


# -- other things -------------------------------------------------------------------------------------------------------


def test_a_bundle_has_text_mermaid_and_html_or_what_is_asked_for() -> None:
    graph = SessionGraph(chain(3))
    assert set(graph._repr_mimebundle_()) == {"text/plain", MERMAID, "text/html"}
    assert set(graph._repr_mimebundle_(include={"text/plain"})) == {"text/plain"}
    assert set(graph._repr_mimebundle_(exclude={"text/html"})) == {"text/plain", MERMAID}
    assert graph._repr_mimebundle_()["text/plain"] == str(graph).rstrip("\n")
    assert graph._repr_mimebundle_()[MERMAID].startswith("flowchart TD\n")


def test_rows_in_a_bundle_are_short_text_and_html() -> None:
    table = ChunkTable(tuple(user_text_chunk(f"row {number}") for number in range(100)))
    bundle = table._repr_mimebundle_()
    assert len(bundle["text/plain"].splitlines()) == 22
    assert "… 80 rows …" in bundle["text/plain"]
    assert "row 99" in bundle["text/html"]
    assert ChunkTable()._repr_mimebundle_()["text/plain"] == "ChunkTable of 0 rows"


def test_a_workspace_diff_lists_files_and_lines() -> None:
    text = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-old <b>\n+new\n"
    page = assert_harmless(WorkspaceDiff(text, ("new.txt",), (), ("x",), ("new.txt",))._repr_html_())
    assert "1 added, 1 changed, 1 not text" in page.text
    assert "-old <b>" in page.text
    assert "added new.txt" in page.text
    assert "no change" in WorkspaceDiff("")._repr_html_()
    assert_harmless(WorkspaceDiff(HOSTILE, (HOSTILE,), (HOSTILE,), (HOSTILE,))._repr_html_())


def test_hostile_text_in_a_graph_is_harmless() -> None:
    ids = [uuid4(), uuid4()]
    nodes = [
        LineageNode(ids[0], (), HOSTILE, LineageKind.OP_CUSTOM, HOSTILE, None, None, ((HOSTILE, HOSTILE),), HOSTILE),
        LineageNode(ids[1], (ids[0],), HOSTILE, LineageKind.OP_MERGE, "failed", 3, None, (), HOSTILE, 0, (HOSTILE,), HOSTILE,
                    sandbox=HOSTILE, snapshot=HOSTILE, verdict=HOSTILE, path=Path("/x") / HOSTILE[:50].replace("\x00", "")),
    ]  # fmt: skip
    page = assert_harmless(graph_html(SessionGraph(nodes)))
    assert "<script>alert('x')" in page.text


@pytest.mark.parametrize("payload", ["text", 7, None, ["a"]])
def test_a_row_whose_payload_is_no_object_is_shown_as_it_stands(payload: object) -> None:
    row = ChunkRow.from_encoded(json.dumps({"kind": "user", "payload": payload}, separators=(",", ":")).encode())
    assert row.kind is ChunkKind.USER
    assert '"payload"' in Page(chunk_table_html(ChunkTable((row,)))).text


def test_money_is_never_nothing_for_something() -> None:
    assert [money(usd) for usd in (0, 0.00001, 0.0042, 0.1, 12.345, 1200)] == [
        *("$0.00", "<$0.0001", "$0.0042", "$0.10", "$12.35", "$1,200.00")
    ]
