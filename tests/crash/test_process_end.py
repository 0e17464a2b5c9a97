"""How a process ends decides what its logs say: what can be closed is, and nothing that was written is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rath.session.persistence import load_session
from rath.session.persistence.lock import PathLock
from rath.session.persistence.paths import lock_file

ROOT = Path(__file__).parents[2]

_RUN = """
import os, signal, sys, threading, time
from rath.flow.tool import tool
from rath.session import Session, run_session_loop
from rath.testing import ScriptedClient

path, seconds, end = sys.argv[1], float(sys.argv[2]), sys.argv[3]
running = threading.Semaphore(0)

@tool
def wait() -> str:
    "Wait."
    os.write(1, b"running\\n")
    running.release()
    time.sleep(seconds)
    return "waited"

if end == "handled":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
outs = [
    run_session_loop(
        Session.from_user_message("go"), Session.from_agent_prompt("a"), tools=[wait], persist_path=f"{path}/{n}.jsonl",
        agent_provider=ScriptedClient([{"text": "on it", "tool_calls": [{"name": "wait", "arguments": {}}]}, "done"]).as_provider(),
    )
    for n in range(3)
]
if end == "exit":
    for _ in outs:
        running.acquire()
    sys.exit(0)
for out in outs:
    out.synchronize()
"""


def ended(path: Path, seconds: float, end: str, number: int | None = None, drain_s: float = 20) -> int:
    """The exit code of a process with three runs under way, each in a tool; ``number`` is the signal that it gets then."""
    command = [sys.executable, "-c", _RUN, str(path), str(seconds), end]
    env = {**os.environ, "RATH_DRAIN_S": str(drain_s)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            assert [process.stdout.readline() for _ in range(3)] == ["running\n"] * 3
            if number is not None:
                process.send_signal(number)
            return process.wait(30)
        finally:
            process.kill()


def logs(path: Path) -> list[Path]:
    return [path / f"{n}.jsonl" for n in range(3)]


def kinds(path: Path) -> list[str]:
    return [json.loads(line)["record_type"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("end", "number", "code"), [("exit", None, 0), ("handled", signal.SIGTERM, 143)])
def test_runs_that_end_in_time_are_closed_when_the_interpreter_exits(tmp_path: Path, end: str, number: int, code: int) -> None:
    assert ended(tmp_path, 0.3, end, number) == code
    for log in logs(tmp_path):
        loaded = load_session("", path=log)
        assert loaded.verdict == "complete"
        assert [row.text for row in loaded.chunk_table][-1] == "done"
        assert not lock_file(log).exists()


@pytest.mark.slow
@pytest.mark.parametrize(("end", "number", "code"), [("exit", None, 0), ("handled", signal.SIGTERM, 143)])
def test_runs_that_do_not_end_in_time_leave_open_logs_that_answer_every_call(
    tmp_path: Path, end: str, number: int, code: int
) -> None:
    assert ended(tmp_path, 60, end, number, drain_s=0.2) == code
    for log in logs(tmp_path):
        loaded = load_session("", path=log)
        assert loaded.verdict == "open"
        assert [row.kind.value for row in loaded.chunk_table] == ["user", "assistant", "tool_result"]
        assert "interrupted" in str(loaded.chunk_table.rows[-1].text)
        assert not lock_file(log).exists()


def test_a_signal_that_nobody_handles_loses_nothing_that_was_written(tmp_path: Path) -> None:
    assert ended(tmp_path, 60, "wait", signal.SIGTERM) == -signal.SIGTERM
    for log in logs(tmp_path):
        loaded = load_session("", path=log)
        assert loaded.verdict == "open"
        assert [row.kind.value for row in loaded.chunk_table] == ["user", "assistant"]
        assert kinds(log)[-1] == "tool_intent"
        PathLock(lock_file(log), "the log").release()  # its holder is gone, and with it the lock
