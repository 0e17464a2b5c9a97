"""Where to draw the nodes of a directed acyclic graph: in layers, with few crossings and straight edges.

The method of Sugiyama, in its plain form: layers by longest path, edges over several layers cut up by invisible points,
crossings reduced by sweeps that sort each layer by the mean place of its neighbours, then places that are as close to
those means as the order and the gaps allow (isotonic regression, exact per layer).
"""

from __future__ import annotations

from bisect import bisect_right, insort
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


def layered(parents: Mapping[N, Sequence[N]], widths: Mapping[N, float], *, gap: float) -> Layout[N]:
    """The layout of a graph given as node → parents, in an order in which parents stand before children.

    Args:
        widths: of the nodes' boxes.
        gap: the least distance between two boxes of a layer, or between a box and an edge that passes.
    """
    if not parents:
        return Layout()
    graph = _Graph.of({node: [p for p in found if p in parents] for node, found in parents.items()})
    if len(graph.layer) <= _MAX_SWEPT_NODES:
        graph.order()
    half = [widths[node] / 2 for node in parents] + [0.0] * (len(graph.layer) - len(parents))
    places = graph.places(half, gap)
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
    def of(cls, parents: Mapping[N, Sequence[N]]) -> _Graph:
        number = {name: index for index, name in enumerate(parents)}
        up = [[number[p] for p in found] for found in parents.values()]
        layer = _layers(up)
        count = len(up)
        graph = cls(count, layer, [[] for _ in up], [[] for _ in up], [], {})
        spare = _MAX_POINTS
        for child, above in enumerate(up):
            for parent in above:
                span = layer[child] - layer[parent] - 1
                points = graph._points(layer[parent] + 1, span if span <= spare else 0)
                spare -= len(points)
                graph.routes[parent, child] = points
                chain = [parent, *points, child]
                for a, b in pairwise(chain):
                    graph.down[a].append(b)
                    graph.up[b].append(a)
        graph.rows = [[] for _ in range(max(layer) + 1)]
        for index in graph._depth_first():
            graph.rows[graph.layer[index]].append(index)
        return graph

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

    def places(self, half: list[float], gap: float) -> list[float]:
        """Each one's x: near its neighbours', in the order of its layer, with room for the boxes."""
        x = [0.0] * len(self.layer)
        offsets: list[list[float]] = []
        for row in self.rows:
            run = [0.0]
            for before, index in pairwise(row):
                run.append(run[-1] + half[before] + gap + half[index])
            offsets.append(run)
            for index, at in zip(row, run, strict=True):
                x[index] = at - run[-1] / 2
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
                for index, at in zip(row, _fitted(wanted, weights, offsets[layer]), strict=True):
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


def _mean(values: Iterable[float], default: float) -> float:
    found = list(values)
    return sum(found) / len(found) if found else default


def _fitted(wanted: list[float], weights: list[float], offsets: list[float]) -> list[float]:
    """Places nearest to ``wanted`` (weighted least squares) at the least distances, by pooling adjacent violators."""
    blocks: list[tuple[float, float, int]] = []
    for at, weight, offset in zip(wanted, weights, offsets, strict=True):
        total, mass, size = (at - offset) * weight, weight, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / mass:
            more, heavier, members = blocks.pop()
            total, mass, size = total + more, mass + heavier, size + members
        blocks.append((total, mass, size))
    levels = [total / mass for total, mass, size in blocks for _ in range(size)]
    return [level + offset for level, offset in zip(levels, offsets, strict=True)]
