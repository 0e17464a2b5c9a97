"""A log whose calls are reported as they return: ``python -m tests.crash.syscalls_child run|log PATH LEVEL``.

``run`` is a real run. ``log`` writes what a run writes, on one thread: faults are counted a thread.

Each line of the output is what the log has acknowledged so far: ``row N``, ``synced N``, ``closed N``, where N is the
number of rows. The last one is what the caller of the run got.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from rath.core import ports
from rath.core.events import Event, RowAppended
from rath.flow.tool import tool
from rath.session import Session, run_session_loop
from rath.session.chunk import ChunkRow, ChunkTable
from rath.session.persistence.runlog import JsonlRunLog, open_run_log
from rath.testing import ScriptedClient
from tests.persistence.samples import USAGE, appended, rows, run_until_results


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Reported(JsonlRunLog):
    """The log that runs write, saying what it has done."""

    __slots__ = ("rows",)

    def append_row(self, index: int, row: ChunkRow) -> None:
        super().append_row(index, row)
        self.rows = index + 1
        say("row", self.rows)

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if isinstance(event, RowAppended):
            self.rows = event.index + 1
            say("row", self.rows)

    def sync(self) -> None:
        rows = self.rows
        super().sync()
        say("synced", rows)

    def close(self, **how: Any) -> None:
        super().close(**how)
        say("closed", self.rows)


@tool
def note(text: str) -> str:
    """Keep a note."""
    return text


def opened(session: Any, *, seed: ChunkTable | None = None, **options: Any) -> Reported:
    log = Reported(open_run_log(session, seed=seed, **options)._log)
    log.rows = 0 if seed is None else len(seed)
    say("row", log.rows)
    return log


def say_end(error: BaseException | None, rows: int) -> None:
    say("end", json.dumps({"error": error and type(error).__name__, "text": str(error or ""), "rows": rows}))


def run(path: str) -> None:
    ports.register("log", "jsonl", opened)
    asks = [
        {"text": f"step {n}", "tool_calls": [{"name": "note", "arguments": {"text": f"{n}.{i}" * 40}} for i in range(n)]}
        for n in (1, 2, 1)
    ]
    out = run_session_loop(
        Session.from_user_message("go"),
        Session.from_agent_prompt("a"),
        agent_provider=ScriptedClient([*asks, "done"]).as_provider(),
        tools=[note],
        persist=sys.argv[3],  # type: ignore[arg-type]
        persist_path=path,
    )
    failure = None
    try:
        out.synchronize(30)
    except Exception as error:
        failure = error
    say_end(failure, len(out.partial))


def log(path: str) -> None:
    failure = None
    try:
        log = opened(Session.from_user_message("go"), path=path, durability=sys.argv[3])
        try:
            run_until_results(log)
            log.sync()
            for index, row in list(enumerate(rows()))[2:]:
                log.on_event(appended(index, row))
            log.sync()
            log.close(usage=USAGE, lineage_extras=(), outcome={"status": "completed"})
        finally:
            log.abandon()
    except Exception as error:
        failure = error
    say_end(failure, 0)


if __name__ == "__main__":
    {"run": run, "log": log}[sys.argv[1]](sys.argv[2])
