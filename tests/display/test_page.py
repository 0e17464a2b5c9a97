"""The page of a lineage: whole, small, inert, and without a word that was not there."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rath.core.redact import register_secret
from rath.display.page import MIN_BYTES, graph_page
from rath.display.page_rows import Transcripts
from rath.display.text import clean, one_line
from rath.errors import PersistenceError, UsageValueError
from rath.llm.scripted import ScriptedClient
from rath.llm.types import RathLLMTokenUsage
from rath.session.chunk import ChunkKind, ChunkRow, ChunkTable, user_text_chunk
from rath.session.graph.kind import LineageKind
from rath.session.graph.lineage import LineageNode, collect
from rath.session.loop import run_session_loop
from rath.session.primitives import create_system_session, create_user_session
from rath.testing.pace import within
from tests.browser.payloads import PAYLOADS
from tests.display.page_reader import PageReader


def table(*texts: str) -> ChunkTable:
    return ChunkTable(tuple(user_text_chunk(text) for text in texts))


def chain(count: int) -> list[LineageNode]:
    ids = [UUID(int=number + 1) for number in range(count)]
    return [LineageNode(ids[at], ids[at - 1 : at] if at else (), label=f"n{at}", status="completed") for at in range(count)]


def test_only_the_pages_own_script_can_run_and_no_request_can_leave() -> None:
    html = graph_page(chain(3), transcript=lambda _id: table("hello"))
    reader = PageReader(html)
    assert reader.types == ["application/json", "", "text/plain", "text/plain"]
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    digest = base64.b64encode(sha256(reader.script.encode()).digest()).decode()
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    style_digest = base64.b64encode(sha256(style[0].encode()).digest()).decode()
    assert len(policy) == len(style) == 1
    rules = dict(rule.strip().split(" ", 1) for rule in policy[0].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["style-src"] == f"'sha256-{style_digest}'"
    assert rules["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in policy[0]
    # The policy stands before anything that it is about.
    assert html.index("Content-Security-Policy") < html.index("<style>") < html.index("<script")


def test_the_script_never_makes_markup_of_text() -> None:
    for asset in (files("rath.display") / "assets").iterdir():
        text = asset.read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser"):
            assert word not in text, (asset.name, word)
        assert "url(" not in text
        assert "@import" not in text
        assert re.search(r"https?://", text) is None, asset.name


def tags_of(html: str) -> list[str]:
    """All that begins like a tag, but for the page's own script and the second to last block of rows."""
    without = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    without = re.sub(r'<script type="text/plain" id="rath-block-[1-9]\d*">[A-Za-z0-9+/=]*</script>', "", without)
    return re.findall(r"<[a-zA-Z/!?][^>]*", re.sub(r"sha256-[^']*", "", without))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, len(PAYLOADS), 50))
def test_no_text_ends_the_element_that_holds_it(start: int) -> None:
    tags = tags_of(graph_page([LineageNode(UUID(int=1), label="x")], transcript=lambda _id: table("y"), title="z"))
    nodes = [
        LineageNode(UUID(int=at + 1), (), text, LineageKind.OP_CUSTOM, text, 1, None, ((text, text),), text, model=text, sandbox=text,
                    snapshot=text, verdict=text, path=Path("/x") / text, digest=text, roles=(text,))
        for at, text in enumerate(PAYLOADS[start : start + 50])
    ]
    title = PAYLOADS[start]
    html = graph_page(nodes, transcript=lambda _id: table(*PAYLOADS[start : start + 50]), title=title)
    assert tags_of(html) == tags
    assert unescape(re.findall(r"<title>(.*?)</title>", html, re.DOTALL)[0]) == one_line(title, 200)
    reader = PageReader(html)
    assert reader.data["title"] == one_line(title, 200)
    for at, text in enumerate(PAYLOADS[start : start + 50]):
        assert reader.text("label", at) == one_line(text or "session", 120)
        assert reader.text("model", at) == one_line(text, 300)
    html.encode()


