"""``rath sandbox shell``: this terminal, joined to a shell in a container."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator

from rath.backend.docker.container import WORKSPACE
from rath.backend.docker.engine import NotThere, engine
from rath.cli import sandbox
from rath.cli.console import Trouble, err
from rath.errors import SandboxError

__all__ = ["open_shell"]

# bash where there is one: its lines can be edited.
_SHELL = ["/bin/sh", "-c", "command -v bash >/dev/null 2>&1 && exec bash; exec sh"]
_NOBODY = 65534
_BYTES = 65536
_KILLED = 137
_SEEN_S = 1.0


def open_shell(name: str) -> int:
    """A shell in a sandbox, as the user that its commands run as; its exit code.

    Raises:
        Trouble: there is no way in.
    """
    one, seen = sandbox.find(name)
    if one.backend != "docker":
        raise Trouble(
            f"sandbox {one.id} is of backend {one.backend}, which nothing can enter from outside. Run commands in it "
            "from the program that opened it: session.require_sandbox().dispatch(BackendToolCommandRun(...))",
            code=1,
        )
    if one.container is None or one.state not in ("running", "warm"):
        why = seen.problem or f"it is {one.state}: it has no running container of a living owner"
        raise Trouble(f"there is no way into sandbox {one.id}: {why}. See `rath sandbox ps`", code=1)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Trouble("a shell needs a terminal on both sides; for one command use `docker exec`", code=2)
    uid = one.uid or _NOBODY
    err().line((f"sandbox {one.id} as user {uid}, in {WORKSPACE}; `exit` leaves it as it is", "dim"))
    env = {"TERM": os.environ.get("TERM", "xterm"), "HOME": WORKSPACE, "LANG": "C.UTF-8"}
    try:
        running, stream = engine().open_terminal(one.container, _SHELL, user=f"{uid}:{uid}", env=env, cwd=WORKSPACE)
        with stream, _sizes(running) as resized, _raw(sys.stdin.fileno()):
            _join(stream, resized, running)
        code = _exit_code(running)
        if code in (None, _KILLED) and _has_ended(one.container):
            raise Trouble(f"the container of sandbox {one.id} is gone: its owner closed it, or it died", code=1)
        return code or 0
    except SandboxError as error:
        raise Trouble(str(error), code=1) from error


def _exit_code(running: str) -> int | None:
    try:
        return engine().terminal_exit(running)
    except NotThere:
        return None


def _has_ended(container: str) -> bool:
    """Whether a container has ended, or does so now: its processes go first, and the engine takes a moment to see it."""
    until = time.monotonic() + _SEEN_S
    while time.monotonic() < until:
        try:
            found = engine().ask_blocking("look at a container", lambda client: client.inspect_container(container))
        except NotThere:
            return True
        if not found["State"]["Running"]:
            return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Every key goes to the shell, Ctrl-C too; afterwards the terminal is as it was."""
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


@contextlib.contextmanager
def _sizes(running: str) -> Iterator[int]:
    """Tell the shell the size of this window; a descriptor that can be read when the size has changed."""
    told, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.signal(signal.SIGWINCH, lambda _number, _frame: _poke(tell))
    try:
        _tell_size(running)
        yield told
    finally:
        signal.signal(signal.SIGWINCH, before)
        os.close(told)
        os.close(tell)


def _poke(pipe: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.write(pipe, b"!")


def _tell_size(running: str) -> None:
    columns, lines = os.get_terminal_size(sys.stdout.fileno())
    # Too small a matter to end a shell for: it may just have ended by itself.
    with contextlib.suppress(SandboxError):
        engine().resize_terminal(running, lines, columns)


def _join(stream: socket.socket, resized: int, running: str) -> None:
    """Pass bytes both ways until the shell ends."""
    stream.setblocking(True)
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    watched = [stream, keys, resized]
    while True:
        ready = select.select(watched, [], [])[0]
        if resized in ready:
            os.read(resized, _BYTES)
            _tell_size(running)
        if stream in ready:
            data = stream.recv(_BYTES)
            if not data:
                return
            while data:
                data = data[os.write(screen, data) :]
        if keys in ready:
            typed = os.read(keys, _BYTES)
            if typed:
                stream.sendall(typed)
            else:
                watched.remove(keys)
