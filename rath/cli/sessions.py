"""``rath sessions list``, and which log an id on the command line means."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.progress import Progress

from rath.cli.console import Screen, Trouble, err, out, user_path
from rath.display.svg import short_id
from rath.display.text import fit, one_line, width
from rath.session.persistence.collection import LogEntry, open_dir
from rath.session.persistence.paths import SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX, is_there, sessions_dir

__all__ = ["VERDICT_STYLES", "find_session_log", "list_logs", "local_time", "progress_bar"]

VERDICT_STYLES = {"complete": "green", "open": "yellow", "torn": "yellow", "damaged": "bold red", "unreadable": "bold red"}
_ID_PART = re.compile(r"[0-9a-fA-F][0-9a-fA-F-]{0,35}")
_MANY = 500
_WIDEST_OPERATOR = 24
_OTHER_COLUMNS = len("id345678") + 2 + 2 + 2 + len("  rows") + 2 + len("shared") + 2 + len("999.9 MB") + 2 + len("complete")


def list_logs(*, as_json: bool, limit: int) -> int:
    """Print the session logs, newest first."""
    logs = open_dir()
    with progress_bar("reading logs", len(logs), at_least=_MANY) as progress:
        entries = logs.read(progress)
    shown = entries[:limit] if limit else entries
    screen = out()
    if as_json:
        screen.json([_entry_json(entry) for entry in shown])
        return 0
    if not shown:
        screen.line(f"no session logs in {logs.path}")
        screen.line(("`rath demo` makes some; runs with persist=True do.", "dim"))
        return 0
    _show_entries(screen, shown)
    if len(shown) < len(entries):
        screen.line((f"… {len(entries) - len(shown):,} more (--limit 0 shows all)", "dim"))
    return 0


def find_session_log(session: str) -> Path:
    """The log that an id, the beginning of an id, or a path means.

    Raises:
        Trouble: none, or more than one.
    """
    if os.sep in session or session.endswith((SESSION_FILE_SUFFIX, SESSION_PARTIAL_SUFFIX)):
        path = user_path(session)
        if not is_there(path):
            raise Trouble(f"there is no log {path}", code=1)
        return path
    if not _ID_PART.fullmatch(session):
        raise Trouble(f"{session!r:.100} is neither an id, nor the beginning of one, nor a path to a log")
    found = _logs_that_begin_with(session.lower())
    if not found:
        where = f"no session in {sessions_dir()} has an id that begins with {session}"
        raise Trouble(f"{where}: see `rath sessions list`", code=1)
    if len(found) > 1:
        names = ", ".join(path.name.partition(".")[0] for path in found[:5]) + (", …" if len(found) > 5 else "")
        raise Trouble(f"{len(found)} sessions begin with {session}: {names}. Give more of the id")
    return found[0]


def _logs_that_begin_with(prefix: str) -> list[Path]:
    directory = sessions_dir()
    bare = prefix.replace("-", "")
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Trouble(f"cannot list the logs in {directory}: {error.strerror or error}", code=1) from None
    found: dict[str, Path] = {}
    for name in names:
        stem = name.removesuffix(SESSION_PARTIAL_SUFFIX).removesuffix(SESSION_FILE_SUFFIX)
        if stem != name and stem.replace("-", "").lower().startswith(bare):
            found.setdefault(stem, directory / name)  # in order: one that was closed before what is left of it
    return [*found.values()]


@contextmanager
def progress_bar(doing: str, total: int, *, at_least: int = 2) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, if a person looks and there is much to do. Call what it gives with how many are done, of how many."""
    screen = err()
    if total < at_least or not screen.live:
        yield lambda _done, _total: None
        return
    step = max(1, total // 200)
    with Progress(console=screen.console, transient=True) as progress:
        task = progress.add_task(doing, total=total)

        def advance(done: int, of: int) -> None:
            if done % step == 0 or done == of:
                progress.update(task, completed=done, total=of)

        yield advance


def local_time(moment: datetime) -> str:
    """A moment in local time, to the second."""
    try:
        moment = moment.astimezone()
    except (ValueError, OverflowError, OSError):  # the first or last day of all, in another time zone
        pass
    return moment.isoformat(" ", "seconds")[:19]


# -- the list -----------------------------------------------------------------------------------------------------------


def _show_entries(screen: Screen, entries: Sequence[LogEntry]) -> None:
    # What is no log has no operator, and its file's name is all there is to say.
    said = [fit(entry.operator if entry.id else entry.path.name, _WIDEST_OPERATOR) for entry in entries]
    pinned = [entry.pinned for entry in entries]
    wide, when = max(8, *map(width, said)), 19
    if screen.console.is_terminal:
        left = screen.console.width - _OTHER_COLUMNS - (len(" pinned") if any(pinned) else 0)
        wide, when = (wide, when) if left >= when + wide else (max(8, min(wide, left - 16)), 16)  # without seconds
    head = f"{'id':8}  {'created':{when}}  {'operator':{wide}}  {'rows':>6}  {'shared':>6}  {'size':>8}  verdict"
    screen.line((head, "bold"))
    for entry, operator, kept in zip(entries, said, pinned, strict=True):
        operator = fit(operator, wide)
        known = f"{short_id(entry.id) if entry.id else '-':8}  {local_time(entry.created_at)[:when]}  {operator}"
        known += " " * (wide - width(operator))
        shared = f"{entry.shared_rows:,}" if entry.shared_rows else ""
        known += f"  {entry.rows:6,}  {shared:>6}  {_size(entry.size_bytes):>8}  "
        screen.line(known, (entry.verdict, VERDICT_STYLES[entry.verdict]), (" pinned" if kept else "", "dim"))


def _size(size_bytes: int) -> str:
    if size_bytes < 10_000:
        return f"{size_bytes:,} B"
    for factor, unit in ((1e3, "kB"), (1e6, "MB")):
        if size_bytes < 999.5 * factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1e9:,.1f} GB"


def _entry_json(entry: LogEntry) -> dict[str, Any]:
    return {
        "id": None if entry.id is None else str(entry.id),
        "path": str(entry.path),
        "created_at": entry.created_at.isoformat(),
        "lineage_operator": entry.operator,
        "lineage_kind": entry.kind.value,
        "model": entry.model,
        "rows": entry.rows,
        "shared_rows": entry.shared_rows,
        "shared_with": None if entry.shared_with is None else str(entry.shared_with),
        "size_bytes": entry.size_bytes,
        "verdict": entry.verdict,
        "reason": None if entry.reason is None else one_line(entry.reason, 300),
        "closed": entry.verdict == "complete",
        "pinned": entry.pinned,
    }
