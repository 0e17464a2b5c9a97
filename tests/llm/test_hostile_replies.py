"""Whatever bytes a provider sends, the answer is a reply or a ProviderError, in bounded memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rath.errors import ProviderError
from rath.llm import Provider, RathAnthropicChatClient, RathOpenAIChatClient
from rath.llm.bounds import BODY_BYTES, EVENT_BYTES
from tests.llm.support import KEY, ask
from tests.wire.server import Raw, WireServer, sse

pytestmark = pytest.mark.slow

BOTH = pytest.mark.parametrize("vendor", ["openai", "anthropic"])
STREAMING = pytest.mark.parametrize("stream", [False, True])
DIGITS = "9" * 5000
MIB = 2**20


def client(vendor: str, url: str) -> Any:
    if vendor == "openai":
        return RathOpenAIChatClient(Provider(model="m", api_key=KEY, base_url=f"{url}/v1"))
    return RathAnthropicChatClient(Provider(model="m", api_key=KEY, base_url=url))


def answered(vendor: str, raw: Raw, *, stream: bool = False) -> Any:
    with WireServer(raw) as server:
        return ask(client(vendor, server.url), stream=stream)


def with_usage(vendor: str, number: str, stream: bool) -> Raw:
    """A good reply whose usage has this literal in place of the prompt's tokens."""
    if vendor == "openai":
        usage = {"prompt_tokens": "@", "completion_tokens": 1, "prompt_tokens_details": 5}
        inner = {"role": "assistant", "content": "fine"}
        choice = {"index": 0, "delta" if stream else "message": inner, "finish_reason": "stop"}
        events: list[Any] = [{"choices": [choice], "usage": usage}]
    else:
        usage = {"input_tokens": "@", "output_tokens": 1}
        text = {"type": "text", "text": "fine"}
        events = [{"type": "message", "content": [text], "stop_reason": "end_turn", "usage": usage}]
        if stream:
            events = [
                {"type": "message_start", "message": {"usage": usage}},
                {"type": "content_block_start", "index": 0, "content_block": text},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}},
                {"type": "message_stop"},
            ]
    texts = [json.dumps(event).replace('"@"', number) for event in events]
    if not stream:
        return Raw(body=texts[0].encode())
    if vendor == "openai":
        return sse(*texts)
    body = "".join(f"event: {e['type']}\ndata: {t}\n\n" for e, t in zip(events, texts, strict=True))
    return Raw(headers={"Content-Type": "text/event-stream"}, body=body.encode())


@BOTH
@STREAMING
@pytest.mark.parametrize("number", ["-1", "1" + "0" * 30, "1e999", "-1e999", str(2**53)])
def test_a_usage_that_cannot_be_one_is_dropped_and_the_reply_kept(vendor: str, stream: bool, number: str):
    response = answered(vendor, with_usage(vendor, number, stream), stream=stream)
    assert response.primary_choice.message.content == "fine"
    assert response.usage is None


@BOTH
@STREAMING
def test_a_good_usage_is_kept_without_details_that_are_no_mapping(vendor: str, stream: bool):
    usage = answered(vendor, with_usage(vendor, "7", stream), stream=stream).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 1, 8)
    assert usage.prompt_tokens_details is None


def test_fields_of_the_wrong_type_are_left_out():
    body = (
        b'{"id": 1, "created": 1e999, "service_tier": [1], "system_fingerprint": {}, "choices": [{"index": -1e999,'
        b'"logprobs": 3, "message": {"content": "fine", "annotations": 5, "refusal": 1, "function_call": "f"}}]}'
    )
    response = answered("openai", Raw(body=body))
    choice = response.primary_choice
    assert (response.created, response.service_tier, response.system_fingerprint) == (0, None, None)
    assert (choice.index, choice.logprobs, choice.message.content) == (0, None, "fine")
    assert (choice.message.annotations, choice.message.refusal, choice.message.function_call) == (None, None, None)


