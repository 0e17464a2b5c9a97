"""Two sessions compared, as HTML: for a notebook's cell, or a page that needs nothing but itself.

Side by side where there is room, one below the other where there is not. Each kind of change has its sign and its border;
words that went are struck through, words that came are underlined: nothing is said by colour alone. No script.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TypeAlias

from rath.core.redact import redact_text
from rath.display.diff import diff_html
from rath.display.edited import EditedLine
from rath.display.html import cell, transcript_html
from rath.display.session_diff import SIGNS, facts, headline, row_versions, what_happened
from rath.display.style import STYLE
from rath.display.svg import short_id
from rath.display.text import clean, count, cut
from rath.session.chunk import ChunkRow
from rath.session.graph.diff import Change, DiffSide, SessionDiff

__all__ = ["session_diff_html", "session_diff_page"]

CELL_BYTES = 300_000
"""How much a notebook's cell holds, give or take two rows: notebooks keep their output in the file."""
PAGE_BYTES = 8_000_000
_FILES_CHARACTERS = 30_000
_WORDS_SHARE = 0.25
"""How many characters of edited rows are compared word by word, for each byte that may be shown."""
_EDITED_LINES, _EDITED_CHARACTERS = 200, 2_000
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_Tables: TypeAlias = tuple[Sequence[ChunkRow], Sequence[ChunkRow]]
_ONE_SIDED = frozenset({"delete", "insert", "moved_away", "moved_here"})

# The two sides stand side by side where the cell has room for both, whatever the width of the window.
_STYLE = """
.sdiff{padding:2px 0}
.sdiff .sd-facts{display:grid;grid-template-columns:max-content minmax(0,1fr) minmax(0,1fr);gap:2px 16px;margin:10px 0;
font-size:inherit;line-height:inherit;border:0}
.sdiff .sd-facts tbody,.sdiff .sd-facts tr{display:contents;line-height:inherit}
.sdiff .sd-facts td{padding:0;border:0;text-align:left;vertical-align:top;max-width:none;font-size:inherit;line-height:inherit}
.sdiff .sd-l,.sdiff .sd-r,.sdiff .sd-e,.sdiff .sd-b{border:1px solid var(--line);border-radius:6px;padding:4px 10px;min-width:0}
.sdiff .sd-l{border-left:5px double var(--gone)}
.sdiff .sd-r{border-left:5px solid var(--came)}
.sdiff .sd-e{border-left:5px dotted var(--soft);margin:8px 0}
.sdiff .sd-b{margin:8px 0;color:var(--soft)}
.sdiff .sd-two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:10px;margin:8px 0;align-items:start}
.sdiff .sd-tag{font-size:12px;font-weight:600;margin:2px 0}
.sdiff .sd-l .sd-tag,.sdiff .sd-gone{color:var(--gone)}
.sdiff .sd-r .sd-tag,.sdiff .sd-came{color:var(--came)}
.sdiff .sd-gone{text-decoration:line-through;background:var(--del)}
.sdiff .sd-came{text-decoration:underline;background:var(--hunk)}
.sdiff .sd-head{font-weight:600}
.sdiff .sd-lines{white-space:pre-wrap;padding:2px 0}
.sdiff .sd-l .row,.sdiff .sd-r .row{grid-template-columns:minmax(0,1fr);gap:2px}
@media (max-width:720px){.sdiff .sd-none{display:none}.sdiff .sd-facts{gap:2px 8px;font-size:12.5px}}
""".replace("\n", "")


def session_diff_html(diff: SessionDiff) -> str:
    """The comparison for a notebook's cell. Never waits; at most 1 MB, whatever the sessions hold."""
    return cell(f"<style>{_STYLE}</style>{_body(diff, CELL_BYTES)}", " sdiff")


def session_diff_page(diff: SessionDiff) -> str:
    """The comparison as a whole page."""
    title = f"Sessions {short_id(diff.left.session_id)} and {short_id(diff.right.session_id)}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}{_STYLE}html{{background:#fff}}"
        "@media (prefers-color-scheme:dark){html{background:#14181d}}"
        "body{margin:0}.rath.page{max-width:1400px;margin:0 auto;padding:20px 16px 60px}</style></head>"
        f'<body><main class="rath sdiff page"><h1>{title}</h1>{_body(diff, PAGE_BYTES)}</main></body></html>\n'
    )


