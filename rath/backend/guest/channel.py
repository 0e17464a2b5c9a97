"""The connection to one guest server: many calls at once over frames, each answered at most once, none tried twice.

Everything happens on the engine's loop, without a thread and without a task a call. Both directions are bounded:

- To the guest, a long upload goes in chunks of 64 KiB, by turns with the other uploads, as far as the guest gave credit and
  only while the transport's own buffer is short. So a small request waits behind a few chunks at most.
- From the guest, output is no more than was asked for, and a stream no more than its window.

A guest that breaks the protocol, is silent beyond its time, or goes away, ends the channel for good: every call under way
and every later one raises ``SandboxBroken``. Whether what was under way happened is then unknown, and nobody tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TypeVar
from weakref import WeakSet

from rath.backend.guest.config import KEEP_BYTES, GuestConfig
from rath.backend.guest.frames import (
    CHUNK_BYTES,
    MAX_PAYLOAD_BYTES,
    Decoder,
    Frame,
    Kind,
    ProtocolError,
    encode,
    pack,
    pack_credit,
    unpack,
    unpack_pairs,
)
from rath.backend.guest.inflight import DOWNLOAD_WINDOW_BYTES, Call, Reply, refusal
from rath.backend.guest.stream import GuestStream
from rath.backend.guest.uploads import Uploads
from rath.backend.guest.watch import Watch
from rath.backend.host.paths import Refused
from rath.errors import SandboxBroken, SandboxClosed, SandboxError, SandboxUnavailable

__all__ = ["KEEP_BYTES", "Channel", "GuestConfig", "GuestStream", "Reply"]

T = TypeVar("T")
GRACE_S = 1.7
"""What a guest may take beyond a command's time limit, to kill its processes and say so."""
PATIENCE_S = 60.0
"""How long a guest may be silent over anything that is no command."""
PING_S = 10.0
KILL_WAIT_S = 2.0
KILL_S = 10.0
_WRITE_BUFFER_BYTES = 256 * 1024
_CREDIT_BYTES = DOWNLOAD_WINDOW_BYTES // 4
_MAX_MESSAGE = 4_000
_MAX_LOGS = 1_000
_log = logging.getLogger("rath.backend")


_channels: WeakSet[Channel] = WeakSet()


