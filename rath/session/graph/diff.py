"""Two sessions compared: where they part, what each did then, and how one transcript becomes the other."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from uuid import UUID

from rath.backend.types import WorkspaceDiff
from rath.core import ports
from rath.core.encoding import decode_json
from rath.core.redact import redact_text
from rath.llm.types import RathLLMTokenUsage
from rath.session.chunk import ChunkRow, ChunkTable
from rath.session.graph.diff_changes import Change, Transcript, find_changes
from rath.session.graph.diff_rows import CallMade, CallOutcome, calls_made, read_row
from rath.session.graph.diff_sides import (
    Compared,
    Measures,
    changed_alone,
    fork_point,
    measures,
    merged_rows,
    of_session,
    open_workspace,
)
from rath.session.session import Session

__all__ = ["CallMade", "CallOutcome", "Change", "DiffSide", "SessionDiff", "diff"]


class _Logged(Protocol):
    """A session as its log has it: a ``PersistedSession``."""

    @property
    def chunk_table(self) -> ChunkTable: ...


@dataclass(frozen=True, slots=True, repr=False)
class DiffSide:
    """One of two sessions that were compared, and what it did that the other did not.

    Attributes:
        session_id: which one.
        label: the operator that made it.
        status: of the session; of a log, its verdict unless its run ended.
        rows: those after the common prefix.
        calls: the tool calls in ``rows``, in order.
        runs: how many runs are in its lineage that are not in the other's: what happened since they parted.
        models: which ones they asked.
        usage: their tokens, but for ``usage_unknown`` of them; ``None`` if nobody knows of any.
        cost_usd: in the same way; ``None`` if no price is known, never 0 for that.
        duration_s: how long they took, added up: those that overlap count each.
        files: what has changed in its workspace since that was first opened; in a copy, since the first was. ``None`` where
            nobody can say, and ``files_note`` says why.
        files_alone: those of the paths whose change is not on the other side too; ``None`` where one side is not known.
    """

    session_id: UUID
    label: str
    status: str
    rows: tuple[ChunkRow, ...]
    calls: tuple[CallMade, ...]
    runs: int = 0
    models: tuple[str, ...] = ()
    usage: RathLLMTokenUsage | None = None
    usage_unknown: int = 0
    cost_usd: float | None = None
    cost_unknown: int = 0
    duration_s: float | None = None
    duration_unknown: int = 0
    files: WorkspaceDiff | None = None
    files_note: str = ""
    files_alone: tuple[str, ...] | None = None

    @property
    def calls_by_name(self) -> dict[str, Counter[CallOutcome]]:
        """How many calls of each tool ended how, in the order of first use."""
        found: dict[str, Counter[CallOutcome]] = {}
        for call in self.calls:
            found.setdefault(call.name, Counter())[call.outcome] += 1
        return found

    def __repr__(self) -> str:
        return f"<{self.label} {str(self.session_id)[:8]}: {len(self.rows)} rows, {len(self.calls)} calls>"


@dataclass(frozen=True, slots=True, repr=False)
class SessionDiff:
    """What :func:`diff` found. Plain data: it keeps the rows, and no session, sandbox or file. Displays never wait.

    Attributes:
        prefix: the rows that both begin with, byte by byte (redacted form): as far as their digests agree.
        left, right: the two sides.
        changes: how the rows of ``left`` after the prefix become those of ``right``: equal rows and others, in order.
        fork_point: the nearest session that both continue, or that one of them is; ``None`` if none is known.
        same: whether both have the same rows.
        workspace_shared: whether both are placed in one workspace, whose changes are the work of both.
    """

    prefix: tuple[ChunkRow, ...]
    left: DiffSide
    right: DiffSide
    changes: tuple[Change, ...]
    fork_point: UUID | None = None
    workspace_shared: bool = field(default=False)

    @property
    def prefix_rows(self) -> int:
        """How many rows both begin with."""
        return len(self.prefix)

    @property
    def same(self) -> bool:
        """Whether both have the same rows."""
        return not self.left.rows and not self.right.rows

    def to_dict(self, *, full: bool = False) -> dict[str, Any]:
        """The comparison as JSON values, everything redacted. Names and meanings stay; names may be added.

        * ``same``, ``prefix_rows``, ``fork_point``, ``workspace_shared``, as here.
        * ``left`` and ``right``: ``id``, ``operator``, ``status``, ``rows`` (all of them), ``new_rows`` (those after the
          prefix), ``calls`` (``row``, ``name``, ``arguments``, ``outcome`` and ``shared`` of each), ``runs``, ``models``,
          ``usage``, ``cost_usd``, ``duration_s`` and their ``…_unknown``, ``files`` (``added``, ``removed``,
          ``modified``, ``binary``; or ``null``), ``files_note``, ``files_alone``.
        * ``changes``: ``kind``, ``left`` and ``right`` (``[first row, row after the last]``), ``other`` (where moved rows
          are on the other side), ``source`` (whose rows a merge put there) of each.

        Args:
            full: with every row that is not equal, as ``left_rows`` and ``right_rows`` of its change, and with the files'
                ``diff``. These changes, applied to the left rows, give the right ones.
        """
        return {
            "same": self.same,
            "prefix_rows": self.prefix_rows,
            "fork_point": _text_or_none(self.fork_point),
            "workspace_shared": self.workspace_shared,
            "left": self._side(self.left, full),
            "right": self._side(self.right, full),
            "changes": [self._change(change, full) for change in self.changes],
        }

    def _side(self, side: DiffSide, full: bool) -> dict[str, Any]:
        return {
            "id": str(side.session_id),
            "operator": redact_text(side.label),
            "status": redact_text(side.status),
            "rows": self.prefix_rows + len(side.rows),
            "new_rows": len(side.rows),
            "calls": [
                {
                    "row": call.row,
                    "name": call.name,
                    "arguments": call.arguments,
                    "outcome": call.outcome,
                    "shared": call.shared,
                }
                for call in side.calls
            ],
            "runs": side.runs,
            "models": [redact_text(model) for model in side.models],
            "usage": side.usage
            and {name: getattr(side.usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
            "usage_unknown": side.usage_unknown,
            "cost_usd": side.cost_usd,
            "cost_unknown": side.cost_unknown,
            "duration_s": side.duration_s,
            "duration_unknown": side.duration_unknown,
            "files": None if side.files is None else _files(side.files, full),
            "files_note": redact_text(side.files_note),
            "files_alone": None if side.files_alone is None else [redact_text(path) for path in side.files_alone],
        }

    def _change(self, change: Change, full: bool) -> dict[str, Any]:
        found = {
            "kind": change.kind,
            "left": [change.left.start, change.left.stop],
            "right": [change.right.start, change.right.stop],
            "other": None if change.other is None else [change.other.start, change.other.stop],
            "source": _text_or_none(change.source),
        }
        if full and change.kind != "equal":
            found["left_rows"] = [_row(self.left.rows[index - self.prefix_rows]) for index in change.left]
            found["right_rows"] = [_row(self.right.rows[index - self.prefix_rows]) for index in change.right]
        return found

    def __str__(self) -> str:
        text: str = ports.load("display", "session_diff_text")(self)
        return text

    def _repr_html_(self) -> str:
        """What Jupyter shows. Never waits."""
        html: str = ports.load("display", "session_diff_html")(self)
        return html

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython shows where there is no HTML."""
        printer.text(repr(self) if cycle else str(self))

    def __repr__(self) -> str:
        if self.same:
            return f"<SessionDiff: the same {self.prefix_rows} rows>"
        return (
            f"<SessionDiff: {self.prefix_rows} rows in common, then {len(self.left.rows)} against {len(self.right.rows)} "
            f"in {sum(change.kind != 'equal' for change in self.changes)} changes>"
        )


