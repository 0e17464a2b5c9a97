"""Removing from a directory while other processes begin to build on what is there. Real processes, many times."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from rath.errors import PersistenceError
from rath.session.persistence import delete_session, open_dir, prune_sessions, sessions_dir
from tests.persistence.test_directory_needs import dangling

RUNS = """
import sys, time
from rath import Session, run_session_loop
from rath.testing import ScriptedClient

agent = Session.from_agent_prompt("be")
deadline = time.monotonic() + float(sys.argv[1])
number = 0
while time.monotonic() < deadline:
    number += 1
    session = Session.from_user_message(f"{sys.argv[2]} {number}")
    for turn in range(3):
        model = ScriptedClient([f"reply {turn}"])
        session = run_session_loop(session, agent, agent_provider=model.as_provider(), persist=True)
        session.synchronize(30)
print(number)
"""


@contextmanager
def writers(seconds: float, home: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that run sessions, each built on the one before it. In the end, each says how many chains it made."""
    env = {**os.environ, "OPENRATH_HOME": str(home)}
    running = [
        subprocess.Popen([sys.executable, "-c", RUNS, str(seconds), name], env=env, stdout=subprocess.PIPE)
        for name in ("one", "two")
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            assert process.stdout is not None
            process.stdout.close()
            process.wait()


def without_their_rows() -> list[str]:
    """Dangling logs that are there both before and after the log that they need was found missing."""
    found = dangling(sessions_dir())
    return [name for name in found if (sessions_dir() / name).exists()]


@pytest.mark.slow
def test_no_log_that_is_just_beginning_loses_its_rows_to_a_pruning(home: Path) -> None:
    removed = sharing = 0
    with writers(12, home) as running:
        while any(process.poll() is None for process in running):
            assert without_their_rows() == []
            sharing += sum(1 for entry in open_dir() if entry.shared_rows)
            try:
                removed += len(prune_sessions(older_than=timedelta(milliseconds=5)))
            except PersistenceError as error:
                assert "is not free" in str(error)
        rounds = [int(process.stdout.read()) for process in running if process.stdout is not None]
    assert min(rounds) > 20
    assert removed > 100
    assert sharing > 20
    assert {entry.verdict for entry in open_dir().verify_all()} <= {"complete"}


@pytest.mark.slow
def test_no_log_that_is_just_beginning_loses_its_rows_to_a_deletion(home: Path) -> None:
    deleted = refused = 0
    with writers(8, home) as running:
        while any(process.poll() is None for process in running):
            for entry in open_dir().read()[:40]:
                if entry.id is None:  # its header is being written
                    continue
                try:
                    deleted += delete_session(entry.id)
                except PersistenceError as error:
                    refused += "have their first rows in it" in str(error)
            assert without_their_rows() == []
    assert deleted > 100
    assert refused > 5
    assert {entry.verdict for entry in open_dir().verify_all()} <= {"complete"}
