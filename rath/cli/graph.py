"""``rath graph``: how the logged sessions descend from each other, as a tree, a page, or data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rath.cli.console import Screen, Trouble, err, out, user_path
from rath.display.text import count, duration
from rath.display.tree import STATUS_OF_MARK, lineage_tree
from rath.errors import UsageError, UsageValueError
from rath.session.graph.build import lineage
from rath.session.graph.model import SessionGraph

__all__ = ["Request", "show_graph"]

_STYLES = {"failed": "bold red", "cancelled": "yellow", "running": "cyan", "pending": "cyan", "unknown": "dim"}
_MOST_LINES = 200
"""How many lines a person gets without ``--all``: more than this is read in the page."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for on the command line.

    Attributes:
        sessions: only these, with what they descend from and what descends from them.
        conditions: of :meth:`SessionGraph.where`.
        files: by form (``html svg graphml otlp jsonl parquet``), where to write it.
        form: what to print in place of the tree: ``mermaid``, ``dot`` or ``json``.
    """

    directory: Path | None = None
    sessions: Sequence[str] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    form: str | None = None
    all_lines: bool = False


def show_graph(request: Request) -> int:
    """Read the logs, and print or write the graph."""
    graph = _graph(request)
    screen = out()
    for form, path in request.files.items():
        _write(graph, form, user_path(path))
    if request.form == "json":
        screen.json(_as_json(graph))
    elif request.form in ("mermaid", "dot"):
        screen.write(graph.to_mermaid() if request.form == "mermaid" else graph.to_dot())
    elif not request.files:
        _show(screen, graph, request)
    return 0


def _graph(request: Request) -> SessionGraph:
    graph = lineage(dir=request.directory, fold_appends=True)
    try:
        if request.sessions:
            kept = set()
            for name in request.sessions:
                kept |= {graph[name].id, *(n.id for n in graph.ancestors(name)), *(n.id for n in graph.descendants(name))}
            graph = graph.where(lambda node: node.id in kept)
        return graph.where(**request.conditions) if request.conditions else graph
    except UsageValueError as error:
        raise Trouble(str(error)) from error


# -- files ------------------------------------------------------------------------------------------------------------

_WRITERS: Mapping[str, Callable[[SessionGraph, Path], object]] = {
    "html": lambda graph, path: graph.to_html(path),
    "svg": lambda graph, path: path.write_text(graph.to_svg(), encoding="utf-8"),
    "graphml": lambda graph, path: graph.to_graphml(path),
    "otlp": lambda graph, path: graph.to_otlp(path),
    "jsonl": lambda graph, path: graph.to_jsonl(path),
    "parquet": lambda graph, path: graph.to_parquet(path),
}


def _write(graph: SessionGraph, form: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _WRITERS[form](graph, path)
    except OSError as error:
        raise Trouble(f"cannot write {path}: {error.strerror or error}", code=1) from error
    except UsageError as error:
        raise Trouble(str(error)) from error
    err().line(f"{count(len(graph), 'session')} → {path}")


# -- to read ----------------------------------------------------------------------------------------------------------


def _show(screen: Screen, graph: SessionGraph, request: Request) -> None:
    if not graph:
        asked = "no session is like this" if request.conditions else "no sessions: a run is logged with persist=True"
        screen.line(asked)
        return
    lines = lineage_tree(graph.nodes).splitlines()
    cut = len(lines) - _MOST_LINES if screen.console.is_terminal and not request.all_lines else 0
    if cut > 0:
        screen.line((f"… {count(cut, 'earlier line')} (--all; `--html FILE` makes a page to search)", "dim italic"))
    for line in lines[max(0, cut) :]:
        mark = next((character for character in line if character in STATUS_OF_MARK), "")
        screen.line((line, _STYLES.get(STATUS_OF_MARK.get(mark, ""), "")))
    screen.line((_summary(graph), "bold"))


def _summary(graph: SessionGraph) -> str:
    tokens, cost = graph.total("tokens"), graph.total("cost")
    parts = [count(len(graph), "session"), f"{len(graph.leaves()):,} at the ends"]
    if tokens.value:
        parts.append(f"{tokens.value:,} tokens" + (f" and {count(tokens.unknown, 'run')} unknown" if tokens.unknown else ""))
    if cost.value:
        parts.append(f"${cost.value:,.4f}" + (f" and {count(cost.unknown, 'run')} without a price" if cost.unknown else ""))
    longest = sum(node.duration_s or 0.0 for node in graph.critical_path())
    if longest:
        parts.append(f"longest way {duration(longest)}")
    return " · ".join(parts)


def _as_json(graph: SessionGraph) -> dict[str, Any]:
    def plain(row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()}

    tokens, cost = graph.total("tokens"), graph.total("cost")
    return {
        "sessions": [plain(row) for row in graph.tables("sessions")],
        "edges": graph.tables("edges"),
        "total_tokens": tokens.value,
        "total_tokens_unknown": tokens.unknown,
        "total_cost_usd": cost.value,
        "total_cost_unknown": cost.unknown,
        "critical_path": [str(node.id) for node in graph.critical_path()],
    }
