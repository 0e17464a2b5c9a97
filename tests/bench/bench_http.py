"""Loops through HTTP with the real ``openai`` client, beside the least that such a loop can do, in one run.

    python -m tests.bench.bench_http [--quick]

The server is a process of its own on 127.0.0.1, answers at once (or after 50 ms), and asks for one tool call a round.

- One loop of 50 rounds, milliseconds a round, beside the HTTP client alone that the SDK stands on.
- 100 loops of 5 rounds at once with 50 ms a completion, seconds, beside the same requests with ready-made bodies through the
  SDK's client.

The references send the same growing histories, join them from rows encoded once, and read the replies with ``json``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import openai

from rath.flow.tool import tool
from rath.llm import Provider
from rath.session import Session, gather, run_session_loop

Post = Callable[[bytes], Awaitable[bytes]]
ROOT = Path(__file__).parents[2]
LATENCY_S = 0.05
KEY = "no-key-needed-here"


@tool
async def noop(n: int) -> int:
    """Nothing."""
    return n


# -- the server: python -m tests.bench.bench_http serve ROUNDS LATENCY_S -----------------------------------------------


def _reply(text: str | None, calls: list[dict[str, object]]) -> bytes:
    message = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data) + data


async def serve(rounds: int, latency_s: float) -> None:
    """Print the port; answer for ever: with a tool call until a history has ``rounds`` results."""
    asks = [
        _reply(None, [{"id": f"call_{n}", "type": "function", "function": {"name": "noop", "arguments": '{"n": 1}'}}])
        for n in range(rounds)
    ]
    done = _reply("done", [])

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                (length,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                body = await reader.readexactly(int(length.split(b":")[1]))
                if latency_s:
                    await asyncio.sleep(latency_s)
                results = body.count(b'"tool_call_id"')
                writer.write(asks[results] if results < rounds else done)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0, limit=1 << 24, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Server:
    """The server's process."""

    def __init__(self, rounds: int, latency_s: float) -> None:
        command = [sys.executable, "-m", "tests.bench.bench_http", "serve", str(rounds), str(latency_s)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{self._process.stdout.readline().strip()}/v1"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


# -- ours, and the references ------------------------------------------------------------------------------------------


def ours(url: str, loops: int, rounds: int) -> None:
    provider = Provider(model="openai:m", base_url=url, api_key=KEY)
    user, agent = Session.from_user_message("go"), Session.from_agent_prompt("be quick")
    gather(*(run_session_loop(user, agent, agent_provider=provider, tools=[noop], max_tool_rounds=rounds + 1) for _ in range(loops)))


async def bare(post: Post, loops: int, rounds: int) -> None:
    schema = json.dumps([{"type": "function", "function": {"name": "noop", "description": "Nothing.", "parameters": {}}}])

    async def one() -> None:
        rows = ['{"role":"system","content":"be quick"}', '{"role":"user","content":"go"}']
        while True:
            body = f'{{"model":"m","messages":[{",".join(rows)}],"tools":{schema}}}'
            message = json.loads(await post(body.encode()))["choices"][0]["message"]
            if not message.get("tool_calls"):
                return
            (call,) = message["tool_calls"]
            value = await noop.function(**json.loads(call["function"]["arguments"]))
            rows += [json.dumps(message), json.dumps({"role": "tool", "tool_call_id": call["id"], "content": json.dumps(value)})]

    await asyncio.gather(*(one() for _ in range(loops)))


async def http_alone(url: str, loops: int, rounds: int) -> None:
    async with openai.DefaultAsyncHttpxClient() as client:

        async def post(body: bytes) -> bytes:
            reply = await client.post(f"{url}/chat/completions", content=body, headers={"content-type": "application/json"})
            return reply.content

        await bare(post, loops, rounds)


async def ready_made(url: str, loops: int, rounds: int) -> None:
    async with openai.AsyncOpenAI(api_key=KEY, base_url=url, max_retries=0) as client:

        async def post(body: bytes) -> bytes:
            return await client.post("/chat/completions", cast_to=bytes, content=body)

        await bare(post, loops, rounds)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(what: str, unit_s: float, runs: int, mine: Callable[[], object], references: dict[str, Callable[[], object]]) -> None:
    """Print medians of interleaved runs, and ours as a ratio to each reference."""
    mine()  # connections, and what is imported late
    took: dict[str, list[float]] = {}
    for _ in range(runs):
        for name, work in {"rath": mine, **references}.items():
            took.setdefault(name, []).append(seconds(work))
    rath_s = median(took.pop("rath"))
    beside = "   ".join(f"{name} {median(all_s) / unit_s:6.2f}, ratio {rath_s / median(all_s):5.2f}" for name, all_s in took.items())
    print(f"{what}: rath {rath_s / unit_s:6.2f}   {beside}")


def main() -> None:
    runs = 3 if "--quick" in sys.argv else 7
    with Server(50, 0) as server:
        url = server.url
        compare(
            "one loop of 50 rounds, ms a round",
            0.051,
            runs,
            lambda: ours(url, 1, 50),
            {
                "http client alone": lambda: asyncio.run(http_alone(url, 1, 50)),
                "ready-made body": lambda: asyncio.run(ready_made(url, 1, 50)),
            },
        )
    with Server(5, LATENCY_S) as server:
        url = server.url
        compare(
            "100 loops of 5 rounds, 50 ms a completion, s",
            1.0,
            runs,
            lambda: ours(url, 100, 5),
            {"ready-made body": lambda: asyncio.run(ready_made(url, 100, 5))},
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(int(sys.argv[2]), float(sys.argv[3])))
    else:
        main()
