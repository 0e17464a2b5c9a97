"""A graph that is drawn anew while runs go on: looks every quarter of a second, waits for nobody, holds no session."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID
from weakref import ref

from rath.core import ports
from rath.core.redact import redact_text
from rath.display.graph_html import graph_cell
from rath.display.text import one_line
from rath.errors import RathError, UsageError
from rath.session.graph.build import lineage
from rath.session.graph.model import SessionGraph

__all__ = ["watch"]

LEAST_INTERVAL_S = 0.25
IDLE_S = 60.0
_BUSY_SHARE = 0.2
"""How much of a core looking and drawing may take: a large graph is looked at less often."""
LIVE_BYTES = 300_000
_LIVE_TRANSCRIPTS = 12
_GOING_ON = ("pending", "running")


def watch(
    source: Any = None, /, *, dir: Any = None, interval_s: float = LEAST_INTERVAL_S, idle_s: float = IDLE_S
) -> Any:
    """A widget for notebooks that shows a lineage graph and draws it anew while runs go on.

    It stops by itself when no session of the graph is pending or running, and when it is closed; a graph of nothing but
    ended sessions is drawn once. A directory or a registry may get more sessions: there it waits for the next run, so it
    may be called before the first. It holds lineage records, not sessions; a click on a node shows the rows it has so far.

    Args:
        source: a :class:`SessionGraph`, or what :func:`rath.lineage` takes: a session, several, a registry.
        dir: a directory of logs, as for :func:`rath.lineage`.
        interval_s: how long to wait between two looks; a quarter of a second at least.
        idle_s: how long to wait for the next run of a directory or a registry.

    Raises:
        UsageError: anywidget is not installed.
    """
    graph = source if isinstance(source, SessionGraph) else lineage(source, dir=dir)
    try:
        widget = ports.load("display", "widget")()
    except ImportError as error:
        raise UsageError(
            "rath.watch needs the package anywidget: pip install 'rath[widget]'. Without it, show rath.lineage(...) again "
            "to see how far the runs are"
        ) from error
    watcher = _Watcher(graph, ref(widget), max(interval_s, LEAST_INTERVAL_S), idle_s)
    widget.stop = watcher.stop
    widget.observe(watcher.choose, names="chosen")
    watcher.start()
    return widget


class _Watcher:
    """Looks at a graph in a thread of its own, as long as its widget is there."""

    def __init__(self, graph: SessionGraph, widget: Callable[[], Any], interval_s: float, idle_s: float) -> None:
        self._graph = graph
        self._drawn: SessionGraph | None = None
        self._widget = widget
        self._interval_s = interval_s
        self._idle_s = idle_s if graph._source.grows else 0.0
        self._last_run_s = time.monotonic()
        self._name = f"rg{secrets.token_hex(5)}"
        self._stopped = threading.Event()
        self._drawing = threading.Lock()
        self._chosen: UUID | None = None

    def start(self) -> None:
        """Draw once, now; then go on in the background, if a run goes on or may come."""
        if self._look():
            threading.Thread(target=self._go_on, name="rath-watch", daemon=True).start()

    def stop(self) -> None:
        """Look no more. Idempotent."""
        self._stopped.set()

    def choose(self, change: Any) -> None:
        """The reader has unfolded a session: draw it with its rows."""
        try:
            self._chosen = UUID(change["new"])
        except ValueError:
            self._chosen = None
        self._draw()

    def _go_on(self) -> None:
        took_s = 0.0
        while not self._stopped.wait(max(self._interval_s, took_s / _BUSY_SHARE)):
            began = time.monotonic()
            if not self._look():
                return
            took_s = time.monotonic() - began

    def _look(self) -> bool:
        """Read the graph as it is now, draw it if it has changed; whether to look again."""
        try:
            graph = self._graph.refresh()
        except RathError as error:
            self._tell(f"not read any more: {one_line(redact_text(str(error)), 200)}")
            return False
        changed = graph != self._drawn
        self._graph = graph
        if changed:
            self._draw()
        now = time.monotonic()
        if any(node.status in _GOING_ON for node in graph):
            self._last_run_s = now
            return self._tell("runs go on")
        if now - self._last_run_s < self._idle_s:
            return self._tell("no run goes on; waiting for the next")
        self._tell("every run has ended")
        return False

    def _draw(self) -> None:
        with self._drawing:
            widget, graph = self._widget(), self._graph
            if widget is None or self._stopped.is_set():
                return
            widget.html = graph_cell(
                graph, name=self._name, max_bytes=LIVE_BYTES, most_transcripts=_LIVE_TRANSCRIPTS, chosen=self._chosen
            )
            self._drawn = graph

    def _tell(self, state: str) -> bool:
        widget = self._widget()
        if widget is None or self._stopped.is_set():
            return False
        widget.state = state
        return True
