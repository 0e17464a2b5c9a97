"""A command's output, kept within bounds while it streams: its head, its tail, and exactly how much there was."""

from __future__ import annotations

from rath.backend.answers import composed

__all__ = ["CappedOutput"]

# Of each stream. A run that floods both with 1 GiB, logged and its texts kept whole: 38 MB more (8 MiB: 79, 1 MiB: 9).
KEEP_BYTES = 4 << 20


class CappedOutput:
    """Keeps at most ``keep`` bytes of what it is fed: the first half and the last."""

    __slots__ = ("_head", "_room", "_tail", "total")

    def __init__(self, keep: int = KEEP_BYTES) -> None:
        self._room = max(1, keep // 2)
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def feed(self, data: bytes) -> None:
        """Take in what was read."""
        self.total += len(data)
        room = self._room - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data
            # Cut when it is twice too long: each byte is moved once, not at every read.
            if len(self._tail) > 2 * self._room:
                del self._tail[: -self._room]

    @property
    def truncated(self) -> bool:
        """Whether anything is missing."""
        return self.total > 2 * self._room

    def value(self) -> bytes:
        """All of it, or head, a line about what is missing, and tail; no character is cut in two."""
        tail = self._tail[-self._room :] if self.truncated else self._tail
        return composed(self._head, tail, self.total)
