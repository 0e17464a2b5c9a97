"""Whatever goes wrong between rath and a provider is a ProviderError that says what, and whether to try again."""

from __future__ import annotations

import asyncio
import json
import pickle
import socket
import time
from email.utils import formatdate
from typing import Any

import anthropic
import openai
import pytest

from rath.errors import ProviderError
from rath.llm import Provider, RathAnthropicChatClient, RathOpenAIChatClient
from rath.testing.pace import within
from tests.llm.support import KEY, ask, parts_of
from tests.wire.server import Answer, Raw, WireServer, sse

BOTH = pytest.mark.parametrize("vendor", ["openai", "anthropic"])
STREAMING = pytest.mark.parametrize("stream", [False, True])


def client(vendor: str, url: str, **fields: Any) -> Any:
    if vendor == "openai":
        return RathOpenAIChatClient(Provider(model="m", api_key=KEY, base_url=f"{url}/v1", **fields))
    return RathAnthropicChatClient(Provider(model="m", api_key=KEY, base_url=url, **fields))


def failure(vendor: str, answer: Answer | Raw, *, stream: bool = False, **fields: Any) -> ProviderError:
    with WireServer(answer) as server, pytest.raises(ProviderError) as caught:
        ask(client(vendor, server.url, **fields), stream=stream)
    assert len(server.requests) == 1, "an attempt is one request"
    return caught.value


def refusal(status: int, message: str = "because", **headers: str) -> Raw:
    body = json.dumps({"type": "error", "error": {"type": "some_error", "message": message}}).encode()
    return Raw(status=status, headers=headers, body=body)


@BOTH
@STREAMING
def test_the_status_says_whether_to_try_again(vendor: str, stream: bool):
    statuses = [(status, False) for status in (400, 401, 403, 404, 413, 422)]
    statuses += [(status, True) for status in (408, 409, 429, 500, 502, 503, 529)]

    # One client for all: making one costs more than a request.
    async def each(server: WireServer) -> None:
        made = client(vendor, server.url)
        for status, retryable in statuses:
            with pytest.raises(ProviderError) as caught:
                await parts_of(made, stream=stream)
            error = caught.value
            assert (error.status, error.retryable, error.code) == (status, retryable, "some_error")
            assert str(status) in str(error)
            assert "because" in str(error)
            assert isinstance(error.__cause__, openai.APIStatusError | anthropic.APIStatusError)

    with WireServer(*(refusal(status) for status, _ in statuses)) as server:
        asyncio.run(each(server))
    assert len(server.requests) == len(statuses), "an attempt is one request"


@STREAMING
@pytest.mark.parametrize("status", [200, 429])
def test_an_account_without_money_is_not_asked_again(stream: bool, status: int):
    body = {"error": {"message": "You have no quota.", "type": "insufficient_quota", "code": "insufficient_quota"}}
    error = failure("openai", Raw(status=status, body=json.dumps(body).encode()), stream=stream)
    assert (error.code, error.retryable) == ("insufficient_quota", False)


@BOTH
def test_the_request_id_is_kept_for_the_providers_support(vendor: str):
    header = {"openai": "x-request-id", "anthropic": "request-id"}[vendor]
    error = failure(vendor, refusal(500, **{header: "req_42"}))
    assert error.request_id == "req_42"
    assert "req_42" in str(error)


@BOTH
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After-Ms": "1500"}, 1.5),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({}, None),
    ],
)
def test_retry_after_is_understood(vendor: str, headers: dict[str, str], seconds: float | None):
    assert failure(vendor, refusal(429, **headers)).retry_after_s == seconds


@BOTH
def test_retry_after_may_be_a_date_to_come(vendor: str):
    error = failure(vendor, refusal(503, **{"Retry-After": formatdate(time.time() + 60, usegmt=True)}))
    assert error.retry_after_s == pytest.approx(60, abs=3)


@BOTH
@pytest.mark.parametrize(
    "body", [b"", b"<html>Bad gateway</html>", b"[1]", b'{"error": "plain text"}', b"null"]
)
def test_an_error_body_of_any_form_is_an_error(vendor: str, body: bytes):
    error = failure(vendor, Raw(status=502, body=body))
    assert (error.status, error.retryable) == (502, True)


@BOTH
def test_a_refused_key_says_what_to_do_and_does_not_show_it(vendor: str):
    error = failure(vendor, refusal(401, f"Incorrect API key provided: {KEY}"))
    assert KEY not in str(error)
    assert f"{vendor.upper()}_API_KEY" in str(error)
    assert "rath doctor" in str(error)


@BOTH
@STREAMING
def test_nobody_listening_is_a_passing_failure(vendor: str, stream: bool):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ProviderError, match="connection") as caught:
            ask(client(vendor, url), stream=stream)
    assert (caught.value.status, caught.value.code, caught.value.retryable) == (None, "connection", True)
    assert url in str(caught.value)


@BOTH
def test_a_body_that_is_cut_off_is_a_passing_failure(vendor: str):
    error = failure(vendor, Raw(body=b'{"id": "x"', drop=True))
    assert (error.code, error.retryable) == ("connection", True)


@BOTH
def test_a_stream_that_is_cut_off_is_a_passing_failure(vendor: str):
    error = failure(vendor, Answer("a long text", drop=True), stream=True)
    assert (error.code, error.retryable) == ("connection", True)


@BOTH
@STREAMING
def test_a_provider_that_says_nothing_is_a_passing_failure(vendor: str, stream: bool):
    began = time.monotonic()
    error = failure(vendor, Answer("late", delay_s=1.0), stream=stream, timeout_s=0.1)
    assert time.monotonic() - began < within(3.0)
    assert (error.code, error.retryable) == ("timeout", True)
    assert "0.1 s" in str(error)


@STREAMING
@pytest.mark.parametrize(
    ("code", "status", "retryable"),
    [
        (429, 429, True),
        (502, 502, True),
        (400, 400, False),
        ("server_error", None, True),
        ("bad_thing", None, False),
    ],
)
def test_an_error_under_status_200_is_an_error(stream: bool, code: Any, status: int | None, retryable: bool):
    body = {"error": {"message": "upstream broke", "code": code}}
    error = failure("openai", sse(body) if stream else Raw(body=json.dumps(body).encode()), stream=stream)
    assert "upstream broke" in str(error)
    assert (error.status, error.code, error.retryable) == (status, str(code), retryable)


@BOTH
def test_errors_survive_pickling(vendor: str):
    error = failure(vendor, refusal(429, **{"Retry-After": "2"}))
    error.add_note("a note")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert (again.status, again.retryable, again.retry_after_s, again.__notes__) == (
        429,
        True,
        2.0,
        ["a note"],
    )


@BOTH
def test_the_client_is_usable_after_every_failure(vendor: str):
    async def go(server: WireServer) -> str | None:
        made = client(vendor, server.url)
        for stream in (False, True, True):
            with pytest.raises(ProviderError):
                await parts_of(made, stream=stream)
        return (await parts_of(made))[0].primary_choice.message.content

    with WireServer(refusal(500), refusal(429), Answer("x" * 99, drop=True), Answer("fine")) as server:
        assert asyncio.run(go(server)) == "fine"
