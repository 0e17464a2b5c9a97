"""Large lineages are placed in near-linear time, without overlaps, on a surface about as wide as it is high."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rath.display.packed import BESIDE, COLUMN, Packed, packed
from rath.testing.pace import within

WIDE, SIDE, ROW = 184.0, 116.0, 92.0


def place(parents: list[list[int]]) -> Packed:
    return packed(parents, wide=WIDE, high=50, side=SIDE, gap=24, row=ROW)


def assert_apart(found: Packed) -> None:
    rows: dict[float, list[tuple[float, float]]] = {}
    for x, y, style in zip(found.x, found.y, found.style, strict=True):
        half = (SIDE if style == BESIDE else WIDE) / 2
        rows.setdefault(y, []).append((x - half, x + half))
    for boxes in rows.values():
        boxes.sort()
        assert boxes[0][0] >= -0.01
        for (_left, right), (left, _right) in pairwise(boxes):
            assert left - right >= 23.9
    ys = sorted(rows)
    assert all(b - a >= ROW - 0.01 for a, b in pairwise(ys))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), max_size=3, unique=True), max_size=60))
def test_no_box_covers_another_and_what_continues_stands_below(drawn: list[list[int]]) -> None:
    parents = [[p for p in above if p != node and p < len(drawn)] for node, above in enumerate(drawn)]
    found = place(parents)
    assert_apart(found)
    for node, (stem, style) in enumerate(zip(found.stem, found.style, strict=True)):
        if style == BESIDE:
            assert found.y[node] == found.y[stem]
        elif stem >= 0 and style != COLUMN:
            assert stem in parents[node]
            assert found.y[node] > found.y[stem]


def shapes() -> dict[str, list[list[int]]]:
    rng = random.Random(7)
    loops: list[list[int]] = [[]]
    for _ in range(2500):
        fork = len(loops)
        loops += [[0], [], [fork, fork + 1], [fork + 2]]
    return {
        "chain": [[], *([at] for at in range(9999))],
        "fan": [[], *([0] for _ in range(9999))],
        "loops": loops,
        "caterpillar": [[], *([at - at % 2] for at in range(9999))],
        "random": [[], *([rng.randrange(max(0, at - 200), at + 1)] for at in range(9999))],
        "roots": [[] for _ in range(10_000)],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", list(shapes()))
def test_ten_thousand_sessions_of_any_shape_are_placed_in_no_time(name: str) -> None:
    parents = shapes()[name]
    began = time.monotonic()
    found = place(parents)
    took = time.monotonic() - began
    assert took < within(2)
    assert_apart(found)
    if name != "random":
        # No strip of which a screen shows nothing.
        assert 0.3 < (max(found.x) + 1) / (max(found.y) + 1) < 4


@pytest.mark.slow
def test_a_chain_of_a_hundred_thousand_is_no_recursion() -> None:
    found = place([[], *([at] for at in range(99_999))])
    assert max(found.x) < 100_000
    assert found.style.count(COLUMN) > 50


def test_instructions_stand_beside_the_one_they_were_for() -> None:
    found = place([[], [], [0, 1]])
    assert found.style[1] == BESIDE
    assert found.y[1] == found.y[2]
    assert found.x[1] > found.x[2]


def test_an_empty_lineage_has_no_places() -> None:
    assert place([]).x == []
