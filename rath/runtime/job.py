"""A job: one run's life around its work, from the call to the resolved cell.

Waiting for inputs costs no task: the last input to resolve starts the run. Whatever way the run ends, the order is the
same: the work's own clean-up, the log, the terminal event, the cell, the lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from rath.core import events, ports
from rath.core.broadcast import EventStream
from rath.core.cell import Cell, Failure, cancelled_failure, running_inside
from rath.core.ids import new_id
from rath.core.node import PACKAGE, Node
from rath.core.redact import redact_text
from rath.errors import RunCancelled, TurnTimeoutError
from rath.runtime.engine import LocalEngine
from rath.session.graph.record import LineageRecord
from rath.session.outcome import Outcome, RunView, inherit
from rath.session.session import Session, share_lease

__all__ = ["Job", "submit"]

_log = logging.getLogger("rath.runtime")
_NOTE = "rath: session "
_NO_CONTEXT = contextvars.Context()


class Job:
    """One run. The engine holds it until the cell is resolved; it holds the input sessions until then."""

    __slots__ = (
        "_began_s",
        "_body",
        "_context",
        "_inputs",
        "_task",
        "_waiting",
        "cancelling",
        "cell",
        "engine",
        "lease",
        "log",
        "node",
        "record",
        "session_id",
        "timeout_s",
        "view",
    )

    def __init__(
        self,
        node: Node,
        session_id: UUID,
        inputs: tuple[Session, ...],
        body: Callable[[Job], Awaitable[Outcome]],
        timeout_s: float | None,
        record: LineageRecord | None = None,
    ) -> None:
        self.node = node
        self.session_id = session_id
        self.record = LineageRecord(session_id) if record is None else record
        self._began_s: float | None = None
        self.timeout_s = timeout_s
        self.engine: LocalEngine = ports.engine()  # type: ignore[assignment]
        self.log: Any = None
        self.cancelling = False
        self.lease = share_lease(inputs[0]._lease) if inputs else None
        self.view = RunView(EventStream(new_id(), session_id))
        self._body: Callable[[Job], Awaitable[Outcome]] | None = body
        self._inputs = inputs
        self._task: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()
        pending = tuple(s._cell for s in inputs if not s._cell.done)
        self.cell: Cell[Outcome] = Cell(pending)
        self.cell.on_cancel = self._cancel
        self._waiting = len(inputs)

    def submit(self) -> None:
        """Start as soon as every input is resolved."""
        self.engine.opened(self)
        if not self._inputs:
            self._start()
        for session in self._inputs:
            session._cell.on_done(self._input_resolved)

    def _input_resolved(self, resolved: Cell[Outcome]) -> None:
        if resolved.failure is not None:
            # Two inputs may fail at once, or one while the run is cancelled: whoever starts the cell ends it.
            if self.cell.start():
                error = resolved.failure.error
                if resolved.status == "cancelled":
                    self._finish(events.RunCancelled, "an input was cancelled")
                else:
                    self._finish(events.RunFailed, type(error).__name__, _message(error))
                inherit(self.cell, resolved)
                self._let_go()
            return
        # A callback runs at most once an input, and this list is only ever counted down.
        with self.engine._lock:
            self._waiting -= 1
            ready = self._waiting == 0
        if ready:
            self._start()

    def _start(self) -> None:
        context, self._context = self._context, _NO_CONTEXT
        self.engine.start(self._main, context)

    # -- the run ------------------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        cell = self.cell
        # Before `start`: from then on a cancellation goes to the task.
        self._task = asyncio.current_task()
        if not cell.start():
            return
        self.record.begin()
        self._began_s = time.monotonic()
        self.view.stream.emit(events.RunStarted, self.node.op)
        body = self._body
        assert body is not None
        try:
            with running_inside(cell):
                outcome = await (body(self) if self.timeout_s is None else self._limited(body, self.timeout_s))
        except BaseException as error:
            self._failed(error)
        else:
            self.measured()
            truncated = bool(outcome.extras) and bool(dict(outcome.extras).get("loop.truncated"))
            self._finish(events.RunFinished, len(outcome.table), outcome.usage, truncated)
            cell.complete(outcome)
        finally:
            self._let_go()

    async def _limited(self, body: Callable[[Job], Awaitable[Outcome]], timeout_s: float) -> Outcome:
        try:
            async with asyncio.timeout(timeout_s) as limit:
                return await body(self)
        except TimeoutError as error:
            if not limit.expired():
                raise
            # Where the time ran out says nothing, and its frames hold what was running there.
            error.__traceback__ = error.__cause__ = None
            raise TurnTimeoutError(
                f"{self.node.op} took longer than {timeout_s:g} s; the rows so far are in session.partial",
                timeout_s=timeout_s,
            ) from None

    def measured(self) -> dict[str, Any]:
        """How long the run took, once it has all its rows, which goes into its lineage record for good; and what it cost."""
        record = self.record
        if record.duration_s is None and self._began_s is not None:
            record.duration_s = round(time.monotonic() - self._began_s, 6)
        return {"duration_s": record.duration_s, **record.bill.as_json()}

    def _failed(self, error: BaseException) -> None:
        self.measured()
        if self.log is not None:
            self.log.abandon()
        if isinstance(error, asyncio.CancelledError) and (self.cancelling or self._was_cancelled()):
            self._finish(events.RunCancelled, self.cell.cancel_reason)
            self.cell.cancelled(cancelled_failure(self.session_id, self._name(), self.cell.cancel_reason))
            return
        if isinstance(error, asyncio.CancelledError):
            # Awaiting readers would take a bare CancelledError for a cancellation of their own task.
            cause, error = error, RunCancelled(f"{self._name()}: a tool cancelled itself")
            error.__cause__ = cause
        _trim(error)
        _note(error, self.session_id, self.node)
        self._finish(events.RunFailed, type(error).__name__, _message(error))
        self.cell.fail(Failure(error, self.session_id, f"{self._name()}, called at {self.node.where}"))

    def _was_cancelled(self) -> bool:
        return self._task is not None and self._task.cancelling() > 0

    def _finish(self, kind: type[Any], *fields: Any) -> None:
        self.view.stream.drop_deltas()
        self.view.stream.emit(kind, *fields)

    def _let_go(self) -> None:
        """Drop whatever would outlive the run: inputs, closures, the lease."""
        self.engine.closed(self)
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.release()
        self._inputs = ()
        self._body = self._task = self.log = None
        self._context = _NO_CONTEXT

    # -- from outside -------------------------------------------------------------------------------------------------

    def _cancel(self) -> None:
        reason = self.cell.cancel_reason
        if self.cell.start():
            self._finish(events.RunCancelled, reason)
            self.cell.cancelled(cancelled_failure(self.session_id, self._name(), reason))
            self._let_go()
            return
        task = self._task
        if task is not None and not self.cancelling:
            # Once: a second one would interrupt the clean-up that the first one started.
            self.cancelling = True
            self.engine.loop.call_soon_threadsafe(task.cancel)

    def abandon(self) -> None:
        """The interpreter ends before the run does."""
        self.cell.cancel("the interpreter exited")

    def describe(self) -> str:
        where = f", log {self.log.path}" if self.log is not None else ""
        return f"{self._name()}, called at {self.node.where}{where}"

    def _name(self) -> str:
        return f"session {self.session_id} ({self.node.op})"


def submit(job: Job) -> tuple[Cell[Outcome], RunView]:
    """Start ``job`` when its inputs are resolved; its cell and view at once."""
    cell, view = job.cell, job.view
    job.submit()
    return cell, view


def _message(error: BaseException) -> str:
    try:
        return redact_text(str(error))[:4000]
    except Exception:  # a broken __str__ must not leave the run without an end
        return type(error).__name__


def _note(error: BaseException, session_id: UUID, node: Node) -> None:
    """One note, made where the error failed: an error that comes out of a nested run has it already."""
    with contextlib.suppress(Exception):  # frozen and broken exceptions cannot take one
        notes: list[str] = getattr(error, "__notes__", None) or []
        if not any(note.startswith(_NOTE) for note in notes):
            error.add_note(f"{_NOTE}{session_id} ({node.op}) failed; it was called at {node.where}")


def _trim(error: BaseException) -> None:
    """Clear rath's own frames from the tracebacks of an error and of what led to it.

    Their locals would keep rows, cells, the job and its sandbox alive for as long as the error.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        chain += (link.__cause__, link.__context__)
        with contextlib.suppress(Exception):
            if isinstance(link, asyncio.CancelledError):
                link.__traceback__ = None  # where a cancellation struck says nothing, and holds what was running there
            _trim_one(link)


def _trim_one(error: BaseException) -> None:
    trace = error.__traceback__
    if trace is not None and trace.tb_next is not None and trace.tb_frame.f_code is Job._main.__code__:
        error.__traceback__ = trace = trace.tb_next  # `_main` is still running
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_filename.startswith(PACKAGE):
            with contextlib.suppress(RuntimeError):  # still executing: it belongs to somebody who is not done with it
                frame.clear()
        trace = trace.tb_next
