"""Cutting a text that is too long for a model, and keeping the whole of it."""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from rath.core.redact import REDACTED, split_secrets

__all__ = ["Whole", "cut", "cut_and_whole"]


class Whole(NamedTuple):
    """A whole text, redacted: its bytes (UTF-8 with lone surrogates), their SHA-256 in hex, how many characters they are."""

    data: bytes
    digest: str
    characters: int

    @classmethod
    def of(cls, text: str) -> Whole:
        """That of ``text``."""
        return _whole(_parts(text))


def cut(text: str, limit: int) -> str:
    """``text``, or at most ``limit`` characters of it: its head, how much is missing, and its tail."""
    if len(text) <= limit:
        return text
    # The number of characters left out depends on the marker's own length, and that on the number's digits.
    room = max(0, limit - len(_marker(len(text))))
    head = room - room // 2
    tail = room // 2
    return text[:head] + _marker(len(text) - head - tail) + text[len(text) - tail :]


def cut_and_whole(text: str, limit: int) -> tuple[str, Whole]:
    """At most ``limit`` characters of ``text``, which has more: head, how to read on, tail; and the whole of it.

    The model sees what the tool said, logs and blobs see it redacted, and all of them are cut at the same places. So no
    secret lies across a cut: half of one would not be recognised any more. Counts and offset are those of the whole.
    """
    room = max(0, limit - len(_pointer(len(text), len(text))))
    head, tail = room - room // 2, len(text) - room // 2
    parts = _parts(text)
    at = grown = 0  # where a part begins; how much longer everything before it is in the whole
    offset = missing = -1
    for part in parts:
        end = at + part.length
        if part.secret:
            head = at if at < head < end else head
            tail = end if at < tail < end else tail
        if offset < 0 and head < end:
            offset = head + grown
        grown += len(part.kept) - part.length
        if missing < 0 and tail <= end:
            missing = tail + grown - offset
        at = end
    return text[:head] + _pointer(missing, offset) + text[tail:], _whole(parts)


class _Part(NamedTuple):
    """A part of a text: as it is kept, in characters and in bytes, and how many characters it had."""

    kept: str
    data: bytes
    length: int
    secret: bool


_MARK = REDACTED.encode()


def _parts(text: str) -> list[_Part]:
    found = split_secrets(text.encode("utf-8", "surrogatepass"))
    if len(found) == 1:
        return [_Part(text, found[0][0], len(text), False)]
    decoded = [(data.decode("utf-8", "surrogatepass"), data, secret) for data, secret in found]
    return [
        _Part(REDACTED, _MARK, len(part), True) if secret else _Part(part, data, len(part), False)
        for part, data, secret in decoded
    ]


def _whole(parts: list[_Part]) -> Whole:
    data = b"".join(part.data for part in parts)  # the same bytes where there is one part
    return Whole(data, sha256(data).hexdigest(), sum(len(part.kept) for part in parts))


def _marker(missing: int) -> str:
    return f"…[{missing:,} characters left out]…"


def _pointer(missing: int, offset: int) -> str:
    return f"…[{missing:,} characters left out; read on with result_read: digest in whole, offset {offset}]…"
