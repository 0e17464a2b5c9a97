"""Whole texts of results that were cut: kept in memory where a run has no log, and read piece by piece.

A text is kept as UTF-8 (lone surrogates included), redacted, under the SHA-256 of these bytes. Runs with a log keep theirs
on the disk (``session/persistence/blobs.py``), under the same digests: a row is the same with and without a log.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

__all__ = ["KeptTexts", "Window", "kept_texts", "run_log", "window"]

KEEP_BYTES = 128 << 20
_BLOCK = 1 << 20
_CONTINUATION = bytes(range(0x80, 0xC0))

run_log: ContextVar[Path | None] = ContextVar("rath_run_log", default=None)
"""The log of the run that the current task or tool thread works for, if it has one."""


class Window(NamedTuple):
    """A piece of a text: from which character on, and how many the whole has."""

    text: str
    offset: int
    characters: int


def window(blocks: Iterable[bytes], offset: int, limit: int | None) -> Window:
    """The characters from ``offset`` on, at most ``limit`` of them, of UTF-8 text that comes in blocks of any size.

    All blocks are taken, since the count is of the whole; what is outside the window is counted and not decoded.

    Raises:
        UnicodeDecodeError: the window is not UTF-8.
    """
    found: list[str] = []
    seen, left, rest = 0, limit, b""
    for block in blocks:
        block = rest + block
        whole = _whole_characters(block)
        block, rest = block[:whole], block[whole:]
        seen, left = _take(found, block, seen, offset, left)
    seen, left = _take(found, rest, seen, offset, left)
    return Window("".join(found), offset, seen)


def _take(found: list[str], block: bytes, seen: int, offset: int, left: int | None) -> tuple[int, int | None]:
    count = len(block.translate(None, _CONTINUATION))
    if seen + count > offset and left != 0:
        text = block.decode("utf-8", "surrogatepass")
        start = max(0, offset - seen)
        piece = text[start:] if left is None else text[start : start + left]
        found.append(piece)
        left = None if left is None else left - len(piece)
    return seen + count, left


def _whole_characters(block: bytes) -> int:
    """How many bytes of ``block`` are whole characters: its last one may go on in the next block."""
    for back in range(1, min(4, len(block)) + 1):
        byte = block[-back]
        if byte < 0x80:
            return len(block)
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(block) if back >= length else len(block) - back
    return len(block)


class KeptTexts:
    """Texts by digest, at most so many bytes of them: the oldest go first. Any thread may call any method.

    Args:
        limit_bytes: of all texts together. One that is longer alone is not kept.
    """

    def __init__(self, limit_bytes: int = KEEP_BYTES) -> None:
        self._limit = limit_bytes
        self._texts: dict[str, bytes] = {}
        self._size = 0
        self._lock = threading.Lock()

    def reset_lock(self) -> None:
        """In a forked child: another thread of the parent may have held it."""
        self._lock = threading.Lock()

    def keep(self, digest: str, data: bytes) -> None:
        """Keep ``data``. What is there already becomes the newest."""
        with self._lock:
            known = self._texts.pop(digest, None)
            if known is not None:
                self._size -= len(known)
            if len(data) > self._limit:
                return
            self._texts[digest] = data
            self._size += len(data)
            while self._size > self._limit:
                self._size -= len(self._texts.pop(next(iter(self._texts))))

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._texts.clear()
            self._size = 0

    def get(self, digest: str) -> bytes | None:
        """The text, if it is (still) kept."""
        with self._lock:
            return self._texts.get(digest)

    def read(self, digest: str, offset: int = 0, limit: int | None = None) -> Window | None:
        """A piece of the text, if it is (still) kept; ``offset`` and ``limit`` in characters."""
        data = self.get(digest)
        if data is None:
            return None
        return window((data[start : start + _BLOCK] for start in range(0, len(data), _BLOCK)), offset, limit)


kept_texts = KeptTexts()
"""Those of this process."""
os.register_at_fork(after_in_child=kept_texts.reset_lock)
