"""``rath sessions diff``: two session logs compared. Exits as ``diff`` does: 0 the same, 1 different, 2 trouble."""

from __future__ import annotations

from pathlib import Path

from rath.cli.console import Screen, Trouble, out, user_path
from rath.cli.sessions import find_session_log
from rath.display.session_diff import headline, session_diff_lines
from rath.display.session_diff_html import session_diff_page
from rath.errors import RathError
from rath.session.graph.diff import SessionDiff, diff

__all__ = ["diff_logs"]

_STYLES = {"title": "bold", "soft": "dim", "left": "red", "right": "cyan", "edit": "magenta", "move": "yellow"}
_LEAST_COLUMNS, _MOST_COLUMNS, _PIPE_COLUMNS = 40, 160, 80


def diff_logs(a: str, b: str, *, as_json: bool, html: Path | None, full: bool) -> int:
    """Print how two logs differ, as text or JSON, or write a page."""
    try:
        paths = find_session_log(a), find_session_log(b)
        found = diff(*paths)
    except Trouble as trouble:
        raise Trouble(str(trouble)) from None
    except (RathError, OSError) as error:
        raise Trouble(str(error)) from error
    page = None if html is None else _write_page(found, user_path(html), paths)
    screen = out()
    if as_json:
        screen.json(found.to_dict(full=full))
    elif page is not None:
        screen.line((headline(found), "bold"))
        screen.line(f"the page is at {page}")
    else:
        _show(screen, found, full)
    return 0 if found.same else 1


def _show(screen: Screen, found: SessionDiff, full: bool) -> None:
    person = screen.console.is_terminal
    columns = max(_LEAST_COLUMNS, min(screen.console.width, _MOST_COLUMNS)) if person else _PIPE_COLUMNS
    for line in session_diff_lines(found, columns=columns, full=full):
        screen.line(*((text, _STYLES.get(kind, "")) for text, kind in line))


def _write_page(found: SessionDiff, path: Path, logs: tuple[Path, Path]) -> Path:
    try:
        if path.exists() and any(path.samefile(log) for log in logs):
            raise Trouble(f"{path} is one of the logs: give --html another file")
        path.write_text(session_diff_page(found), encoding="utf-8", newline="\n")
    except OSError as error:
        raise Trouble(f"cannot write the page {path}: {error.strerror or error}") from error
    return path