def diff(
    a: Session | _Logged | UUID | str | os.PathLike[str],
    b: Session | _Logged | UUID | str | os.PathLike[str],
    *,
    timeout: float | None = None,
    partial: bool = False,
    files: bool = True,
) -> SessionDiff:
    """What ``b`` has that ``a`` has not, and the other way round: ``print`` it, or show it in a notebook.

    Reads the rows of both, and so waits for them as any read does; a failed session raises its error. Opens no sandbox; one
    that is open is asked for its files. Two sessions of 10,000 rows each take less than a second.

    Args:
        a, b: sessions, what ``load_session`` returned, or the ids or paths of session logs.
        timeout: seconds for all of the waiting, after which it ends with ``TimeoutError``; runs go on.
        partial: compare the rows that there are now, also of sessions that are running, failed or cancelled; never waits for
            a run.
        files: whether to ask open sandboxes what changed in their workspaces.

    Raises:
        TimeoutError: after ``timeout`` seconds.
        PersistenceError: there is no such log, or it cannot be read.
        BaseException: whatever a session failed with.
    """
    deadline = None if timeout is None else time.monotonic() + timeout

    def left_s() -> float | None:
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    one, two = _compared(a, left_s, partial), _compared(b, left_s, partial)
    rows_a, rows_b = one.table.rows, two.table.rows
    prefix = _common_rows(rows_a, rows_b)
    left = Transcript(rows_a, [read_row(row) for row in rows_a[prefix:]], merged_rows(one, two))
    right = Transcript(rows_b, [read_row(row) for row in rows_b[prefix:]], merged_rows(two, one))
    made = _shared_calls(calls_made(left.read, prefix), calls_made(right.read, prefix))
    shared = one.lease is not None and two.lease is not None and one.lease.placement is two.lease.placement
    sides = [
        _side(side, rows[prefix:], calls, _own(side, other), left_s if files else None)
        for side, other, rows, calls in ((one, two, rows_a, made[0]), (two, one, rows_b, made[1]))
    ]
    return SessionDiff(
        prefix=rows_a[:prefix],
        left=replace(sides[0], files_alone=changed_alone(sides[0].files, sides[1].files)),
        right=replace(sides[1], files_alone=changed_alone(sides[1].files, sides[0].files)),
        changes=tuple(find_changes(left, right, prefix)),
        fork_point=fork_point(one, two),
        workspace_shared=shared,
    )


