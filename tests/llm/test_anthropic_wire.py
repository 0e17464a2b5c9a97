"""Anthropic's protocol over a real connection: what is sent, and what is made of what comes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from rath.errors import ProviderError, UsageValueError
from rath.llm import (
    Provider,
    RathAnthropicChatClient,
    RathLLMFunctionTool,
    RathLLMMessage,
    RathLLMTokenUsage,
    build_anthropic_kwargs,
    build_anthropic_stream_kwargs,
    normalize_anthropic_response,
)
from tests.llm.support import KEY, ask, call, parts_of, request
from tests.wire.server import Answer, Raw, Request, WireServer, sse

SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}
LOOK = RathLLMFunctionTool("look", SCHEMA, "Looks.", strict=True)


def client(server: WireServer, **fields: Any) -> RathAnthropicChatClient:
    return RathAnthropicChatClient(
        Provider(**{"model": "m", "api_key": KEY, "base_url": server.url, **fields})
    )


def built(*messages: RathLLMMessage, **fields: Any) -> dict[str, Any]:
    return build_anthropic_kwargs(request(*messages, **fields), default_model="m")


def key_of(sent: Request) -> str:
    """The key by either header: the SDK's versions differ in which they use."""
    return sent.headers.get("x-api-key") or sent.headers.get("authorization", "").removeprefix("Bearer ")


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def result(call_id: str, content: str | None = None) -> dict[str, str]:
    made = {"type": "tool_result", "tool_use_id": call_id}
    return made if content is None else {**made, "content": content}


