"""A run's stream of events: kept for those who come late, handed on to those who follow.

The run emits whether or not anybody reads. A reader first gets what has passed (text deltas of finished messages are not
kept: the message is), then follows live; a reader that stops early stops nothing. With no reader an event costs its
creation and one append.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from uuid import UUID

from rath.core.cell import Cell, waiting_for
from rath.core.events import (
    DELTAS,
    TERMINAL,
    Event,
    MessageFinished,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    UsageReported,
)

__all__ = ["EventStream", "SessionEvents"]

_DELTAS = frozenset(DELTAS)
# A long message in small fragments is joined now and then, or keeping it for late readers would cost O(n²).
_COALESCE = 64
_now = time.time
_readers_lock = threading.RLock()


def _reset_after_fork() -> None:
    global _readers_lock
    _readers_lock = threading.RLock()


os.register_at_fork(after_in_child=_reset_after_fork)


class EventStream:
    """Emits and replays the events of one run. Emitting is for one thread at a time, reading for any.

    Emitting takes no lock: an event is first appended, then pushed to the readers of that moment. A new reader is first
    registered, then copies what has passed; what it gets twice it knows by ``seq``.

    Attributes:
        on_usage: gets each ``UsageReported`` first. It is no reader: nothing is streamed for its sake.
    """

    __slots__ = ("_deltas", "_history", "_readers", "on_usage", "run_id", "seq", "session_id")

    def __init__(self, run_id: UUID, session_id: UUID) -> None:
        self.run_id = run_id
        self.session_id = session_id
        self.seq = 0
        self._history: list[Event] = []
        self._deltas: tuple[Event, ...] = ()
        self._readers: tuple[Callable[[Event], None], ...] = ()
        self.on_usage: Callable[[UsageReported], None] | None = None

    @property
    def has_readers(self) -> bool:
        return bool(self._readers)

    def emit(self, kind: type[Any], *fields: Any) -> Event:
        """Make the next event of ``kind`` and hand it on. Positional fields, for speed: this is the hot path."""
        event: Event = kind(self.run_id, self.session_id, self.seq, _now(), *fields)
        self.seq += 1
        if kind in _DELTAS:
            self._deltas = (*self._deltas, event) if len(self._deltas) < _COALESCE else _coalesced((*self._deltas, event))
        else:
            self._history.append(event)
            if kind is MessageFinished:
                self._deltas = ()
            elif kind is UsageReported and self.on_usage is not None:
                self.on_usage(event)  # type: ignore[arg-type]
        for push in self._readers:
            push(event)
        return event

    def drop_deltas(self) -> None:
        """Forget fragments of a message that will not be finished."""
        self._deltas = ()

    def subscribe(self, push: Callable[[Event], None]) -> Callable[[], None]:
        """Replay what has passed into ``push``, then every event as it comes. Returns how to stop."""
        reader = _Reader(push)
        with _readers_lock:
            self._readers = (*self._readers, reader.push)
        # The fragments first: a message that finishes in between is then in the history, and they are dropped.
        deltas = _coalesced(self._deltas)
        reader.replay(tuple(self._history), deltas)

        def stop() -> None:
            with _readers_lock:
                self._readers = tuple(known for known in self._readers if known != reader.push)

        return stop


class _Reader:
    """Holds live events back until the replay is through, and drops what the replay had."""

    def __init__(self, target: Callable[[Event], None]) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._held: list[Event] | None = []

    def push(self, event: Event) -> None:
        with self._lock:
            if self._held is None:
                self._target(event)
            else:
                self._held.append(event)

    def replay(self, history: tuple[Event, ...], deltas: tuple[Event, ...]) -> None:
        last = history[-1].seq if history else -1
        with self._lock:
            for event in (*history, *(delta for delta in deltas if delta.seq > last)):
                self._target(event)
                last = event.seq
            for event in self._held or ():
                if event.seq > last:
                    self._target(event)
            self._held = None


def _coalesced(deltas: tuple[Event, ...]) -> tuple[Event, ...]:
    """The fragments of an unfinished message, joined to one a kind (and one a tool call)."""
    joined: dict[tuple[str, int], list[Any]] = {}
    for delta in deltas:
        index = delta.index if isinstance(delta, ToolCallDelta) else 0
        joined.setdefault((type(delta).__name__, index), []).append(delta)
    out: list[Event] = []
    for parts in joined.values():
        last = parts[-1]
        head = (last.run_id, last.session_id, last.seq, last.at)
        if isinstance(last, ToolCallDelta):
            call_id = next((p.call_id for p in reversed(parts) if p.call_id), None)
            name = "".join(p.name or "" for p in parts) or None
            out.append(ToolCallDelta(*head, last.index, call_id, name, "".join(p.arguments or "" for p in parts) or None))
        else:
            kind = TextDelta if isinstance(last, TextDelta) else ReasoningDelta
            out.append(kind(*head, "".join(p.text for p in parts)))
    return tuple(sorted(out, key=lambda event: event.seq))


class SessionEvents:
    """The events of a session's run: iterate it, or iterate it with ``async for``; each iteration starts from the first.

    Args:
        stream: the run's stream; ``None`` for a session that no run made, which has no events.
        cell: the run's cell: waiting for its events is waiting for it.
        kinds: only events of these types; the terminal event always comes.

    Iterating raises ``WouldDeadlock`` where waiting for the run would.
    """

    def __init__(self, stream: EventStream | None, cell: Cell[Any] | None = None, kinds: tuple[type[Any], ...] = ()) -> None:
        self._stream = stream
        self._cell = cell
        self._kinds = (*kinds, *TERMINAL) if kinds else ()

    def _wanted(self, event: Event) -> bool:
        return not self._kinds or isinstance(event, self._kinds)

    def __iter__(self) -> Iterator[Event]:
        if self._stream is None:
            return
        inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        stop = self._stream.subscribe(inbox.put)
        try:
            while True:
                event = self._next(inbox)
                if self._wanted(event):
                    yield event
                if isinstance(event, TERMINAL):
                    return
        finally:
            stop()

    def _next(self, inbox: queue.SimpleQueue[Event]) -> Event:
        try:
            return inbox.get_nowait()
        except queue.Empty:
            if self._cell is None:
                return inbox.get()
            self._cell.check_may_block()
            with waiting_for((self._cell,)):
                return inbox.get()

    async def __aiter__(self) -> AsyncIterator[Event]:
        if self._stream is None:
            return
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Event] = asyncio.Queue()

        def push(event: Event) -> None:
            # The reader's loop may be closed before the run ends.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(inbox.put_nowait, event)

        stop = self._stream.subscribe(push)
        try:
            while True:
                if inbox.empty() and self._cell is not None:
                    with waiting_for((self._cell,)):
                        event = await inbox.get()
                else:
                    event = await inbox.get()
                if self._wanted(event):
                    yield event
                if isinstance(event, TERMINAL):
                    return
        finally:
            stop()
