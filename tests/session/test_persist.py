"""What a run leaves on disk (semantics 4), with real runs."""

import json
import signal
import subprocess
import sys

import pytest

from rath.core import events
from rath.core.redact import register_secret
from rath.errors import PersistenceError, ProviderError, UsageValueError
from rath.flow.tool import tool
from rath.session import Session, list_persisted_sessions, load_session, run_session_compress, run_session_loop
from rath.session.persistence.resume import reopen_run_log
from rath.testing import ScriptedClient


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENRATH_HOME", str(tmp_path / ".openrath"))
    return tmp_path / ".openrath"


@tool
def echo(text: str) -> str:
    """Say it again."""
    return text


def calls(*texts):
    return {"tool_calls": [{"name": "echo", "arguments": {"text": t}} for t in texts]}


def loop(*replies, user=None, **options):
    options.setdefault("persist", True)
    options.setdefault("tools", [echo])
    return run_session_loop(
        user or Session.from_user_message("go"),
        Session.from_agent_prompt("a"),
        agent_provider=ScriptedClient(list(replies)).as_provider(),
        **options,
    )


def records(home, session):
    return [json.loads(line) for line in (home / "sessions" / f"{session.id}.jsonl").read_text().splitlines()]


def test_the_log_folds_to_the_session(home):
    out = loop(calls("one", "two"), calls("three"), "done").synchronize()
    saved = load_session(out.id)
    assert saved.closed
    assert saved.chunk_table == out.chunk_table
    assert saved.chunk_table.digest == out.digest
    assert saved.cumulative_usage == out.cumulative_usage
    assert saved.header.parent_session_ids == out.parent_session_ids
    assert (saved.header.lineage_operator, saved.header.lineage_kind) == (out.lineage_operator, out.lineage_kind)
    assert [meta.id for meta in list_persisted_sessions()] == [out.id]


def test_the_order_on_disk_is_header_rows_intent_result_row_trailer(home):
    out = loop(calls("one"), "done").synchronize()
    kinds = [r["record_type"] for r in records(home, out) if r["record_type"] != "usage"]
    assert kinds == ["header", "chunk", "chunk", "tool_intent", "tool_result", "chunk", "trailer"]
    assert [r["seq"] for r in records(home, out)] == list(range(len(records(home, out))))


def test_a_tools_intent_is_on_disk_before_it_runs_and_the_header_before_the_first_model_call(home):
    seen = []

    @tool
    def look() -> bool:
        (path,) = (home / "sessions").glob("*.jsonl")
        seen.append([json.loads(line)["record_type"] for line in path.read_text().splitlines()])
        return True

    loop({"tool_calls": [{"name": "look", "arguments": {}}]}, "done", tools=[look]).synchronize()
    assert seen[0][0] == "header"
    assert seen[0][-1] == "tool_intent"


def test_a_failed_run_leaves_an_open_log_with_every_row(home):
    out = loop(calls("one"), {"error": {"status": 400, "message": "no"}})
    with pytest.raises(ProviderError):
        out.synchronize()
    saved = load_session(out.id)
    assert not saved.closed
    assert saved.chunk_table == out.partial


def test_a_cancelled_run_leaves_an_open_log(home):
    out = run_session_loop(
        Session.from_user_message("go"), Session.from_agent_prompt("a"), persist=True,
        agent_provider=ScriptedClient(["late"], latency_s=30).as_provider(),
    )
    for event in out.events():
        if isinstance(event, events.TurnStarted):
            break
    out.cancel()
    assert isinstance(list(out.events())[-1], events.RunCancelled)
    with pytest.raises(Exception, match="cancelled"):
        out.synchronize(5)
    assert not load_session(out.id).closed


def test_persist_path_says_where(tmp_path, home):
    out = loop("done", persist=False, persist_path=tmp_path / "deep" / "mine.jsonl").synchronize()
    assert load_session(out.id, path=tmp_path / "deep" / "mine.jsonl").closed


def test_an_unwritable_place_fails_the_run_before_the_model_is_asked(tmp_path):
    (tmp_path / "file").write_text("in the way")
    client = ScriptedClient(["never asked"], record=True)
    out = run_session_loop(
        Session.from_user_message("go"), Session.from_agent_prompt("a"), agent_provider=client.as_provider(),
        persist_path=tmp_path / "file" / "log.jsonl",
    )
    with pytest.raises(PersistenceError):
        out.synchronize()
    assert list(client.requests) == []
    assert [r.text for r in out.partial] == ["go"]


