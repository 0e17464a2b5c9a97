"""Processes of the ``local`` backend: started, fed, read and killed on the event loop, without a thread a call.

``asyncio``'s own subprocesses start a thread each before Python 3.12, keep all output, and wait until the last holder of
a pipe is gone. Here a *pidfd* tells when the leader ends, output is capped as it streams, and a call ends when its leader
has ended and the pipes are empty: what a background process holds open holds nobody up.

Each command leads a session of its own and carries two marks in its environment, by which :mod:`rath.backend.local_kill`
finds and kills what it started, and says what is out of reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from rath.backend.local_kill import ProcessGroups
from rath.backend.local_output import CappedOutput

__all__ = ["Ended", "run_process"]

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


class _Run:
    """One command under way: the loop's callbacks and what they gather."""

    def __init__(self, process: subprocess.Popen[bytes], groups: ProcessGroups, mark: str) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self.process = process
        self.groups = groups
        self.group = groups.add(process.pid, mark)
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
    marks = groups.marks()
    marked = {**env, **dict(mark.split("=", 1) for mark in marks)}
    process, extra_read = _start(argv, marked, cwd, stdin is not None, extra_pipe)
    run = _Run(process, groups, marks[1])
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
