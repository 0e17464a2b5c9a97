"""A small process that outlives its owner, to remove what no container's end removes: networks, mounts, volumes, and a
container that was made but never started.

It costs 2 ms and a shell of 1 MB while the owner lives. At the owner's end, however that comes, the shell becomes Python and
looks (0.4 s): who ends in order may have been given too little time to close everything. ::

    sh -c 'read -r _; exec "$@"' keeper PYTHON -m rath.backend.docker.keeper OWNER
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
from rath.backend.owner import Owner, alive, owner
from rath.core import ports
from rath.errors import SandboxError, SandboxUnavailable

__all__ = ["Keeper", "keeper", "kept_owner", "main"]

# Containers end by themselves in much less; what still runs then is removed.
CONTAINERS_S = 1.0
PATIENCE_S = 10.0
_WAIT = 'read -r _; exec "$@"'
# What Python and docker-py need; not the keys that the owner's environment may hold.
_PASSED = ("PATH", "HOME", "XDG_RUNTIME_DIR", "TMPDIR", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH",
           "DOCKER_TLS_VERIFY", "LD_LIBRARY_PATH", "PYTHONHOME", "VIRTUAL_ENV", "SSH_AUTH_SOCK")  # fmt: skip


class Keeper:
    """The keeper of one owner, started when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def need(self, owner: Owner) -> None:
        """Have a keeper from now on. Blocks for a few milliseconds, once.

        Raises:
            SandboxUnavailable: it cannot be started.
        """
        with self._lock:
            if self._process is not None and self._pid == os.getpid() and self._process.poll() is None:
                return
            program = [sys.executable, "-m", "rath.backend.docker.keeper", owner.id]
            environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
            # Wherever this process found its modules: a relative entry means something else in "/".
            environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
            self._pid = os.getpid()
            try:
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", _WAIT, "keeper", *program],
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    cwd="/", env=environment, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise SandboxUnavailable(
                    f"the process that cleans up after this one could not be started: {error}. "
                    "It needs /bin/sh, some memory, and room for one more process"
                ) from error

    def reset_in_child(self) -> None:
        """The pipe is the parent's: a copy in a child would keep the keeper waiting."""
        process, self._process = self._process, None
        self._lock = threading.Lock()
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.returncode = 0  # not this process's child: there is nothing to wait for


async def kept_owner() -> Owner:
    """This process's owner, with a keeper: ask before anything in the engine, or any mount, is made in its name.

    Raises:
        SandboxUnavailable: there can be none.
    """
    return await ports.engine().call(_kept_owner)


def _kept_owner() -> Owner:
    mine = owner()
    keeper.need(mine)
    return mine


def main(dead: str) -> int:
    """Remove what the owner ``dead`` has left. What does not go now, the next process's sweep removes."""
    begun = time.monotonic()
    while time.monotonic() < begun + CONTAINERS_S and (
        alive(dead) is not False or any(one.kind == "container" for one in everything(engine(), dead))
    ):
        time.sleep(0.1)
    while sweep_blocking(engine(), only=dead).failed and time.monotonic() < begun + PATIENCE_S:
        time.sleep(0.2)
    return 0


keeper = Keeper()
os.register_at_fork(after_in_child=keeper.reset_in_child)

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except SandboxError as error:
        sys.exit(str(error))
