"""A model that says what it is told to: for tests, demos, notebooks and benchmarks. No network, no key.

A script is a sequence of replies. A reply is

* a ``str``: the text the model says;
* a :class:`Reply`, or a ``dict`` of its fields: texts, tool calls, usage, delays, errors;
* an exception: raised instead of an answer;
* a function of the request that returns one of these (or an awaitable of one). It runs on the engine's loop:
  it must be quick.

A script can be a JSON file, named by ``Provider(model="scripted:path.json")``: a list of texts and objects,
or an object ``{"replies": […], "latency_s": …, "pace_s": …, "chunk_chars": …, "loop": …, "by_turn": …}``::

    ["Let me look.",
     {"tool_calls": [{"name": "files_list", "arguments": {"path": "."}}], "usage": {"prompt_tokens": 9,
     "completion_tokens": 3}}, {"error": {"status": 429, "message": "slow down", "retryable": true}},
     "Done."]
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias, cast

from rath.core.encoding import decode_json, encode_json
from rath.errors import ProviderError, RathError, UsageError, UsageTypeError, UsageValueError
from rath.llm.client import ChatClientBase
from rath.llm.fold import response_deltas
from rath.llm.provider import Provider
from rath.llm.tool_args import tool_call_part
from rath.llm.types import (
    RathLLMAssistantMessage,
    RathLLMChatChoice,
    RathLLMChatRequest,
    RathLLMChatResponse,
    RathLLMFinishReason,
    RathLLMStreamDelta,
    RathLLMTokenUsage,
    RathLLMToolCallPart,
)

__all__ = ["Reply", "ReplyLike", "ScriptedClient"]

KIND = "scripted"
CHUNK_CHARS = 24
RECORDED = 1000


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One reply of a script.

    Args:
        text: what the model says.
        reasoning: its visible reasoning.
        tool_calls: its calls, each ``{"name": …, "arguments": dict or text as the model wrote it, "id": …}``;
            ids are made up where there are none.
        finish_reason: ``tool_calls`` if there are calls, else ``stop``, unless given.
        usage: tokens: ``{"prompt_tokens": …, "completion_tokens": …}``.
        latency_s: seconds before the reply begins, instead of the client's.
        pace_s: seconds between the pieces of a streamed reply, instead of the client's.
        chunks: the pieces of the text when it is streamed; ``text`` is their concatenation unless given.
        error: raised instead of an answer; in a stream, after the pieces of ``text``. An exception, or the
            fields of a :class:`ProviderError`: ``{"message": …, "status": …, "code": …, "retryable": …,
            "retry_after_s": …}``.
    """

    text: str | None = None
    reasoning: str | None = None
    tool_calls: Sequence[Mapping[str, Any]] = ()
    finish_reason: RathLLMFinishReason | None = None
    usage: RathLLMTokenUsage | Mapping[str, Any] | None = None
    latency_s: float | None = None
    pace_s: float | None = None
    chunks: Sequence[str] | None = None
    error: BaseException | Mapping[str, Any] | None = None


ReplyLike: TypeAlias = "str | Reply | Mapping[str, Any] | BaseException | Callable[[RathLLMChatRequest], Any]"


