"""The frames between rath and a guest server, and a decoder that trusts none of them. No input, no output: only bytes.

A frame is a header (payload length, call id, kind) and a payload. The other side of the connection is the one process in
a sandbox that answers for all others; if it is broken, or a command took it over, everything that it sends may be a lie.
So lengths are checked before anything is kept, and whatever does not fit the protocol is a :class:`ProtocolError`, after
which nothing of the connection is believed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = [
    "CHUNK_BYTES",
    "MAX_PAYLOAD_BYTES",
    "Decoder",
    "Frame",
    "Kind",
    "ProtocolError",
    "encode",
    "number",
    "pack",
    "pack_credit",
    "unpack",
    "unpack_credit",
    "unpack_pairs",
]

MAX_PAYLOAD_BYTES = 262_144
CHUNK_BYTES = 65_536
"""What one frame of a long stream carries: the unit of fairness between calls."""

_HEADER = struct.Struct(">IIB")
_U32 = struct.Struct(">I")
_MAX_DIGITS = 19


class ProtocolError(Exception):
    """The guest sent what it never should. The connection ends, and the sandbox with it."""


class Kind:
    """What a frame is. Below 16: from rath to the guest; from 16: from the guest."""

    CONFIG = 1
    RUN = 2
    DATA = 3
    END = 4
    KILL = 5
    CREDIT = 6
    HELLO = 16
    GUEST_DATA = 17
    OUT = 18
    ERR = 19
    VALUE = 20
    READY = 21
    GUEST_CREDIT = 22
    DONE = 23
    FAIL = 24
    LOG = 25


_OF_CONNECTION = frozenset({Kind.HELLO, Kind.READY, Kind.LOG})
_OF_CALL = frozenset({Kind.GUEST_DATA, Kind.OUT, Kind.ERR, Kind.VALUE, Kind.GUEST_CREDIT, Kind.DONE, Kind.FAIL})


class Frame(NamedTuple):
    """A frame from the guest. ``call`` is 0 for those that are about the connection itself, and for no others."""

    call: int
    kind: int
    payload: bytes


def encode(kind: int, call: int, payload: bytes | memoryview = b"") -> bytes:
    """A frame as bytes; ``payload`` has at most ``MAX_PAYLOAD_BYTES``."""
    return b"".join((_HEADER.pack(len(payload), call, kind), payload))


class Decoder:
    """Turns what arrives from a guest into frames. Between two feeds it holds less than one frame."""

    __slots__ = ("_failed", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._failed = ""

    @property
    def pending_bytes(self) -> int:
        """How much of an unfinished frame has arrived; not 0 at the end of a connection: it was cut off."""
        return len(self._rest)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that ``data`` completes, each checked. Iterate to the end before the next feed.

        Raises:
            ProtocolError: it is no frame of a guest; and again at every later feed.
        """
        if self._failed:
            raise ProtocolError(self._failed)
        self._rest += data
        at = 0
        try:
            while len(self._rest) - at >= _HEADER.size:
                size, call, kind = _HEADER.unpack_from(self._rest, at)
                self._check(size, call, kind)
                start, end = at + _HEADER.size, at + _HEADER.size + size
                if len(self._rest) < end:
                    break
                with memoryview(self._rest) as view:
                    payload = bytes(view[start:end])
                at = end
                yield Frame(call, kind, payload)
        except ProtocolError as error:
            self._failed = str(error)
            at = len(self._rest)
            raise
        finally:
            del self._rest[:at]

    def _check(self, size: int, call: int, kind: int) -> None:
        if size > MAX_PAYLOAD_BYTES:
            raise ProtocolError(f"a frame of {size:,} bytes; at most {MAX_PAYLOAD_BYTES:,} are allowed")
        if kind not in (_OF_CALL if call else _OF_CONNECTION):
            raise ProtocolError(f"a frame of kind {kind} for call {call}")


# -- fields -----------------------------------------------------------------------------------------------------------


def pack(fields: Iterable[bytes]) -> bytes:
    """Fields as a payload: each with its length before it."""
    parts: list[bytes] = []
    for field in fields:
        parts += (_U32.pack(len(field)), field)
    return b"".join(parts)


def unpack(payload: bytes) -> list[bytes]:
    """The fields of a payload.

    Raises:
        ProtocolError: a length leads beyond its end.
    """
    fields: list[bytes] = []
    at = 0
    while at < len(payload):
        if len(payload) - at < _U32.size:
            raise ProtocolError("a field that is cut off")
        size: int = _U32.unpack_from(payload, at)[0]
        at += _U32.size
        if size > len(payload) - at:
            raise ProtocolError(f"a field of {size:,} bytes where {len(payload) - at:,} are left")
        fields.append(payload[at : at + size])
        at += size
    return fields


def unpack_pairs(payload: bytes) -> dict[str, str]:
    """Fields that are keys and values by turns.

    Raises:
        ProtocolError: they are not, or not UTF-8.
    """
    fields = unpack(payload)
    if len(fields) % 2:
        raise ProtocolError("a key without a value")
    try:
        return {key.decode(): value.decode() for key, value in zip(fields[::2], fields[1::2], strict=True)}
    except UnicodeDecodeError:
        raise ProtocolError("a key or value that is not text") from None


def number(field: bytes, *, minimum: int = 0, maximum: int = 1 << 62) -> int:
    """A field as a whole number in decimal digits.

    Raises:
        ProtocolError: it is none, or out of bounds.
    """
    digits = field[1:] if field.startswith(b"-") else field
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise ProtocolError(f"{field[:40]!r} where a number belongs")
    value = int(field)
    if not minimum <= value <= maximum:
        raise ProtocolError(f"{value} where a number from {minimum} to {maximum} belongs")
    return value


def pack_credit(size_bytes: int) -> bytes:
    """The payload of a CREDIT frame."""
    return _U32.pack(size_bytes)


def unpack_credit(payload: bytes) -> int:
    """How much more a CREDIT frame allows.

    Raises:
        ProtocolError: it says nothing of the kind.
    """
    if len(payload) != _U32.size:
        raise ProtocolError(f"a credit of {len(payload)} bytes")
    return int(_U32.unpack(payload)[0])
