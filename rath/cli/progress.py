"""Overlapping runs, watched: what each one does right now, from its events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.live import Live
from rich.table import Table

from rath.cli.console import Screen, styled
from rath.core import events
from rath.core.events import Event
from rath.core.redact import redact_text
from rath.display.text import count, duration, fit
from rath.display.transcript import short_arguments, view_result
from rath.session.session import Session

__all__ = ["RunWatch", "cancel_all", "describe_call", "describe_result", "follow", "watch", "watch_live"]

_FRAME_S = 0.1
_PATIENCE_S = 10.0
_MARKS = {
    "pending": ("○", "dim"),
    "running": ("▸", "cyan"),
    "completed": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "cancelled": ("–", "yellow"),
}


@dataclass(slots=True)
class RunWatch:
    """What is known of a run from the events so far.

    Attributes:
        began, ended: Unix times of its first and its terminal event; ``None`` until then.
        tools: how many calls have ended.
        doing: what it does now, in a few words.
        text: the last whole message.
    """

    name: str
    status: str = "pending"
    turn: int = 0
    tools: int = 0
    tokens: int = 0
    began: float | None = None
    ended: float | None = None
    doing: str = "waits"
    text: str = ""
    error: str = ""
    truncated: bool = False
    _calls: dict[tuple[int, int], str] = field(default_factory=dict)

    def see(self, event: Event) -> None:
        """Take an event into account."""
        match event:
            case events.RunStarted():
                self.status, self.began, self.doing = "running", event.at, "starts"
            case events.TurnStarted():
                self.turn, self.doing = event.turn, "asks the model"
            case events.TextDelta() | events.ReasoningDelta():
                self.doing = "reads the answer"
            case events.MessageFinished():
                self.text = event.text or self.text
            case events.ToolStarted():
                self._calls[event.turn, event.index] = self.doing = describe_call(event)
            case events.ToolFinished():
                self.tools += 1
                self._calls.pop((event.turn, event.index), None)
                self.doing = next(reversed(self._calls.values()), "")
            case events.UsageReported():
                self.tokens += event.usage.total_tokens
            case events.Retried():
                self.doing = f"waits {event.delay_s:.1f} s to ask again"
            case events.RunFinished() | events.RunFailed() | events.RunCancelled():
                self._end(event)
            case _:
                pass

    def _end(self, event: events.RunFinished | events.RunFailed | events.RunCancelled) -> None:
        self.ended, self.doing = event.at, ""
        if isinstance(event, events.RunFinished):
            self.status, self.truncated = "completed", event.truncated
        elif isinstance(event, events.RunFailed):
            self.status, self.error = "failed", redact_text(event.message)
        else:
            self.status, self.error = "cancelled", redact_text(event.reason)

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        if self.began is None:
            return 0.0
        return (time.time() if self.ended is None else self.ended) - self.began


def describe_call(event: events.ToolStarted) -> str:
    """A tool call in a few words: its name and short arguments."""
    return f"{event.name} {redact_text(short_arguments(event.arguments, 70))}".strip()


def describe_result(event: events.ToolFinished) -> tuple[tuple[str, str], str]:
    """A mark with its style, and what came of the call, with its time."""
    result = view_result(redact_text(event.body))
    mark = ("✗ failed: ", "bold red") if not event.ok else (f"{result.mark} ", "green" if result.clean_exit else "yellow")
    return mark, f"{result.summary} · {duration(event.duration_s)}"


async def watch(
    sessions: Sequence[Session], watches: Sequence[RunWatch], changed: Callable[[RunWatch, Event], None]
) -> None:
    """Follow the runs of ``sessions`` to their ends: each event goes into its watch, then to ``changed``."""

    async def follow(session: Session, seen: RunWatch) -> None:
        async for event in session.events():
            seen.see(event)
            changed(seen, event)
        await asyncio.to_thread(_wait_until_done, [session])

    await asyncio.gather(*(follow(session, seen) for session, seen in zip(sessions, watches, strict=True)))


def follow(screen: Screen, session: Session, seen: RunWatch) -> None:
    """Print one run as it goes: text as it arrives, tool calls as they begin and end."""
    streamed = False
    for event in session.events():
        seen.see(event)
        match event:
            case events.TurnStarted():
                streamed = False
            case events.TextDelta():
                streamed = True
                screen.write(event.text)
            case events.MessageFinished():
                if not streamed and event.text:
                    screen.write(event.text)
                screen.end_line()
            case events.ToolStarted():
                screen.line(("→ ", "cyan"), describe_call(event))
            case events.ToolFinished():
                mark, result = describe_result(event)
                screen.line("  ", mark, (f"{event.name}: {result}", "dim"))
            case events.Retried():
                screen.line((f"asks again in {event.delay_s:.1f} s: {redact_text(event.reason)}", "yellow"))
            case _:
                pass
    screen.end_line()
    _wait_until_done([session])


def cancel_all(sessions: Sequence[Session], why: str) -> None:
    """Stop the runs of ``sessions`` and wait until they have, for ten seconds at most."""
    for session in sessions:
        session.cancel(why)
    _wait_until_done(sessions)


def _wait_until_done(sessions: Sequence[Session]) -> None:
    # The terminal event comes a moment before the handle resolves; reading the handle would raise its failure.
    deadline = time.monotonic() + _PATIENCE_S
    for session in sessions:
        while not session.done and time.monotonic() < deadline:
            time.sleep(0.002)


def watch_live(screen: Screen, sessions: Sequence[Session], watches: Sequence[RunWatch], *, quiet: bool = False) -> None:
    """Follow runs and show them: a table that redraws at a terminal, else a line for each step.

    Ctrl-C ends the watching, not the runs.
    """
    if quiet:
        asyncio.run(watch(sessions, watches, lambda _seen, _event: None))
    elif screen.live:
        with _table(screen, watches) as draw:
            asyncio.run(_watch_drawing(sessions, watches, draw))
    else:
        asyncio.run(watch(sessions, watches, lambda seen, event: _step(screen, seen, event)))


async def _watch_drawing(sessions: Sequence[Session], watches: Sequence[RunWatch], draw: Callable[[], None]) -> None:
    async def frames() -> None:
        while True:
            draw()
            await asyncio.sleep(_FRAME_S)

    drawing = asyncio.create_task(frames())
    try:
        await watch(sessions, watches, lambda _seen, _event: None)
    finally:
        drawing.cancel()


@contextmanager
def _table(screen: Screen, watches: Sequence[RunWatch]) -> Iterator[Callable[[], None]]:
    screen.end_line()
    # Drawn from the watching task only: no second thread looks at the watches.
    with Live(console=screen.console, auto_refresh=False, transient=False) as live:

        def draw() -> None:
            live.update(_rows(watches, screen.console.width), refresh=True)

        draw()
        try:
            yield draw
        finally:
            draw()


def _rows(watches: Sequence[RunWatch], width: int) -> Any:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    wide = max(len(seen.name) for seen in watches)
    for seen in watches:
        mark, style = _MARKS[seen.status]
        table.add_row(
            styled((mark, style)),
            styled((fit(seen.name, 28), "bold")),
            styled(f"turn {seen.turn}"),
            styled(duration(seen.seconds) if seen.began else ""),
            styled((fit(seen.doing or _outcome(seen), max(20, width - min(wide, 28) - 30)), "" if seen.doing else "dim")),
        )
    return table


def _outcome(seen: RunWatch) -> str:
    if seen.status == "running":
        return "…"
    if seen.error:
        return f"{seen.status}: {seen.error}"
    return f"{count(seen.tools, 'tool call')}{', used up its rounds' if seen.truncated else ''}"


def _step(screen: Screen, seen: RunWatch, event: Event) -> None:
    """One line for what matters, where nothing can be redrawn."""
    head = f"[{seen.name}]"
    if isinstance(event, events.ToolFinished):
        mark, result = describe_result(event)
        screen.line(f"{head} turn {event.turn}  ", mark, f"{event.name}: {result}")
    elif isinstance(event, events.Retried):
        screen.line(f"{head} asks again in {event.delay_s:.1f} s: {redact_text(event.reason)}")
    elif isinstance(event, events.TERMINAL):
        screen.line(f"{head} {seen.status} after {duration(seen.seconds)}, {_outcome(seen)}")
