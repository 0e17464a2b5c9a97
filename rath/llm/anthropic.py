"""Anthropic's messages API.

Its form differs from chat completions; what rath's requests say is said in that form:

* System and developer messages become ``system``, joined by blank lines.
* A tool's result is a block of a *user* message, and roles alternate: results and texts of the user that
  follow each other become one message, results first. So do neighbouring assistant messages. Empty texts are
  left out; they are refused.
* ``max_tokens`` is required: 4,096 if the request sets none.
* ``response_format`` with a JSON schema becomes ``output_config.format``. What cannot be said and would be
  missed is refused: a ``response_format`` without a schema, ``n > 1``.
* Dropped, because it only tunes: ``seed, frequency_penalty, presence_penalty, logit_bias, logprobs,
  top_logprobs, reasoning_effort, verbosity, metadata, store, service_tier``, and a tool's ``strict``.
  ``extra_create_args`` is passed as it is: ``{"thinking": …}``, ``{"output_config": {"effort": "high"}}``.

The model's thinking is read (as reasoning) and not sent back, so extended thinking does not go with tools.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import anthropic
from anthropic import AsyncAnthropic, AsyncStream

from rath.errors import ProviderError, UsageValueError
from rath.llm.bounds import bound_replies
from rath.llm.failure import Vendor, reply_json, stream_error
from rath.llm.reply_values import count, token_usage, words
from rath.llm.tool_args import distinct_call_ids, function_name, parse_tool_arguments, tool_call_part
from rath.llm.transport import Access, HttpChatClient, SdkClients
from rath.llm.types import (
    RathLLMAssistantMessage,
    RathLLMChatChoice,
    RathLLMChatRequest,
    RathLLMChatResponse,
    RathLLMFinishReason,
    RathLLMMessage,
    RathLLMStreamDelta,
    RathLLMTokenUsage,
)

__all__ = [
    "RathAnthropicChatClient",
    "build_anthropic_kwargs",
    "build_anthropic_stream_kwargs",
    "normalize_anthropic_response",
]

VENDOR = Vendor(
    label="Anthropic",
    key_variable="ANTHROPIC_API_KEY",
    url_variable="ANTHROPIC_BASE_URL",
    model_variable="ANTHROPIC_DEFAULT_MODEL",
    default_url="https://api.anthropic.com",
    path="/v1/messages",
    stream_class=AsyncStream[object],
    api_error=anthropic.AnthropicError,
    status_error=anthropic.APIStatusError,
    connection_error=anthropic.APIConnectionError,
    timeout_error=anthropic.APITimeoutError,
)
DEFAULT_MAX_TOKENS = 4096
_FINISH: dict[str, RathLLMFinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_ID = re.compile(r"[a-zA-Z0-9_-]+")
_Blocks = list[dict[str, Any]]


def _make_sdk(access: Access) -> AsyncAnthropic:
    timeout = anthropic.NOT_GIVEN if access.timeout_s is None else access.timeout_s
    # Retries are the run's business: it knows its budget, its deadline and who else waits for this provider.
    sdk = AsyncAnthropic(
        api_key=access.api_key,
        base_url=access.base_url,
        timeout=timeout,
        max_retries=0,
        # A redirect would carry the prompts to whatever host it names.
        http_client=anthropic.DefaultAsyncHttpxClient(
            follow_redirects=False, event_hooks={"response": [bound_replies(VENDOR.label)]}
        ),
    )
    # Some versions add the environment's token to a key that was passed, whatever the address.
    sdk.auth_token = None
    return sdk


class RathAnthropicChatClient(HttpChatClient):
    """A client for Anthropic's messages API.

    The key is ``provider.api_key``, else ``ANTHROPIC_API_KEY``; the address ``provider.base_url`` (without
    ``/v1``), else ``ANTHROPIC_BASE_URL``, else Anthropic's own; the model ``provider.model``, else
    ``ANTHROPIC_DEFAULT_MODEL``. A server on this machine needs no key. Clients are cheap: those of one
    configuration share their connections.

    Raises:
        UsageValueError: there is no API key.
    """

    vendor = VENDOR
    sdk_clients = SdkClients(_make_sdk)

    def _arguments(self, request: RathLLMChatRequest, stream: bool) -> dict[str, Any]:
        build = build_anthropic_stream_kwargs if stream else build_anthropic_kwargs
        return build(request, default_model=self.default_model)

    def _response(self, reply: Mapping[str, Any]) -> RathLLMChatResponse:
        return normalize_anthropic_response(reply)

    def _reader(self) -> _EventReader:
        return _EventReader()


# -- requests --------------------------------------------------------------------------------------


def build_anthropic_kwargs(req: RathLLMChatRequest, *, default_model: str | None) -> dict[str, Any]:
    """The keyword arguments of ``messages.create`` for a request.

    Raises:
        UsageValueError: neither the request nor ``default_model`` names a model, or the request asks for
            something that the messages API has not (see the module's page).
    """
    model = req.model or default_model
    if not model:
        raise UsageValueError("no model: set Provider(model=…), e.g. Provider(model='anthropic:claude-sonnet-4-5')")
    if req.n is not None and req.n > 1:
        raise UsageValueError(f"n={req.n}: Anthropic's models give one reply a request; make several requests")
    known = frozenset(tool.name for tool in req.tools or ())
    system, messages = _conversation(req.messages, known)
    arguments: dict[str, Any] = {
        "model": model,
        "max_tokens": req.max_tokens or req.max_completion_tokens or DEFAULT_MAX_TOKENS,
        "messages": messages,
    }
    if system:
        arguments["system"] = system
    if req.temperature is not None:
        arguments["temperature"] = req.temperature
    if req.top_p is not None:
        arguments["top_p"] = req.top_p
    if req.stop:
        arguments["stop_sequences"] = [req.stop] if isinstance(req.stop, str) else list(req.stop)
    if req.user is not None:
        arguments["metadata"] = {"user_id": req.user}
    output_format = _output_format(req.response_format)
    if output_format is not None:
        arguments["output_config"] = {"format": output_format}
    arguments.update(_tools(req))
    arguments.update(req.extra_create_args)
    return arguments


def build_anthropic_stream_kwargs(req: RathLLMChatRequest, *, default_model: str | None) -> dict[str, Any]:
    """As :func:`build_anthropic_kwargs`, for a reply as a stream of events."""
    return {**build_anthropic_kwargs(req, default_model=default_model), "stream": True}


def _conversation(messages: Iterable[RathLLMMessage], known: Container[str]) -> tuple[str, list[dict[str, Any]]]:
    """The system prompt, and the messages in alternating roles."""
    ids = _ToolIds()
    system: list[str] = []
    turns: list[tuple[str, _Blocks, _Blocks]] = []  # role, tool results, everything else
    for message in messages:
        if message.role in ("system", "developer"):
            if message.content:
                system.append(message.content)
            continue
        role = "assistant" if message.role == "assistant" else "user"
        results, others = _blocks(message, ids, known)
        if not results and not others:
            continue
        if not turns or turns[-1][0] != role:
            turns.append((role, [], []))
        turns[-1][1].extend(results)
        turns[-1][2].extend(others)
    return "\n\n".join(system), [_turn(role, results + others) for role, results, others in turns]


def _blocks(message: RathLLMMessage, ids: _ToolIds, known: Container[str]) -> tuple[_Blocks, _Blocks]:
    if message.role == "tool":
        result = {"type": "tool_result", "tool_use_id": ids.of_result(message.tool_call_id or "")}
        if message.content:
            result["content"] = message.content
        return [result], []
    blocks: _Blocks = []
    if message.content and not message.content.isspace():
        blocks.append({"type": "text", "text": message.content})
    for call in message.tool_calls or ():
        function = call.get("function") or {}
        blocks.append(
            {
                "type": "tool_use",
                "id": ids.of_call(str(call.get("id") or "")),
                "name": function_name(str(function.get("name") or ""), known),
                "input": _input(function.get("arguments")),
            }
        )
    return [], blocks


def _turn(role: str, blocks: _Blocks) -> dict[str, Any]:
    if len(blocks) == 1 and blocks[0]["type"] == "text":
        return {"role": role, "content": blocks[0]["text"]}
    return {"role": role, "content": blocks}


def _input(arguments: str | None) -> dict[str, Any]:
    parsed, wrong = parse_tool_arguments(arguments)
    # An object is required. What the model wrote instead stays visible to it, next to the error it was
    # answered with.
    return {"invalid_arguments": arguments} if wrong or parsed is None else parsed


class _ToolIds:
    """Ids as Anthropic takes them, whatever models a history comes from: distinct in the whole of it, in certain characters.

    Some servers count each reply's calls from 0. What an id becomes depends on what stands before it, so that the history of
    the next request begins with the same bytes.
    """

    def __init__(self) -> None:
        self._used: dict[str, int] = {}
        self._now: dict[str, str] = {}

    def of_call(self, call_id: str) -> str:
        before = self._used.get(call_id, 0)
        self._used[call_id] = before + 1
        self._now[call_id] = wire = _hashed(f"{before}:{call_id}") if before else _fitting(call_id)
        return wire

    def of_result(self, call_id: str) -> str:
        """That of the last call with this id."""
        return self._now.get(call_id) or _fitting(call_id)


def _fitting(call_id: str) -> str:
    return call_id if _ID.fullmatch(call_id) else _hashed(call_id)


def _hashed(call_id: str) -> str:
    return f"call_{blake2b(call_id.encode('utf-8', 'surrogatepass'), digest_size=12).hexdigest()}"


def _tools(req: RathLLMChatRequest) -> dict[str, Any]:
    if not req.tools:
        # Calls in the history need their tools declared, even where no more calls are wanted.
        names = dict.fromkeys(
            function_name(str((call.get("function") or {}).get("name") or ""), ())
            for message in req.messages
            for call in message.tool_calls or ()
        )
        if not names:
            return {}
        declared = [{"name": name, "input_schema": {"type": "object"}} for name in names]
        return {"tools": declared, "tool_choice": {"type": "none"}}
    tools = []
    for tool in req.tools:
        wire: dict[str, Any] = {"name": tool.name}
        if tool.description:
            wire["description"] = tool.description
        wire["input_schema"] = {"type": "object", **tool.parameters}
        tools.append(wire)
    arguments: dict[str, Any] = {"tools": tools}
    choice = _tool_choice(req.tool_choice)
    if req.parallel_tool_calls is False and (choice or {}).get("type") != "none":
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice is not None:
        arguments["tool_choice"] = choice
    return arguments


def _tool_choice(choice: object) -> dict[str, Any] | None:
    if choice is None:
        return None
    if isinstance(choice, Mapping):
        function = choice.get("function")
        if isinstance(function, Mapping):
            return {"type": "tool", "name": function.get("name")}
        return dict(choice)
    types = {"none": "none", "auto": "auto", "required": "any", "any": "any"}
    if choice not in types:
        raise UsageValueError(f"tool_choice {choice!r} is none of 'auto', 'none', 'required' and a function to call")
    return {"type": types[str(choice)]}


def _output_format(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if response_format is None or response_format.get("type") == "text":
        return None
    schema = (response_format.get("json_schema") or {}).get("schema")
    if response_format.get("type") != "json_schema" or schema is None:
        raise UsageValueError(
            f"response_format of type {response_format.get('type')!r}: Anthropic's models take 'text', or "
            "'json_schema' with a schema"
        )
    return {"type": "json_schema", "schema": schema}


# -- whole replies ---------------------------------------------------------------------------------


def normalize_anthropic_response(payload: Mapping[str, Any]) -> RathLLMChatResponse:
    """A message of Anthropic's API as rath's response.

    Texts are joined, thinking becomes reasoning, cached tokens count as prompt tokens.

    Raises:
        ProviderError: it has no content.
    """
    blocks = payload.get("content")
    if not isinstance(blocks, list):
        raise ProviderError(f"{VENDOR.label} sent a reply without content: {str(dict(payload))[:200]}")
    entries = [block for block in blocks if isinstance(block, Mapping)]
    uses = [block for block in entries if block.get("type") == "tool_use"]
    ids = distinct_call_ids(str(block.get("id") or "") for block in uses)
    calls = tuple(
        tool_call_part(call_id, str(block.get("name") or ""), reply_json(block.get("input") or {}, VENDOR))
        for call_id, block in zip(ids, uses, strict=True)
    )
    message = RathLLMAssistantMessage(
        content=_joined(entries, "text", "text"),
        reasoning_content=_joined(entries, "thinking", "thinking"),
        tool_calls=calls or None,
    )
    finish = _finish_reason(payload.get("stop_reason"), bool(calls))
    return RathLLMChatResponse(
        id=str(payload.get("id") or ""),
        choices=(RathLLMChatChoice(0, finish, message),),
        created=0,
        model=str(payload.get("model") or ""),
        usage=_usage(payload.get("usage")),
        raw=payload,
    )


def _joined(blocks: Iterable[Mapping[str, Any]], kind: str, key: str) -> str | None:
    return "".join(words(block.get(key)) or "" for block in blocks if block.get("type") == kind) or None


def _finish_reason(reason: object, has_calls: bool) -> RathLLMFinishReason:
    known = _FINISH.get(reason) if isinstance(reason, str) else None
    if known is None or known == "stop":
        return "tool_calls" if has_calls else "stop"
    return known


def _usage(usage: object) -> RathLLMTokenUsage | None:
    if not isinstance(usage, Mapping):
        return None
    parts = [
        count(usage.get(name) or 0) for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    ]
    new, read, written = parts
    if new is None or read is None or written is None:
        return None
    # `cached_tokens` is what chat completions call the tokens that were read from a cache.
    details = {"cached_tokens": read, "cache_creation_tokens": written} if read or written else None
    return token_usage(prompt=new + read + written, completion=usage.get("output_tokens"), prompt_details=details)


# -- streams ---------------------------------------------------------------------------------------


class _EventReader:
    """Events of a stream as deltas. Blocks are numbered together by the API; tool calls are numbered here."""

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}  # block → call
        self._inputs: dict[int, Any] = {}  # block → an input that came with its start
        self._usage: dict[str, Any] = {}
        self._ended = False

    def read(self, event: object) -> Iterator[RathLLMStreamDelta]:
        if not isinstance(event, Mapping):
            raise ProviderError(f"{VENDOR.label} sent an event that is no JSON object: {str(event)[:200]}")
        match event.get("type"):
            case "message_start":
                self._add_usage(_inner(event, "message").get("usage"))
            case "content_block_start":
                yield from self._start_block(_number(event), _inner(event, "content_block"))
            case "content_block_delta":
                yield from self._extend_block(_number(event), _inner(event, "delta"))
            case "content_block_stop":
                yield from self._stop_block(_number(event))
            case "message_delta":
                self._add_usage(event.get("usage"))
                reason = _inner(event, "delta").get("stop_reason")
                if reason is not None:
                    self._ended = True
                    yield RathLLMStreamDelta(finish_reason=_finish_reason(reason, bool(self._calls)))
                usage = _usage(self._usage) if self._usage else None
                if usage is not None:
                    yield RathLLMStreamDelta(usage=usage)
            case "message_stop":
                self._ended = True
            case "error":
                raise stream_error(event, VENDOR)

    def finish(self) -> None:
        """The stream has ended."""
        if not self._ended:
            raise ProviderError(
                f"{VENDOR.label} ended a stream before its message was whole",
                code="connection",
                retryable=True,
            )

    def _add_usage(self, usage: object) -> None:
        # The last event has the totals, and in some servers only those that changed.
        if isinstance(usage, Mapping):
            self._usage.update({name: value for name, value in usage.items() if value is not None})

    def _start_block(self, number: int, block: Mapping[str, Any]) -> Iterator[RathLLMStreamDelta]:
        match block.get("type"):
            case "tool_use":
                index = self._calls[number] = len(self._calls)
                if block.get("input"):
                    self._inputs[number] = block["input"]
                yield RathLLMStreamDelta(
                    tool_call_index=index,
                    tool_call_id=words(block.get("id")),
                    tool_call_name_delta=words(block.get("name")),
                )
            case "text" if text := words(block.get("text")):
                yield RathLLMStreamDelta(content_delta=text)
            case "thinking" if text := words(block.get("thinking")):
                yield RathLLMStreamDelta(reasoning_delta=text)

    def _extend_block(self, number: int, delta: Mapping[str, Any]) -> Iterator[RathLLMStreamDelta]:
        match delta.get("type"):
            case "text_delta" if text := words(delta.get("text")):
                yield RathLLMStreamDelta(content_delta=text)
            case "thinking_delta" if text := words(delta.get("thinking")):
                yield RathLLMStreamDelta(reasoning_delta=text)
            case "input_json_delta" if number in self._calls and (text := words(delta.get("partial_json"))):
                self._inputs.pop(number, None)
                yield RathLLMStreamDelta(tool_call_index=self._calls[number], tool_call_args_delta=text)

    def _stop_block(self, number: int) -> Iterator[RathLLMStreamDelta]:
        whole = self._inputs.pop(number, None)
        if whole is not None:
            yield RathLLMStreamDelta(tool_call_index=self._calls[number], tool_call_args_delta=reply_json(whole, VENDOR))


def _number(event: Mapping[str, Any]) -> int:
    index = event.get("index")
    return index if isinstance(index, int) else 0


def _inner(event: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = event.get(name)
    return inner if isinstance(inner, Mapping) else {}
