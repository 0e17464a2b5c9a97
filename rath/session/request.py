"""What a run is asked to do, with the things it does it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from rath.core.node import Node
from rath.core.ports import Durability, Middleware, Tool
from rath.llm.pricing import Bill
from rath.llm.provider import Provider
from rath.llm.types import RathLLMFunctionTool, RathLLMStreamDelta, RathLLMTokenUsage, RathLLMToolCallPart
from rath.session.chunk import ChunkRow, ChunkTable
from rath.session.graph.record import LineageRecord
from rath.session.session import Session

__all__ = ["LoggedSoFar", "RunRequest"]

OnEvent = Callable[[RathLLMStreamDelta], None]


@dataclass(frozen=True, slots=True, eq=False)
class LoggedSoFar:
    """Where a log stopped that a run goes on with.

    Attributes:
        table: the rows that are in it, up to the last one that has its own record.
        calls: those calls of the last reply that have no row yet, in order.
        results: their results, as far as the log has them.
        usage, bill: the tokens so far, and what they cost.
        turns: how many replies the run has had.
        answered: whether the last of them ended the run.
    """

    table: ChunkTable
    calls: tuple[RathLLMToolCallPart, ...]
    results: tuple[ChunkRow | None, ...]
    usage: RathLLMTokenUsage | None
    bill: Bill
    turns: int
    answered: bool


@dataclass(frozen=True, slots=True, eq=False)
class RunRequest:
    """One run: its node, its input sessions, and its collaborators. Middleware gets this and may ``replace`` parts.

    Attributes:
        user: the session that the output continues.
        agent: the session whose rows go first in every request.
        tools: by name, built-ins included.
        schemas: what the model is told of them.
        client: the model, when there is no executor.
        executor: completes and dispatches in the client's stead.
        persist: whether to write a log, at ``durability``, to ``persist_path``.
        resume: the log to go on with, instead.
        timeout_s: for the whole run, in seconds.
    """

    node: Node
    record: LineageRecord
    user: Session
    agent: Session
    provider: Provider
    tools: Mapping[str, Tool]
    schemas: tuple[RathLLMFunctionTool, ...]
    client: Any = None
    executor: Any = None
    on_event: OnEvent | None = None
    max_tool_rounds: int = 64
    instruction: str | None = None
    persist: bool = False
    durability: Durability = "turn"
    persist_path: Path | None = None
    resume: Path | None = None
    sandbox_handle_id: str | None = None
    timeout_s: float | None = None
    middleware: tuple[Middleware, ...] = ()

    @property
    def session_id(self) -> UUID:
        return self.record.id

    @property
    def operator(self) -> str:
        return self.node.op