def test_every_title_is_text() -> None:
    empty = graph_page([])
    plain = tags_of(empty.partition("<style>")[0] + empty.partition("</style>")[2].partition("<script")[0])
    for text in PAYLOADS:
        html = graph_page([], title=text)
        assert unescape(re.findall(r"<title>(.*?)</title>", html, re.DOTALL)[0]) == one_line(text, 200)
        head = html.partition("<style>")[0] + html.partition("</style>")[2].partition("<script")[0]
        assert tags_of(head) == plain


def test_what_sessions_share_stands_once() -> None:
    opening = table("a", "b", "c")
    tables = {UUID(int=1): opening}
    nodes = [LineageNode(UUID(int=1))]
    for number in range(2, 40):
        tables[UUID(int=number)] = opening.extend(user_text_chunk(f"branch {number}"))
        nodes.append(LineageNode(UUID(int=number), (UUID(int=1),)))
    reader = PageReader(graph_page(nodes, transcript=tables.get))
    assert reader.row_count == reader.step_count == 3 + 38
    assert reader.transcript(5) == [["user", "a"], ["user", "b"], ["user", "c"], ["user", "branch 6"]]


def test_what_sessions_share_stands_once_though_read_from_separate_logs() -> None:
    nodes = chain(30)
    reader = PageReader(graph_page(nodes, transcript=lambda i: table("a", "b", *map(str, range(i.int)))))
    assert reader.row_count == 2 + 30
    assert reader.step_count == 2 + 30
    assert reader.transcript(29) == [["user", text] for text in ("a", "b", *map(str, range(30)))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), st.lists(st.integers(0, 6), max_size=5)), max_size=25))
def test_every_transcript_comes_back_as_it_was(plan: list[tuple[int, int, list[int]]]) -> None:
    tables: list[ChunkTable] = [ChunkTable()]
    for parent, keep, added in plan:
        rows = tables[parent % len(tables)].rows
        kept = rows if keep > 6 else rows[:keep]
        tables.append(ChunkTable(kept).extend(*(user_text_chunk(str(number)) for number in added)))
    nodes = [LineageNode(UUID(int=at + 1)) for at in range(len(tables))]
    reader = PageReader(graph_page(nodes, transcript=lambda i: tables[i.int - 1]))
    for at, rows in enumerate(tables):
        assert reader.transcript(at) == [["user", row.text] for row in rows]


