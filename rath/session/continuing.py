"""A run goes on where its log stops: in another process, after a crash, in the middle of a round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from rath.backend.types import BackendSandboxSpec
from rath.core import ports
from rath.core.node import Node, call_site
from rath.core.ports import Middleware
from rath.errors import UsageTypeError, UsageValueError
from rath.llm.provider import Provider
from rath.session.chunk import ChunkTable
from rath.session.graph.record import LineageRecord
from rath.session.loop import (
    OnEventCb,
    SessionLoopExecutor,
    check_arguments,
    check_loop,
    check_streaming,
    run_session_loop,
    submit_as,
    tools_of,
)
from rath.session.request import RunRequest
from rath.session.session import Session, make_session

if TYPE_CHECKING:  # for readers of the signature: at run time a tool is whatever `ports` says
    from rath.flow.tool.base import FlowToolCall

__all__ = ["continue_session_loop"]


def continue_session_loop(
    path_or_id: UUID | Path | str,
    *,
    agent_provider: Provider,
    tools: Sequence[FlowToolCall] | None = None,
    agent_session: Session | str | None = None,
    executor: SessionLoopExecutor | None = None,
    max_tool_rounds: int = 64,
    on_event: OnEventCb | None = None,
    backend: str | None = None,
    spec: BackendSandboxSpec | str | None = None,
    lazy: bool = True,
    middleware: Sequence[Middleware] = (),
    timeout_s: float | None = None,
) -> Session:
    """The session whose run a log was written by, going on where the log stops. Returns at once, pending.

    Same id, same file. Results that are in the log are used; of the last reply's calls, one without a result is run again if
    its tool, as given now, is ``idempotent``, and else answered as ``interrupted``. Then the loop goes on with the next
    completion; if the last reply was the answer, only the trailer was missing. Usage adds to what the log has. Workspaces
    are not in logs: a sandbox that died with its process is opened anew, from its spec.

    A log that is complete is not written to: the session is a new one, with its own log, whose parent is the log's session.
    To say something first: ``run_session_loop(resume_session(id).user("..."), agent, ...)``.

    Args:
        path_or_id: a session's id, or the path of a log; a ``str`` that is a UUID is an id.
        tools: beside the built-in ones; they are in no log.
        agent_session: instructions, or their text; they are in no log either. None by default.
        max_tool_rounds: from here on.
        backend: where tools run; the log's placement by default. With ``spec``, how to open it.

    The other arguments are those of :func:`run_session_loop`.

    Raises:
        DamagedLog: the log has no header.
        PersistenceError: there is no such log, or its backend is not here.
        UsageValueError: the log is of a run that was no loop; or as of :func:`run_session_loop`.
        UsageTypeError: arguments of wrong types.

    Reading the session raises ``PersistenceError`` if a process is writing the log (says which), it is damaged, its run had
    not begun, or its rows were written by hand and are no transcript.
    """
    agent = _agent(agent_session)
    check_arguments(agent, agent, on_event, timeout_s, None)
    check_loop(max_tool_rounds, middleware)
    if spec is not None and backend is None:
        raise UsageValueError("spec says how to open a sandbox of a backend: name it, backend=...")
    seen = ports.load("log", "peek")(path_or_id)

    def placed(session: Session) -> Session:
        out: Session = seen.place(session) if backend is None else session.to(backend, spec=spec)
        return out

    if seen.ended:
        return run_session_loop(
            placed(_rows_later(seen)),
            agent,
            agent_provider=agent_provider,
            tools=tools,
            executor=executor,
            max_tool_rounds=max_tool_rounds,
            on_event=on_event,
            persist=True,
            lazy=lazy,
            middleware=middleware,
            timeout_s=timeout_s,
        )
    header = seen.header
    if header.lineage_operator == "run_session_compress":
        raise UsageValueError(f"{seen.path} is the log of a compression, which has nothing to go on with: run it again")
    client = check_streaming(agent_provider, executor, on_event)
    table, schemas = tools_of(tools, executor)
    request = RunRequest(
        node=Node("continue_session_loop", (header.id, agent.id), call_site()),
        record=_record(header, seen.path, "open"),
        # Says who the session is and where it is placed. Its rows come when the log is open.
        user=placed(Session(ChunkTable(), id=header.id)),
        agent=agent,
        provider=agent_provider,
        tools=table,
        schemas=schemas,
        client=client,
        executor=executor,
        on_event=on_event,
        max_tool_rounds=max_tool_rounds,
        persist=True,
        resume=seen.path,
        timeout_s=timeout_s,
        middleware=tuple(middleware),
    )
    return submit_as(seen.producers(), request, "session_continue", lazy=lazy)


def _agent(given: Session | str | None) -> Session:
    if given is None:
        return Session(ChunkTable())
    if isinstance(given, str):
        return Session.from_agent_prompt(given)
    if not isinstance(given, Session):
        raise UsageTypeError(f"agent_session is a Session or a prompt, not {type(given).__name__}")
    return given


def _record(header: Any, path: Path, verdict: str) -> LineageRecord:
    model = (header.provider or {}).get("model")
    return LineageRecord(
        header.id,
        header.parent_session_ids,
        header.lineage_operator,
        header.lineage_kind,
        header.lineage_extras,
        model=model if isinstance(model, str) else None,
        created_at=header.created_at.timestamp(),
        log=str(path),
        verdict=verdict,
    )


def _rows_later(seen: Any) -> Session:
    """The log's session, whose rows are read in a tool thread."""
    resume = ports.load("log", "resume")
    node = Node("resume_session", (), call_site())
    cell, view = ports.load("run", "custom")(node, seen.header.id, (), resume, ((seen.path,), {}))
    return make_session(_record(seen.header, seen.path, "complete"), cell, None, seen.producers(), view)
