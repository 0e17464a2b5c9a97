"""How events travel from a run to its log, its readers and its middleware.

Without middleware a run's events go straight to the log and the stream. With middleware the run becomes a *runner*: a
function of a request that yields events, which middleware may wrap; what comes out at the end is logged and streamed, and
the outcome is the fold of its rows. A run emits an event and goes on only where the log need not be ahead of it: before a
tool runs, and at the end of a turn, it waits until everything it emitted has come out (:class:`Mailbox`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

import msgspec

from rath.core import events, ports
from rath.core.events import TERMINAL, Event
from rath.core.ports import Runner
from rath.core.redact import scan_environment
from rath.errors import UsageTypeError
from rath.llm.types import RathLLMTokenUsage, add_usage, counted
from rath.runtime.dispatch import ended
from rath.runtime.job import Job
from rath.runtime.sync import LogSync
from rath.session.chunk import INTERRUPTED_BODY, ChunkKind, ChunkRow, ChunkTable, tool_feedback_chunk
from rath.session.graph.record import LineageRecord
from rath.session.outcome import EAGER_DIGEST_ROWS, Outcome
from rath.session.request import RunRequest
from rath.session.session import snapshot_session

__all__ = ["run_through"]


class _Run(Protocol):
    async def run(self) -> Outcome: ...


MakeRun = Callable[..., _Run]
_COMMON_FIELDS = frozenset({"run_id", "session_id", "seq", "at"})


async def run_through(job: Job, request: RunRequest, make_run: MakeRun) -> Outcome:
    """Run ``request`` to its end, with its middleware and its log; the outcome, once the log's trailer is written."""
    seed = request.user.partial if request.operator != "run_session_compress" else ChunkTable()
    view = job.view
    view.base = seed
    view.stream.on_usage = partial(_book, request.record, request.provider.model)
    if request.persist:
        open_log = _open_log if request.resume is None else _reopen_log
        job.log = await _opened(asyncio.ensure_future(job.engine.call(open_log, job, request, seed)))
        request.record.log, request.record.verdict = str(job.log.path), "open"
        if job.log.so_far is not None:
            view.base = seed = job.log.so_far.table
            request.record.usage, request.record.bill = job.log.so_far.usage, job.log.so_far.bill
    if request.middleware:
        outcome = await _through_middleware(job, request, make_run, seed)
    else:
        sync = None if job.log is None else LogSync(job.engine.syncs, job.log)
        outcome = await make_run(request, job, seed, view.rows, _emitter(job), sync).run()
    if job.log is not None:
        log, extras = job.log, (*request.record.extras, *outcome.extras)
        close = partial(
            log.close,
            table=outcome.table,
            usage=outcome.usage,
            lineage_extras=extras,
            outcome={"status": "completed", "truncated": _is_truncated(outcome), **job.measured()},
        )
        await _closed(asyncio.ensure_future(job.engine.call(close)))
        request.record.verdict = "complete"
    return outcome


def _open_log(job: Job, request: RunRequest, seed: ChunkTable) -> Any:
    scan_environment()  # a key may have been set since the last look
    return ports.load("log", "jsonl")(
        snapshot_session(request.record, Outcome(seed), job.lease),
        path=request.persist_path,
        provider=request.provider,
        sandbox_handle_id=request.sandbox_handle_id,
        durability=request.durability,
        seed=seed,
    )


def _reopen_log(_job: Job, request: RunRequest, _seed: ChunkTable) -> Any:
    scan_environment()
    return ports.load("log", "reopen")(request.resume, model=request.provider.model)


async def _opened(opening: asyncio.Future[Any]) -> Any:
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        # The thread goes on: nobody would let go of the file and its lock.
        opening.add_done_callback(lambda done: done.cancelled() or done.exception() or done.result().abandon())
        raise


async def _closed(closing: asyncio.Future[None]) -> None:
    """Wait for the trailer. Its run is over: a cancellation that comes now comes too late."""
    while not closing.done():
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            if closing.cancelled():
                raise
    closing.result()


def _book(record: LineageRecord, asked: str | None, event: events.UsageReported) -> None:
    record.book(event.usage, event.model, asked)


def _emitter(job: Job) -> Callable[..., Any]:
    emit, log = job.view.stream.emit, job.log
    if log is None:
        return emit

    def emit_and_log(kind: type[Any], *fields: Any) -> None:
        log.on_event(emit(kind, *fields))

    return emit_and_log


def _is_truncated(outcome: Outcome) -> bool:
    return ("loop.truncated", True) in outcome.extras


# -- middleware -------------------------------------------------------------------------------------------------------


class Mailbox:
    """A run's events on their way through its middleware."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._seq = 0
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._taken = asyncio.Event()

    def emit(self, kind: type[Any], *fields: Any) -> None:
        stream = self._job.view.stream
        self._queue.put_nowait(kind(stream.run_id, stream.session_id, self._seq, 0.0, *fields))
        self._seq += 1

    async def sync(self) -> None:
        """Wait until whoever reads the runner has taken, and finished with, everything emitted so far."""
        self._taken.clear()
        self._queue.put_nowait(None)
        await self._taken.wait()

    async def next(self) -> Event:
        """The next event. To ask for it is to be finished with the one before."""
        while (event := await self._queue.get()) is None:
            self._taken.set()
        return event

    def drain(self) -> list[Event]:
        """What is left, without waiting."""
        left = []
        while not self._queue.empty():
            event = self._queue.get_nowait()
            if event is not None:
                left.append(event)
        return left


class _MailboxSync:
    """The log's sync, once the events have come through."""

    def __init__(self, mailbox: Mailbox, sync: LogSync | None) -> None:
        self._mailbox = mailbox
        self._sync = sync
        self._turn = asyncio.Lock()

    async def __call__(self) -> None:
        async with self._turn:
            await self._mailbox.sync()
        if self._sync is not None:
            await self._sync()