def noise(seed: int, characters: int = 1000) -> str:
    """Text that does not compress."""
    blocks = (sha256(f"{seed} {part}".encode()).hexdigest() for part in range(characters // 64 + 1))
    return "".join(blocks)[:characters]


def test_a_page_stays_below_its_bound_and_every_session_keeps_its_ends() -> None:
    nodes = chain(20)
    tables = {node.id: table(*(noise(1000 * node.id.int + row) for row in range(180))) for node in nodes}
    html = graph_page(nodes, transcript=tables.get, max_bytes=1_000_000)
    assert 500_000 < len(html.encode()) <= 1_000_000
    reader = PageReader(html)
    left_out = 0
    for at, node in enumerate(nodes):
        rows = reader.transcript(at)
        assert rows is not None
        gaps = [row for row in rows if isinstance(row, int)]
        assert len(gaps) == 1 or at == 0
        assert len(rows) - len(gaps) + sum(gaps) == 180
        assert rows[0] == ["user", tables[node.id][0].text]
        assert rows[-1] == ["user", tables[node.id][179].text]
        left_out += sum(gaps)
    assert f"{left_out:,} rows left out" in reader.data["notes"][0]


@pytest.mark.slow
def test_of_more_sessions_than_fit_the_last_are_there_and_the_rest_is_counted() -> None:
    nodes = chain(12_000)
    html = graph_page(nodes, max_bytes=MIN_BYTES)
    assert len(html.encode()) <= MIN_BYTES
    reader = PageReader(html)
    kept = len(reader.data["nodes"]["id"])
    assert 0 < kept < 12_000
    assert reader.text("label", kept - 1) == "n11999"
    assert f"{12_000 - kept:,} earlier sessions not shown" in reader.data["notes"]


def test_a_bound_below_the_page_itself_is_refused() -> None:
    with pytest.raises(UsageValueError, match="262,144"):
        graph_page([], max_bytes=1000)


def test_a_row_of_any_size_is_cut_and_says_so() -> None:
    reader = PageReader(graph_page(chain(1), transcript=lambda _id: table("x" * 30_000_000)))
    rows = reader.transcript(0)
    assert rows is not None
    assert len(rows[0][1]) < 41_000
    assert "characters left out" in rows[0][1]


def test_rows_of_unknown_forms_are_shown_as_they_stand() -> None:
    odd = [
        ChunkRow(ChunkKind.ASSISTANT, {"content": 3, "tool_calls": {"not": "a list"}}),
        ChunkRow(ChunkKind.TOOL_RESULT, {"content": ["x"], "name": None}),
        ChunkRow(ChunkKind.USER, {}),
        ChunkRow.from_encoded(b'{"kind":"user","payload":[1]}'),
        ChunkRow.from_encoded(b'{"kind":"user","payload":nonsense}'),
    ]
    rows = PageReader(graph_page(chain(1), transcript=lambda _id: odd)).transcript(0)
    assert rows is not None
    assert [row[0] for row in rows] == ["assistant", "tool", "user", "user", "user"]
    assert "nonsense" in rows[4][1]


def test_a_transcript_that_cannot_be_read_says_why_and_one_that_is_not_there_is_none() -> None:
    def read(session_id: UUID) -> ChunkTable | None:
        if session_id.int == 1:
            raise PersistenceError("the log is <b>damaged</b>")
        return None

    reader = PageReader(graph_page(chain(2), transcript=read))
    assert reader.data["unread"] == {"0": "the log is <b>damaged</b>"}
    assert reader.transcript(0) is None
    assert reader.transcript(1) is None


def test_facts_are_there_and_nothing_unknown_becomes_a_zero() -> None:
    full = LineageNode(
        uuid4(), (), "run_session_loop", LineageKind.OP_SESSION_LOOP, "completed", 7, RathLLMTokenUsage(10, 5, 15), (("k", 1),), "work",
        folded=2, model="m", cost_usd=0.5, created_at=datetime(2026, 1, 2, tzinfo=UTC), duration_s=1.5, verdict="complete",
        sandbox="docker", snapshot="s1", digest="ab",
    )
    full = LineageNode(**{**{f: getattr(full, f) for f in LineageNode.__slots__}, "path": Path(f"/logs/{full.id}.jsonl")})
    bare = LineageNode(uuid4(), (full.id,))
    reader = PageReader(graph_page([full, bare]))
    nodes = reader.data["nodes"]
    assert (nodes["rows"], nodes["tokens"], nodes["input"]) == ([7, None], [15, None], [10, None])
    assert (nodes["cost"], nodes["duration"], nodes["created"]) == ([0.5, None], [1.5, None], [1767312000.0, None])
    assert (nodes["digest"], nodes["folded"], nodes["extras"]) == ({"0": "ab"}, {"0": 2}, {"0": [["k", "1"]]})
    assert [reader.text(name, 0) for name in ("model", "verdict", "sandbox", "snapshot")] == ["m", "complete", "docker", "s1"]
    assert reader.text("path", 0) == "/logs/\x00.jsonl"
    assert reader.text("model", 1) == ""


def test_edges_carry_their_roles_recorded_or_by_kind() -> None:
    a, b = LineageNode(UUID(int=1)), LineageNode(UUID(int=2))
    loop = LineageNode(UUID(int=3), (a.id, b.id), kind=LineageKind.OP_SESSION_LOOP)
    merge = LineageNode(UUID(int=4), (a.id, loop.id), kind=LineageKind.OP_MERGE, roles=("parent", "merge"))
    edges = PageReader(graph_page([a, b, loop, merge])).data["edges"]
    roles = [edges["roles"][place] for place in edges["role"]]
    assert list(zip(edges["from"], edges["to"], roles, strict=True)) == [
        (0, 2, "parent"), (1, 2, "system"), (0, 3, "parent"), (2, 3, "merge"),
    ]
    given_ = PageReader(graph_page([a, b], edges=[(a.id, b.id, "user"), (a.id, uuid4(), "gone")])).data["edges"]
    assert (given_["from"], given_["to"], given_["roles"]) == ([0], [1], ["user"])


def test_numbers_that_are_none_are_unknown() -> None:
    reader = PageReader(graph_page([LineageNode(uuid4(), cost_usd=float("nan"), duration_s=float("inf"))]))
    assert reader.data["nodes"]["cost"] == reader.data["nodes"]["duration"] == [None]


def test_secrets_reach_no_page() -> None:
    register_secret("hunter2-hunter2")
    node = LineageNode(uuid4(), label="hunter2-hunter2", operator="hunter2-hunter2", extras=(("k", "hunter2-hunter2"),), model="hunter2-hunter2")
    html = graph_page([node], title="hunter2-hunter2", transcript=lambda _id: table("hunter2-hunter2"))
    assert "hunter2" not in html
    assert PageReader(html).transcript(0) == [["user", "[redacted]"]]


def test_a_pending_session_is_shown_as_pending_and_nothing_waits() -> None:
    client = ScriptedClient([{"text": "late"}], latency_s=30)
    running = run_session_loop(create_user_session("Go."), create_system_session("You answer."), agent_provider=client.as_provider())
    pending = run_session_loop(running.fork(), create_system_session("You check."), agent_provider=client.as_provider())
    try:
        began = time.monotonic()
        nodes = collect([running, pending])
        reader = PageReader(graph_page(nodes, transcript={running.id: running.partial, pending.id: pending.partial}.get))
        assert time.monotonic() - began < within(2)
        place = [node.id for node in nodes].index(pending.id)
        assert reader.text("status", place) == "pending"
        assert reader.transcript(place) == []
    finally:
        running.cancel()


def test_an_empty_lineage_is_a_page_too() -> None:
    assert PageReader(graph_page([])).data["nodes"]["id"] == []


@pytest.mark.slow
def test_rows_that_many_sessions_walk_are_not_walked_forever() -> None:
    transcripts = Transcripts(50_000_000)
    rows = table(*map(str, range(2000)))
    began = time.monotonic()
    tables: Iterator[ChunkTable] = (rows.extend(user_text_chunk(f"x{number}")) for number in range(300))
    steps = [transcripts.add(each, 300) for each in tables]
    # 600,000 rows in all; those that are the same objects are compared, not hashed.
    assert time.monotonic() - began < within(3)
    assert sum(step.count for step in steps) == 2000 + 300


@pytest.mark.slow
def test_ten_thousand_sessions_make_a_page_in_seconds() -> None:
    nodes = chain(10_000)
    base = table("start")
    tables: dict[UUID, ChunkTable] = {}
    for node in nodes:
        base = tables[node.id] = base.extend(user_text_chunk(f"row {node.label}"))
    began = time.monotonic()
    html = graph_page(nodes, transcript=tables.get)
    took = time.monotonic() - began
    print(f"10,000 sessions in a chain: {took:.1f} s, {len(html):,} bytes")
    assert took < within(20)
    assert len(html) < 4_000_000


def test_json_in_the_page_is_strict(tmp_path: Path) -> None:
    html = graph_page(chain(2), title="\u2028 </script> \ud800 \x00")

    def refuse(name: str) -> Any:
        raise AssertionError(name)

    data = json.loads(PageReader(html).by_id["rath-data"], parse_constant=refuse)
    assert data["title"] == clean("\u2028 </script> \ud800 \x00")
    assert "</script> \\ud800" not in html.split("<title>")[0]
