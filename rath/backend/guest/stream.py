"""An answer that is a stream, taken as it comes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from rath.backend.guest.inflight import Call, Reply

if TYPE_CHECKING:
    from rath.backend.guest.channel import Channel

__all__ = ["GuestStream"]


class GuestStream:
    """A stream from a guest: ``async with`` it, iterate, then read :attr:`reply`. Left early, the guest is told to stop."""

    def __init__(self, channel: Channel, call: Call, limit_bytes: int) -> None:
        self._channel = channel
        self._call = call
        self._left = limit_bytes

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        if not self._call.done.done():
            await self._channel.stop(self._call)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """What has arrived since the last time; at most one window.

        Raises:
            Refused: the guest could not do it.
            SandboxBroken: it died, or sent more than the limit.
        """
        call = self._call
        while not call.arrived:
            if call.done.done():
                call.done.result()
                raise StopAsyncIteration
            call.news = asyncio.get_running_loop().create_future()
            await call.news
        data = call.arrived[0] if len(call.arrived) == 1 else b"".join(call.arrived)
        call.arrived.clear()
        self._left -= len(data)
        if self._left < 0:
            self._channel.distrust(f"its guest server sent a stream for {call.op!r} that is longer than it may be")
            self._channel.check()
        self._channel.took(call, len(data))
        return data

    @property
    def reply(self) -> Reply:
        """The answer after the end of the stream."""
        return self._call.done.result()
