"""The transcripts of a lineage for one file: each row once, each shared beginning once, within a number of bytes.

Rows are numbered and stand in compressed blocks, so that a browser unpacks only what somebody reads or searches. A
transcript is a way through a tree whose steps are rows: sessions that begin alike share their first steps. Measured over
2,000 loops with 40 rows each, their results 1 kB of source code: 53 MB of rows become 21.6 MB, base64 included. The first
paint does not wait for them.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from rath.display.text import clean, cut, one_line
from rath.display.transcript import CallView, ResultView, RowView, view_row
from rath.session.chunk import ChunkRow, ChunkTable

__all__ = ["NO_TRANSCRIPT", "Steps", "Transcripts", "inert_json"]

_BLOCK_BYTES = 512 * 1024
_SAID_CHARACTERS, _PART_CHARACTERS, _ARGUMENT_CHARACTERS = 40_000, 20_000, 4_000
_MAX_PARTS, _MAX_CALLS = 8, 32
# What a step costs in the file, give or take; and in memory while the page is made, which is why it is not less.
_STEP_BYTES = 32
_FIRST_BYTES = 2 * 1024 * 1024
# Base64 of what does not compress.
_WORST = 1.4
# A step that somebody took before costs 2 µs; where sessions share nothing but text, there may be many millions.
_MAX_STEPS = 5_000_000
_REMEMBERED_ROWS = 2_000_000
_INERT = (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))


@dataclass(frozen=True, slots=True)
class Steps:
    """A transcript: the step that it goes on from (-1: the beginning), then ``count`` steps from ``start`` on."""

    base: int
    start: int
    count: int


NO_TRANSCRIPT = Steps(-1, -1, -1)


def inert_json(value: Any) -> str:
    """JSON that means the same in an HTML ``<script>``: nothing in it ends the element or begins another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for letter, spelled in _INERT:  # 80,000 rows: 7.4 s of CPU for the page; 10.2 s with `str.translate`
        text = text.replace(letter, spelled)
    return text


