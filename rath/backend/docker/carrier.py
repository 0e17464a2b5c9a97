"""A container's three streams over one socket: the engine's framing, and handing the socket to asyncio.

The engine puts eight bytes before each piece of output: the stream's number, three zeros, the length. What is written to
the socket goes to the container's stdin as it is.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import TypeVar

from rath.backend.guest.frames import ProtocolError

__all__ = ["Demultiplexer", "OutputOnly", "connect"]

P = TypeVar("P", bound=asyncio.Protocol)
STDOUT, STDERR = 1, 2
HEADER_BYTES = 8
DIAGNOSTICS_BYTES = 16 * 1024


class Demultiplexer:
    """Takes the engine's framing off a stream that comes in pieces of any size."""

    __slots__ = ("_header", "_kind", "_left")

    def __init__(self) -> None:
        self._header = b""
        self._kind = 0
        self._left = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The pieces that ``data`` completes: ``(stream, bytes)``.

        Raises:
            ProtocolError: this is no stream of the engine's.
        """
        at, end = 0, len(data)
        while at < end:
            if self._left == 0:
                header = self._header + data[at : at + HEADER_BYTES - len(self._header)]
                at += len(header) - len(self._header)
                self._header = header if len(header) < HEADER_BYTES else b""
                if len(header) < HEADER_BYTES:
                    return
                if header[0] > STDERR or header[1:4] != b"\0\0\0":
                    raise ProtocolError(f"the engine's stream is out of step: {header!r} is no header")
                self._kind, self._left = header[0], int.from_bytes(header[4:], "big")
                continue
            piece = data[at : at + self._left]
            at += len(piece)
            self._left -= len(piece)
            yield self._kind, piece


class OutputOnly:
    """For a guest's channel: its stdout, with the framing taken off. The end of its stderr is kept in ``diagnostics``."""

    __slots__ = ("_pieces", "diagnostics")

    def __init__(self) -> None:
        self._pieces = Demultiplexer()
        self.diagnostics = b""

    def __call__(self, data: bytes) -> bytes:
        found = []
        for kind, piece in self._pieces.feed(data):
            if kind == STDERR:
                self.diagnostics = (self.diagnostics + piece)[-DIAGNOSTICS_BYTES:]
            else:
                found.append(piece)
        return found[0] if len(found) == 1 else b"".join(found)

    @property
    def said(self) -> str:
        """What the main process wrote to stderr, the end of it."""
        return self.diagnostics.decode("utf-8", "replace").strip()


async def connect(sock: socket.socket, protocol: P) -> P:
    """Let ``protocol`` serve ``sock`` on the engine's loop."""
    try:
        await asyncio.get_running_loop().create_connection(lambda: protocol, sock=sock)
    except BaseException:
        sock.close()
        raise
    return protocol
