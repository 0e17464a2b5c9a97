"""OpenAI's protocol over a real connection: what is sent, and what is made of what comes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from rath.errors import ProviderError, UsageTypeError, UsageValueError
from rath.llm import (
    Provider,
    RathLLMFunctionTool,
    RathLLMMessage,
    RathLLMTokenUsage,
    RathOpenAIChatClient,
    normalize_chat_completion,
    to_create_kwargs,
)
from rath.llm.fold import fold_deltas
from tests.llm.support import KEY, ask, call, parts_of, request
from tests.wire.server import Answer, Raw, WireServer, sse

HISTORY = (
    RathLLMMessage("system", "Be brief."),
    RathLLMMessage("user", "Look."),
    RathLLMMessage(
        "assistant", None, tool_calls=(call("c1", "look", '{"path": "."}'), call("c2", "look", ""))
    ),
    RathLLMMessage("tool", '{"ok": true}', tool_call_id="c1"),
    RathLLMMessage("tool", "two", tool_call_id="c2"),
    RathLLMMessage("assistant", None),
)
HISTORY_ON_THE_WIRE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Look."},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [call("c1", "look", '{"path": "."}'), call("c2", "look", "{}")],
    },
    {"role": "tool", "content": '{"ok": true}', "tool_call_id": "c1"},
    {"role": "tool", "content": "two", "tool_call_id": "c2"},
    {"role": "assistant", "content": ""},
]
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}
TOOLS = (RathLLMFunctionTool("look", SCHEMA, "Looks.", True), RathLLMFunctionTool("stop", {"type": "object"}))
TOOLS_ON_THE_WIRE = [
    {
        "type": "function",
        "function": {"name": "look", "description": "Looks.", "parameters": SCHEMA, "strict": True},
    },
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object"}}},
]


def client(server: WireServer, **fields: Any) -> RathOpenAIChatClient:
    return RathOpenAIChatClient(
        Provider(**{"model": "m", "api_key": KEY, "base_url": server.openai_url, **fields})
    )


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **fields}


def streamed(*events: Any, **options: Any) -> Any:
    """What a stream of these events is folded to."""
    with WireServer(sse(*events, **options)) as server:
        return ask(client(server), stream=True)


def calls_of(response: Any) -> list[tuple[str, str]]:
    calls = response.primary_choice.message.tool_calls or ()
    assert len({made.id for made in calls}) == len(calls)
    assert all(made.id for made in calls)
    return [(made.function.name, made.function.arguments) for made in calls]


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_sent_to_the_letter(stream: bool):
    req = request(
        *HISTORY, tools=TOOLS, tool_choice="auto", temperature=0.5, stop=["X"], max_tokens=10, seed=3
    )
    with WireServer(Answer("ok")) as server:
        ask(client(server), req, stream=stream)
    (sent,) = server.requests
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.headers["content-type"] == "application/json"
    expected = {
        "model": "m",
        "messages": HISTORY_ON_THE_WIRE,
        "tools": TOOLS_ON_THE_WIRE,
        "tool_choice": "auto",
        "temperature": 0.5,
        "stop": ["X"],
        "max_tokens": 10,
        "seed": 3,
    }
    if stream:
        expected |= {"stream": True, "stream_options": {"include_usage": True}}
    assert sent.body == expected


def test_what_create_takes_is_what_to_create_kwargs_gives():
    made = to_create_kwargs(request(*HISTORY, model="own", tools=TOOLS), default_model="default")
    assert made == {"model": "own", "messages": HISTORY_ON_THE_WIRE, "tools": TOOLS_ON_THE_WIRE}
    assert to_create_kwargs(request(), default_model="default")["model"] == "default"


def test_a_request_without_a_model_is_refused():
    with pytest.raises(UsageValueError, match="model"):
        to_create_kwargs(request(), default_model=None)


def test_extra_arguments_win_and_reach_body_headers_and_query():
    extra = {
        "temperature": 0.9,
        "top_k": 5,
        "seed": None,
        "stream_options": None,
        "extra_body": {"guided": {"x": 1}},
        "extra_headers": {"X-Trace": "t1"},
        "extra_query": {"api-version": "7"},
    }
    with WireServer(Answer("ok")) as server:
        ask(client(server), request(temperature=0.1, seed=3, extra_create_args=extra), stream=True)
    (sent,) = server.requests
    assert sent.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0.9,
        "top_k": 5,
        "guided": {"x": 1},
        "stream": True,
    }
    assert sent.headers["x-trace"] == "t1"
    assert sent.path == "/v1/chat/completions?api-version=7"


def test_lone_surrogates_do_not_stop_a_request():
    with WireServer(Answer("ok")) as server:
        ask(client(server), request(RathLLMMessage("user", "a\udc80b")))
    assert server.requests[0].body["messages"][0]["content"] == "a\udc80b"


def test_what_json_cannot_say_is_refused_before_anything_is_sent():
    with WireServer(Answer("ok")) as server, pytest.raises(UsageTypeError):
        ask(client(server), request(extra_create_args={"x": object()}))
    assert server.requests == []


def test_the_environment_gives_key_and_address(monkeypatch: pytest.MonkeyPatch):
    with WireServer(Answer("ok")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-from-the-environment")
        ask(RathOpenAIChatClient(Provider(model="m")))
    assert server.requests[0].headers["authorization"] == "Bearer sk-from-the-environment"


def test_clients_of_one_configuration_share_their_connections():
    async def several(server: WireServer) -> None:
        for _ in range(5):
            await parts_of(client(server))
            await parts_of(client(server), stream=True)

    with WireServer(Answer("ok"), repeat=True) as server:
        asyncio.run(several(server))
        assert server.connections == 1


# -- replies ----------------------------------------------------------------------------------------------------------


def test_a_reply_keeps_everything_it_says():
    whole = {
        "id": "chatcmpl-7",
        "object": "chat.completion",
        "created": 1700000001,
        "model": "m-2026",
        "service_tier": "default",
        "system_fingerprint": "fp",
        "choices": [
            {
                "index": 0,
                "finish_reason": "length",
                "logprobs": {"content": []},
                "message": {"role": "assistant", "content": "text", "refusal": "no", "reasoning": "because"},
            },
            {
                "index": 1,
                "finish_reason": "content_filter",
                "message": {"role": "assistant", "content": "other"},
            },
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }
    with WireServer(Raw(body=json.dumps(whole).encode())) as server:
        response = ask(client(server))
    assert (response.id, response.created, response.model) == ("chatcmpl-7", 1700000001, "m-2026")
    assert (response.service_tier, response.system_fingerprint, response.raw) == ("default", "fp", whole)
    assert response.usage == RathLLMTokenUsage(3, 2, 5, None, {"cached_tokens": 1})
    first, second = response.choices
    assert (first.finish_reason, first.logprobs, first.message.content) == ("length", {"content": []}, "text")
    assert (first.message.refusal, first.message.reasoning_content) == ("no", "because")
    assert (second.index, second.finish_reason, second.message.content) == (1, "content_filter", "other")


def test_the_sdks_own_object_is_normalised_too():
    message = {"role": "assistant", "content": "hi"}
    payload = {"id": "1", "object": "chat.completion", "created": 5, "model": "m"}
    completion = ChatCompletion.model_validate(
        {**payload, "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
    )
    response = normalize_chat_completion(completion)
    assert (response.id, response.primary_choice.message.content, response.usage) == ("1", "hi", None)


@pytest.mark.parametrize(
    ("message", "finish", "expected"),
    [
        ({"content": "x"}, None, ("x", [], "stop")),
        ({"content": "x"}, "eos", ("x", [], "stop")),
        ({"content": None}, "stop", (None, [], "stop")),
        ({}, "length", (None, [], "length")),
        ({"content": "", "tool_calls": []}, "stop", (None, [], "stop")),
        (
            {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            "stop",
            ("ab", [], "stop"),
        ),
        ({"tool_calls": [call("", "f", "{}")]}, "stop", (None, [("f", "{}")], "tool_calls")),
        ({"tool_calls": [call("", "f", "{}")]}, None, (None, [("f", "{}")], "tool_calls")),
        ({"tool_calls": [call("", "f", "{}")]}, "weird", (None, [("f", "{}")], "tool_calls")),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
            "stop",
            (None, [("f", '{"a":1}')], "tool_calls"),
        ),
        ({"tool_calls": [{"function": {"name": "f"}}]}, "stop", (None, [("f", "")], "tool_calls")),
        (
            {"tool_calls": [call("x", "f", ""), call("x", "g", "")]},
            "stop",
            (None, [("f", ""), ("g", "")], "tool_calls"),
        ),
    ],
)
def test_a_sloppy_reply_is_put_up_with(
    message: dict[str, Any], finish: str | None, expected: tuple[Any, ...]
):
    response = normalize_chat_completion({"choices": [{"message": message, "finish_reason": finish}]})
    choice = response.primary_choice
    assert (choice.message.content, calls_of(response), choice.finish_reason) == expected
    assert response.usage is None


@pytest.mark.parametrize("usage", [None, 3, {}, {"prompt_tokens": None, "completion_tokens": 4}])
def test_a_sloppy_usage_is_put_up_with(usage: Any):
    response = normalize_chat_completion({"choices": [{"message": {"content": "x"}}], "usage": usage})
    expected = (
        None if not isinstance(usage, dict) else RathLLMTokenUsage(0, 4 if usage else 0, 4 if usage else 0)
    )
    assert response.usage == expected


@pytest.mark.parametrize(
    "body", [b"{}", b'{"choices": []}', b'{"choices": null}', b"[]", b'"text"', b"<html>", b"", b"{"]
)
def test_a_reply_that_is_none_is_a_provider_error(body: bytes):
    with WireServer(Raw(body=body)) as server, pytest.raises(ProviderError, match="OpenAI sent a reply"):
        ask(client(server))


# -- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_arrives_piece_by_piece():
    with WireServer(Answer("abcdef", [("c1", "look", '{"a": 1}')], reasoning="hm")) as server:
        parts = asyncio.run(parts_of(client(server), stream=True))
    assert [part.content_delta for part in parts if part.content_delta] == ["ab", "cd", "ef"]
    assert "".join(part.reasoning_delta or "" for part in parts) == "hm"
    assert {part.tool_call_index for part in parts} == {0, None}
    assert [part.finish_reason for part in parts if part.finish_reason] == ["tool_calls"]
    assert [part.usage for part in parts if part.usage] == [RathLLMTokenUsage(7, 5, 12)]
    response = fold_deltas(parts)
    assert calls_of(response) == [("look", '{"a": 1}')]


def fragment(arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    name = fields.pop("name", None)
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return chunk({"tool_calls": [{**fields, "function": function}]})


@pytest.mark.parametrize(
    ("fragments", "expected"),
    [
        pytest.param(
            [fragment(index=0, id="a", name="f"), fragment('{"x"', index=0), fragment(": 1}", index=0)],
            [("f", '{"x": 1}')],
            id="as it should be",
        ),
        pytest.param(
            [fragment('{"x"', name="f"), fragment(": 1}")], [("f", '{"x": 1}')], id="no index, no id"
        ),
        pytest.param(
            [fragment("{}", id="a", name="f"), fragment("{}", id="b", name="g")],
            [("f", "{}"), ("g", "{}")],
            id="no index, two whole calls",
        ),
        pytest.param(
            [fragment("{}", name="f"), fragment("{}", name="g")],
            [("f", "{}"), ("g", "{}")],
            id="no index, no id, two whole calls",
        ),
        pytest.param(
            [
                fragment("{", id="a", name="f"),
                fragment("[", id="b", name="g"),
                fragment("}", id="a"),
                fragment("]", id="b"),
            ],
            [("f", "{}"), ("g", "[]")],
            id="no index, interleaved by id",
        ),
        pytest.param(
            [fragment("{}", index=0, id="a", name="f"), fragment("{}", index=0, id="b", name="g")],
            [("f", "{}"), ("g", "{}")],
            id="two whole calls, both at index 0",
        ),
        pytest.param(
            [fragment("{", index=0, id="a", name="f"), fragment("}", index=0, id="a", name="f")],
            [("f", "{}")],
            id="id and name in every fragment",
        ),
        pytest.param(
            [fragment("{", index=0, id="a", name="f"), fragment("}", index=0, id="", name="")],
            [("f", "{}")],
            id="empty id and name in later fragments",
        ),
        pytest.param(
            [fragment("{}", index=3, id="a", name="f"), fragment("{}", index=1, id="b", name="g")],
            [("f", "{}"), ("g", "{}")],
            id="indexes in any order",
        ),
    ],
)
@pytest.mark.parametrize("finish", ["tool_calls", "stop", None])
def test_sloppy_fragments_become_the_right_calls(
    fragments: list[Any], expected: list[Any], finish: str | None
):
    response = streamed(*fragments, chunk({}, finish))
    assert calls_of(response) == expected
    assert response.primary_choice.finish_reason == "tool_calls"


def test_arguments_that_are_an_object_are_taken_in_a_stream():
    event = chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}]})
    assert calls_of(streamed(event)) == [("f", '{"x":1}')]


def test_empty_and_foreign_chunks_are_passed_over():
    response = streamed(
        {"choices": []},
        {},
        {"choices": None},
        {"choices": [None, {"index": 0}]},
        chunk({"content": None}),
        chunk({"content": "x"}),
    )
    assert response.primary_choice.message.content == "x"
    assert response.primary_choice.finish_reason == "stop"
    assert response.usage is None


def test_usage_in_a_chunk_with_choices_counts():
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    assert streamed(chunk({"content": "x"}, "stop", usage=usage)).usage == RathLLMTokenUsage(1, 2, 3)


def test_only_the_first_choice_is_streamed():
    other = {"choices": [{"index": 1, "delta": {"content": "other"}}]}
    assert (
        streamed(chunk({"content": "a"}), other, chunk({"content": "b"})).primary_choice.message.content
        == "ab"
    )


def test_a_refusal_is_not_lost():
    assert (
        streamed(chunk({"refusal": "I may not."}), chunk({}, "stop")).primary_choice.message.content
        == "I may not."
    )


def test_a_stream_may_end_without_done():
    assert streamed(chunk({"content": "x"}), done=False).primary_choice.message.content == "x"


def test_a_server_that_does_not_stream_is_read_all_the_same():
    body = {"choices": [{"message": {"content": "whole", "tool_calls": [call("c", "f", "{}")]}}]}
    with WireServer(Raw(body=json.dumps(body).encode())) as server:
        response = ask(client(server), stream=True)
    assert response.primary_choice.message.content == "whole"
    assert calls_of(response) == [("f", "{}")]


@pytest.mark.parametrize("events", [[], ["[]"], ["3"], ["{broken"]])
def test_a_stream_that_is_none_is_a_provider_error(events: list[str]):
    with pytest.raises(ProviderError, match="OpenAI"):
        streamed(*events)
