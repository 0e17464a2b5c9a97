from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rath.backend.types import BackendSandboxSpec
from rath.errors import PersistenceError
from rath.llm.openai import to_create_kwargs
from rath.llm.types import RathLLMChatRequest
from rath.session.chunk import (
    ChunkKind,
    ChunkRow,
    ChunkTable,
    chunk_table_to_messages,
    system_text_chunk,
    user_text_chunk,
)
from rath.session.persistence import PersistedSession, SessionWriter, load_session
from rath.session.persistence.runlog import open_run_log
from rath.session.persistence.transcript import acceptable
from rath.session.session import Session
from rath.testing import openai_faults
from tests.persistence.samples import assistant, finished, result, rows, started, write_sample


def check_acceptable(table: ChunkTable) -> None:
    """What providers ask of calls and results; these tables are pieces of histories, so nothing else is asked of them."""
    request = RathLLMChatRequest(messages=chunk_table_to_messages(table), model="m")
    assert not len(table) or openai_faults(to_create_kwargs(request, default_model=None)["messages"]) == []


def loaded_from(tmp_path: Path, table: list[ChunkRow], session: Session | None = None) -> PersistedSession:
    with SessionWriter(session or Session.from_user_message("x"), path=tmp_path / "a.jsonl") as writer:
        for index, row in enumerate(table):
            writer.write_chunk(index, row)
    return load_session("", path=writer.path)


def test_a_whole_transcript_stays_as_it_is(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.jsonl")
    loaded = load_session("", path=tmp_path / "a.jsonl")
    user, agent = loaded.to_resumable_pair()
    assert user.chunk_table is loaded.chunk_table
    assert user.id != loaded.header.id
    assert user.sandbox_backend is None
    assert agent.chunk_table == ChunkTable()


@pytest.mark.parametrize("length", range(6))
def test_every_prefix_of_a_run_becomes_acceptable(tmp_path: Path, length: int) -> None:
    loaded = loaded_from(tmp_path, rows()[:length])
    user, _ = loaded.to_resumable_pair()
    check_acceptable(user.chunk_table)
    assert user.chunk_table.rows[:length] == tuple(rows()[:length])


def test_a_call_without_a_result_is_answered_as_interrupted(tmp_path: Path) -> None:
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    log.append_row(0, rows()[0])
    log.append_row(1, rows()[1])
    log.on_event(started("a"))
    log.on_event(started("b"))
    log.on_event(finished("a", 2))
    log.abandon()
    user, _ = load_session("", path=log.path).to_resumable_pair()
    table = user.chunk_table
    assert table.rows[:3] == tuple(rows()[:3])
    (row,) = table.rows[3:]
    assert (row.kind, row.tool_call_id, row.payload["name"]) == (ChunkKind.TOOL_RESULT, "b", "probe")
    body = json.loads(row.payload["content"])
    assert (body["ok"], body["error_kind"]) == (False, "interrupted")
    # The same log gives the same rows, every time.
    again, _ = load_session("", path=log.path).to_resumable_pair()
    assert again.digest == user.digest


ORPHANS: list[list[ChunkRow]] = [
    [result("a")],
    [user_text_chunk("x"), result("a"), user_text_chunk("y")],
    [assistant("a"), result("a"), result("a")],
    [assistant("a"), result("b"), result("a")],
    [assistant("a"), user_text_chunk("x"), result("a")],
    [assistant("a", "b"), result("b"), assistant("a"), result("a")],
    [assistant("a", "a"), result("a")],
    [ChunkRow(ChunkKind.TOOL_RESULT, {}), ChunkRow(ChunkKind.TOOL_RESULT, {"tool_call_id": ["a"]})],
]


@pytest.mark.parametrize("table", ORPHANS)
def test_results_without_a_call_are_left_out(table: list[ChunkRow]) -> None:
    made = acceptable(ChunkTable(tuple(table)))
    check_acceptable(made)
    assert acceptable(made) is made


GOOD = {"id": "a", "type": "function", "function": {"name": "probe", "arguments": "{}"}}


@pytest.mark.parametrize(
    "calls",
    [5, True, "x", {}, {"a": 1}, [5], [None], [{}], [{"id": "a"}], [{"id": 1, "function": {}}], [[GOOD]],
     [GOOD | {"id": ["a"]}], [GOOD | {"function": {"name": 1, "arguments": "{}"}}], [GOOD | {"function": {"name": "x"}}]],
)  # fmt: skip
def test_what_is_no_tool_call_is_left_out(calls: Any) -> None:
    table = ChunkTable((ChunkRow(ChunkKind.ASSISTANT, {"content": "text", "tool_calls": calls}),))
    (row,) = acceptable(table).rows
    assert row.text == "text"
    assert row.tool_calls == ()
    both = ChunkTable((ChunkRow(ChunkKind.ASSISTANT, {"content": None, "tool_calls": [GOOD, calls]}),))
    made = acceptable(both)
    check_acceptable(made)
    assert made.rows[0].payload["tool_calls"] == [GOOD]


def test_the_agent_gets_the_given_prompt_or_the_logged_one(tmp_path: Path) -> None:
    loaded = loaded_from(tmp_path, [user_text_chunk("x"), system_text_chunk("be brief"), system_text_chunk("second")])
    assert loaded.to_resumable_pair()[1].chunk_table.rows == (system_text_chunk("be brief"),)
    assert loaded.to_resumable_pair(agent_prompt="other")[1].chunk_table.rows == (system_text_chunk("other"),)
    assert loaded.to_resumable_pair(agent_prompt="")[1].chunk_table.rows == (system_text_chunk(""),)
    assert loaded.to_resumable_pair()[0].chunk_table == loaded.chunk_table


def test_the_user_session_is_placed_as_the_log_was(tmp_path: Path) -> None:
    spec = BackendSandboxSpec(working_dir=str(tmp_path))
    loaded = loaded_from(tmp_path, rows(), Session.from_user_message("x").to("local", spec=spec))
    user, agent = loaded.to_resumable_pair()
    assert (user.sandbox_backend, user.sandbox_spec) == ("local", spec)
    assert user.sandbox is None  # placed, not opened
    assert agent.sandbox_backend is None


def test_a_backend_that_is_not_here_is_a_persistence_error(tmp_path: Path) -> None:
    from tests.persistence.samples import rechained, records

    write_sample(tmp_path / "a.jsonl")
    edited = records(tmp_path / "a.jsonl")
    edited[0]["sandbox_backend"] = "moonbase"
    rechained(tmp_path / "a.jsonl", edited)
    loaded = load_session("", path=tmp_path / "a.jsonl")
    with pytest.raises(PersistenceError, match="moonbase"):
        loaded.to_resumable_pair()
