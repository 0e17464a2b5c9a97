"""Processes of the ``local`` backend: started, fed, read and killed on the event loop, without a thread a call.

``asyncio``'s own subprocesses start a thread each before Python 3.12, keep all output, and wait until the last holder of
a pipe is gone. Here a *pidfd* tells when the leader ends, output is capped as it streams, and a call ends when its leader
has ended and the pipes are empty: what a background process holds open holds nobody up.

Each command leads a session of its own. A kill stops every descendant first, so that none can fork away meanwhile; then
kills them all. What left the session *and* lost its parent before (a daemon that forked twice) is out of reach here:
``local`` is the host itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from rath.backend.local_output import CappedOutput

__all__ = ["Ended", "Group", "ProcessGroups", "run_process"]

CHUNK_BYTES = 64 * 1024
DRAIN_S = 0.05
REAP_S = 1.0
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended and what it wrote. ``extra`` is what it wrote to the extra pipe, if it got one."""

    exit_code: int
    stdout: CappedOutput
    stderr: CappedOutput
    extra: CappedOutput
    elapsed_s: float
    timed_out: bool
    closed: bool


class Group:
    """A command's process group, from its start until nobody is left in it."""

    __slots__ = ("closed", "leader", "leader_alive")

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.leader_alive = True
        self.closed = False  # killed because its sandbox closed

    def empty(self) -> bool:
        """Whether nobody is left, or the number belongs to somebody else by now."""
        if self.leader_alive:
            return False
        try:
            # While members live, the kernel gives their group's number to no process. So where there is a process with
            # that number, and our leader is gone, the group had emptied before.
            os.kill(self.leader, 0)
            return True
        except ProcessLookupError:
            pass
        except PermissionError:
            return True
        try:
            os.killpg(self.leader, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    def kill(self) -> None:
        """Kill the leader, its group and every descendant that can be found."""
        if self.empty():
            return
        # A stopped process cannot fork: after a round that finds nobody new, the tree is complete.
        self._signal(signal.SIGSTOP)
        found: set[int] = set()
        for _ in range(10):
            new = _descendants(self.leader) - found
            if not new:
                break
            found |= new
            for pid in new:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGSTOP)
        self._signal(signal.SIGKILL)
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.leader, number)


class ProcessGroups:
    """The groups of one sandbox in which somebody may be left: running commands, and what they left in the background."""

    def __init__(self) -> None:
        self._groups: set[Group] = set()

    def add(self, leader: int) -> Group:
        """A command has started."""
        for old in [group for group in self._groups if group.empty()]:
            self._groups.discard(old)
        group = Group(leader)
        self._groups.add(group)
        return group

    def leader_ended(self, group: Group) -> None:
        """A command's leader has ended; others of its group may go on."""
        group.leader_alive = False
        if group.empty():
            self._groups.discard(group)

    def kill_all(self) -> None:
        """The sandbox closes."""
        for group in list(self._groups):
            group.closed = True
            group.kill()

    @property
    def empty(self) -> bool:
        """Whether nobody is left alive. Where no init reaps them, the dead stay as zombies."""
        left = [group for group in self._groups if not group.empty()]
        if not left:
            return True
        alive = {session for _, _, session, state in _processes() if state not in "ZX"}
        return not any(group.leader in alive for group in left)


def _processes() -> Iterator[tuple[int, int, int, str]]:
    """Process, parent, session and state of every process, by ``/proc``; nothing where there is none."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # After the name, which may hold anything: state, parent, group, session.
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        yield int(name), int(fields[1]), int(fields[3]), fields[0].decode()


def _descendants(top: int) -> set[int]:
    """``top``'s descendants and the members of its session."""
    children: dict[int, list[int]] = {}
    found: set[int] = set()
    for pid, parent, session, _ in _processes():
        children.setdefault(parent, []).append(pid)
        if session == top and pid != top:
            found.add(pid)
    todo = [top, *found]
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


