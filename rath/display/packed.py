"""Where to draw the nodes of a large lineage: in near-linear time, on a surface about as wide as it is high.

Layers fail where lineages grow: a thousand forks make one layer of a thousand boxes, ten thousand appends a column of ten
thousand. Here the main line of a lineage (always on to the heaviest branch) runs down, in several columns where it is
long; other branches stand to its right, in shelves where they are many; and a session that only instructs stands beside
the one that it instructs first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import ceil, sqrt

__all__ = ["BESIDE", "BUS", "COLUMN", "STRAIGHT", "Packed", "packed"]

STRAIGHT, BUS, COLUMN, BESIDE = range(4)
"""How the edge to a node runs: down; along a trunk and a shelf; from a column's foot to the next one's head; sideways."""

_INDENT = 40
_SHORT_LINE = 30
_ASPECT = 1.5
_FAN = 4


@dataclass(slots=True)
class Packed:
    """Centres in pixels, from 0.

    Attributes:
        stem: for each node, the parent that it was placed by, or the child that it stands beside; -1 if none.
        style: how the edge from there runs.
        trunk: for a ``BUS``, the x at which it goes down.
    """

    x: list[float]
    y: list[float]
    stem: list[int]
    style: list[int]
    trunk: list[float]


def packed(parents: Sequence[Sequence[int]], *, wide: float, high: float, side: float, gap: float, row: float) -> Packed:
    """The places of nodes given by their parents' numbers; no node is placed by a parent whose number is not smaller.

    Args:
        wide, high: the size of a node. ``side``: the width of one that stands beside another.
        gap: between two nodes of a shelf. ``row``: from one row to the next.
    """
    packing = _Packing(parents, wide, side, gap, row)
    return packing.done(high)


@dataclass(slots=True)
class _Block:
    """Boxes in shelves: of each its head, x and row; how far to the right they reach in each row; whether they wrap."""

    boxes: list[tuple[int, float, int]]
    reach: list[float]
    wrapped: bool = False


@dataclass(slots=True)
class _Box:
    """A main line and what hangs on it: of each node its x and row, of each block where it stands and by whom."""

    nodes: list[tuple[int, float, int]]
    blocks: list[tuple[_Block, float, int]]
    reach: list[float]


class _Packing:
    def __init__(self, parents: Sequence[Sequence[int]], wide: float, side: float, gap: float, row: float) -> None:
        self._wide, self._side, self._gap, self._row = wide, side, gap, row
        self._stem = [next((p for p in above if p < node), -1) for node, above in enumerate(parents)]
        self._style = [BUS] * len(parents)
        self._beside: dict[int, list[int]] = {}
        self._set_aside(parents)
        self._kids: list[list[int]] = [[] for _ in parents]
        self._roots: list[int] = []
        for node, stem in enumerate(self._stem):
            if self._style[node] != BESIDE:
                (self._kids[stem] if stem >= 0 else self._roots).append(node)
        self._heavy = self._heaviest()
        self._boxes: dict[int, _Box] = {}

    def done(self, high: float) -> Packed:
        count = len(self._stem)
        for node in reversed(range(count)):
            stem = self._stem[node]
            if self._style[node] != BESIDE and (stem < 0 or self._heavy[stem] != node):
                self._boxes[node] = self._box(node)
        out = Packed([0.0] * count, [0.0] * count, self._stem, self._style, [0.0] * count)
        stack: list[tuple[_Block, float, int]] = [(self._shelves(self._roots, indent=0), 0.0, 0)]
        while stack:
            block, left, top = stack.pop()
            for head, at, down in block.boxes:
                box = self._boxes[head]
                for node, x, y in box.nodes:
                    out.x[node] = left + at + x + self._wide / 2
                    out.y[node] = (top + down + y) * self._row + high / 2
                out.trunk[head] = left + _INDENT / 2 if block.wrapped else out.x[head]
                stack.extend((inner, left + at + x, top + down + y) for inner, x, y in box.blocks)
        for node, beside in self._beside.items():
            for place, other in enumerate(beside):
                out.x[other] = out.x[node] + self._wide / 2 + self._gap + self._side / 2 + place * (self._side + self._gap)
                out.y[other] = out.y[node]
        return out

    def _set_aside(self, parents: Sequence[Sequence[int]]) -> None:
        """Those that nobody continues and that continue nobody, but that somebody has as another parent."""
        continued = set(self._stem)
        for node, above in enumerate(parents):
            for parent in above:
                instructs = parent not in continued and not parents[parent] and self._style[parent] != BESIDE
                if instructs and parent < node and len(self._beside.get(node, ())) < 2:
                    self._beside.setdefault(node, []).append(parent)
                    self._style[parent], self._stem[parent] = BESIDE, node

    def _heaviest(self) -> list[int]:
        """The child with which a node's main line goes on; -1 for a leaf, and where many branches are alike."""
        size = [1] * len(self._stem)
        heavy = [-1] * len(self._stem)
        for node in reversed(range(len(self._stem))):
            kids = self._kids[node]
            if kids:
                best = max(kids, key=size.__getitem__)
                if len(kids) < _FAN or 2 * size[best] > size[node]:
                    heavy[node] = best
            if self._stem[node] >= 0 and self._style[node] != BESIDE:
                size[self._stem[node]] += size[node]
        return heavy

    def _box(self, head: int) -> _Box:
        line = [head]
        while (after := self._heavy[line[-1]]) >= 0:
            line.append(after)
            self._style[after] = STRAIGHT
        hanging = [self._shelves([kid for kid in self._kids[n] if kid != self._heavy[n]], indent=_INDENT) for n in line]
        most = max(len(self._beside.get(node, ())) for node in line)
        unit = self._wide + most * (self._side + self._gap)
        area = (len(line) * unit + sum(sum(block.reach) for block in hanging)) * self._row
        room = max(sqrt(area) * _ASPECT, unit, *(max(block.reach, default=0.0) for block in hanging))
        box = _Box([], [], [])
        for column in self._columns(hanging, room, max(_SHORT_LINE, ceil(sqrt(area / _ASPECT) / self._row))):
            left = max(box.reach) + 2 * self._gap if box.reach else 0.0
            if box.reach:
                self._style[line[column[0][0]]] = COLUMN
            reach = self._column(box, left, [(line[at], row, hanging[at]) for at, row in column], unit)
            box.reach = _widest(box.reach, [left + x for x in reach])
        return box

    def _columns(self, hanging: Sequence[_Block], room: float, most: int) -> list[list[tuple[int, int]]]:
        """Where the nodes of a main line stand: of each its place in the line and its row, column by column.

        Branches that hang on nodes close together push each other to the right; where that would take more than ``room``,
        the line goes on below them.
        """
        columns: list[list[tuple[int, int]]] = [[]]
        row = deepest = 0
        wide = 0.0
        for at, block in enumerate(hanging):
            if row >= most:
                columns.append([])
                row, deepest, wide = 0, 0, 0.0
            if block.boxes:
                if wide and wide + max(block.reach) > room:
                    row, wide = max(row, deepest - 1), 0.0
                wide += max(block.reach) + self._gap
                deepest = max(deepest, row + 1 + len(block.reach))
            columns[-1].append((at, row))
            row += 1
        return columns

    def _column(self, box: _Box, left: float, line: Sequence[tuple[int, int, _Block]], unit: float) -> list[float]:
        """One column of a main line, with what hangs on it. From its foot up: so no branch's way crosses another's box."""
        reach = [unit] * (line[-1][1] + 1)
        for node, row, block in reversed(line):
            box.nodes.append((node, left, row))
            if not block.boxes:
                continue
            until = row + 1 + len(block.reach)
            reach.extend([0.0] * (until - len(reach)))
            taken = max(reach[row + 1 : until])
            x = taken + self._gap if taken else 0.0
            reach[row + 1 : until] = [x + right for right in block.reach]
            box.blocks.append((block, left + x, row + 1))
        return reach

    def _shelves(self, heads: Iterable[int], *, indent: int) -> _Block:
        """The boxes of ``heads`` side by side; in several shelves where that would be much wider than high."""
        boxes = [(head, self._boxes[head].reach) for head in heads]
        if not boxes:
            return _Block([], [])
        gap = self._gap
        total = sum(max(reach) + gap for _head, reach in boxes)
        area = sum(sum(reach) + gap * len(reach) for _head, reach in boxes) * self._row
        room = max(max(max(reach) for _head, reach in boxes), sqrt(area) * _ASPECT, 4 * (self._wide + gap))
        wraps = total > 1.35 * room
        block = _Block([], [], wrapped=wraps and indent > 0)
        start = float(indent) if block.wrapped else 0.0
        if wraps:
            boxes.sort(key=lambda item: -len(item[1]))
        top = 0
        shelf: list[float] = []
        for head, reach in boxes:
            left = max(shelf[: len(reach)]) + gap if shelf else start
            if wraps and shelf and left + max(reach) > room:
                block.reach, top, shelf, left = block.reach + shelf, top + len(shelf), [], start
            block.boxes.append((head, left, top))
            shelf = _widest(shelf, [left + x for x in reach])
        block.reach += shelf
        return block


def _widest(first: list[float], second: list[float]) -> list[float]:
    return [max(pair) for pair in zip_longest(first, second, fillvalue=0.0)]
