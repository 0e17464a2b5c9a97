"""The synchronous face of an asynchronous model client.

A client implements one method, ``open_completion``; :class:`ChatClientBase` gives it ``complete`` and
``complete_stream``, which work from any thread and inside any running event loop, because the work is done on
the engine's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, cast

from rath.core import ports
from rath.errors import ProviderError
from rath.llm.provider import Provider
from rath.llm.retry import retry_delay_s
from rath.llm.types import RathLLMChatRequest, RathLLMChatResponse, RathLLMStreamDelta

__all__ = ["ChatClientBase", "CompletionStream"]


class ChatClientBase(ABC):
    """Give a subclass ``open_completion``, and it is every kind of client that rath knows.

    ``complete`` and ``complete_stream`` retry as the provider says; ``open_completion`` is one attempt.
    """

    _provider: Provider

    @property
    def provider(self) -> Provider:
        """The configuration that this client was made for."""
        return self._provider

    @abstractmethod
    def open_completion(
        self, request: RathLLMChatRequest, *, stream: bool
    ) -> AsyncIterator[RathLLMStreamDelta | RathLLMChatResponse]:
        """One attempt; see :class:`rath.core.ports.ModelClient`."""

    def complete(self, req: RathLLMChatRequest) -> RathLLMChatResponse:
        """The model's reply; blocks until it is whole.

        Raises:
            ProviderError: there is none, after the provider's retries.
            WouldDeadlock: called on the engine's own thread, by an async tool for instance; use
                ``open_completion``.
        """
        return ports.engine().run(_complete(self, req))

    def complete_stream(self, req: RathLLMChatRequest) -> CompletionStream:
        """The model's reply piece by piece, as it arrives. Close the iterator to end the request early.

        Raises:
            ProviderError: from the iterator. Retried only as long as nothing has arrived.
            WouldDeadlock: as for :meth:`complete`.
        """
        return CompletionStream(self, req)


async def _complete(client: ChatClientBase, request: RathLLMChatRequest) -> RathLLMChatResponse:
    attempt = 0
    while True:
        attempt += 1
        parts = client.open_completion(request, stream=False)
        try:
            async for part in parts:
                return cast(RathLLMChatResponse, part)
            raise ProviderError(f"{type(client).__name__} ended a completion without a reply")
        except ProviderError as error:
            delay = retry_delay_s(client.provider, error, attempt)
            if delay is None:
                raise
        finally:
            await _close(parts)
        await asyncio.sleep(delay)


async def _end_request(pulling: asyncio.Task[Any] | None, parts: AsyncIterator[Any] | None) -> None:
    if pulling is not None and not pulling.done():
        # Ctrl-C ended the wait for a delta, not the work on it; a generator at work cannot be closed.
        pulling.cancel()
        await asyncio.wait([pulling])
    if parts is not None:
        await _close(parts)


async def _close(parts: AsyncIterator[Any]) -> None:
    # The port promises an iterator; what rath's clients return is a generator, which ends its request when
    # closed.
    close = getattr(parts, "aclose", None)
    if close is not None:
        await close()


class CompletionStream:
    """A streamed completion as a plain iterator. Each step waits for the next delta.

    One that is dropped without :meth:`close` ends its request too.
    """

    def __init__(self, client: ChatClientBase, request: RathLLMChatRequest) -> None:
        self._client = client
        self._request = request
        self._parts: AsyncIterator[Any] | None = None
        self._pulling: asyncio.Task[Any] | None = None
        self._attempt = 1
        self._started = False
        self._closed = False

    def __iter__(self) -> CompletionStream:
        return self

    def __next__(self) -> RathLLMStreamDelta:
        if self._closed:
            raise StopIteration
        try:
            delta = ports.engine().run(self._pull())
        except BaseException:
            self.close()
            raise
        if delta is None:
            self._closed = True
            raise StopIteration
        return delta

    async def _pull(self) -> RathLLMStreamDelta | None:
        self._pulling = asyncio.current_task()
        while True:
            if self._parts is None:
                self._parts = self._client.open_completion(self._request, stream=True)
            try:
                delta = cast("RathLLMStreamDelta | None", await anext(self._parts, None))
            except ProviderError as error:
                delay = None if self._started else retry_delay_s(self._client.provider, error, self._attempt)
                if delay is None:
                    raise
                self._attempt += 1
                self._parts = None
                await asyncio.sleep(delay)
                continue
            self._started = True
            return delta

    def close(self) -> None:
        """End the request and release its connection. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._parts is not None:
            ports.engine().run(self._end())

    async def _end(self) -> None:
        await _end_request(self._pulling, self._parts)

    def __del__(self) -> None:
        # Left to the collector, the generators of the HTTP stack are closed in any order, and some while others still run.
        if not self._closed and self._parts is not None:
            with contextlib.suppress(Exception):
                ports.engine().start(functools.partial(_end_request, self._pulling, self._parts))

    def __enter__(self) -> CompletionStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
