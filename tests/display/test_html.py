"""Pages and notebook cells: nothing but themselves, nothing waits, nothing secret, never too large."""

from __future__ import annotations

import json
import threading
import time
from uuid import uuid4

import pytest

from rath.core.redact import register_secret
from rath.display.html import Section, html_page, session_html, transcript_html
from rath.display.transcript import short_arguments, view_result, view_row
from rath.errors import RathError
from rath.llm.scripted import ScriptedClient
from rath.llm.types import RathLLMTokenUsage, RathLLMToolCallFunction, RathLLMToolCallPart
from rath.session.chunk import (
    ChunkKind,
    ChunkRow,
    ChunkTable,
    assistant_turn_chunk,
    tool_feedback_chunk,
    user_text_chunk,
)
from rath.session.graph.lineage import collect
from rath.session.loop import run_session_loop
from rath.session.session import Session
from rath.testing.pace import within
from tests.display.support import HOSTILE, Page, assert_harmless

# JSON, and so a row, has no lone surrogates.
HOSTILE_ROW = HOSTILE.replace("\ud800", "")


def call_row(name: str, arguments: str, call_id: str = "c1") -> ChunkRow:
    call = RathLLMToolCallPart(call_id, "function", RathLLMToolCallFunction(name, arguments))
    return assistant_turn_chunk(tool_calls=(call,), content=HOSTILE_ROW)


def hostile_rows() -> tuple[ChunkRow, ...]:
    return (
        user_text_chunk(HOSTILE_ROW),
        call_row(HOSTILE_ROW, json.dumps({HOSTILE_ROW: HOSTILE_ROW, "path": HOSTILE_ROW}), HOSTILE_ROW),
        call_row(HOSTILE_ROW, HOSTILE_ROW),
        tool_feedback_chunk(HOSTILE_ROW, HOSTILE_ROW, json.dumps({"exit_code": HOSTILE_ROW, "stdout": HOSTILE_ROW})),
        tool_feedback_chunk("c", "t", json.dumps({"ok": False, "error_kind": HOSTILE_ROW, "message": HOSTILE_ROW})),
        tool_feedback_chunk("c", "t", HOSTILE_ROW),
        ChunkRow(ChunkKind.ASSISTANT, {"content": {"not": ["text", HOSTILE_ROW]}, "tool_calls": [3, {"function": 7}]}),
        ChunkRow(ChunkKind.TOOL_RESULT, {}),
    )


def test_a_page_of_hostile_text_is_harmless_and_refers_to_nothing_outside() -> None:
    session = Session(ChunkTable(hostile_rows()), lineage_operator=HOSTILE_ROW)
    section = Section(
        session.id, HOSTILE, session.partial, error=HOSTILE, notes=(HOSTILE,), log=HOSTILE, diff=HOSTILE, status=HOSTILE
    )
    html = html_page(
        HOSTILE,
        intro=(HOSTILE,),
        facts=((HOSTILE, HOSTILE),),
        nodes=collect([session], labels={session.id: HOSTILE}),
        diff=(HOSTILE, HOSTILE),
        sections=(section,),
    )
    page = assert_harmless(html)
    policies = [value for tag, name, value in page.attributes if tag == "meta" and name == "content"]
    assert any(value.startswith("default-src 'none'; style-src 'unsafe-inline'") for value in policies)
    assert page.text.count("<script>alert('x')</script>") >= 10
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "").replace("http://evil.example/x", "")


def test_a_cell_of_hostile_rows_is_harmless() -> None:
    assert_harmless(session_html(Session(ChunkTable(hostile_rows()), lineage_operator=HOSTILE_ROW)))


def test_links_of_a_page_lead_to_its_sections() -> None:
    sections = [Section(uuid4(), name, ()) for name in ("one", "two")]
    html = html_page("t", nodes=collect([Session.from_user_message("x")]), diff=("d", ""), sections=sections)
    page = Page(html)
    targets = {value for _tag, name, value in page.attributes if name == "id"}
    links = {value[1:] for _tag, name, value in page.attributes if name == "href"}
    assert links
    assert links <= targets


def test_showing_a_pending_session_does_not_wait_and_says_so() -> None:
    client = ScriptedClient(["Late."], latency_s=30)
    session = run_session_loop(
        Session.from_user_message("Go."), Session.from_agent_prompt("Be."), agent_provider=client.as_provider()
    )
    began = time.monotonic()
    page = assert_harmless(session_html(session))
    assert time.monotonic() - began < within(1)
    assert "more rows may follow" in page.text
    session.cancel()


def test_a_failed_session_shows_its_rows_and_its_error_and_stays_unread() -> None:
    client = ScriptedClient([RathError("<b>no & such</b> thing")])
    session = run_session_loop(
        Session.from_user_message("Go."), Session.from_agent_prompt("Be."), agent_provider=client.as_provider()
    )
    done = threading.Event()
    session._cell.on_done(lambda _cell: done.set())
    assert done.wait(10)
    page = assert_harmless(session_html(session))
    assert "✗ failed" in page.text
    assert "RathError: <b>no & such</b> thing" in page.text
    assert "Go." in page.text
    failure = session._cell.failure
    assert failure is not None
    assert not failure.read  # a display is no reader: the failure is still reported if nobody looks
    assert isinstance(session.exception(), RathError)


