"""The lines of a session log, schema 2 (``docs/log-format.md``): made, taken apart, checked.

A line is one JSON object and its seal::

    {"record_type":"usage","seq":7, … ,"h":"5d41402abc4b2a76"}
    └────────────── body ────────────┘└──────── seal ────────┘

``h`` is BLAKE2b (8 bytes, as 16 lower-case hex digits) of two things one after the other: the 16 ASCII
characters of the previous record's ``h`` (for the header: of its own ``epoch``), and the bytes of the body.
So a record proves that it is whole and what stood before it, and a reader needs no JSON to check it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from rath.core.encoding import decode_json, encode_json
from rath.errors import UsageValueError
from rath.session.chunk import DIGEST_BYTES, ChunkRow

__all__ = [
    "CURRENT_SCHEMA_VERSION",
    "EMPTY_DIGEST",
    "LONG_RECORDS",
    "MAX_DEPTH",
    "MAX_ELEMENTS",
    "MAX_LINE_BYTES",
    "MAX_OTHER_BYTES",
    "SEAL_LENGTH",
    "BadLine",
    "build_line",
    "chain_hash",
    "check_line",
    "chunk_fields",
    "decode_header",
    "decode_object",
    "decode_strictly",
    "encode_fields",
    "line_body",
    "result_fields",
    "row_from_bytes",
    "seal",
    "sealed_hash",
    "too_many_elements",
]

CURRENT_SCHEMA_VERSION = 2
"""What logs written here have as ``schema_version``."""
MAX_LINE_BYTES = 256 << 20
"""Longest line, in bytes: the writer refuses to write a longer one, readers refuse to read on."""
MAX_OTHER_BYTES = 1 << 20
"""Longest line of a record that carries no row, newline included."""
LONG_RECORDS = frozenset({"chunk", "tool_result"})
"""Those that carry a row, and may be as long as any line."""
MAX_ELEMENTS = 1 << 20
"""Most brackets, braces and commas outside strings in a line. 32 MB of ``[],`` decode to 945 MB of lists."""
MAX_DEPTH = 128
"""Deepest nesting of objects and arrays that a reader takes."""
HASH_BYTES = 8
SEAL_LENGTH = len(',"h":"0123456789abcdef"}')
EMPTY_DIGEST = bytes(DIGEST_BYTES)

_decode = msgspec.json.Decoder().decode
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"')
_HEX = frozenset(b"0123456789abcdef")


class BadLine(ValueError):
    """A line that is not what it should be. ``str()`` of it says in what, in a few words."""


def chain_hash(previous: bytes, body: bytes) -> bytes:
    """``h`` of a record, as 16 ASCII characters, from the ``h`` before it and the record's body."""
    return blake2b(previous + body, digest_size=HASH_BYTES).hexdigest().encode()


def line_body(record_type: str, seq: int, fields: bytes) -> bytes:
    """A record up to its seal. ``fields``: from :func:`encode_fields` or :func:`chunk_fields`."""
    return b'{"record_type":"%b","seq":%d%b' % (record_type.encode(), seq, fields)


def encode_fields(fields: Mapping[str, Any]) -> bytes:
    """``,"name":value`` for each field."""
    return b"," + encode_json(dict(fields))[1:-1] if fields else b""


def chunk_fields(index: int, encoded: bytes, digest: bytes) -> bytes:
    """The fields of a chunk record. The row's bytes go in as they are: nothing is encoded twice."""
    return b',"index":%d,"row":%b,"digest":"%b"' % (index, encoded, digest.hex().encode())


def result_fields(call_id: object, index: int, payload: bytes) -> bytes:
    """The fields of a tool_result record, whose row will have number ``index`` and this payload."""
    return b',"call_id":%b,"index":%d,"payload":%b' % (encode_json(call_id), index, payload)


def seal(body: bytes, previous: bytes) -> tuple[bytes, bytes]:
    """The whole line, newline included, and its ``h``."""
    h = chain_hash(previous, body)
    return b'%b,"h":"%b"}\n' % (body, h), h


def build_line(record: Mapping[str, Any], seq: int, previous: bytes) -> tuple[bytes, bytes]:
    """The line of a record and its ``h``.

    Args:
        record: ``record_type`` and the record's own fields.
        seq: its place in the log, from 0.
        previous: the ``h`` before it; for a header, its ``epoch``.
    """
    fields = {name: value for name, value in record.items() if name != "record_type"}
    return seal(line_body(record["record_type"], seq, encode_fields(fields)), previous)


