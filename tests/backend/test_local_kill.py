"""Who is killed with a call or a sandbox: also those who left its session and lost their parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

import pytest

from rath.backend import BackendToolCommandRun, CommandResult, ToolExecutionFailure, get
from rath.core import ports
from rath.errors import SandboxClosed


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid: int, seconds: float = 2.0) -> bool:
    end = time.monotonic() + seconds
    while alive(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# The shell of the parentheses ends at once: the sleeper leads a session of its own and has init for a parent.
DAEMON = "(setsid sh -c 'echo $$ > pid.new; mv pid.new pid; exec sleep 9994' >/dev/null 2>&1 &)"


@pytest.mark.parametrize("how", ["timeout", "cancel", "close"])
def test_a_daemon_that_left_session_and_parent_goes_with_its_call(how: str) -> None:
    sandbox = get("local").open()
    pid_file = Path(sandbox.handle, "pid")
    found: list[int] = []

    async def scene() -> None:
        call = BackendToolCommandRun(f"{DAEMON}; sleep 30", timeout=0.8 if how == "timeout" else None)
        task = asyncio.create_task(sandbox.perform(call))
        for _ in range(200):
            if pid_file.exists():
                break
            await asyncio.sleep(0.01)
        found.append(int(pid_file.read_text()))
        assert alive(found[0])
        if how == "cancel":
            task.cancel()
        elif how == "close":
            await sandbox.shut()
        with contextlib.suppress(asyncio.CancelledError, SandboxClosed):
            assert isinstance(await task, ToolExecutionFailure)

    ports.engine().run(scene())
    assert gone(found[0])
    sandbox.release()


def test_a_daemon_of_a_finished_call_goes_on_until_the_sandbox_closes_and_other_calls_do_not_hurt_it() -> None:
    with get("local").open() as sandbox:
        first = sandbox.dispatch(BackendToolCommandRun(f"{DAEMON}; while [ ! -e pid ]; do sleep 0.01; done; cat pid"))
        assert isinstance(first, CommandResult)
        pid = int(first.stdout)
        assert isinstance(sandbox.dispatch(BackendToolCommandRun("sleep 30", timeout=0.1)), ToolExecutionFailure)
        with get("local").open() as other:
            other.dispatch(BackendToolCommandRun(DAEMON))
        assert alive(pid)
    assert not alive(pid)


def test_a_call_cannot_choose_its_own_marks() -> None:
    with get("local").open() as sandbox:
        call = BackendToolCommandRun("echo $RATH_CALL $RATH_SANDBOX", env={"RATH_CALL": "1", "RATH_SANDBOX": "1"})
        answers = [sandbox.dispatch(call).stdout.split() for _ in range(2)]  # type: ignore[union-attr]
    (call_one, box_one), (call_two, box_two) = answers
    assert box_one == box_two
    assert len({call_one, call_two, box_one, b"1"}) == 4


def test_no_process_without_a_mark_is_killed() -> None:
    pid = os.getpid()
    with get("local").open() as sandbox, get("local").open() as other:
        kept = int(other.dispatch(BackendToolCommandRun("sleep 60 >/dev/null 2>&1 & echo $!")).stdout)  # type: ignore[union-attr]
        sandbox.dispatch(BackendToolCommandRun("sleep 60 & sleep 60", timeout=0.1))
        sandbox.backend.close(sandbox)
        assert alive(pid)
        assert alive(kept)
