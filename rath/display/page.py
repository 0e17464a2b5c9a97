"""A lineage graph as one HTML file that needs nothing else: to see, search, read and compare, also from a disk.

Three promises. **Nothing runs but the page's own script**: its policy names that script by its hash, whatever sessions
say is data (JSON in elements that no browser runs) and is shown through ``textContent`` alone. **Nothing leaves**: the
policy forbids every request. **It stays small**: rows that sessions share stand once, packed, and ``max_bytes`` bounds
the whole; what had to go is counted.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from html import escape
from importlib.resources import files
from string import Template
from typing import Any
from uuid import UUID

from rath.core.redact import redact_text
from rath.display.page_data import Edges, edges_of, node_columns
from rath.display.page_rows import NO_TRANSCRIPT, Steps, Transcripts, inert_json
from rath.display.text import count, one_line
from rath.errors import PersistenceError, UsageValueError
from rath.session.chunk import ChunkRow
from rath.session.graph.lineage import LineageNode

__all__ = ["MAX_BYTES", "MIN_BYTES", "graph_page"]

MAX_BYTES = 64 * 1024 * 1024
MIN_BYTES = 256 * 1024
_SCRIPTS = ("core", "rows", "canvas", "graph", "list", "transcript", "panel", "compare", "app")
# Of the file, for the nodes; the rest is for what they say.
_NODE_SHARE = 0.6
_UNREAD_BYTES = 64 * 1024

ReadTranscript = Callable[[UUID], Iterable[ChunkRow] | None]


def graph_page(
    nodes: Sequence[LineageNode],
    *,
    edges: Edges | None = None,
    transcript: ReadTranscript | None = None,
    title: str = "Lineage",
    max_bytes: int = MAX_BYTES,
) -> str:
    """The page of a lineage graph. Waits for no session: one that is pending is shown so.

    Args:
        nodes: parents before children.
        edges: ``(parent, child, role)``; by default what the nodes tell of.
        transcript: reads the rows that a session has now; ``None`` where nobody knows them. What it raises as
            ``PersistenceError`` stands in place of the rows.
        max_bytes: how long the file becomes at most, in UTF-8. Beyond it transcripts lose their middles, each its fair
            part, then nodes lose their extras, then the oldest nodes go; the page says how much.

    Raises:
        UsageValueError: ``max_bytes`` is below 256 KiB, which the page itself needs.
    """
    if max_bytes < MIN_BYTES:
        raise UsageValueError(f"max_bytes is {max_bytes:,}; a page needs {MIN_BYTES:,} at least")
    assets = _assets()
    room = max_bytes - assets.size - 2048
    shown, columns, notes = _fitting(nodes, list(edges_of(nodes) if edges is None else edges), int(room * _NODE_SHARE))
    room -= len(inert_json(columns).encode())
    # A transcript's three numbers in `ways`, a mark that it cannot be read, and why.
    transcripts = Transcripts(max(0, room - 64 * len(shown) - _UNREAD_BYTES))
    ways, unread = _read(shown, transcript, transcripts)
    if transcripts.cut:
        notes.append(f"{count(transcripts.cut, 'row')} left out, so that the file stays below {_size(max_bytes)}")
    name = one_line(redact_text(title), 200)
    data: dict[str, Any] = {
        **columns,
        "title": name,
        "notes": notes,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "ways": {
            "base": [way.base for way in ways],
            "start": [way.start for way in ways],
            "count": [way.count for way in ways],
        },
        "unread": unread,
        "blocks": transcripts.starts,
    }
    blocks = "".join(
        f'<script type="text/plain" id="rath-block-{number}">{block}</script>\n'
        for number, block in enumerate(transcripts.blocks)
    )
    return assets.page.substitute(
        policy=assets.policy,
        title=escape(name),
        style=assets.style,
        data=inert_json(data),
        script=assets.script,
        ways=transcripts.ways,
        blocks=blocks,
    )


def _fitting(
    nodes: Sequence[LineageNode], edges: Edges, room: int
) -> tuple[Sequence[LineageNode], dict[str, Any], list[str]]:
    """As many of the last nodes as fit, their columns, and what is missing."""
    known = list(edges)
    columns = node_columns(nodes, known)
    size = len(inert_json(columns).encode())
    if size <= room:
        return nodes, columns, []
    notes = ["what operators recorded beside the usual is left out"]
    shown = nodes
    columns = node_columns(shown, known, extras=False)
    size = len(inert_json(columns).encode())
    while size > room and shown:
        shown = shown[-int(len(shown) * min(0.9, room / size)) :] if len(shown) > 1 else []
        columns = node_columns(shown, known, extras=False)
        size = len(inert_json(columns).encode())
    if len(shown) < len(nodes):
        notes.append(f"{count(len(nodes) - len(shown), 'earlier session')} not shown")
    return shown, columns, notes


def _read(
    nodes: Sequence[LineageNode], transcript: ReadTranscript | None, transcripts: Transcripts
) -> tuple[list[Steps], dict[str, str]]:
    ways: list[Steps] = []
    unread: dict[str, str] = {}
    spare = _UNREAD_BYTES
    for index, node in enumerate(nodes):
        way = NO_TRANSCRIPT
        try:
            rows = None if transcript is None else transcript(node.id)
            if rows is not None:
                way = transcripts.add(rows, len(nodes) - index)
        except PersistenceError as error:
            message = one_line(redact_text(str(error)), 300)
            spare -= len(inert_json(message).encode())
            unread[str(index)] = message if spare > 0 else ""
        ways.append(way)
    transcripts.finish()
    return ways, unread


class _Assets:
    """What every page has: read once a process."""

    def __init__(self) -> None:
        here = files("rath.display") / "assets"

        def text(name: str) -> str:
            return (here / name).read_text(encoding="utf-8")

        self.style = "\n" + text("page.css")
        parts = "\n".join(text(f"page_{name}.js") for name in _SCRIPTS)
        self.script = f'\n(() => {{\n"use strict";\n{parts}\n}})();\n'
        self.policy = (
            f"default-src 'none'; script-src {_hash(self.script)}; style-src {_hash(self.style)}; base-uri 'none'; "
            "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
        )
        self.page = Template(text("page.html"))
        self.size = len((self.page.template + self.style + self.script).encode())


@cache
def _assets() -> _Assets:
    return _Assets()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1024 / 1024:.0f} MiB" if size_bytes >= 1024 * 1024 else f"{size_bytes // 1024} KiB"