@BOTH
@STREAMING
@pytest.mark.parametrize("code", ["²", DIGITS, "-1", "٤٢٩", "1e999", ["x"], {"y": 1}])
def test_an_error_code_of_any_form_is_no_crash(vendor: str, stream: bool, code: Any):
    body = {"type": "error", "error": {"code": code, "message": "broke"}}
    raw = sse(body, named=True) if stream else Raw(body=json.dumps(body).encode())
    with pytest.raises(ProviderError, match="broke") as caught:
        answered(vendor, raw, stream=stream)
    assert caught.value.status is None or caught.value.status == 200
    assert len(caught.value.code or "") <= 200


@BOTH
@STREAMING
@pytest.mark.parametrize(
    "text",
    [
        f'{{"error": {{"code": {DIGITS}}}}}',
        f'{{"choices": {DIGITS}}}',
        "[" * 200_000,
        '{"choices": [{"message": ' + '{"a":' * 20_000,
        '"\ud800"',
        "\x00",
        "5",
        "null",
    ],
    ids=["digits-in-code", "digits", "deep", "deep-object", "surrogate", "nul", "number", "null"],
)
def test_what_is_no_reply_is_a_provider_error(vendor: str, stream: bool, text: str):
    body = text.encode("utf-8", "surrogatepass")
    if stream:
        name = b"event: message_start\n" if vendor == "anthropic" else b""
        raw = Raw(headers={"Content-Type": "text/event-stream"}, body=name + b"data: " + body + b"\n\n")
    else:
        raw = Raw(body=body)
    with pytest.raises(ProviderError):
        answered(vendor, raw, stream=stream)


ODD: list[Any] = [5, -1, True, "x", [], [5], {}, {"type": 5}, {"text": 5}, None, 10**30, {"type": "tool_use", "id": 5, "input": 5}]


