"""OpenAI's chat completions, and every server that speaks them: vLLM, Ollama, llama.cpp, OpenRouter, …

Replies are read as plain JSON, because compatible servers are sloppy where the SDK's models are strict: see
:func:`normalize_chat_completion` and :class:`_ChunkReader` for what is put up with.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import openai
from openai import AsyncOpenAI, AsyncStream

from rath.errors import ProviderError, UsageValueError
from rath.llm.bounds import bound_replies
from rath.llm.failure import Vendor, reply_json, stream_error
from rath.llm.reply_values import count, mapping, token_usage, words
from rath.llm.tool_args import distinct_call_ids, function_name, tool_call_part
from rath.llm.transport import Access, HttpChatClient, SdkClients
from rath.llm.types import (
    RathLLMAssistantMessage,
    RathLLMChatChoice,
    RathLLMChatRequest,
    RathLLMChatResponse,
    RathLLMFinishReason,
    RathLLMFunctionTool,
    RathLLMMessage,
    RathLLMStreamDelta,
    RathLLMTokenUsage,
    RathLLMToolCallPart,
)

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

__all__ = ["RathOpenAIChatClient", "normalize_chat_completion", "to_create_kwargs"]

VENDOR = Vendor(
    label="OpenAI",
    key_variable="OPENAI_API_KEY",
    url_variable="OPENAI_BASE_URL",
    model_variable="OPENAI_DEFAULT_MODEL",
    default_url="https://api.openai.com/v1",
    path="/chat/completions",
    stream_class=AsyncStream[object],
    api_error=openai.OpenAIError,
    status_error=openai.APIStatusError,
    connection_error=openai.APIConnectionError,
    timeout_error=openai.APITimeoutError,
)
_FINISH: dict[str, RathLLMFinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "function_call",
}
_OPTIONS = tuple(
    name
    for name in RathLLMChatRequest.__dataclass_fields__
    if name not in {"messages", "model", "tools", "extra_create_args"}
)


def _make_sdk(access: Access) -> AsyncOpenAI:
    timeout = openai.NOT_GIVEN if access.timeout_s is None else access.timeout_s
    # Retries are the run's business: it knows its budget, its deadline and who else waits for this provider.
    return AsyncOpenAI(
        api_key=access.api_key,
        base_url=access.base_url,
        timeout=timeout,
        max_retries=0,
        # A redirect would carry the prompts to whatever host it names.
        http_client=openai.DefaultAsyncHttpxClient(
            follow_redirects=False, event_hooks={"response": [bound_replies(VENDOR.label)]}
        ),
    )


class RathOpenAIChatClient(HttpChatClient):
    """A client for OpenAI's chat completions and compatible servers.

    The key is ``provider.api_key``, else ``OPENAI_API_KEY``; the address ``provider.base_url``, else
    ``OPENAI_BASE_URL``, else OpenAI's own; the model ``provider.model``, else ``OPENAI_DEFAULT_MODEL``. A server on
    this machine needs no key. Clients are cheap: those of one configuration share their connections. Of several
    choices (``n``) only the first is streamed.

    Raises:
        UsageValueError: there is no API key.
    """

    vendor = VENDOR
    sdk_clients = SdkClients(_make_sdk)

    def _arguments(self, request: RathLLMChatRequest, stream: bool) -> dict[str, Any]:
        arguments = to_create_kwargs(request, default_model=self.default_model)
        if stream:
            arguments["stream"] = True
            arguments.setdefault("stream_options", {"include_usage": True})
        return arguments

    def _response(self, reply: Mapping[str, Any]) -> RathLLMChatResponse:
        return _normalize(reply)

    def _reader(self) -> _ChunkReader:
        return _ChunkReader()


# -- requests --------------------------------------------------------------------------------------


def to_create_kwargs(req: RathLLMChatRequest, *, default_model: str | None) -> dict[str, Any]:
    """The keyword arguments of ``chat.completions.create`` for a request: what is ``None`` is left out.

    Raises:
        UsageValueError: neither the request nor ``default_model`` names a model.
    """
    model = req.model or default_model
    if not model:
        raise UsageValueError("no model: set Provider(model=…), e.g. Provider(model='openai:gpt-5.5')")
    arguments: dict[str, Any] = {
        "model": model,
        "messages": _wire_messages(req),
    }
    for name in _OPTIONS:
        value = getattr(req, name)
        if value is not None:
            arguments[name] = value
    if req.tools:
        arguments["tools"] = [_wire_tool(tool) for tool in req.tools]
    arguments.update(req.extra_create_args)
    return arguments


def _wire_messages(req: RathLLMChatRequest) -> list[dict[str, Any]]:
    known = frozenset(tool.name for tool in req.tools or ())
    return [_wire_message(message, known) for message in req.messages]


def _wire_message(message: RathLLMMessage, known: Container[str]) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        wire["name"] = message.name
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        wire["tool_calls"] = [_wire_call(call, known) for call in message.tool_calls]
    elif message.content is None:
        # Only a message with calls may go without content.
        wire["content"] = ""
    return wire


def _wire_call(call: Mapping[str, Any], known: Container[str]) -> Mapping[str, Any]:
    function = call.get("function") or {}
    arguments, given = function.get("arguments"), function.get("name")
    name = function_name(str(given or ""), known)
    if arguments and name == given and type(call) is dict and type(function) is dict:
        return call
    # Servers that parse the history's arguments fail at an empty text.
    return {**call, "function": {**function, "name": name, "arguments": arguments or "{}"}}


def _wire_tool(tool: RathLLMFunctionTool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.parameters
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


# -- whole replies ---------------------------------------------------------------------------------


def normalize_chat_completion(completion: ChatCompletion | Mapping[str, Any]) -> RathLLMChatResponse:
    """A completion of the SDK, or its JSON, as rath's response.

    Put up with: no usage, no or unknown finish reasons (``stop``, or ``tool_calls`` if there are calls),
    ``stop`` with calls, ``content`` that is null or a list of parts, calls without ids, arguments that are an
    object instead of text, ``reasoning`` for ``reasoning_content``. Empty content is ``None``.

    Raises:
        ProviderError: it has no choices.
    """
    if isinstance(completion, Mapping):
        return _normalize(completion)
    return _normalize(completion.model_dump(mode="json"))


def _normalize(payload: Mapping[str, Any]) -> RathLLMChatResponse:
    choices = payload.get("choices")
    if not isinstance(choices, list) or not any(isinstance(choice, Mapping) for choice in choices):
        raise ProviderError(f"{VENDOR.label} sent a reply without choices: {str(dict(payload))[:200]}")
    return RathLLMChatResponse(
        id=str(payload.get("id") or ""),
        choices=tuple(_choice(place, c) for place, c in enumerate(choices) if isinstance(c, Mapping)),
        created=count(payload.get("created")) or 0,
        model=str(payload.get("model") or ""),
        service_tier=words(payload.get("service_tier")),
        system_fingerprint=words(payload.get("system_fingerprint")),
        usage=_usage(payload.get("usage")),
        raw=payload,
    )


def _choice(place: int, choice: Mapping[str, Any]) -> RathLLMChatChoice:
    message = choice.get("message")
    if not isinstance(message, Mapping):
        message = {}
    calls = _tool_calls(message.get("tool_calls"))
    return RathLLMChatChoice(
        index=place if (index := count(choice.get("index"))) is None else index,
        finish_reason=_finish_reason(choice.get("finish_reason"), calls is not None),
        message=RathLLMAssistantMessage(
            content=_text(message.get("content")),
            refusal=words(message.get("refusal")),
            reasoning_content=_reasoning(message),
            tool_calls=calls,
            function_call=mapping(message.get("function_call")),
            annotations=_annotations(message.get("annotations")),
        ),
        logprobs=mapping(choice.get("logprobs")),
    )


def _annotations(annotations: object) -> tuple[Mapping[str, Any], ...] | None:
    if not isinstance(annotations, list):
        return None
    return tuple(entry for entry in annotations if isinstance(entry, Mapping)) or None


def _tool_calls(calls: object) -> tuple[RathLLMToolCallPart, ...] | None:
    entries = [entry for entry in calls if isinstance(entry, Mapping)] if isinstance(calls, list) else []
    if not entries:
        return None
    parts = []
    for call_id, entry in zip(distinct_call_ids(_id(entry) for entry in entries), entries, strict=True):
        name, arguments = _function(entry)
        parts.append(tool_call_part(call_id, name or "", arguments or ""))
    return tuple(parts)


def _function(entry: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Name and arguments of a call or of a fragment of one."""
    function = entry.get("function")
    if not isinstance(function, Mapping):
        return None, None
    name, arguments = function.get("name"), function.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        arguments = reply_json(arguments, VENDOR)
    return (None if name is None else str(name)), arguments


