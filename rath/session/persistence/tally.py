"""Tables that count what a scanner finds in place of keeping it: memory is bounded, whatever a log's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from rath.session.persistence.format import BadLine
from rath.session.persistence.recordparts import result_bytes

__all__ = ["Places", "Tally"]

T = TypeVar("T")
_SMALL_BYTES = 1 << 16
_KEPT_BYTES = 4 << 20


class Tally(list[T]):
    """A list that counts what is appended to it, hands it on, and keeps nothing.

    Args:
        each: called with what is appended.
        count: how many there are said to be already.
    """

    def __init__(self, each: Callable[[T], None] | None, count: int = 0) -> None:
        super().__init__()
        self._each = each
        self._count = count

    def append(self, item: T) -> None:
        """Count one more."""
        self._count += 1
        if self._each is not None:
            self._each(item)

    def __len__(self) -> int:
        return self._count


class Places(dict[int, bytes]):
    """Results that wait for their rows: a few MiB of small ones are kept, of the others the place in the file.

    ``at``: the place of the line that comes next, and its length.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.at = (0, 0)
        self._file = file
        self._places: dict[int, tuple[int, int] | bytes] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._places)

    def __bool__(self) -> bool:
        return bool(self._places)

    def __contains__(self, index: object) -> bool:
        return index in self._places

    def __setitem__(self, index: int, encoded: bytes) -> None:
        self.pop(index)
        if len(encoded) <= _SMALL_BYTES and self._kept_bytes < _KEPT_BYTES:
            self._kept_bytes += len(encoded)
            self._places[index] = encoded
        else:
            self._places[index] = self.at

    def get(self, index: int, default: Any = None) -> Any:
        place = self._places.get(index)
        return self._read(place) if isinstance(place, tuple) else place

    def pop(self, index: int, default: Any = None) -> Any:
        place = self._places.pop(index, None)
        if isinstance(place, bytes):
            self._kept_bytes -= len(place)
        return default  # nobody looks at what a row has replaced

    def clear(self) -> None:
        self._places.clear()
        self._kept_bytes = 0

    def _read(self, place: tuple[int, int]) -> bytes | None:
        here = self._file.tell()
        self._file.seek(place[0])
        line = self._file.read(place[1])
        self._file.seek(here)
        try:
            return result_bytes(line)
        except BadLine:  # it was good a moment ago
            return None
