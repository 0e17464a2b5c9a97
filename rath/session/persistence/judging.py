"""Which verdict the first bad line of a log is: a tail that was cut off, or a contradiction."""

from __future__ import annotations

from typing import BinaryIO

from rath.session.persistence.format import SEAL_LENGTH, BadLine, chain_hash, decode_object, sealed_hash
from rath.session.persistence.scan import Finding, read_lines

__all__ = ["judge_line"]


def judge_line(bad: bytes, number: int, offset: int, error: BadLine, file: BinaryIO, end: int) -> Finding:
    """The verdict on a log whose line ``number`` (from 0) is the first bad one.

    Args:
        bad: the line; ``offset`` is where it begins.
        error: what is wrong with it.
        file: the log up to ``end``; it is read again, before and after the line.
    """
    found = Finding("damaged", str(error), number + 1, offset)
    try:
        if _continues_earlier(bad, number, file, end):
            found.reason = "two writers: a second record continues an earlier one"
        elif _valid_after(offset, file, end):
            found.reason += "; whole records follow"
        elif b"\0" in bad:
            # What a file system leaves of blocks that it had promised and never wrote.
            found.verdict, found.reason = "torn", "NUL bytes at the end"
    except BadLine:  # an endless line further down: nothing that could be told from it
        pass
    return found


def _continues_earlier(bad: bytes, number: int, file: BinaryIO, end: int) -> bool:
    """Whether the line is a record that is valid on the chain of a record before the last one."""
    h = sealed_hash(bad)
    if h is None:
        return False
    try:
        record = decode_object(bad)
    except BadLine:
        return False
    seq = record.get("seq")
    if type(seq) is not int or not 0 <= seq < number:
        return False
    if seq == 0:
        previous = str(record.get("epoch")).encode("utf-8", "replace")
    else:
        # Every line before the bad one is in its place: line n has seq n.
        before = _line_at(seq - 1, file, end)
        previous = sealed_hash(before) or b""
    return chain_hash(previous, bad[:-SEAL_LENGTH]) == h


def _line_at(number: int, file: BinaryIO, end: int) -> bytes:
    file.seek(0)
    for lines, _ in read_lines(file, end):
        if number < len(lines):
            return lines[number]
        number -= len(lines)
    return b""


def _valid_after(offset: int, file: BinaryIO, end: int) -> bool:
    """Whether a whole record after the bad line continues the line before it."""
    file.seek(offset)
    previous: bytes | None = None  # what the line before says its hash is; nothing is before the first
    for lines, ended in read_lines(file, end):
        for line in lines:
            h = sealed_hash(line) if ended else None
            if h is not None and previous is not None and chain_hash(previous, line[:-SEAL_LENGTH]) == h:
                return True
            previous = h
    return False
