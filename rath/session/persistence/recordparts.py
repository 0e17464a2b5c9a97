"""Records of a log but for their rows: what is kept of them, how long they may be, and which row a tool's result becomes.

Everything here is hostile input; nothing raises but :class:`BadLine`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from rath.session.persistence.format import (
    LONG_RECORDS,
    MAX_ELEMENTS,
    MAX_OTHER_BYTES,
    SEAL_LENGTH,
    BadLine,
    decode_object,
)

__all__ = ["RESULT", "RESULT_ROW", "check_length", "check_payload", "kept", "result_bytes", "spelt"]

# Of other records only these fields are kept, and no structure in them: a log is as large in memory as its rows.
_KEPT = {
    "tool_intent": ("call_id", "name", "arguments_digest", "idempotent"),
    "tool_result": ("call_id", "index"),
    "usage": (
        *("prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details"),
        *("model", "price"),
    ),
    "spill": ("digest", "bytes", "call_id"),
    "resume": ("epoch", "writer", "repaired"),
}
_MAX_KEPT_ENTRIES = 32
RESULT = re.compile(
    rb'\{"record_type":"tool_result","seq":([0-9]{1,16}),"call_id":("(?:[^"\\]++|\\.)*+"),"index":([0-9]{1,16}),"payload":'
)
RESULT_ROW = b'{"kind":"tool_result","payload":%b}'
_KEY = re.compile(r'[ \t\r,]*("(?:[^"\\]++|\\.)*+")[ \t\r]*:[ \t\r]*')
_decode_at = json.JSONDecoder().raw_decode
_PAYLOAD_FRAME = '{"tool_call_id":"","name":"","content":}'
_QUOTE = ord('"')


class _KindRecord(msgspec.Struct):
    """What kind of record a line is; the rest of it is read over, not decoded."""

    record_type: str


class _ResultPayload(msgspec.Struct, forbid_unknown_fields=True):
    """The payload of a tool's result as rath writes it; the text, which may be long, is read over."""

    tool_call_id: str
    name: str
    content: msgspec.Raw


_result_payload = msgspec.json.Decoder(_ResultPayload).decode


def check_length(line: bytes) -> None:
    """Raise :class:`BadLine` for a line that is longer than a record of its kind may be, before it is decoded."""
    if len(line) < MAX_OTHER_BYTES:
        return
    try:
        if msgspec.json.decode(line, type=_KindRecord).record_type in LONG_RECORDS:
            return
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Lone surrogates, which msgspec refuses even where it only reads over them; rath writes the kind first.
        if any(line.startswith(b'{"record_type":"%b",' % kind.encode()) for kind in LONG_RECORDS):
            return
    raise BadLine(f"a record without a row is longer than {MAX_OTHER_BYTES:,} bytes")


def check_payload(encoded: bytes) -> None:
    """Raise :class:`BadLine` where :func:`decode_object` does, and for space around the object.

    A text is checked, not made: a third of the time.
    """
    if encoded[:1] != b"{" or encoded[-1:] != b"}":
        raise BadLine("a payload with space around it")
    if len(encoded) <= MAX_ELEMENTS and encoded.isascii():  # what is read over is not checked to be UTF-8
        try:
            found = _result_payload(encoded)
            content = memoryview(found.content)
            # Anything but texts, each once, may nest too deep, or be a number that Python refuses.
            lengths = len(found.tool_call_id) + len(found.name) + len(content)
            if content[0] == _QUOTE and len(encoded) == len(_PAYLOAD_FRAME) + lengths:
                return
        except (msgspec.MsgspecError, RecursionError):
            pass
    decode_object(encoded)


def kept(record: dict[str, Any]) -> dict[str, Any]:
    """The documented fields of a record, without what is too large in them."""
    kind = record["record_type"]
    found = {"record_type": kind, "seq": record["seq"]}
    for name in _KEPT.get(kind, ()):
        if name in record:
            value = record[name]
            if type(value) is str or type(value) is int or _is_small(value):
                found[name] = value
    return found


def _is_small(value: Any) -> bool:
    """Whether a value is no structure, or a short object without structure in it."""
    if isinstance(value, dict):
        return len(value) <= _MAX_KEPT_ENTRIES and not any(isinstance(item, (dict, list)) for item in value.values())
    return not isinstance(value, list)


def result_bytes(line: bytes) -> bytes:
    """The bytes of the row that a good tool_result record stands for."""
    found = RESULT.match(line)
    if found is not None:
        payload = line[found.end() : -SEAL_LENGTH]
        try:
            check_payload(payload)
            return RESULT_ROW % payload
        except BadLine:  # more fields behind the payload
            pass
    return RESULT_ROW % spelt(line, "payload")


def spelt(line: bytes, name: str) -> bytes:
    """The value of a field of the JSON object that ``line`` is, as it is spelt there: digests are over these bytes.

    Args:
        line: known to be good JSON (:func:`decode_object`), with that field.
    """
    text = line.decode()
    at, found = text.index("{") + 1, ""
    while (key := _KEY.match(text, at)) is not None:
        _, at = _decode_at(text, key.end())
        if json.loads(key[1]) == name:  # of several, the last one: as in every decoder here
            found = text[key.end() : at]
    return found.encode()
