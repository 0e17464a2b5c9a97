"""The engine dies under a sandbox: whoever waits hears of it at once, and when the engine is back, so are sandboxes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rath.backend.docker.engine import DockerEngine
from rath.testing.pace import within
from tests.backend.docker.conftest import BASE, NO_PYTHON

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(240)]

USE = """
import json, sys, time
from rath.backend import registry
from rath.backend.docker.engine import engine
from rath.backend.docker.sweep import everything
from rath.backend.owner import owner
from rath.backend.types import BackendSandboxSpec, BackendToolCommandRun
from rath.errors import RathError

def attempt(work):
    begun = time.monotonic()
    try:
        return [repr(work()), time.monotonic() - begun]
    except RathError as error:
        return [type(error).__name__, time.monotonic() - begun, str(error)]

def say(*words):
    print(json.dumps(words), flush=True)

backend, spec = registry.get("docker"), BackendSandboxSpec(image=sys.argv[1])
sandbox = backend.open(spec)
assert sandbox.dispatch(BackendToolCommandRun("echo hi")).stdout == b"hi\\n"
say("open")
call = attempt(lambda: sandbox.dispatch(BackendToolCommandRun("sleep 60")))
ended = time.time()
say(call[0], ended, attempt(lambda: backend.open(spec)), attempt(lambda: backend.close(sandbox)))
input()
with backend.open(spec) as again:
    echo = again.dispatch(BackendToolCommandRun("echo again")).stdout
until = time.monotonic() + 10
while (left := {one.kind for one in everything(engine(), owner().id)} - {"volume"}) and time.monotonic() < until:
    time.sleep(0.1)
say(echo.decode(), sorted(left))
"""


class PrivateEngine:
    """An engine of the test's own, in a network namespace of its own: it would remove the bridge of another."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.address = f"unix://{place}/engine.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # What a killed one leaves makes the next believe that its containerd still runs.
        for left in ("engine.pid", "exec/containerd/containerd.pid"):
            (self.place / left).unlink(missing_ok=True)
        where = [f"--data-root={self.place}/data", f"--exec-root={self.place}/exec", f"--pidfile={self.place}/engine.pid"]
        log = (self.place / "log").open("ab")
        self._process = subprocess.Popen(
            ["unshare", "--net", "dockerd", *where, "-H", self.address, "--bridge=none", "--iptables=false"],
            stdout=log, stderr=log, env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
        )  # fmt: skip
        log.close()
        until = time.monotonic() + 60
        while self.docker("version").returncode:
            assert time.monotonic() < until, (self.place / "log").read_text()[-3000:]
            assert self._process.poll() is None, (self.place / "log").read_text()[-3000:]
            time.sleep(0.1)

    def docker(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["docker", "-H", self.address, *arguments], capture_output=True, timeout=60)

    def end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None


@pytest.fixture
def private(docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateEngine]:
    if os.geteuid() != 0 or any(shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin") is None for name in ("dockerd", "docker")):
        pytest.skip("starts an engine: for root, where there is dockerd")
    # Not below the tests' directory: its path would be too long for a socket.
    made = PrivateEngine(Path(f"/tmp/rath-engine-{os.getpid()}"))
    made.place.mkdir(mode=0o711)
    try:
        made.start()
        yield made
    finally:
        made.end(signal.SIGTERM)
        with contextlib.suppress(FileNotFoundError):
            for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
                if line.split()[1].startswith(str(made.place)):
                    subprocess.run(["umount", "--lazy", line.split()[1]], check=False)
        shutil.rmtree(made.place)


def give(private: PrivateEngine, image: str) -> None:
    with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saving:
        subprocess.run(["docker", "-H", private.address, "load"], stdin=saving.stdout, check=True, capture_output=True, timeout=120)


@pytest.mark.parametrize("image", [BASE, NO_PYTHON])
def test_a_killed_engine_breaks_its_sandboxes_at_once_and_new_ones_work_when_it_is_back(private: PrivateEngine, image: str) -> None:
    give(private, image)
    environment = {**os.environ, "DOCKER_HOST": private.address}
    with subprocess.Popen(
        [sys.executable, "-c", USE, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as user:
        assert user.stdout is not None
        assert user.stdin is not None
        assert json.loads(user.stdout.readline()) == ["open"]
        time.sleep(0.5)
        killed_at = time.time()
        private.end(signal.SIGKILL)
        call, ended_at, opening, closing = json.loads(user.stdout.readline())
        assert call == "SandboxBroken"
        assert ended_at - killed_at < within(2)
        assert opening[0] == "SandboxUnavailable"
        assert "start it" in opening[2]
        assert max(opening[1], closing[1]) < within(2)
        assert closing[0] == "None", "closing what is lost is no error: a sweep does it"
        private.start()
        user.stdin.write("\n")
        user.stdin.flush()
        assert json.loads(user.stdout.readline()) == ["again\n", []]
    # Its keeper removes what the crash left of it.
    until = time.monotonic() + 10
    while left := private.docker("volume", "ls", "-q").stdout + private.docker("ps", "-aq").stdout:
        assert time.monotonic() < until, left
        time.sleep(0.2)
