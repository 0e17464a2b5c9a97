"""A run that goes on where another process, or another run of this one, stopped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rath.core.cell import Cell
from rath.core.redact import REDACTED
from rath.llm.types import RathLLMToolCallPart
from rath.runtime.driver import Run, start_run
from rath.runtime.turn import Action, Resume, TurnState, start_state, step
from rath.session.chunk import INTERRUPTED_BODY, ChunkKind, ChunkRow
from rath.session.outcome import Outcome, RunView
from rath.session.request import LoggedSoFar, RunRequest

__all__ = ["drive_continued"]


def drive_continued(request: RunRequest) -> tuple[Cell[Outcome], RunView]:
    """Start a run that goes on with the log ``request.resume``."""
    return start_run(request, ContinuedRun)


class ContinuedRun(Run):
    """A session loop that begins where its log ends: before a completion, in the middle of a round, or after the answer."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._so_far: LoggedSoFar = self._job.log.so_far
        self._usage = self._so_far.usage
        self._asked = False
        # A result that is in the log keeps the bytes that it has there.
        results = zip(self._so_far.calls, self._so_far.results, strict=True)
        self._durable = {call.id: row for call, row in results if row is not None}

        # Middleware may run this a second time: what came out the first time is in the log, and the model knows it.
        came_out = tuple(self._job.view.rows)
        if came_out:
            self.base = self.base.extend(*came_out)
            self._so_far = replace(self._so_far, calls=(), results=(), answered=_is_answer(came_out[-1]))

    def _begun(self) -> tuple[TurnState, tuple[Action, ...]]:
        so_far = self._so_far
        bodies = tuple(map(self._known_body, so_far.calls))
        limit = so_far.turns + self.request.max_tool_rounds
        return step(start_state(limit), Resume(so_far.turns, so_far.calls, bodies, so_far.answered))

    def _over_budget(self, before: int) -> bool:
        # Whoever was told that the budget was used up may have stopped the run for it. This one goes on, and asks again.
        before, self._asked = before if self._asked else 0, True
        return super()._over_budget(before)

    def _known_body(self, call: RathLLMToolCallPart) -> str | None:
        """What stands for the call's result; ``None`` if it is to run again."""
        row = self._durable.get(call.id)
        if row is not None:
            return row.text or ""
        tool = self.request.tools.get(call.function.name)
        # What was redacted in the log is not what the model had asked for.
        if getattr(tool, "idempotent", False) is True and REDACTED not in call.function.arguments:
            return None
        return INTERRUPTED_BODY

    def _result_row(self, call: RathLLMToolCallPart, body: str) -> ChunkRow:
        return self._durable.pop(call.id, None) or super()._result_row(call, body)


def _is_answer(row: ChunkRow) -> bool:
    return row.kind is ChunkKind.ASSISTANT and not row.tool_calls
