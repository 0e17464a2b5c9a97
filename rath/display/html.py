"""Sessions as HTML: a page that needs nothing but itself, and a notebook's cell.

Whatever sessions say is text here: escaped, control characters shown, read from rows in their redacted form. A page has
no script and forbids itself every outside reference (``Content-Security-Policy``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol, overload
from uuid import UUID

from rath.backend.calls import WorkspaceDiff
from rath.core.redact import redact_text
from rath.display.diff import diff_html
from rath.display.style import AS_IT_STANDS, STYLE
from rath.display.svg import family, lineage_key, lineage_svg, short_id
from rath.display.text import clean, count, cut, duration, money, one_line
from rath.display.transcript import CallView, ResultView, RowView, view_row
from rath.llm.types import RathLLMTokenUsage
from rath.session.chunk import ChunkRow, ChunkTable
from rath.session.graph.lineage import LineageNode
from rath.session.session import Session

__all__ = [
    "Section",
    "badge",
    "cell",
    "chunk_table_html",
    "html_page",
    "section_html",
    "session_html",
    "transcript_html",
    "workspace_diff_html",
]

CELL_BYTES = 400_000
"""How much transcript a notebook's cell holds, give or take two rows: notebooks keep their output in the file."""
SECTION_BYTES = 4_000_000
# A character becomes six bytes at most (`&quot;`), so these keep any row below 250 kB, and a cell below 1 MB.
_SAID_CHARACTERS, _PART_CHARACTERS, _ARGUMENT_CHARACTERS = 12_000, 8_000, 1_500
_MAX_PARTS, _MAX_CALLS = 4, 16
# Six bytes a character, and some forty for the element of each line: below 1 MB together.
_DIFF_CHARACTERS, _DIFF_LINES, _MAX_PATHS = 100_000, 5_000, 200
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Rows(Protocol):
    """A table of rows, or any sequence of them."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> ChunkRow: ...
    @overload
    def __getitem__(self, index: slice, /) -> Sequence[ChunkRow]: ...


@dataclass(frozen=True, slots=True)
class Section:
    """One session of a page.

    Attributes:
        error: why it failed or was cancelled.
        wall_s: seconds from its start to its end.
        model: which one its run asked. ``cost_usd``: of its own completions.
        notes: sentences that stand above the transcript.
        log: where its log is.
        diff: what it changed in its workspace, as a unified diff.
        inherited: how many rows it has from the session that it continues; these are folded.
    """

    session_id: UUID
    title: str
    rows: Rows
    status: str = "completed"
    error: str = ""
    usage: RathLLMTokenUsage | None = None
    wall_s: float | None = None
    model: str | None = None
    cost_usd: float | None = None
    notes: tuple[str, ...] = ()
    log: str = ""
    diff: str = ""
    inherited: int = 0


def html_page(
    title: str,
    *,
    intro: Sequence[str] = (),
    facts: Sequence[tuple[str, str]] = (),
    nodes: Sequence[LineageNode] = (),
    marked: Iterable[UUID] = (),
    diff: tuple[str, str] | None = None,
    sections: Sequence[Section] = (),
) -> str:
    """A whole page: what it is about, the lineage graph, a diff, and each session's transcript.

    Args:
        intro: paragraphs.
        facts: pairs of a name and a value.
        marked: nodes to stress in the graph.
        diff: a heading and a unified diff.
    """
    links = [("lineage", "Lineage")] if nodes else []
    links += [("diff", diff[0])] if diff is not None else []
    links += [(f"s-{section.session_id}", section.title) for section in sections]
    body = [f"<h1>{_text(title)}</h1>", *(f"<p>{_text(line)}</p>" for line in intro), _facts(facts)]
    body.append("<nav>" + "".join(f'<a href="#{key}">{_text(name)}</a>' for key, name in links) + "</nav>")
    if nodes:
        body.append(f'<h2 id="lineage">Lineage</h2><div class="graph">{lineage_svg(nodes, marked=marked)}</div>')
        body.append(lineage_key(map(family, nodes), (role for node in nodes for role in node.roles)))
    if diff is not None:
        changes = diff_html(redact_text(diff[1])) if diff[1] else "<p>No change.</p>"
        body.append(f'<h2 id="diff">{_text(diff[0])}</h2>{changes}')
    if sections:
        body.append("<h2>Sessions</h2>")
        body += [section_html(section) for section in sections]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}html{{background:#fff}}"
        "@media (prefers-color-scheme:dark){html{background:#14181d}}"
        "body{margin:0}.rath.page{max-width:1080px;margin:0 auto;padding:28px 22px 60px}</style></head>"
        f'<body><main class="rath page">{"".join(body)}</main></body></html>\n'
    )


def section_html(section: Section, *, max_bytes: int = SECTION_BYTES) -> str:
    """One session: title, status, facts, error, transcript, diff."""
    head = (
        f'<div class="head"><h3 class="tocSkip">{_text(section.title)}</h3> {badge(section.status)} '
        f'<code title="{section.session_id}">{short_id(section.session_id)}</code> '
        f'<span class="soft">{_text(_measures(section))}</span></div>'
    )
    parts = [head, *(f"<p>{_text(note)}</p>" for note in section.notes)]
    if section.error:
        parts.append(f'<div class="error">{_cut(section.error, 4000)}</div>')
    inherited = min(section.inherited, len(section.rows))
    if inherited:
        before = transcript_html(section.rows, stop=inherited, max_bytes=max_bytes // 4)
        what = f"{count(inherited, 'row')} from the session that it continues"
        parts.append(f"<details><summary>{what}</summary>{before}</details>")
    parts.append(transcript_html(section.rows, start=inherited, max_bytes=max_bytes))
    if section.status in ("pending", "running"):
        parts.append(f'<div class="row gap">{section.status}: more rows may follow</div>')
    if section.diff:
        parts.append(f"<details><summary>Changes in its workspace</summary>{diff_html(redact_text(section.diff))}</details>")
    if section.log:
        parts.append(f'<p class="soft">Log: <code>{_text(section.log)}</code></p>')
    return f'<section class="session" id="s-{section.session_id}">{"".join(parts)}</section>'


def session_html(session: Session) -> str:
    """A session for a notebook's cell. Never waits; at most 1 MB, whatever the session holds."""
    failure = session._cell.failure  # not `exception()`: showing a session is no answer to its failure
    outcome, record = session._cell.peek(), session._record
    title = session.lineage_operator if session.lineage_operator != "implicit" else "session"
    if session.sandbox_backend is not None:
        title += f" in {session.sandbox_backend}"
    section = Section(
        session.id,
        one_line(title, 200),
        session.partial,
        status=session.status,
        error="" if failure is None else redact_text(f"{type(failure.error).__name__}: {failure.error}"),
        usage=record.usage if outcome is None else outcome.usage,
        wall_s=record.duration_s,
        model=record.model,
        cost_usd=record.cost_usd,
    )
    return cell(section_html(section, max_bytes=CELL_BYTES))


