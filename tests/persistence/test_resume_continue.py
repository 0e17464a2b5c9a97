"""A run goes on where its log stops."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rath.core import events
from rath.core.redact import register_secret
from rath.errors import (
    BudgetExceededError,
    DamagedLog,
    PersistenceError,
    ProviderError,
    RunCancelled,
    SandboxError,
    UsageTypeError,
    UsageValueError,
)
from rath.flow.tool import tool
from rath.session import continue_session_loop, resume_session, run_session_compress, run_session_loop
from rath.session.chunk import INTERRUPTED_BODY, ChunkKind, assistant_turn_chunk, user_text_chunk
from rath.session.persistence import SessionWriter, load_session
from rath.session.session import Session
from rath.testing import ScriptedClient, check_history
from tests.persistence.samples import records

USAGE = {"prompt_tokens": 10, "completion_tokens": 2}


def calls(*texts: str, name: str = "note") -> dict[str, Any]:
    wanted = [{"name": name, "arguments": {"text": text}, "id": f"call_{text}"} for text in texts]
    return {"tool_calls": wanted, "usage": USAGE}


SCRIPT = [calls("one", "two", "three"), {"text": "done", "usage": USAGE}]


class Notes:
    """A tool that remembers its calls."""

    def __init__(self, *, idempotent: bool = False) -> None:
        self.taken: list[str] = []

        @tool(idempotent=idempotent)
        def note(text: str) -> str:
            """Take a note."""
            self.taken.append(text)
            return f"noted {text}"

        self.tools = [note]


def client(*script: Any) -> ScriptedClient:
    return ScriptedClient(list(script) or SCRIPT, by_turn=True, record=True)


def run(home: Path, *script: Any, user: Session | None = None) -> tuple[Session, Path]:
    """A whole run, and its log."""
    out = run_session_loop(
        user or Session.from_user_message("go"), Session.from_agent_prompt("be brief"),
        agent_provider=client(*script).as_provider(), tools=Notes().tools, persist=True,
    ).synchronize()  # fmt: skip
    return out, home / "sessions" / f"{out.id}.jsonl"


def cut(path: Path, stop: Callable[[dict[str, Any]], bool], *, torn: bytes = b"") -> bytes:
    """Keep the log up to the first record that ``stop`` says yes to, that included."""
    lines = path.read_bytes().splitlines(keepends=True)
    last = next(at for at, line in enumerate(lines) if stop(json.loads(line)))
    kept = b"".join(lines[: last + 1])
    path.write_bytes(kept + torn)
    return kept


def go_on(path: Path, *script: Any, notes: Notes | None = None, **options: Any) -> Session:
    options.setdefault("agent_provider", client(*script).as_provider())
    return continue_session_loop(path, tools=(notes or Notes()).tools, agent_session="be brief", **options)


def bodies(session: Session) -> list[str]:
    return [str(row.text) for row in session.chunk_table if row.kind is ChunkKind.TOOL_RESULT]


def is_result(number: int) -> Callable[[dict[str, Any]], bool]:
    seen: list[int] = []

    def stop(record: dict[str, Any]) -> bool:
        if record["record_type"] == "tool_result":
            seen.append(1)
        return len(seen) == number

    return stop


def test_in_the_middle_of_a_round_durable_results_are_used_and_the_rest_is_interrupted(home: Path) -> None:
    out, path = run(home)
    kept = cut(path, is_result(1))
    (durable,) = [r["call_id"] for r in records(path) if r["record_type"] == "tool_result"]
    notes = Notes()
    session = go_on(path, notes=notes)
    assert session.id == out.id
    session.synchronize()
    assert notes.taken == []  # nothing ran again
    assert bodies(session) == [f'"noted {text}"' if durable == f"call_{text}" else INTERRUPTED_BODY for text in ("one", "two", "three")]
    assert session.chunk_table[-1] == assistant_turn_chunk(tool_calls=None, content="done")
    check_history(session)
    saved = load_session(out.id)
    assert saved.closed
    assert (saved.chunk_table, saved.chunk_table.digest) == (session.chunk_table, session.digest)
    assert path.read_bytes().startswith(kept)


def test_a_call_of_an_idempotent_tool_runs_again_with_an_intent_of_its_own(home: Path) -> None:
    _, path = run(home)
    cut(path, is_result(1))
    done = next(r["call_id"] for r in records(path) if r["record_type"] == "tool_result")
    notes = Notes(idempotent=True)
    session = go_on(path, notes=notes).synchronize()
    assert sorted(notes.taken) == sorted({"one", "two", "three"} - {done.removeprefix("call_")})
    assert bodies(session) == ['"noted one"', '"noted two"', '"noted three"']
    after = [r for r in records(path) if r["record_type"] in ("resume", "tool_intent", "tool_result")]
    after = after[[r["record_type"] for r in after].index("resume") + 1 :]
    assert sorted(r["record_type"] for r in after) == ["tool_intent", "tool_intent", "tool_result", "tool_result"]


def test_a_call_whose_arguments_were_redacted_is_not_run_again(home: Path) -> None:
    register_secret("hunter2-hunter2")
    _, path = run(home, {"tool_calls": [{"name": "note", "arguments": {"text": "hunter2-hunter2"}}]}, "done")
    cut(path, lambda record: record["record_type"] == "tool_intent")
    notes = Notes(idempotent=True)
    session = go_on(path, notes=notes).synchronize()
    assert notes.taken == []
    assert bodies(session) == [INTERRUPTED_BODY]


def test_a_resume_record_stands_before_the_first_new_row(home: Path) -> None:
    _, path = run(home)
    kept = cut(path, lambda record: record["record_type"] == "tool_intent", torn=b'{"record')
    go_on(path).synchronize()
    found = records(path)
    resume = found[kept.count(b"\n")]
    assert resume.keys() == {"record_type", "seq", "epoch", "writer", "repaired", "h"}
    assert resume["writer"]["pid"] == os.getpid()
    assert resume["repaired"] == {"torn_bytes": 8, "open_calls": 3}
    assert resume["epoch"] != found[0]["epoch"]
    assert found[-1]["record_type"] == "trailer"
    assert (found[-1]["record_count"], found[-1]["final_chunk_count"]) == (len(found), 6)


def test_after_a_final_answer_only_the_trailer_is_written_and_no_model_is_asked(home: Path) -> None:
    out, path = run(home)
    cut(path, lambda r: r["record_type"] == "chunk" and r["index"] == 5)
    asked = client()
    session = go_on(path, agent_provider=asked.as_provider()).synchronize()
    assert not asked.requests
    assert session.digest == out.digest
    assert load_session(out.id).closed
    assert [r["record_type"] for r in records(path)[-2:]] == ["resume", "trailer"]


def test_an_answer_that_the_run_began_with_does_not_end_it(home: Path) -> None:
    user = Session.from_user_message("go").append(assistant_turn_chunk(tool_calls=None, content="earlier"))
    _, path = run(home, "later", user=user)
    cut(path, lambda r: r["record_type"] == "chunk" and r["index"] == 1)
    session = go_on(path, "later").synchronize()
    assert [row.text for row in session.chunk_table] == ["go", "earlier", "later"]


def test_the_next_request_has_the_prompt_and_all_rows_and_the_next_turns_reply(home: Path) -> None:
    _, path = run(home)
    cut(path, lambda r: r["record_type"] == "tool_result" and r["index"] == 4)
    asked = client()
    session = go_on(path, agent_provider=asked.as_provider()).synchronize()
    (request,) = asked.requests
    assert [message.role for message in request.messages] == ["system", "user", "assistant", "tool", "tool", "tool"]
    assert session.chunk_table[-1].text == "done"  # the script's second reply: the first was the other process's


def test_lineage_placement_and_usage_are_of_the_whole_run(home: Path, tmp_path: Path) -> None:
    user = Session.from_user_message("go").to("local", spec=str(tmp_path))
    out, path = run(home, user=user)
    assert out.cumulative_usage is not None
    cut(path, lambda r: r["record_type"] == "tool_intent")
    session = go_on(path)
    assert session.parent_session_ids == out.parent_session_ids
    assert (session.lineage_operator, session.lineage_kind) == (out.lineage_operator, out.lineage_kind)
    assert session.lineage == out.lineage
    assert (session.sandbox_backend, session.sandbox_spec) == ("local", user.sandbox_spec)
    assert session.cumulative_usage == out.cumulative_usage
    assert load_session(out.id).cumulative_usage == out.cumulative_usage
    (finish,) = session.events(events.RunFinished)
    assert finish.rows == 6


def test_tools_can_run_somewhere_else(home: Path, tmp_path: Path) -> None:
    _, path = run(home)
    cut(path, lambda r: r["record_type"] == "chunk")
    (tmp_path / "elsewhere").mkdir()
    here = {"tool_calls": [{"name": "list_workspace_files", "arguments": {"path": "."}}]}
    with pytest.raises(SandboxError, match="place it first"):
        go_on(path, here, "done").synchronize()
    cut(path, lambda r: r["record_type"] == "chunk")
    (tmp_path / "elsewhere" / "found").touch()
    session = go_on(path, here, "done", backend="local", spec=str(tmp_path / "elsewhere")).synchronize()
    assert '"found"' in bodies(session)[-1]


def test_a_complete_log_is_continued_by_a_new_session_with_a_log_of_its_own(home: Path) -> None:
    out, path = run(home)
    before = path.read_bytes()
    session = continue_session_loop(out.id, agent_provider=client("more").as_provider())
    assert session.id != out.id
    session.synchronize()
    assert session.parent_session_ids[0] == out.id
    assert [row.text for row in session.chunk_table][-2:] == ["done", "more"]
    assert path.read_bytes() == before
    saved = load_session(session.id)
    assert (saved.closed, saved.header.parent_session_ids) == (True, session.parent_session_ids)


def test_a_run_that_fails_again_can_be_gone_on_with_again(home: Path) -> None:
    out, path = run(home)
    cut(path, lambda r: r["record_type"] == "chunk")
    failing = {"error": {"status": 400, "message": "no"}}
    for _ in range(2):
        with pytest.raises(ProviderError):
            go_on(path, failing).synchronize()
        assert load_session(out.id).verdict == "open"
    session = go_on(path).synchronize()
    assert session.digest == out.digest
    assert [r["record_type"] for r in records(path)].count("resume") == 3


def test_the_repair_and_then_going_on_are_one_transcript(home: Path) -> None:
    out, path = run(home)
    cut(path, is_result(2))
    repaired = resume_session(out.id)
    notes = Notes(idempotent=True)
    session = go_on(path, notes=notes).synchronize()
    assert notes.taken == []  # marked as interrupted it was, and it stays so
    assert session.chunk_table[: len(repaired.chunk_table)] == repaired.chunk_table.rows
    check_history(session)


def test_rounds_are_counted_from_here_on(home: Path) -> None:
    _, path = run(home, calls("one"), calls("two"), calls("three"), "done")
    cut(path, is_result(1))
    session = go_on(path, calls("one"), calls("two"), calls("three"), "done", max_tool_rounds=1).synchronize()
    assert bodies(session) == ['"noted one"', '"noted two"']
    assert ("loop.truncated", True) in session.lineage_extras


def test_a_budget_that_is_used_up_is_asked_about_again_by_the_run_that_goes_on(home: Path) -> None:
    told: list[int] = []

    def stop(_session: Session, usage: Any) -> None:
        told.append(usage.total_tokens)
        raise BudgetExceededError("over", budget_tokens=20)

    def go(session: Any) -> Session:
        provider = client(calls("one"), calls("two"), calls("three"), "done").as_provider()
        capped = replace(provider, budget_total_tokens=20, on_budget_exceeded=stop)
        if session is None:
            session = run_session_loop(
                Session.from_user_message("go"), Session.from_agent_prompt("x"), agent_provider=capped,
                tools=Notes().tools, persist=True,
            )  # fmt: skip
        else:
            session = go_on(home / "sessions" / f"{session.id}.jsonl", agent_provider=capped)
        with pytest.raises(BudgetExceededError):
            session.synchronize()
        return session

    again = go(go(None))
    assert told == [24, 36]
    check_history(again)


def test_middleware_and_a_cancellation_leave_a_transcript_that_providers_take(home: Path) -> None:
    out, path = run(home)
    cut(path, lambda r: r["record_type"] == "tool_intent")
    seen = []

    def watching(inner: Any) -> Any:
        async def runner(request: Any) -> Any:
            async for event in inner(request):
                seen.append(type(event).__name__)
                yield event

        return runner

    late = ScriptedClient(["late"], latency_s=30, loop=True).as_provider()
    session = go_on(path, agent_provider=late, middleware=[watching])
    for event in session.events():
        if isinstance(event, events.TurnStarted):
            break
    session.cancel()
    with pytest.raises(RunCancelled):
        session.synchronize(10)
    check_history(session)
    assert len(session.partial) == 5
    assert seen.count("RowAppended") == 3
    whole = go_on(path, middleware=[watching]).synchronize()
    assert (whole.id, load_session(out.id).closed) == (out.id, True)
    assert whole.cumulative_usage == load_session(out.id).cumulative_usage == out.cumulative_usage
    check_history(whole)


def test_middleware_that_tries_again_gets_no_result_twice(home: Path) -> None:
    def again(inner: Any) -> Any:
        async def runner(request: Any) -> Any:
            try:
                async for event in inner(request):
                    yield event
            except ProviderError:
                async for event in inner(request):
                    yield event

        return runner

    out, path = run(home)
    cut(path, is_result(1))
    script = [SCRIPT[0], {"error": {"status": 400, "message": "no"}}, "done"]
    asked = ScriptedClient(script[1:], record=True)
    session = go_on(path, agent_provider=asked.as_provider(), middleware=[again]).synchronize()
    check_history(session)
    assert [row.kind.value for row in session.chunk_table] == ["user", "assistant", *["tool_result"] * 3, "assistant"]
    assert [[message.role for message in request.messages][2:] for request in asked.requests] == [["assistant", *["tool"] * 3]] * 2
    assert load_session(out.id).chunk_table == session.chunk_table


def test_a_reply_that_comes_with_the_cancellation_is_whole_in_the_table_and_in_the_log(home: Path) -> None:
    started: list[Session] = []

    def cancel_and_reply(_request: Any) -> Any:
        started[0].cancel()
        return calls("one", "two")

    gate = ScriptedClient(["first"], latency_s=0.05).as_provider()
    first = run_session_loop(Session.from_user_message("go"), Session.from_agent_prompt("x"), agent_provider=gate)
    started.append(
        run_session_loop(
            first, Session.from_agent_prompt("x"), agent_provider=ScriptedClient([cancel_and_reply]).as_provider(),
            tools=Notes().tools, persist=True,
        )
    )  # fmt: skip
    with pytest.raises(RunCancelled):
        started[0].synchronize(10)
    assert [row.kind.value for row in started[0].partial][2:] == ["assistant", "tool_result", "tool_result"]
    check_history(started[0])
    assert load_session(started[0].id).chunk_table == started[0].partial


def test_results_have_their_rows_numbers_also_where_middleware_adds_rows(home: Path) -> None:
    def adding(inner: Any) -> Any:
        async def runner(request: Any) -> Any:
            added = False
            async for event in inner(request):
                if isinstance(event, events.TurnStarted) and not added:
                    added = True
                    row = user_text_chunk("by the way")
                    yield events.RowAppended(event.run_id, event.session_id, 0, 0.0, 0, row)
                yield event

        return runner

    out = run_session_loop(
        Session.from_user_message("go"), Session.from_agent_prompt("x"), agent_provider=client().as_provider(),
        tools=Notes().tools, persist=True, middleware=[adding],
    ).synchronize()  # fmt: skip
    path = home / "sessions" / f"{out.id}.jsonl"
    places = {row.tool_call_id: at for at, row in enumerate(out.chunk_table) if row.tool_call_id}
    assert {r["call_id"]: r["index"] for r in records(path) if r["record_type"] == "tool_result"} == places
    cut(path, is_result(2))
    assert bodies(resume_session(path)).count(INTERRUPTED_BODY) == 1


def test_a_living_writer_is_named_when_the_session_is_read(home: Path) -> None:
    out, path = run(home)
    cut(path, lambda r: r["record_type"] == "tool_intent")
    late = ScriptedClient(["late"], latency_s=30).as_provider()
    first = go_on(path, agent_provider=late)
    for event in first.events():
        if isinstance(event, events.TurnStarted):
            break
    before = path.read_bytes()
    with pytest.raises(PersistenceError, match=f"process {os.getpid()} on"):
        go_on(path).synchronize()
    with pytest.raises(PersistenceError, match=f"process {os.getpid()} on"):
        resume_session(out.id)
    assert path.read_bytes() == before
    first.cancel()
    with pytest.raises(RunCancelled):
        first.synchronize(10)
    assert go_on(path).synchronize().id == out.id


def test_what_cannot_be_gone_on_with_is_refused_and_not_changed(home: Path, tmp_path: Path) -> None:
    _, path = run(home)
    whole = path.read_bytes()
    not_begun = whole.splitlines(keepends=True)[0]
    damaged = whole.replace(b"noted one", b"noted 1", 1)
    for data, error in ((not_begun, "died before the run began"), (damaged[:-1], "salvage")):
        path.write_bytes(data)
        with pytest.raises(PersistenceError, match=error):
            go_on(path).synchronize()
        assert path.read_bytes() == data
    with SessionWriter(Session.from_user_message("x"), path=tmp_path / "hand.jsonl") as writer:
        writer.write_chunk(0, user_text_chunk("go"))
        writer.write_chunk(1, assistant_turn_chunk(tool_calls=None, content="a"))
        writer.abandon()
    assert load_session("", path=go_on_path(writer.path)).closed  # a hand-written log is as good as any
    with pytest.raises(DamagedLog):
        continue_session_loop(_file(tmp_path / "empty.jsonl", b""), agent_provider=client().as_provider())


def go_on_path(path: Path) -> Path:
    go_on(path).synchronize()
    return path


def _file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_wrong_arguments_are_errors_at_once(home: Path) -> None:
    _, path = run(home)
    cut(path, lambda r: r["record_type"] == "tool_intent")
    for options, error in (
        ({"max_tool_rounds": -1}, UsageValueError),
        ({"timeout_s": 0}, UsageValueError),
        ({"spec": "/tmp"}, UsageValueError),
        ({"middleware": [1]}, UsageTypeError),
        ({"agent_provider": "openai"}, UsageTypeError),
    ):
        with pytest.raises(error):
            go_on(path, **options)
    with pytest.raises(UsageTypeError, match="a Session or a prompt"):
        continue_session_loop(path, agent_provider=client().as_provider(), agent_session=5)  # type: ignore[arg-type]
    out = run_session_compress(
        Session.from_user_message("go"), Session.from_agent_prompt("x"), persist=True,
        agent_provider=ScriptedClient([{"error": {"status": 400, "message": "no"}}]).as_provider(),
    )  # fmt: skip
    with pytest.raises(ProviderError):
        out.synchronize()
    with pytest.raises(UsageValueError, match="compression"):
        continue_session_loop(out.id, agent_provider=client().as_provider())