def _own(side: Compared, other: Compared) -> Measures:
    """What the sessions used that only this side descends from, itself and its agents among them."""
    common = {node.id for node in other.nodes}
    return measures(node for node in side.nodes if node.id not in common)


def _compared(source: Any, left_s: Callable[[], float | None], partial: bool) -> Compared:
    if isinstance(source, Session):
        return of_session(source, left_s, partial)
    found: Compared = ports.load("graph", "logged")(source)
    return found


def _side(
    side: Compared,
    rows: tuple[ChunkRow, ...],
    calls: tuple[CallMade, ...],
    own: Measures,
    left_s: Callable[[], float | None] | None,
) -> DiffSide:
    files, note = (None, "unknown: not asked") if left_s is None else open_workspace(side, left_s)
    return DiffSide(
        side.session_id,
        side.label,
        side.status,
        rows,
        calls,
        own.runs,
        own.models,
        own.usage,
        own.usage_unknown,
        own.cost_usd,
        own.cost_unknown,
        own.duration_s,
        own.duration_unknown,
        files,
        note,
    )


def _common_rows(a: Sequence[ChunkRow], b: Sequence[ChunkRow]) -> int:
    """How many rows both begin with. Forks share the rows themselves; others are compared byte by byte, as digests are."""
    for index, (one, two) in enumerate(zip(a, b, strict=False)):
        if one is not two and one.encoded != two.encoded:
            return index
    return min(len(a), len(b))


def _shared_calls(
    a: tuple[CallMade, ...], b: tuple[CallMade, ...]
) -> tuple[tuple[CallMade, ...], tuple[CallMade, ...]]:
    in_a, in_b = (Counter((call.name, call.arguments) for call in calls) for calls in (a, b))
    both = in_a & in_b
    return _marked(a, Counter(both)), _marked(b, Counter(both))


def _marked(calls: tuple[CallMade, ...], shared: Counter[tuple[str, str]]) -> tuple[CallMade, ...]:
    marked = []
    for call in calls:
        if shared[call.name, call.arguments] > 0:
            shared[call.name, call.arguments] -= 1
            call = replace(call, shared=True)
        marked.append(call)
    return tuple(marked)


def _text_or_none(value: UUID | None) -> str | None:
    return None if value is None else str(value)


def _row(row: ChunkRow) -> Any:
    try:
        return decode_json(row.encoded)
    except (ValueError, RecursionError):  # from a log of somebody else's making
        return {"kind": row.kind.value, "payload": None}


def _files(files: WorkspaceDiff, full: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: [redact_text(path) for path in getattr(files, name)] for name in ("added", "removed", "modified", "binary")
    }
    return found | {"diff": redact_text(files.text)} if full else found