def use(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call_id, "name": name, "input": arguments}


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_sent_to_the_letter(stream: bool):
    req = request(
        RathLLMMessage("system", "Be brief."),
        RathLLMMessage("developer", "Be kind."),
        RathLLMMessage("user", "Look."),
        RathLLMMessage(
            "assistant", "I do.", tool_calls=(call("c1", "look", '{"path": "."}'), call("c2", "look", ""))
        ),
        RathLLMMessage("tool", '{"ok": true}', tool_call_id="c1"),
        RathLLMMessage("tool", "two", tool_call_id="c2"),
        RathLLMMessage("user", "And?"),
        tools=(LOOK,),
        tool_choice="auto",
        temperature=0.5,
        top_p=0.9,
        stop="X",
        max_tokens=10,
        user="u1",
        seed=3,
        frequency_penalty=1.0,
        presence_penalty=1.0,
        logit_bias={"1": 2},
        logprobs=True,
        top_logprobs=2,
        reasoning_effort="high",
        verbosity="low",
        metadata={"a": "b"},
        store=True,
        service_tier="flex",
        response_format={"type": "text"},
        n=1,
    )
    with WireServer(Answer("ok")) as server:
        ask(client(server), req, stream=stream)
    (sent,) = server.requests
    assert sent.path == "/v1/messages"
    assert key_of(sent) == KEY
    assert sent.headers["anthropic-version"]
    expected = {
        "model": "m",
        "max_tokens": 10,
        "system": "Be brief.\n\nBe kind.",
        "messages": [
            {"role": "user", "content": "Look."},
            {
                "role": "assistant",
                "content": [text("I do."), use("c1", "look", {"path": "."}), use("c2", "look", {})],
            },
            {"role": "user", "content": [result("c1", '{"ok": true}'), result("c2", "two"), text("And?")]},
        ],
        "tools": [{"name": "look", "description": "Looks.", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto"},
        "temperature": 0.5,
        "top_p": 0.9,
        "stop_sequences": ["X"],
        "metadata": {"user_id": "u1"},
    }
    if stream:
        expected["stream"] = True
    assert sent.body == expected


def test_a_streams_arguments_differ_in_one_thing():
    req = request(tools=(LOOK,))
    whole = build_anthropic_kwargs(req, default_model="m")
    assert build_anthropic_stream_kwargs(req, default_model="m") == {**whole, "stream": True}


def test_results_go_before_texts_whatever_their_order():
    messages = built(
        RathLLMMessage("assistant", tool_calls=(call("a", "look", "{}"),)),
        RathLLMMessage("user", "one"),
        RathLLMMessage("tool", "r", tool_call_id="a"),
        RathLLMMessage("user", "two"),
    )["messages"]
    assert messages[1] == {"role": "user", "content": [result("a", "r"), text("one"), text("two")]}


def test_empty_texts_are_not_sent_and_roles_still_alternate():
    messages = built(
        RathLLMMessage("user", "one"),
        RathLLMMessage("assistant", ""),
        RathLLMMessage("assistant", " \n"),
        RathLLMMessage("user", "two"),
        RathLLMMessage("assistant", "a"),
        RathLLMMessage("user", ""),
        RathLLMMessage("assistant", "b"),
    )["messages"]
    assert messages == [
        {"role": "user", "content": [text("one"), text("two")]},
        {"role": "assistant", "content": [text("a"), text("b")]},
    ]


def test_an_empty_result_is_sent_without_content():
    calls = RathLLMMessage("assistant", tool_calls=(call("a", "look", "{}"),))
    assert built(calls, RathLLMMessage("tool", "", tool_call_id="a"))["messages"][1]["content"] == [
        result("a")
    ]


def test_arguments_that_are_no_object_stay_visible():
    (message,) = built(RathLLMMessage("assistant", tool_calls=(call("a", "look", '{"x": '),)))["messages"]
    assert message["content"] == [use("a", "look", {"invalid_arguments": '{"x": '})]


def test_ids_of_other_models_are_made_acceptable_and_stay_matched():
    foreign = "functions.look:0"
    messages = built(
        RathLLMMessage(
            "assistant", tool_calls=(call(foreign, "look", "{}"), call("functions.look:1", "look", "{}"))
        ),
        RathLLMMessage("tool", "r", tool_call_id=foreign),
    )["messages"]
    (first, second), (answer,) = messages[0]["content"], messages[1]["content"]
    assert first["id"] == answer["tool_use_id"] != second["id"]
    assert set(first["id"] + second["id"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, None),
        ("auto", {"type": "auto"}),
        ("none", {"type": "none"}),
        ("required", {"type": "any"}),
        ({"type": "function", "function": {"name": "look"}}, {"type": "tool", "name": "look"}),
        ({"type": "tool", "name": "look"}, {"type": "tool", "name": "look"}),
    ],
)
def test_tool_choice_is_translated(choice: Any, expected: Any):
    assert built(tools=(LOOK,), tool_choice=choice).get("tool_choice") == expected
    one_at_a_time = built(tools=(LOOK,), tool_choice=choice, parallel_tool_calls=False)["tool_choice"]
    if expected == {"type": "none"}:
        assert one_at_a_time == expected
    else:
        assert one_at_a_time == {**(expected or {"type": "auto"}), "disable_parallel_tool_use": True}


def test_an_unknown_tool_choice_is_refused():
    with pytest.raises(UsageValueError, match="sometimes"):
        built(tools=(LOOK,), tool_choice="sometimes")


def test_without_tools_no_choice_is_sent():
    assert "tool_choice" not in built(tool_choice="auto", parallel_tool_calls=False)


def test_calls_in_the_history_have_their_tools_declared():
    made = built(
        RathLLMMessage("assistant", tool_calls=(call("a", "look", "{}"), call("b", "look", "{}"))),
        RathLLMMessage("tool", "r", tool_call_id="a"),
    )
    assert made["tools"] == [{"name": "look", "input_schema": {"type": "object"}}]
    assert made["tool_choice"] == {"type": "none"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 4096),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 5),
    ],
)
def test_max_tokens_is_always_sent(fields: dict[str, int], expected: int):
    assert built(**fields)["max_tokens"] == expected


def test_a_json_schema_becomes_an_output_format():
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    assert built(response_format=wanted)["output_config"] == {
        "format": {"type": "json_schema", "schema": SCHEMA}
    }


@pytest.mark.parametrize("fields", [{"n": 2}, {"response_format": {"type": "json_object"}}])
def test_what_would_be_missed_is_refused(fields: dict[str, Any]):
    with pytest.raises(UsageValueError):
        built(**fields)


def test_a_request_without_a_model_is_refused():
    with pytest.raises(UsageValueError, match="model"):
        build_anthropic_kwargs(request(), default_model=None)


def test_extra_arguments_win():
    assert built(max_tokens=5, extra_create_args={"max_tokens": 9, "thinking": {"type": "enabled"}}) == {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
        "thinking": {"type": "enabled"},
    }


def test_the_environment_gives_key_and_address(monkeypatch: pytest.MonkeyPatch):
    with WireServer(Answer("ok")) as server:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-from-the-environment")
        ask(RathAnthropicChatClient(Provider(model="m")))
    assert key_of(server.requests[0]) == "sk-ant-from-the-environment"


# -- replies ----------------------------------------------------------------------------------------------------------


