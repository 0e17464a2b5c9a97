"""Questions about a graph, answered in the places of its nodes. None recurses; parents stand before children."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rath.session.graph.links import Links

__all__ = ["branches", "common_ancestor", "critical_path", "fork_point", "path", "reached"]


def reached(edges: Sequence[Sequence[int]], start: int) -> set[int]:
    """Everything that can be reached from ``start``, without it."""
    seen: set[int] = set()
    waiting = list(edges[start])
    while waiting:
        at = waiting.pop()
        if at not in seen:
            seen.add(at)
            waiting.extend(edges[at])
    return seen


def path(links: Links, a: int, b: int) -> list[int]:
    """The shortest way from ``a`` to ``b``, down or up; empty if there is none."""
    # Parents stand before children: only one direction is possible.
    return _up(links, b, a) if a <= b else _up(links, a, b)[::-1]


def _up(links: Links, low: int, high: int) -> list[int]:
    """The shortest way between an ancestor and its descendant, the ancestor first; earlier parents are tried first."""
    below = {low: low}
    waiting = deque([low])
    while waiting and high not in below:
        at = waiting.popleft()
        for parent in links.parents[at]:
            # What stands before the ancestor cannot descend from it.
            if parent >= high and parent not in below:
                below[parent] = at
                waiting.append(parent)
    if high not in below:
        return []
    way = [high]
    while way[-1] != low:
        way.append(below[way[-1]])
    return way


def common_ancestor(links: Links, a: int, b: int) -> int | None:
    """The last common one by continuation; if there is none, the last common one at all."""
    # The last of them in the order is a lowest one: whatever descends from it would stand behind it.
    for edges in (links.continued, links.parents):
        common = (reached(edges, a) | {a}) & (reached(edges, b) | {b})
        if common:
            return max(common)
    return None


def fork_point(links: Links, a: int, b: int) -> int | None:
    """Where the lines of row parents of ``a`` and ``b`` meet."""
    left: int | None = a
    right: int | None = b
    while left != right:
        if left is None or right is None:
            return None
        # A row parent stands before what continues it: the one that stands behind cannot be what both share.
        if left > right:
            left = links.row_parent[left]
        else:
            right = links.row_parent[right]
    return left


def branches(links: Links) -> list[list[int]]:
    """The maximal runs in which each continues the one before, and nothing else does, in the order of their starts."""
    continuations: list[list[int]] = [[] for _ in links.parents]
    for at, parents in enumerate(links.continued):
        for parent in parents:
            continuations[parent].append(at)
    found: list[list[int]] = []
    for at, parents in enumerate(links.continued):
        only_instructs = bool(links.children[at]) and not continuations[at] and not parents
        inside = len(parents) == 1 and len(continuations[parents[0]]) == 1
        if only_instructs or inside:
            continue
        run = [at]
        while len(below := continuations[run[-1]]) == 1 and len(links.continued[below[0]]) == 1:
            run.append(below[0])
        found.append(run)
    return found


def critical_path(links: Links, durations: Sequence[float]) -> list[int]:
    """The way from a root down with the largest sum; of equal ones that with more nodes, then with earlier ones."""
    best: list[tuple[float, int]] = []
    above: list[int | None] = []
    for at, parents in enumerate(links.parents):
        before: int | None = None
        for parent in parents:
            if before is None or best[parent] > best[before]:
                before = parent
        length, count = (0.0, 0) if before is None else best[before]
        best.append((length + durations[at], count + 1))
        above.append(before)
    if not best:
        return []
    end: int | None = max(range(len(best)), key=lambda at: (best[at], -at))
    way: list[int] = []
    while end is not None:
        way.append(end)
        end = above[end]
    return way[::-1]
