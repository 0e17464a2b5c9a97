"""Tool threads: never a limit, never a leak."""

import asyncio
import threading
import time

import pytest

from rath.core.ports import engine
from rath.runtime.threads import EAGER


def run(coroutine):
    return engine().run(coroutine)


def test_waiting_calls_do_not_hold_up_others_however_many_wait():
    gate = threading.Event()

    async def main():
        blocked = [asyncio.ensure_future(engine().call(gate.wait, 20)) for _ in range(EAGER * 10)]
        await asyncio.sleep(0)
        began = time.monotonic()
        assert await engine().call(lambda: "through") == "through"
        elapsed = time.monotonic() - began
        gate.set()
        await asyncio.gather(*blocked)
        return elapsed

    assert run(main()) < 2


def test_short_calls_in_a_burst_share_few_threads():
    before = engine().threads.size

    async def main():
        return await asyncio.gather(*(engine().call(lambda n=n: n) for n in range(2000)))

    assert run(main()) == list(range(2000))
    assert engine().threads.size <= max(before, EAGER) + 64


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), StopIteration()])
def test_whatever_a_call_raises_arrives(error):
    def fail():
        raise error

    async def main():
        with pytest.raises((type(error), RuntimeError)):
            await engine().call(fail)
        return await engine().call(lambda: "still works")

    assert run(main()) == "still works"


def test_a_cancelled_caller_goes_on_at_once():
    gate = threading.Event()

    async def main():
        call = asyncio.ensure_future(engine().call(gate.wait, 20))
        await asyncio.sleep(0.02)
        call.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await call
        return time.monotonic() - began

    assert run(main()) < 1
    gate.set()


def test_context_variables_travel_into_the_thread():
    import contextvars

    variable = contextvars.ContextVar("v", default="outside")

    async def main():
        variable.set("inside")
        return await engine().call(variable.get)

    assert run(main()) == "inside"
