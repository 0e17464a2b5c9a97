"""One request under way at a guest: what it may still send, what it sent, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from rath.backend.guest.frames import Frame, Kind, ProtocolError, unpack_credit
from rath.backend.host.paths import Refused

__all__ = ["DOWNLOAD_WINDOW_BYTES", "UPLOAD_WINDOW_BYTES", "Call", "Reply", "refusal", "wake"]

UPLOAD_WINDOW_BYTES = 256 * 1024
"""How much of an upload may be under way before the guest asks for more."""
DOWNLOAD_WINDOW_BYTES = 1024 * 1024
"""How much a guest may send of a stream before rath asks for more: all that one stream can take of rath's memory."""
_MAX_CREDIT_BYTES = 1 << 31
_SMALL_BYTES = 2048
_MAX_MESSAGE_BYTES = 4_000
_NOTHING = memoryview(b"")


class Reply(NamedTuple):
    """The answer to a request: its fields, and what was sent besides."""

    fields: list[bytes]
    out: bytes
    err: bytes
    value: bytes


class Call:
    """The state of one request. Changed by its channel only.

    Args:
        keep_bytes: how much of OUT, and of ERR, it was asked for; ``value_bytes``: of VALUE. More is a lie.
        window_bytes: how much DATA it may send now; 0 for a request that is no stream.
    """

    __slots__ = (
        "_err", "_keep", "_out", "_value", "_value_keep", "arrived", "credit", "deadline", "done",
        "feeding", "finished", "id", "moved_at", "news", "op", "outgoing", "patience_s", "queued", "room", "slow", "timer",
        "to_credit", "window",
    )  # fmt: skip

    def __init__(self, id: int, op: str, *, keep_bytes: int, value_bytes: int, window_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        self.id = id
        self.op = op
        self.done: asyncio.Future[Reply] = loop.create_future()
        # Whoever waits may have left when the answer or the loss comes; asyncio need not report that.
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._out, self._err, self._value = bytearray(), bytearray(), bytearray()
        self._keep = keep_bytes
        self._value_keep = value_bytes
        # To the guest: what is to be sent, what it has room for, and whether there is more to come.
        self.outgoing = _NOTHING
        self.credit = UPLOAD_WINDOW_BYTES
        self.feeding = False
        self.finished = True
        self.queued = False
        self.room: asyncio.Future[None] | None = None
        # From the guest: what nobody has taken yet, and what it may still send.
        self.arrived: deque[bytes] = deque()
        self.window = window_bytes
        self.to_credit = 0
        self.news: asyncio.Future[None] | None = None
        # When the guest has to be done, or how long it may be silent; in the loop's time.
        self.deadline: float | None = None
        self.patience_s: float | None = None
        self.slow = False
        self.moved_at = loop.time()
        self.timer: asyncio.TimerHandle | None = None

    @property
    def guests_turn(self) -> bool:
        """Whether anything happens next only if the guest does it."""
        if self.feeding and not self.outgoing and not self.finished:
            return False  # the source of the upload is to give more
        return not self.arrived  # else it is for the reader of the stream to take that first

    def accept(self, frame: Frame) -> None:
        """Take in a frame that is not the last one.

        Raises:
            ProtocolError: it is more than was asked for.
        """
        kind, data = frame.kind, frame.payload
        if not data:  # an endless number of them would fit into any window
            raise ProtocolError(f"a frame of kind {kind} without content")
        if kind == Kind.GUEST_DATA:
            if len(data) > self.window:
                raise ProtocolError(f"{len(data):,} bytes for {self.op!r}, which had room for {self.window:,}")
            self.window -= len(data)
            if self.arrived and len(self.arrived[-1]) < _SMALL_BYTES:  # a million objects of a byte would be 40 MB
                self.arrived[-1] += data
            else:
                self.arrived.append(data)
            wake(self.news)
        elif kind == Kind.GUEST_CREDIT:
            more = unpack_credit(data)
            self.credit += more
            if not more or self.credit > _MAX_CREDIT_BYTES:
                raise ProtocolError("no credit, or more than any upload needs")
        elif kind == Kind.VALUE:
            _add(self._value, data, self._value_keep, self.op)
        else:
            _add(self._out if kind == Kind.OUT else self._err, data, self._keep, self.op)

    def answer(self, fields: list[bytes]) -> None:
        """The guest is done."""
        self._end()
        if not self.done.done():
            self.done.set_result(Reply(fields, bytes(self._out), bytes(self._err), bytes(self._value)))

    def fail(self, error: Exception) -> None:
        """There is no answer, or it is that there can be none."""
        self._end()
        if not self.done.done():
            self.done.set_exception(error)

    def _end(self) -> None:
        self.outgoing = _NOTHING
        self.finished = True
        if self.timer is not None:
            self.timer.cancel()
        wake(self.room)
        wake(self.news)


def _add(kept: bytearray, data: bytes, limit: int, op: str) -> None:
    if len(kept) + len(data) > limit:
        raise ProtocolError(f"more than the {limit:,} bytes of output that {op!r} was asked to keep")
    kept += data


def refusal(fields: list[bytes]) -> Refused:
    """What a FAIL frame says.

    Raises:
        ProtocolError: it says nothing of the kind.
    """
    if len(fields) != 2:
        raise ProtocolError(f"a failure of {len(fields)} fields")
    kind = fields[0].decode("ascii", "replace")
    if not kind.isidentifier() or len(kind) > 40:
        raise ProtocolError(f"a failure of kind {kind[:40]!r}")
    return Refused(kind, fields[1][:_MAX_MESSAGE_BYTES].decode("utf-8", "replace"))


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Settle ``waiter`` if anybody waits."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
