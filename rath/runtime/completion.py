"""One model call, whoever the client is: ours, somebody's synchronous or asynchronous one, or an executor.

Fragments are folded into a whole reply, handed to ``on_event`` in order, and emitted as events. A call is retried only
while nothing of its reply has been seen.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any

from rath.core import events
from rath.core.broadcast import EventStream
from rath.core.ports import Engine
from rath.errors import ProviderError
from rath.llm.fold import DeltaFold
from rath.llm.retry import retry_delay_s
from rath.llm.types import RathLLMChatRequest, RathLLMChatResponse, RathLLMStreamDelta
from rath.runtime.lane import Lane
from rath.session.request import RunRequest

__all__ = ["Completer"]

Emit = Callable[..., None]
_END = object()


class Completer:
    """Makes the model calls of one run.

    Args:
        stream: the run's events; whoever reads them wants fragments.
        emit: takes an event's type and fields.
    """

    __slots__ = ("_can_stream", "_emit", "_engine", "_lane", "_native", "_request", "_source", "_stream")

    def __init__(self, request: RunRequest, engine: Engine, stream: EventStream, emit: Emit) -> None:
        self._request = request
        self._engine = engine
        self._stream = stream
        self._lane: Lane | None = None
        self._emit = emit
        source: Any = request.client if request.executor is None else request.executor
        self._source = source
        self._native = request.executor is None and hasattr(source, "open_completion")
        self._can_stream = self._native or (request.executor is None and hasattr(source, "complete_stream"))

    @property
    def lane(self) -> Lane:
        """Where the run's callbacks are called."""
        if self._lane is None:
            self._lane = Lane(self._engine)
        return self._lane

    async def complete(self, request: RathLLMChatRequest) -> RathLLMChatResponse:
        """The whole reply.

        Raises:
            ProviderError: the model failed and may not be asked again, or sent a reply without choices.
            BaseException: whatever else the client, or ``on_event``, raised.
        """
        failures = 0
        while True:
            seen: list[bool] | None = None
            response: Any = None
            try:
                if self._can_stream and (self._request.on_event is not None or self._stream.has_readers):
                    seen = []
                    response = await self._streamed(request, seen)
                elif self._native:
                    items = self._source.open_completion(request, stream=False)
                    try:
                        async for item in items:
                            response = item
                    finally:
                        await items.aclose()
                else:
                    response = await self._maybe_async(self._source.complete, request)
            except ProviderError as error:
                failures += 1
                delay_s = None if seen else retry_delay_s(self._request.provider, error, failures)
                if delay_s is None:
                    raise
                self._emit(events.Retried, failures, str(error), delay_s)
                await asyncio.sleep(delay_s)
                continue
            if not isinstance(response, RathLLMChatResponse):
                raise ProviderError(
                    f"{type(self._source).__name__} returned {type(response).__name__} instead of a RathLLMChatResponse"
                )
            if not response.choices:
                raise ProviderError("the model's reply has no choices: the server sent an empty or foreign response")
            return response

    async def _maybe_async(self, function: Callable[..., Any], *args: Any) -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(*args)
        result = await self._engine.call(function, *args)
        return await result if inspect.isawaitable(result) else result

    # -- streaming ----------------------------------------------------------------------------------------------------

    async def _streamed(self, request: RathLLMChatRequest, seen: list[bool]) -> RathLLMChatResponse:
        fold = DeltaFold()
        try:
            async with aclosing(self._deltas(request)) as deltas:
                async for delta in deltas:
                    if not isinstance(delta, RathLLMStreamDelta):
                        raise ProviderError(
                            f"{type(self._source).__name__} streamed {type(delta).__name__} instead of a RathLLMStreamDelta"
                        )
                    if not seen:
                        seen.append(True)
                    if self._request.on_event is not None:
                        self.lane.call(self._request.on_event, delta)
                    self._emit_delta(delta)
                    fold.add(delta)
            await self._settle()
        except asyncio.CancelledError:
            if self._lane is not None:
                self._lane.drop()
            raise
        except Exception:
            # What arrived is called before the run fails, not after. If a callback is what failed, that is the error.
            await self._settle()
            raise
        return fold.response(request.model or self._request.provider.model or "")

    async def _settle(self) -> None:
        if self._lane is not None:
            await self._lane.settle()

    def _emit_delta(self, delta: RathLLMStreamDelta) -> None:
        if delta.content_delta:
            self._emit(events.TextDelta, delta.content_delta)
        if delta.reasoning_delta:
            self._emit(events.ReasoningDelta, delta.reasoning_delta)
        if delta.tool_call_index is not None or delta.tool_call_id is not None:
            self._emit(
                events.ToolCallDelta,
                delta.tool_call_index or 0,
                delta.tool_call_id,
                delta.tool_call_name_delta,
                delta.tool_call_args_delta,
            )

    async def _deltas(self, request: RathLLMChatRequest) -> AsyncGenerator[RathLLMStreamDelta, None]:
        source: Any
        if self._native:
            source = self._source.open_completion(request, stream=True)
        else:
            made = self._source.complete_stream
            if inspect.isasyncgenfunction(made) or inspect.iscoroutinefunction(made):
                source = made(request)
            else:
                source = await self._engine.call(made, request)
            if inspect.isawaitable(source):
                source = await source
        if not hasattr(source, "__aiter__"):
            if not isinstance(source, Iterable):
                raise ProviderError(f"complete_stream returned {type(source).__name__}, which is no stream of fragments")
            source = self._from_thread(source)
        try:
            async for delta in source:
                yield delta
        finally:
            # An asynchronous generator has `aclose`; the vendors' streams have `close`.
            close = getattr(source, "aclose", None) or getattr(source, "close", None)
            closing = None if close is None else close()
            if inspect.isawaitable(closing):
                await closing

    async def _from_thread(self, source: Iterable[RathLLMStreamDelta]) -> AsyncGenerator[RathLLMStreamDelta, None]:
        """Iterate a synchronous stream in a tool thread."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        stopped = False

        def pump() -> None:
            try:
                for delta in source:
                    if stopped:
                        return
                    loop.call_soon_threadsafe(inbox.put_nowait, delta)
            finally:
                close = getattr(source, "close", None)
                if close is not None:
                    close()
                loop.call_soon_threadsafe(inbox.put_nowait, _END)

        pumping = asyncio.ensure_future(self._engine.call(pump))
        # Whoever stops reading early does not ask how the stream went on.
        pumping.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            while (delta := await inbox.get()) is not _END:
                yield delta
            await pumping
        finally:
            stopped = True
