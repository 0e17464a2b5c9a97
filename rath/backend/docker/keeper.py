"""A small process that outlives its owner, to remove what no container's end removes: networks, mounts.

It costs a shell (about 1 MB) while the owner lives: Python is started only when there is something to do. On a clean end
the owner writes a line and the shell exits. ::

    sh -c 'read -r _ || exec "$@"' keeper PYTHON -m rath.backend.docker.keeper OWNER
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time

from rath.backend.docker.engine import engine
from rath.backend.docker.sweep import everything, sweep_blocking
from rath.backend.owner import Owner, alive
from rath.errors import SandboxError

__all__ = ["Keeper", "main"]

# Containers end by themselves in much less; what still runs then is removed.
CONTAINERS_S = 1.0
PATIENCE_S = 10.0
_WAIT = 'read -r _ || exec "$@"'
# What Python and docker-py need; not the keys that the owner's environment may hold.
_PASSED = ("PATH", "HOME", "XDG_RUNTIME_DIR", "TMPDIR", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH",
           "DOCKER_TLS_VERIFY", "PYTHONPATH", "VIRTUAL_ENV", "SSH_AUTH_SOCK")  # fmt: skip


class Keeper:
    """The keeper of one owner, started when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def need(self, owner: Owner) -> None:
        """Have a keeper from now on. Blocks for a few milliseconds, once."""
        with self._lock:
            if self._process is not None and self._pid == os.getpid() and self._process.poll() is None:
                return
            program = [sys.executable, "-m", "rath.backend.docker.keeper", owner.id]
            environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
            self._pid = os.getpid()
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _WAIT, "keeper", *program],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd="/", env=environment, start_new_session=True,
            )  # fmt: skip

    def dismiss(self) -> None:
        """Nothing is left to keep: end it."""
        with self._lock:
            process, self._process = self._process, None
        if process is None or self._pid != os.getpid() or process.stdin is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.write(b"\n")
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2.0)

    def reset_in_child(self) -> None:
        """The pipe is the parent's: a copy in a child would keep the keeper waiting."""
        process, self._process = self._process, None
        self._lock = threading.Lock()
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.returncode = 0  # not this process's child: there is nothing to wait for


def main(owner: str) -> int:
    """Remove what ``owner``, which is dead, has left. What does not go now, the next process's sweep removes."""
    begun = time.monotonic()
    while time.monotonic() < begun + CONTAINERS_S and (
        alive(owner) is not False or any(one.kind == "container" for one in everything(engine(), owner))
    ):
        time.sleep(0.1)
    while sweep_blocking(engine(), only=owner).failed and time.monotonic() < begun + PATIENCE_S:
        time.sleep(0.2)
    return 0


keeper = Keeper()
os.register_at_fork(after_in_child=keeper.reset_in_child)

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except SandboxError as error:
        sys.exit(str(error))
