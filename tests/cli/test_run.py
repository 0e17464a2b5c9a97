"""``rath run``: an agent at work, shown as it happens, with an exit code that says how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rath.session.persistence.reader import load_session
from tests.cli.support import CONTROL, Ran, rath, rath_at_a_terminal, start_rath, write_script
from tests.display.support import HOSTILE
from tests.wire.server import Answer, Raw, WireServer

USAGE = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    (directory / "greeting.txt").write_text("hello\n")
    return directory


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Reads a file, edits it, runs a command that fails, calls a tool that is none, and is done."""
    return write_script(
        tmp_path / "script.json",
        {"text": "I look first.", "tool_calls": [call("read_workspace_file", path="greeting.txt")], "usage": USAGE},
        {"tool_calls": [call("edit_workspace_file", path="greeting.txt", old="hello", new="good day")], "usage": USAGE},
        {"tool_calls": [call("run_shell_command", cmd="cat greeting.txt; exit 3"), call("no_such_tool")]},
        "The greeting is polite now.",
    )


def logs(home: Path) -> list[Path]:
    return sorted((home / ".openrath" / "sessions").glob("*.jsonl"))


def test_a_run_shows_text_tools_diff_and_log_and_works_in_place(tmp_path: Path, workspace: Path, model: str) -> None:
    ran = rath(tmp_path, "run", "Be polite.", "--model", model, "--workspace", str(workspace), "--backend", "local")
    assert ran.code == 0, ran.err
    assert "without isolation" in ran.out
    assert "used in place" in ran.out
    assert "I look first." in ran.out
    assert "→ read_workspace_file greeting.txt" in ran.out
    assert "✓ edit_workspace_file: path=greeting.txt replacements=1 line=1" in ran.out
    assert "• run_shell_command: exit 3" in ran.out
    assert "-hello\n+good day\n" in ran.out
    assert "completed · 4 turns" in ran.out
    assert (workspace / "greeting.txt").read_text() == "good day\n"
    [log] = logs(tmp_path)
    assert f"log    {log}" in ran.out
    loaded = load_session(log.stem, path=log)
    assert loaded.closed
    assert loaded.chunk_table[-1].text == "The greeting is polite now."
    assert CONTROL.search(ran.out.replace("\n", "")) is None


def test_json_is_one_object_and_nothing_else(tmp_path: Path, workspace: Path, model: str) -> None:
    ran = rath(tmp_path, "run", "Go", "--model", model, "--workspace", "work", "--backend", "local", "--json")
    assert (ran.code, ran.err) == (0, "")
    [branch] = ran.json["branches"]
    assert branch["status"] == "completed"
    assert branch["text"] == "The greeting is polite now."
    assert branch["total_tokens"] == 60
    assert branch["changed"]["modified"] == ["greeting.txt"]
    assert "+good day" in branch["diff"]
    assert Path(branch["log"]) == logs(tmp_path)[0]
    assert ran.json["workspace"] == str(workspace)


def test_no_persist_leaves_no_log(tmp_path: Path, workspace: Path, rath_here: Callable[..., Ran]) -> None:
    model = write_script(tmp_path / "s.json", "Done.")
    ran = rath_here(
        "run", "Go", "--model", model, "--workspace", str(workspace), "--backend", "local", "--no-persist"
    )
    assert ran.code == 0
    assert not (tmp_path / ".openrath").exists()
    assert "the workspace is unchanged" in ran.out


