"""From a stream's fragments to the whole reply, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rath.llm.tool_args import distinct_call_ids, tool_call_part
from rath.llm.types import (
    RathLLMAssistantMessage,
    RathLLMChatChoice,
    RathLLMChatResponse,
    RathLLMFinishReason,
    RathLLMStreamDelta,
    RathLLMTokenUsage,
    RathLLMToolCallPart,
)

__all__ = ["DeltaFold", "fold_deltas", "response_deltas"]


class _Call:
    """A tool call under construction."""

    __slots__ = ("arguments", "call_id", "name")

    def __init__(self) -> None:
        self.call_id: str | None = None
        self.name: list[str] = []
        self.arguments: list[str] = []


class DeltaFold:
    """Collects a stream: :meth:`add` each delta, then :meth:`response`.

    Texts, reasoning, names and arguments are concatenated; a later id, finish reason or usage takes the
    earlier one's place. Fragments belong to the call with their ``tool_call_index``. Those without an index
    belong to the call with their id, a new one if there is none yet; without an id too, to the call that was
    last added to.
    """

    __slots__ = ("_calls", "_finish", "_last", "_reasoning", "_text", "_usage")

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, _Call] = {}
        self._last = 0
        self._finish: RathLLMFinishReason | None = None
        self._usage: RathLLMTokenUsage | None = None

    def add(self, delta: RathLLMStreamDelta) -> None:
        """Take in the next delta."""
        if delta.content_delta:
            self._text.append(delta.content_delta)
        if delta.reasoning_delta:
            self._reasoning.append(delta.reasoning_delta)
        if (
            delta.tool_call_args_delta is not None
            or delta.tool_call_index is not None
            or delta.tool_call_id is not None
            or delta.tool_call_name_delta is not None
        ):
            self._add_to_call(delta)
        if delta.finish_reason is not None:
            self._finish = delta.finish_reason
        if delta.usage is not None:
            self._usage = delta.usage

    def _add_to_call(self, delta: RathLLMStreamDelta) -> None:
        index = self._index_of(delta)
        self._last = index
        call = self._calls.get(index)
        if call is None:
            call = self._calls[index] = _Call()
        if delta.tool_call_id:
            call.call_id = delta.tool_call_id
        if delta.tool_call_name_delta:
            call.name.append(delta.tool_call_name_delta)
        if delta.tool_call_args_delta:
            call.arguments.append(delta.tool_call_args_delta)

    def _index_of(self, delta: RathLLMStreamDelta) -> int:
        if delta.tool_call_index is not None:
            return delta.tool_call_index
        if not self._calls:
            return 0
        if not delta.tool_call_id:
            return self._last
        for index, call in self._calls.items():
            if call.call_id == delta.tool_call_id:
                return index
        return max(self._calls) + 1

    @property
    def empty(self) -> bool:
        """Whether nothing has come that could stand in a message."""
        return not (self._text or self._reasoning or self._calls)

    def tool_calls(self) -> tuple[RathLLMToolCallPart, ...] | None:
        """The calls by index, ids made up where the stream had none; ``None`` if there are no calls."""
        if not self._calls:
            return None
        calls = [self._calls[index] for index in sorted(self._calls)]
        ids = distinct_call_ids(call.call_id for call in calls)
        return tuple(
            tool_call_part(call_id, "".join(call.name), "".join(call.arguments))
            for call_id, call in zip(ids, calls, strict=True)
        )

    def response(self, model: str) -> RathLLMChatResponse:
        """The whole reply. Without a finish reason it is ``tool_calls`` if there are calls, else ``stop``.

        ``id`` is empty and ``created`` 0: deltas carry neither.
        """
        calls = self.tool_calls()
        message = RathLLMAssistantMessage(
            content="".join(self._text) or None,
            reasoning_content="".join(self._reasoning) or None,
            tool_calls=calls,
        )
        finish = self._finish or ("tool_calls" if calls else "stop")
        return RathLLMChatResponse(
            id="", choices=(RathLLMChatChoice(0, finish, message),), created=0, model=model, usage=self._usage
        )


def fold_deltas(deltas: Iterable[RathLLMStreamDelta], model: str = "") -> RathLLMChatResponse:
    """The whole reply of a finished stream."""
    fold = DeltaFold()
    for delta in deltas:
        fold.add(delta)
    return fold.response(model)


def response_deltas(response: RathLLMChatResponse, piece_chars: int | None = None) -> Iterator[RathLLMStreamDelta]:
    """The deltas of a reply that came whole; :func:`fold_deltas` makes the same message of them.

    Args:
        piece_chars: texts and arguments are cut into pieces of so many characters; ``None`` leaves them
            whole.
    """
    choice = response.primary_choice
    message = choice.message
    for piece in _pieces(message.reasoning_content, piece_chars):
        yield RathLLMStreamDelta(reasoning_delta=piece)
    for piece in _pieces(message.content, piece_chars):
        yield RathLLMStreamDelta(content_delta=piece)
    for index, call in enumerate(message.tool_calls or ()):
        yield RathLLMStreamDelta(tool_call_index=index, tool_call_id=call.id, tool_call_name_delta=call.function.name)
        for piece in _pieces(call.function.arguments, piece_chars):
            yield RathLLMStreamDelta(tool_call_index=index, tool_call_args_delta=piece)
    yield RathLLMStreamDelta(finish_reason=choice.finish_reason)
    if response.usage is not None:
        yield RathLLMStreamDelta(usage=response.usage)


def _pieces(text: str | None, size: int | None) -> Iterator[str]:
    if not text:
        return
    if size is None:
        yield text
        return
    for start in range(0, len(text), size):
        yield text[start : start + size]
