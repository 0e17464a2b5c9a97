"""The gate of a sandbox: calls go in together, a freeze goes in alone; first come, first served.

Everything happens on the engine's loop but :meth:`Gate.reserve`, which any thread may call: a fork says *at its call*
that no later operation may pass before the freeze, and the freeze itself runs when the loop gets to it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

__all__ = ["Gate", "Reservation"]


class Reservation:
    """A place in the line, held for a freeze."""

    __slots__ = ("granted", "impatient", "made_at")

    def __init__(self) -> None:
        self.made_at = time.monotonic()
        self.granted: asyncio.Future[None] | None = None
        self.impatient = False


class Gate:
    """A first-in-first-out lock, shared by calls, exclusive for freezes."""

    __slots__ = ("_line", "_running")

    def __init__(self) -> None:
        self._running = 0
        # Appending to a deque is atomic, so `reserve` needs no lock.
        self._line: deque[Reservation | asyncio.Future[None]] = deque()

    @property
    def running(self) -> int:
        """How many calls are in."""
        return self._running

    async def enter(self) -> None:
        """Go in as a call. Waits while a freeze is in, or in line before."""
        if not self._line:
            self._running += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # let in and cancelled in the same moment
                self.leave()
            raise

    def leave(self) -> None:
        """A call is out."""
        self._running -= 1
        self._advance()

    def reserve(self) -> Reservation:
        """Hold a place in the line for a freeze. Any thread."""
        place = Reservation()
        self._line.append(place)
        return place

    async def alone(self, place: Reservation, patience_s: float) -> None:
        """Wait until everything before ``place`` is out; for calls still running, until ``patience_s`` after it was made."""
        loop = asyncio.get_running_loop()
        place.granted = loop.create_future()
        timer = loop.call_later(max(0.0, place.made_at + patience_s - time.monotonic()), self._lose_patience, place)
        self._advance()
        try:
            await place.granted
        finally:
            timer.cancel()

    def done(self, place: Reservation) -> None:
        """The freeze is out, or will not come."""
        if place in self._line:
            self._line.remove(place)
        self._advance()

    def reset(self) -> None:
        """Empty, as in a forked child, where nobody who waits or runs here exists."""
        self._running = 0
        self._line.clear()

    def _lose_patience(self, place: Reservation) -> None:
        place.impatient = True
        self._advance()

    def _advance(self) -> None:
        while self._line:
            head = self._line[0]
            if isinstance(head, Reservation):
                # It stays at the head of the line until `done`, and so keeps later calls out.
                granted = head.granted
                if granted is not None and not granted.done() and (self._running == 0 or head.impatient):
                    granted.set_result(None)
                return
            self._line.popleft()
            if not head.done():
                self._running += 1
                head.set_result(None)
