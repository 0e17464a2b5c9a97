"""What is on its way to a guest: chunks of uploads, by turns, as far as the guest gave credit and the transport has room."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from rath.backend.guest.frames import CHUNK_BYTES, Kind, encode
from rath.backend.guest.inflight import Call, wake

__all__ = ["Uploads"]


class Uploads:
    """The uploads of one channel.

    Args:
        write: hands frames to the transport.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._sending: deque[Call] = deque()
        self._paused = False

    def pause(self) -> None:
        """The transport has enough."""
        self._paused = True

    def resume(self) -> None:
        """The transport has room again."""
        self._paused = False
        self._pump()

    def forget(self) -> None:
        """The channel has ended."""
        self._sending.clear()

    async def feed(self, call: Call, source: bytes | AsyncIterator[bytes]) -> None:
        """Send ``source`` along with ``call``; returns when an iterator is at its end, or the guest is done."""
        call.feeding, call.finished = True, isinstance(source, bytes)
        if isinstance(source, bytes):
            call.outgoing = memoryview(source)
            self.enqueue(call)
            return
        async for chunk in source:
            if call.done.done():
                return
            call.outgoing = memoryview(chunk)
            self.enqueue(call)
            if call.outgoing:
                call.room = asyncio.get_running_loop().create_future()
                await call.room
        call.finished = True
        self.enqueue(call)

    def enqueue(self, call: Call) -> None:
        """There is something to send for ``call``, or credit for it."""
        if not call.queued and not call.done.done():
            call.queued = True
            self._sending.append(call)
            self._pump()

    def _pump(self) -> None:
        """Send chunks, one of each upload by turns, until there is nothing to send or the transport has enough."""
        while self._sending and not self._paused:
            call = self._sending.popleft()
            call.queued = False
            if call.done.done():
                continue
            size = min(len(call.outgoing), CHUNK_BYTES, call.credit)
            if size:
                chunk, call.outgoing = call.outgoing[:size], call.outgoing[size:]
                call.credit -= size
                call.moved_at = asyncio.get_running_loop().time()
                self._write(encode(Kind.DATA, call.id, chunk))
            if not call.outgoing:
                wake(call.room)
                if call.finished:
                    call.feeding = False
                    self._write(encode(Kind.END, call.id))
            elif call.credit:
                call.queued = True
                self._sending.append(call)
