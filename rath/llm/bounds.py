"""How much of a reply is read. A provider is not trusted to end what it sends, nor a proxy in front of it."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from rath.errors import ProviderError
from rath.llm.types import RathLLMStreamDelta

__all__ = ["ReplyMeter", "bound_replies", "expects_stream"]

BODY_BYTES = 64 * 2**20
EVENT_BYTES = 16 * 2**20
ERROR_BYTES = 2**20

# Set while a request is sent: a hook sees the response, and not whether its reader takes it piece by piece.
expects_stream: ContextVar[bool] = ContextVar("expects_stream", default=False)


def bound_replies(label: str) -> Callable[[Any], Awaitable[None]]:
    """A response hook for an SDK's HTTP client, under which no reply can fill the memory.

    Bodies end with a ``ProviderError`` after 64 MiB, counted after decompression; streams at an event of more than
    16 MiB. Of an error's body the first MiB is read.
    """

    async def hook(response: Any) -> None:
        # Everything that reads a body, the SDKs' stream decoders included, asks the response for `aiter_bytes`.
        pieces = response.aiter_bytes
        response.encoding = "utf-8"  # JSON's; a header may name a codec that is no charset
        if response.status_code >= 300:
            response.aiter_bytes = functools.partial(_beginning, pieces)
            try:
                await response.aread()
            finally:
                await response.aclose()
        elif expects_stream.get() and "json" not in response.headers.get("content-type", ""):
            response.aiter_bytes = functools.partial(_events, pieces, label)
        else:
            response.aiter_bytes = functools.partial(_body, pieces, label)

    return hook


_Pieces = Callable[[], AsyncIterator[bytes]]


async def _beginning(pieces: _Pieces) -> AsyncIterator[bytes]:
    left = ERROR_BYTES
    async for piece in pieces():
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            return


async def _body(pieces: _Pieces, label: str) -> AsyncIterator[bytes]:
    # Given out whole: pieces would stay in the reader's frame, and so in the error's traceback, when it is too many.
    body = bytearray()
    async for piece in pieces():
        if len(body) + len(piece) > BODY_BYTES:
            body.clear()
            raise _too_large(label, "a reply", BODY_BYTES)
        body += piece
    yield bytes(body)


async def _events(pieces: _Pieces, label: str) -> AsyncIterator[bytes]:
    size = 0  # of the event that is still open
    tail = b""
    async for piece in pieces():
        window = tail + piece  # a blank line may be cut in two
        end = max(window.rfind(b"\n\n"), window.rfind(b"\n\r\n"), window.rfind(b"\r\r"))
        size = size + len(piece) if end < 0 else len(window) - end
        if size > EVENT_BYTES:
            raise _too_large(label, "an event of a stream", EVENT_BYTES)
        yield piece
        tail = window[-2:]


class ReplyMeter:
    """Adds up what a streamed reply says; whoever folds it has to hold all of it."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bytes = 0

    def add(self, delta: RathLLMStreamDelta) -> None:
        """Count ``delta``. Raises ``ProviderError`` when there is more than 64 MiB."""
        for text in (
            delta.content_delta,
            delta.reasoning_delta,
            delta.tool_call_args_delta,
            delta.tool_call_name_delta,
            delta.tool_call_id,
        ):
            if text:
                self._bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        if self._bytes > BODY_BYTES:
            raise _too_large(self._label, "a streamed reply", BODY_BYTES)


def _too_large(label: str, what: str, limit: int) -> ProviderError:
    return ProviderError(f"{label} sent {what} of more than {limit >> 20} MiB; it was not read to its end", code="too_large")