def _base_runner(fold: _Fold, make_run: MakeRun) -> Runner:
    job = fold.job

    async def runner(request: RunRequest) -> AsyncGenerator[Event, None]:
        mailbox = Mailbox(job)
        sync = _MailboxSync(mailbox, None if job.log is None else LogSync(job.engine.syncs, job.log))
        run = make_run(request, job, job.view.base, [], mailbox.emit, sync)
        task = asyncio.ensure_future(run.run())
        fold.under_way.append((mailbox, task))
        try:
            while (event := await _next_or_end(mailbox, task)) is not None:
                yield event
            for event in mailbox.drain():
                yield event
            if (mailbox, task) in fold.under_way:  # else another runner, started since, has ended it
                fold.under_way.remove((mailbox, task))
            outcome = task.result()
        finally:
            await fold.end_runs()
        mailbox.emit(events.RunFinished, len(outcome.table), outcome.usage, _is_truncated(outcome))
        yield mailbox.drain()[-1]

    return runner


async def _next_or_end(mailbox: Mailbox, task: asyncio.Task[Outcome]) -> Event | None:
    """The next event; ``None`` when the run has ended and may have left some in the mailbox."""
    getting = asyncio.ensure_future(mailbox.next())
    try:
        await asyncio.wait((getting, task), return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else None
    finally:
        getting.cancel()


class _Fold:
    """What comes out of the outermost middleware: rows, usage, log and stream are folded from it."""

    def __init__(self, job: Job, request: RunRequest, seed: ChunkTable) -> None:
        self.job = job
        self._seed = seed
        so_far = None if job.log is None else job.log.so_far
        self._usage: RathLLMTokenUsage | None = None if so_far is None else so_far.usage
        self._truncated = False
        self.under_way: list[tuple[Mailbox, asyncio.Task[Outcome]]] = []

    async def end_runs(self) -> None:
        """End what a cancellation, an error outside, or a middleware that left has cut short. What happened, happened."""
        while self.under_way:
            mailbox, task = self.under_way.pop()
            task.cancel()
            await ended([task])
            for event in mailbox.drain():
                self.take(event)
            if not task.cancelled():
                task.exception()  # retrieved: whoever wanted it has it

    def take(self, event: Event) -> None:
        """Log and stream ``event``, renumbered. Terminal events are only noted: the job emits the one that counts."""
        if isinstance(event, TERMINAL):
            self._truncated = self._truncated or bool(getattr(event, "truncated", False))
            return
        rows = self.job.view.rows
        fields = msgspec.structs.asdict(event)
        if isinstance(event, events.RowAppended):
            rows.append(event.row)
            fields["index"] = len(self._seed) + len(rows) - 1
        elif isinstance(event, events.UsageReported):
            self._usage = add_usage(self._usage, counted(event.usage))
        elif isinstance(event, events.ToolFinished):
            fields["row_index"] = self._row_of(event)
        own = [value for name, value in fields.items() if name not in _COMMON_FIELDS]
        emitted = self.job.view.stream.emit(type(event), *own)
        if self.job.log is not None:
            self.job.log.on_event(emitted)

    def _row_of(self, event: events.ToolFinished) -> int:
        """Where the result's row will stand in what comes out: middleware may have added rows, or left some out."""
        rows = self.job.view.rows
        place = _last_reply(rows)
        ids = [] if place is None else [call["id"] for call in rows[place].tool_calls]
        if place is None or event.call_id not in ids:
            return event.row_index
        return len(self._seed) + place + 1 + ids.index(event.call_id)

    def answer_open_calls(self) -> None:
        """Give calls without a result their row: wherever a run ends, any provider must accept its transcript."""
        rows = self._seed.extend(*self.job.view.rows).rows
        # Ids may repeat from turn to turn: only what follows the last assistant row counts.
        place = _last_reply(rows)
        if place is None:
            return
        answered = {row.tool_call_id for row in rows[place + 1 :]}
        stream = self.job.view.stream
        for call in rows[place].tool_calls:
            if call["id"] not in answered:
                row = tool_feedback_chunk(call["id"], call["function"]["name"], INTERRUPTED_BODY)
                self.take(events.RowAppended(stream.run_id, stream.session_id, 0, 0.0, 0, row))

    def outcome(self) -> Outcome:
        extras = (("loop.truncated", True),) if self._truncated else ()
        table = self._seed.extend(*self.job.view.rows)
        table.digest_within(EAGER_DIGEST_ROWS)
        return Outcome(table, self._usage, extras)


def _last_reply(rows: Sequence[ChunkRow]) -> int | None:
    return next((at for at in range(len(rows) - 1, -1, -1) if rows[at].kind is ChunkKind.ASSISTANT), None)


async def _through_middleware(job: Job, request: RunRequest, make_run: MakeRun, seed: ChunkTable) -> Outcome:
    fold = _Fold(job, request, seed)
    runner = _base_runner(fold, make_run)
    for middleware in reversed(request.middleware):
        runner = middleware(runner)
        if not callable(runner):
            raise UsageTypeError(f"middleware {middleware!r} must return a runner: a function of a request")
    source = runner(request)
    if not hasattr(source, "__aiter__") or not hasattr(source, "aclose"):
        raise UsageTypeError(
            f"a runner must be an asynchronous generator function, but this one returned {type(source).__name__}"
        )
    try:
        async with aclosing(source) as coming_out:
            async for event in coming_out:
                fold.take(event)
    finally:
        # A middleware that left may have left its inner runner to the collector.
        await fold.end_runs()
        fold.answer_open_calls()
    return fold.outcome()
