"""A tool call: how a tool is run, and what its result is.

What a tool returns becomes JSON text for the model; what was cut of it is kept whole, in the log's blobs or in memory.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from rath.core.kept import kept_texts
from rath.core.ports import Tool
from rath.errors import PersistenceError, PolicyStop, RunCancelled, SandboxError, ToolError
from rath.runtime.job import Job
from rath.runtime.results import Encoded, Later, LongResult, begin_error, begin_result
from rath.session.request import RunRequest
from rath.session.session import Session

__all__ = ["ToolCalls"]

_log = logging.getLogger("rath.session.loop")
# What a tool raises goes back to the model, but these end the run: no retry by the model can mend them.
_FATAL = (SandboxError, PersistenceError, PolicyStop, RunCancelled)


class ToolCalls:
    """The tool calls of one run.

    Args:
        snapshot: the session as a tool sees it now.
    """

    __slots__ = ("_engine", "_how", "_job", "_request", "_snapshot")

    def __init__(self, request: RunRequest, job: Job, snapshot: Callable[[], Session]) -> None:
        self._request = request
        self._job = job
        self._engine = job.engine
        self._snapshot = snapshot
        self._how: dict[str, _How] = {}

    async def result_of(self, tool: Tool, arguments: Mapping[str, Any]) -> Encoded:
        """Run the tool; its result, or its failure, for the model.

        Raises:
            SandboxError, PersistenceError, PolicyStop, RunCancelled: what no retry by the model could mend. A whole text
                that cannot be kept is a ``PersistenceError``.
        """
        try:
            begun = begin_result(await self._invoke(tool, arguments))
        except _FATAL:
            raise
        except Exception as error:
            _log.info("tool %s raised; the model is told", tool.name, exc_info=error)
            begun = begin_error(error)
            _drop_tracebacks(error)
        return begun if isinstance(begun, Encoded) else await self._encoded(begun)

    async def _encoded(self, long: LongResult | Later) -> Encoded:
        log = self._job.log
        # In a thread: 100 MB are searched for secrets, hashed and written.
        return await self._engine.call(long.encode, kept_texts.keep if log is None else log.keep)

    async def _invoke(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        executor = self._request.executor
        if executor is not None:
            return await self._call_user(executor.dispatch_tool, self._snapshot(), tool, arguments)
        how = self._how.get(tool.name)
        if how is None:
            how = self._how[tool.name] = _how_to_call(tool)
        if how is _How.SANDBOX:
            return await self._in_sandbox(_sandbox_request(tool, arguments))
        session = self._snapshot() if getattr(tool, "takes_session", True) else None
        if how is _How.AWAIT:
            return await tool(session, arguments)
        result = await self._engine.call(tool, session, arguments)
        return await result if inspect.isawaitable(result) else result

    async def _call_user(self, function: Callable[..., Any], *args: Any) -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(*args)
        result = await self._engine.call(function, *args)
        return await result if inspect.isawaitable(result) else result

    async def _in_sandbox(self, call: Any) -> Any:
        lease = self._job.lease
        if lease is None:
            raise SandboxError('the session has no sandbox for its tools: place it first, session = session.to("local")')
        lease.check()
        return await lease.dispatch(call)


class _How(Enum):
    """How a tool is called: found out once a run."""

    SANDBOX = "its request is awaited"
    AWAIT = "on the loop"
    THREAD = "in a tool thread"


def _how_to_call(tool: Tool) -> _How:
    call = type(tool).__call__
    if getattr(call, "runs_sandbox_request", False):
        return _How.SANDBOX
    return _How.AWAIT if inspect.iscoroutinefunction(call) else _How.THREAD


def _sandbox_request(tool: Any, arguments: Mapping[str, Any]) -> Any:
    try:
        return tool.request(arguments)
    except ToolError:
        raise
    except (TypeError, ValueError) as error:
        raise ToolError(str(error), kind="invalid_tool_arguments") from error


def _drop_tracebacks(error: BaseException | None) -> None:
    """The frames of an error hold the snapshot that its tool got, and so the sandbox, until the next full collection."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        with contextlib.suppress(Exception):  # frozen exceptions refuse
            error.__traceback__ = None
        error = error.__cause__ or error.__context__
