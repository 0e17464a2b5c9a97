"""What every model client promises, as tests: subclass :class:`ModelClientConformance` and run pytest.

::

    class TestMyClient(ModelClientConformance):
        def client(self, *replies):
            server = start_my_fake_server(replies)
            return MyClient(Provider(model="m", base_url=server.url))

``client`` gives a fresh client whose model answers the next calls with ``replies``, in order, whatever it is
asked. Each is a :class:`rath.llm.scripted.Reply` that uses ``text``, ``tool_calls``, ``usage``, ``latency_s``
and, as fields of a ``ProviderError``, ``error``. The suite needs no fixtures; override ``close`` to release
what ``client`` made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, TypeVar, cast

from rath.core.ports import ModelClient
from rath.errors import ProviderError
from rath.llm.fold import fold_deltas
from rath.llm.provider import Provider
from rath.llm.scripted import Reply
from rath.llm.types import (
    RathLLMAssistantMessage,
    RathLLMChatRequest,
    RathLLMChatResponse,
    RathLLMFunctionTool,
    RathLLMMessage,
    RathLLMStreamDelta,
)
from rath.testing.pace import within

__all__ = ["ModelClientConformance"]

T = TypeVar("T")
Part = RathLLMStreamDelta | RathLLMChatResponse
TEXT = 'Ünïcode, "quotes", \\back\\slashes, a tab\t, two\nlines, 漢字, \U0001f600 and \u2028 too.'
CALLS = (
    {"id": "call_a", "name": "look", "arguments": {"path": "a/b.txt", "deep": {"n": [1, 2.5, None, True]}}},
    {"id": "call_b", "name": "look", "arguments": {}},
    {"id": "call_c", "name": "note", "arguments": {"text": TEXT}},
)


def _request(text: str = "Go on.") -> RathLLMChatRequest:
    tools = tuple(RathLLMFunctionTool(name, {"type": "object", "properties": {}}, "A tool.") for name in ("look", "note"))
    messages = (RathLLMMessage("system", "Be brief."), RathLLMMessage("user", text))
    return RathLLMChatRequest(messages=messages, tools=tools, tool_choice="auto")


def _open(
    client: ModelClient, stream: bool, request: RathLLMChatRequest | None = None
) -> AbstractAsyncContextManager[AsyncIterator[Part]]:
    parts = client.open_completion(request or _request(), stream=stream)
    return cast("AbstractAsyncContextManager[AsyncIterator[Part]]", aclosing(cast(Any, parts)))


async def _all(client: ModelClient, stream: bool) -> list[Part]:
    async with _open(client, stream) as parts:
        return [part async for part in parts]


async def _whole(client: ModelClient, stream: bool) -> RathLLMChatResponse:
    parts = await _all(client, stream)
    if stream:
        return fold_deltas(cast("list[RathLLMStreamDelta]", parts))
    return cast(RathLLMChatResponse, parts[0])


def _said(message: RathLLMAssistantMessage) -> tuple[Any, ...]:
    calls = message.tool_calls or ()
    return message.content, [(call.id, call.function.name, call.function.arguments_parsed) for call in calls]


class ModelClientConformance:
    """The suite. Its tests are named after what they promise."""

    def client(self, *replies: Reply) -> ModelClient:
        """A client whose model answers with ``replies``."""
        raise AssertionError(f"{type(self).__name__} must define client(*replies)")

    def close(self) -> None:
        """Called after each test."""

    def teardown_method(self) -> None:
        self.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """``work`` in an event loop of its own."""
        return asyncio.run(work)

    def test_it_is_a_model_client_with_its_provider(self) -> None:
        client = self.client(Reply(text="x"))
        assert isinstance(client, ModelClient)
        assert isinstance(client.provider, Provider)

    def test_without_streaming_there_is_exactly_one_response(self) -> None:
        parts = self.run(_all(self.client(Reply(text=TEXT)), False))
        assert [type(part) for part in parts] == [RathLLMChatResponse]
        choice = cast(RathLLMChatResponse, parts[0]).primary_choice
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (
            TEXT,
            None,
            "stop",
        )

    def test_a_stream_holds_deltas_that_fold_to_the_same_message(self) -> None:
        reply = Reply(text=TEXT, tool_calls=CALLS)
        client = self.client(reply, reply)
        parts = self.run(_all(client, True))
        assert parts
        assert {type(part) for part in parts} == {RathLLMStreamDelta}
        streamed = fold_deltas(cast("list[RathLLMStreamDelta]", parts)).primary_choice
        whole = self.run(_whole(client, False)).primary_choice
        assert _said(streamed.message) == _said(whole.message)
        assert streamed.finish_reason == whole.finish_reason == "tool_calls"

    def test_tool_calls_arrive_with_names_arguments_and_distinct_ids(self) -> None:
        for stream in (False, True):
            response = self.run(_whole(self.client(Reply(tool_calls=CALLS)), stream))
            message = response.primary_choice.message
            assert message.content is None
            calls = message.tool_calls or ()
            expected = [(call["name"], call["arguments"]) for call in CALLS]
            assert [(call.function.name, call.function.arguments_parsed) for call in calls] == expected
            assert not any(call.function.arguments_parse_error for call in calls)
            assert len({call.id for call in calls if call.id}) == len(CALLS)

    def test_usage_is_reported_when_the_provider_reports_it(self) -> None:
        reply = Reply(text="x", usage={"prompt_tokens": 21, "completion_tokens": 4})
        for stream in (False, True):
            usage = self.run(_whole(self.client(reply), stream)).usage
            assert usage is not None
            assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (21, 4, 25)

    def test_a_passing_failure_is_a_retryable_provider_error(self) -> None:
        for stream in (False, True):
            error = self._failure({"status": 429, "message": "slow down", "retryable": True}, stream)
            assert (error.status, error.retryable) == (429, True)
            assert "slow down" in str(error)

    def test_a_lasting_failure_is_not_retryable(self) -> None:
        for stream in (False, True):
            error = self._failure({"status": 400, "message": "no such thing"}, stream)
            assert (error.status, error.retryable) == (400, False)
            assert "no such thing" in str(error)

    def _failure(self, fields: dict[str, Any], stream: bool) -> ProviderError:
        client = self.client(Reply(error=fields), Reply(text="better"))
        try:
            self.run(_all(client, stream))
        except ProviderError as error:
            assert self.run(_whole(client, stream)).primary_choice.message.content == "better"
            return error
        raise AssertionError("a failure did not raise ProviderError")

    def test_one_attempt_is_one_call(self) -> None:
        client = self.client(Reply(error={"status": 503, "message": "busy", "retryable": True}), Reply(text="second"))
        began = time.monotonic()
        try:
            self.run(_all(client, False))
        except ProviderError:
            assert time.monotonic() - began < within(5.0), "open_completion waited: retrying is for its caller"
        else:
            raise AssertionError("open_completion retried: that is for its caller")

    def test_closing_early_ends_the_request_and_the_client_stays_usable(self) -> None:
        client = self.client(Reply(text="long " * 200), Reply(text="next"))

        async def leave_then_ask() -> str | None:
            async with _open(client, True) as parts:
                await anext(parts)
            return (await _whole(client, True)).primary_choice.message.content

        assert self.run(leave_then_ask()) == "next"

    def test_a_cancelled_completion_ends_at_once(self) -> None:
        client = self.client(Reply(text="first"), Reply(text="late", latency_s=3.0), Reply(text="next"))

        async def cancel_then_ask() -> str | None:
            await _whole(client, False)  # the first request takes longer: an SDK is loaded, a connection made
            task = asyncio.ensure_future(_all(client, False))
            await asyncio.sleep(0.4)
            task.cancel()
            began = time.monotonic()
            await asyncio.wait([task])
            assert task.cancelled()
            assert time.monotonic() - began < within(1.0)
            return (await _whole(client, False)).primary_choice.message.content

        assert self.run(cancel_then_ask()) == "next"

    def test_overlapping_completions_do_not_mix(self) -> None:
        count = 32
        client = self.client(*(Reply(text=f"reply {number} " * 20) for number in range(count)))

        async def overlap() -> list[RathLLMChatResponse]:
            return await asyncio.gather(*(_whole(client, number % 2 == 0) for number in range(count)))

        texts = sorted(str(response.primary_choice.message.content) for response in self.run(overlap()))
        assert texts == sorted(f"reply {number} " * 20 for number in range(count))

    def test_it_works_in_one_event_loop_after_another(self) -> None:
        client = self.client(*(Reply(text=str(number)) for number in range(3)))
        assert [self.run(_whole(client, False)).primary_choice.message.content for _ in range(3)] == [
            "0",
            "1",
            "2",
        ]

    def test_the_request_is_not_changed(self) -> None:
        request = _request()
        before = (request, request.messages, request.tools, dict(request.extra_create_args))
        client = self.client(Reply(text="x"))

        async def ask() -> None:
            async with _open(client, False, request) as parts:
                async for _part in parts:
                    pass

        self.run(ask())
        assert (request, request.messages, request.tools, dict(request.extra_create_args)) == before

    def test_no_repr_shows_the_key(self) -> None:
        client = self.client(Reply(error={"status": 401, "message": "who are you?"}))
        key = client.provider.api_key
        shown = repr(client) + repr(client.provider) + str(client.provider)
        try:
            self.run(_all(client, False))
        except ProviderError as error:
            shown += repr(error) + str(error)
        assert not key or key not in shown