def test_a_backend_has_to_be_named_and_nothing_runs_without(tmp_path: Path, model: str) -> None:
    ran = rath(tmp_path, "run", "Go", "--model", model)
    assert (ran.code, ran.out) == (2, "")
    assert "--backend local" in ran.err
    assert "without isolation" in ran.err
    assert logs(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "moon"], "there is no backend 'moon'"),
        (["--backend", "local", "--workspace", "nowhere"], "there is no directory"),
        (["--backend", "local", "--model", "scripted:nowhere.json"], "nowhere.json"),
        (["--backend", "local", "--model", "openai:gpt-5.5"], "OPENAI_API_KEY"),
        (["--backend", "local", "--model", "anthropic:claude-x"], "ANTHROPIC_API_KEY"),
        (["--backend", "local"], "RATH_MODEL"),
        (["--backend", "local", "--branches", "0"], "branches"),
        (["--backend", "local", "--max-rounds", "many"], "max-rounds"),
        (["--colour"], "--colour"),
    ],
)
def test_wrong_usage_is_one_clear_line_and_exit_code_2(
    arguments: list[str], message: str, rath_here: Callable[..., Ran]
) -> None:
    ran = rath_here("run", "Go", *arguments)
    assert (ran.code, ran.out) == (2, "")
    first = ran.err.splitlines()[0]
    assert first.startswith("error: ")
    assert message in first
    assert "Traceback" not in ran.err


def test_a_failed_run_is_exit_code_1_with_the_reason_and_a_log_that_loads(tmp_path: Path, workspace: Path, rath_here: Callable[..., Ran]) -> None:
    model = write_script(
        tmp_path / "s.json",
        {"tool_calls": [call("list_workspace_files", path=".")]},
        {"error": {"message": "the model is on fire\nsecond line", "status": 400}},
    )
    ran = rath_here("run", "Go", "--model", model, "--workspace", "work", "--backend", "local")
    assert ran.code == 1
    assert "error: the model is on fire second line" in ran.err
    assert "Traceback" not in ran.err
    [log] = logs(tmp_path)
    assert str(log) in ran.out
    loaded = load_session(log.stem, path=log)
    assert not loaded.closed
    assert len(loaded.chunk_table) == 3


