"""``rath sessions resume``: what a run that stopped left behind, repaired and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rath.session.persistence import load_session
from tests.cli.support import Ran, write_script


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


@pytest.fixture
def stopped(tmp_path: Path, rath_here: Callable[..., Ran]) -> tuple[Path, str]:
    """The log of a run that was cut off within its second round, and its model."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "note.txt").write_text("hello\n")
    model = write_script(
        tmp_path / "script.json",
        {"tool_calls": [call("read_workspace_file", path="note.txt")]},
        {"tool_calls": [call("run_shell_command", cmd="echo x >> note.txt"), call("read_workspace_file", path="note.txt")]},
        "All is done.",
        by_turn=True,
    )
    ran = rath_here("run", "Look.", "--model", model, "--workspace", str(tmp_path / "work"), "--backend", "local")
    assert ran.code == 0, ran.err
    (path,) = (tmp_path / ".openrath" / "sessions").glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    second = next(at for at, line in enumerate(lines) if b'"tool_intent"' in line and b"run_shell" in line)
    path.write_bytes(b"".join(lines[: second + 1]) + b'{"record_type":"tool_res')
    return path, model


def test_a_repair_is_shown_and_done_once(rath_here: Callable[..., Ran], stopped: tuple[Path, str]) -> None:
    path, _ = stopped
    ran = rath_here("sessions", "resume", path.stem[:8])
    assert ran.code == 0, ran.err
    assert "cut off 24 bytes of a last line that was not whole; marked 2 tool calls without a result" in ran.out
    assert "interrupted: run_shell_command" in ran.out
    assert f"sessions resume {path.stem} --model" in ran.out
    repaired = path.read_bytes()
    again = rath_here("sessions", "resume", str(path))
    assert "nothing: every tool call has its result" in again.out
    assert path.read_bytes() == repaired


def test_a_repair_as_json(rath_here: Callable[..., Ran], stopped: tuple[Path, str]) -> None:
    path, _ = stopped
    said = rath_here("sessions", "resume", path.stem, "--json").json
    loaded = load_session("", path=path)
    names = [one["name"] for one in said.pop("interrupted")]
    assert names == ["run_shell_command", "read_workspace_file"]
    assert said == {
        "id": path.stem, "path": str(path), "verdict": "torn", "torn_bytes": 24, "rows": 6,
        "digest": loaded.chunk_table.digest.hex(),
    }  # fmt: skip


def test_with_a_model_the_run_goes_on_where_it_ran_before(rath_here: Callable[..., Ran], stopped: tuple[Path, str]) -> None:
    path, model = stopped
    ran = rath_here("sessions", "resume", path.stem, "--model", model)
    assert ran.code == 0, ran.err
    assert "All is done." in ran.out
    assert "completed" in ran.out
    loaded = load_session(path.stem, path=path)
    assert loaded.closed
    results = [json.loads(row.text or "") for row in loaded.chunk_table if row.tool_call_id]
    assert results[0] == {"data": "hello\n"}
    assert results[1]["error_kind"] == "interrupted"  # a command may have had its effect
    complete = path.read_bytes()
    assert "nothing: the log is complete" in rath_here("sessions", "resume", path.stem).out
    assert path.read_bytes() == complete


def test_going_on_as_json_and_a_failure_is_exit_code_1(
    rath_here: Callable[..., Ran], stopped: tuple[Path, str], tmp_path: Path
) -> None:
    path, model = stopped
    failing = write_script(tmp_path / "failing.json", {"error": {"status": 400, "message": "no such model"}})
    ran = rath_here("sessions", "resume", path.stem, "--model", failing, "--json")
    assert ran.code == 1
    assert (ran.json["status"], ran.json["repaired"]) == ("failed", {"torn_bytes": 24, "open_calls": 2})
    assert "no such model" in ran.json["error"]
    ran = rath_here("sessions", "resume", path.stem, "--model", model, "--backend", "local", "--json")
    assert ran.code == 0, ran.err
    said = ran.json
    assert (said["session_id"], said["status"], said["text"]) == (path.stem, "completed", "All is done.")
    assert (said["repaired"], said["log"]) == ({"torn_bytes": 0, "open_calls": 0}, str(path))


def test_what_cannot_be_resumed_is_said(rath_here: Callable[..., Ran], stopped: tuple[Path, str]) -> None:
    path, _ = stopped
    refused = rath_here("sessions", "resume", path.stem, "--backend", "local")
    assert (refused.code, "name its --model" in refused.err) == (2, True)
    path.write_bytes(path.read_bytes().replace(b"hello", b"hallo"))
    for options in ((), ("--json",)):
        refused = rath_here("sessions", "resume", path.stem, *options)
        assert refused.code == 1
        assert "rath sessions salvage" in refused.err
    missing = rath_here("sessions", "resume", "00000000")
    assert (missing.code, "no session" in missing.err) == (1, True)
