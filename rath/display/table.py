"""A small table for a notebook's cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from rath.core.redact import redact_text
from rath.display.style import AS_IT_STANDS
from rath.display.text import one_line

__all__ = ["table_html"]

_CELL = "text-align:left;padding:2px 12px 2px 0;white-space:nowrap"
_CHARACTERS = 80


def table_html(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], more: str = "") -> str:
    """The rows under their columns, all of it text: escaped, redacted, control characters shown."""
    head = "".join(f'<th style="{_CELL}">{_text(name)}</th>' for name in columns)
    body = "".join("<tr>" + "".join(f'<td style="{_CELL}">{_text(cell)}</td>' for cell in row) + "</tr>" for row in rows)
    last = f"<p>{_text(more)}</p>" if more else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="{AS_IT_STANDS}"><p>{_text(title)}</p>{table}{last}</div>'


def _text(value: str) -> str:
    return escape(one_line(redact_text(value), _CHARACTERS))
