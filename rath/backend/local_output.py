"""A command's output, kept within bounds while it streams: its head, its tail, and exactly how much there was."""

from __future__ import annotations

__all__ = ["CappedOutput"]

KEEP_BYTES = 1024 * 1024


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
        if not self.truncated:
            return bytes(self._head + self._tail)
        head = bytes(self._head[: _whole(self._head)])
        tail = bytes(self._tail[-self._room :])
        tail = tail[_continuation(tail) :]
        missing = self.total - len(head) - len(tail)
        return head + f"\n[... {missing:,} bytes are missing here ...]\n".encode() + tail


def _whole(data: bytearray) -> int:
    """The length of ``data`` without an unfinished UTF-8 character at its end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) - back if length > back else len(data)
    return len(data)


def _continuation(data: bytes) -> int:
    """How many bytes at the start of ``data`` belong to a UTF-8 character that began before."""
    count = 0
    while count < min(3, len(data)) and data[count] & 0xC0 == 0x80:
        count += 1
    return count