def sealed_hash(line: bytes) -> bytes | None:
    """The ``h`` that a line (without newline) carries; ``None`` when it does not end in a seal."""
    if line[-SEAL_LENGTH:-18] != b',"h":"' or line[-2:] != b'"}':
        return None
    h = line[-18:-2]
    return h if _HEX.issuperset(h) else None


def check_line(line: bytes, seq: int, previous: bytes) -> dict[str, Any]:
    """The record of a line (with or without its newline).

    Raises:
        BadLine: it does not continue the chain from ``previous``, is not JSON, or has another ``seq``.
    """
    line = line.removesuffix(b"\n")
    if sealed_hash(line) != chain_hash(previous, line[:-SEAL_LENGTH]):
        raise BadLine("the record does not match its hash")
    record = decode_object(line)
    if type(record.get("seq")) is not int or record["seq"] != seq:
        raise BadLine(f"seq is {record.get('seq')!r:.40}, not {seq}")
    return record


def decode_object(encoded: bytes, *, lenient: bool = False) -> dict[str, Any]:
    """The JSON object that ``encoded`` is.

    Args:
        lenient: take also what only Python takes for JSON: ``NaN``, a byte order mark, surrogates that are no UTF-8.

    Raises:
        BadLine: it is none, or nests deeper than :data:`MAX_DEPTH`, or has more than :data:`MAX_ELEMENTS`, or
            holds a number that Python refuses.
    """
    size = len(encoded)
    if size > MAX_ELEMENTS and too_many_elements(encoded):
        raise BadLine(f"more than {MAX_ELEMENTS:,} brackets and commas")
    try:
        value = decode_json(encoded) if lenient else decode_strictly(encoded)
    except RecursionError:
        raise BadLine("nested too deep") from None
    except ValueError as error:
        raise BadLine(f"not JSON ({error!s:.80})") from None
    if type(value) is not dict:
        raise BadLine("not a JSON object")
    # Counting brackets is three times as fast as walking, and only text that is full of them needs the walk.
    if size > MAX_DEPTH and encoded.count(b"{") + encoded.count(b"[") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise BadLine("nested too deep")
    return value


def decode_strictly(encoded: bytes) -> Any:
    """The value of JSON bytes that every reader takes. Raises ``ValueError`` when they are none."""
    try:
        return _decode(encoded)
    except msgspec.MsgspecError:
        # Escaped lone surrogates and numbers of more than 64 bits: msgspec refuses them, and they are JSON.
        return json.loads(encoded.decode(), parse_constant=_no_number)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def decode_header(line: bytes) -> dict[str, Any]:
    """The object that a log's first line is; of a schema without a chain, as leniently as its writers wrote it.

    Raises:
        BadLine: as :func:`decode_object`.
    """
    try:
        return decode_object(line)
    except BadLine:
        record = decode_object(line, lenient=True)
        version = record.get("schema_version")
        if type(version) is not int or version >= CURRENT_SCHEMA_VERSION:
            raise
        return record


def too_many_elements(encoded: bytes) -> bool:
    """Whether JSON has more than :data:`MAX_ELEMENTS`. Costs nothing for short lines, little for long texts."""
    if len(encoded) <= MAX_ELEMENTS or _elements(encoded) <= MAX_ELEMENTS:
        return False
    return _elements(_STRING.sub(b"", encoded)) > MAX_ELEMENTS


def _elements(encoded: bytes) -> int:
    return sum(map(encoded.count, (b"[", b"{", b",")))


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        inner: list[Any] = []
        for item in level:
            children = item.values() if type(item) is dict else item
            inner.extend(child for child in children if type(child) in (dict, list))
        if not inner:
            return False
        level = inner
    return True


def row_from_bytes(encoded: bytes) -> ChunkRow:
    """The row that has exactly these encoded bytes, checked.

    Raises:
        BadLine: they are not ``{"kind":…,"payload":{…}}`` in that form.
    """
    try:
        row = ChunkRow.from_encoded(encoded)
    except UsageValueError:
        raise BadLine("a row that is not of a known form") from None
    payload = row.encoded_payload
    if payload[:1] != b"{" or payload[-1:] != b"}":
        raise BadLine("a row with space around its payload")
    decode_object(payload)
    return row
