"""What comes out of an exec, and out of the main process of a container in exec mode."""

from __future__ import annotations

import asyncio

from rath.backend.answers import composed
from rath.backend.docker import exec_scripts as scripts
from rath.backend.docker.carrier import STDERR, Demultiplexer

__all__ = ["ExecStreams", "Kept", "MainStreams"]

READY = b"ready"


class Kept:
    """One stream of a script: the head and tail of what came before the mark, and how much that was."""

    def __init__(self, mark: bytes, keep: int) -> None:
        self._mark = mark
        self._half = max(1, keep // 2)
        self._held = b""
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0
        self.after: bytes | None = None

    def feed(self, data: bytes) -> None:
        if self.after is not None:
            self.after = (self.after + data)[:64]
            return
        data = self._held + data
        at = data.find(self._mark)
        if at >= 0:
            self._keep(data[:at])
            self._held = b""
            self.after = data[at + len(self._mark) :][:64]
            return
        # The mark may have begun in the last bytes.
        cut = max(0, len(data) - len(self._mark))
        self._held = data[cut:]
        self._keep(data[:cut])

    def end(self) -> None:
        """No more comes: what was held back is output."""
        self._keep(self._held)
        self._held = b""

    def _keep(self, data: bytes) -> None:
        self.total += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]

    @property
    def truncated(self) -> bool:
        return self.total > 2 * self._half

    def value(self) -> bytes:
        return composed(self._head, self._tail[-self._half :] if self.truncated else self._tail, self.total)


class ExecStreams(asyncio.Protocol):
    """The streams of one exec. ``ended`` is done when both marks came, or nothing comes any more."""

    def __init__(self, nonce: str, keep: int) -> None:
        mark = scripts.mark(nonce)
        self.stdout, self.stderr = Kept(mark + b"\036", keep), Kept(mark + b" ", keep)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pieces = Demultiplexer()
        self.transport: asyncio.Transport | None = None

    @property
    def verdict(self) -> str | None:
        """What the script ended with; ``None`` if it did not get there."""
        after = self.stderr.after
        return None if after is None or b"\036" not in after else after.partition(b"\036")[0].decode("ascii", "replace")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(scripts.GO)

    def data_received(self, data: bytes) -> None:
        for kind, piece in self._pieces.feed(data):
            (self.stderr if kind == STDERR else self.stdout).feed(piece)
        if self.stdout.after is not None and self.verdict is not None:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stdout.end()
        self.stderr.end()
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def send(self, data: bytes | None) -> None:
        if data is not None and self.transport is not None:
            self.transport.write(data)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class MainStreams(asyncio.Protocol):
    """The streams of the main process: when they end, so has the container."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.said = b""
        self._pieces = Demultiplexer()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for _kind, piece in self._pieces.feed(data):
            self.said = (self.said + piece)[-4096:]
        if READY in self.said and not self.ready.done():
            self.ready.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        for waiting in (self.ready, self.closed):
            if not waiting.done():
                waiting.set_result(None)
