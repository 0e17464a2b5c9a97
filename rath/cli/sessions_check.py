"""``rath sessions verify``, ``salvage`` and ``export``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import Progress

from rath.cli.console import Screen, Trouble, err, out, user_path
from rath.cli.sessions import find_session_log
from rath.display.text import count, one_line
from rath.errors import PersistenceError
from rath.session.persistence.collection import open_dir
from rath.session.persistence.salvaging import export_session, salvage
from rath.session.persistence.verdict import Verdict, verify

__all__ = ["STYLES", "export_log", "salvage_log", "verdict_json", "verify_logs"]

STYLES = {"complete": "green", "open": "yellow", "torn": "yellow", "damaged": "bold red", "unreadable": "bold red"}
_FEW = 20


def verify_logs(sessions: Sequence[str], *, everything: bool, as_json: bool) -> int:
    """Print the verdicts on logs; 1 if any is not ``complete``."""
    if bool(sessions) == everything:
        raise Trouble("give ids or paths of logs, or --all for every log in the sessions directory")
    paths = sorted(entry.path for entry in open_dir()) if everything else [find_session_log(session) for session in sessions]
    found: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    screen = out()
    with _bar(len(paths) if everything and len(paths) > 1 else 0) as advance:
        for path in paths:
            found.append(_verdict_on(path))
            counts[found[-1]["verdict"]] += 1
            advance()
    if as_json:
        screen.json({"logs": found, "counts": dict(counts)})
    else:
        _show_verdicts(screen, found, counts, all_shown=not everything or len(found) <= _FEW)
    return 0 if set(counts) <= {"complete"} else 1


def salvage_log(session: str, out_path: Path, *, as_json: bool) -> int:
    """Write what is whole in a log to a new one."""
    made = salvage(find_session_log(session), user_path(str(out_path)))
    screen = out()
    if as_json:
        screen.json({"source": verdict_json(made.source), "result": verdict_json(made.result)})
        return 0
    screen.line(f"{made.source.path} is ", (made.source.verdict, STYLES[made.source.verdict]), _why(made.source))
    screen.line(f"salvaged {count(made.result.rows, 'row')} in {count(made.source.records, 'record')} to {made.result.path}")
    if made.left_out_bytes:
        chained = f", {count(made.left_out_records, 'whole record')} among them" if made.left_out_records else ""
        screen.line((f"left out {made.left_out_bytes:,} bytes{chained}", "yellow"))
    return 0


def export_log(session: str, out_path: Path, *, as_json: bool) -> int:
    """Copy a log, checked."""
    made = export_session(find_session_log(session), user_path(str(out_path)))
    if as_json:
        out().json(verdict_json(made))
    else:
        known = f"{count(made.rows, 'row')}, {made.size_bytes:,} bytes, "
        out().line(f"copied to {made.path}: {known}", (made.verdict, STYLES[made.verdict]))
    return 0


def verdict_json(found: Verdict) -> dict[str, Any]:
    """A verdict for programs."""
    return {
        "path": str(found.path),
        "id": None if found.session_id is None else str(found.session_id),
        "verdict": found.verdict,
        "reason": found.reason,
        "line": found.line,
        "offset": found.offset,
        "schema": found.schema,
        "records": found.records,
        "rows": found.rows,
        "whole_bytes": found.whole_bytes,
        "size_bytes": found.size_bytes,
        "records_after": found.records_after,
        "writer": found.writer,
    }


def _verdict_on(path: Path) -> dict[str, Any]:
    try:
        return verdict_json(verify(path))
    except PersistenceError as error:
        return {"path": str(path), "id": None, "verdict": "unreadable", "reason": str(error)}


def _show_verdicts(screen: Screen, found: Sequence[dict[str, Any]], counts: Counter[str], *, all_shown: bool) -> None:
    for one in found:
        if not all_shown and one["verdict"] == "complete":
            continue
        verdict = one["verdict"]
        rows = f"  {count(one['rows'], 'row')}" if "rows" in one else ""
        screen.line((f"{verdict:10}", STYLES[verdict]), f"  {one['path']}{rows}")
        if one["reason"]:
            where = f"line {one['line']}, byte {one['offset']}: " if one.get("line") else ""
            screen.line((f"            {where}{one_line(one['reason'], 300)}", "dim"))
        if one.get("writer"):
            screen.line((f"            {one['writer']} is writing it", "dim"))
        if one.get("records_after"):
            screen.line((f"            {count(one['records_after'], 'whole record')} after that", "dim"))
    if len(found) != 1:
        screen.line(", ".join(f"{number:,} {verdict}" for verdict, number in sorted(counts.items())) or "no logs")


def _why(found: Verdict) -> str:
    return f": line {found.line}, byte {found.offset}: {found.reason}" if found.reason else ""


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, if a person looks and there is more than one thing to do."""
    screen = err()
    if not total or not screen.live:
        yield lambda: None
        return
    with Progress(console=screen.console, transient=True) as progress:
        task = progress.add_task("verifying", total=total)
        yield lambda: progress.advance(task)