def chunk_table_html(table: ChunkTable) -> str:
    """A table of rows for a notebook's cell, at most 1 MB."""
    head = f'<div class="head"><h3 class="tocSkip">Rows</h3> <span class="soft">{count(len(table), "row")}</span></div>'
    return cell(f'<section class="session">{head}{transcript_html(table, max_bytes=CELL_BYTES)}</section>')


def workspace_diff_html(diff: WorkspaceDiff) -> str:
    """What changed in a workspace, for a notebook's cell: its files, and the first 5,000 lines, or 100,000 characters."""
    kinds = (("added", diff.added), ("removed", diff.removed), ("changed", diff.modified), ("not text", diff.binary))
    head = ", ".join(f"{len(paths):,} {what}" for what, paths in kinds if paths) or "no change"
    names = []
    for what, paths in kinds[:3]:
        names += [f"{what} {one_line(redact_text(path[:2000]), 200)}" for path in paths[:_MAX_PATHS]]
        if len(paths) > _MAX_PATHS:
            names.append(f"… {count(len(paths) - _MAX_PATHS, 'more path')} {what} …")
    parts = [f'<div class="head"><h3 class="tocSkip">Workspace</h3> <span class="soft">{head}</span></div>']
    if names:
        listed = _text("\n".join(names))
        parts.append(f"<details><summary>{count(len(names), 'path')}</summary><pre>{listed}</pre></details>")
    if diff.text:
        # Redacted before it is cut, or half a secret would stand at the cut; what nobody will see is not redacted.
        # And after control characters were made visible, because that makes it longer.
        text = cut(clean(redact_text(cut(diff.text, 2 * _DIFF_CHARACTERS))), _DIFF_CHARACTERS)
        parts.append(diff_html(text, max_lines=_DIFF_LINES))
    return cell(f'<section class="session">{"".join(parts)}</section>')


