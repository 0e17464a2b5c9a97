"""Processes full of overlapping runs, killed again and again. Run by test_sigkill.py: ``python -m … HOME KILLS SEED ACK_FD``.

Each process goes on with runs that its killed predecessors left, starts new ones until twenty overlap, and says over a pipe
what its logs have acknowledged: a row or a result is named only after the log's own call for it has returned.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

from rath.core import ports
from rath.core.events import RowAppended, ToolFinished
from rath.errors import PersistenceError
from rath.flow.tool import tool
from rath.session import Session, continue_session_loop, run_session_loop
from rath.session.chunk import ChunkTable
from rath.session.persistence.resume import peek_log, reopen_run_log
from rath.session.persistence.runlog import open_run_log
from rath.testing import ScriptedClient

OVERLAPPING = 20
LONGEST_S = 0.25


@tool
def work(text: str) -> str:
    """Work in a thread."""
    time.sleep(0.002)
    return f"did {text}"


@tool(idempotent=True)
async def look(text: str) -> str:
    """Look on the loop."""
    return f"saw {text}" * 20


TOOLS = [work, look]


def _reply(turn: int) -> dict[str, Any]:
    wanted = [{"name": name, "arguments": {"text": f"{name} {turn}"}} for name in ("work", "look", "work")]
    return {"text": "on it", "tool_calls": wanted, "usage": {"prompt_tokens": 5, "completion_tokens": 1}}


SCRIPT = [*(_reply(turn) for turn in range(3)), "done"]


def model() -> Any:
    return ScriptedClient(SCRIPT, by_turn=True, latency_s=0.003).as_provider()


class Acknowledging:
    """A run's log that says what it has acknowledged."""

    def __init__(self, log: Any, pipe: int) -> None:
        self._log = log
        self._pipe = pipe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def say_rows(self, rows: tuple[Any, ...]) -> None:
        for index, row in enumerate(rows):
            self._say("row", index, row.encoded)

    def on_event(self, event: Any) -> None:
        self._log.on_event(event)
        if isinstance(event, RowAppended):
            self._say("row", event.index, event.row.encoded)
        elif isinstance(event, ToolFinished):
            self._say("result", event.call_id, event.body.encode())

    def _say(self, what: str, which: object, content: bytes) -> None:
        os.write(self._pipe, f"{self._log.path.stem} {what} {which} {zlib.crc32(content)}\n".encode())


def child(home: Path, pipe: int) -> None:
    """Overlapping runs until somebody kills this process."""

    def opened(session: Any, *, seed: ChunkTable, **options: Any) -> Acknowledging:
        log = Acknowledging(open_run_log(session, seed=seed, **options | {"durability": "process"}), pipe)
        log.say_rows(seed.rows)
        return log

    def reopened(path: Path, **options: Any) -> Acknowledging:
        return Acknowledging(reopen_run_log(path, **options | {"durability": "process"}), pipe)

    ports.register("log", "jsonl", opened)
    ports.register("log", "reopen", reopened)
    agent = Session.from_agent_prompt("x")
    root = Session.from_user_message("a story that all runs begin with")
    while True:
        sessions = [continue_session_loop(p, agent_provider=model(), tools=TOOLS, agent_session="x") for p in left_over(home)]
        while len(sessions) < OVERLAPPING:
            # Every other log has its first row in that of another run, which may be killed and gone on with too.
            user = root.fork() if len(sessions) % 2 else Session.from_user_message("go")
            sessions.append(run_session_loop(user, agent, agent_provider=model(), tools=TOOLS, persist=True))
        for session in sessions:
            try:
                session.synchronize()
            except PersistenceError as error:  # its run had not begun
                assert "before the run began" in str(error), error


def left_over(home: Path) -> list[Path]:
    """Logs of killed runs. Those that are complete are looked at once; they stay, others may have rows in them."""
    found = []
    done = {path.name for path in (home / "done").iterdir()}
    for path in (home / "sessions").glob("*.jsonl"):
        if path.name in done:
            continue
        try:
            ended = peek_log(path).ended
        except PersistenceError:  # killed before the first line was whole
            continue
        if ended:
            (home / "done" / path.name).touch()
        else:
            found.append(path)
    return random.sample(found, min(len(found), OVERLAPPING // 2))


def main(home: Path, kills: int, seed: int, pipe: int) -> None:
    """Start a process and kill it, ``kills`` times. This one has no threads, so that it can be forked."""
    chance = random.Random(seed)
    (home / "sessions").mkdir(parents=True)
    (home / "done").mkdir()
    for number in range(kills):
        pid = os.fork()
        if pid == 0:
            random.seed(seed * 1_000_000 + number)
            try:
                child(home, pipe)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(3)
        time.sleep(chance.uniform(0.01, LONGEST_S))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), f"a process ended by itself: {status}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