def test_a_truncated_run_says_so_in_its_trailer(home):
    out = loop(*[calls("x")] * 2, max_tool_rounds=2).synchronize()
    trailer = records(home, out)[-1]
    assert {"status": "completed", "truncated": True}.items() <= trailer["outcome"].items()
    assert ["loop.truncated", True] in trailer["lineage_extras"]


def test_secrets_do_not_reach_the_log_but_reach_the_model(home):
    secret = "sk-log-secret-424242424242"
    register_secret(secret)
    client = ScriptedClient(["ok"], record=True)
    out = run_session_loop(
        Session.from_user_message(f"use {secret}"), Session.from_agent_prompt("a"), agent_provider=client.as_provider(), persist=True,
    ).synchronize()
    assert secret in client.requests[0].messages[1].content
    assert secret not in (home / "sessions" / f"{out.id}.jsonl").read_text()
    saved = load_session(out.id)
    assert saved.chunk_table.digest == out.digest


def test_a_compression_is_logged_too(home):
    out = run_session_compress(
        Session.from_user_message("long"), Session.from_agent_prompt("a"), persist=True,
        agent_provider=ScriptedClient(["short"]).as_provider(),
    ).synchronize()
    assert load_session(out.id).chunk_table == out.chunk_table


def test_a_run_through_middleware_is_logged_the_same(home):
    def passing(runner):
        async def run(request):
            async for event in runner(request):
                yield event

        return run

    out = loop(calls("one", "two"), "done", middleware=[passing]).synchronize()
    saved = load_session(out.id)
    assert saved.closed
    assert saved.chunk_table == out.chunk_table


def test_a_killed_process_leaves_every_finished_row(tmp_path, home):
    code = """
import sys, time
from rath.session import *
from rath.flow.tool import tool
from rath.testing import ScriptedClient

@tool
def slow() -> str:
    print("tool", flush=True)
    time.sleep(60)

s = run_session_loop(Session.from_user_message("go"), Session.from_agent_prompt("a"), tools=[slow], persist=True,
    agent_provider=ScriptedClient([{"tool_calls": [{"name": "slow", "arguments": {}}]}]).as_provider())
print(s.id, flush=True)
s.synchronize()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline().strip() for _ in range(2)]
        process.send_signal(signal.SIGKILL)
    session_id = next(line for line in lines if line != "tool")
    saved = load_session(session_id)
    assert not saved.closed
    assert [r.kind.value for r in saved.chunk_table] == ["user", "assistant"]
    user, agent = saved.to_resumable_pair(agent_prompt="go on")
    assert [r.kind.value for r in agent.chunk_table] == ["system"]
    assert user.chunk_table[0].text == "go"


_LEVELS = """
import sys
from rath.session import Session, run_session_loop
from rath.testing import ScriptedClient
level = sys.argv[1]
model = ScriptedClient(["one"]).as_provider()
out = run_session_loop(Session.from_user_message("go"), Session.from_agent_prompt("a"), agent_provider=model, persist=level)
out.synchronize()
"""


@pytest.mark.slow
def test_persist_takes_a_level_and_waits_for_the_disk_as_often_as_that_says(home, tmp_path):
    if subprocess.run(["sh", "-c", "command -v strace"], capture_output=True, check=False).returncode:
        pytest.skip("needs strace")
    waits = {}
    for level in ("process", "turn", "record"):
        trace = tmp_path / level
        command = ["strace", "-f", "-e", "trace=fdatasync", "-o", trace, sys.executable, "-c", _LEVELS, level]
        subprocess.run(command, check=True, timeout=50)
        waits[level] = trace.read_text().count("fdatasync(")
    assert waits["process"] == 0
    assert 0 < waits["turn"] < waits["record"]


def test_the_header_names_the_level_and_a_run_that_goes_on_keeps_it(home):
    for persist, level in ((True, "turn"), ("record", "record"), ("process", "process")):
        out = loop("done", persist=persist).synchronize()
        assert load_session(out.id).header.durability == level
    out = loop(ProviderError("the model is away"), persist="record")
    with pytest.raises(ProviderError):
        out.synchronize()
    path = home / "sessions" / f"{out.id}.jsonl"
    log = reopen_run_log(path)
    assert log._file.durability == "record"
    log.abandon()


def test_a_level_that_is_none_is_refused_before_anything_is_written(home):
    with pytest.raises(UsageValueError, match="'process', 'turn', 'record'"):
        loop("done", persist="always")
    assert not (home / "sessions").exists()
