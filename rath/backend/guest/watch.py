"""Whether a guest takes too long: by a call's deadline, or by its silence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rath.backend.guest.inflight import Call

__all__ = ["Watch"]

_SECOND_LOOK_S = 0.1


class Watch:
    """Looks after the calls of one channel, without a task a call.

    Args:
        ping: asks the guest whether it lives; no answer is the end of the channel.
        overdue: told of a call whose time is over.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, ping: Callable[[], object], overdue: Callable[[Call], None]
    ) -> None:
        self._loop = loop
        self._ping = ping
        self._overdue = overdue

    def begin(self, call: Call) -> None:
        """Look after a call, by its deadline if it has one; anew, if it was looked after before."""
        if call.timer is not None:
            call.timer.cancel()
        if call.deadline is not None:
            call.timer = self._loop.call_at(call.deadline, self._look_again, call)
        elif call.patience_s is not None:
            call.timer = self._loop.call_later(call.patience_s, self._look, call, call.patience_s)

    def _look(self, call: Call, patience_s: float) -> None:
        now = self._loop.time()
        if not call.guests_turn:
            call.moved_at = now
        left_s = call.moved_at + patience_s - now
        if left_s <= 0 and call.slow:
            self._ping()
            call.moved_at, left_s = now, patience_s
        if left_s <= 0:
            self._look_again(call)
        else:
            call.timer = self._loop.call_later(left_s, self._look, call, patience_s)

    def _look_again(self, call: Call) -> None:
        # The loop itself may have been late, with the answer in the socket: that is read before the next timer.
        call.timer = self._loop.call_later(_SECOND_LOOK_S, self._end, call)

    def _end(self, call: Call) -> None:
        if not call.done.done():
            self._overdue(call)
