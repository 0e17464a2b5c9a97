"""Logs that stop anywhere: resuming is done once, a provider takes what comes of it, and every run can be finished."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rath.errors import PersistenceError
from rath.flow.tool import tool
from rath.session import continue_session_loop, resume_session, run_session_loop
from rath.session.chunk import ChunkRow, ChunkTable, assistant_turn_chunk, user_text_chunk
from rath.session.persistence import load_session
from rath.session.persistence.runlog import open_run_log
from rath.session.session import Session
from rath.testing import ScriptedClient, check_history
from tests.persistence.samples import appended, assistant, finished, records, result, started, used

pytestmark = pytest.mark.slow

USAGE = {"prompt_tokens": 3, "completion_tokens": 1}


@tool
def say(text: str) -> str:
    """Say it again."""
    return f"{text} é\u2028\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")


@tool(idempotent=True)
def look(text: str) -> str:
    """Look at it."""
    return text


def reply(*texts: str, name: str = "say") -> dict[str, Any]:
    wanted = [{"name": name, "arguments": {"text": text}, "id": f"call_{name}_{text}"} for text in texts]
    return {"text": "on it", "tool_calls": wanted, "usage": USAGE}


SCRIPT = [reply("a", "b", "c"), reply("d", "e", name="look"), reply("f"), {"text": "done", "usage": USAGE}]


def model() -> Any:
    return ScriptedClient(SCRIPT, by_turn=True).as_provider()


@pytest.fixture
def whole(tmp_path: Path) -> tuple[Path, bytes, Session]:
    """The log of a real run, its bytes, and the run's session; it began with two rows."""
    path = tmp_path / "a.jsonl"
    user = Session.from_user_message("go").append(assistant_turn_chunk(tool_calls=None, content="where?")).user("here")
    out = run_session_loop(
        user, Session.from_agent_prompt("x"), agent_provider=model(), tools=[say, look], persist_path=path
    ).synchronize()
    return path, path.read_bytes(), out


def check_resume(path: Path, data: bytes) -> Session:
    """Resume twice, and once more from each place where the first could have been killed between two of its writes."""
    path.write_bytes(data)
    session = resume_session(path)
    once = path.read_bytes()
    if len(session.chunk_table):
        check_history(session)
    for end in {data.rfind(b"\n") + 1, *(at + 1 for at in newlines(once)), len(once)}:
        if end > data.rfind(b"\n"):
            path.write_bytes(once[:end])
            again = resume_session(path)
            assert (again.digest, again.chunk_table) == (session.digest, session.chunk_table)
            assert path.read_bytes() == once
    loaded = load_session("", path=path)
    assert loaded.verdict in ("open", "complete")
    return session


def newlines(data: bytes) -> Iterator[int]:
    at = data.find(b"\n")
    while at >= 0:
        yield at
        at = data.find(b"\n", at + 1)


def check_continue(path: Path, data: bytes, out: Session) -> None:
    """Finish the run from ``data``."""
    path.write_bytes(data)
    session = continue_session_loop(path, agent_provider=model(), tools=[say, look], agent_session="x").synchronize()
    if session.id != out.id:  # it was complete: not touched
        assert path.read_bytes() == data
        return
    check_history(session)
    loaded = load_session("", path=path)
    found = records(path)  # read by the rules of docs/log-format.md
    assert (loaded.verdict, found[-1]["digest"]) == ("complete", session.digest.hex())
    assert loaded.chunk_table == session.chunk_table
    assert loaded.cumulative_usage == session.cumulative_usage
    assert [row.kind for row in session.chunk_table] == [row.kind for row in out.chunk_table]
    assert session.chunk_table[-1] == out.chunk_table[-1]


def seed_end(data: bytes) -> int:
    """Where the rows end that the run began with."""
    lines = data.splitlines(keepends=True)
    return len(b"".join(lines[:4]))


def cuts(data: bytes, sample: int) -> list[int]:
    boundaries = [at + 1 for at in newlines(data)]
    return sorted({*boundaries, *random.Random(4).sample(range(boundaries[0], len(data)), sample)})


