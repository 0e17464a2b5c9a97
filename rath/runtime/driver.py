"""The driver: performs what the turn machine says.

It awaits the model, dispatches tools, appends rows, writes the log and emits events, in the order that the log's promises
need: a row is in the log when it is in the table, a tool's intent before the tool runs, its result when it ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from rath.core import events
from rath.core.cell import Cell
from rath.core.kept import run_log
from rath.core.ports import Engine, Tool
from rath.errors import (
    PersistenceError,
    RathError,
    RunCancelled,
)
from rath.llm.provider import request_options
from rath.llm.tool_args import parse_tool_arguments
from rath.llm.types import (
    RathLLMAssistantMessage,
    RathLLMChatRequest,
    RathLLMMessage,
    RathLLMTokenUsage,
    RathLLMToolCallPart,
    add_usage,
    counted,
)
from rath.runtime.calling import ToolCalls
from rath.runtime.completion import Completer
from rath.runtime.dispatch import run_round
from rath.runtime.job import Job, submit
from rath.runtime.pipeline import run_through
from rath.runtime.results import failure_payload
from rath.runtime.sync import Sync
from rath.runtime.turn import (
    Action,
    AppendAssistant,
    AppendResults,
    Begin,
    CallModel,
    Dispatch,
    Ended,
    Finish,
    Input,
    Interrupted,
    Replied,
    TurnState,
    start_state,
    step,
)
from rath.session.chunk import (
    INTERRUPTED_BODY,
    ChunkRow,
    ChunkTable,
    assistant_turn_chunk,
    chunk_table_to_messages,
    tool_feedback_chunk,
    user_text_chunk,
)
from rath.session.outcome import EAGER_DIGEST_ROWS, Outcome, RunView
from rath.session.request import RunRequest
from rath.session.session import Session, share_lease, snapshot_session

__all__ = ["Run", "drive_compress", "drive_loop", "start_run"]

_log = logging.getLogger("rath.session.loop")


def drive_loop(request: RunRequest) -> tuple[Cell[Outcome], RunView]:
    """Start a session loop."""
    return start_run(request, Run)


def drive_compress(request: RunRequest) -> tuple[Cell[Outcome], RunView]:
    """Start a compression."""
    return start_run(request, CompressRun)


def start_run(request: RunRequest, kind: type[BaseRun]) -> tuple[Cell[Outcome], RunView]:
    """Start a run of this kind as soon as its inputs are resolved."""
    body = partial(run_through, request=request, make_run=kind)
    inputs = (request.user, request.agent)
    if request.record.model is None:  # else a log says which one its run asked first
        request.record.model = request.provider.model
    return submit(Job(request.node, request.session_id, inputs, body, request.timeout_s, request.record))


class BaseRun(ABC):
    """What a loop and a compression share: rows, usage, budget, log, events.

    Args:
        base: the rows that the output starts with.
        rows: gets the run's own rows; only ever grows.
        emit: takes an event's type and fields.
        sync: awaits until everything emitted so far is as durable as the log promises; ``None`` without a log.
    """

    def __init__(
        self,
        request: RunRequest,
        job: Job,
        base: ChunkTable,
        rows: list[ChunkRow],
        emit: Callable[..., None],
        sync: Sync | None,
    ) -> None:
        self.request = request
        self.emit = emit
        self._job = job
        self._sync = sync
        self._engine: Engine = job.engine
        self._completer = Completer(request, job.engine, job.view.stream, emit)
        self._usage: RathLLMTokenUsage | None = None
        self._snapshot: Session | None = None
        self._head = request.agent.partial
        self.base = base
        self.rows = rows
        self._options = request_options(
            request.provider, tools=request.schemas, default_tool_choice="auto" if request.schemas else "none"
        )

    @abstractmethod
    async def run(self) -> Outcome:
        """Do the work. The rows so far are in ``rows`` at every moment, fit for any provider."""

    def append(self, row: ChunkRow) -> None:
        """Add a row to the table, the partial result and the stream (and so to the log)."""
        self.rows.append(row)
        self._snapshot = None
        self.emit(events.RowAppended, len(self.base) + len(self.rows) - 1, row)

    def snapshot(self) -> Session:
        """The session as tools and callbacks see it: resolved, with the run's id, lineage and placement."""
        if self._snapshot is None:
            outcome = Outcome(ChunkTable.growing(self.base, self.rows), self._usage)
            self._snapshot = snapshot_session(self.request.record, outcome, share_lease(self._job.lease))
        return self._snapshot

    def _chat_request(self, turn: int, extra: tuple[RathLLMMessage, ...] = ()) -> RathLLMChatRequest:
        messages = partial(_messages, self._head, self._transcript(), extra)
        return RathLLMChatRequest.deferred(self._options, messages, turn=turn)

    def _transcript(self) -> ChunkTable:
        """What follows the agent's rows in a request."""
        return ChunkTable.growing(self.base, self.rows)

    async def ask(
        self,
        turn: int,
        extra: tuple[RathLLMMessage, ...] = (),
        replied: Callable[[RathLLMAssistantMessage], None] | None = None,
    ) -> Any:
        """One completion: its first choice, with usage booked and the budget checked.

        ``replied`` gets the message before anything else can fail: a budget that ends the run keeps what it paid for.
        """
        self.emit(events.TurnStarted, turn)
        response = await self._completer.complete(self._chat_request(turn, extra))
        choice = response.choices[0]
        message = choice.message
        self.emit(events.MessageFinished, turn, _said(message), len(message.tool_calls or ()), choice.finish_reason)
        if replied is not None:
            replied(message)
        usage = counted(response.usage)
        if usage is not None:
            before = 0 if self._usage is None else self._usage.total_tokens
            self._usage = add_usage(self._usage, usage)
            self.emit(events.UsageReported, usage, response.model or self.request.provider.model or "")
            if self._over_budget(before):
                await self._budget_exceeded()
        else:  # what it cost, and so what the run cost, nobody can know
            self.request.record.bill = self.request.record.bill.plus(None, "", None)
        return choice

    def _over_budget(self, before: int) -> bool:
        cap = self.request.provider.budget_total_tokens
        return cap is not None and self._usage is not None and before <= cap < self._usage.total_tokens

    async def _budget_exceeded(self) -> None:
        provider, usage = self.request.provider, self._usage
        if provider.on_budget_exceeded is not None:
            lane = self._completer.lane
            lane.call(provider.on_budget_exceeded, self.snapshot(), usage)
            await lane.settle()
            return
        _log.warning(
            "session %s used %d tokens, more than budget_total_tokens=%d; set Provider.on_budget_exceeded to act on it",
            self.request.session_id,
            0 if usage is None else usage.total_tokens,
            provider.budget_total_tokens,
        )

    def outcome(self, extras: tuple[tuple[str, Any], ...] = ()) -> Outcome:
        table = self.base.extend(*self.rows)
        table.digest_within(EAGER_DIGEST_ROWS)
        return Outcome(table, self._usage, extras)