class Channel(asyncio.Protocol):
    """One connection to one guest. Make it on the engine's loop; hand it to a transport as its protocol.

    Args:
        name: what messages call the sandbox.
        decode: takes a carrier's own framing off what arrives; raises ``ProtocolError``.

    Attributes:
        closed: settled with the reason when the channel has ended.
        on_distrust: called when a guest lied or was silent too long, before the channel ends: kill it from outside.
    """

    def __init__(self, name: str, decode: Callable[[bytes], bytes] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self.name = name
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self.on_distrust: Callable[[], None] = lambda: None
        self._decode = decode
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._hello: asyncio.Future[dict[str, str]] = _quiet(self._loop.create_future())
        self._ready: asyncio.Future[dict[str, str]] = _quiet(self._loop.create_future())
        self._configured = False
        self._calls: dict[int, Call] = {}
        self._last_id = 0
        self._uploads = Uploads(self._write)
        self._watch = Watch(self._loop, lambda: self.start("ping", patience_s=PING_S), self._overdue)
        self._error: Callable[[], SandboxError] | None = None
        self._said: deque[str] = deque(maxlen=3)
        self._logs_left = _MAX_LOGS
        _channels.add(self)

    # -- opening and closing ------------------------------------------------------------------------------------------

    async def hello(self, timeout_s: float) -> Mapping[str, str]:
        """What the guest says about itself, unasked and first.

        Raises:
            SandboxUnavailable: it did not within ``timeout_s``.
            SandboxBroken: it died, or said something else.
        """
        return await self._introduction(self._hello, timeout_s, "started")

    async def configure(self, config: GuestConfig, timeout_s: float) -> Mapping[str, str]:
        """Tell the guest how to work; what it says about that. Once, after :meth:`hello`.

        Raises:
            SandboxUnavailable: it did not answer within ``timeout_s``, or the environment is too large for a frame.
            SandboxBroken: it died, or refused.
        """
        self.check()
        payload = pack(config.fields())
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise SandboxUnavailable(
                f"the environment has {len(payload):,} bytes, and may have {MAX_PAYLOAD_BYTES:,}: put what is large in files"
            )
        self._configured = True
        self._write(encode(Kind.CONFIG, 0, payload))
        return await self._introduction(self._ready, timeout_s, "took its configuration")

    async def _introduction(self, answer: asyncio.Future[dict[str, str]], timeout_s: float, what: str) -> Mapping[str, str]:
        done, _ = await asyncio.wait([answer], timeout=timeout_s)
        if not done:
            raise SandboxUnavailable(f"the guest server of sandbox {self.name} has not {what} within {timeout_s:g} s")
        return answer.result()

    @property
    def is_open(self) -> bool:
        """Whether calls can be made."""
        return self._error is None

    def close(self) -> None:
        """End it, which ends the guest; calls under way raise ``SandboxClosed``. Again: nothing."""
        name = self.name
        self._end("closed", lambda: SandboxClosed(f"sandbox {name} was closed; what ran in it was killed"))

    def distrust(self, reason: str) -> None:
        """End it because the guest cannot be believed: it lied, or does not answer."""
        if self._error is None:
            self.on_distrust()
            self._lose(reason)

    def _lose(self, reason: str) -> None:
        said = f" Its last words: {' / '.join(self._said)}" if self._said else ""
        text = f"sandbox {self.name} died: {reason}.{said} The outcome of what ran is unknown; it is not tried again"
        self._end(reason, lambda: SandboxBroken(text))

    def _end(self, reason: str, error: Callable[[], SandboxError]) -> None:
        if self._error is not None:
            return
        self._error = error
        calls, self._calls = self._calls, {}
        self._uploads.forget()
        for call in calls.values():
            call.fail(error())
        for introduction in (self._hello, self._ready):
            if not introduction.done():
                introduction.set_exception(error())
        if self._transport is not None:
            self._transport.abort()
        if not self.closed.done():
            self.closed.set_result(reason)

    def let_go_in_child(self) -> None:
        """In a forked child: hold the connection no longer, or the guest would live on after its owner's death."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return
        # Put something else in its place: the number stays taken, so whoever closes it later closes nothing of others.
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nothing, sock.fileno(), inheritable=False)
        os.close(nothing)

    def check(self) -> None:
        """Raise what a call on it would raise, if it has ended."""
        if self._error is not None:
            raise self._error()

    # -- calls --------------------------------------------------------------------------------------------------------

    async def ask(
        self,
        parse: Callable[[Reply], T],
        op: str,
        *fields: bytes,
        source: bytes | AsyncIterator[bytes] | None = None,
        timeout_s: float | None = None,
        patience_s: float | None = PATIENCE_S,
        slow: bool = False,
        keep_bytes: int = 0,
        value_bytes: int = 0,
    ) -> T:
        """What ``parse`` makes of the answer to ``op``. Cancelled, it has the guest kill what it started, and waits.

        Args:
            parse: raises ``ProtocolError`` for an answer that no honest guest gives.
            source: what to send along; an iterator is asked for more as the guest takes it.
            timeout_s: the time limit that the guest enforces; the answer has to be there soon after.
            patience_s: where there is no such limit: how long the guest may be silent; ``None``: for ever.
            slow: more silence is fine, as long as the guest answers when it is asked whether it lives.
            keep_bytes: how much of OUT and ERR it may send; ``value_bytes``: of VALUE.

        Raises:
            Refused: the guest could not do it.
            SandboxBroken: it died; whether it did it is unknown.
            SandboxClosed: the channel was closed meanwhile.
        """
        call = self.start(
            op,
            *fields,
            source=source if isinstance(source, bytes) and len(source) <= CHUNK_BYTES else None,
            timeout_s=timeout_s,
            patience_s=patience_s,
            slow=slow,
            keep_bytes=keep_bytes,
            value_bytes=value_bytes,
        )
        try:
            if source is not None and not (isinstance(source, bytes) and len(source) <= CHUNK_BYTES):
                await self._uploads.feed(call, source)
            reply = await asyncio.shield(call.done)
        finally:
            if not call.done.done():
                await self.stop(call)
        with self.believing():
            return parse(reply)

    @contextlib.contextmanager
    def believing(self) -> Iterator[None]:
        """A block that reads what the guest said. A ``ProtocolError`` in it ends the channel."""
        try:
            yield
        except ProtocolError as error:
            self.distrust(f"its guest server said what makes no sense ({error})")
            self.check()

    def start(
        self,
        op: str,
        *fields: bytes,
        source: bytes | None = None,
        timeout_s: float | None = None,
        patience_s: float | None = None,
        slow: bool = False,
        keep_bytes: int = 0,
        value_bytes: int = 0,
        window_bytes: int = 0,
    ) -> Call:
        """Ask for ``op`` and do not wait; ``done`` of what this returns is the answer. As :meth:`ask` otherwise.

        Args:
            source: at most one chunk, all there is to send along.
        """
        self.check()
        payload = pack((op.encode(), *fields))
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise Refused(
                "invalid_tool_arguments",
                f"arguments and environment together have {len(payload):,} bytes, and may have {MAX_PAYLOAD_BYTES:,}. "
                "Write what is large to a file first, or pass it as stdin",
            )
        self._last_id += 1
        call = Call(self._last_id, op, keep_bytes=keep_bytes, value_bytes=value_bytes, window_bytes=window_bytes)
        self._calls[call.id] = call
        frames = encode(Kind.RUN, call.id, payload)
        if source is not None:
            frames += (encode(Kind.DATA, call.id, source) if source else b"") + encode(Kind.END, call.id)
            call.credit -= len(source)
        self._write(frames)
        if timeout_s is not None:
            call.deadline = self._loop.time() + timeout_s + GRACE_S
        else:
            call.patience_s, call.slow = patience_s, slow
        self._watch.begin(call)
        return call

    def stream(
        self, op: str, *fields: bytes, limit_bytes: int, patience_s: float | None = PATIENCE_S, slow: bool = False
    ) -> GuestStream:
        """Ask for ``op``, whose answer is a stream; use it in an ``async with`` block.

        Args:
            limit_bytes: how long the stream may be. A longer one is a lie.
        """
        call = self.start(op, *fields, patience_s=patience_s, slow=slow, window_bytes=DOWNLOAD_WINDOW_BYTES)
        return GuestStream(self, call, limit_bytes)

    def kill(self, call: Call) -> None:
        """Have the guest kill what ``call`` started, if it is under way. What was not sent yet is not sent."""
        if not call.done.done():
            call.outgoing, call.finished = memoryview(b""), False
            self._write(encode(Kind.KILL, call.id))
            call.deadline = self._loop.time() + KILL_S
            self._watch.begin(call)

    async def stop(self, call: Call) -> None:
        """:meth:`kill`, and wait until it is done; but not for long."""
        self.kill(call)
        await asyncio.wait([call.done], timeout=KILL_WAIT_S)

    # -- to the guest -------------------------------------------------------------------------------------------------

    def _write(self, frames: bytes) -> None:
        if self._transport is not None and self._error is None:
            self._transport.write(frames)

    def pause_writing(self) -> None:
        self._uploads.pause()

    def resume_writing(self) -> None:
        self._uploads.resume()

    # -- from the guest -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._error is not None:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._error is not None:
            return
        try:
            for frame in self._decoder.feed(data if self._decode is None else self._decode(data)):
                self._accept(frame)
        except ProtocolError as error:
            self.distrust(f"its guest server sent what it never should ({error})")

    def connection_lost(self, error: Exception | None) -> None:
        cut = " in the middle of a frame" if self._decoder.pending_bytes else ""
        self._lose(f"the connection to it ended{cut}" + ("" if error is None else f" ({error})"))

    def _accept(self, frame: Frame) -> None:
        if frame.call == 0:
            self._accept_own(frame)
            return
        call = self._calls.get(frame.call)
        if call is None:
            raise ProtocolError(f"a frame of kind {frame.kind} for call {frame.call}, which is not under way")
        call.moved_at = self._loop.time()
        if frame.kind == Kind.DONE:
            fields = unpack(frame.payload)
            del self._calls[call.id]
            call.answer(fields)
        elif frame.kind == Kind.FAIL:
            refused = refusal(unpack(frame.payload))
            del self._calls[call.id]
            call.fail(refused)
        else:
            call.accept(frame)
            if frame.kind == Kind.GUEST_CREDIT and call.outgoing:
                self._uploads.enqueue(call)

    def _accept_own(self, frame: Frame) -> None:
        if frame.kind == Kind.LOG:
            self._logs_left -= 1
            if self._logs_left < 0:
                raise ProtocolError("more words than any guest has")
            text = frame.payload[:_MAX_MESSAGE].decode("utf-8", "replace").strip()
            self._said.append(text[:300])
            _log.debug("guest of sandbox %s: %s", self.name, text)
            return
        introduction = self._hello if frame.kind == Kind.HELLO else self._ready
        if introduction.done() or (frame.kind == Kind.READY and not self._configured):
            raise ProtocolError(f"a frame of kind {frame.kind} that nobody asked for")
        introduction.set_result(unpack_pairs(frame.payload))

    def took(self, call: Call, size_bytes: int) -> None:
        """The reader of a stream has taken so much: the guest may send as much again."""
        call.moved_at = self._loop.time()
        call.to_credit += size_bytes
        if call.to_credit >= _CREDIT_BYTES and not call.done.done():
            call.window += call.to_credit
            self._write(encode(Kind.CREDIT, call.id, pack_credit(call.to_credit)))
            call.to_credit = 0

    def _overdue(self, call: Call) -> None:
        self.distrust(f"its guest server did not answer {call.op!r} in time")


def _quiet(future: asyncio.Future[dict[str, str]]) -> asyncio.Future[dict[str, str]]:
    """``future``, whose error need not be looked at."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _let_go_in_child() -> None:
    for channel in list(_channels):
        channel.let_go_in_child()


os.register_at_fork(after_in_child=_let_go_in_child)
