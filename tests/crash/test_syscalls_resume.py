"""Every system call of a resume and of a continued run fails once, or kills the process: the next resume finishes it.

``strace`` injects the fault, as in ``test_syscalls.py``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rath.flow.tool import tool
from rath.session import Session, resume_session, run_session_loop
from rath.session.persistence import load_session
from rath.session.persistence.paths import lock_file
from rath.testing import ScriptedClient, check_history
from tests.crash.test_syscalls import ROOT, strace

__all__ = ["strace"]  # the fixture

CALLS = "openat,write,pwrite64,fsync,fdatasync,ftruncate,flock,unlink"
HARMLESS = {"ftruncate", "pwrite64", "unlink", "flock"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass
class Stopped:
    """A log that stops in the middle of a round of three calls, and in the middle of a line."""

    directory: Path
    data: bytes

    def taken_up(self, mode: str, tag: str, inject: str | None = None) -> tuple[Path, str, dict[str, Any] | None]:
        """The log after a child took it up, the trace, and what it said; ``None`` if it was killed."""
        directory = self.directory / f"{mode}-{tag}"
        directory.mkdir()
        path, trace = directory / "a.jsonl", directory / "trace"
        path.write_bytes(self.data)
        command = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={CALLS}"]
        for watched in (directory, path, lock_file(path)):
            command += ["-P", str(watched)]
        command += [] if inject is None else ["-e", f"inject={inject}"]
        command += [sys.executable, "-m", "tests.crash.resume_child", mode, str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        traced = trace.read_text()
        if "+++ killed by SIGKILL +++" in traced:
            return path, traced, None
        assert done.returncode == 0, done.stderr
        return path, traced, json.loads(done.stdout)


@pytest.fixture
def stopped(tmp_path: Path) -> Stopped:
    @tool
    def note(text: str) -> str:
        """Keep a note."""
        return text

    wanted = [{"name": "note", "arguments": {"text": name}, "id": name} for name in "abc"]
    path = tmp_path / "whole.jsonl"
    run_session_loop(
        Session.from_user_message("go"), Session.from_agent_prompt("x"), tools=[note], persist_path=path,
        agent_provider=ScriptedClient([{"tool_calls": wanted}, "done"]).as_provider(),
    ).synchronize()  # fmt: skip
    lines = path.read_bytes().splitlines(keepends=True)
    result = next(at for at, line in enumerate(lines) if json.loads(line)["record_type"] == "tool_result")
    return Stopped(tmp_path, b"".join(lines[: result + 1]) + lines[result + 1][:40])


@pytest.mark.parametrize("how", ["error=EIO", "error=ENOSPC", "signal=SIGKILL"])
@pytest.mark.parametrize("mode", ["resume", "continue"])
def test_whatever_fails_while_a_log_is_taken_up_the_next_one_finishes_it(stopped: Stopped, mode: str, how: str) -> None:
    _, traced, plain = stopped.taken_up(mode, "plain")
    assert plain is not None
    assert plain["error"] is None
    made = Counter(re.findall(r"^(\d+) +(\w+)\(", traced, re.MULTILINE))
    most = {call: max(n for (_, name), n in made.items() if name == call) for _, call in made}
    places = [(call, n) for call, count in most.items() for n in range(1, count + 1)]
    assert {"openat", "write", "fdatasync", "ftruncate", "flock"} <= most.keys()

    def strike(place: tuple[str, int]) -> tuple[Path, str, dict[str, Any] | None]:
        call, n = place
        return stopped.taken_up(mode, f"{call}-{n}", f"{call}:{how}:when={n}")

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(strike, places))
    struck = 0
    repaired = stopped.taken_up("resume", "whole")[2] if mode == "continue" else plain
    assert repaired is not None
    for (call, n), (path, traced, said) in zip(places, done, strict=True):
        assert said is None or said["error"] in (None, "PersistenceError"), (call, n, said)
        if said is not None and said["error"] is None and "(INJECTED)" in traced:
            # Once it is repaired and let go, the log is looked at for its lineage, which may be missing.
            afterwards = re.search(r"unlink\([^\n]*\.lock\".*openat\([^\n]*O_RDONLY[^\n]*INJECTED", traced, re.DOTALL)
            assert call in HARMLESS or afterwards, (call, n)
        struck += said is None or "(INJECTED)" in traced
        verdict = load_session("", path=path).verdict
        session = resume_session(path)
        check_history(session)
        if verdict == "complete":
            assert session.digest.hex() == plain["digest"], (call, n)
        elif len(session.chunk_table) == 5:
            # Nothing but the repair was written, in one go or in two.
            assert session.digest.hex() == repaired["digest"], (call, n)
        else:
            assert mode == "continue", (call, n)
    assert struck > len(places) // 2