class ScriptedClient(ChatClientBase):
    """A model client that answers from a script. One may serve any number of overlapping runs.

    Args:
        replies: the script; see the module's page.
        latency_s: seconds before each reply begins.
        pace_s: seconds between the pieces of a streamed reply.
        chunk_chars: how long the pieces of a streamed reply are.
        loop: begin again after the last reply.
        by_turn: which reply a call gets. ``False``: the next one, whoever calls. ``True``: the one of the
            call's turn in its own run, so that each of many overlapping runs gets the whole script; a retried
            call gets its reply again.
        record: keep the requests in ``requests``: ``True`` for the last 1,000, or how many; none unless
            asked for, because a request that is kept keeps its session's rows.
        provider: the configuration that :attr:`provider` shows; made from ``model`` if not given.
        model: the name that responses carry.

    When the replies run out, a call raises a ``ProviderError`` that says how many there were.

    Raises:
        UsageTypeError: a reply is none of the forms above.
        UsageValueError: a reply has unknown fields, or a number is out of range.
    """

    def __init__(
        self,
        replies: Sequence[ReplyLike],
        *,
        latency_s: float = 0.0,
        pace_s: float = 0.0,
        chunk_chars: int = CHUNK_CHARS,
        loop: bool = False,
        by_turn: bool = False,
        record: bool | int = False,
        provider: Provider | None = None,
        model: str = KIND,
    ) -> None:
        if isinstance(replies, str | Mapping) or not isinstance(replies, Sequence):
            raise UsageTypeError(f"a script is a list of replies, not {type(replies).__name__}")
        if chunk_chars < 1 or latency_s < 0 or pace_s < 0:
            raise UsageValueError("chunk_chars must be at least 1, latency_s and pace_s not negative")
        self.requests: deque[RathLLMChatRequest] = deque(maxlen=RECORDED if record is True else int(record))
        self._record = bool(record)
        self._latency_s = latency_s
        self._pace_s = pace_s
        self._chunk_chars = chunk_chars
        self._loop = loop
        self._by_turn = by_turn
        self._model = model
        self._provider = provider or Provider(model=model, provider_kind=KIND)
        self._script = [_read(reply, place) for place, reply in enumerate(replies)]
        # Most replies are the same whenever they are given: made once, shared by all who get them.
        self._ready = [self._make(r, place) if isinstance(r, Reply) else None for place, r in enumerate(self._script)]
        self._calls = itertools.count()  # its `next` is atomic

    @classmethod
    def from_provider(cls, provider: Provider) -> ScriptedClient:
        """What a provider of kind ``scripted`` means: the client it carries, else one for the file it names.

        Each client begins its file anew.

        Raises:
            UsageError: the file cannot be read, or is no script.
        """
        if isinstance(provider.client, cls):
            return provider.client
        path = Path(provider.model or "")
        try:
            script = decode_json(path.read_bytes())
            settings = dict(script) if isinstance(script, dict) else {"replies": script}
            return cls(settings.pop("replies", None), provider=provider, model=str(path), **settings)
        except (OSError, ValueError, TypeError, RecursionError, RathError) as error:
            raise UsageError(f"cannot use {str(path)!r} as a model's script: {error}") from error

    def as_provider(self, **settings: Any) -> Provider:
        """A provider that uses this very client: ``Agent("…", ScriptedClient(["Hello."]).as_provider())``.

        It carries the client (``Provider.client``): there is no registration to undo, and the client lives as
        long as the provider or a copy of it. ``settings`` are further fields of the provider.
        """
        return Provider(**{"model": self._model, "provider_kind": KIND, "client": self, **settings})

    @property
    def remaining(self) -> int | None:
        """How many replies no call has taken yet; ``None`` with ``loop`` or ``by_turn``."""
        if self._loop or self._by_turn:
            return None
        taken = int(cast(tuple[int], self._calls.__reduce__()[1])[0])
        return max(0, len(self._script) - taken)

    def __repr__(self) -> str:
        return f"ScriptedClient({len(self._script)} replies)"

    def __deepcopy__(self, memo: dict[int, Any]) -> ScriptedClient:
        # `dataclasses.asdict` copies a provider's values; a client is one whatever holds it.
        return self

    async def open_completion(
        self, request: RathLLMChatRequest, *, stream: bool
    ) -> AsyncGenerator[RathLLMStreamDelta | RathLLMChatResponse, None]:
        """The next reply; see :class:`rath.core.ports.ModelClient`. Looks at the messages only if it must."""
        if self._record:
            self.requests.append(request)
        number = self._turn_of(request) if self._by_turn else next(self._calls)
        ready = self._ready[number] if number < len(self._ready) else None
        if ready is None:
            ready = await self._prepare(number, request)
        if ready.latency_s:
            await asyncio.sleep(ready.latency_s)
        if stream:
            first = True
            for delta in ready.deltas:
                if ready.pace_s and not first:
                    await asyncio.sleep(ready.pace_s)
                first = False
                yield delta
        if ready.error is not None:
            raise ready.error()
        if not stream:
            yield ready.response

    @staticmethod
    def _turn_of(request: RathLLMChatRequest) -> int:
        # A run says which turn this is; only requests made by hand have to be counted through.
        turn = request.__dict__.get("_turn")
        if turn is not None:
            return cast(int, turn)
        return sum(1 for message in request.messages if message.role == "assistant")

    async def _prepare(self, number: int, request: RathLLMChatRequest) -> _Ready:
        """The reply to call ``number`` where none lies ready: a function's, or one that comes again."""
        place = number
        if self._loop and self._script:
            place = number % len(self._script)
        elif number >= len(self._script):
            count = len(self._script)
            raise ProviderError(
                f"the script has {count} {'reply' if count == 1 else 'replies'}, and this is model call "
                f"{number + 1}: add replies, or use loop=True"
            )
        reply = self._script[place]
        if not isinstance(reply, Reply):
            made = reply(request)
            if inspect.isawaitable(made):
                made = await made
            reply = _read(made, place)
            if not isinstance(reply, Reply):
                raise UsageTypeError(f"the function at place {place} of the script returned another function")
            return self._make(reply, number)
        ready = cast(_Ready, self._ready[place])
        # In one transcript no two calls may have the same id.
        return ready if ready.has_own_ids else ready.again(number)

    def _make(self, reply: Reply, number: int) -> _Ready:
        calls = tuple(_call(entry, number, place) for place, entry in enumerate(reply.tool_calls)) or None
        text = "".join(reply.chunks) if reply.text is None and reply.chunks is not None else reply.text
        message = RathLLMAssistantMessage(content=text, reasoning_content=reply.reasoning, tool_calls=calls)
        finish = reply.finish_reason or ("tool_calls" if calls else "stop")
        response = RathLLMChatResponse(
            id=f"scripted-{number}",
            choices=(RathLLMChatChoice(0, finish, message),),
            created=0,
            model=self._model,
            usage=_usage(reply.usage),
        )
        return _Ready(
            response=response,
            reply=reply,
            chunk_chars=self._chunk_chars,
            latency_s=self._latency_s if reply.latency_s is None else reply.latency_s,
            pace_s=self._pace_s if reply.pace_s is None else reply.pace_s,
        )


