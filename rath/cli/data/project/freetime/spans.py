"""Spans of a day, in whole minutes since midnight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Span(NamedTuple):
    """From ``start`` up to, but not including, ``end``."""

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Span:
        """``"09:30-11:00"`` as a span."""
        start, _, end = text.partition("-")
        return cls(_minutes(start), _minutes(end))

    def __str__(self) -> str:
        return f"{self.start // 60:02}:{self.start % 60:02}-{self.end // 60:02}:{self.end % 60:02}"


def _minutes(clock: str) -> int:
    hours, _, minutes = clock.strip().partition(":")
    return int(hours) * 60 + int(minutes)


def merge(spans: Iterable[Span]) -> list[Span]:
    """Join spans that overlap or touch. The result is sorted."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, span.end)
        else:
            merged.append(span)
    return merged


def free(busy: Iterable[Span], *, within: Span) -> list[Span]:
    """What is left of ``within`` when all ``busy`` spans are taken out."""
    gaps: list[Span] = []
    cursor = within.start
    for span in merge(busy):
        if span.start > cursor:
            gaps.append(Span(cursor, min(span.start, within.end)))
        cursor = span.end
    if cursor < within.end:
        gaps.append(Span(cursor, within.end))
    return gaps
