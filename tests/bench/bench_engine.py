"""Engine overhead and overlap, beside bare asyncio loops that do the same work, in one run.

    python tests/bench/bench_engine.py [--quick]

Prints microseconds a round and the ratio to the reference next to it. Ratios are what counts: absolute times on a shared
machine are not comparable between runs.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from rath.core.ports import engine
from rath.flow.tool import tool
from rath.session import Session, gather, run_session_loop
from rath.testing import ScriptedClient

logging.getLogger("rath").setLevel(logging.ERROR)
ROUND = {"tool_calls": [{"name": "noop", "arguments": {"n": 1}}]}


@tool(name="noop")
async def noop_async(n: int) -> int:
    return n


@tool(name="noop")
def noop_sync(n: int) -> int:
    return n


def provider(rounds: int, latency_s: float = 0.0):
    return ScriptedClient([ROUND] * rounds + ["done"], latency_s=latency_s, by_turn=True).as_provider()


AGENT = Session.from_agent_prompt("be quick")


def start(model, tool_, rounds, user=None):
    return run_session_loop(
        user or Session.from_user_message("go"),
        AGENT,
        agent_provider=model,
        tools=[tool_],
        max_tool_rounds=rounds + 1,
    )


def best(work, times):
    costs = []
    for _ in range(times):
        gc.collect()
        began = time.perf_counter()
        work()
        costs.append(time.perf_counter() - began)
    return min(costs)


async def bare_loop(rounds: int, in_thread: bool) -> None:
    """The least a loop can do: decode a reply, run a tool, encode its result."""
    loop, messages = asyncio.get_running_loop(), [{"role": "user", "content": "go"}]

    async def model() -> dict:
        return {"content": None, "calls": [("noop", '{"n": 1}')]}

    async def tool_() -> int:
        return 1

    for _ in range(rounds):
        reply = await model()
        arguments = json.loads(reply["calls"][0][1])
        messages.append({"role": "assistant", "content": None, "tool_calls": reply["calls"]})
        value = await loop.run_in_executor(None, lambda a=arguments: a["n"]) if in_thread else await tool_()
        messages.append({"role": "tool", "content": json.dumps(value)})


async def bare_overlap(count: int, rounds: int, in_thread: bool) -> None:
    loop = asyncio.get_running_loop()
    if in_thread:
        loop.set_default_executor(ThreadPoolExecutor(256))

    async def one() -> None:
        for _ in range(rounds):
            await asyncio.sleep(0.05)
            if in_thread:
                await loop.run_in_executor(None, lambda: 1)
        await asyncio.sleep(0.05)

    await asyncio.gather(*(one() for _ in range(count)))


def overhead(quick: bool) -> None:
    for rounds in (100, 1_000) if quick else (100, 1_000, 10_000):
        for name, tool_, in_thread in (("async tool", noop_async, False), ("sync tool", noop_sync, True)):
            if in_thread and rounds > 1_000:
                continue
            model = provider(rounds)
            times = max(2, (2_000 if in_thread else 5_000) // rounds)
            ours = best(lambda r=rounds, m=model, t=tool_: start(m, t, r).synchronize(), times) / rounds * 1e6
            bare = best(lambda r=rounds, i=in_thread: asyncio.run(bare_loop(r, i)), times) / rounds * 1e6
            print(f"{rounds:6} rounds, {name:10}: {ours:8.1f} us a round, bare {bare:8.1f}, ratio {ours / bare:5.2f}")


def overlap(quick: bool) -> None:
    for count in (100, 1_000) if quick else (100, 1_000, 10_000):
        for name, tool_, in_thread in (("async tool", noop_async, False), ("sync tool", noop_sync, True)):
            model = provider(5, latency_s=0.05)
            ours = best(lambda c=count, m=model, t=tool_: gather(*(start(m, t, 5) for _ in range(c))), 2)
            bare = best(lambda c=count, i=in_thread: asyncio.run(bare_overlap(c, 5, i)), 2)
            print(f"{count:6} loops of 5 rounds, {name:10}: {ours:6.2f} s, bare {bare:6.2f}, ratio {ours / bare:5.2f}")


def building() -> None:
    model = provider(0, latency_s=0.3)
    first = start(model, noop_async, 1)
    began, session = time.perf_counter(), first
    for _ in range(1_000):
        session = start(model, noop_async, 1, user=session)
    per = (time.perf_counter() - began) / 1_000 * 1e6
    print(f"building a chain of 1,000 pending loops: {per:.0f} us an operator")
    session.cancel()
    first.cancel()


def memory() -> None:
    model = provider(5)
    gather(*(start(model, noop_async, 5) for _ in range(100)))
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = gather(*(start(model, noop_async, 5) for _ in range(5_000)))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = sum(len(r.encoded) + 150 for r in kept[0].chunk_table)
    print(f"memory: {(after - before) / 5_000:.1f} kB a loop of 5 rounds, of which about {rows / 1024:.1f} kB rows")


if __name__ == "__main__":
    quick = "--quick" in sys.argv
    engine()
    memory()  # first: the peak that it reads only ever grows
    overhead(quick)
    building()
    overlap(quick)
