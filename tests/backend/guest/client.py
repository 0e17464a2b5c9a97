"""A synchronous client of the guest server, which is run as a real subprocess: what the tests of the server speak with."""

from __future__ import annotations

import functools
import os
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rath.backend.guest import server as guest_server

SOURCE = Path(guest_server.__file__).read_text()
HEADER = struct.Struct(">IIB")
PATH = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin")


@functools.cache
def own_namespace() -> list[str] | None:
    """What to put before a command, for it to be the first process of a PID namespace; ``None`` where that cannot be.

    The server is run nowhere else: what it signals is then in there, whatever is wrong with it.
    """
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--pid", "--fork", "--kill-child", "--mount-proc"]
    try:
        works = subprocess.run([*command, "sh", "-c", "test $$ = 1"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        works = False
    return command if works else None


def server_of(pid: int) -> int:
    """The server that a process began with :func:`own_namespace` has as its child."""
    return int(subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, check=True).stdout)


def pack(*fields: bytes | str | int) -> bytes:
    raw = [f if isinstance(f, bytes) else str(f).encode() for f in fields]
    return b"".join(struct.pack(">I", len(f)) + f for f in raw)


def unpack(payload: bytes) -> list[bytes]:
    fields = []
    while payload:
        (size,) = struct.unpack(">I", payload[:4])
        fields.append(payload[4 : 4 + size])
        payload = payload[4 + size :]
    return fields


@dataclass
class Reply:
    """All that came for one call."""

    done: list[bytes] | None = None
    failure: tuple[str, str] | None = None
    chunks: list[bytes] = field(default_factory=list)
    out: bytes = b""
    err: bytes = b""
    value: bytes = b""
    credit: int = 0
    frames: list[tuple[int, int]] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def ended(self) -> bool:
        return self.done is not None or self.failure is not None

    def fields(self) -> list[bytes]:
        assert self.done is not None, self.failure
        return self.done

    @property
    def exit(self) -> str:
        return self.fields()[0].decode()

    @property
    def flags(self) -> str:
        return self.fields()[-1].decode()

    @property
    def out_total(self) -> int:
        return int(self.fields()[2])

    @property
    def out_head(self) -> int:
        return int(self.fields()[3])

    @property
    def kind(self) -> str:
        assert self.failure is not None, self.done
        return self.failure[0]


class GuestDied(Exception):
    """The stream has ended."""


class Guest:
    """The server in a process of its own. Use as a context manager."""

    def __init__(self, command: list[str] | None = None, *, pipes: bool = False) -> None:
        self.command = command or [*(own_namespace() or ()), sys.executable, "-I", "-S", "-u", "-c", SOURCE]
        self._calls: dict[int, Reply] = {}
        self._last = 0
        self._buffer = b""
        self.gives_credit = True
        self.config: dict[str, str] = {}
        if pipes:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self._out, self._in = self.process.stdin.fileno(), self.process.stdout.fileno()
            self._socket = None
        else:
            self._socket, theirs = socket.socketpair()
            self.process = subprocess.Popen(self.command, stdin=theirs, stdout=theirs)
            theirs.close()
            self._out = self._in = self._socket.fileno()
        os.set_blocking(self._in, False)
        self.hello = self._wait_for(16)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()

    @property
    def server_pid(self) -> int:
        """The server as the test sees it, where it is the child of ``unshare``."""
        return server_of(self.process.pid)

    def hang_up(self) -> None:
        """Close the stream, as the death of the owner does."""
        if self._socket is not None:
            self._socket.close()
        elif self.process.stdin is not None and self.process.stdout is not None:
            self.process.stdin.close()
            self.process.stdout.close()

    # -- frames

    def send(self, kind: int, call: int, payload: bytes = b"") -> None:
        self.send_raw(HEADER.pack(len(payload), call, kind) + payload)

    def send_raw(self, data: bytes) -> None:
        while data:
            select.select([], [self._out], [])
            try:
                data = data[os.write(self._out, data) :]
            except BlockingIOError:
                self.pump(0.01)

    def _frames(self, timeout_s: float) -> list[tuple[int, int, bytes]]:
        if select.select([self._in], [], [], timeout_s)[0]:
            chunk = os.read(self._in, 1 << 20)
            if not chunk:
                raise GuestDied
            self._buffer += chunk
        found = []
        at = 0
        while len(self._buffer) - at >= HEADER.size:
            size, call, kind = HEADER.unpack_from(self._buffer, at)
            if len(self._buffer) < at + HEADER.size + size:
                break
            at += HEADER.size + size
            found.append((call, kind, self._buffer[at - size : at]))
        self._buffer = self._buffer[at:]
        return found

    def pump(self, timeout_s: float) -> None:
        """Take in what comes."""
        for call, kind, payload in self._frames(timeout_s):
            if call == 0:
                if kind != 25:
                    pairs = [item.decode() for item in unpack(payload)]
                    self.config = {"kind": str(kind), **dict(zip(pairs[::2], pairs[1::2], strict=True))}
                continue
            reply = self._calls[call]
            assert not reply.ended, "a frame after the end of its call"
            reply.frames.append((kind, len(payload)))
            if kind == 17:
                reply.chunks.append(payload)
                if self.gives_credit:
                    self.send(6, call, struct.pack(">I", len(payload)))
            elif kind == 18:
                reply.out += payload
            elif kind == 19:
                reply.err += payload
            elif kind == 20:
                reply.value += payload
            elif kind == 22:
                reply.credit += struct.unpack(">I", payload)[0]
            elif kind == 23:
                reply.done = unpack(payload)
            elif kind == 24:
                name, message = unpack(payload)
                reply.failure = (name.decode(), message.decode())
            else:
                raise AssertionError(f"a frame of kind {kind}")

    def _wait_for(self, kind: int) -> dict[str, str]:
        self.config = {}
        end = time.monotonic() + 10
        while self.config.get("kind") != str(kind):
            assert time.monotonic() < end
            self.pump(0.1)
        return self.config

    def configure(self, workspace: str | Path, **more: str | int) -> dict[str, str]:
        env = more.pop("env", None) or f"PATH={PATH}"
        fields: list[bytes | str | int] = ["workspace", str(workspace), "env", env]
        for key, value in more.items():
            fields += [key, value]
        self.send(1, 0, pack(*fields))
        return self._wait_for(21)

    # -- calls

    def start(self, *fields: bytes | str | int) -> int:
        self._last += 1
        self._calls[self._last] = Reply()
        self.send(2, self._last, pack(*fields))
        return self._last

    def reply(self, call: int) -> Reply:
        return self._calls[call]

    def wait(self, call: int, timeout_s: float = 20) -> Reply:
        reply = self._calls[call]
        end = time.monotonic() + timeout_s
        while not reply.ended:
            assert time.monotonic() < end, f"call {call} did not end in {timeout_s} s"
            self.pump(0.1)
        return reply

    def call(self, *fields: bytes | str | int) -> Reply:
        return self.wait(self.start(*fields))

    def feed(self, call: int, data: bytes, *, end: bool = True) -> int:
        """Send input as credit allows, until all is sent or the call has ended; returns how much was sent."""
        reply = self._calls[call]
        window, sent = 256 * 1024, 0
        while sent < len(data) and not reply.ended:
            room = min(window + reply.credit - sent, 65536)
            if room > 0:
                self.send(3, call, data[sent : sent + room])
                sent += len(data[sent : sent + room])
                self.pump(0)
            else:
                self.pump(0.05)
        if end and not reply.ended:
            self.send(4, call)
        return sent

    def spawn(
        self, *argv: str | bytes, cwd: str = "", env: tuple[str, ...] = (), timeout_ms: int | str = "", keep: int | str = "",
        flags: str = "",
    ) -> int:  # fmt: skip
        return self.start("spawn", timeout_ms, cwd, keep, flags, len(argv), *argv, *env)

    def run(self, *argv: str | bytes, stdin: bytes | None = None, **more: object) -> Reply:
        """A command, to its end."""
        if stdin is not None:
            more["flags"] = str(more.get("flags", "")) + "i"
        call = self.spawn(*argv, **more)  # type: ignore[arg-type]
        if stdin is not None:
            self.feed(call, stdin)
        return self.wait(call)

    def sh(self, line: str, **more: object) -> Reply:
        return self.run("sh", "-c", line, **more)  # type: ignore[arg-type]

    def put(self, path: str | bytes, data: bytes, mode: str = "644") -> Reply:
        call = self.start("write", path, mode, len(data))
        self.feed(call, data)
        return self.wait(call)

    def get(self, path: str | bytes) -> Reply:
        return self.call("read", path, 0, "")
