"""Where the rings meet: the protocols that a run needs, and the one table that says who implements them.

Nothing here imports an implementation. :func:`load` finds one by ``(port, name)``: first what was registered in this
process, then rath's own table, then entry points of the group ``rath.<port>`` that other packages declare.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from rath.core.events import Event
    from rath.llm.provider import Provider
    from rath.llm.types import (
        RathLLMChatRequest,
        RathLLMChatResponse,
        RathLLMStreamDelta,
        RathLLMTokenUsage,
    )
    from rath.session.chunk import ChunkTable
    from rath.session.request import LoggedSoFar

__all__ = [
    "Durability",
    "Engine",
    "Middleware",
    "ModelClient",
    "RunLog",
    "Runner",
    "Tool",
    "engine",
    "load",
    "names",
    "register",
]

T = TypeVar("T")


class Engine(Protocol):
    """What drives runs. One a process; found by name, so that another kind can take its place."""

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work()`` on the engine's loop soon. Any thread; never blocks."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on the engine's loop and wait. Raises ``WouldDeadlock`` on the loop's own thread."""

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a synchronous function in a tool thread, with the caller's context variables."""

    def on_loop_thread(self) -> bool:
        """Whether the caller runs on the engine's loop."""

    def at_close(self, closer: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await ``closer()`` on the loop when the engine closes."""


@runtime_checkable
class ModelClient(Protocol):
    """A model, reached asynchronously: the one method that a run needs.

    With ``stream=True`` it yields :class:`RathLLMStreamDelta` as they arrive; without, exactly one
    :class:`RathLLMChatResponse`. Errors are :class:`rath.errors.ProviderError`. Closing the iterator ends the request.
    """

    @property
    def provider(self) -> Provider: ...

    def open_completion(
        self, request: RathLLMChatRequest, *, stream: bool
    ) -> AsyncGenerator[RathLLMStreamDelta | RathLLMChatResponse, None]: ...


class Tool(Protocol):
    """What a run needs of a tool; ``rath.flow.tool.FlowToolCall`` is the class to derive from."""

    parallel_safe: bool
    idempotent: bool

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str | None: ...
    @property
    def parameters(self) -> Mapping[str, Any]: ...
    def resource_key(self, arguments: Mapping[str, Any]) -> tuple[str, ...]: ...
    def __call__(self, session: Any, arguments: Mapping[str, Any]) -> Any: ...


class RunLog(Protocol):
    """The durable sink of a run: the session's log.

    Every method but :meth:`abandon` raises ``PersistenceError`` at the first write that fails, and again ever after.
    """

    @property
    def path(self) -> Path: ...

    @property
    def so_far(self) -> LoggedSoFar | None:
        """What was in it when it was reopened; ``None`` for a new log."""

    def on_event(self, event: Event) -> None:
        """Append what the log keeps of ``event``."""

    def keep(self, digest: str, data: bytes) -> None:
        """Keep the whole text of a result that was cut, under its SHA-256, as durably as the log (may block). Any thread."""

    def needs_sync(self) -> bool:
        """Whether :meth:`sync` would have anything to do at this log's durability."""

    def sync(self) -> None:
        """Make what was appended durable (may block: call it in a thread)."""

    def close(
        self,
        *,
        usage: RathLLMTokenUsage | None,
        lineage_extras: tuple[tuple[str, Any], ...],
        outcome: dict[str, Any],
        table: ChunkTable | None = None,
    ) -> None:
        """Write the trailer, make it durable, release file and lock (may block). ``table``: the rows that were written."""

    def abandon(self) -> None:
        """Release file and lock without a trailer. Idempotent, never raises."""


Durability: TypeAlias = Literal["process", "turn", "record"]
"""What a log is safe from, besides the death of its process. ``process``: nothing. ``turn``: a power cut, as soon as a tool
is about to run and when a turn has ended. ``record``: a power cut at any moment."""
Runner: TypeAlias = "Callable[[Any], AsyncGenerator[Event, None]]"
Middleware: TypeAlias = "Callable[[Runner], Runner]"


_BUILT_IN: dict[tuple[str, str], str] = {
    ("engine", "local"): "rath.runtime.engine:local_engine",
    ("run", "session_loop"): "rath.runtime.driver:drive_loop",
    ("run", "session_continue"): "rath.runtime.continued:drive_continued",
    ("run", "session_compress"): "rath.runtime.driver:drive_compress",
    ("run", "custom"): "rath.runtime.custom:drive_custom",
    ("log", "jsonl"): "rath.session.persistence.runlog:open_run_log",
    ("log", "file"): "rath.session.persistence.paths:session_file",
    ("log", "peek"): "rath.session.persistence.resume:peek_log",
    ("log", "reopen"): "rath.session.persistence.resume:reopen_run_log",
    ("log", "resume"): "rath.session.persistence.resume:resume_session",
    ("log", "find_text"): "rath.session.persistence.blobs:find_text",
    ("tools", "merge"): "rath.flow.tool.table:merge_tools_for_loop",
    ("tools", "schemas"): "rath.flow.tool.table:tools_dict_to_schemas",
    ("backend", "local"): "rath.backend.local:LocalBackend",
    ("backend", "bwrap"): "rath.backend.bwrap.backend:BwrapBackend",
    ("backend", "auto"): "rath.backend.auto:AutoBackend",
    ("backend", "docker"): "rath.backend.docker.backend:DockerBackend",
    ("graph", "directory"): "rath.session.persistence.lineage:find_directory",
    ("graph", "logs"): "rath.session.persistence.lineage:read_nodes",
    ("graph", "networkx"): "rath.session.graph.view:digraph",
    ("graph", "transcript"): "rath.session.persistence.lineage:read_transcript",
    ("graph", "logged"): "rath.session.persistence.compared:compared_log",
    ("display", "chunk_table_bundle"): "rath.display.mimebundle:chunk_table_bundle",
    ("display", "chunk_table_html"): "rath.display.html:chunk_table_html",
    ("display", "graph_html"): "rath.display.graph_html:graph_html",
    ("display", "graph_jsonl"): "rath.display.jsonl:graph_jsonl",
    ("display", "graph_mimebundle"): "rath.display.mimebundle:graph_mimebundle",
    ("display", "graph_otlp"): "rath.display.otlp:graph_otlp",
    ("display", "graph_page"): "rath.display.page:graph_page",
    ("display", "graph_parquet"): "rath.display.parquet:graph_parquet",
    ("display", "lineage_dot"): "rath.display.dot:lineage_dot",
    ("display", "lineage_graphml"): "rath.display.graphml:lineage_graphml",
    ("display", "lineage_mermaid"): "rath.display.mermaid:lineage_mermaid",
    ("display", "lineage_svg"): "rath.display.svg:lineage_svg",
    ("display", "lineage_tree"): "rath.display.tree:lineage_tree",
    ("display", "session_html"): "rath.display.html:session_html",
    ("display", "session_diff_html"): "rath.display.session_diff_html:session_diff_html",
    ("display", "session_diff_text"): "rath.display.session_diff:session_diff_text",
    ("display", "table_html"): "rath.display.table:table_html",
    ("display", "widget"): "rath.display.widget:LineageWidget",
    ("display", "workspace_diff_bundle"): "rath.display.mimebundle:workspace_diff_bundle",
    ("display", "workspace_diff_html"): "rath.display.html:workspace_diff_html",
    ("client", "openai"): "rath.llm.openai:RathOpenAIChatClient",
    ("client", "anthropic"): "rath.llm.anthropic:RathAnthropicChatClient",
    ("client", "scripted"): "rath.llm.scripted:ScriptedClient.from_provider",
}
_lock = threading.RLock()
_registered: dict[tuple[str, str], Any] = {}


def _reset_after_fork() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_reset_after_fork)


def register(port: str, name: str, implementation: Any) -> None:
    """Let ``name`` of ``port`` be ``implementation`` in this process, in place of what it was."""
    with _lock:
        _registered[port, name] = implementation


def load(port: str, name: str) -> Any:
    """The implementation ``name`` of ``port``, imported when first asked for. Raises ``KeyError`` if there is none."""
    found = _registered.get((port, name))
    if found is not None:
        return found
    target = _BUILT_IN.get((port, name))
    if target is None:
        for entry in entry_points(group=f"rath.{port}", name=name):
            found = entry.load()
            register(port, name, found)
            return found
        raise KeyError(name)
    module_name, _, path = target.partition(":")
    found = importlib.import_module(module_name)
    for part in path.split("."):
        found = getattr(found, part)
    register(port, name, found)
    return found


def names(port: str) -> tuple[str, ...]:
    """The names that :func:`load` knows for ``port``, rath's own first."""
    known = [name for p, name in _BUILT_IN if p == port]
    known += [name for p, name in _registered if p == port]
    known += [entry.name for entry in entry_points(group=f"rath.{port}")]
    return tuple(dict.fromkeys(known))


def engine() -> Engine:
    """The process's engine, started when first asked for."""
    made: Engine = load("engine", "local")()
    return made
