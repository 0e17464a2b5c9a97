"""``rath sessions verify``, ``salvage`` and ``export``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rath.cli.console import Screen, Trouble, err, out, user_path
from rath.cli.sessions import VERDICT_STYLES, find_session_log, progress_bar
from rath.display.text import count, one_line
from rath.errors import PersistenceError
from rath.session.persistence.blobs import CopiedBlobs, blob_directory
from rath.session.persistence.collection import open_dir
from rath.session.persistence.salvaging import export_with_blobs, salvage
from rath.session.persistence.verdict import Verdict, verify

__all__ = ["export_log", "salvage_log", "verdict_json", "verify_logs"]

_FEW = 20
_NAMES = (
    *("path", "id", "verdict", "reason", "line", "offset", "schema", "records", "rows"),
    *("whole_bytes", "size_bytes", "records_after", "writer"),
)
"""What a verdict says to programs: each of these, always."""


def verify_logs(sessions: Sequence[str], *, everything: bool, as_json: bool) -> int:
    """Print the verdicts on logs; 1 if any is not ``complete``."""
    if bool(sessions) == everything:
        raise Trouble("give ids or paths of logs, or --all for every log in the sessions directory")
    paths = open_dir().files() if everything else [find_session_log(session) for session in sessions]
    found: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    screen = out()
    with progress_bar("verifying", len(paths) if everything else 0) as progress:
        for done, path in enumerate(paths, 1):
            one = _verdict_on(path)
            if not everything or one["verdict"] != "unreadable" or os.path.lexists(path):  # else deleted since
                found.append(one)
                counts[one["verdict"]] += 1
            progress(done, len(paths))
    if as_json:
        screen.json({"logs": found, "counts": dict(counts)})
    else:
        _show_verdicts(screen, found, counts, all_shown=not everything or len(found) <= _FEW)
    return 0 if set(counts) <= {"complete"} else 1


def salvage_log(session: str, out_path: Path, *, as_json: bool) -> int:
    """Write what is whole in a log to a new one."""
    made = salvage(find_session_log(session), user_path(str(out_path)))
    copied = made.blobs
    screen = out()
    if as_json:
        screen.json({"source": verdict_json(made.source), "result": verdict_json(made.result), "blobs": _blobs_json(copied)})
        return 1 if copied.damaged else 0
    screen.line(f"{made.source.path} is ", (made.source.verdict, VERDICT_STYLES[made.source.verdict]), _why(made.source))
    screen.line(f"salvaged {count(made.result.rows, 'row')} in {count(made.source.records, 'record')} to {made.result.path}")
    if made.left_out_bytes:
        chained = f", {count(made.left_out_records, 'whole record')} among them" if made.left_out_records else ""
        screen.line((f"left out {made.left_out_bytes:,} bytes{chained}", "yellow"))
    _tell_blobs(copied, made.result.path)
    return 1 if copied.damaged else 0


def export_log(session: str, out_path: Path, *, as_json: bool) -> int:
    """Copy a log, checked, with all its rows and the whole texts of its results."""
    source = find_session_log(session)
    made, copied = export_with_blobs(source, user_path(str(out_path)))
    if as_json:
        out().json(verdict_json(made) | {"blobs": _blobs_json(copied)})
        return 1 if copied.damaged else 0
    known = f"{count(made.rows, 'row')}, {made.size_bytes:,} bytes, "
    out().line(f"copied to {made.path}: {known}", (made.verdict, VERDICT_STYLES[made.verdict]))
    _tell_blobs(copied, made.path)
    return 1 if copied.damaged else 0


def _blobs_json(blobs: CopiedBlobs) -> dict[str, Any]:
    return {"copied": len(blobs.copied), "damaged": list(blobs.damaged)}


def _tell_blobs(blobs: CopiedBlobs, made: Path) -> None:
    if blobs.copied:
        texts = count(len(blobs.copied), "whole text")
        out().line((f"with {texts} of results that were cut, in {blob_directory(made)}", "dim"))
    for digest in blobs.damaged:
        err().line((f"the whole text {digest} of a result that was cut is damaged, and was not copied", "yellow"))


def verdict_json(found: Verdict) -> dict[str, Any]:
    """A verdict for programs."""
    values = {name: getattr(found, name, None) for name in _NAMES}
    return values | {"path": str(found.path), "id": None if found.session_id is None else str(found.session_id)}


def _verdict_on(path: Path) -> dict[str, Any]:
    try:
        return verdict_json(verify(path))
    except PersistenceError as error:
        return dict.fromkeys(_NAMES) | {"path": str(path), "verdict": "unreadable", "reason": str(error)}


def _show_verdicts(screen: Screen, found: Sequence[dict[str, Any]], counts: Counter[str], *, all_shown: bool) -> None:
    for one in found:
        if not all_shown and one["verdict"] == "complete":
            continue
        verdict = one["verdict"]
        rows = "" if one["rows"] is None else count(one["rows"], "row")
        screen.line((f"{verdict:10}", VERDICT_STYLES[verdict]), f"  {rows:>9}  {one_line(one['path'], 4096)}")
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