class Transcripts:
    """Takes transcripts one after the other, ancestors first; :attr:`blocks` and :attr:`ways` are what the file holds.

    Where the room is short, every transcript gets a fair part of it; of a longer one the middle is left out and counted.
    """

    def __init__(self, room_bytes: int) -> None:
        self.blocks: list[str] = []
        self.starts: list[int] = []
        self.rows = 0
        self.cut = 0
        self._room = float(room_bytes)
        self._half = room_bytes / 2
        self._pending: list[str] = []
        self._pending_bytes = 0
        self._numbers: dict[bytes, int] = {}
        self._steps: list[int] = []
        self._after: dict[tuple[int, int], int] = {}
        self._recent: deque[tuple[tuple[ChunkRow, ...], int]] = deque()
        self._recent_rows = 0
        self._walked = 0

    def add(self, table: Iterable[ChunkRow], transcripts_left: int) -> Steps:
        """One more transcript. ``transcripts_left``: with how many the room is to be shared, this one counted."""
        rows = table.rows if isinstance(table, ChunkTable) else tuple(table)
        at, index = self._shared(rows)
        base, index = self._walk(rows, at, index)
        start = len(self._steps)
        end = self._new(rows, index, base, self._share(transcripts_left))
        self._remember(rows, end)
        return Steps(base, start, len(self._steps) - start)

    def finish(self) -> None:
        """Pack what is left. Then :attr:`blocks` are complete."""
        self._flush()

    @property
    def ways(self) -> str:
        """The row of each step, packed; a negative number stands for so many rows left out."""
        return _packed(json.dumps(self._steps, separators=(",", ":")))

    def _share(self, transcripts_left: int) -> float:
        """Half of the room goes to those that come first, which others share; the other half is dealt out evenly."""
        left = self._room - _WORST * self._pending_bytes
        return max(left * 2 / (transcripts_left + 1), min(_FIRST_BYTES, left - self._half))

    def _shared(self, rows: tuple[ChunkRow, ...]) -> tuple[int, int]:
        """The longest transcript of late with which ``rows`` begins: the step it ends with, and its length."""
        best, length = -1, 0
        for theirs, end in reversed(self._recent):
            size = len(theirs)
            # Rows of one process are the same objects, which makes this a comparison of pointers.
            if length < size <= len(rows) and rows[size - 1] == theirs[-1] and rows[:size] == theirs:
                best, length = end, size
        return best, length

    def _walk(self, rows: tuple[ChunkRow, ...], at: int, index: int) -> tuple[int, int]:
        """As far as others have been before."""
        while index < len(rows) and self._walked < _MAX_STEPS:
            number = self._numbers.get(_key(rows[index]))
            after = None if number is None else self._after.get((at, number))
            if after is None:
                break
            at, index, self._walked = after, index + 1, self._walked + 1
        return at, index

    def _new(self, rows: tuple[ChunkRow, ...], index: int, at: int, share: float) -> int:
        used, last = 0.0, len(rows)
        # Two thirds for the beginning, the rest for the end.
        while index < last and used < share * 2 / 3 and self._walked < _MAX_STEPS:
            number, size = self._number(rows[index], share - used)
            if number is None:
                break
            at, used, index = self._step(at, number), used + size, index + 1
            self._walked += 1
        tail: list[int] = []
        while last > index and used < share and self._walked < _MAX_STEPS:
            number, size = self._number(rows[last - 1], share - used)
            if number is None:
                break
            tail.append(number)
            used, last = used + size, last - 1
            self._walked += 1
        if last > index:
            at = self._step(at, index - last)
            self.cut += last - index
        for number in reversed(tail):
            at = self._step(at, number)
        return at

    def _step(self, at: int, number: int) -> int:
        step = len(self._steps)
        self._steps.append(number)
        self._after[at, number] = step
        self._room -= _STEP_BYTES
        return step

    def _number(self, row: ChunkRow, room: float) -> tuple[int | None, float]:
        """The row's number, and what it costs; no number where it does not fit."""
        key = _key(row)
        known = self._numbers.get(key)
        if known is not None:
            return known, _STEP_BYTES
        text = inert_json(_encoded(row))
        size = len(text) if text.isascii() else len(text.encode())
        if size * _WORST + _STEP_BYTES > room:
            return None, 0.0
        if not self._pending:
            self.starts.append(self.rows)
        self._pending.append(text)
        self._pending_bytes += size
        self._numbers[key] = self.rows
        self.rows += 1
        if self._pending_bytes >= _BLOCK_BYTES:
            self._flush()
        return self.rows - 1, size * _WORST + _STEP_BYTES

    def _flush(self) -> None:
        if self._pending:
            block = _packed(f"[{','.join(self._pending)}]")
            self.blocks.append(block)
            self._room -= len(block) + 80
            self._pending, self._pending_bytes = [], 0

    def _remember(self, rows: tuple[ChunkRow, ...], end: int) -> None:
        if not rows:
            return
        self._recent.append((rows, end))
        self._recent_rows += len(rows)
        while len(self._recent) > 1 and (len(self._recent) > 64 or self._recent_rows > _REMEMBERED_ROWS):
            self._recent_rows -= len(self._recent.popleft()[0])


def _key(row: ChunkRow) -> bytes:
    return blake2b(row.encoded, digest_size=16).digest()


def _packed(text: str) -> str:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return base64.b64encode(packer.compress(text.encode()) + packer.flush()).decode("ascii")


def _encoded(row: ChunkRow) -> list[Any]:
    """``[role, text, calls, calls left out, result]``, as much of it as there is."""
    try:
        view = view_row(row)
    except (AttributeError, TypeError, ValueError, RecursionError):
        # A log may hold anything; a row of an unknown form is shown as it stands, not refused.
        view = RowView(row.kind.value, row.encoded.decode("utf-8", "replace"))
    said = _shown(view.text, _SAID_CHARACTERS)
    if view.result is not None:
        return [view.role, said, [], 0, _result(view, view.result)]
    if view.calls:
        return [view.role, said, [_call(call) for call in view.calls[:_MAX_CALLS]], max(0, len(view.calls) - _MAX_CALLS)]
    return [view.role, said]


def _call(call: CallView) -> list[str]:
    arguments = _shown(call.arguments, _ARGUMENT_CHARACTERS)
    return [one_line(call.name), one_line(call.call_id), one_line(call.short, 100), arguments]


def _result(view: RowView, result: ResultView) -> list[Any]:
    parts = [[one_line(name), _shown(text, _PART_CHARACTERS)] for name, text in result.parts[:_MAX_PARTS]]
    ok = 0 if not result.ok else 2 if result.clean_exit else 1
    return [one_line(view.tool), one_line(view.call_id), ok, one_line(result.summary), parts]


def _shown(text: str, limit: int) -> str:
    # Cut before, because a text may be a hundred megabytes; and after, because what is made visible grows.
    return cut(clean(cut(text, 2 * limit)), limit)


