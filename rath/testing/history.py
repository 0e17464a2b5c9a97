"""A strict reading of a message history, by the rules of the providers that refuse requests for breaking them.

Real servers differ in what they let pass; this passes only what all of them take. The rules:

OpenAI, chat completions (https://platform.openai.com/docs/api-reference/chat): an assistant's message has text or calls; its
calls have distinct ids, a name and arguments that are text; each is answered by exactly one ``tool`` message, and these
follow directly; no ``tool`` message answers anything else.

Anthropic, messages (https://docs.anthropic.com/en/api/messages): ``user`` and ``assistant`` only, the first is ``user``'s;
no empty message and no empty text; ``tool_use`` ids are distinct in the whole conversation and of ``[a-zA-Z0-9_-]``, names
of 1 to 64 of these; the message after one with ``tool_use`` answers each exactly once, before it says anything else, and no
other message answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rath.llm.anthropic import build_anthropic_kwargs
from rath.llm.openai import to_create_kwargs
from rath.llm.types import RathLLMChatRequest, RathLLMMessage
from rath.session.chunk import ChunkTable, chunk_table_to_messages
from rath.session.session import Session

__all__ = ["anthropic_faults", "check_history", "history_faults", "openai_faults"]

_ROLES = ("system", "developer", "user", "assistant", "tool")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_ID = re.compile(r"[a-zA-Z0-9_-]+")


def check_history(history: Session | ChunkTable | Iterable[RathLLMMessage]) -> None:
    """Raise ``AssertionError``, naming every fault, unless any provider would accept ``history``.

    Args:
        history: the messages of a request, or the rows that they are made of. Of a session, :attr:`Session.partial`: the
            rows so far, without waiting.
    """
    faults = history_faults(history)
    assert not faults, "a provider would refuse this history:\n" + "\n".join(faults)


def history_faults(history: Session | ChunkTable | Iterable[RathLLMMessage]) -> list[str]:
    """What providers would refuse ``history`` for, each with the message's number; empty if nothing."""
    if isinstance(history, Session):
        history = history.partial
    messages = chunk_table_to_messages(history) if isinstance(history, ChunkTable) else tuple(history)
    request = RathLLMChatRequest(messages=messages, model="any", max_tokens=1)
    openai = to_create_kwargs(request, default_model=None)["messages"]
    anthropic = build_anthropic_kwargs(request, default_model=None)["messages"]
    found = [f"OpenAI: {fault}" for fault in openai_faults(openai)]
    return found + [f"Anthropic: {fault}" for fault in anthropic_faults(anthropic)]


# -- OpenAI -----------------------------------------------------------------------------------------------------------


def openai_faults(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The faults of ``messages`` of a chat completion, as they go over the wire."""
    return list(_openai(messages)) if messages else ["there are no messages"]


def _openai(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    waiting: list[str] = []
    for place, message in enumerate(messages):
        role = message.get("role")
        if role == "tool":
            call_id = message.get("tool_call_id")
            if call_id in waiting:
                waiting.remove(call_id)
            else:
                yield f"message {place}: a result for {call_id!r}, which no call directly before is waiting for"
            if not isinstance(message.get("content"), str):
                yield f"message {place}: a result whose content is no text"
            continue
        if waiting:
            yield f"message {place}: {role} speaks while calls {waiting} have no result"
            waiting = []
        if role not in _ROLES:
            yield f"message {place}: {role!r} is no role"
        calls = message.get("tool_calls")
        if calls is not None:
            if role != "assistant":
                yield f"message {place}: only an assistant has tool_calls, not {role}"
            yield from (f"message {place}: {fault}" for fault in _call_faults(calls))
            waiting = [str(call.get("id")) for call in calls if isinstance(call, Mapping)]
        if not isinstance(message.get("content"), str) and not calls:
            yield f"message {place}: {role} says nothing"
    if waiting:
        yield f"the end: calls {waiting} have no result"


def _call_faults(calls: Any) -> Iterator[str]:
    if not isinstance(calls, Sequence) or not calls:
        yield "tool_calls is no list, or empty"
        return
    ids = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or call.get("type") != "function":
            yield f"a tool call that is none: {call!r:.100}"
            continue
        ids.append(call.get("id"))
        if not isinstance(call.get("id"), str) or not call["id"]:
            yield f"a tool call without an id: {call!r:.100}"
        if not isinstance(function.get("name"), str) or not _NAME.fullmatch(function["name"]):
            yield f"a tool call of {function.get('name')!r:.100}, which is no function's name"
        if not isinstance(function.get("arguments"), str):
            yield f"call {call.get('id')!r}: arguments are no text"
    if len(set(map(repr, ids))) < len(ids):
        yield f"two tool calls of one id: {ids}"


# -- Anthropic --------------------------------------------------------------------------------------------------------


def anthropic_faults(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The faults of ``messages`` of Anthropic's API, as they go over the wire."""
    return list(_anthropic(messages)) if messages else ["there are no messages"]


def _anthropic(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    seen: set[str] = set()
    waiting: list[str] = []
    for place, message in enumerate(messages):
        role = message.get("role")
        if role not in ("user", "assistant"):
            yield f"message {place}: {role!r} is no role"
        if place == 0 and role != "user":
            yield f"message 0: the first is the user's, not {role}'s"
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
        if not blocks:
            yield f"message {place}: is empty"
        yield from (f"message {place}: {fault}" for fault in _result_faults(role, blocks, waiting))
        waiting = [str(block.get("id")) for block in blocks if block.get("type") == "tool_use"]
        for call_id in waiting:
            if role != "assistant" or not _ID.fullmatch(call_id):
                yield f"message {place}: tool_use {call_id!r} of {role}"
            if call_id in seen:
                yield f"message {place}: a second tool_use of id {call_id!r}"
            seen.add(call_id)
        for name in (block.get("name") for block in blocks if block.get("type") == "tool_use"):
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                yield f"message {place}: a tool_use of {name!r:.100}, which is no tool's name"
        if any(block.get("type") == "text" and not str(block.get("text") or "").strip() for block in blocks):
            yield f"message {place}: an empty text"
    if waiting:
        yield f"the end: tool_use {waiting} have no result"


def _result_faults(role: object, blocks: Sequence[Mapping[str, Any]], waiting: Sequence[str]) -> Iterator[str]:
    """What is wrong with a message as the answer to ``waiting``."""
    kinds = [block.get("type") for block in blocks]
    results = [str(block.get("tool_use_id")) for block in blocks if block.get("type") == "tool_result"]
    if sorted(results) != sorted(waiting):
        yield f"results for {results}, where calls {list(waiting)} wait"
    if results and (role != "user" or "tool_result" in kinds[len(results) :]):
        yield "results that are not the user's first words"