def test_resuming_at_any_cut_is_done_once(whole: tuple[Path, bytes, Session]) -> None:
    path, data, _ = whole
    for cut in cuts(data, 60):
        check_resume(path, data[:cut])


def test_a_run_can_be_finished_from_any_cut(whole: tuple[Path, bytes, Session]) -> None:
    path, data, out = whole
    for cut in cuts(data, 15):
        if cut >= seed_end(data):
            check_continue(path, data[:cut], out)


def test_a_run_can_be_finished_after_a_repair_at_any_boundary(whole: tuple[Path, bytes, Session]) -> None:
    path, data, out = whole
    for cut in cuts(data, 0):
        if cut >= seed_end(data):
            check_resume(path, data[:cut])
            check_continue(path, path.read_bytes(), out)


def test_a_run_that_had_not_begun_is_refused_at_any_cut(whole: tuple[Path, bytes, Session]) -> None:
    path, data, _ = whole
    for cut in range(data.index(b"\n") + 1, seed_end(data), 37):
        path.write_bytes(data[:cut])
        with pytest.raises(PersistenceError, match="before the run began"):
            continue_session_loop(path, agent_provider=model()).synchronize()
        assert path.read_bytes() == data[:cut]


def test_a_continuation_that_is_cut_off_can_be_finished_too(whole: tuple[Path, bytes, Session]) -> None:
    path, data, out = whole
    middle = data.index(b'"tool_result","seq"')
    check_continue(path, data[: data.index(b"\n", middle) + 1], out)
    longer = path.read_bytes()
    for cut in cuts(longer, 10):
        if cut >= seed_end(data):
            check_resume(path, longer[:cut])
            check_continue(path, longer[:cut], out)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_resuming_at_every_byte_is_done_once(whole: tuple[Path, bytes, Session]) -> None:
    path, data, _ = whole
    for cut in range(data.index(b"\n") + 1, len(data) + 1):
        path.write_bytes(data[:cut])
        session = resume_session(path)
        once = path.read_bytes()
        assert (resume_session(path).digest, path.read_bytes()) == (session.digest, once)
        if len(session.chunk_table):
            check_history(session)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_can_be_finished_from_every_third_byte(whole: tuple[Path, bytes, Session]) -> None:
    path, data, out = whole
    for cut in range(seed_end(data), len(data) + 1, 3):
        check_continue(path, data[:cut], out)


@st.composite
def logs(draw: st.DrawFn) -> list[ChunkRow | object]:
    """Events of a run: rounds of calls whose results come in any order, and whose rows come after them."""
    made: list[ChunkRow | object] = [user_text_chunk(draw(st.text(max_size=5)) + "x")]
    index = 1
    for number in range(draw(st.integers(0, 3))):
        ids = [f"c{number}_{at}" for at in range(draw(st.integers(1, 4)))]
        made += [used(), appended(index, assistant(*ids))]
        order = draw(st.permutations(range(len(ids))))
        for at in order:
            made.append(started(ids[at]))
            if draw(st.booleans()):
                made.append(finished(ids[at], index + 1 + at, draw(st.text(max_size=8)) or "{}"))
        done = [event for event in made if type(event) is type(finished("x", 0)) and event.call_id in ids]
        if len(done) < len(ids):
            break
        bodies = {event.call_id: event.body for event in done}
        made += [appended(index + 1 + at, result(call_id, bodies[call_id])) for at, call_id in enumerate(ids)]
        index += 1 + len(ids)
    return made


@settings(max_examples=60, deadline=None)
@given(events=logs(), cut=st.floats(0, 1))
def test_any_log_of_a_run_cut_anywhere_is_resumed_once(events: list[Any], cut: float) -> None:
    with TemporaryDirectory() as directory:
        log = open_run_log(Session.from_user_message("go"), path=Path(directory) / "a.jsonl", seed=ChunkTable((events[0],)))
        for event in events[1:]:
            log.on_event(event)
        log.abandon()
        data = log.path.read_bytes()
        first = data.index(b"\n") + 1
        check_resume(log.path, data[: first + round((len(data) - first) * cut)])
