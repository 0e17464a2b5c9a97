"""Shared by the tests of the clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from rath.llm.fold import fold_deltas
from rath.llm.scripted import Reply
from rath.llm.types import RathLLMChatRequest, RathLLMChatResponse, RathLLMMessage
from tests.wire.server import Answer, Raw

KEY = "sk-test-0123456789abcdef"


def request(*messages: RathLLMMessage, **fields: Any) -> RathLLMChatRequest:
    return RathLLMChatRequest(messages=messages or (RathLLMMessage("user", "hi"),), **fields)


async def parts_of(client: Any, req: RathLLMChatRequest | None = None, *, stream: bool = False) -> list[Any]:
    async with aclosing(client.open_completion(req or request(), stream=stream)) as parts:
        return [part async for part in parts]


def ask(client: Any, req: RathLLMChatRequest | None = None, *, stream: bool = False) -> RathLLMChatResponse:
    """One attempt, in a loop of its own; a stream is folded."""
    parts = asyncio.run(parts_of(client, req, stream=stream))
    return fold_deltas(parts) if stream else parts[0]


def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def wire_answer(reply: Reply) -> Answer | Raw:
    """A scripted reply as the wire server gives it."""
    if isinstance(reply.error, Mapping):
        body = f'{{"error": {{"message": "{reply.error["message"]}", "type": "scripted"}}}}'.encode()
        return Raw(status=reply.error["status"], body=body, delay_s=reply.latency_s or 0.0)
    return Answer(
        reply.text,
        [(entry["id"], entry["name"], json.dumps(entry["arguments"])) for entry in reply.tool_calls],
        usage=None
        if reply.usage is None
        else (reply.usage["prompt_tokens"], reply.usage["completion_tokens"]),
        delay_s=reply.latency_s or 0.0,
    )
