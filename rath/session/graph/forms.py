"""The forms that a graph takes: text, HTML, drawings, exports. Each is made by the display that the port names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rath.core import ports
from rath.session.graph.lineage import LineageNode

__all__ = ["Forms"]


class Forms:
    """What a :class:`SessionGraph` can be shown as. Nothing here waits; all text in it is redacted and escaped."""

    @property
    def nodes(self) -> Sequence[LineageNode]:
        """The nodes that are shown, parents before children."""
        return ()

    def __str__(self) -> str:
        """A tree for the terminal."""
        return _text("lineage_tree", self.nodes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.nodes)} sessions)"

    def _repr_html_(self) -> str:
        """What Jupyter shows."""
        return _text("graph_html", self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Plain text, Mermaid and HTML, for whoever can show which."""
        bundle: dict[str, Any] = ports.load("display", "graph_mimebundle")(self, include, exclude)
        return bundle

    def to_svg(self) -> str:
        """A drawing, laid out by layers, as one ``<svg>`` element."""
        return _text("lineage_svg", self.nodes)

    def to_mermaid(self) -> str:
        """A Mermaid ``flowchart``. Mermaid draws up to 500 arrows and 50,000 characters, unless its page configures more."""
        return _text("lineage_mermaid", self.nodes)

    def to_dot(self) -> str:
        """A Graphviz ``digraph``."""
        return _text("lineage_dot", self.nodes)

    def to_html(
        self, path: str | os.PathLike[str] | None = None, *, title: str = "Lineage", max_bytes: int | None = None
    ) -> str:
        """One HTML page with everything in it, transcripts too, that needs no network.

        Args:
            path: write it there as well.
            max_bytes: how long it becomes at most; what has to go is counted in it. 64 MiB by default.
        """
        graph: Any = self
        limit = {} if max_bytes is None else {"max_bytes": max_bytes}
        page: str = ports.load("display", "graph_page")(
            graph.nodes, edges=graph.edges, transcript=graph.transcript, title=title, **limit
        )
        _write(path, page)
        return page

    def to_graphml(self, path: str | os.PathLike[str] | None = None) -> str:
        """GraphML (XML).

        Args:
            path: write it there as well.
        """
        text = _text("lineage_graphml", self.nodes)
        _write(path, text)
        return text

    def to_otlp(self, path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """OpenTelemetry spans as OTLP/JSON, with the names of the GenAI conventions.

        Args:
            path: write it there as well.
        """
        made: tuple[dict[str, Any], str] = ports.load("display", "graph_otlp")(self)
        spans, text = made
        _write(path, text)
        return spans

    def to_jsonl(self, path: str | os.PathLike[str] | None = None) -> str:
        """One JSON object a session, parents before children.

        Args:
            path: write it there as well.
        """
        text = _text("graph_jsonl", self)
        _write(path, text)
        return text

    def to_parquet(self, directory: str | os.PathLike[str]) -> list[Path]:
        """The tables as Parquet files in a directory; their paths.

        Raises:
            UsageError: pyarrow is not installed.
        """
        paths: list[Path] = ports.load("display", "graph_parquet")(self, Path(directory).expanduser())
        return paths


def _text(display: str, shown: Any) -> str:
    text: str = ports.load("display", display)(shown)
    return text


def _write(path: str | os.PathLike[str] | None, text: str) -> None:
    if path is not None:
        target = Path(path).expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        # What could not be encoded was made visible by the display.
        target.write_text(text, encoding="utf-8", newline="\n")
