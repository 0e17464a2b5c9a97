"""SIGKILL at random moments of processes full of overlapping runs: nothing acknowledged is lost, every run can be finished.

``RATH_SIGKILLS`` says how many kills; the default, 2,000, is what two cores do in about four minutes (fewer on a machine that is
slower just now).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from rath.errors import DamagedLog
from rath.session import continue_session_loop, resume_session
from rath.session.persistence import load_session
from rath.session.session import Session
from rath.testing import history_faults
from rath.testing.pace import slowness
from tests.crash.sigkill_child import TOOLS, model
from tests.persistence.samples import records

KILLS = int(os.environ.get("RATH_SIGKILLS", "0")) or round(2000 / slowness())
ROOT = Path(__file__).parents[2]


class Killed:
    """A process that starts others and kills them, and what these had acknowledged."""

    def __init__(self, home: Path, kills: int, seed: int) -> None:
        self.home = home
        self.rows: dict[str, dict[int, int]] = defaultdict(dict)
        self.results: dict[str, dict[str, int]] = defaultdict(dict)
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "tests.crash.sigkill_child", str(home), str(kills), str(seed), str(writing)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, pass_fds=[writing], env={**os.environ, "OPENRATH_HOME": str(home)}, stderr=subprocess.PIPE
        )
        os.close(writing)
        self.thread = threading.Thread(target=self._listen, args=(reading,))
        self.thread.start()

    def _listen(self, reading: int) -> None:
        with open(reading, encoding="ascii") as lines:
            for line in lines:
                session_id, what, which, crc = line.split()
                if what == "row":
                    assert self.rows[session_id].setdefault(int(which), int(crc)) == int(crc)
                else:
                    assert self.results[session_id].setdefault(which, int(crc)) == int(crc)

    def wait(self) -> None:
        _, said = self.process.communicate()
        self.thread.join()
        assert self.process.returncode == 0, said.decode()[-4000:]


@contextmanager
def memory_directory() -> Iterator[Path]:
    """On a tmpfs where there is one: what a killed process leaves does not depend on the disk, the speed does."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="rath-sigkill-", dir=where) as directory:
        yield Path(directory)


def lost(killed: Killed, session: Session) -> list[str]:
    """What was acknowledged and is not in ``session``."""
    name, table = str(session.id), session.chunk_table
    found = {row.tool_call_id: zlib.crc32((row.text or "").encode()) for row in table if row.tool_call_id}
    rows = [
        f"{name} row {index}"
        for index, crc in killed.rows[name].items()
        if index >= len(table) or zlib.crc32(table[index].encoded) != crc
    ]
    return rows + [f"{name} result {call}" for call, crc in killed.results[name].items() if found.get(call) != crc]


def finish(paths: list[Path]) -> list[str]:
    """Continue the runs of logs to their ends; what went wrong."""
    going = [(p, continue_session_loop(p, agent_provider=model(), tools=TOOLS, agent_session="x")) for p in paths]
    wrong = []
    for path, session in going:
        faults = history_faults(session.synchronize())
        digest = records(path)[-1].get("digest")  # read by the rules of docs/log-format.md
        if faults or digest != session.digest.hex() or not load_session("", path=path).closed:
            wrong.append(f"{path}: {faults}")
    return wrong


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_acknowledged_is_lost_and_every_run_can_be_finished() -> None:
    with memory_directory() as directory, ExitStack() as stack:
        lanes = [Killed(directory / str(lane), KILLS // 2, lane + 1) for lane in range(2)]
        for lane in lanes:
            stack.callback(lane.process.kill)
        for lane in lanes:
            lane.wait()
        unloadable, missing, refused, unfinished, begun, sharing = [], [], [], [], 0, 0
        for lane in lanes:
            open_logs = []
            for path in sorted(lane.home.glob("sessions/*.jsonl")):
                acknowledged = lane.rows[path.stem]
                try:
                    session = resume_session(path)
                except DamagedLog as error:
                    # Killed before the header was whole: nothing had been acknowledged.
                    if acknowledged or error.verdict != "torn":
                        unloadable.append(str(error))
                    continue
                missing += lost(lane, session)
                if not acknowledged:
                    continue
                begun += 1
                loaded = load_session("", path=path)
                sharing += loaded.header.prefix is not None
                refused += [f"{path}: {fault}" for fault in history_faults(session)]
                if not loaded.closed:
                    open_logs.append(path)
            for at in range(0, len(open_logs), 50):
                unfinished += finish(open_logs[at : at + 50])
        assert (unloadable, missing, refused, unfinished) == ([], [], [], [])
        assert begun > KILLS  # runs did go on while processes were killed
        assert sharing > begun // 4
        said = sum(len(acknowledged) for lane in lanes for acknowledged in lane.rows.values())
        print(f"{KILLS} kills, {begun} logs ({sharing} with rows in others), {said} acknowledged rows")
