"""What goes to a model and what comes back: frozen dataclasses in the shape of OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "RathLLMAssistantMessage",
    "RathLLMChatChoice",
    "RathLLMChatRequest",
    "RathLLMChatResponse",
    "RathLLMFinishReason",
    "RathLLMFunctionTool",
    "RathLLMMessage",
    "RathLLMRole",
    "RathLLMStreamDelta",
    "RathLLMTokenUsage",
    "RathLLMToolCallFunction",
    "RathLLMToolCallPart",
    "add_usage",
]

RathLLMRole = Literal["system", "user", "assistant", "tool", "developer"]
"""Who speaks in a message."""
RathLLMFinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]
"""Why a reply ended."""


@dataclass(frozen=True, slots=True)
class RathLLMMessage:
    """One message of a request. ``tool_calls`` are in wire form: ``{"id", "type", "function": {"name", "arguments"}}``."""

    role: str
    content: str | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class RathLLMFunctionTool:
    """A function the model may call; ``parameters`` is its JSON Schema."""

    name: str
    parameters: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


@dataclass(frozen=True, kw_only=True)
class RathLLMChatRequest:
    """One completion's request. Fields that are ``None`` are left to the provider.

    ``messages`` may be built late: a run sends requests whose history grows by a few rows a round, and a client that
    never looks at all of it must not pay for it (:meth:`deferred`). To a reader there is no difference.
    """

    messages: tuple[RathLLMMessage, ...]
    model: str | None = None
    tools: tuple[RathLLMFunctionTool, ...] | None = None
    tool_choice: Any | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, int] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    store: bool | None = None
    service_tier: str | None = None
    extra_create_args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def deferred(
        cls, options: Mapping[str, Any], messages: Callable[[], tuple[RathLLMMessage, ...]], *, turn: int | None = None
    ) -> RathLLMChatRequest:
        """A request whose ``messages`` are made by calling ``messages`` when somebody first reads them.

        Args:
            options: every other field, by name (``request_options`` of a provider); not copied per field.
            messages: must return the same messages whenever it is called.
            turn: which model call of its run this is, from 1, for clients that can use it.
        """
        request = object.__new__(cls)
        request.__dict__.update(options)
        request.__dict__["_messages"] = messages
        if turn is not None:
            request.__dict__["_turn"] = turn - 1
        return request

    def __getattr__(self, name: str) -> Any:
        # Reached only for what the instance lacks: the messages of a deferred request.
        if name == "messages" and "_messages" in self.__dict__:
            made = self.__dict__["messages"] = self.__dict__["_messages"]()
            return made
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_request, ({name: getattr(self, name) for name in self.__dataclass_fields__},)


def _rebuild_request(fields: dict[str, Any]) -> RathLLMChatRequest:
    return RathLLMChatRequest(**fields)


@dataclass(frozen=True, slots=True)
class RathLLMTokenUsage:
    """Tokens of one completion, or of several added up."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: Mapping[str, Any] | None = None
    prompt_tokens_details: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RathLLMToolCallFunction:
    """The name and arguments of a tool call: as the model wrote them, and parsed."""

    name: str
    arguments: str
    arguments_parsed: dict[str, Any] | None = None
    arguments_parse_error: bool = False


@dataclass(frozen=True, slots=True)
class RathLLMToolCallPart:
    """One tool call of an assistant message."""

    id: str
    type: str
    function: RathLLMToolCallFunction


@dataclass(frozen=True, slots=True)
class RathLLMAssistantMessage:
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[RathLLMToolCallPart, ...] | None = None
    function_call: Mapping[str, Any] | None = None
    annotations: tuple[Mapping[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class RathLLMChatChoice:
    """One of a response's alternatives, with why it ended."""

    index: int
    finish_reason: RathLLMFinishReason
    message: RathLLMAssistantMessage
    logprobs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RathLLMChatResponse:
    """A whole completion."""

    id: str
    choices: tuple[RathLLMChatChoice, ...]
    created: int
    model: str
    object_type: Literal["chat.completion"] = "chat.completion"
    service_tier: str | None = None
    system_fingerprint: str | None = None
    usage: RathLLMTokenUsage | None = None
    raw: Mapping[str, Any] | None = None

    @property
    def primary_choice(self) -> RathLLMChatChoice:
        """The first choice. Raises ``IndexError`` when there is none."""
        if not self.choices:
            raise IndexError("the model's reply has no choices")
        return self.choices[0]


@dataclass(frozen=True, slots=True)
class RathLLMStreamDelta:
    """One fragment of a streamed completion; any subset of the fields is set.

    Fragments of one tool call have the same ``tool_call_index``; an id overwrites, names and arguments are concatenated.
    ``usage`` comes with the last fragments, if the provider reports it. ``reasoning_delta`` carries the model's visible
    reasoning where a provider streams it.
    """

    content_delta: str | None = None
    tool_call_index: int | None = None
    tool_call_id: str | None = None
    tool_call_name_delta: str | None = None
    tool_call_args_delta: str | None = None
    finish_reason: RathLLMFinishReason | None = None
    usage: RathLLMTokenUsage | None = None
    reasoning_delta: str | None = None


def counted(usage: RathLLMTokenUsage | None) -> RathLLMTokenUsage | None:
    """``usage``, if its counts can be added up; else nobody knows it. Executors of others send null, and text."""
    if usage is None or not all(type(n) is int for n in (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)):
        return None
    return usage


def add_usage(a: RathLLMTokenUsage | None, b: RathLLMTokenUsage | None) -> RathLLMTokenUsage | None:
    """The sum of two usages; ``None`` only when both are. Breakdowns do not add up across calls and are dropped."""
    if a is None:
        return b
    if b is None:
        return a
    return RathLLMTokenUsage(
        a.prompt_tokens + b.prompt_tokens,
        a.completion_tokens + b.completion_tokens,
        a.total_tokens + b.total_tokens,
    )