@pytest.mark.parametrize("arguments", [["--debug", "run", "Go"], ["run", "Go", "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str], rath_here: Callable[..., Ran]) -> None:
    ran = rath_here(*arguments)
    assert ran.code == 2
    assert "Traceback (most recent call last)" in ran.err


def test_rounds_are_limited_and_it_says_so(tmp_path: Path, workspace: Path, rath_here: Callable[..., Ran]) -> None:
    model = write_script(tmp_path / "s.json", {"tool_calls": [call("list_workspace_files", path=".")]}, loop=True)
    ran = rath_here(
        "run", "Go", "--model", model, "--workspace", "work", "--backend", "local", "--max-rounds", "3", "--json"
    )
    assert ran.code == 0
    assert ran.json["branches"][0]["truncated"] is True
    assert ran.json["branches"][0]["tool_calls"] == 3
    assert "warning: " in ran.err
    assert "max_tool_rounds=3" in ran.err


@pytest.mark.slow
def test_branches_overlap_in_copies_and_leave_the_workspace_alone(tmp_path: Path, workspace: Path) -> None:
    model = write_script(
        tmp_path / "s.json",
        {"tool_calls": [call("run_shell_command", cmd="sleep 0.5; pwd >> where.txt; echo mine > greeting.txt")]},
        "Done.",
        latency_s=0.3,
    )
    ran = rath(
        tmp_path, "run", "Go", "--model", model, "--workspace", "work", "--backend", "local", "--branches", "3", "--json"
    )
    assert ran.code == 0, ran.err
    branches = ran.json["branches"]
    assert [branch["status"] for branch in branches] == ["completed"] * 3
    assert ran.json["wall_s"] < sum(branch["seconds"] for branch in branches) * 0.75
    assert sorted(os.listdir(workspace)) == ["greeting.txt"]
    assert (workspace / "greeting.txt").read_text() == "hello\n"
    # What each changed is kept as a patch that applies to the workspace.
    patches = [Path(branch["patch"]) for branch in branches]
    assert len(set(patches)) == 3
    subprocess.run(["git", "apply", "-p1", str(patches[0])], cwd=workspace, check=True, capture_output=True)
    assert (workspace / "greeting.txt").read_text() == "mine\n"


@pytest.mark.slow
def test_branches_are_shown_line_by_line_where_nothing_can_be_redrawn(tmp_path: Path, workspace: Path, model: str) -> None:
    ran = rath(
        tmp_path, "run", "Go", "--model", model, "--workspace", "work", "--backend", "local", "--branches", "2"
    )
    assert ran.code == 0, ran.err
    for name in ("branch 1", "branch 2"):
        assert f"[{name}] turn 1  ✓ read_workspace_file" in ran.out
        assert f"[{name}] completed after" in ran.out
    assert "one after the other" in ran.out
    assert CONTROL.search(ran.out.replace("\n", "")) is None


@pytest.mark.slow
def test_a_terminal_gets_a_table_and_colours_and_no_color_takes_the_colours_away(
    tmp_path: Path, workspace: Path, model: str
) -> None:
    arguments = ("run", "Go", "--model", model, "--workspace", "work", "--backend", "local", "--branches", "2")
    code, shown = rath_at_a_terminal(tmp_path, *arguments)
    assert code == 0
    assert "\x1b[32m" in shown
    assert "[branch 1] turn" not in shown
    code, plain = rath_at_a_terminal(tmp_path, *arguments, env={"NO_COLOR": "1"})
    assert code == 0
    assert "branch 1" in plain
    assert "\x1b[3" not in plain.replace("\x1b[3m", "")  # italics are no colour


@pytest.mark.slow
def test_what_models_and_tools_say_cannot_drive_the_terminal(tmp_path: Path, workspace: Path) -> None:
    text = HOSTILE.replace("\ud800", "")
    model = write_script(
        tmp_path / "s.json",
        {"text": text, "tool_calls": [call("run_shell_command", cmd=f"printf '%s' {json.dumps(text)!r} >&2; exit 1")]},
        {"tool_calls": [{"name": text, "arguments": text}]},
        text,
        chunk_chars=3,
    )
    arguments = ("run", text.replace("\x00", ""), "--model", model, "--workspace", "work", "--backend", "local")
    ran = rath(tmp_path, *arguments)
    assert ran.code == 0, ran.err
    assert CONTROL.search(ran.out.replace("\n", "")) is None
    assert CONTROL.search(ran.err.replace("\n", "")) is None
    assert "\u202e" not in ran.out
    # Markup of the terminal library means nothing in them.
    assert "[bold]rich[/bold] :warning:" in ran.out
    code, shown = rath_at_a_terminal(tmp_path, *arguments, "--no-persist")
    assert code == 0
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown
    shown_log = rath(tmp_path, "sessions", "show", logs(tmp_path)[0].stem, "--full")
    assert shown_log.code == 0
    assert CONTROL.search(shown_log.out.replace("\n", "")) is None


@pytest.mark.slow
def test_text_arrives_before_the_reply_is_whole(tmp_path: Path, workspace: Path) -> None:
    model = write_script(tmp_path / "s.json", "one two three four five six seven", pace_s=0.15, chunk_chars=4)
    seen, first_at = "", 0.0
    with start_rath(
        tmp_path, "run", "Go", "--model", model, "--workspace", "work", "--backend", "local", "--no-persist"
    ) as process:
        assert process.stdout is not None
        while chunk := process.stdout.read(1):
            seen += chunk
            if not first_at and "one" in seen:
                first_at = time.monotonic()
    assert process.returncode == 0
    assert "one two three four five six seven" in seen
    assert time.monotonic() - first_at > 0.5


def _interrupt_when(process: subprocess.Popen[str], sign: str) -> tuple[str, str]:
    assert process.stdout is not None
    shown = ""
    while sign not in shown:
        line = process.stdout.readline()
        assert line, f"ended before {sign!r}: {shown}"
        shown += line
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=20)
    return shown + rest, err


def test_ctrl_c_stops_the_tool_gives_130_and_leaves_an_open_log(tmp_path: Path, workspace: Path) -> None:
    model = write_script(
        tmp_path / "s.json",
        {"tool_calls": [call("list_workspace_files", path=".")]},
        {"tool_calls": [call("run_shell_command", cmd="echo $$ > pid; exec sleep 300")]},
        "Never said.",
    )
    process = start_rath(tmp_path, "run", "Go", "--model", model, "--workspace", "work", "--backend", "local")
    pid_file = workspace / "pid"
    assert process.stdout is not None
    shown = ""
    while "→ run_shell_command" not in shown:
        shown += process.stdout.readline()
    deadline = time.monotonic() + 10
    while not (pid_file.exists() and pid_file.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.01)
    pid = int(pid_file.read_text())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    [log] = logs(tmp_path)
    assert f"interrupted; the log so far: {log}" in err
    assert "cancelled" in out
    loaded = load_session(log.stem, path=log)
    assert (loaded.verdict, loaded.closed) == ("open", False)
    assert len(loaded.chunk_table) >= 3


@pytest.mark.slow
def test_ctrl_c_while_branches_wait_for_the_model_gives_130(tmp_path: Path, workspace: Path) -> None:
    model = write_script(
        tmp_path / "s.json",
        {"tool_calls": [call("list_workspace_files", path=".")], "latency_s": 0},
        {"text": "Late.", "latency_s": 300},
        by_turn=True,
    )
    process = start_rath(
        tmp_path, "run", "Go", "--model", model, "--workspace", "work", "--backend", "local", "--branches", "2"
    )
    out, err = _interrupt_when(process, "turn 1")
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out.count("cancelled") >= 2
    assert len(logs(tmp_path)) == 2
    for log in logs(tmp_path):
        assert str(log) in err
        assert load_session(log.stem, path=log).verdict == "open"


@pytest.mark.slow
def test_a_real_server_is_asked_streams_and_sees_the_key(tmp_path: Path, workspace: Path) -> None:
    with WireServer(
        Answer("I look.", tool_calls=[("c1", "read_workspace_file", '{"path": "greeting.txt"}')]), Answer("All is well.")
    ) as server:
        ran = rath(
            tmp_path, "run", "Go", "--model", "openai:gpt-5.5", "--workspace", "work", "--backend", "local",
            env={"OPENAI_API_KEY": "sk-test-0123456789", "OPENAI_BASE_URL": server.openai_url},
        )  # fmt: skip
        requests = list(server.requests)
    assert ran.code == 0, ran.err
    assert "✓ read_workspace_file" in ran.out
    assert "All is well." in ran.out
    assert [request.streams for request in requests] == [True, True]
    assert requests[0].headers["authorization"] == "Bearer sk-test-0123456789"
    assert any(tool["function"]["name"] == "edit_workspace_file" for tool in requests[0].body["tools"])
    [log] = logs(tmp_path)
    assert "sk-test-0123456789" not in log.read_text() + ran.out + ran.err


@pytest.mark.slow
def test_a_server_that_refuses_the_key_is_one_clear_line(tmp_path: Path, workspace: Path) -> None:
    body = json.dumps({"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}).encode()
    with WireServer(Raw(status=401, headers={"Content-Type": "application/json"}, body=body), repeat=True) as server:
        ran = rath(
            tmp_path, "run", "Go", "--model", "openai:m", "--workspace", "work", "--backend", "local",
            env={"OPENAI_API_KEY": "sk-test-0123456789", "OPENAI_BASE_URL": server.openai_url},
        )  # fmt: skip
    assert ran.code == 1
    assert "Incorrect API key provided" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.slow
def test_a_directory_for_logs_that_cannot_be_made_is_a_clear_error(tmp_path: Path, workspace: Path) -> None:
    model = write_script(tmp_path / "s.json", "Done.")
    (tmp_path / "file").write_text("")
    ran = rath(
        tmp_path, "run", "Go", "--model", model, "--workspace", "work", "--backend", "local",
        env={"OPENRATH_HOME": str(tmp_path / "file" / "x")},
    )  # fmt: skip
    assert ran.code == 1
    assert "OPENRATH_HOME" in ran.err
    assert "Traceback" not in ran.err
