"""The blocking side of the clients: from any thread, inside any running loop, with retries, closed when left."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rath.core import ports
from rath.errors import ProviderError, WouldDeadlock
from rath.llm import Provider, RathAnthropicChatClient, RathOpenAIChatClient, ScriptedClient
from rath.llm.fold import fold_deltas
from rath.testing import Reply
from tests.llm.support import KEY, request
from tests.wire.server import Answer, Raw, WireServer

BOTH = pytest.mark.parametrize("vendor", ["openai", "anthropic"])
BUSY = Raw(status=503, body=b'{"error": {"message": "busy"}}')


def client(vendor: str, server: WireServer, **fields: Any) -> Any:
    fields = {"model": "m", "api_key": KEY, "retry_base_seconds": 0, **fields}
    if vendor == "openai":
        return RathOpenAIChatClient(Provider(base_url=server.openai_url, **fields))
    return RathAnthropicChatClient(Provider(base_url=server.url, **fields))


@BOTH
def test_complete_and_complete_stream_give_the_reply(vendor: str):
    with WireServer(Answer("hello"), Answer("hello")) as server:
        made = client(vendor, server)
        assert made.complete(request()).primary_choice.message.content == "hello"
        assert fold_deltas(made.complete_stream(request())).primary_choice.message.content == "hello"


@BOTH
def test_they_work_inside_a_running_loop(vendor: str):
    async def cell() -> tuple[Any, Any]:
        made = client(vendor, server)
        return made.complete(request()), fold_deltas(made.complete_stream(request()))

    with WireServer(Answer("hello"), repeat=True) as server:
        for response in asyncio.run(cell()):
            assert response.primary_choice.message.content == "hello"


def test_they_work_from_many_threads_at_once():
    with WireServer(lambda sent: Answer(sent.body["messages"][0]["content"]), repeat=True) as server:
        made = client("openai", server)

        def one(number: int) -> bool:
            req = request(model=str(number))
            return made.complete(req).primary_choice.message.content == "hi" and bool(
                list(made.complete_stream(req))
            )

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(one, range(24)))


def test_on_the_engines_own_thread_they_refuse_to_wait():
    made = ScriptedClient(["x", "y"])

    async def on_the_loop() -> None:
        with pytest.raises(WouldDeadlock):
            made.complete(request())
        with pytest.raises(WouldDeadlock):
            next(made.complete_stream(request()))

    ports.engine().run(on_the_loop())


@BOTH
def test_a_passing_failure_is_tried_again(vendor: str):
    with WireServer(BUSY, BUSY, Answer("at last"), BUSY, Answer("streamed")) as server:
        made = client(vendor, server)
        assert made.complete(request()).primary_choice.message.content == "at last"
        assert fold_deltas(made.complete_stream(request())).primary_choice.message.content == "streamed"
        assert len(server.requests) == 5


def test_attempts_are_limited():
    with WireServer(BUSY, repeat=True) as server:
        with pytest.raises(ProviderError, match="busy"):
            client("openai", server, retry_max_attempts=2).complete(request())
        assert len(server.requests) == 2
        with pytest.raises(ProviderError, match="busy"):
            next(client("openai", server, retry_max_attempts=1).complete_stream(request()))
        assert len(server.requests) == 3


def test_a_stream_that_has_begun_is_not_begun_again():
    with WireServer(Answer("a long text", drop=True), Answer("never")) as server:
        stream = client("openai", server).complete_stream(request())
        with pytest.raises(ProviderError, match="connection"):
            list(stream)
        assert len(server.requests) == 1
        assert list(stream) == []


def test_a_stream_is_incremental():
    hold = threading.Event()
    with WireServer(Answer("abcdef", hold=hold)) as server:
        stream = client("openai", server).complete_stream(request())
        assert next(stream).content_delta == "ab"
        assert not hold.is_set()
        hold.set()
        assert "".join(delta.content_delta or "" for delta in stream) == "cdef"


@BOTH
@pytest.mark.parametrize("how", ["close", "with", "forget"])
def test_leaving_a_stream_early_closes_its_connection(vendor: str, how: str):
    # Anthropic's stream begins with three events that hold nothing of the reply.
    with WireServer(Answer("abcdef", hold=threading.Event(), hold_after=4)) as server:
        stream = client(vendor, server).complete_stream(request())
        assert next(stream)
        if how == "close":
            stream.close()
            stream.close()
            assert list(stream) == []
        elif how == "with":
            with stream:
                pass
        else:
            del stream
            gc.collect()
        server.wait_until_closed()


def test_closing_the_async_iterator_early_closes_the_connection():
    async def leave(server: WireServer) -> None:
        parts = client("openai", server).open_completion(request(), stream=True)
        await anext(parts)
        await parts.aclose()
        await asyncio.to_thread(server.wait_until_closed)

    with WireServer(Answer("abcdef", hold=threading.Event())) as server:
        asyncio.run(leave(server))


def test_cancelling_a_completion_closes_the_connection():
    async def cancel(server: WireServer) -> None:
        async def read() -> None:
            async for _ in client("openai", server).open_completion(request(), stream=True):
                reading.set()

        reading = asyncio.Event()
        task = asyncio.ensure_future(read())
        await reading.wait()
        task.cancel()
        await asyncio.wait([task])
        await asyncio.to_thread(server.wait_until_closed)

    with WireServer(Answer("abcdef", hold=threading.Event())) as server:
        asyncio.run(cancel(server))


@pytest.mark.slow
def test_ctrl_c_while_waiting_for_a_delta_ends_the_stream():
    program = """
        import os, signal, threading
        from rath.llm import RathLLMChatRequest, RathLLMMessage, ScriptedClient
        stream = ScriptedClient(["abc"], pace_s=60, chunk_chars=1).complete_stream(
            RathLLMChatRequest(messages=(RathLLMMessage("user", "hi"),)))
        assert next(stream).content_delta == "a"
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            next(stream)
        except KeyboardInterrupt:
            print("interrupted", list(stream))
    """
    assert _run(program) == "interrupted []"


def test_scripted_clients_have_both_too():
    made = ScriptedClient(
        ["one", Reply(error={"retryable": True}), "two"], provider=Provider(retry_base_seconds=0)
    )
    assert made.complete(request()).primary_choice.message.content == "one"
    assert fold_deltas(made.complete_stream(request())).primary_choice.message.content == "two"


@pytest.mark.slow
def test_a_program_ends_with_its_connections_closed_and_without_a_word():
    program = """
        import asyncio, atexit
        from rath.core import ports
        from rath.llm import Provider, RathAnthropicChatClient, RathLLMChatRequest, RathLLMMessage, RathOpenAIChatClient
        from tests.wire.server import Answer, WireServer
        hi = RathLLMChatRequest(messages=(RathLLMMessage("user", "hi"),))
        server = WireServer(Answer("hi"), repeat=True)
        server.__enter__()
        async def in_another_loop(made):
            async for _ in made.open_completion(hi, stream=True):
                pass
        sdks = []
        for make, url in (RathOpenAIChatClient, server.openai_url), (RathAnthropicChatClient, server.url):
            made = make(Provider(model="m", base_url=url))
            made.complete(hi)
            list(made.complete_stream(hi))
            asyncio.run(in_another_loop(made))
            sdks.append(ports.engine().run(made.sdk_clients.get(made._access)))
        assert not any(sdk.is_closed() for sdk in sdks)
        # This runs after the engine has drained.
        atexit.register(lambda: print(len(server.requests), [sdk.is_closed() for sdk in sdks]))
    """
    # A connection that is left open is an error at exit: ResourceWarning.
    assert _run(program, "-W", "error") == "6 [True, True]"


def test_asyncio_run_closes_the_clients_of_its_loop():
    async def ask_and_keep(server: WireServer) -> Any:
        made = client("openai", server)
        async for _ in made.open_completion(request(), stream=False):
            pass
        sdk = await made.sdk_clients.get(made._access)
        assert not sdk.is_closed()
        return sdk

    with WireServer(Answer("hi")) as server:
        assert asyncio.run(ask_and_keep(server)).is_closed()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_connections_of_its_own():
    program = """
        import os
        from rath.llm import Provider, RathLLMChatRequest, RathLLMMessage, RathOpenAIChatClient
        from tests.wire.server import Answer, WireServer
        hi = RathLLMChatRequest(messages=(RathLLMMessage("user", "hi"),))
        with WireServer(Answer("hi"), repeat=True) as server:
            made = RathOpenAIChatClient(Provider(model="m", base_url=server.openai_url))
            made.complete(hi)
            child = os.fork()
            if child == 0:
                os._exit(0 if made.complete(hi).primary_choice.message.content == "hi" else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            made.complete(hi)
            print([sent.connection for sent in server.requests])
    """
    assert _run(program) == "[1, 2, 1]"


def _run(program: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=40
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()
