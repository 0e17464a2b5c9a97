"""Where to draw the nodes of a directed acyclic graph: in layers, with few crossings and straight edges.

The method of Sugiyama, in its plain form: layers by longest path, edges over several layers cut up by invisible points,
crossings reduced by sweeps that sort each layer by the mean place of its neighbours, then places that are as close to
those means as the order and the gaps allow (isotonic regression, exact per layer).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Layout", "layered"]

N = TypeVar("N", bound=Hashable)
_SWEEPS = 8
# Beyond these the picture is a wall of boxes, and sweeps and invisible points would cost more than they give.
_MAX_SWEPT_NODES = 3000
_MAX_POINTS = 20_000


@dataclass(slots=True)
class Layout(Generic[N]):
    """Centres in abstract units: ``x`` in the unit of ``gap``, ``y`` in layers from 0.

    Attributes:
        at: each node's centre.
        routes: for each edge ``(parent, child)`` the points between its ends.
    """

    at: dict[N, tuple[float, int]] = field(default_factory=dict)
    routes: dict[tuple[N, N], list[tuple[float, int]]] = field(default_factory=dict)
    width: float = 0.0
    layers: int = 0


def layered(parents: Mapping[N, Sequence[N]], *, node_gap: float = 1.0, point_gap: float = 0.2) -> Layout[N]:
    """The layout of a graph given as node → parents, in an order in which parents stand before children.

    Args:
        node_gap: least distance of two nodes' centres in one layer.
        point_gap: the same for the invisible points of long edges.
    """
    if not parents:
        return Layout()
    graph = _Graph.of({node: [p for p in found if p in parents] for node, found in parents.items()})
    if len(graph.layer) <= _MAX_SWEPT_NODES:
        graph.order()
    places = graph.places(node_gap, point_gap)
    left = min(places)
    layout: Layout[N] = Layout(width=max(places) - left, layers=len(graph.rows))
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
                for a, b in zip(chain, chain[1:], strict=False):
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
            for above, row in zip(rows, rows[1:], strict=False):
                place = {index: float(at) for at, index in enumerate(above)}
                own = {index: float(at) for at, index in enumerate(row)}
                row.sort(key=lambda i, place=place, own=own: _mean((place[n] for n in neighbours[i] if n in place), own[i]))  # type: ignore[misc]
            crossings = self._crossings()
            if crossings < fewest:
                best, fewest = [list(row) for row in self.rows], crossings
        self.rows = best

    def _crossings(self) -> int:
        total = 0
        for above, row in zip(self.rows, self.rows[1:], strict=False):
            place = {index: at for at, index in enumerate(above)}
            ends: list[int] = []
            for index in row:
                here = sorted(place[n] for n in self.up[index] if n in place)
                total += sum(len(ends) - bisect_right(ends, end) for end in here)
                for end in here:
                    insort(ends, end)
        return total

    # -- places -------------------------------------------------------------------------------------------------------

    def places(self, node_gap: float, point_gap: float) -> list[float]:
        x = [0.0] * len(self.layer)
        offsets: list[list[float]] = []
        for row in self.rows:
            offset, run = 0.0, []
            for before, index in zip([None, *row], row, strict=False):
                if before is not None:
                    wide = (before < self.nodes) + (index < self.nodes)
                    offset += (point_gap, (node_gap + point_gap) / 2, node_gap)[wide]
                run.append(offset)
            offsets.append(run)
            for index, at in zip(row, run, strict=True):
                x[index] = at - offset / 2
        layers = range(len(self.rows))
        for sweep in range(2 * _SWEEPS):
            downwards = sweep % 2 == 0
            for layer in layers if downwards else reversed(layers):
                row = self.rows[layer]
                # The last two sweeps look both ways, which centres a parent over its children and a child under its parents.
                both = sweep >= 2 * _SWEEPS - 4
                wanted = []
                for index in row:
                    near = self.up[index] if downwards else self.down[index]
                    if both:
                        near = [*self.up[index], *self.down[index]]
                    wanted.append(_mean((x[n] for n in near), x[index]))
                for index, at in zip(row, _fitted(wanted, offsets[layer]), strict=True):
                    x[index] = at
        return x


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


def _fitted(wanted: list[float], offsets: list[float]) -> list[float]:
    """Places nearest to ``wanted`` (least squares) with at least the given distances, by pooling adjacent violators."""
    blocks: list[tuple[float, int]] = []
    for at, offset in zip(wanted, offsets, strict=True):
        total, size = at - offset, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / size:
            more, members = blocks.pop()
            total, size = total + more, size + members
        blocks.append((total, size))
    levels = [total / size for total, size in blocks for _ in range(size)]
    return [level + offset for level, offset in zip(levels, offsets, strict=True)]