@pytest.mark.slow
@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_odd_values_anywhere_in_a_reply_make_a_reply_or_a_provider_error(odd: Any):
    openai_choice = {"index": odd, "finish_reason": odd, "logprobs": odd}
    calls = [{"id": odd, "index": odd, "function": odd}, {"id": odd, "function": {"name": odd, "arguments": odd}}, odd]
    message = {"content": odd, "tool_calls": calls, "reasoning": odd, "annotations": odd, "refusal": odd}
    block = {"type": "tool_use", "id": odd, "name": odd, "input": odd}
    delta = {"type": "text_delta", "text": odd}
    replies: list[tuple[str, bool, list[Any]]] = [
        ("openai", False, [{"choices": [odd, {**openai_choice, "message": message}], "usage": odd, "created": odd}]),
        ("openai", False, [{"choices": odd}]),
        ("openai", True, [{"choices": [{"delta": message, "finish_reason": odd}], "usage": odd}, {"choices": odd}]),
        ("anthropic", False, [{"content": [odd, block, delta, {"type": "text", "text": odd}], "usage": odd}]),
        ("anthropic", False, [{"content": odd, "stop_reason": odd}]),
        (
            "anthropic",
            True,
            [
                {"type": "message_start", "message": odd},
                {"type": "content_block_start", "index": odd, "content_block": block},
                {"type": "content_block_start", "index": odd, "content_block": odd},
                {"type": "content_block_delta", "index": odd, "delta": delta},
                {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": odd}},
                {"type": "content_block_stop", "index": odd},
                {"type": "message_delta", "delta": odd, "usage": odd},
                {"type": "message_stop"},
            ],
        ),
    ]
    for vendor, stream, events in replies:
        raw = sse(*events, named=vendor == "anthropic") if stream else Raw(body=json.dumps(events[0]).encode())
        try:
            message = answered(vendor, raw, stream=stream).primary_choice.message
        except ProviderError:
            continue
        assert message.content is None or isinstance(message.content, str)
        for call in message.tool_calls or ():
            assert isinstance(call.id, str)
            assert isinstance(call.function.name, str)


@BOTH
def test_a_charset_that_is_none_is_no_crash(vendor: str):
    raw = Raw(status=500, headers={"Content-Type": "text/plain; charset=hex"}, body=b"zz")
    with pytest.raises(ProviderError):
        answered(vendor, raw)


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@BOTH
@STREAMING
@pytest.mark.parametrize("compressed", [False, True])
def test_a_body_without_end_is_given_up(vendor: str, stream: bool, compressed: bool):
    piece = b" " * (8 * MIB)
    if compressed:
        bomb = gzip.compress(b" " * (BODY_BYTES + MIB), 1)
        raw = Raw(headers={"Content-Encoding": "gzip"}, body=bomb)
    else:
        raw = Raw(chunks=[piece] * 9)
    with pytest.raises(ProviderError, match="64 MiB") as caught:
        answered(vendor, raw, stream=stream)
    assert (caught.value.code, caught.value.retryable) == ("too_large", False)


@BOTH
@pytest.mark.parametrize("lines", ["one", "many"])
def test_an_event_without_end_is_given_up(vendor: str, lines: str):
    piece = b"x" * MIB if lines == "one" else b"data: " + b"x" * (MIB - 7) + b"\n"
    raw = Raw(headers={"Content-Type": "text/event-stream"}, chunks=[b"data: ", *[piece] * (EVENT_BYTES // MIB + 1)])
    with pytest.raises(ProviderError, match="16 MiB"):
        answered(vendor, raw, stream=True)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("what", ["text", "arguments"])
def test_a_streamed_reply_that_says_too_much_is_given_up(vendor: str, what: str):
    piece = "x" * (4 * MIB)
    event: Any
    if vendor == "openai":
        fields = {"content": piece} if what == "text" else {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
        event = {"choices": [{"index": 0, "delta": fields}]}
        events = [event] * 17
    else:
        block: Any = {"type": "text", "text": ""} if what == "text" else {"type": "tool_use", "id": "c", "name": "t"}
        delta = {"type": "text_delta", "text": piece}
        if what == "arguments":
            delta = {"type": "input_json_delta", "partial_json": piece}
        start = {"type": "content_block_start", "index": 0, "content_block": block}
        events = [start, *[{"type": "content_block_delta", "index": 0, "delta": delta}] * 17]
    with pytest.raises(ProviderError, match="64 MiB"):
        answered(vendor, sse(*events, named=vendor == "anthropic"), stream=True)


@BOTH
def test_a_stream_of_many_small_events_has_no_end_of_its_own(vendor: str):
    """Only what is said is counted: pings and empty events may go on."""
    ping = b"event: ping\ndata: {\"type\": \"ping\", \"choices\": []}\r\n\r\n"
    filler = b": " + b"x" * MIB + b"\n\n"
    raw = with_usage(vendor, "7", True)
    last = raw.body or b"".join(raw.chunks or ())
    raw = Raw(headers=raw.headers, chunks=[ping, *[filler + ping] * 70, last])
    assert answered(vendor, raw, stream=True).primary_choice.message.content == "fine"


@BOTH
@STREAMING
def test_of_an_errors_body_the_beginning_is_read(vendor: str, stream: bool):
    bomb = gzip.compress(b"\n" * (100 * MIB), 1)
    for raw in (
        Raw(status=503, headers={"Content-Encoding": "gzip"}, body=bomb),
        Raw(status=503, chunks=[b"y" * MIB] * 5),
    ):
        with pytest.raises(ProviderError) as caught:
            answered(vendor, raw, stream=stream)
        assert (caught.value.status, caught.value.retryable) == (503, True)
        assert len(str(caught.value)) < 5000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_half_a_gigabyte_in_half_a_megabyte_is_not_held_in_memory():
    code = (
        "import re, zlib\n"
        "from rath.errors import ProviderError\n"
        "from tests.llm.test_hostile_replies import answered\n"
        "from tests.wire.server import Raw\n"
        "packer = zlib.compressobj(1, wbits=31)\n"
        "body = b''.join(packer.compress(bytes(2**20)) for _ in range(512)) + packer.flush()\n"
        "for vendor in ('openai', 'anthropic'):\n"
        "    for stream in (False, True):\n"
        "        try:\n"
        "            answered(vendor, Raw(headers={'Content-Encoding': 'gzip'}, body=body), stream=stream)\n"
        "        except ProviderError as error:\n"
        "            assert '64 MiB' in str(error), error\n"
        # `ru_maxrss` would count the process that this one was forked from.
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 350