class Run(BaseRun):
    """One session loop."""

    async def run(self) -> Outcome:
        """Drive the machine to its end. The rows so far are in the job's view at every moment, fit for any provider."""
        self._state, actions = self._begun()
        self._turn_began = time.monotonic()
        self._calls = ToolCalls(self.request, self._job, self.snapshot)
        self._todo = deque(actions)
        if self._job.log is not None:
            run_log.set(self._job.log.path)
        own_task = asyncio.current_task()
        assert own_task is not None
        try:
            while True:
                if self._job.cancelling or own_task.cancelling():
                    # A tool may have swallowed the cancellation, or nothing has waited since it was asked for.
                    raise asyncio.CancelledError
                action = self._todo.popleft()
                # Awaited here, not in `_perform`: runs spend their life in this line, and each frame is memory.
                if type(action) is CallModel:
                    self._turn_began = time.monotonic()
                    await self.ask(action.turn, replied=self._replied)
                elif type(action) is Finish:
                    return self._finished(action)
                else:
                    await self._perform(action)
        except BaseException:
            self._interrupt()
            raise

    def _begun(self) -> tuple[TurnState, tuple[Action, ...]]:
        """The machine's first step."""
        return step(start_state(self.request.max_tool_rounds), Begin())

    def _replied(self, message: RathLLMAssistantMessage) -> None:
        self._feed(Replied(_said(message), message.tool_calls or ()))

    def _feed(self, event: Input) -> None:
        self._state, actions = step(self._state, event)
        self._todo.extend(actions)

    def _interrupt(self) -> None:
        """Give every unanswered call of the round its row, so that the partial transcript stays valid."""
        try:
            # Behind the rows that the machine has asked for and nobody has appended yet.
            self._feed(Interrupted(INTERRUPTED_BODY))
        except ValueError as error:
            _log.debug("no interrupted rows: %s", error)  # it is over already
        for action in self._todo:
            if type(action) is AppendAssistant:
                self._append_last(assistant_turn_chunk(tool_calls=action.calls, content=action.text))
            elif type(action) is AppendResults:
                for row in map(self._result_row, action.calls, action.bodies):
                    self._append_last(row)
        self._todo.clear()

    def _append_last(self, row: ChunkRow) -> None:
        try:
            self.append(row)
        except PersistenceError as error:
            # The log is what failed: the first error is the one that counts, and the row is in the table.
            _log.debug("not logged: %s", error)

    async def _perform(self, action: Any) -> None:
        kind = type(action)
        if kind is AppendAssistant:
            self.append(assistant_turn_chunk(tool_calls=action.calls, content=action.text))
            if not action.calls:
                await self._turn_finished()
        elif kind is Dispatch:
            await self._run_round(action.calls)
        else:
            self._append_results(action)
            await self._turn_finished()

    def _append_results(self, action: AppendResults) -> None:
        rows = deque(map(self._result_row, action.calls, action.bodies))
        try:
            while rows:
                self.append(rows.popleft())
        except BaseException:
            for row in rows:
                self._append_last(row)
            raise

    def _result_row(self, call: RathLLMToolCallPart, body: str) -> ChunkRow:
        return tool_feedback_chunk(call.id, call.function.name, body)

    async def _turn_finished(self) -> None:
        if self._sync is not None:
            await self._sync()
        self.emit(events.TurnFinished, self._turn(), time.monotonic() - self._turn_began)

    def _turn(self) -> int:
        # The machine counts the next turn as soon as the last result is in.
        asks_next = bool(self._todo) and type(self._todo[0]) is CallModel
        return self._state.turn - 1 if asks_next else self._state.turn

    def _finished(self, action: Finish) -> Outcome:
        if not action.truncated:
            return self.outcome()
        _log.warning(
            "run_session_loop of session %s used up max_tool_rounds=%d before the model was done",
            self.request.session_id,
            self.request.max_tool_rounds,
        )
        return self.outcome((("loop.truncated", True),))

    # -- tools --------------------------------------------------------------------------------------------------------

    async def _run_round(self, calls: tuple[RathLLMToolCallPart, ...]) -> None:
        first_row = len(self.base) + len(self.rows)
        ready: list[tuple[int, Tool, dict[str, Any]]] = []
        keys: list[tuple[str, ...] | None] = []
        waiting = [index for index, body in enumerate(self._state.results) if body is None]
        for index in waiting:
            checked = self._check_call(calls[index])
            if isinstance(checked, str):
                self._feed(Ended(index, checked))
                continue
            tool, arguments, key = checked
            ready.append((index, tool, arguments))
            keys.append(key)
        if not ready:
            return

        async def run_call(position: int) -> BaseException | None:
            index, tool, arguments = ready[position]
            return await self._run_call(index, calls[index], tool, arguments, first_row + index)

        # One call, the usual case, is awaited where it stands.
        fatal = await (run_call(0) if len(ready) == 1 else run_round(keys, run_call))
        if fatal is not None:
            raise fatal

    def _check_call(self, call: RathLLMToolCallPart) -> tuple[Tool, dict[str, Any], tuple[str, ...] | None] | str:
        """What to run, or the failure to report."""
        function = call.function
        arguments, bad = function.arguments_parsed, function.arguments_parse_error
        if arguments is None:
            arguments, bad = parse_tool_arguments(function.arguments)
        tool = self.request.tools.get(function.name)
        if tool is None:
            known = ", ".join(sorted(self.request.tools))
            return failure_payload("unknown_tool", f"there is no tool {function.name!r}; there are: {known}")
        if bad or arguments is None:
            return failure_payload(
                "invalid_tool_arguments",
                f"the arguments for {function.name!r} are not a JSON object: send them again as one",
                function.arguments,
            )
        try:
            key = tuple(tool.resource_key(arguments)) if tool.parallel_safe else None
            hash(key)
        except Exception as error:
            return failure_payload("tool_execution_exception", _describe(error), "resource_key raised")
        return tool, arguments, key

    async def _run_call(
        self, index: int, call: RathLLMToolCallPart, tool: Tool, arguments: dict[str, Any], row_index: int
    ) -> BaseException | None:
        name = call.function.name
        turn = self._state.turn
        try:
            idempotent = getattr(tool, "idempotent", False) is True
            self.emit(events.ToolStarted, turn, index, call.id, name, call.function.arguments, idempotent)
            if self._sync is not None:
                await self._sync()
            began = time.monotonic()
            body, ok, spills = await self._calls.result_of(tool, arguments)
            elapsed_s = time.monotonic() - began
            self.emit(events.ToolFinished, turn, index, call.id, name, ok, body, row_index, elapsed_s, spills)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return RunCancelled(f"tool {name!r} cancelled itself")
        except BaseException as error:
            # A fatal error is returned, not raised: raised from a task of its own, KeyboardInterrupt would stop the loop.
            return error
        self._feed(Ended(index, body))
        return None


class CompressRun(BaseRun):
    """One compression: a single completion without tools."""

    def _transcript(self) -> ChunkTable:
        return self.request.user.partial

    async def run(self) -> Outcome:
        instruction = RathLLMMessage(role="user", content=self.request.instruction)
        choice = await self.ask(1, (instruction,))
        message = choice.message
        if message.tool_calls:
            raise RathError("run_session_compress: the model called a tool, but there are none in a compression")
        text = (message.content or "").strip()
        if not text:
            raise RathError("run_session_compress: the model's reply is empty")
        self.append(user_text_chunk(text))
        if self._sync is not None:
            await self._sync()
        return self.outcome()


def _messages(head: ChunkTable, transcript: ChunkTable, extra: tuple[RathLLMMessage, ...]) -> tuple[RathLLMMessage, ...]:
    return (*chunk_table_to_messages(head), *chunk_table_to_messages(transcript), *extra)


def _said(message: RathLLMAssistantMessage) -> str | None:
    return message.refusal if message.content is None else message.content


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # a broken __str__ is the tool's fault, not the run's
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
