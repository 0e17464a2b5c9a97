"""Where to draw the nodes of a directed acyclic graph: in layers, with few crossings and straight edges.

The method of Sugiyama, in its plain form: layers by longest path, edges over several layers cut up by invisible points,
crossings reduced by sweeps that sort each layer by the mean place of its neighbours, then places that are as close to
those means as the order and the gaps allow (isotonic regression, exact per layer).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

__all__ = ["Layout", "layered"]

N = TypeVar("N", bound=Hashable)
_SWEEPS = 8
_PLACINGS = 36
# Beyond these the picture is a wall of boxes, and sweeps and invisible points would cost more than they give.
_MAX_SWEPT_NODES = 3000
_MAX_POINTS = 20_000


@dataclass(slots=True)
class Layout(Generic[N]):
    """Centres: ``x`` in the unit of the widths, ``y`` in layers from 0. No box begins left of 0.

    Attributes:
        at: each node's centre.
        routes: for each edge ``(parent, child)`` the points between its ends.
    """

    at: dict[N, tuple[float, int]] = field(default_factory=dict)
    routes: dict[tuple[N, N], list[tuple[float, int]]] = field(default_factory=dict)
    width: float = 0.0
    layers: int = 0


def layered(
    parents: Mapping[N, Sequence[N]], widths: Mapping[N, float], *, gap: float, columns: int | None = None
) -> Layout[N]:
    """The layout of a graph given as node → parents, in an order in which parents stand before children.

    Args:
        widths: of the nodes' boxes.
        gap: the least distance between two boxes of a layer, or between a box and an edge that passes.
        columns: at most so many nodes stand side by side, where the graph allows it: a thousand children of one node
            become bands, one below the other. Long edges of one parent then share their way.
    """
    if not parents:
        return Layout()
    graph = _Graph.of({node: [p for p in found if p in parents] for node, found in parents.items()}, columns)
    if len(graph.layer) <= _MAX_SWEPT_NODES:
        graph.order()
    half = [widths[node] / 2 for node in parents] + [0.0] * (len(graph.layer) - len(parents))
    places = graph.places(half, gap, compact=columns is not None)
    left = min(place - wide for place, wide in zip(places, half, strict=True))
    right = max(place + wide for place, wide in zip(places, half, strict=True))
    layout: Layout[N] = Layout(width=right - left, layers=len(graph.rows))
    names = list(parents)
    for index, name in enumerate(names):
        layout.at[name] = (places[index] - left, graph.layer[index])
    for (parent, child), points in graph.routes.items():
        layout.routes[names[parent], names[child]] = [(places[p] - left, graph.layer[p]) for p in points]
    return layout


@dataclass(slots=True)
class _Graph:
    """The graph over numbers: nodes first, then the invisible points."""

    nodes: int
    layer: list[int]
    up: list[list[int]]
    down: list[list[int]]
    rows: list[list[int]]
    routes: dict[tuple[int, int], list[int]]

    @classmethod
    def of(cls, parents: Mapping[N, Sequence[N]], columns: int | None) -> _Graph:
        number = {name: index for index, name in enumerate(parents)}
        up = [[number[p] for p in found] for found in parents.values()]
        layer = _layers(up)
        if columns is not None and max(Counter(layer).values()) > columns:
            layer = _banded(up, columns)
        count = len(up)
        graph = cls(count, layer, [[] for _ in up], [[] for _ in up], [], {})
        # The way down from each parent that its next long edges can share.
        trunks: dict[int, list[int]] = {}
        for child, above in enumerate(up):
            for parent in above:
                span = layer[child] - layer[parent] - 1
                trunk = trunks.setdefault(parent, []) if columns is not None else []
                missing = span - len(trunk)
                if missing > 0 and len(layer) - count + missing <= _MAX_POINTS:
                    last = trunk[-1] if trunk else parent
                    added = graph._points(layer[parent] + 1 + len(trunk), missing)
                    for a, b in pairwise([last, *added]):
                        graph._join(a, b)
                    trunk += added
                points = trunk[:span] if len(trunk) >= span else []
                graph.routes[parent, child] = points
                graph._join(points[-1] if points else parent, child)
        graph.rows = [[] for _ in range(max(layer) + 1)]
        for index in graph._depth_first():
            graph.rows[graph.layer[index]].append(index)
        return graph

    def _join(self, above: int, below: int) -> None:
        self.down[above].append(below)
        self.up[below].append(above)

    def _points(self, first_layer: int, how_many: int) -> list[int]:
        points = list(range(len(self.layer), len(self.layer) + how_many))
        self.layer.extend(range(first_layer, first_layer + how_many))
        self.up.extend([] for _ in points)
        self.down.extend([] for _ in points)
        return points

    def _depth_first(self) -> list[int]:
        """An order that keeps a branch together: the start from which the sweeps go."""
        seen: dict[int, None] = {}
        stack = [index for index in reversed(range(len(self.layer))) if not self.up[index]]
        while stack:
            index = stack.pop()
            if index not in seen:
                seen[index] = None
                stack.extend(reversed(self.down[index]))
        return list(seen)

    # -- crossings ----------------------------------------------------------------------------------------------------

    def order(self) -> None:
        best, fewest = [list(row) for row in self.rows], self._crossings()
        for sweep in range(_SWEEPS):
            if fewest == 0:
                break
            downwards = sweep % 2 == 0
            rows = self.rows if downwards else self.rows[::-1]
            neighbours = self.up if downwards else self.down
            for above, row in pairwise(rows):
                place = {index: float(at) for at, index in enumerate(above)}
                own = {index: float(at) for at, index in enumerate(row)}
                row.sort(key=lambda i, place=place, own=own: _mean((place[n] for n in neighbours[i] if n in place), own[i]))  # type: ignore[misc]
            crossings = self._crossings()
            if crossings < fewest:
                best, fewest = [list(row) for row in self.rows], crossings
        self.rows = best

    def _crossings(self) -> int:
        total = 0
        for above, row in pairwise(self.rows):
            place = {index: at for at, index in enumerate(above)}
            ends: list[int] = []
            for index in row:
                here = sorted(place[n] for n in self.up[index] if n in place)
                total += sum(len(ends) - bisect_right(ends, end) for end in here)
                for end in here:
                    insort(ends, end)
        return total

    # -- places -------------------------------------------------------------------------------------------------------

    def places(self, half: list[float], gap: float, *, compact: bool) -> list[float]:
        """Each one's x: near its neighbours', in the order of its layer, with room for the boxes.

        ``compact``: no wider than the widest layer has to be, and edges that pass side by side are closer.
        """
        x = [0.0] * len(self.layer)
        offsets: list[list[float]] = []
        close = gap / 2 if compact else gap
        for row in self.rows:
            run = [0.0]
            for before, index in pairwise(row):
                apart = close if before >= self.nodes and index >= self.nodes else gap
                run.append(run[-1] + half[before] + apart + half[index])
            offsets.append(run)
            for index, at in zip(row, run, strict=True):
                x[index] = at - run[-1] / 2
        side = max((run[-1] + half[row[0]] + half[row[-1]]) / 2 for row, run in zip(self.rows, offsets, strict=True))
        for sweep in range(_PLACINGS):
            downwards = sweep % 2 == 0
            # The last sweeps look both ways: a parent over the middle of its children, and they under it.
            both = sweep >= _PLACINGS - 4
            for layer in range(len(self.rows)) if downwards else reversed(range(len(self.rows))):
                row = self.rows[layer]
                wanted, weights = [], []
                for index in row:
                    near = self.up[index] if downwards else self.down[index]
                    at, weight = self._pull(index, [*self.up[index], *self.down[index]] if both else near, x)
                    wanted.append(at)
                    weights.append(weight)
                run = offsets[layer]
                limits = (half[row[0]] - side, side - half[row[-1]] - run[-1]) if compact else None
                for index, at in zip(row, _fitted(wanted, weights, run, limits), strict=True):
                    x[index] = at
        return x

    def _pull(self, index: int, near: list[int], x: list[float]) -> tuple[float, float]:
        """Where its neighbours want it, and how strongly: points of one edge hold together, so that it runs straight."""
        if not near:
            return x[index], 0.1
        total = weight = 0.0
        for other in near:
            strength = 8.0 if index >= self.nodes and other >= self.nodes else 1.0
            total += strength * x[other]
            weight += strength
        return total / weight, weight


def _layers(up: list[list[int]]) -> list[int]:
    """Longest path from the top; what has no parents stands just above its first child."""
    layer = [0] * len(up)
    nearest: dict[int, int] = {}
    for index, above in enumerate(up):
        layer[index] = 1 + max((layer[p] for p in above), default=-1)
        for parent in above:
            if not up[parent]:
                nearest[parent] = min(nearest.get(parent, layer[index]), layer[index])
    for index, child_layer in nearest.items():
        layer[index] = child_layer - 1
    return layer


def _banded(up: list[list[int]], columns: int) -> list[int]:
    """Layers of at most ``columns`` nodes: branch by branch, each node in the highest layer below its parents with room.

    What has no parents goes right above its first child, with it. A node with more such parents than a layer holds makes
    that layer wider.
    """
    layer = [-1] * len(up)
    down: list[list[int]] = [[] for _ in up]
    waits = [0] * len(up)
    for child, above in enumerate(up):
        for parent in above:
            down[parent].append(child)
            waits[child] += bool(up[parent])
    used: Counter[int] = Counter()
    open_from = 0
    # A node that only what has no parents leads to, and one that stands alone, begins a branch.
    stack = [index for index in reversed(range(len(up))) if (not waits[index] if up[index] else not down[index])]
    while stack:
        index = stack.pop()
        with_it = [parent for parent in up[index] if layer[parent] < 0]
        at = max((layer[parent] + 1 for parent in up[index] if layer[parent] >= 0), default=0)
        at = max(at, 1 if with_it else 0, open_from)
        while used[at] >= columns or (with_it and used[at - 1] and used[at - 1] + len(with_it) > columns):
            at += 1
        for parent in with_it:
            layer[parent] = at - 1
        used[at - 1] += len(with_it)
        layer[index] = at
        used[at] += 1
        while used[open_from] >= columns:
            open_from += 1
        for child in reversed(down[index]):
            waits[child] -= bool(up[index])
            if not waits[child]:
                stack.append(child)
    return layer


def _mean(values: Iterable[float], default: float) -> float:
    found = list(values)
    return sum(found) / len(found) if found else default


def _fitted(
    wanted: list[float], weights: list[float], offsets: list[float], limits: tuple[float, float] | None
) -> list[float]:
    """Places nearest to ``wanted`` (weighted least squares) at the least distances, by pooling adjacent violators.

    ``limits``: of the places less their offsets. Cut off at these, the best places without limits are the best within.
    """
    blocks: list[tuple[float, float, int]] = []
    for at, weight, offset in zip(wanted, weights, offsets, strict=True):
        total, mass, size = (at - offset) * weight, weight, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / mass:
            more, heavier, members = blocks.pop()
            total, mass, size = total + more, mass + heavier, size + members
        blocks.append((total, mass, size))
    levels = [total / mass for total, mass, size in blocks for _ in range(size)]
    if limits is not None:
        least, most = limits
        levels = [min(max(level, least), most) for level in levels]
    return [level + offset for level, offset in zip(levels, offsets, strict=True)]