class _Run:
    """One command under way: the loop's callbacks and what they gather."""

    def __init__(self, process: subprocess.Popen[bytes], groups: ProcessGroups) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self.process = process
        self.groups = groups
        self.group = groups.add(process.pid)
        self.outputs: dict[int, CappedOutput] = {}
        self.changed = asyncio.Event()  # a pipe ended, or the leader did
        self.ended = False
        self._pipes: list[IO[bytes]] = []
        self._unwritten = memoryview(b"")
        self._pidfd = -1
        try:
            self._pidfd = os.pidfd_open(process.pid)
            loop.add_reader(self._pidfd, self._leader_ended)
        except (AttributeError, OSError):  # no such call here: look now and then
            loop.call_later(POLL_S, self._look)

    def watch(self, pipe: IO[bytes] | None) -> CappedOutput:
        """Read ``pipe`` to its end from now on."""
        output = CappedOutput()
        if pipe is not None:
            fd = pipe.fileno()
            os.set_blocking(fd, False)
            self._pipes.append(pipe)
            self.outputs[fd] = output
            self.loop.add_reader(fd, self._readable, fd)
        return output

    def feed(self, data: bytes) -> None:
        """Write ``data`` to the command's stdin as it is taken, then close that."""
        pipe = self.process.stdin
        if pipe is not None:
            os.set_blocking(pipe.fileno(), False)
            self._unwritten = memoryview(data)
            self.loop.add_writer(pipe.fileno(), self._writable, pipe)

    def _readable(self, fd: int) -> bool:
        """Read once. Whether there may be more right away."""
        try:
            data = os.read(fd, CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if data:
            self.outputs[fd].feed(data)
            return True
        self.loop.remove_reader(fd)
        del self.outputs[fd]
        self.changed.set()
        return False

    def _writable(self, pipe: IO[bytes]) -> None:
        if self._unwritten:
            try:
                self._unwritten = self._unwritten[os.write(pipe.fileno(), self._unwritten) :]
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # it reads no further: its own affair
                self._unwritten = memoryview(b"")
        if not self._unwritten:
            self._end_stdin()

    def _end_stdin(self) -> None:
        pipe = self.process.stdin
        if pipe is not None and not pipe.closed:
            self.loop.remove_writer(pipe.fileno())
            with contextlib.suppress(OSError):
                pipe.close()

    def _look(self) -> None:
        if self.process.poll() is None:
            self.loop.call_later(POLL_S, self._look)
        else:
            self._leader_ended()

    def _leader_ended(self) -> None:
        if self._pidfd >= 0:
            self.loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self.process.wait()
        self.groups.leader_ended(self.group)
        self.ended = True
        self.changed.set()

    async def until(self, *, pipes: bool, timeout_s: float | None) -> bool:
        """Wait for the leader's end, and the pipes' too if told to. ``False`` after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ended or (pipes and self.outputs):
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            return False
        return True

    def take_what_is_there(self) -> None:
        """Read what the pipes hold now, and no more: a background process may write for ever."""
        for fd in list(self.outputs):
            for _ in range(64):
                if not self._readable(fd):
                    break

    def release(self) -> None:
        """Close our ends. A leader that has not ended yet is waited for in the background."""
        for fd in self.outputs:
            self.loop.remove_reader(fd)
        for pipe in self._pipes:
            pipe.close()
        self._end_stdin()


def _start(
    argv: Sequence[str], env: Mapping[str, str], cwd: str, stdin: bool, extra_pipe: bool
) -> tuple[subprocess.Popen[bytes], IO[bytes] | None]:
    """Start a command: 1 to 2 ms, in which the loop stands still, as it does in asyncio's own subprocesses."""
    read, write = os.pipe() if extra_pipe else (-1, -1)
    try:
        process = subprocess.Popen(
            [*argv, str(write)] if extra_pipe else list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            pass_fds=(write,) if extra_pipe else (),
        )
    except BaseException:
        if extra_pipe:
            os.close(read)
        raise
    finally:
        if extra_pipe:
            os.close(write)
    return process, os.fdopen(read, "rb", buffering=0) if extra_pipe else None


async def run_process(
    argv: Sequence[str],
    *,
    groups: ProcessGroups,
    env: Mapping[str, str],
    cwd: str,
    stdin: bytes | None = None,
    timeout_s: float | None = None,
    extra_pipe: bool = False,
) -> Ended:
    """Run a command to its end, or kill its tree after ``timeout_s`` seconds, or when the caller is cancelled.

    Args:
        extra_pipe: give it a third pipe to write to; its descriptor's number is the last argument.

    Raises:
        OSError: it could not be started.
        ValueError: an argument or variable holds a NUL character.
    """
    started = time.monotonic()
    process, extra_read = _start(argv, env, cwd, stdin is not None, extra_pipe)
    run = _Run(process, groups)
    stdout, stderr = run.watch(process.stdout), run.watch(process.stderr)
    extra = run.watch(extra_read)
    if stdin is not None:
        run.feed(stdin)
    try:
        in_time = await run.until(pipes=False, timeout_s=timeout_s)
        if not in_time:
            run.group.kill()
            await run.until(pipes=False, timeout_s=REAP_S)
        # All that the leader wrote is in the pipes by now. What its children still write gets a moment.
        if run.outputs and not await run.until(pipes=True, timeout_s=DRAIN_S):
            run.take_what_is_there()
    except BaseException:
        run.group.kill()
        # It is dead in a moment; whoever cancelled us should find it so.
        await run.until(pipes=False, timeout_s=REAP_S)
        raise
    finally:
        run.release()
    code = process.returncode
    return Ended(
        exit_code=-9 if code is None else code,
        stdout=stdout,
        stderr=stderr,
        extra=extra,
        elapsed_s=time.monotonic() - started,
        timed_out=not in_time,
        closed=run.group.closed,
    )
