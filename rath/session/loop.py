"""The session loop: a model and its tools, until the model is done."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, get_args, runtime_checkable
from uuid import UUID

from rath.core import ports
from rath.core.node import Node, call_site
from rath.core.ports import Durability, Middleware, Tool
from rath.errors import UsageTypeError, UsageValueError
from rath.llm.fold import DeltaFold
from rath.llm.provider import Provider
from rath.llm.registry import StreamingChatClient, chat_client_for
from rath.llm.types import RathLLMChatRequest, RathLLMChatResponse, RathLLMFunctionTool, RathLLMStreamDelta
from rath.session.graph.kind import LineageKind, SessionLineage
from rath.session.manager import session_registry
from rath.session.provider_builtin import DefaultSessionLoopExecutor
from rath.session.request import RunRequest
from rath.session.session import Session, journaled, make_session, new_record, share_lease

if TYPE_CHECKING:  # for readers of the signature: at run time a tool is whatever `ports` says
    from rath.flow.tool.base import FlowToolCall

__all__ = [
    "OnEventCb",
    "SessionLoopExecutor",
    "StreamingExecutor",
    "resolve_executor",
    "run_session_loop",
]

OnEventCb = Callable[[RathLLMStreamDelta], None]
"""What ``on_event`` is: called with every streamed fragment, in order, in a tool thread."""


@runtime_checkable
class SessionLoopExecutor(Protocol):
    """Does a loop's work in place of a client. Methods may be ``async``; synchronous ones run in tool threads."""

    def complete(self, req: RathLLMChatRequest) -> RathLLMChatResponse:
        """One completion."""

    def dispatch_tool(self, session: Session, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        """Run a tool on a snapshot of the session."""

    def tool_schemas(self) -> tuple[RathLLMFunctionTool, ...]:
        """What to tell the model of the tools; empty for the loop's own."""


class StreamingExecutor:
    """An executor that streams from a client and passes every fragment on.

    Args:
        client: can stream.
        on_event: called with each fragment as it arrives.
        inner: runs the tools; a :class:`DefaultSessionLoopExecutor` by default.
    """

    __slots__ = ("_inner", "_on_event", "client")

    def __init__(self, client: StreamingChatClient, on_event: OnEventCb, inner: SessionLoopExecutor | None = None) -> None:
        self.client = client
        self._on_event = on_event
        self._inner: SessionLoopExecutor = inner or DefaultSessionLoopExecutor(client)

    def complete(self, req: RathLLMChatRequest) -> RathLLMChatResponse:
        """One streamed completion, whole."""
        fold = DeltaFold()
        for delta in self.client.complete_stream(req):
            self._on_event(delta)
            fold.add(delta)
        return fold.response(self.client.provider.model or "")

    def dispatch_tool(self, session: Session, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        """The inner executor's."""
        return self._inner.dispatch_tool(session, tool, arguments)

    def tool_schemas(self) -> tuple[RathLLMFunctionTool, ...]:
        """The inner executor's."""
        return self._inner.tool_schemas()


def resolve_executor(
    *, agent_provider: Provider, executor: SessionLoopExecutor | None, on_event: OnEventCb | None
) -> SessionLoopExecutor:
    """The executor that a loop with these arguments amounts to.

    Raises:
        UsageValueError: ``on_event`` together with ``executor``.
        UsageTypeError: ``on_event`` with a client that cannot stream.
    """
    client = check_streaming(agent_provider, executor, on_event)
    if executor is not None:
        return executor
    return DefaultSessionLoopExecutor(client) if on_event is None else StreamingExecutor(client, on_event)


def check_streaming(provider: Provider, executor: object | None, on_event: OnEventCb | None) -> Any:
    """The provider's client; ``None`` if an executor stands in for it. Errors as of :func:`resolve_executor`."""
    if not isinstance(provider, Provider):
        raise UsageTypeError(f"agent_provider is a Provider, not {type(provider).__name__}")
    if inspect.iscoroutinefunction(provider.on_budget_exceeded):
        raise UsageTypeError("on_budget_exceeded is called in a thread: give a plain function, not an async one")
    if executor is not None:
        missing = [name for name in ("complete", "dispatch_tool", "tool_schemas") if not hasattr(executor, name)]
        if on_event is None and missing:
            raise UsageTypeError(f"executor {type(executor).__name__} lacks {', '.join(missing)}")
        if inspect.iscoroutinefunction(getattr(executor, "tool_schemas", None)):
            raise UsageTypeError("an executor's tool_schemas is called at once: it cannot be async")
        if on_event is not None:
            raise UsageValueError(
                "on_event does not go with a custom executor: stream inside it, "
                "e.g. executor=StreamingExecutor(client, on_event)"
            )
        return None
    client = chat_client_for(provider)
    if on_event is not None and not (hasattr(client, "complete_stream") or hasattr(client, "open_completion")):
        raise UsageTypeError(
            f"on_event needs a client that can stream; {type(client).__name__} "
            f"(provider kind {provider.provider_kind!r}) has no complete_stream"
        )
    return client


class _LogOptions(TypedDict):
    persist: bool
    durability: Durability
    persist_path: Path | None


def run_session_loop(
    user_session: Session,
    agent_session: Session,
    *,
    agent_provider: Provider,
    tools: Sequence[FlowToolCall] | None = None,
    executor: SessionLoopExecutor | None = None,
    max_tool_rounds: int = 64,
    on_event: OnEventCb | None = None,
    persist: bool | Durability = False,
    persist_path: Path | str | None = None,
    sandbox_handle_id: str | None = None,
    lazy: bool = True,
    middleware: Sequence[Middleware] = (),
    timeout_s: float | None = None,
) -> Session:
    """A session that continues ``user_session`` with what the model and its tools do. Returns at once, pending.

    Requests hold the agent session's rows, then the user session's; the output starts with the user's rows and shares
    their sandbox. Each round is one completion and the results of its tool calls, in call order. The run ends when a reply
    calls no tool, or after ``max_tool_rounds`` rounds (then ``("loop.truncated", True)`` is in ``lineage_extras``).

    Args:
        user_session: pending or not; likewise the agent's.
        agent_session: instructions; its rows do not enter the output.
        tools: beside the built-in ones.
        executor: completes and dispatches instead of the provider's client.
        on_event: gets every streamed fragment, in order; raising from it fails the run.
        persist: write ``.openrath/sessions/<id>.jsonl`` as the run goes. ``True`` is ``"turn"``: safe from SIGKILL at any
            moment, and from a power cut up to the last tool call or turn. ``"record"``: from a power cut at any moment, for
            a wait for the disk at each record. ``"process"``: never waits for the disk.
        persist_path: write the log there instead.
        sandbox_handle_id: a name for the sandbox, kept in the log's header.
        lazy: ``False`` waits before returning; the error raised then carries ``session_id`` and ``partial``.
        middleware: wraps the run; the first is outermost.
        timeout_s: seconds for the whole run.

    Raises:
        ToolNameConflictError: two tools have one name.
        UsageValueError: ``on_event`` with ``executor``; a negative limit.
        UsageTypeError: arguments of wrong types; ``on_event`` with a client that cannot stream.
        UsageError: ``persist`` without a directory for logs: this user has no home, and ``OPENRATH_HOME`` names none.
    """
    check_arguments(user_session, agent_session, on_event, timeout_s, persist_path)
    check_loop(max_tool_rounds, middleware)
    client = check_streaming(agent_provider, executor, on_event)
    table, schemas = tools_of(tools, executor)
    node = Node("run_session_loop", (user_session.id, agent_session.id), call_site())
    record = new_record(node.op, LineageKind.OP_SESSION_LOOP, (user_session, agent_session))
    return submit(
        RunRequest(
            node=node,
            record=record,
            user=user_session,
            agent=agent_session,
            provider=agent_provider,
            tools=table,
            schemas=schemas,
            client=client,
            executor=executor,
            on_event=on_event,
            max_tool_rounds=max_tool_rounds,
            sandbox_handle_id=sandbox_handle_id,
            timeout_s=timeout_s,
            **log_options(persist, persist_path, record.id),
            middleware=tuple(middleware),
        ),
        "session_loop",
        lazy=lazy,
    )


def log_options(persist: bool | Durability, persist_path: Path | str | None, session_id: UUID) -> _LogOptions:
    """Whether, how durably and where a run is logged: as it is meant at the call, whatever directory it starts in.

    Raises:
        UsageValueError: there is no such level.
        UsageError: there is no directory for logs, because this user has no home.
    """
    levels = get_args(Durability)
    if isinstance(persist, str) and persist not in levels:
        raise UsageValueError(f"persist is True, False, or one of {', '.join(map(repr, levels))}; got {persist!r:.60}")
    path = None if persist_path is None else _meant_now(persist_path)
    if path is None and persist:
        path = ports.load("log", "file")(session_id)
    return {
        "persist": path is not None,
        "durability": persist if isinstance(persist, str) else "turn",
        "persist_path": path,
    }


def _meant_now(path: Path | str) -> Path:
    """The path as it is meant at the call: by the time the run starts, the program may be in another directory."""
    try:
        return Path(path).expanduser().absolute()
    except (OSError, RuntimeError):  # whoever opens the log says what is wrong with it
        return Path(path)


def check_loop(max_tool_rounds: object, middleware: object) -> None:
    """What only loops have."""
    if not isinstance(max_tool_rounds, int) or max_tool_rounds < 0:
        raise UsageValueError(f"max_tool_rounds is a number of rounds, 0 or more; got {max_tool_rounds!r}")
    if not isinstance(middleware, Iterable) or callable(middleware) or not all(callable(one) for one in middleware):
        raise UsageTypeError("middleware is a sequence of functions from a runner to a runner")


def tools_of(
    tools: Sequence[FlowToolCall] | None, executor: SessionLoopExecutor | None
) -> tuple[Mapping[str, Tool], tuple[RathLLMFunctionTool, ...]]:
    """A loop's tools by name, built-ins included, and what the model is told of them."""
    table: Mapping[str, Tool] = ports.load("tools", "merge")(tools)
    schemas = None if executor is None else executor.tool_schemas()
    return table, tuple(schemas or ports.load("tools", "schemas")(table))


def submit(request: RunRequest, driver: str, *, lazy: bool, register: bool = True) -> Session:
    """Hand ``request`` to the engine and return the handle of what it will make."""
    lineage = SessionLineage(request.user.id, request.agent.id, request.operator)
    return submit_as(lineage, request, driver, lazy=lazy, register=register)


def submit_as(
    lineage: SessionLineage | None, request: RunRequest, driver: str, *, lazy: bool, register: bool = True
) -> Session:
    """:meth:`submit`, for an output that was made from other sessions than the request's."""
    user, agent = request.user, request.agent
    lease = share_lease(user._lease)
    cell, view = ports.load("run", driver)(request)
    out = journaled(make_session(request.record, cell, lease, lineage, view))
    if register:
        registry = session_registry()
        for session in (user, agent, out):
            registry.register(session)
        registry.set_active(out)
    if not lazy:
        try:
            out.synchronize()
        except Exception as error:
            # The caller has no handle to look these up on.
            with contextlib.suppress(Exception):  # frozen exceptions take no attributes
                error.session_id, error.partial = out.id, out.partial  # type: ignore[attr-defined]
            raise
    return out


def check_arguments(
    user_session: object, agent_session: object, on_event: object, timeout_s: object, persist_path: object
) -> None:
    """What a loop and a compression check alike, before anything is registered."""
    for name, session in (("user_session", user_session), ("agent_session", agent_session)):
        if not isinstance(session, Session):
            raise UsageTypeError(f"{name} is a Session, not {type(session).__name__}")
    if on_event is not None and not callable(on_event):
        raise UsageTypeError(f"on_event is a function of one delta, not {type(on_event).__name__}")
    if inspect.iscoroutinefunction(on_event):
        raise UsageTypeError("on_event is called in a thread: give a plain function, not an async one")
    if timeout_s is not None:
        if not isinstance(timeout_s, int | float):
            raise UsageTypeError(f"timeout_s is a number of seconds, not {type(timeout_s).__name__}")
        if not 0 < timeout_s < math.inf:
            raise UsageValueError(f"timeout_s is a positive number of seconds; got {timeout_s!r}")
    if persist_path is not None and not isinstance(persist_path, str | Path):
        raise UsageTypeError(f"persist_path is a path, not {type(persist_path).__name__}")