def cell(body: str, classes: str = "") -> str:
    """What a notebook's cell shows: ``body`` with all the style it needs."""
    return f'<div class="rath{classes} {AS_IT_STANDS}" style="overflow-wrap:anywhere"><style>{STYLE}</style>{body}</div>'


def transcript_html(rows: Rows, *, start: int = 0, stop: int | None = None, max_bytes: int = SECTION_BYTES) -> str:
    """The rows, tool calls and results folded: from both ends as far as ``max_bytes`` reach, with a count between."""
    total = len(rows) if stop is None else stop
    head: list[str] = []
    used, index = 0, start
    # Two thirds for the beginning unless everything fits; what it leaves is for the end.
    limit = max_bytes * 2 // 3
    while index < total and (used < limit or not head):
        rendered = _row(index, rows[index])
        used += len(rendered.encode())
        head.append(rendered)
        index += 1
    tail: list[str] = []
    last = total
    while last > index and used < max_bytes:
        rendered = _row(last - 1, rows[last - 1])
        used += len(rendered.encode())
        tail.append(rendered)
        last -= 1
    gap = [f'<div class="row gap">… {count(last - index, "row")} not shown …</div>'] if last > index else []
    return "".join((*head, *gap, *reversed(tail))) or '<div class="row gap">no rows yet</div>'


def _row(index: int, row: ChunkRow) -> str:
    try:
        view = view_row(row)
    except (AttributeError, TypeError, ValueError, RecursionError):
        # A log may hold anything; a row of an unknown form is shown as it stands, not refused.
        view = RowView(row.kind.value, row.encoded.decode("utf-8", "replace"))
    parts = []
    if view.text:
        parts.append(f'<div class="said" style="white-space:pre-wrap">{_cut(view.text, _SAID_CHARACTERS)}</div>')
    parts += [_call(call) for call in view.calls[:_MAX_CALLS]]
    if len(view.calls) > _MAX_CALLS:
        parts.append(f'<div class="soft">… {count(len(view.calls) - _MAX_CALLS, "more call")} …</div>')
    if view.result is not None:
        parts.append(_result(view.tool, view.result))
    return (
        f'<div class="row {view.role}"><div class="role">{view.role} <span class="soft">{index}</span></div>'
        f"<div>{''.join(parts) or '<span class=soft>(empty)</span>'}</div></div>"
    )


def _call(call: CallView) -> str:
    return (
        f'<details><summary>calls <span class="name">{_text(one_line(call.name))}</span> '
        f"<code>{_text(call.short)}</code></summary><pre>{_cut(call.arguments, _ARGUMENT_CHARACTERS)}</pre></details>"
    )


def _result(tool: str, result: ResultView) -> str:
    style = "completed" if result.ok and result.clean_exit else "failed"
    mark = f'<span class="{style}">{result.mark}{"" if result.ok else " failed"}</span>'
    parts = []
    for name, text in result.parts[:_MAX_PARTS]:
        label = f'<div class="part">{_text(one_line(name))}</div>' if name else ""
        parts.append(f"{label}<pre>{_cut(text, _PART_CHARACTERS)}</pre>")
    return (
        f'<details><summary>{mark} <span class="name">{_text(one_line(tool))}</span> '
        f'<span class="soft">{_text(one_line(result.summary))}</span></summary>{"".join(parts)}</details>'
    )


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    if not facts:
        return ""
    pairs = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    return f'<dl class="facts">{pairs}</dl>'


def _measures(section: Section) -> str:
    parts = [one_line(section.model)] if section.model else []
    parts.append(count(len(section.rows), "row"))
    if section.usage is not None:
        parts.append(f"{section.usage.total_tokens:,} tokens")
    if section.cost_usd is not None:
        parts.append(money(section.cost_usd))
    if section.wall_s is not None:
        parts.append(duration(section.wall_s))
    return " · ".join(parts)


def badge(status: str) -> str:
    known = status if status in ("completed", "failed", "cancelled", "running", "pending") else "unknown"
    marks = {"completed": "✓", "failed": "✗", "cancelled": "–", "running": "▸", "pending": "○", "unknown": "?"}
    return f'<span class="badge {known}">{marks[known]} {known}</span>'


def _cut(text: str, limit: int) -> str:
    # Cut before, because a text may be a hundred megabytes; and after, because what is made visible grows.
    return escape(cut(clean(cut(text, 2 * limit)), limit))


def _text(text: str) -> str:
    return escape(clean(text))
