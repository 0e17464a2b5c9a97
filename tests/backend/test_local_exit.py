"""What is left when a process ends, or forks: nothing of its own, and everything that is somebody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

OPEN = """
import os, sys, time
from rath.backend import BackendToolCommandRun, BackendToolFilesWrite, get
from rath.backend.lease import Placement
lease = Placement("local").acquire()
sandbox = lease.open_blocking()
pid = int(sandbox.dispatch(BackendToolCommandRun("sleep 60 >/dev/null 2>&1 & echo $!")).stdout)
print(sandbox.handle, pid, flush=True)
"""


def script(text: str, tmp_path: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    return subprocess.Popen(
        # From Python 3.12 on, forking a process with threads warns; that is what is tested here.
        [sys.executable, "-X", "dev", "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", OPEN + text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def dead(pid: int) -> bool:
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def ends_clean(text: str, tmp_path: Path) -> str:
    with script(text, tmp_path) as process:
        try:
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0, err
    # A busy machine makes asyncio's debug mode complain of slow steps.
    assert [line for line in err.splitlines() if not line.startswith("Executing <")] == []
    _, pid = out.splitlines()[0].split()
    assert dead(int(pid))
    assert os.listdir(tmp_path) == []
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "",
        "del lease; import gc; gc.collect()",
        "lease.release()",
        "sandbox.acquire(); other = get('local').open(); cycle = [lease]; cycle.append(cycle)",
        "copy = lease.placement.copy(); kept = copy.acquire(); copy.freeze(); time.sleep(0.1)",
        "import atexit; atexit.register(lease.release)",
        "stream = sandbox.stream(); stream.submit(BackendToolCommandRun('sleep 60')); time.sleep(0.1)",
    ],
    ids=["held", "collected", "released", "cycle", "copied", "released at exit", "running"],
)
def test_nothing_is_left_at_the_end(text: str, tmp_path: Path) -> None:
    ends_clean(text, tmp_path)


@pytest.mark.slow
def test_nothing_is_left_after_ctrl_c(tmp_path: Path) -> None:
    process = script("sandbox.dispatch(BackendToolCommandRun('sleep 60'))", tmp_path)
    assert process.stdout is not None
    _, pid = process.stdout.readline().split()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in err
    assert dead(int(pid))
    assert os.listdir(tmp_path) == []


def test_a_forked_child_closes_nothing_of_its_parents_and_has_an_engine_of_its_own(tmp_path: Path) -> None:
    out = ends_clean(
        """
import gc, signal
sandbox.dispatch(BackendToolFilesWrite("f", "x"))
copy = lease.placement.copy(); kept = copy.acquire(); copy.freeze(); kept.open_blocking()
child = os.fork()
if child == 0:
    code = 1
    try:
        signal.alarm(20)
        assert sandbox.dispatch(BackendToolCommandRun("cat f")).stdout == b"x"
        lease.release()
        sandbox.release()
        del kept, copy
        gc.collect()
        mine = Placement("local").acquire()
        handle = mine.open_blocking().handle
        mine.release()
        assert not os.path.exists(handle)
        left_to_exit = get("local").open()
        code = 0
    finally:
        sys.stdout.flush()
        if code:
            os._exit(code)
    sys.exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert os.path.exists(sandbox.handle + "/f")
assert os.path.exists(kept.open_blocking().handle + "/f")
assert sandbox.dispatch(BackendToolCommandRun(f"kill -0 {pid} && echo alive")).stdout == b"alive\\n"
print("parent well")
""",
        tmp_path,
    )
    assert out.splitlines()[-1] == "parent well"
