"""Lines that are valid on the chain and spelt otherwise than rath spells them: what docs/log-format.md says of them holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

from rath.core.encoding import decode_json, encode_json
from rath.errors import UsageTypeError
from rath.session import load_session
from rath.session.chunk import ChunkKind, ChunkRow
from rath.session.persistence import open_dir, verify

_HEADER = b'"record_type":"header","seq":0,"schema_version":2,"id":"6a1f8f0e-8d5b-4c0e-9d53-0a5d2c9f5a11",'
_HEADER += b'"created_at":"2026-01-02T03:04:05.000006+00:00","epoch":"00112233445566ff"'


def write(path: Path, bodies: Sequence[bytes], header: bytes = b"{" + _HEADER) -> Path:
    """A log of these records, which lack their hashes and nothing else."""
    previous, data = b"00112233445566ff", b""
    for body in (header, *bodies):
        previous = hashlib.blake2b(previous + body, digest_size=8).hexdigest().encode()
        data += b'%b,"h":"%b"}\n' % (body, previous)
    path.write_bytes(data)
    return path


def digest(*rows: bytes) -> bytes:
    made = bytes(16)
    for row in rows:
        made = hashlib.blake2b(made + row, digest_size=16).digest()
    return made.hex().encode()


def texts(path: Path) -> list[bytes]:
    return [row.encoded for row in load_session("", path=path).chunk_table.rows]


@pytest.mark.parametrize(
    "field",
    [b'"x":NaN', b'"x":[1,-Infinity]', b'"x":"\xed\xa0\x80"', b'"x":"\xff"', b'"\xed\xa0\x80":1'],
)
@pytest.mark.parametrize("start", [b'{"record_type":"weird","seq":1,', b'{"record_type":"usage","seq":1,'])
def test_what_only_python_takes_for_json_is_no_record(tmp_path: Path, start: bytes, field: bytes) -> None:
    found = verify(write(tmp_path / "a.jsonl", [start + field]))
    assert (found.verdict, found.line) == ("damaged", 2)
    assert found.reason is not None
    assert found.reason.startswith("not JSON")


def test_a_row_is_json_that_every_reader_takes(tmp_path: Path) -> None:
    row = b'{"kind":"user","payload":{"content":"x","n":NaN}}'
    found = verify(write(tmp_path / "a.jsonl", [b'{"record_type":"chunk","seq":1,"index":0,"row":%b,"digest":"%b"' % (row, digest(row))]))
    assert (found.verdict, found.line, found.rows) == ("damaged", 2, 0)


def test_a_call_id_is_json_that_every_reader_takes(tmp_path: Path) -> None:
    body = b'{"record_type":"tool_result","seq":1,"call_id":"\xed\xa0\x80","index":0,"payload":{"content":"x"}'
    assert verify(write(tmp_path / "a.jsonl", [body])).verdict == "damaged"


def test_a_log_has_no_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [], header=b"\xef\xbb\xbf{" + _HEADER)
    assert verify(path).verdict == "damaged"
    (entry,) = open_dir(tmp_path)
    assert entry.verdict not in ("complete", "open")


def test_a_log_of_schema_1_may_hold_what_only_python_takes_for_json(tmp_path: Path) -> None:
    """OpenRath wrote with ``json.dumps``, which writes NaN."""
    lines = [
        {"record_type": "header", "schema_version": 1, "id": "6a1f8f0e-8d5b-4c0e-9d53-0a5d2c9f5a11"}
        | {"created_at": "2025-03-01T12:00:00+00:00", "lineage_extras": [["score", float("nan")]]},
        {"record_type": "chunk", "index": 0, "kind": "user", "payload": {"content": "x", "n": float("inf")}},
        {"record_type": "trailer", "closed_at": "2025-03-01T12:00:00+00:00", "final_chunk_count": 1},
    ]
    path = tmp_path / "6a1f8f0e-8d5b-4c0e-9d53-0a5d2c9f5a11.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert verify(path).verdict == "complete"
    assert load_session("", path=path).chunk_table[0].text == "x"
    (entry,) = open_dir(tmp_path)
    assert (entry.verdict, entry.rows) == ("complete", 1)


@pytest.mark.parametrize("form", [b'{"kind":"user","payload": %b}', b'{"kind":"user","payload":%b }', b'{"kind":"user","payload":%b\r}'])
def test_a_row_has_no_space_around_its_payload(tmp_path: Path, form: bytes) -> None:
    row = form % b'{"content":"x"}'
    body = b'{"record_type":"chunk","seq":1,"index":0,"row":%b,"digest":"%b"' % (row, digest(row))
    found = verify(write(tmp_path / "a.jsonl", [body]))
    assert (found.verdict, found.rows) == ("damaged", 0)


_PAYLOADS = [
    b'{ "content" : "x"}',
    b'{"content":"\\ud800"}',
    b'{"content":12345678901234567890123,"s":"\\udc00"}',
    b'{"content":"\\u2028 \\ud83d\\ude00 \xc3\xa9"}',
    b'{"content":"a","content":"b \\\\\\" }"}',
]
_RESULTS = [
    b'{"record_type":"tool_result","seq":1,"call_id":"a","index":0,"payload": %b ',
    b'{"record_type":"tool_result","seq":1,"call_id":"a","index":0,"payload":%b,"later":"\\ud800"',
    b'{"record_type":"tool_result","seq":1,"payload":%b,"call_id":"\\ud800","index":0',
    b'{ "payload" : %b , "payload\\ud800":{"payload":{}},"record_type":"tool_result","index":0,"seq":1',
]


@pytest.mark.parametrize("payload", _PAYLOADS)
@pytest.mark.parametrize("form", _RESULTS)
def test_a_result_becomes_a_row_of_the_bytes_that_its_payload_has(tmp_path: Path, form: bytes, payload: bytes) -> None:
    row = b'{"kind":"tool_result","payload":%b}' % payload
    path = write(tmp_path / "a.jsonl", [form % payload])
    assert texts(path) == [row]
    assert verify(path).rows == 1
    counted = b'{"record_type":"trailer","seq":2,"final_chunk_count":1,"record_count":3,"digest":"%b"' % digest(row)
    assert verify(write(path, [form % payload, counted])).verdict == "complete"


_CHUNKS = [
    b'{"record_type":"chunk","seq":1,"index":0,"row":%b,"digest":"%b","later":null',
    b'{"record_type":"chunk","seq":1,"index":0,"row":%b,"later":"\\ud800","digest":"%b"',
    b'{"record_type":"chunk","seq":1,"row":%b,"index":0,"digest":"%b"',
    b'{ "row" : %b , "digest":"%b","row\\ud800":{"row":{}},"record_type":"chunk","index":0,"seq":1',
]


@pytest.mark.parametrize("payload", _PAYLOADS)
@pytest.mark.parametrize("form", _CHUNKS)
def test_the_fields_of_a_chunk_may_stand_in_any_order_and_among_others(tmp_path: Path, form: bytes, payload: bytes) -> None:
    row = b'{"kind":"user","payload":%b}' % payload
    path = write(tmp_path / "a.jsonl", [form % (row, digest(row))])
    assert verify(path).verdict == "open"
    assert texts(path) == [row]
    assert verify(write(path, [form % (row, digest(row + b" "))])).verdict == "damaged"


def test_results_that_a_trailer_did_not_count_stand_for_nothing_behind_it(tmp_path: Path) -> None:
    waits = b'{"record_type":"tool_result","seq":1,"call_id":"a","index":0,"payload":{"content":"x"}'
    trailer = b'{"record_type":"trailer","seq":2,"final_chunk_count":0,"record_count":3,"digest":"%b"' % digest()
    path = write(tmp_path / "a.jsonl", [waits, trailer, b'{"record_type":"resume","seq":3'])
    assert (verify(path).verdict, texts(path)) == ("open", [])


def test_of_two_results_that_say_the_same_the_later_spelling_counts(tmp_path: Path) -> None:
    one = b'{"record_type":"tool_result","seq":1,"call_id":"a","index":0,"payload":{"a":1,"b":2}'
    two = b'{"record_type":"tool_result","seq":2,"call_id":"a","index":0,"payload":{"b":2,"a":1}'
    assert texts(write(tmp_path / "a.jsonl", [one, two])) == [b'{"kind":"tool_result","payload":{"b":2,"a":1}}']


@pytest.mark.parametrize(
    "value", [float("nan"), float("-inf"), datetime(2026, 1, 2, 3), {3}, {1: "x"}, b"bytes", (1, 2), [None, True, 2**70]]
)
def test_a_lone_surrogate_beside_a_value_does_not_change_how_it_is_written(tmp_path: Path, value: object) -> None:
    alone = json.loads(encode_json({"v": value}))
    beside = encode_json({"v": value, "s": "\ud800"})
    assert decode_json(beside) == alone | {"s": "\ud800"}
    assert b"NaN" not in beside
    assert b"Infinity" not in beside
    assert ChunkRow(ChunkKind.USER, {"v": value, "s": "\ud800"}).payload == alone | {"s": "\ud800"}


def test_what_json_cannot_hold_is_refused_beside_a_lone_surrogate_too() -> None:
    with pytest.raises(UsageTypeError, match="not representable as JSON"):
        encode_json({"v": object(), "s": "\ud800"})
