"""A unified diff, line by line with what each line is, and as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

from rath.display.text import clean, count

__all__ = ["diff_counts", "diff_html", "diff_lines"]

_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")


def diff_lines(diff: str) -> list[tuple[str, str]]:
    """``(style, text)`` of every line, clean; style is ``file``, ``hunk``, ``added``, ``removed``, ``context`` or ``note``.

    The counts in a hunk's header decide what belongs to it, so a removed line that reads ``-- x`` is no file name.
    """
    return [(style, clean(line)) for style, line in _styled(diff)]


def _styled(diff: str) -> Iterator[tuple[str, str]]:
    old = new = 0
    # Only "\n" ends a line of a diff: a form feed or U+2028 in a source file does not.
    for line in diff.removesuffix("\n").split("\n") if diff else ():
        sign = line[:1]
        if old <= 0 and new <= 0:
            hunk = _HUNK.match(line)
            if hunk is not None:
                old, new = (1 if number is None else int(number) for number in hunk.groups())
                yield "hunk", line
            elif sign == "\\":
                yield "note", line
            else:
                yield "file", line
        elif sign == "+":
            new -= 1
            yield "added", line
        elif sign == "-":
            old -= 1
            yield "removed", line
        elif sign == "\\":
            yield "note", line
        else:
            old, new = old - 1, new - 1
            yield "context", line


def diff_counts(diff: str) -> tuple[int, int]:
    """How many lines were added, and how many removed."""
    styles = [style for style, _line in _styled(diff)]
    return styles.count("added"), styles.count("removed")


def diff_html(diff: str, *, max_lines: int = 200_000) -> str:
    """The diff as one ``<pre>``; every line a ``<span>`` with a class ``d-<style>``. Text is escaped."""
    found = diff_lines(diff)
    lines = "".join(f'<span class="d-{style}">{escape(line) or " "}</span><br>' for style, line in found[:max_lines])
    if len(found) > max_lines:
        lines += f'<span class="d-note">… {count(len(found) - max_lines, "more line")} …</span>'
    return f'<pre class="diff">{lines}</pre>'
