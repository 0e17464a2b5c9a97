"""Streams, events and futures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from rath.backend import BackendSandbox, Event, Stream
from rath.core import ports
from rath.errors import SandboxClosed, UsageError, UsageValueError, WouldDeadlock
from rath.testing.pace import within
from tests.backend.memory import Die, MemoryBackend, Sleep


@pytest.fixture
def sandbox(memory: MemoryBackend) -> Iterator[BackendSandbox]:
    with memory.open() as opened:
        yield opened


def test_calls_of_a_stream_run_in_order(memory: MemoryBackend, sandbox: BackendSandbox) -> None:
    with sandbox.stream() as stream:
        futures = [stream.submit(Sleep(0.01 * (5 - n), str(n))) for n in range(5)]
        assert [future.result() for future in futures] == [True] * 5
    assert memory.notes == list("01234")


def test_streams_run_side_by_side_and_without_threads(memory: MemoryBackend, sandbox: BackendSandbox) -> None:
    sandbox.dispatch(Sleep(0))
    before, start = threading.active_count(), time.monotonic()
    streams = [sandbox.stream() for _ in range(50)]
    futures = [stream.submit(Sleep(0.1)) for stream in streams]
    assert threading.active_count() == before
    for future in futures:
        future.result()
    assert time.monotonic() - start < within(2)


def test_submit_returns_before_the_call_is_done(sandbox: BackendSandbox) -> None:
    with sandbox.stream() as stream:
        assert stream.query()
        future = stream.submit(Sleep(0.1))
        assert not future.done()
        assert not stream.query()
        stream.synchronize()
        assert future.done()
        assert stream.query()


def test_an_error_is_its_own_calls_and_the_stream_goes_on(sandbox: BackendSandbox, memory: MemoryBackend) -> None:
    stream = memory.open().stream()
    good, bad, after = stream.submit(Sleep(0, "1")), stream.submit(Die()), stream.submit(Sleep(0, "2"))
    stream.synchronize()
    assert good.result() is True
    for future in (bad, after):
        with pytest.raises(RuntimeError):
            future.result()
    memory.close(stream._sandbox)


def test_an_event_orders_two_streams(memory: MemoryBackend, sandbox: BackendSandbox) -> None:
    with sandbox.stream() as first, sandbox.stream() as second:
        first.submit(Sleep(0.1, "first"))
        waited = second.wait_event(first.record_event())
        second.submit(Sleep(0, "second"))
        second.synchronize()
        assert waited.result() is None
        assert memory.notes == ["first", "second"]
        first.submit(Sleep(0.1, "third"))
        second.wait_stream(first)
        second.submit(Sleep(0, "fourth")).result()
    assert memory.notes == ["first", "second", "third", "fourth"]


def test_waiting_for_an_event_can_time_out(sandbox: BackendSandbox) -> None:
    with sandbox.stream() as stream:
        waited = stream.wait_event(Event(), timeout=0.05)
        after = stream.submit(Sleep(0))
        with pytest.raises(TimeoutError, match="wait_event timed out"):
            waited.result()
        assert after.result() is True


def test_elapsed_time_is_in_milliseconds_and_needs_both(sandbox: BackendSandbox) -> None:
    with sandbox.stream() as stream:
        start = stream.record_event()
        stream.submit(Sleep(0.1))
        end = stream.record_event()
        end.synchronize()
        assert 90 < start.elapsed_time(end) < 1000
        assert end.elapsed_time(start) < 0
    assert not Event().query()
    with pytest.raises(UsageError):
        Event().elapsed_time(end)


def test_a_full_buffer_makes_submit_wait(sandbox: BackendSandbox) -> None:
    with sandbox.stream(buffer=2) as stream:
        start = time.monotonic()
        stream.submit(Sleep(0.1))
        stream.submit(Sleep(0.1))
        assert time.monotonic() - start < within(0.08)
        stream.submit(Sleep(0))
        assert time.monotonic() - start > 0.08
    with pytest.raises(UsageValueError):
        sandbox.stream(buffer=-1)


def test_on_the_engines_thread_waiting_is_refused_and_awaiting_works(sandbox: BackendSandbox) -> None:
    async def inside() -> object:
        stream = Stream(sandbox, buffer=1)
        future = stream.submit(Sleep(0.05))
        with pytest.raises(WouldDeadlock):
            future.result()
        with pytest.raises(WouldDeadlock):
            stream.submit(Sleep(0))
        with pytest.raises(WouldDeadlock):
            stream.record_event().wait()
        return await future

    assert ports.engine().run(inside()) is True


def test_a_future_can_be_awaited_in_any_loop(sandbox: BackendSandbox) -> None:
    async def anywhere() -> object:
        return await asyncio.wait_for(sandbox.stream().submit(Sleep(0.05)), 5)

    assert asyncio.run(anywhere()) is True


def test_a_closed_stream_takes_nothing_more(sandbox: BackendSandbox) -> None:
    with sandbox.stream() as stream:
        future = stream.submit(Sleep(0.05))
    assert future.done()
    for use in (
        lambda: stream.submit(Sleep(0)),
        stream.synchronize,
        stream.record_event,
        stream.query,
        lambda: stream.wait_event(Event()),
    ):
        with pytest.raises(UsageError, match="stream is closed"):
            use()
    stream.__exit__(None, None, None)


def test_a_stream_on_a_closed_sandbox_fails_its_calls(memory: MemoryBackend) -> None:
    sandbox = memory.open()
    stream = sandbox.stream()
    memory.close(sandbox)
    with pytest.raises(SandboxClosed):
        stream.submit(Sleep(0)).result()


def test_racing_submits_and_a_close_leave_no_future_behind(sandbox: BackendSandbox) -> None:
    futures, refused = [], []
    start = threading.Barrier(5)
    with sandbox.stream() as stream:

        def submit() -> None:
            start.wait()
            for _ in range(100):
                try:
                    futures.append(stream.submit(Sleep(0)))
                except UsageError as error:
                    refused.append(error)

        threads = [threading.Thread(target=submit) for _ in range(4)]
        for thread in threads:
            thread.start()
        start.wait()
        stream.submit(Sleep(0))
    for thread in threads:
        thread.join()
    assert len(futures) + len(refused) == 400
    assert all(future.done() for future in futures)
