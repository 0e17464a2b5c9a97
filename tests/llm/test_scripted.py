"""The scripted model: what a script may say, who gets which reply, and what it costs."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rath.errors import ProviderError, UsageError, UsageTypeError, UsageValueError
from rath.llm import (
    Provider,
    RathLLMChatRequest,
    RathLLMMessage,
    RathLLMTokenUsage,
    ScriptedClient,
    chat_client_for,
)
from rath.llm.provider import request_options
from rath.testing import Reply
from rath.testing.pace import within
from tests.llm.support import ask, parts_of, request


def said(client: Any, req: RathLLMChatRequest | None = None, *, stream: bool = False) -> str | None:
    return ask(client, req, stream=stream).primary_choice.message.content


def ids(client: Any) -> list[str]:
    return [call.id for call in ask(client).primary_choice.message.tool_calls or ()]


def unread() -> RathLLMChatRequest:
    """A request whose messages must not be looked at."""

    def messages() -> tuple[RathLLMMessage, ...]:
        raise AssertionError("the messages were looked at")

    return RathLLMChatRequest.deferred(request_options(Provider(model="m"), tools=None), messages)


def at_turn(turn: int) -> RathLLMChatRequest:
    made = unread()
    made.__dict__["_turn"] = turn
    return made


# -- what a reply may be ----------------------------------------------------------------------------------------------


def test_a_reply_may_be_a_text_a_dict_a_reply_or_a_function():
    client = ScriptedClient(
        [
            "one",
            {"text": "two"},
            Reply(text="three"),
            lambda req: req.messages[-1].content + "!",
            lambda req: {"text": "five"},
        ]
    )
    assert [said(client) for _ in range(5)] == ["one", "two", "three", "hi!", "five"]


def test_a_function_may_be_asynchronous():
    async def slowly(req: RathLLMChatRequest) -> Reply:
        await asyncio.sleep(0)
        return Reply(text="late")

    assert said(ScriptedClient([slowly])) == "late"


def test_a_reply_has_all_its_fields():
    reply = Reply(
        text="t",
        reasoning="r",
        tool_calls=[
            {"name": "f", "arguments": {"a": 1}, "id": "x"},
            {"name": "g", "arguments": "{raw"},
            {"name": "h"},
        ],
        finish_reason="length",
        usage={"prompt_tokens": 3, "completion_tokens": 4},
    )
    for stream in (False, True):
        response = ask(ScriptedClient([reply]), stream=stream)
        message = response.primary_choice.message
        assert (message.content, message.reasoning_content) == ("t", "r")
        assert [(call.function.name, call.function.arguments) for call in message.tool_calls or ()] == [
            ("f", '{"a":1}'),
            ("g", "{raw"),
            ("h", ""),
        ]
        assert (message.tool_calls or ())[0].id == "x"
        assert response.primary_choice.finish_reason == "length"
        assert response.usage == RathLLMTokenUsage(3, 4, 7)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_is_raised_each_time_anew(stream: bool):
    own = ValueError("own")
    client = ScriptedClient(
        [{"error": {"status": 429, "message": "slow", "retryable": True, "retry_after_s": 2}}, own, own]
    )
    with pytest.raises(ProviderError, match="slow") as caught:
        ask(client, stream=stream)
    assert (caught.value.status, caught.value.retryable, caught.value.retry_after_s) == (429, True, 2)
    depths = []
    for _ in range(2):
        with pytest.raises(ValueError, match="own") as plain:
            ask(client, stream=stream)
        depths.append(len(plain.traceback))
    assert depths[0] == depths[1], "the traceback grows"


def test_an_error_with_a_text_comes_in_the_middle_of_the_stream():
    client = ScriptedClient([Reply(text="half a", error={"message": "cut"})])
    seen: list[str] = []

    async def read() -> None:
        async for part in client.open_completion(request(), stream=True):
            seen.extend(filter(None, [part.content_delta]))  # type: ignore[union-attr]

    with pytest.raises(ProviderError, match="cut"):
        asyncio.run(read())
    assert "".join(seen) == "half a"


def test_chunks_say_how_a_text_is_cut():
    parts = asyncio.run(parts_of(ScriptedClient([Reply(chunks=["a", "bc", ""])]), stream=True))
    assert [part.content_delta for part in parts if part.content_delta is not None] == ["a", "bc", ""]
    assert said(ScriptedClient([Reply(chunks=["a", "bc"])])) == "abc"
    parts = asyncio.run(parts_of(ScriptedClient(["abcde"], chunk_chars=2), stream=True))
    assert [part.content_delta for part in parts if part.content_delta] == ["ab", "cd", "e"]


def test_latency_and_pace_take_their_time():
    client = ScriptedClient(["abc", Reply(text="x", latency_s=0)], latency_s=0.05, pace_s=0.03, chunk_chars=1)
    began = time.monotonic()
    ask(client, stream=True)
    assert 0.05 + 3 * 0.03 <= time.monotonic() - began < within(1.0)
    began = time.monotonic()
    ask(client)
    assert time.monotonic() - began < within(0.05)


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ("text", UsageTypeError),
        ({"text": "x"}, UsageTypeError),
        (None, UsageTypeError),
        ([1], UsageTypeError),
        ([{"tool_calls": [{"nme": "f"}]}], UsageTypeError),
        ([{"txt": "x"}], UsageValueError),
    ],
)
def test_a_wrong_script_is_refused_when_it_is_made(replies: Any, error: type[Exception]):
    with pytest.raises(error):
        ScriptedClient(replies)


@pytest.mark.parametrize("options", [{"chunk_chars": 0}, {"latency_s": -1}, {"pace_s": -0.1}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]):
    with pytest.raises(UsageValueError):
        ScriptedClient(["x"], **options)


# -- who gets which ---------------------------------------------------------------------------------------------------


def test_replies_come_in_order_and_running_out_is_said():
    client = ScriptedClient(["a", "b"])
    assert client.remaining == 2
    assert [said(client), said(client)] == ["a", "b"]
    assert client.remaining == 0
    with pytest.raises(ProviderError, match=r"2 replies.*model call 3") as caught:
        ask(client)
    assert not caught.value.retryable
    with pytest.raises(ProviderError, match="0 replies"):
        ask(ScriptedClient([], loop=True))


def test_a_loop_begins_again_with_new_call_ids():
    client = ScriptedClient(["a", {"tool_calls": [{"name": "f"}, {"name": "g", "id": "own"}]}], loop=True)
    seen = []
    for _ in range(3):
        assert said(client) == "a"
        first, own = ids(client)
        assert own == "own"
        seen.append(first)
    assert len(set(seen)) == 3
    assert client.remaining is None


def test_by_turn_every_run_gets_the_whole_script():
    client = ScriptedClient(["first", "second"], by_turn=True)
    assert [said(client, at_turn(0)) for _ in range(3)] == ["first"] * 3
    assert said(client, at_turn(1)) == "second"
    with pytest.raises(ProviderError, match="2 replies"):
        ask(client, at_turn(2))


def test_by_turn_counts_a_request_made_by_hand():
    client = ScriptedClient(["first", "second"], by_turn=True)
    history = (
        RathLLMMessage("user", "hi"),
        RathLLMMessage("assistant", "first"),
        RathLLMMessage("user", "and?"),
    )
    assert said(client, request(*history[:1])) == "first"
    assert said(client, request(*history)) == "second"


def test_many_threads_get_each_reply_once():
    client = ScriptedClient([str(number) for number in range(400)], record=False)
    start = threading.Barrier(8)

    def take(_: int) -> list[str | None]:
        start.wait()
        return [said(client) for _ in range(50)]

    with ThreadPoolExecutor(8) as pool:
        taken = [text for texts in pool.map(take, range(8)) for text in texts]
    assert sorted(map(int, filter(None, taken))) == list(range(400))


# -- the record, and the cost -----------------------------------------------------------------------------------------


def test_it_keeps_the_requests_it_is_told_to_keep_and_no_others():
    client = ScriptedClient(["x"], loop=True, record=True)
    req = request()
    ask(client, req)
    assert list(client.requests) == [req]
    bounded, none = ScriptedClient(["x"], loop=True, record=2), ScriptedClient(["x"])
    for number in range(3):
        ask(bounded, request(seed=number))
    ask(none)
    assert [kept.seed for kept in bounded.requests] == [1, 2]
    assert list(none.requests) == []


@pytest.mark.parametrize("client", [ScriptedClient(["x", "y"]), ScriptedClient(["x"], loop=True)])
def test_the_history_is_not_looked_at(client: ScriptedClient):
    assert said(client, unread()) == "x"
    assert said(client, unread(), stream=True) in ("x", "y")


def test_a_reply_without_latency_never_gives_up_the_loop():
    async def go() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.ensure_future(tick())
        client = ScriptedClient(["x"], loop=True)
        for _ in range(100):
            await parts_of(client)
            await parts_of(client, stream=True)
        ticking.cancel()
        return ticks

    assert asyncio.run(go()) == 0


# -- providers and files ----------------------------------------------------------------------------------------------


def test_as_provider_is_served_by_the_very_client_and_so_are_its_copies():
    client = ScriptedClient(["a"])
    provider = client.as_provider(temperature=0.5)
    assert (provider.provider_kind, provider.model, provider.temperature) == ("scripted", "scripted", 0.5)
    assert chat_client_for(provider) is client
    assert chat_client_for(replace(provider, temperature=1)) is client
    assert ScriptedClient.from_provider(provider) is client
    assert asdict(provider)["client"] is client
    assert repr(provider) == "Provider(model='scripted')"


def test_a_client_goes_with_its_provider():
    provider = ScriptedClient(["a"]).as_provider()
    alive = weakref.ref(provider.client)
    gc.collect()
    assert alive() is not None
    del provider
    gc.collect()
    assert alive() is None


def test_a_file_is_a_script(tmp_path: Path):
    path = tmp_path / "script.json"
    path.write_text(
        json.dumps(["a", {"tool_calls": [{"name": "f", "arguments": {}}]}, {"error": {"status": 500}}])
    )
    client = chat_client_for(Provider(model=f"scripted:{path}"))
    assert said(client) == "a"
    assert ids(client)
    with pytest.raises(ProviderError):
        ask(client)
    assert client.provider.model == str(path)


def test_a_file_may_have_settings_and_each_client_begins_it_anew(tmp_path: Path):
    path = tmp_path / "script.json"
    path.write_text(json.dumps({"replies": ["a", "b"], "loop": True, "chunk_chars": 1}))
    provider = Provider(model=f"scripted:{path}")
    first = chat_client_for(provider)
    assert [said(first) for _ in range(3)] == ["a", "b", "a"]
    assert said(chat_client_for(provider)) == "a"


@pytest.mark.parametrize(
    "text", [None, "{", "3", '{"replise": []}', '{"replies": ["a"], "speed": 1}', "[1]", '[{"txt": "a"}]']
)
def test_a_file_that_is_no_script_is_named_with_the_reason(tmp_path: Path, text: str | None):
    path = tmp_path / "script.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=r"script\.json.*: .+"):
        chat_client_for(Provider(model=f"scripted:{path}"))
