"""The channel to a guest, against a scripted peer: bounded in memory and time, and no lie is believed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from rath.backend.guest.channel import GRACE_S, Channel
from rath.backend.guest.config import GuestConfig
from rath.backend.guest.frames import Kind, encode, pack, pack_credit, unpack
from rath.backend.guest.inflight import DOWNLOAD_WINDOW_BYTES, UPLOAD_WINDOW_BYTES, Reply
from rath.backend.host.paths import Refused
from rath.errors import SandboxBroken, SandboxClosed, SandboxUnavailable
from rath.testing.pace import within

HEADER = struct.Struct(">IIB")
HELLO = encode(Kind.HELLO, 0, pack([b"protocol", b"1"]))
MIB = 1 << 20


class Peer:
    """The other end: says what a test tells it to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def frame(self) -> tuple[int, int, bytes]:
        """The next frame of the channel: call, kind, payload."""
        size, call, kind = HEADER.unpack(await self._reader.readexactly(HEADER.size))
        return call, kind, await self._reader.readexactly(size)

    async def run(self) -> tuple[int, list[bytes]]:
        """The next request, and its fields."""
        call, kind, payload = await self.frame()
        assert kind == Kind.RUN
        return call, unpack(payload)

    def send(self, kind: int, call: int, payload: bytes = b"") -> None:
        self.writer.write(encode(kind, call, payload))

    def done(self, call: int, *fields: bytes) -> None:
        self.send(Kind.DONE, call, pack(fields))

    async def gone(self) -> bool:
        """Whether the channel has hung up on us."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await self.frame()
        return True


def with_peer(test: Callable[[Channel, Peer], Awaitable[None]]) -> None:
    """Run ``test`` with a connected channel that has been greeted, and its peer."""

    async def main() -> None:
        async with asyncio.timeout(30):
            near, far = socket.socketpair()
            loop = asyncio.get_running_loop()
            _, channel = await loop.create_connection(lambda: Channel("box"), sock=near)
            reader, writer = await asyncio.open_connection(sock=far)
            peer = Peer(reader, writer)
            writer.write(HELLO)
            assert await channel.hello(5) == {"protocol": "1"}
            try:
                await test(channel, peer)
            finally:
                channel.close()
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    asyncio.run(main())


def same(reply: Reply) -> Reply:
    return reply


async def soon(condition: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


# -- honest guests ----------------------------------------------------------------------------------------------------


def test_many_calls_at_once_each_get_their_own_answer() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        calls = [asyncio.create_task(channel.ask(same, "exists", b"%d" % n)) for n in range(50)]
        asked = [await peer.run() for _ in calls]
        for call, (_, path) in reversed(asked):
            peer.done(call, path)
        assert [(await one).fields for one in calls] == [[b"%d" % n] for n in range(50)]

    with_peer(test)


def test_output_comes_with_the_answer_and_a_refusal_is_an_error_of_its_own() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        asking = asyncio.create_task(channel.ask(same, "spawn", keep_bytes=10, value_bytes=3))
        call, _ = await peer.run()
        for kind, data in ((Kind.OUT, b"one"), (Kind.ERR, b"err"), (Kind.OUT, b"two"), (Kind.VALUE, b"val")):
            peer.send(kind, call, data)
        peer.done(call, b"0")
        assert await asking == Reply([b"0"], b"onetwo", b"err", b"val")
        asking = asyncio.create_task(channel.ask(same, "read", b"x"))
        call, _ = await peer.run()
        peer.send(Kind.FAIL, call, pack([b"file_not_found", b"no x"]))
        with pytest.raises(Refused, match="no x") as caught:
            await asking
        assert caught.value.kind == "file_not_found"
        assert channel.is_open

    with_peer(test)


def test_a_configuration_is_told_and_answered_once() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        config = GuestConfig("/w", uid=7, gid=8, env={"A": "é"}, mode="switch", mark="groups", keep_bytes=9)
        configuring = asyncio.create_task(channel.configure(config, 5))
        call, kind, payload = await peer.frame()
        fields = unpack(payload)
        assert (call, kind) == (0, Kind.CONFIG)
        assert dict(zip(fields[::2], fields[1::2], strict=True)) == {
            b"workspace": b"/w", b"uid": b"7", b"gid": b"8", b"env": "A=é".encode(),
            b"mode": b"switch", b"mark": b"groups", b"keep": b"9",
        }  # fmt: skip
        peer.send(Kind.READY, 0, pack([b"mark", b"groups"]))
        assert await configuring == {"mark": "groups"}

    with_peer(test)


def test_an_upload_waits_for_credit_and_stops_when_the_guest_is_done() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        asking = asyncio.create_task(channel.ask(same, "spawn", source=bytes(10 * MIB)))
        call, _ = await peer.run()
        got = 0
        while got < UPLOAD_WINDOW_BYTES:
            got += len((await peer.frame())[2])
        assert got == UPLOAD_WINDOW_BYTES
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(peer.frame(), 0.1)
        peer.send(Kind.GUEST_CREDIT, call, pack_credit(1000))
        assert await peer.frame() == (call, Kind.DATA, bytes(1000))
        peer.done(call, b"0")  # it reads no more
        assert (await asking).fields == [b"0"]
        other = asyncio.create_task(channel.ask(same, "ping"))
        call, fields = await peer.run()  # no byte of the upload comes in between
        assert fields == [b"ping"]
        peer.done(call)
        await other

    with_peer(test)


def test_uploads_take_turns_and_a_request_waits_behind_a_few_chunks_only() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        large = [asyncio.create_task(channel.ask(same, "write", source=bytes(20 * MIB))) for _ in range(2)]
        first, second = 1, 2
        while await peer.frame() != (second, Kind.RUN, pack([b"write"])):
            pass
        for call in (first, second):
            peer.send(Kind.GUEST_CREDIT, call, pack_credit(30 * MIB))
        await asyncio.sleep(0.1)  # the transport is full now
        small = asyncio.create_task(channel.ask(same, "ping"))
        await asyncio.sleep(0)
        before = {first: 0, second: 0}
        while True:
            call, kind, payload = await peer.frame()
            if kind == Kind.RUN:
                break
            before[call] += len(payload)
        assert sum(before.values()) < 4 * MIB
        assert abs(before[first] - before[second]) <= UPLOAD_WINDOW_BYTES + 65_536
        peer.done(call)
        await small
        for one in (first, second):
            peer.done(one)
        await asyncio.gather(*large)

    with_peer(test)


def test_a_stream_that_nobody_reads_holds_one_window() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        async with channel.stream("read", b"x", limit_bytes=1 << 40) as stream:
            call, _ = await peer.run()
            for _ in range(DOWNLOAD_WINDOW_BYTES // 65_536):
                peer.send(Kind.GUEST_DATA, call, bytes(65_536))
            with pytest.raises(TimeoutError):  # no credit as long as nobody reads
                await asyncio.wait_for(peer.frame(), 0.1)
            got = 0
            while got < DOWNLOAD_WINDOW_BYTES:
                got += len(await anext(stream))
            granted = 0
            while granted < DOWNLOAD_WINDOW_BYTES // 2:
                back, kind, payload = await peer.frame()
                assert (back, kind) == (call, Kind.CREDIT)
                granted += int.from_bytes(payload, "big")
            peer.send(Kind.GUEST_DATA, call, b"last")
            peer.done(call, b"n")
            assert [data async for data in stream] == [b"last"]
            assert stream.reply.fields == [b"n"]

    with_peer(test)


def test_a_stream_that_is_left_early_is_stopped() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        async def leave() -> None:
            async with channel.stream("export", b".", limit_bytes=1 << 40) as stream:
                await anext(stream)

        leaving = asyncio.create_task(leave())
        call, _ = await peer.run()
        peer.send(Kind.GUEST_DATA, call, b"x")
        assert await peer.frame() == (call, Kind.KILL, b"")
        peer.send(Kind.FAIL, call, pack([b"os_error", b"ended"]))
        await leaving
        assert channel.is_open

    with_peer(test)


@pytest.mark.slow
def test_200_mb_each_way_need_little_memory() -> None:
    size = 200 * MIB

    async def zeros() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield bytes(MIB)

    async def test(channel: Channel, peer: Peer) -> None:
        uploading = asyncio.create_task(channel.ask(same, "write", source=zeros()))
        call, _ = await peer.run()
        got = 0
        while True:
            _, kind, payload = await peer.frame()
            if kind == Kind.END:
                break
            got += len(payload)
            peer.send(Kind.GUEST_CREDIT, call, pack_credit(len(payload)))
        peer.done(call, b"ok")
        await uploading
        assert got == size
        downloading = asyncio.create_task(drain(channel))
        call, _ = await peer.run()
        window, sent = DOWNLOAD_WINDOW_BYTES, 0
        while sent < size:
            if window < 65_536:
                window += int.from_bytes((await peer.frame())[2], "big")
                continue
            peer.send(Kind.GUEST_DATA, call, bytes(65_536))
            await peer.writer.drain()
            window -= 65_536
            sent += 65_536
        peer.done(call, b"ok")
        assert await downloading == size

    async def drain(channel: Channel) -> int:
        async with channel.stream("read", b"x", limit_bytes=size) as stream:
            return sum([len(data) async for data in stream])

    tracemalloc.start()
    try:
        with_peer(test)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * MIB


# -- cancellation, closing, dying -------------------------------------------------------------------------------------


def test_a_cancelled_call_is_killed_inside_before_the_cancellation_goes_on() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        asking = asyncio.create_task(channel.ask(same, "spawn", timeout_s=60))
        call, _ = await peer.run()
        asking.cancel()
        assert await peer.frame() == (call, Kind.KILL, b"")
        await asyncio.sleep(0.05)
        assert not asking.done()
        peer.done(call, b"-9")
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert channel.is_open

    with_peer(test)


@pytest.mark.slow
def test_a_guest_that_does_not_kill_holds_a_cancellation_up_for_2_s_at_most() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        asking = asyncio.create_task(channel.ask(same, "spawn"))
        call, _ = await peer.run()
        start = time.monotonic()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert 1.5 < time.monotonic() - start < within(3.5)
        peer.done(call, b"-9")  # late, and still welcome
        again = asyncio.create_task(channel.ask(same, "ping"))
        assert (await peer.frame())[1] == Kind.KILL
        peer.done((await peer.run())[0])
        await again

    with_peer(test)


def test_a_close_under_a_call_says_closed_and_later_calls_too() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        asking = asyncio.create_task(channel.ask(same, "spawn"))
        await peer.run()
        channel.close()
        with pytest.raises(SandboxClosed):
            await asking
        with pytest.raises(SandboxClosed):
            await channel.ask(same, "ping")
        assert await channel.closed == "closed"
        assert await peer.gone()

    with_peer(test)


def test_a_guest_that_says_nothing_first_is_unavailable() -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        with far:
            _, channel = await asyncio.get_running_loop().create_connection(lambda: Channel("box"), sock=near)
            with pytest.raises(SandboxUnavailable, match="within 0.1 s"):
                await channel.hello(0.1)
            channel.close()

    asyncio.run(main())


# -- lying guests -----------------------------------------------------------------------------------------------------


async def oversized(_channel: Channel, peer: Peer, _call: int) -> None:
    peer.writer.write(HEADER.pack(1 << 31, 1, Kind.OUT))


async def unknown_id(_channel: Channel, peer: Peer, call: int) -> None:
    peer.done(call + 9, b"0")


async def unknown_kind(_channel: Channel, peer: Peer, call: int) -> None:
    peer.send(77, call)


async def done_twice(channel: Channel, peer: Peer, call: int) -> None:
    other = channel.start("ping")
    peer.done(other.id)
    peer.done(other.id)


async def output_beyond_what_was_asked(_channel: Channel, peer: Peer, call: int) -> None:
    peer.send(Kind.OUT, call, bytes(600))
    peer.send(Kind.OUT, call, bytes(600))


async def errors_beyond_what_was_asked(_channel: Channel, peer: Peer, call: int) -> None:
    peer.send(Kind.ERR, call, bytes(1_001))


async def a_value_that_nobody_asked_for(_channel: Channel, peer: Peer, call: int) -> None:
    peer.send(Kind.VALUE, call, b"1")


async def a_stream_that_nobody_asked_for(_channel: Channel, peer: Peer, call: int) -> None:
    peer.send(Kind.GUEST_DATA, call, b"1")


async def endless_credit(_channel: Channel, peer: Peer, call: int) -> None:
    peer.send(Kind.GUEST_CREDIT, call, pack_credit(2**32 - 1))


async def a_credit_that_is_none(_channel: Channel, peer: Peer, call: int) -> None:
    peer.send(Kind.GUEST_CREDIT, call, b"12345")


async def a_cut_field(_channel: Channel, peer: Peer, call: int) -> None:
    peer.send(Kind.DONE, call, b"\0\0\0\7x")


async def a_failure_without_words(_channel: Channel, peer: Peer, call: int) -> None:
    peer.send(Kind.FAIL, call, pack([b"os_error"]))


async def a_failure_of_no_kind(_channel: Channel, peer: Peer, call: int) -> None:
    peer.send(Kind.FAIL, call, pack([b"no kind at all", b""]))


async def a_second_hello(_channel: Channel, peer: Peer, _call: int) -> None:
    peer.writer.write(HELLO)


async def ready_unasked(_channel: Channel, peer: Peer, _call: int) -> None:
    peer.send(Kind.READY, 0)


async def output_without_content(_channel: Channel, peer: Peer, call: int) -> None:
    peer.send(Kind.OUT, call)


async def no_credit(_channel: Channel, peer: Peer, call: int) -> None:
    peer.send(Kind.GUEST_CREDIT, call, pack_credit(0))


async def endless_words(_channel: Channel, peer: Peer, _call: int) -> None:
    for _ in range(1_001):
        peer.send(Kind.LOG, 0, b"word")


async def the_end_within_a_frame(_channel: Channel, peer: Peer, call: int) -> None:
    peer.writer.write(encode(Kind.DONE, call, bytes(100))[:50])
    peer.writer.write_eof()


LIES = [
    oversized, unknown_id, unknown_kind, done_twice, output_beyond_what_was_asked, errors_beyond_what_was_asked,
    a_value_that_nobody_asked_for, a_stream_that_nobody_asked_for, endless_credit, a_credit_that_is_none, a_cut_field,
    a_failure_without_words, a_failure_of_no_kind, a_second_hello, ready_unasked, output_without_content, no_credit,
    endless_words, the_end_within_a_frame,
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_lie_breaks_the_sandbox_at_once_and_for_good(lie: Callable[[Channel, Peer, int], Awaitable[None]]) -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        distrusted: list[bool] = []
        channel.on_distrust = lambda: distrusted.append(True)
        asking = [asyncio.create_task(channel.ask(same, "spawn", keep_bytes=1_000)) for _ in range(2)]
        call, _ = await peer.run()
        await lie(channel, peer, call)
        start = time.monotonic()
        for one in asking:
            with pytest.raises(SandboxBroken, match="outcome of what ran is unknown"):
                await one
        assert time.monotonic() - start < within(1)
        with pytest.raises(SandboxBroken):
            await channel.ask(same, "ping")
        assert not channel.is_open
        assert await channel.closed
        assert distrusted == ([] if lie is the_end_within_a_frame else [True])
        assert await peer.gone()

    with_peer(test)


def test_an_answer_that_makes_no_sense_breaks_the_sandbox() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        from rath.backend.guest.commands import ran

        good = [b"0", b"1", b"3", b"3", b"0", b"0", b"0", b""]
        lies: list[list[bytes]] = [good[:-1], *([*good[:at], b"-1", *good[at + 1 :]] for at in range(1, 7))]
        lies += [[*good[:2], b"2", *good[3:]], [*good[:3], b"4", *good[4:]], [b"256", *good[1:]], [b"x", *good[1:]]]
        lie = lies[test_number]
        asking = asyncio.create_task(channel.ask(ran, "spawn", keep_bytes=10))
        call, _ = await peer.run()
        peer.send(Kind.OUT, call, b"abc")
        peer.done(call, *lie)
        with pytest.raises(SandboxBroken, match="makes no sense"):
            await asking
        assert not channel.is_open

    for test_number in range(11):  # noqa: B007 - read by `test`
        with_peer(test)


def test_more_than_the_window_of_a_stream_is_a_lie() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        async with channel.stream("read", b"x", limit_bytes=1 << 40) as stream:
            call, _ = await peer.run()
            for _ in range(DOWNLOAD_WINDOW_BYTES // 65_536 + 1):
                peer.send(Kind.GUEST_DATA, call, bytes(65_536))
            await soon(lambda: not channel.is_open)
            with pytest.raises(SandboxBroken):
                while True:
                    await anext(stream)

    with_peer(test)


@pytest.mark.slow
def test_a_window_full_of_tiny_frames_needs_no_more_memory_than_one_of_large_ones() -> None:
    frames = 20_000

    async def test(channel: Channel, peer: Peer) -> None:
        async with channel.stream("read", b"x", limit_bytes=1 << 40) as stream:
            call, _ = await peer.run()
            tiny = encode(Kind.GUEST_DATA, call, b"ab") * frames
            tracemalloc.start()
            try:
                peer.writer.write(tiny)
                peer.done(call, b"n")
                await soon(lambda: stream._call.done.done())
                assert tracemalloc.get_traced_memory()[0] < len(tiny) + MIB // 2  # one by one they are more: 1.2 MB
            finally:
                tracemalloc.stop()
            assert b"".join([data async for data in stream]) == b"ab" * frames

    with_peer(test)


def test_an_endless_stream_ends_at_its_limit_with_little_memory() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        async def flood(call: int) -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    peer.send(Kind.GUEST_DATA, call, bytes(65_536))
                    await peer.writer.drain()
                    await asyncio.sleep(0)

        async with channel.stream("list", b".", limit_bytes=8 * MIB) as stream:
            call, _ = await peer.run()
            flooding = asyncio.create_task(flood(call))
            tracemalloc.start()
            try:
                with pytest.raises(SandboxBroken):
                    async for _ in stream:
                        pass
                assert tracemalloc.get_traced_memory()[1] < 16 * MIB
            finally:
                tracemalloc.stop()
        await flooding

    with_peer(test)


@pytest.mark.slow
def test_silence_after_a_time_limit_breaks_the_sandbox_soon_after_it() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        start = time.monotonic()
        with pytest.raises(SandboxBroken, match="in time"):
            await channel.ask(same, "spawn", timeout_s=0.2)
        assert 0.2 + GRACE_S < time.monotonic() - start < 0.2 + GRACE_S + within(1)

    with_peer(test)


def test_silence_over_what_has_no_time_limit_is_borne_only_so_long() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        with pytest.raises(SandboxBroken, match="in time"):
            await channel.ask(same, "exists", patience_s=0.2)

    with_peer(test)


def test_a_slow_job_may_be_silent_as_long_as_the_guest_lives() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        asking = asyncio.create_task(channel.ask(same, "import", patience_s=0.1, slow=True))
        job, _ = await peer.run()
        for _ in range(3):
            ping, fields = await peer.run()
            assert fields == [b"ping"]
            peer.done(ping)
        peer.done(job, b"1")
        assert (await asking).fields == [b"1"]

    with_peer(test)


@pytest.mark.slow
def test_a_host_that_is_slow_itself_is_not_the_guests_silence() -> None:
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0.15)
            yield b"x"

    async def test(channel: Channel, peer: Peer) -> None:
        asking = asyncio.create_task(channel.ask(same, "write", source=slow(), patience_s=0.1))
        call, _ = await peer.run()
        kind = Kind.DATA
        while kind != Kind.END:
            _, kind, _ = await peer.frame()
        peer.done(call)
        await asking
        async with channel.stream("read", b"x", limit_bytes=100, patience_s=0.1) as stream:
            call, _ = await peer.run()
            peer.send(Kind.GUEST_DATA, call, b"data")
            await asyncio.sleep(0.3)
            assert await anext(stream) == b"data"
            peer.done(call)

    with_peer(test)


def test_words_before_the_end_are_told() -> None:
    async def test(channel: Channel, peer: Peer) -> None:
        peer.send(Kind.LOG, 0, b"out of luck")
        peer.writer.write_eof()
        with pytest.raises(SandboxBroken, match="out of luck"):
            await channel.ask(same, "ping")

    with_peer(test)


def test_a_carriers_own_framing_is_taken_off_and_its_lies_count_too() -> None:
    from rath.backend.guest.frames import ProtocolError

    async def main() -> None:
        def strip(data: bytes) -> bytes:
            if not data.startswith(b"|"):
                raise ProtocolError("no bar")
            return data[1:]

        near, far = socket.socketpair()
        with far:
            _, channel = await asyncio.get_running_loop().create_connection(lambda: Channel("box", strip), sock=near)
            far.send(b"|" + HELLO)
            assert await channel.hello(5) == {"protocol": "1"}
            far.send(HELLO)
            assert "no bar" in await channel.closed

    asyncio.run(main())


