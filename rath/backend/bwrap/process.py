"""Starting ``bwrap`` and ending it: the descriptors, the limits, and whom it runs as."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rath.backend.bwrap import seccomp
from rath.backend.bwrap.arguments import Plan, arguments, generated_files
from rath.backend.host.own import STAND_INS
from rath.errors import SandboxError

__all__ = ["PROCESSES", "Running", "User", "stand_in", "start"]

PROCESSES = 256
FILES = 4096
"""Descriptors a process: as many as a server or a build opens, and not what could fill the kernel's tables."""
_CORE, _NPROC, _NOFILE = 4, 6, 7  # RLIMIT_*, on every processor that the seccomp program knows
_SAID_BYTES = 4096
_BUS = ("DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR")  # for systemd-run; bwrap clears what it is given
_POLL_S = 0.01
_KILLED_S = 2.0
# Where only 65,536 users are mapped, as in many containers.
_LOW_UIDS = range(50_000, 60_000)


@dataclass(frozen=True, slots=True)
class User:
    """Whom ``bwrap`` runs as on the host."""

    uid: int
    gid: int


@functools.cache
def stand_in() -> User | None:
    """For root: an unprivileged user of this process's own; else ``None``: ``bwrap`` runs as who we are.

    Never root: in its user namespace it would own what root owns, and limits on the number of processes do not hold for it.
    """
    if os.geteuid() != 0:
        return None
    uid = random.choice(STAND_INS if _is_mapped(STAND_INS[-1]) else _LOW_UIDS)
    return User(uid, uid)


def _is_mapped(uid: int) -> bool:
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    ranges = [tuple(map(int, line.split())) for line in lines]
    return any(first <= uid < first + count for first, _, count in ranges)


class Running:
    """A ``bwrap`` that was started, and our end of the connection to what runs in it.

    It is started by a thread that lives as long as this process does, the engine's: ``--die-with-parent`` means the
    *thread*. That is for the case that we are killed, as is the end of the connection, which the guest sees.
    """

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket, said: int) -> None:
        self.process = process
        self.connection = connection
        self._said = said
        self._pidfd = _pidfd(process.pid)

    def said(self) -> str:
        """The beginning of what it wrote to stderr."""
        return os.pread(self._said, _SAID_BYTES, 0).decode("utf-8", "replace").strip()

    async def ended(self, timeout_s: float) -> bool:
        """Wait until it has ended; ``False`` if it runs on after ``timeout_s`` seconds. On the engine's loop."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        if self._pidfd >= 0 and self.process.poll() is None:
            over = asyncio.Event()
            loop.add_reader(self._pidfd, over.set)
            try:
                async with asyncio.timeout(timeout_s):
                    await over.wait()
            except TimeoutError:
                return self.process.poll() is not None
            finally:
                loop.remove_reader(self._pidfd)
        while self.process.poll() is None:
            if loop.time() >= until:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def kill(self) -> None:
        """End it now, and with it everything in its process namespace."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def finish(self) -> None:
        """End it if it runs still, and give back what is ours. Blocks for the moment that a killed process takes to go.

        Raises:
            SandboxError: it was killed and is still there.
        """
        self.kill()
        try:
            self.process.wait(_KILLED_S)
        except subprocess.TimeoutExpired:
            raise SandboxError(
                f"process {self.process.pid} (bwrap) was killed and has not ended: the kernel holds it, and its files"
            ) from None
        finally:
            self.connection.close()
            for descriptor in (self._said, self._pidfd):
                if descriptor >= 0:
                    os.close(descriptor)


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def start(
    bwrap: str,
    plan: Plan,
    guest: bytes,
    *,
    who: User | None,
    compiled: bool = False,
    processes: int = PROCESSES,
    prefix: Sequence[str] = (),
    enter: Callable[[int], None] = lambda _pid: None,
) -> Running:
    """Start a sandbox whose first process runs ``guest``. Blocks for the 1 to 3 ms of a fork.

    Args:
        guest: Python source; ``compiled``: or what ``marshal`` makes of its code, by the same Python that is to run it.
        who: whom it runs as on the host; ``None``: as ourselves, who must not be root.
        processes: how many processes and threads there may be at once.
        prefix: a command that becomes the one that its arguments are, to go before ``bwrap``.
        enter: told the process's number before it has done anything.

    Raises:
        OSError: the program cannot be started.
    """
    assert who is not None or os.geteuid() != 0, "root never is whom a sandbox runs as"
    ours, theirs = socket.socketpair()
    said = os.memfd_create("rath-said")
    files = {path: _readable(path, content) for path, content in generated_files(plan).items()}
    filters = _readable("seccomp", seccomp.program())
    source = _readable("guest", guest)
    kind = "code" if compiled else "source"
    options = "\0".join(arguments(plan, files, filters)).encode("utf-8", "surrogateescape") + b"\0"
    waits, tells = os.pipe()
    process: subprocess.Popen[bytes] | None = None
    become: dict[str, Any] = {} if who is None else {"user": who.uid, "group": who.gid, "extra_groups": []}
    try:
        process = subprocess.Popen(
            [*prefix, bwrap, "--args", str(waits), "--", *_command(plan, source, kind, processes)],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=said,
            env={name: os.environ[name] for name in _BUS if prefix and name in os.environ},
            cwd="/",
            pass_fds=(*files.values(), filters, source, waits),
            # A session of its own: no terminal to type into, and Ctrl-C is for us to handle.
            start_new_session=True,
            **become,
        )
        enter(process.pid)
        # It has waited for its options: until now it was one process, with nothing done.
        os.write(tells, options)
    except BaseException:
        if process is not None:
            process.kill()
            process.wait()
        ours.close()
        os.close(said)
        raise
    finally:
        theirs.close()
        for descriptor in (*files.values(), filters, source, waits, tells):
            os.close(descriptor)
    ours.setblocking(False)
    return Running(process, ours, said)


def _command(plan: Plan, guest: int, kind: str, processes: int) -> list[str]:
    limits = {_CORE: 0, _NPROC: processes, _NOFILE: FILES}
    pairs = [f"{resource}={value}" for resource, value in limits.items()]
    return [plan.python.path, "-I", "-S", "-u", "-c", _prelude(), kind, str(guest), *pairs]


@functools.cache
def _prelude() -> str:
    return resources.files("rath.backend.bwrap").joinpath("prelude.py").read_text(encoding="utf-8")


def _readable(name: str, content: bytes) -> int:
    """A descriptor to read ``content`` from; whoever runs as another user may, too: it is open already."""
    descriptor = os.memfd_create(f"rath-{name.rpartition('/')[2]}")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