def _id(entry: Mapping[str, Any]) -> str | None:
    call_id = entry.get("id")
    return None if call_id in (None, "") else str(call_id)


def _text(content: object) -> str | None:
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, Mapping) else part for part in content)
        content = "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) and content else None


def _reasoning(message: Mapping[str, Any]) -> str | None:
    return _text(message.get("reasoning_content")) or _text(message.get("reasoning"))


def _finish_reason(reason: object, has_calls: bool) -> RathLLMFinishReason:
    known = _FINISH.get(reason) if isinstance(reason, str) else None
    if known is None or known == "stop":
        return "tool_calls" if has_calls else "stop"
    return known


def _usage(usage: object) -> RathLLMTokenUsage | None:
    if not isinstance(usage, Mapping):
        return None
    return token_usage(
        prompt=usage.get("prompt_tokens"),
        completion=usage.get("completion_tokens"),
        total=usage.get("total_tokens"),
        completion_details=usage.get("completion_tokens_details"),
        prompt_details=usage.get("prompt_tokens_details"),
    )


# -- streams ---------------------------------------------------------------------------------------


class _ChunkReader:
    """Chunks of a stream as deltas, every fragment of a tool call with the right ``tool_call_index``.

    Servers send fragments without an index, without an id, or several whole calls all at index 0; a new call
    is told by a new id, or by a name where the last call already has arguments.
    """

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}  # the server's index → the call it stands for now
        self._ids: list[str | None] = []  # one entry a call
        self._has_arguments: list[bool] = []
        self._chunks = 0

    def read(self, chunk: object) -> Iterator[RathLLMStreamDelta]:
        if not isinstance(chunk, Mapping):
            raise ProviderError(f"{VENDOR.label} sent a chunk that is no JSON object: {str(chunk)[:200]}")
        if chunk.get("error"):
            raise stream_error(chunk, VENDOR)
        self._chunks += 1
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, Mapping) and choice.get("index") in (0, None):
                yield from self._read_choice(choice)
        usage = _usage(chunk.get("usage"))
        if usage is not None:
            yield RathLLMStreamDelta(usage=usage)

    def finish(self) -> None:
        """The stream has ended."""
        if not self._chunks:
            raise ProviderError(f"{VENDOR.label} ended a stream that held nothing", code="connection", retryable=True)

    def _read_choice(self, choice: Mapping[str, Any]) -> Iterator[RathLLMStreamDelta]:
        delta = choice.get("delta")
        if not isinstance(delta, Mapping):
            delta = choice.get("message")  # what some servers send in the only chunk
        if isinstance(delta, Mapping):
            reasoning = _reasoning(delta)
            if reasoning is not None:
                yield RathLLMStreamDelta(reasoning_delta=reasoning)
            # A refusal is what the model says to the user; deltas have no other place for it.
            text = _text(delta.get("content")) or _text(delta.get("refusal"))
            if text is not None:
                yield RathLLMStreamDelta(content_delta=text)
            calls = delta.get("tool_calls")
            for entry in calls if isinstance(calls, list) else ():
                if isinstance(entry, Mapping):
                    yield self._read_call(entry)
        reason = choice.get("finish_reason")
        if reason is not None:
            yield RathLLMStreamDelta(finish_reason=_finish_reason(reason, bool(self._ids)))

    def _read_call(self, entry: Mapping[str, Any]) -> RathLLMStreamDelta:
        call_id = _id(entry)
        name, arguments = _function(entry)
        index = self._call_of(entry.get("index"), call_id, name)
        if call_id is not None:
            if call_id == self._ids[index]:
                name = None  # a server that repeats id and name in every fragment
            self._ids[index] = call_id
        if arguments:
            self._has_arguments[index] = True
        return RathLLMStreamDelta(
            tool_call_index=index,
            tool_call_id=call_id,
            tool_call_name_delta=name or None,
            tool_call_args_delta=arguments or None,
        )

    def _call_of(self, server_index: object, call_id: str | None, name: str | None) -> int:
        if isinstance(server_index, int):
            known = self._slots.get(server_index)
            if known is None or self._is_other(known, call_id, name):
                known = self._slots[server_index] = self._open()
            return known
        if call_id is not None and call_id in self._ids:
            return self._ids.index(call_id)
        if not self._ids or self._is_other(len(self._ids) - 1, call_id, name):
            return self._open()
        return len(self._ids) - 1

    def _is_other(self, index: int, call_id: str | None, name: str | None) -> bool:
        """Whether a fragment cannot belong to this call."""
        if call_id is not None and self._ids[index] is not None:
            return call_id != self._ids[index] and name is not None
        return bool(name) and self._has_arguments[index]

    def _open(self) -> int:
        self._ids.append(None)
        self._has_arguments.append(False)
        return len(self._ids) - 1