def _body(diff: SessionDiff, max_bytes: int) -> str:
    parts = [f'<p class="sd-head">{_text(headline(diff))}</p>']
    if diff.fork_point is not None:
        parts.append(f'<p class="soft">Both continue session <code>{short_id(diff.fork_point)}</code>.</p>')
    parts.append(_facts(diff))
    parts += [_files(side, name) for side, name in ((diff.left, "left"), (diff.right, "right"))]
    if diff.prefix:
        rows = transcript_html(diff.prefix, max_bytes=max_bytes // 8)
        parts.append(_both("=", f"{count(diff.prefix_rows, 'row')} in common at the start", rows))
    return "".join((*parts, *_changes(diff, max_bytes)))


def _facts(diff: SessionDiff) -> str:
    # A table, because that is what remains of it where a front end takes the style sheet away.
    lines = ['<tr><td></td><td class="sd-head">− left</td><td class="sd-head">+ right</td></tr>']
    for name, *sides in facts(diff):
        cells = ["<td>" + "".join(f"<div>{_text(line)}</div>" for line in side) + "</td>" for side in sides]
        lines.append(f'<tr><td class="soft">{name}</td>{"".join(cells)}</tr>')
    return f'<table class="sd-facts"><tbody>{"".join(lines)}</tbody></table>'


def _files(side: DiffSide, name: str) -> str:
    if side.files is None or not side.files.text:
        return ""
    changes = diff_html(cut(redact_text(side.files.text), _FILES_CHARACTERS))
    return f"<details><summary>Changes in the workspace, {name}</summary>{changes}</details>"


def _changes(diff: SessionDiff, max_bytes: int) -> Iterator[str]:
    """What follows the common rows, as far as ``max_bytes`` reach; what stands between common rows, side by side."""
    tables = (*diff.prefix, *diff.left.rows), (*diff.prefix, *diff.right.rows)
    left_bytes = max_bytes
    # Measured: 0.3 to 1 µs a character. What is beyond is compared by lines.
    words = int(_WORDS_SHARE * max_bytes)
    at = 0
    while at < len(diff.changes):
        if left_bytes <= 0:
            rest = count(len(diff.changes) - at, "more change")
            yield f'<div class="row gap">… {rest} not shown …</div>'
            return
        group = _group(diff.changes, at)
        if group[0].kind == "edit":
            words -= sum(len(table[at].encoded) for table, at in _versions(tables, group[0]))
        html = _one(diff, tables, group, max(1, min(left_bytes, max_bytes // 4)), words > 0)
        left_bytes -= len(html.encode())
        yield html
        at += len(group)


def _group(changes: Sequence[Change], at: int) -> Sequence[Change]:
    end = at
    while end < len(changes) and changes[end].kind in _ONE_SIDED:
        end += 1
    return changes[at:max(end, at + 1)]


def _versions(tables: _Tables, edit: Change) -> tuple[tuple[Sequence[ChunkRow], int], tuple[Sequence[ChunkRow], int]]:
    """Where the two versions of an edited row stand."""
    return (tables[0], edit.left.start), (tables[1], edit.right.start)


def _one(
    diff: SessionDiff, tables: _Tables, group: Sequence[Change], max_bytes: int, words: bool
) -> str:
    first = group[0]
    if first.kind in _ONE_SIDED:
        sides = []
        for style, name, rows, own in (
            ("sd-l", "left", tables[0], [change for change in group if change.left]),
            ("sd-r", "right", tables[1], [change for change in group if change.right]),
        ):
            sides.append(_side(diff, style, name, rows, own, max_bytes // 2))
        return f'<div class="sd-two">{"".join(sides)}</div>'
    what = what_happened(first, diff)
    if first.kind == "edit":
        old, new = (table[at] for table, at in _versions(tables, first))
        role, lines = row_versions(old, new, words=words)
        return f'<div class="sd-e"><div class="sd-tag">{SIGNS["edit"]} {_text(f"{role} {what}")}</div>{_edited(lines)}</div>'
    transcript = transcript_html(tables[1], start=first.right.start, stop=first.right.stop, max_bytes=max_bytes)
    return _both(SIGNS[first.kind], what, transcript)


def _both(sign: str, what: str, rows: str) -> str:
    return f'<details class="sd-b"><summary>{sign} {_text(what)}</summary>{rows}</details>'


def _side(
    diff: SessionDiff, style: str, name: str, rows: Sequence[ChunkRow], changes: Sequence[Change], max_bytes: int
) -> str:
    if not changes:
        return '<div class="sd-none"></div>'
    parts: list[str] = []
    left_bytes = max_bytes
    for number, change in enumerate(changes):
        if left_bytes <= 0:
            parts.append(f'<div class="row gap">… {count(len(changes) - number, "more change")} not shown …</div>')
            break
        which = change.left or change.right
        html = transcript_html(rows, start=which.start, stop=which.stop, max_bytes=left_bytes)
        tag = f"{SIGNS[change.kind].replace('-', '−')} only on the {name}: {what_happened(change, diff)}"
        if change.other is not None:
            tag = f"{SIGNS[change.kind]} {what_happened(change, diff)}"
        parts.append(f'<div class="sd-tag">{_text(tag)}</div>{html}')
        left_bytes -= len(parts[-1].encode())
    return f'<div class="{style}">{"".join(parts)}</div>'


def _edited(lines: Sequence[EditedLine]) -> str:
    if not lines:
        return '<div class="soft">differs in what is not shown here</div>'
    shown = lines[:_EDITED_LINES]
    marked = ["…" if line is None else "".join(_part(mark, text) for mark, text in line) for line in shown]
    if len(lines) > _EDITED_LINES:
        marked.append(f"… {count(len(lines) - _EDITED_LINES, 'more line')} …")
    return f'<div class="sd-lines" style="white-space:pre-wrap">{chr(10).join(marked)}</div>'


def _part(mark: str, text: str) -> str:
    shown = escape(cut(text, _EDITED_CHARACTERS))
    if mark == " ":
        return shown
    return f'<del class="sd-gone">{shown}</del>' if mark == "-" else f'<ins class="sd-came">{shown}</ins>'


def _text(text: str) -> str:
    return escape(clean(text))