def test_a_reply_keeps_everything_it_says():
    payload = {
        "id": "msg_7",
        "model": "m-2026",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "x"},
            text("a"),
            text("b"),
            use("t1", "look", {"path": "."}),
        ],
        "stop_reason": "tool_use",
        "usage": {
            "input_tokens": 3,
            "cache_read_input_tokens": 10,
            "cache_creation_input_tokens": 4,
            "output_tokens": 2,
        },
    }
    with WireServer(Raw(body=json.dumps(payload).encode())) as server:
        response = ask(client(server))
    message = response.primary_choice.message
    assert (response.id, response.model, response.raw) == ("msg_7", "m-2026", payload)
    assert (message.content, message.reasoning_content) == ("ab", "hm")
    assert [(made.id, made.function.name, made.function.arguments) for made in message.tool_calls or ()] == [
        ("t1", "look", '{"path":"."}')
    ]
    details = {"cached_tokens": 10, "cache_creation_tokens": 4}
    assert response.usage == RathLLMTokenUsage(17, 2, 19, prompt_tokens_details=details)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
        (None, "stop"),
    ],
)
def test_stop_reasons_are_translated(reason: str | None, expected: str):
    response = normalize_anthropic_response({"content": [text("x")], "stop_reason": reason})
    assert response.primary_choice.finish_reason == expected
    assert response.usage is None


def test_calls_without_a_reason_are_calls():
    response = normalize_anthropic_response({"content": [use("", "f", {})]})
    (made,) = response.primary_choice.message.tool_calls or ()
    assert response.primary_choice.finish_reason == "tool_calls"
    assert made.id


@pytest.mark.parametrize("body", [b"{}", b'{"content": null}', b"[]", b"<html>", b""])
def test_a_reply_that_is_none_is_a_provider_error(body: bytes):
    with WireServer(Raw(body=body)) as server, pytest.raises(ProviderError, match="Anthropic sent a reply"):
        ask(client(server))


# -- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_arrives_piece_by_piece():
    answer = Answer("abcdef", [("t1", "look", '{"a": 1}'), ("t2", "look", "{}")], reasoning="hmm")
    with WireServer(answer) as server:
        parts = asyncio.run(parts_of(client(server), stream=True))
    assert [part.content_delta for part in parts if part.content_delta] == ["ab", "cd", "ef"]
    assert [part.reasoning_delta for part in parts if part.reasoning_delta] == ["h", "m", "m"]
    assert [part.tool_call_id for part in parts if part.tool_call_id] == ["t1", "t2"]
    arguments = {0: "", 1: ""}
    for part in parts:
        if part.tool_call_args_delta:
            arguments[part.tool_call_index] += part.tool_call_args_delta
    assert arguments == {0: '{"a": 1}', 1: "{}"}
    assert [part.finish_reason for part in parts if part.finish_reason] == ["tool_calls"]
    assert [part.usage for part in parts if part.usage] == [RathLLMTokenUsage(7, 5, 12)]


@pytest.mark.parametrize(("pieces", "expected"), [((), {"a": 1}), (('{"b"', ": 2}"), {"b": 2})])
def test_an_input_that_comes_with_its_start_is_not_lost_and_not_doubled(
    pieces: tuple[str, ...], expected: Any
):
    events = (
        {"type": "message_start", "message": {}},
        {"type": "content_block_start", "index": 0, "content_block": use("t", "look", {"a": 1})},
        *(
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "input_json_delta", "partial_json": piece},
            }
            for piece in pieces
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
        {"type": "message_stop"},
    )
    with WireServer(sse(*events, done=False, named=True)) as server:
        response = ask(client(server), stream=True)
    (made,) = response.primary_choice.message.tool_calls or ()
    assert made.function.arguments_parsed == expected
    assert response.usage is None


def test_an_error_event_is_a_provider_error():
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "too busy"}}
    start = {"type": "message_start", "message": {}}
    with (
        WireServer(sse(start, error, done=False, named=True)) as server,
        pytest.raises(ProviderError, match="too busy") as caught,
    ):
        ask(client(server), stream=True)
    assert (caught.value.code, caught.value.retryable) == ("overloaded_error", True)


def test_a_stream_that_ends_before_its_message_is_a_passing_failure():
    start = {"type": "content_block_start", "index": 0, "content_block": text("x")}
    with (
        WireServer(sse(start, done=False, named=True)) as server,
        pytest.raises(ProviderError, match="whole") as caught,
    ):
        ask(client(server), stream=True)
    assert caught.value.retryable


def test_a_stream_may_end_after_its_stop_reason():
    end = {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}
    with WireServer(sse(end, done=False, named=True)) as server:
        assert ask(client(server), stream=True).primary_choice.finish_reason == "length"


def test_a_server_that_does_not_stream_is_read_all_the_same():
    with WireServer(Raw(body=json.dumps({"content": [text("whole")]}).encode())) as server:
        assert ask(client(server), stream=True).primary_choice.message.content == "whole"
