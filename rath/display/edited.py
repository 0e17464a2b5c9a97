"""Two versions of a text, line by line, with the words that differ marked. Data only, not yet text or HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from rath.session.graph.align import align

__all__ = ["EditedLine", "Mark", "edited_lines"]

Mark: TypeAlias = Literal[" ", "-", "+"]
EditedLine: TypeAlias = "list[tuple[Mark, str]] | None"
"""The parts of a line: common, only in the old version, only in the new one. ``None`` where common lines are left out."""

_TOKEN = re.compile(r"\w+|[^\w\s]|\n|[^\S\n]+")
_WORDS_CHARACTERS = 6000
"""Where more than this was replaced by something else, lines are compared and no words."""
_MAX_CHARACTERS = 60_000
# Enough for dozens of differences in a gap: a display is no place to look for the shortest script of two essays.
_LINE_STEPS, _WORD_STEPS = 40_000, 6_000
_CONTEXT = 2
_WORTH_MARKING = 0.25
"""How much of what was replaced has to be common for its words to be told apart."""


def edited_lines(old: str, new: str, *, words: bool = True) -> list[EditedLine]:
    """The lines that differ, and two around each, of two clean texts. Reads at most 60,000 characters of each.

    Words are marked where enough of a line stayed, unless ``words`` is false; else whole lines.
    """
    # Ended by a newline both, or the last line of the shorter one would be another than the same line in the longer one.
    before, after = (re.findall(r"[^\n]*\n", text[:_MAX_CHARACTERS] + "\n") for text in (old, new))
    pieces: list[tuple[Mark, str]] = []
    for removed, added, common in _gaps(before, after, _LINE_STEPS):
        pieces += _replaced(removed, added) if words else [("-", removed), ("+", added)]
        pieces.append((" ", common))
    return _folded(_lines([piece for piece in pieces if piece[1]]))


def _gaps(old: Sequence[str], new: Sequence[str], steps: int) -> Iterator[tuple[str, str, str]]:
    """What went, what came, and what stayed after it."""
    i = j = 0
    for at, there, count in (*align(old, new, steps=steps), (len(old), len(new), 0)):
        yield "".join(old[i:at]), "".join(new[j:there]), "".join(old[at:at + count])
        i, j = at + count, there + count


def _replaced(removed: str, added: str) -> list[tuple[Mark, str]]:
    whole: list[tuple[Mark, str]] = [("-", removed), ("+", added)]
    if not removed or not added or len(removed) + len(added) > _WORDS_CHARACTERS:
        return whole
    pieces: list[tuple[Mark, str]] = []
    for went, came, stayed in _gaps(_TOKEN.findall(removed), _TOKEN.findall(added), _WORD_STEPS):
        pieces += [("-", went), ("+", came), (" ", stayed)]
    common = sum(len(text.strip()) for mark, text in pieces if mark == " ")
    return _tidied(pieces) if 2 * common >= _WORTH_MARKING * (len(removed) + len(added)) else whole


def _tidied(pieces: Sequence[tuple[Mark, str]]) -> list[tuple[Mark, str]]:
    """Changed words with nothing but spaces between are one change, not several."""
    tidied: list[tuple[Mark, str]] = []
    removed = added = ""
    for place, (mark, text) in enumerate(pieces):
        between = (removed or added) and place + 1 < len(pieces)
        if mark == "-":
            removed += text
        elif mark == "+":
            added += text
        elif between and not text.strip(" "):
            removed, added = removed + text, added + text
        else:
            tidied += [("-", removed), ("+", added), (" ", text)]
            removed = added = ""
    tidied += [("-", removed), ("+", added)]
    return [piece for piece in tidied if piece[1]]


def _lines(pieces: Sequence[tuple[Mark, str]]) -> Iterator[list[tuple[Mark, str]]]:
    line: list[tuple[Mark, str]] = []
    for mark, text in pieces:
        *whole, rest = text.split("\n")
        for part in whole:
            # A newline that came or went shows as a sign where nothing else would.
            shown = part or ("" if mark == " " else "⏎")
            yield [*line, (mark, shown)] if shown or not line else line
            line = []
        if rest:
            line.append((mark, rest))
    if line:
        yield line


def _folded(lines: Iterator[list[tuple[Mark, str]]]) -> list[EditedLine]:
    """Without the common lines that are far from any that differ."""
    folded: list[EditedLine] = []
    waiting: list[list[tuple[Mark, str]]] = []
    after = 0
    for line in lines:
        if any(mark != " " for mark, _ in line):
            if len(waiting) > _CONTEXT:
                folded.append(None)
            folded += waiting[-_CONTEXT:]
            waiting = []
            folded.append(line)
            after = _CONTEXT
        elif after:
            folded.append(line)
            after -= 1
        else:
            waiting.append(line)
    if waiting and folded:
        folded.append(None)
    return folded