@pytest.mark.slow
def test_a_cell_of_a_hundred_thousand_rows_stays_below_a_megabyte() -> None:
    rows = tuple(user_text_chunk(f"row {number}") for number in range(100_000))
    html = session_html(Session(ChunkTable(rows)))
    assert len(html.encode()) < 1_000_000
    page = Page(html)
    assert "row 0" in page.text
    assert "row 99999" in page.text
    assert "rows not shown" in page.text
    assert "100,000 rows" in page.text


@pytest.mark.slow
@pytest.mark.parametrize("character", ['"', "\x1b", "日", "&"])
def test_a_cell_of_monstrous_rows_stays_below_a_megabyte(character: str) -> None:
    text = character * 100_000
    calls = tuple(
        RathLLMToolCallPart(f"c{n}", "function", RathLLMToolCallFunction(text, json.dumps({"a": text, "b": text})))
        for n in range(40)
    )
    rows = [assistant_turn_chunk(tool_calls=calls, content=text)] * 3
    rows += [tool_feedback_chunk("c", text, json.dumps({"exit_code": 1, "stdout": text, "stderr": text}))] * 20
    html = session_html(Session(ChunkTable(tuple(rows))))
    assert len(html.encode()) < 1_000_000
    assert "left out" in html


def test_a_cut_transcript_counts_what_it_leaves_out() -> None:
    rows = ChunkTable(tuple(user_text_chunk("x" * 1000) for _ in range(100)))
    html = transcript_html(rows, max_bytes=20_000)
    shown = html.count('class="role"')
    assert f"{100 - shown} rows not shown" in html
    assert transcript_html(ChunkTable()) == '<div class="row gap">no rows yet</div>'


def test_inherited_rows_are_folded_not_lost() -> None:
    rows = ChunkTable(tuple(user_text_chunk(f"row {number}") for number in range(5)))
    page = Page(html_page("t", sections=[Section(uuid4(), "s", rows, inherited=3)]))
    assert "3 rows from the session that it continues" in page.text
    assert page.text.count("row 2") == 1
    assert page.text.count("row 4") == 1


def test_secrets_are_shown_redacted_in_transcript_error_and_diff() -> None:
    secret = f"s3cret-{uuid4().hex}"
    register_secret(secret)
    client = ScriptedClient([RathError(f"bad key {secret}")])
    session = run_session_loop(
        Session.from_user_message(f"Use {secret}."), Session.from_agent_prompt("Be."), agent_provider=client.as_provider()
    )
    assert isinstance(session.exception() or _wait(session), RathError)
    diff = f"--- a/x\n+++ b/x\n@@ -0,0 +1 @@\n+{secret}\n"
    html = html_page("t", diff=("d", diff), sections=[Section(session.id, "s", session.partial, diff=diff)])
    for shown in (html, session_html(session)):
        assert secret not in shown
        assert "[redacted]" in shown


def _wait(session: Session) -> BaseException | None:
    try:
        session.synchronize(10)
    except RathError as error:
        return error
    return None


# -- what a row says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "mark", "summary"),
    [
        ('{"exit_code":0,"stdout":"hi","stderr":"","elapsed_ms":3}', "✓", "exit 0"),
        ('{"exit_code":2,"stdout":"","stderr":"no","elapsed_ms":3}', "•", "exit 2"),
        ('{"data":"a\\nb\\n"}', "✓", "2 lines"),
        ('{"entries":[{"name":"a","path":"a","is_dir":true}]}', "✓", "1 entry"),
        ('{"bytes_written":12}', "✓", "12 bytes written"),
        ('{"text":null,"stdout":"1","stderr":"","error":null}', "✓", "ran"),
        ('{"text":null,"stdout":"","stderr":"","error":"Boom"}', "•", "raised"),
        ('{"ok":true}', "✓", "yes"),
        ('{"ok":false}', "✓", "no"),
        ('{"ok":false,"error_kind":"unknown_tool","message":"m","detail":null}', "✗", "unknown_tool"),
        ('{"ok":true,"path":"a b.py","line":3}', "✓", "path=“a b.py” line=3"),
        ("plain text", "✓", "1 line"),
        ("{broken", "✓", "1 line"),
        ("", "✓", "0 lines"),
    ],
)
def test_a_result_is_summed_up_in_a_few_words(body: str, mark: str, summary: str) -> None:
    result = view_result(body)
    assert (result.mark, result.summary) == (mark, summary)


def test_arguments_are_short_and_on_one_line() -> None:
    assert short_arguments('{"cmd": "ls -l\\npwd"}') == "ls -l pwd"
    assert short_arguments('{"path": "a.py", "old": "x = 1", "new": ""}') == "path=a.py old=“x = 1” new=“”"
    assert short_arguments("not json") == "not json"
    assert len(short_arguments(json.dumps({"a": "x" * 10_000, "b": 1}))) <= 90


def test_a_row_is_read_whatever_its_payload_is() -> None:
    for row in hostile_rows():
        view_row(row)
    assert view_row(ChunkRow(ChunkKind.USER, {})).text == ""


def test_usage_and_time_stand_beside_the_title() -> None:
    usage = RathLLMTokenUsage(1000, 234, 1234)
    page = Page(html_page("t", sections=[Section(uuid4(), "s", (), usage=usage, wall_s=2.5)]))
    assert "0 rows · 1,234 tokens · 2.5 s" in page.text
