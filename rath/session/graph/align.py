"""What two sequences have in common, in order. Never quadratic, whatever they hold.

Three methods, each for what the one before cannot do: the shortest edit script (Myers), as long as a budget of steps
lasts; beyond it, items that occur once on either side are anchors (patience), and the gaps between them are tried again;
where there are none, the k-th occurrence of an item on the left is matched with the k-th on the right, as far as these
stand in order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Sequence

__all__ = ["Block", "align"]

Block = tuple[int, int, int]
"""``(i, j, n)``: ``left[i:i + n] == right[j:j + n]``."""

# Some 0.3 µs each, 0.1 s in all: 400 differences in one gap. A gap may take a quarter of what is left.
_MYERS_STEPS = 400_000
# Each level finds anchors in O(n). Real transcripts need two or three; text made for it could need one a row.
_PATIENCE_DEPTH = 24


def align(left: Sequence[Hashable], right: Sequence[Hashable], *, steps: int = _MYERS_STEPS) -> list[Block]:
    """Runs of equal items, in order on both sides, as long as possible and never touching each other.

    The longest common subsequence for anything that people compare; for thousands of differences among repeated items, a
    good one. O(n log n): two sequences of 10,000 take less than 0.5 s, be they equal, unlike, or one item repeated.

    Args:
        steps: of looking for the shortest script; less for a good one sooner.
    """
    blocks: list[Block] = []
    stack = [(0, len(left), 0, len(right), 0)]
    while stack:
        i, i_end, j, j_end, depth = stack.pop()
        start = i
        while i < i_end and j < j_end and left[i] == right[j]:
            i, j = i + 1, j + 1
        blocks.append((start, j - (i - start), i - start))
        end = i_end
        while i < i_end and j < j_end and left[i_end - 1] == right[j_end - 1]:
            i_end, j_end = i_end - 1, j_end - 1
        blocks.append((i_end, j_end, end - i_end))
        if i == i_end or j == j_end:
            continue
        a, b = left[i:i_end], right[j:j_end]
        found, used = _shortest_script(a, b, steps // 4)
        steps -= used
        anchors = _unique(a, b) if found is None and depth < _PATIENCE_DEPTH else []
        if anchors:
            # Every piece but the first begins with its anchor, which the loop above takes.
            cuts = [(0, 0), *anchors, (len(a), len(b))]
            for (a0, b0), (a1, b1) in zip(cuts, cuts[1:], strict=False):
                stack.append((i + a0, i + a1, j + b0, j + b1, depth + 1))
            continue
        if found is None:
            found = _increasing(_by_occurrence(a, b))
        blocks += [(i + x, j + y, 1) for x, y in found]
    return _joined(blocks)


def _joined(blocks: Iterable[Block]) -> list[Block]:
    joined: list[Block] = []
    for i, j, n in sorted(block for block in blocks if block[2]):
        if joined and joined[-1][0] + joined[-1][2] == i and joined[-1][1] + joined[-1][2] == j:
            before = joined[-1]
            joined[-1] = (before[0], before[1], before[2] + n)
        else:
            joined.append((i, j, n))
    return joined


def _places(items: Sequence[Hashable]) -> dict[Hashable, int]:
    """Where each item that occurs once stands; -1 for the others."""
    places: dict[Hashable, int] = {}
    for place, item in enumerate(items):
        places[item] = -1 if item in places else place
    return places


def _unique(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    """The items that occur once in either, as far as they stand in order."""
    in_b = _places(b)
    pairs = [(place, in_b.get(item, -1)) for item, place in _places(a).items() if place >= 0]
    return _increasing([pair for pair in pairs if pair[1] >= 0])


def _by_occurrence(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    places: dict[Hashable, list[int]] = {}
    for place, item in enumerate(b):
        places.setdefault(item, []).append(place)
    seen: dict[Hashable, int] = {}
    pairs = []
    for place, item in enumerate(a):
        number = seen.get(item, 0)
        seen[item] = number + 1
        there = places.get(item, ())
        if number < len(there):
            pairs.append((place, there[number]))
    return pairs


def _increasing(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest part of ``pairs``, which increase in their first, that increases in the second too."""
    ends: list[int] = []  # the least second that a run of this length ends with
    which: list[int] = []  # the pair that has it
    before: list[int] = []
    for number, (_, second) in enumerate(pairs):
        length = bisect_left(ends, second)
        before.append(which[length - 1] if length else -1)
        ends[length:length + 1] = [second]
        which[length:length + 1] = [number]
    found = []
    at = which[-1] if which else -1
    while at >= 0:
        found.append(pairs[at])
        at = before[at]
    return found[::-1]


def _shortest_script(
    a: Sequence[Hashable], b: Sequence[Hashable], steps: int
) -> tuple[list[tuple[int, int]] | None, int]:
    """The pairs of a longest common subsequence, and the steps that it took; ``None`` if those do not suffice."""
    n, m = len(a), len(b)
    reached = {1: 0}  # by diagonal: how far in `a`
    trace: list[dict[int, int]] = []
    used = 0
    for edits in range(n + m + 1):
        used += edits + 1
        if used > steps:
            return None, used
        trace.append(dict(reached))
        for diagonal in range(-edits, edits + 1, 2):
            right, down = reached.get(diagonal - 1, -1), reached.get(diagonal + 1, -1)
            x = down if right < down else right + 1
            y = start = x - diagonal
            while x < n and y < m and a[x] == b[y]:
                x, y = x + 1, y + 1
            used += y - start
            reached[diagonal] = x
            if x >= n and y >= m:
                return _traced(trace, n, m), used
    raise AssertionError("n + m edits make anything of anything")


def _traced(trace: Sequence[dict[int, int]], x: int, y: int) -> list[tuple[int, int]]:
    pairs = []
    for reached in reversed(trace):
        diagonal = x - y
        right, down = reached.get(diagonal - 1, -1), reached.get(diagonal + 1, -1)
        came = diagonal + 1 if right < down else diagonal - 1
        x_before = reached[came]
        y_before = x_before - came
        start = x_before if came > diagonal else x_before + 1
        while x > max(start, 0) and y > 0:
            x, y = x - 1, y - 1
            pairs.append((x, y))
        x, y = x_before, y_before
    return pairs[::-1]
