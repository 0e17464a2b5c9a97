"""How one transcript becomes another: what stays, what goes, what comes, what is another version, what moved."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from uuid import UUID

from rath.session.chunk import ChunkRow
from rath.session.graph.align import align
from rath.session.graph.diff_rows import RowRead, likeness

__all__ = ["Change", "ChangeKind", "Transcript", "find_changes"]

ChangeKind = Literal["equal", "alike", "edit", "delete", "insert", "moved_away", "moved_here"]

_VERSION = 0.4
"""Rows of one role that share so much are versions of each other."""
_SMALL_GAP = 400
# Comparing the words of two rows takes some 10 µs: these are 0.2 s.
_COMPARISONS = 20_000


@dataclass(frozen=True, slots=True)
class Change:
    """One step from the left transcript to the right one. All steps together cover both, each in order.

    Attributes:
        kind: ``equal`` (the same bytes), ``alike`` (the same but for identifiers of calls and measured times), ``edit`` (one
            row on either side: two versions), ``delete`` and ``moved_away`` (left only), ``insert`` and ``moved_here``
            (right only).
        left: indices of rows of the left transcript; ``right``: of the right one. Empty ones say where.
        other: where moved rows are on the other side.
        source: the session whose rows these are, where a merge put them here.
    """

    kind: ChangeKind
    left: range
    right: range
    other: range | None = None
    source: UUID | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """One side: all its rows, those after the common prefix read, and which rows a merge put there from which session."""

    rows: Sequence[ChunkRow]
    read: Sequence[RowRead]
    sources: Mapping[int, UUID]


def find_changes(left: Transcript, right: Transcript, prefix: int) -> list[Change]:
    """The changes after ``prefix`` common rows."""
    return _joined(_Comparison(left, right, prefix).steps())


class _Comparison:
    """Works on what follows the prefix; indices are relative to it until a step is made."""

    def __init__(self, left: Transcript, right: Transcript, prefix: int) -> None:
        self._left, self._right, self._prefix = left, right, prefix
        numbers: dict[Hashable, int] = {}
        self._left_keys = [numbers.setdefault(row.key, len(numbers)) for row in left.read]
        self._right_keys = [numbers.setdefault(row.key, len(numbers)) for row in right.read]
        self._blocks = align(self._left_keys, self._right_keys)
        self._to, self._from = self._moves()
        self._comparisons = _COMPARISONS

    def steps(self) -> Iterator[Change]:
        i = j = 0
        for at, there, count in (*self._blocks, (len(self._left_keys), len(self._right_keys), 0)):
            yield from self._gap(range(i, at), range(j, there), followed=count > 0)
            for offset in range(count):
                x, y = at + offset, there + offset
                same = self._left.rows[self._prefix + x].encoded == self._right.rows[self._prefix + y].encoded
                yield self._step("equal" if same else "alike", range(x, x + 1), range(y, y + 1))
            i, j = at + count, there + count

    def _step(self, kind: ChangeKind, left: range, right: range, other: int | None = None) -> Change:
        source = self._right.sources.get(self._prefix + right.start) if right else None
        if not right:
            source = self._left.sources.get(self._prefix + left.start)
        there = None if other is None else self._absolute(range(other, other + 1))
        return Change(kind, self._absolute(left), self._absolute(right), there, source)

    def _absolute(self, rows: range) -> range:
        return range(rows.start + self._prefix, rows.stop + self._prefix)

    def _moves(self) -> tuple[dict[int, int], dict[int, int]]:
        """Rows that both sides have, out of order: from left to right and back. A tool's result moves with its call only."""
        free = set(_outside(self._blocks, 1, len(self._right_keys)))
        places: dict[int, deque[int]] = {}
        for j in sorted(free):
            places.setdefault(self._right_keys[j], deque()).append(j)
        to: dict[int, int] = {}
        back: dict[int, int] = {}
        for i in _outside(self._blocks, 0, len(self._left_keys)):
            there = places.get(self._left_keys[i], deque())
            while there and there[0] not in free:
                there.popleft()
            j = to.get(i - 1, -2) + 1  # neighbours move together
            if j not in free or self._right_keys[j] != self._left_keys[i]:
                j = there[0] if there and self._left.read[i].answers is None else -1
            if j >= 0:
                free.remove(j)
                to[i], back[j] = j, i
        return to, back

    def _gap(self, left: range, right: range, *, followed: bool) -> Iterator[Change]:
        i, j = left.start, right.start
        for x, y in (*self._versions(left, right, followed), (left.stop, right.stop)):
            for row in range(i, x):
                other = self._to.get(row)
                yield self._step("delete" if other is None else "moved_away", range(row, row + 1), range(j, j), other)
            for row in range(j, y):
                other = self._from.get(row)
                yield self._step("insert" if other is None else "moved_here", range(x, x), range(row, row + 1), other)
            if x < left.stop and y < right.stop:
                yield self._step("edit", range(x, x + 1), range(y, y + 1))
            i, j = x + 1, y + 1

    def _versions(self, left: range, right: range, followed: bool) -> list[tuple[int, int]]:
        """Which rows of a gap are versions of each other, in order."""
        a = [i for i in left if i not in self._to]
        b = [j for j in right if j not in self._from]
        if not a or not b:
            return []
        if len(a) == len(b) == 1 and followed and self._left.read[a[0]].role == self._right.read[b[0]].role:
            return [(a[0], b[0])]  # alone between rows that both have: nothing else could have taken its place
        if len(a) * len(b) <= _SMALL_GAP:
            return self._best_versions(a, b)
        roles_a, roles_b = [self._left.read[i].role for i in a], [self._right.read[j].role for j in b]
        pairs = [(a[x + k], b[y + k]) for x, y, n in align(roles_a, roles_b) for k in range(n)]
        return [pair for pair in pairs if self._likeness(*pair) >= _VERSION]

    def _best_versions(self, a: list[int], b: list[int]) -> list[tuple[int, int]]:
        """The pairs, in order, that have most in common."""
        like = [[self._likeness(i, j) for j in b] for i in a]
        best = [[0.0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for x in reversed(range(len(a))):
            for y in reversed(range(len(b))):
                paired = like[x][y] + best[x + 1][y + 1] if like[x][y] >= _VERSION else 0.0
                best[x][y] = max(best[x + 1][y], best[x][y + 1], paired)
        pairs = []
        x = y = 0
        while x < len(a) and y < len(b):
            if like[x][y] >= _VERSION and best[x][y] == like[x][y] + best[x + 1][y + 1]:
                pairs.append((a[x], b[y]))
                x, y = x + 1, y + 1
            elif best[x][y] == best[x + 1][y]:
                x += 1
            else:
                y += 1
        return pairs

    def _likeness(self, i: int, j: int) -> float:
        a, b = self._left.read[i], self._right.read[j]
        if a.role != b.role or self._comparisons <= 0:
            return 0.0
        self._comparisons -= 1
        return likeness(a, b)


def _outside(blocks: Sequence[tuple[int, int, int]], side: int, end: int) -> Iterator[int]:
    """The indices that no block covers."""
    at = 0
    for block in (*blocks, (end, end, 0)):
        yield from range(at, block[side])
        at = block[side] + block[2]


def _joined(steps: Iterator[Change]) -> list[Change]:
    """Neighbours of one kind as one, but for edits: a row is a version of one row."""
    joined: list[Change] = []
    for step in steps:
        before = joined[-1] if joined else None
        if before is not None and _goes_on(before, step):
            joined[-1] = replace(
                before,
                left=range(before.left.start, step.left.stop),
                right=range(before.right.start, step.right.stop),
                other=before.other and step.other and range(before.other.start, step.other.stop),
            )
            continue
        joined.append(step)
    return joined


def _goes_on(before: Change, step: Change) -> bool:
    if before.kind != step.kind or step.kind == "edit" or before.source != step.source:
        return False
    return before.other is None or step.other is None or before.other.stop == step.other.start
