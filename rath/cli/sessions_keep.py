"""``rath sessions prune``, ``pin``, ``unpin`` and ``du``: what is kept, what goes, and how much room it takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rath.cli.console import Screen, Trouble, err, out
from rath.cli.sessions import VERDICT_STYLES, find_session_log, local_time, progress_bar
from rath.display.text import count, one_line
from rath.errors import PersistenceError
from rath.session.persistence.collection import VERDICTS, LogEntry, open_dir
from rath.session.persistence.garbage import Garbage, collect_blobs, find_garbage
from rath.session.persistence.prune import Pruning, pin_session, prunable, prune_entries, unpin_session

__all__ = ["disk_usage", "pin", "prune", "unpin"]

_FEW = 20
_MANY = 500
_SPAN = re.compile(r"(\d{1,9})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def prune(older_than: str, *, verdicts: Sequence[str], dry_run: bool, as_json: bool) -> int:
    """Remove old logs and the blobs that no log mentions, or say which; 1 if a log cannot be removed."""
    for verdict in verdicts:
        if verdict not in VERDICTS:
            raise Trouble(f"{verdict!r:.40} is no verdict: use {', '.join(VERDICTS)}")
    logs, span = open_dir(), _span(older_than)
    found = prunable(older_than=span, verdict=verdicts or None, logs=logs)
    if dry_run:
        blobs = find_garbage(logs.path, without=[entry.path for entry in found.gone])
    else:
        done = prune_entries(found.gone)
        found = Pruning(gone=done.gone, kept=(*found.kept, *done.kept), failed=done.failed)
        blobs = _collect(logs.path)
    if as_json:
        out().json(_pruning_json(found, blobs, dry_run))
    else:
        _show_pruning(out(), found, blobs, dry_run)
    for _, error in found.failed:
        err().line(("error: ", "bold red"), one_line(str(error), 1000))
    return 1 if found.failed else 0


def _collect(directory: Path) -> Garbage:
    try:
        return collect_blobs(directory)
    except PersistenceError as error:  # the logs are gone all the same, and that has to be said
        return Garbage(directory=directory, blocked=str(error))


def _show_pruning(screen: Screen, found: Pruning, blobs: Garbage, dry_run: bool) -> None:
    for entry in found.gone:
        known = f"{entry.id}  {local_time(entry.created_at)[:10]}  {entry.size_bytes:>12,}  "
        screen.line(known, (entry.verdict, VERDICT_STYLES[entry.verdict]))
    for entry, why in found.kept[:_FEW]:
        screen.line(f"{entry.id}  stays")
        screen.line((f"    {one_line(why, 300)}", "dim"))
    if len(found.kept) > _FEW:
        screen.line((f"… and {count(len(found.kept) - _FEW, 'more log')} that others need", "dim"))
    verb = "would remove" if dry_run else "removed"
    screen.line(f"{verb} {count(len(found.gone), 'log')}, {found.size_bytes:,} bytes")
    if blobs.files:
        screen.line(f"{verb} {count(blobs.files, 'blob')} that no log mentions, {blobs.size_bytes:,} bytes")
    _warn_if_blocked(blobs)


def _warn_if_blocked(blobs: Garbage) -> None:
    if blobs.blocked is not None:
        err().line((f"no blob goes: {one_line(blobs.blocked, 400)}", "yellow"))


def _pruning_json(found: Pruning, blobs: Garbage, dry_run: bool) -> dict[str, Any]:
    return {
        "removed": [_entry_json(entry) for entry in found.gone],
        "kept": [_entry_json(entry) | {"why": one_line(why, 400)} for entry, why in found.kept],
        "failed": [_entry_json(entry) | {"why": one_line(str(error), 400)} for entry, error in found.failed],
        "bytes": found.size_bytes,
        "blobs": {"removed": blobs.files, "bytes": blobs.size_bytes, "blocked": blobs.blocked},
        "dry_run": dry_run,
    }


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
    """How much room logs and blobs take, and what pruning would free."""
    logs, span = open_dir(), _span(older_than)
    total = len(logs)
    with progress_bar("checking" if check else "reading logs", total, at_least=2 if check else _MANY) as progress:
        entries = logs.verify_all(progress) if check else logs.read(progress)
    found = prunable(older_than=span, logs=logs, entries=entries)
    going = {entry.path for entry in found.gone}
    blobs = find_garbage(logs.path, without=going)
    needed = {entry.shared_with for entry in entries if entry.shared_with is not None}
    usage = _Usage(
        path=logs.path,
        checked=check,
        by_verdict=_sums(entries),
        sharing=sum(1 for entry in entries if entry.shared_rows),
        shared_rows=sum(entry.shared_rows for entry in entries),
        needed=sum(1 for entry in entries if entry.id in needed),
        found=found,
        blobs=blobs,
    )
    if as_json:
        out().json(_usage_json(usage, span))
    else:
        _show_usage(out(), usage, older_than)
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Usage:
    """What ``du`` says.

    Attributes:
        by_verdict: logs and bytes.
        sharing: logs whose first rows, ``shared_rows`` in all, stand in others; ``needed``: those others.
        found, blobs: what prune would remove.
    """

    path: Path
    checked: bool
    by_verdict: dict[str, tuple[int, int]]
    sharing: int
    shared_rows: int
    needed: int
    found: Pruning
    blobs: Garbage

    @property
    def free_bytes(self) -> int:
        return self.found.size_bytes + self.blobs.size_bytes


def _sums(entries: Iterable[LogEntry]) -> dict[str, tuple[int, int]]:
    sums: dict[str, tuple[int, int]] = {}
    for entry in entries:
        logs, size = sums.get(entry.verdict, (0, 0))
        sums[entry.verdict] = (logs + 1, size + entry.size_bytes)
    return sums


def _show_usage(screen: Screen, usage: _Usage, older_than: str) -> None:
    sums, found, blobs = usage.by_verdict, usage.found, usage.blobs
    screen.line((f"{'verdict':10}  {'logs':>8}  {'bytes':>16}", "bold"))
    for verdict in (verdict for verdict in VERDICTS if verdict in sums):
        number, size = sums[verdict]
        screen.line((f"{verdict:10}", VERDICT_STYLES[verdict]), f"  {number:>8,}  {size:>16,}")
    screen.line(f"{'all':10}  {sum(n for n, _ in sums.values()):>8,}  {sum(size for _, size in sums.values()):>16,}")
    if blobs.blobs:
        screen.line(f"{'blobs':10}  {blobs.blobs:>8,}  {blobs.total_bytes:>16,}  {blobs.directory}")
    if usage.sharing:
        shared = f"{usage.sharing:,} ({count(usage.shared_rows, 'row')})"
        screen.line(f"logs that have rows in others: {shared}; logs that others need: {usage.needed:,}")
    freeing = f"would free {usage.free_bytes:,} bytes in {count(len(found.gone), 'log')}"
    freeing += f" and {count(blobs.files, 'blob')} that no log mentions then" if blobs.files else ""
    screen.line(f"`rath sessions prune --older-than {older_than}` {freeing}")
    if found.kept:
        screen.line((f"{count(len(found.kept), 'log')} as old as that would stay, for others need them", "dim"))
    if not usage.checked:
        screen.line(("by the ends of each log; --check reads them whole", "dim"))
    _warn_if_blocked(blobs)


def _usage_json(usage: _Usage, span: timedelta) -> dict[str, Any]:
    found, blobs = usage.found, usage.blobs
    return {
        "path": str(usage.path),
        "checked": usage.checked,
        "verdicts": {verdict: {"logs": logs, "bytes": size} for verdict, (logs, size) in usage.by_verdict.items()},
        "shared": {"logs": usage.sharing, "rows": usage.shared_rows, "needed_logs": usage.needed},
        "blobs": {"path": str(blobs.directory), "blobs": blobs.blobs, "bytes": blobs.total_bytes, "blocked": blobs.blocked},
        "prune": {
            "older_than_s": span.total_seconds(),
            "logs": len(found.gone),
            "bytes": found.size_bytes,
            "kept": len(found.kept),
            "blobs": blobs.files,
            "blob_bytes": blobs.size_bytes,
        },
    }


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
