"""Two sessions compared, as text for 80 columns. Every kind of change has its sign: nothing is said by colour alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from rath.core.redact import redact_text
from rath.display.diff import diff_counts
from rath.display.edited import EditedLine, edited_lines
from rath.display.svg import short_id
from rath.display.text import clean, count, cut, duration, fit, one_line, width
from rath.display.transcript import RowView, view_row
from rath.session.chunk import ChunkRow
from rath.session.graph.diff import CallOutcome, Change, DiffSide, SessionDiff

__all__ = [
    "SIGNS",
    "Line",
    "facts",
    "headline",
    "row_versions",
    "safe_view",
    "session_diff_lines",
    "session_diff_text",
    "what_happened",
]

Line: TypeAlias = "list[tuple[str, str]]"
"""Parts of a line: text and what it is (``title``, ``soft``, ``left``, ``right``, ``edit``, ``move``, or nothing)."""

SIGNS = {
    "equal": "=",
    "alike": "≈",
    "edit": "~",
    "delete": "-",
    "insert": "+",
    "moved_away": "<",
    "moved_here": ">",
}
_STYLES = {"delete": "left", "insert": "right", "edit": "edit", "moved_away": "move", "moved_here": "move"}
_NAME_COLUMNS = 9
_MAX_LINES = 400
_FOLDED_LINES, _FULL_LINES = 4, 2000
_ROW_CHARACTERS, _FULL_CHARACTERS = 4_000, 200_000
_MAX_TOOLS = 6
_CALLS = 16


def session_diff_text(diff: SessionDiff) -> str:
    """The comparison in at most 400 lines of 80 columns."""
    lines: list[str] = []
    for line in session_diff_lines(diff):
        if len(lines) == _MAX_LINES:
            lines.append("… and more: .changes has all of it, `rath sessions diff --full` prints it")
            break
        lines.append("".join(text for text, _ in line).rstrip())
    return "\n".join(lines)


def session_diff_lines(diff: SessionDiff, *, columns: int = 80, full: bool = False) -> Iterator[Line]:
    """The comparison line by line, everything in it clean.

    Args:
        full: do not fold long rows.
    """
    yield [(headline(diff), "title")]
    if diff.fork_point is not None:
        yield [(f"both continue session {short_id(diff.fork_point)}", "soft")]
    yield []
    yield from _table(diff, columns)
    for change in diff.changes:
        yield []
        yield from _Changes(diff, columns, full).lines(change)


def headline(diff: SessionDiff) -> str:
    """What the comparison found, in one sentence."""
    if diff.same:
        return f"the same: {count(diff.prefix_rows, 'row')}"
    left, right = len(diff.left.rows), len(diff.right.rows)
    common = count(diff.prefix_rows, "row") if diff.prefix_rows else "no row"
    return f"{common} in common at the start, then {left:,} on the left and {right:,} on the right"


def facts(diff: SessionDiff) -> list[tuple[str, list[str], list[str]]]:
    """Name, left and right of each fact about the sides; each side in lines."""
    sides = (diff.left, diff.right)
    found = [("session", [[f"{short_id(side.session_id)} {one_line(redact_text(side.label), 40)}"] for side in sides])]
    found.append(("status", [[one_line(redact_text(side.status), 40)] for side in sides]))
    if any(side.models for side in sides):
        found.append(("model", [[one_line(redact_text(", ".join(side.models) or "–"), 80)] for side in sides]))
    found.append(("rows", [[f"{diff.prefix_rows + len(side.rows):,} ({len(side.rows):,} of its own)"] for side in sides]))
    found.append(("calls", [_calls(side) for side in sides]))
    found.append(("tokens", [[_tokens(side)] for side in sides]))
    found.append(("cost", [[_cost(side)] for side in sides]))
    found.append(("time", [[_time(side)] for side in sides]))
    found.append(("files", [_files(side, diff.workspace_shared) for side in sides]))
    return [(name, left, right) for name, (left, right) in found]


def _calls(side: DiffSide) -> list[str]:
    lines = []
    for name, outcomes in side.calls_by_name.items():
        words: dict[CallOutcome, str] = {"failed": "failed", "nonzero": "erred", "unanswered": "unanswered"}
        notes = [f"{outcomes[kind]:,} {word}" for kind, word in words.items() if outcomes[kind]]
        total = sum(outcomes.values())
        lines.append(f"{one_line(name, 60)} × {total:,}" + (f" ({', '.join(notes)})" if notes else ""))
    if len(lines) > _MAX_TOOLS:
        lines[_MAX_TOOLS:] = [f"… {count(len(lines) - _MAX_TOOLS, 'more tool')}"]
    alone = sum(not call.shared for call in side.calls)
    if alone and alone < len(side.calls):
        lines.append(f"{alone:,} of {len(side.calls):,} not made on the other side")
    return lines or ["none"]


def _tokens(side: DiffSide) -> str:
    known = None if side.usage is None else f"{side.usage.total_tokens:,}"
    return _with_unknown(known, side.usage_unknown)


def _cost(side: DiffSide) -> str:
    known = None if side.cost_usd is None else f"${side.cost_usd:.4f}" if side.cost_usd else "$0"
    return _with_unknown(known, side.cost_unknown)


def _time(side: DiffSide) -> str:
    known = None if side.duration_s is None else duration(side.duration_s) if side.runs else "no run"
    return _with_unknown(known, side.duration_unknown)


def _with_unknown(known: str | None, unknown: int) -> str:
    if known is None:
        return "unknown"
    return f"{known}, and {count(unknown, 'run')} unknown" if unknown else known


def _files(side: DiffSide, shared: bool) -> list[str]:
    files = side.files
    if files is None:
        return [one_line(redact_text(side.files_note), 120)]
    counts = [(len(files.added), "added"), (len(files.modified), "changed"), (len(files.removed), "removed")]
    words = ", ".join(f"{number:,} {word}" for number, word in counts if number)
    if not words:
        return ["none changed"]
    added, removed = diff_counts(files.text)
    lines = [f"{words} (+{added:,} −{removed:,} lines)"]
    alone = None if side.files_alone is None or shared else set(side.files_alone)
    paths = [("+", files.added), ("~", files.modified), ("−", files.removed)]
    named = [(sign, path) for sign, group in paths for path in group if alone is None or path in alone]
    lines += [f"{sign} {one_line(redact_text(path), 80)}" for sign, path in named[:_MAX_TOOLS]]
    if len(named) > _MAX_TOOLS:
        lines.append(f"… {len(named) - _MAX_TOOLS:,} more")
    both = sum(number for number, _ in counts) - len(named)
    if both:
        lines.append(f"{both:,} of them as on the other side")
    return [*lines, "(one workspace, shared by both)"] if shared else lines


def _table(diff: SessionDiff, columns: int) -> Iterator[Line]:
    wide = max(12, (columns - _NAME_COLUMNS - 2) // 2)
    yield [(" " * (_NAME_COLUMNS + 1), ""), (_padded("left (-)", wide), "left"), ("right (+)", "right")]
    for name, left, right in facts(diff):
        for place in range(max(len(left), len(right))):
            cells = [fit(side[place], wide) if place < len(side) else "" for side in (left, right)]
            head = _padded(name if place == 0 else "", _NAME_COLUMNS)
            yield [(head, "soft"), (_padded(cells[0], wide), ""), (cells[1], "")]


def _padded(text: str, columns: int) -> str:
    return text + " " * (columns + 1 - min(columns, width(text)))


def what_happened(change: Change, diff: SessionDiff) -> str:
    """A change in words, without its rows."""
    rows, other = max(len(change.left), len(change.right)), change.other
    places = f"left {_places(change.left)}, right {_places(change.right)}"
    if change.kind == "equal":
        words = f"{count(rows, 'row')} the same ({places})"
    elif change.kind == "alike":
        words = f"{count(rows, 'row')} the same but for the ids of calls and measured times ({places})"
    elif change.kind == "edit":
        words = f"changed ({places})"
    elif other is not None:
        here, way = (change.left, "moved: on the right at") if change.left else (change.right, "moved: on the left at")
        words = f"{_rows(here)} {way} {_places(other)}"
    else:
        words = _rows(change.left or change.right)
    if change.source is None:
        return words
    known = {diff.left.session_id: "the left session", diff.right.session_id: "the right session"}
    return f"{words}, merged from {known.get(change.source, 'session ' + short_id(change.source))}"


def _rows(rows: range) -> str:
    return f"row{'s' if len(rows) > 1 else ''} {_places(rows)}"


def _places(rows: range) -> str:
    return f"{rows.start:,}" if len(rows) == 1 else f"{rows.start:,}–{rows.stop - 1:,}"


class _Changes:
    def __init__(self, diff: SessionDiff, columns: int, full: bool) -> None:
        self._diff = diff
        self._columns = columns
        self._lines = _FULL_LINES if full else _FOLDED_LINES
        self._characters = _FULL_CHARACTERS if full else _ROW_CHARACTERS
        self._full = full

    def lines(self, change: Change) -> Iterator[Line]:
        sign, style = SIGNS[change.kind], _STYLES.get(change.kind, "soft")
        # Rows of one side only speak for themselves, unless there is more to say about them.
        if change.kind not in ("delete", "insert") or change.source is not None:
            yield [(f"{sign} {what_happened(change, self._diff)}", style)]
        if change.kind in ("equal", "alike"):
            return
        rows = self._diff.left.rows if change.left else self._diff.right.rows
        if change.kind == "edit":
            old = rows[change.left.start - self._diff.prefix_rows]
            new = self._diff.right.rows[change.right.start - self._diff.prefix_rows]
            yield from self._edited(*row_versions(old, new))
            return
        for index in change.left or change.right:
            yield from self._row(sign, style, index, rows[index - self._diff.prefix_rows])

    def _row(self, sign: str, style: str, index: int, row: ChunkRow) -> Iterator[Line]:
        view = safe_view(row)
        body = _body(view, self._characters)
        head = f"{sign} [{index}] {view.role}"
        # A row that fits stands on one line with its role.
        if len(body) == 1 and width(head) + 2 + width(body[0]) <= self._columns:
            yield [(head, style), (f"  {body[0]}", "")]
            return
        yield [(head, style)]
        shown = body if len(body) <= self._lines + 1 else body[: self._lines]
        for line in shown:
            yield [(f"{sign}   ", style), (self._fitted(line), "")]
        if len(shown) < len(body):
            yield [(f"{sign}   ", style), (f"… {count(len(body) - len(shown), 'more line')}", "soft")]

    def _fitted(self, line: str) -> str:
        return line if self._full else _within(line, self._columns - 4)

    def _edited(self, role: str, lines: Sequence[EditedLine]) -> Iterator[Line]:
        yield [(f"~   {role}", "edit")]
        if not lines:
            yield [("~     ", "edit"), ("differs in what is not shown here", "soft")]
        limit = self._lines * 5
        for line in lines[:limit]:
            if line is None:
                yield [("      …", "soft")]
                continue
            text = "".join({" ": "{}", "-": "[-{}-]", "+": "{{+{}+}}"}[mark].format(part) for mark, part in line)
            changed = any(mark != " " for mark, _ in line)
            yield [("~     " if changed else "      ", "edit"), (text if self._full else _around_marks(text, self._columns - 6), "")]
        if len(lines) > limit:
            yield [("      …", "soft"), (f" {count(len(lines) - limit, 'more line')}", "soft")]


def _around_marks(text: str, columns: int) -> str:
    """``text`` on one line of at most ``columns``, from shortly before its first mark."""
    starts = [at for at in (text.find("[-"), text.find("{+")) if at >= 0]
    first = min(starts, default=0)
    if width(text) > columns and first > columns // 3:
        text = "…" + text[first - columns // 3:]
    return _within(text, columns)


def _within(text: str, columns: int) -> str:
    """``text``, clean and without a newline, in at most ``columns`` columns, its spaces as they are."""
    text = text[: 4 * columns].replace("\t", "    ")
    if width(text) <= columns:
        return text
    text = text[:columns]
    while width(text) >= columns:
        text = text[:-1]
    return text + "…"


def safe_view(row: ChunkRow) -> RowView:
    """:func:`view_row`, or the row as it stands where somebody made one that cannot be read."""
    try:
        return view_row(row)
    except (AttributeError, TypeError, ValueError, RecursionError):
        return RowView(row.kind.value, row.encoded.decode("utf-8", "replace"))


def row_versions(old: ChunkRow, new: ChunkRow, *, words: bool = True) -> tuple[str, list[EditedLine]]:
    """The role of two versions of a row, and the lines in which they differ; with their ``words`` told apart."""
    before, after = safe_view(old), safe_view(new)
    return before.role, edited_lines(*("\n".join(_whole(view)) for view in (before, after)), words=words)


def _body(view: RowView, characters: int) -> list[str]:
    """A row for readers: text, calls on one line each, a result's parts."""
    lines = _split(view.text, characters)
    lines += [one_line(f"→ {call.name} {call.short}", 200) for call in view.calls[:_CALLS]]
    if len(view.calls) > _CALLS:
        lines.append(f"… {count(len(view.calls) - _CALLS, 'more call')}")
    if view.result is not None:
        lines.append(one_line(f"{view.result.mark} {view.tool} {view.result.summary}", 200))
        for name, text in view.result.parts[:_MAX_TOOLS]:
            lines += [f"{one_line(name)}:"] if name else []
            lines += _split(text, characters)
    return lines or ["(empty)"]


def _whole(view: RowView) -> Iterator[str]:
    """A row for comparing: arguments and results as they are, a line a piece."""
    yield from _split(view.text, _FULL_CHARACTERS)
    for call in view.calls:
        yield f"→ {one_line(call.name)}"
        yield from _arguments(call.arguments)
    if view.result is not None:
        yield one_line(f"{view.result.mark} {view.tool} {view.result.summary}", 400)
        for name, text in view.result.parts:
            if name:
                yield f"{one_line(name)}:"
            yield from _split(text, _FULL_CHARACTERS)


def _arguments(arguments: str) -> Iterator[str]:
    try:
        parsed = json.loads(arguments[:_FULL_CHARACTERS])
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        yield from _split(arguments, _FULL_CHARACTERS)
        return
    for name, value in parsed.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        first, *more = _split(text, _FULL_CHARACTERS) or [""]
        yield f"  {one_line(name)}: {first}"
        yield from (f"    {line}" for line in more)


def _split(text: str, characters: int) -> list[str]:
    return clean(cut(text, characters)).rstrip("\n").split("\n") if text else []