class _Ready:
    """A reply in the form in which it is given."""

    __slots__ = (
        "_chunk_chars",
        "_deltas",
        "_reply",
        "error",
        "has_own_ids",
        "latency_s",
        "pace_s",
        "response",
    )

    def __init__(
        self,
        *,
        response: RathLLMChatResponse,
        reply: Reply,
        chunk_chars: int,
        latency_s: float,
        pace_s: float,
    ) -> None:
        self.response = response
        self.latency_s = latency_s
        self.pace_s = pace_s
        self.error = None if reply.error is None else _error_maker(reply.error)
        self.has_own_ids = all("id" in call for call in reply.tool_calls)
        self._reply = reply
        self._chunk_chars = chunk_chars
        self._deltas: tuple[RathLLMStreamDelta, ...] | None = None

    def again(self, number: int) -> _Ready:
        """The same reply to another call, its tool calls under new ids; nothing is parsed anew."""
        old = self.response
        choice = old.choices[0]
        message = choice.message
        calls = tuple(
            part if "id" in entry else RathLLMToolCallPart(f"call_{number}_{place}", part.type, part.function)
            for place, (entry, part) in enumerate(zip(self._reply.tool_calls, message.tool_calls or (), strict=True))
        )
        renamed = RathLLMAssistantMessage(
            content=message.content, reasoning_content=message.reasoning_content, tool_calls=calls
        )
        choices = (RathLLMChatChoice(0, choice.finish_reason, renamed),)
        ready = object.__new__(_Ready)
        ready.response = RathLLMChatResponse(f"scripted-{number}", choices, 0, old.model, usage=old.usage)
        ready.latency_s, ready.pace_s, ready.error = self.latency_s, self.pace_s, self.error
        ready.has_own_ids, ready._reply = False, self._reply
        ready._chunk_chars, ready._deltas = self._chunk_chars, None
        return ready

    @property
    def deltas(self) -> tuple[RathLLMStreamDelta, ...]:
        """The reply as a stream; one that is going to fail has texts only."""
        if self._deltas is None:
            deltas = list(response_deltas(self.response, self._chunk_chars))
            if self._reply.chunks is not None:
                pieces = [RathLLMStreamDelta(content_delta=piece) for piece in self._reply.chunks]
                texts = [place for place, delta in enumerate(deltas) if delta.content_delta is not None]
                start = texts[0] if texts else 0
                deltas[start : start + len(texts)] = pieces
            if self.error is not None:
                deltas = [d for d in deltas if d.content_delta is not None or d.reasoning_delta is not None]
            self._deltas = tuple(deltas)
        return self._deltas


_FIELDS = frozenset(f.name for f in fields(Reply))


def _read(reply: Any, place: int) -> Reply | Callable[[RathLLMChatRequest], Any]:
    """A reply in any of its forms, checked; functions stay as they are."""
    if isinstance(reply, str):
        return Reply(text=reply)
    if isinstance(reply, BaseException):
        return Reply(error=reply)
    if isinstance(reply, Mapping):
        unknown = sorted(set(map(str, reply)) - _FIELDS)
        if unknown:
            raise UsageValueError(f"reply {place} has unknown fields {unknown}; known: {', '.join(sorted(_FIELDS))}")
        reply = Reply(**reply)
    if isinstance(reply, Reply):
        for entry in reply.tool_calls:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
                raise UsageTypeError(f"reply {place}: a tool call is {{'name': …, 'arguments': …}}, not {entry!r}")
        return reply
    if callable(reply):
        return cast("Callable[[RathLLMChatRequest], Any]", reply)
    raise UsageTypeError(
        f"reply {place} is a {type(reply).__name__}; it can be a str, a dict, a Reply, an exception "
        "or a function of the request"
    )


def _call(entry: Mapping[str, Any], number: int, place: int) -> RathLLMToolCallPart:
    arguments = entry.get("arguments", "")
    if not isinstance(arguments, str):
        arguments = encode_json(arguments).decode()
    return tool_call_part(str(entry.get("id", f"call_{number}_{place}")), entry["name"], arguments)


def _usage(usage: RathLLMTokenUsage | Mapping[str, Any] | None) -> RathLLMTokenUsage | None:
    if usage is None or isinstance(usage, RathLLMTokenUsage):
        return usage
    prompt, completion = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
    return RathLLMTokenUsage(prompt, completion, int(usage.get("total_tokens", prompt + completion)))


def _error_maker(error: BaseException | Mapping[str, Any]) -> Callable[[], BaseException]:
    if isinstance(error, BaseException):
        # Without the traceback of the last time: it would grow with every call.
        return lambda: error.with_traceback(None)
    detail = {"message": "the script says so", **error}
    return lambda: ProviderError(**detail)
