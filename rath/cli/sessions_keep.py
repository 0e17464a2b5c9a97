"""``rath sessions prune``, ``pin``, ``unpin`` and ``du``: what is kept, what goes, and how much room it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from rath.cli.console import Trouble, out
from rath.cli.sessions import find_session_log
from rath.cli.sessions_check import STYLES
from rath.display.text import count
from rath.session.persistence.collection import VERDICTS, LogEntry, open_dir
from rath.session.persistence.prune import pin_session, prunable, prune_entries, unpin_session

__all__ = ["disk_usage", "pin", "prune", "unpin"]

_SPAN = re.compile(r"(\d{1,9})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def prune(older_than: str, *, verdicts: Sequence[str], dry_run: bool, as_json: bool) -> int:
    """Remove old logs, or say which."""
    for verdict in verdicts:
        if verdict not in VERDICTS:
            raise Trouble(f"{verdict!r:.40} is no verdict: use {', '.join(VERDICTS)}")
    found = prunable(older_than=_span(older_than), verdict=verdicts or None)
    gone = found if dry_run else prune_entries(found)
    freed = sum(entry.size_bytes for entry in gone)
    screen = out()
    if as_json:
        screen.json({"removed": [_entry_json(entry) for entry in gone], "bytes": freed, "dry_run": dry_run})
        return 0
    for entry in gone:
        known = f"{entry.id}  {entry.created_at:%Y-%m-%d}  {entry.size_bytes:>12,}  "
        screen.line(known, (entry.verdict, STYLES[entry.verdict]))
    screen.line(f"{'would remove' if dry_run else 'removed'} {count(len(gone), 'log')}, {freed:,} bytes")
    return 0


def pin(session: str, *, as_json: bool) -> int:
    """Keep a log from being pruned."""
    log = pin_session(find_session_log(session))
    if as_json:
        out().json({"path": str(log), "pinned": True})
    else:
        out().line(f"pinned {log}")
    return 0


def unpin(session: str, *, as_json: bool) -> int:
    """Let a log be pruned again."""
    log = find_session_log(session)
    was = unpin_session(log)
    if as_json:
        out().json({"path": str(log), "pinned": False, "was_pinned": was})
    else:
        out().line(f"{'unpinned' if was else 'was not pinned:'} {log}")
    return 0


def disk_usage(older_than: str, *, check: bool, as_json: bool) -> int:
    """How much room logs take, and what pruning would free."""
    logs, span = open_dir(), _span(older_than)
    sums: dict[str, list[int]] = {}
    for entry in logs.verify_all() if check else logs:
        total = sums.setdefault(entry.verdict, [0, 0])
        total[0] += 1
        total[1] += entry.size_bytes
    freed = prunable(older_than=span)
    free_bytes = sum(entry.size_bytes for entry in freed)
    screen = out()
    if as_json:
        by_verdict = {verdict: {"logs": logs_, "bytes": size} for verdict, (logs_, size) in sums.items()}
        free = {"older_than_s": span.total_seconds(), "logs": len(freed), "bytes": free_bytes}
        screen.json({"path": str(logs.path), "checked": check, "verdicts": by_verdict, "prune": free})
        return 0
    screen.line((f"{'verdict':10}  {'logs':>8}  {'bytes':>16}", "bold"))
    for verdict in (verdict for verdict in VERDICTS if verdict in sums):
        number, size = sums[verdict]
        screen.line((f"{verdict:10}", STYLES[verdict]), f"  {number:>8,}  {size:>16,}")
    screen.line(f"{'all':10}  {sum(n for n, _ in sums.values()):>8,}  {sum(size for _, size in sums.values()):>16,}")
    freeing = f"would free {free_bytes:,} bytes in {count(len(freed), 'log')}"
    screen.line(f"`rath sessions prune --older-than {older_than}` {freeing}")
    if not check:
        screen.line(("by the ends of each log; --check reads them whole", "dim"))
    return 0


def _span(text: str) -> timedelta:
    match = _SPAN.fullmatch(text)
    if match is None:
        raise Trouble(f"{text!r:.40} is no span of time: a number and s, m, h, d or w, such as 30d")
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        return timedelta.max


def _entry_json(entry: LogEntry) -> dict[str, Any]:
    return {
        "id": None if entry.id is None else str(entry.id),
        "path": str(entry.path),
        "created_at": entry.created_at.isoformat(),
        "size_bytes": entry.size_bytes,
        "verdict": entry.verdict,
    }
