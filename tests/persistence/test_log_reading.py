from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from rath.backend.types import BackendSandboxSpec
from rath.errors import DamagedLog, PersistenceError
from rath.llm.types import RathLLMTokenUsage
from rath.session.chunk import ChunkKind, ChunkRow, ChunkTable, user_text_chunk
from rath.session.graph.kind import LineageKind
from rath.session.persistence import SessionWriter, load_session, session_file
from rath.session.persistence.format import MAX_LINE_BYTES, row_from_bytes
from rath.session.persistence.runlog import open_run_log
from rath.session.persistence.source import open_log
from rath.session.session import Session
from tests.persistence.samples import (
    USAGE,
    appended,
    rechained,
    records,
    result,
    rows,
    run_until_results,
    write_sample,
)


def verdict_of(path: Path) -> str:
    """The verdict that loading gives, whether it raises or not. Anything but ``PersistenceError`` comes through."""
    try:
        loaded = load_session("", path=path)
    except DamagedLog as error:
        return f"refused: {error.verdict}" if error.line and error.offset is not None and error.reason else "refused"
    except PersistenceError:
        return "refused"
    assert loaded.closed == (loaded.verdict == "complete")
    for row in loaded.chunk_table.rows:
        assert isinstance(row.payload, dict)
    return loaded.verdict


def test_what_was_written_is_what_is_loaded(home: Path) -> None:
    spec = BackendSandboxSpec(
        image="python", entrypoint=("sh", "-c"), env={"A": "b"}, timeout=timedelta(seconds=90), working_dir="/w"
    )
    session = Session.create("user", "go").to("local", spec=spec)
    write_sample(session_file(session.id), session)
    for given in (session.id, str(session.id), session.id.hex.upper()):
        loaded = load_session(given)
        assert loaded.closed
        assert loaded.verdict == "complete"
        assert loaded.path == session_file(session.id)
        assert loaded.chunk_table == ChunkTable(tuple(rows()))
        assert loaded.chunk_table.digest == ChunkTable(tuple(rows())).digest
        assert loaded.cumulative_usage == USAGE
        assert loaded.trailer_raw is not None
        assert loaded.trailer_raw["final_chunk_count"] == 5
        header = loaded.header
        assert (header.schema_version, header.id, header.lineage_kind) == (2, session.id, LineageKind.LEAF_USER)
        assert header.lineage_operator == "Session.create"
        assert header.lineage_extras == session.lineage_extras
        assert header.parent_session_ids == ()
        assert (header.sandbox_backend, header.sandbox_handle_id) == ("local", None)
        assert header.sandbox_spec == dataclasses.replace(spec, env=None)
        assert [r["record_type"] for r in loaded.records] == [
            "usage", "tool_intent", "tool_intent", "tool_result", "tool_result",
        ]  # fmt: skip


def test_usage_details_come_back(tmp_path: Path) -> None:
    usage = RathLLMTokenUsage(1, 2, 3, {"reasoning_tokens": 1}, {"cached_tokens": 1})
    log = open_run_log(Session.from_user_message("x"), path=tmp_path / "a.jsonl")
    log.close(usage=usage, lineage_extras=(), outcome={})
    assert load_session("", path=log.path).cumulative_usage == usage


AWKWARD = [
    "\u2028 \u2029 \x85",
    "lone \ud800 and \udfff",
    "nul \x00 bell \x07 del \x7f",
    "cr \r lf \n crlf \r\n tab \t",
    '"quotes" \\ and {"json": [1]}',
    ',"h":"0123456789abcdef"}',
    ',"digest":"00","row":{',
    "\U0001f600 \u0101 \ufeff \ufffd",
    "[" * 500 + "{" * 500,
    "",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_every_text_comes_back_as_it_was(tmp_path: Path, text: str) -> None:
    table = [user_text_chunk(text), result("call " + text, text), ChunkRow(ChunkKind.ASSISTANT, {"content": text, text: [text]})]
    with SessionWriter(Session.from_user_message("x"), path=tmp_path / "a.jsonl") as writer:
        for index, row in enumerate(table):
            writer.write_chunk(index, row)
    loaded = load_session("", path=writer.path)
    assert [row.payload for row in loaded.chunk_table.rows] == [row.payload for row in table]
    assert loaded.chunk_table.digest == ChunkTable(tuple(table)).digest
    # One line a record for every tool that splits lines, also those that split at more than \n.
    assert len(writer.path.read_bytes().decode("utf-8").splitlines()) == len(records(writer.path)) == 5


def test_awkward_tool_results_come_back_from_a_crashed_round(tmp_path: Path) -> None:
    from tests.persistence.samples import finished

    for number, text in enumerate(AWKWARD):
        log = open_run_log(Session.from_user_message("x"), path=tmp_path / f"{number}.jsonl")
        log.on_event(finished(f"call {text}", 0, text))
        log.abandon()
        (row,) = load_session("", path=log.path).chunk_table.rows
        assert row.payload == {"tool_call_id": f"call {text}", "name": "probe", "content": text}


def test_a_log_in_progress_loads_as_open(tmp_path: Path) -> None:
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    for index, row in enumerate(rows()):
        loaded = load_session("", path=log.path)
        assert (loaded.verdict, loaded.closed, loaded.cumulative_usage) == ("open", False, None)
        assert loaded.chunk_table.rows == tuple(rows()[:index])
        log.on_event(appended(index, row))
    log.abandon()


def test_results_of_a_crashed_round_are_rows_as_far_as_they_follow_on(tmp_path: Path) -> None:
    from tests.persistence.samples import finished

    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    log.append_row(0, rows()[0])
    log.append_row(1, rows()[1])
    log.on_event(finished("b", 3))
    assert len(load_session("", path=log.path).chunk_table) == 2  # row 2 is missing, so row 3 cannot stand
    log.on_event(finished("a", 2))
    assert load_session("", path=log.path).chunk_table.rows == tuple(rows()[:4])
    log.append_row(2, rows()[2])
    assert load_session("", path=log.path).chunk_table.rows == tuple(rows()[:4])
    log.abandon()
    assert load_session("", path=log.path).chunk_table.digest == ChunkTable(tuple(rows()[:4])).digest


@pytest.mark.slow
def test_every_truncation_keeps_every_whole_record_and_is_never_closed(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    write_sample(whole)
    data = whole.read_bytes()
    header_end = data.index(b"\n") + 1
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        if length < header_end:
            assert verdict_of(cut) == "refused: torn"
            continue
        loaded = load_session("", path=cut)
        assert not loaded.closed
        assert loaded.verdict == ("open" if data[length - 1 : length] == b"\n" else "torn")
        chunks = data[: data.rindex(b"\n", 0, length)].count(b'"record_type":"chunk"')
        assert len(loaded.chunk_table) >= chunks
        assert loaded.chunk_table.rows == tuple(rows()[: len(loaded.chunk_table)])


def _flips(data: bytes, values: Callable[[int], list[int]]) -> list[bytes]:
    return [data[:i] + bytes([v]) + data[i + 1 :] for i in range(len(data)) for v in values(data[i]) if v != data[i]]


def _some_values(byte: int) -> list[int]:
    return [byte ^ 1, byte ^ 3, byte ^ 0x20, byte ^ 0x80, 0, ord("\n"), ord('"')]


@pytest.mark.slow
def test_a_flipped_byte_is_never_accepted_as_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with SessionWriter(Session.from_user_message("x"), path=path) as writer:
        writer.write_chunk(0, user_text_chunk("hello"))
    data = path.read_bytes()
    assert verdict_of(path) == "complete"
    for flipped in _flips(data, _some_values):
        path.write_bytes(flipped)
        assert verdict_of(path) != "complete", flipped


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_no_flip_of_any_byte_to_any_other_is_accepted_as_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    data = path.read_bytes()
    for flipped in _flips(data, lambda byte: list(range(0, 256, 37)) + _some_values(byte)):
        path.write_bytes(flipped)
        assert verdict_of(path) != "complete", flipped


def test_a_flip_in_the_middle_is_damage_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"on it", b"on iT")
    path.write_bytes(b"".join(lines))
    with pytest.raises(DamagedLog, match="line 4") as caught:
        load_session("", path=path)
    assert caught.value.verdict == "damaged"
    assert caught.value.reason == "a record does not match its hash; whole records follow"
    assert (caught.value.line, caught.value.offset) == (4, sum(map(len, lines[:3])))


def _without(lines: list[bytes], index: int) -> list[bytes]:
    return lines[:index] + lines[index + 1 :]


def _swapped(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], lines[4], lines[3], *lines[5:]]


DAMAGE: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a line is missing": lambda lines: _without(lines, 4),
    "lines are swapped": _swapped,
    "a record after the trailer": lambda lines: [*lines, lines[-2]],
    "garbage after the trailer": lambda lines: [*lines, b"garbage\n"],
    "an empty line": lambda lines: [*lines[:3], b"\n", *lines[3:]],
    "a carriage return": lambda lines: [*lines[:3], lines[3][:-1] + b"\r\n", *lines[4:]],
    "another header": lambda lines: [*lines, lines[0]],
    "header only at the end": lambda lines: [*lines[1:], lines[0]],
    "the last record changed": lambda lines: [*lines[:-1], lines[-1].replace(b"completed", b"completeD")],
    "NULs in the middle": lambda lines: [*lines[:3], bytes(len(lines[3])), b"\n", *lines[4:]],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_contradictions_are_refused_as_damaged(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    path.write_bytes(b"".join(DAMAGE[name](path.read_bytes().splitlines(keepends=True))))
    data = path.read_bytes()
    assert verdict_of(path) == "refused: damaged"
    assert path.read_bytes() == data


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\0" * 100 + b"\n", b'{"record_type":"chu\0\0\0\n\0\0', b"\0\n\0\n\0"])
@pytest.mark.parametrize("closed", [True, False])
def test_nul_bytes_at_the_tail_are_a_torn_tail(tmp_path: Path, tail: bytes, closed: bool) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines if closed else lines[:-1]) + tail)
    loaded = load_session("", path=path)
    assert (loaded.verdict, loaded.closed) == ("torn", False)
    assert loaded.chunk_table.rows == tuple(rows())


def test_two_writers_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    lines = path.read_bytes().splitlines(keepends=True)
    edited = records(path)
    # A second writer that started from the first three records, its lines among the first one's.
    rechained(path, [*edited[:3], {"record_type": "usage", "model": "other"}, {"record_type": "usage", "model": "third"}])
    other = path.read_bytes().splitlines(keepends=True)
    for mixed in (
        [*lines[:4], other[3], *lines[4:]],
        [*lines[:4], other[3], lines[4], other[4]],
        [*lines[:6], other[3]],
        [*lines, lines[0]],
        [*lines[:5], lines[4], *lines[5:]],
    ):
        path.write_bytes(b"".join(mixed))
        with pytest.raises(DamagedLog, match="two writers"):
            load_session("", path=path)


def test_a_resume_record_continues_a_log_even_after_its_trailer(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    edited = records(path)
    resume = {"record_type": "resume", "epoch": "00" * 8, "writer": {}, "repaired": None}
    rechained(path, [*edited, resume])
    assert verdict_of(path) == "open"
    trailer = edited[-1] | {"record_count": len(edited) + 2}
    del trailer["seq"], trailer["h"]
    rechained(path, [*edited, resume, trailer])
    assert verdict_of(path) == "complete"


def test_unknown_records_are_kept_and_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    edited = [{k: v for k, v in r.items() if k != "seq"} for r in records(path)]
    edited[-1]["record_count"] += 1
    rechained(path, [*edited[:2], {"record_type": "mood", "good": True}, *edited[2:]])
    loaded = load_session("", path=path)
    assert loaded.closed
    assert loaded.records[0] == {"record_type": "mood", "seq": 2}


def test_fields_may_stand_in_another_order(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    rechained(path, [dict(reversed(r.items())) for r in records(path)])
    loaded = load_session("", path=path)
    assert loaded.closed
    assert loaded.chunk_table.rows == tuple(rows())


def _edit(**fields: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: record | fields


# What a correct chain may still say: which record, what in it, and a word of the reason.
CONTRADICTIONS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("chunk", _edit(seq=7), "seq"),
    ("chunk", _edit(seq=True), "seq"),
    ("chunk", _edit(seq="1"), "seq"),
    ("chunk", _edit(index=2), "row 2 where row 0"),
    ("chunk", _edit(index="0"), "chunk"),
    ("chunk", _edit(digest="0" * 32), "digest"),
    ("chunk", _edit(digest=None), "chunk"),
    ("chunk", _edit(row=5), "digest"),
    ("chunk", _edit(record_type=5), "record_type"),
    ("chunk", _edit(record_type="header"), "header"),
    ("tool_result", _edit(index=None), "tool_result"),
    ("tool_result", _edit(payload=[1]), "tool_result"),
    ("tool_result", _edit(index=-1), "tool_result"),
    ("tool_result", _edit(index=2), "two results"),
    ("trailer", _edit(final_chunk_count=4), "counts 4 rows"),
    ("trailer", _edit(final_chunk_count=None), "rows"),
    ("trailer", _edit(record_count=1), "records"),
    ("trailer", _edit(digest="0" * 32), "digest"),
    ("header", _edit(id="../../etc/passwd"), "id is not a UUID"),
    ("header", _edit(id=None), "id is not a UUID"),
    ("header", _edit(created_at="yesterday"), "created_at"),
    ("header", _edit(created_at=5), "created_at"),
    ("header", _edit(epoch="x" * 16), "epoch"),
    ("header", _edit(parent_session_ids=["x"]), "parent_session_ids"),
    ("header", _edit(parent_session_ids="x"), "parent_session_ids"),
    ("header", _edit(lineage_extras=[["a"]]), "lineage_extras"),
    ("header", _edit(lineage_extras=[[1, 2]]), "lineage_extras"),
    ("header", _edit(lineage_operator=1), "lineage_operator"),
    ("header", _edit(sandbox_spec=[]), "sandbox_spec"),
    ("header", _edit(sandbox_spec={"timeout_seconds": 1e300}), "seconds"),
    ("header", _edit(sandbox_spec={"timeout_seconds": "1"}), "seconds"),
    ("header", _edit(sandbox_spec={"env": {"a": 1}}), "env"),
    ("header", _edit(sandbox_spec={"image": 1}), "image"),
    ("header", _edit(sandbox_spec={"entrypoint": [1]}), "entrypoint"),
    ("header", _edit(sandbox_backend={}), "sandbox_backend"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "edit", "reason"), CONTRADICTIONS)
def test_a_valid_chain_does_not_make_nonsense_true(
    tmp_path: Path, kind: str, edit: Callable[[dict[str, Any]], dict[str, Any]], reason: str
) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    edited = [{k: v for k, v in r.items() if k != "seq"} for r in records(path)]
    at = [r["record_type"] for r in edited].index(kind)
    edited[at] = edit(edited[at])
    rechained(path, edited)
    with pytest.raises(DamagedLog, match=reason):
        load_session("", path=path)


def test_unknown_kinds_of_lineage_are_unknown_and_no_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    for kind in ("op_of_the_future", None, ["x"]):
        edited = records(path)
        edited[0]["lineage_kind"] = kind
        rechained(path, edited)
        assert load_session("", path=path).header.lineage_kind is LineageKind.UNKNOWN


def test_a_newer_schema_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    data = path.read_bytes().replace(b'"schema_version":2', b'"schema_version":3')
    path.write_bytes(data)
    with pytest.raises(PersistenceError, match="schema 3") as caught:
        load_session("", path=path)
    assert not isinstance(caught.value, DamagedLog)
    assert path.read_bytes() == data


def test_rows_in_another_log_are_refused_clearly(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    edited = records(path)
    edited[0]["prefix"] = {"session_id": str(uuid4()), "length": 1, "digest": "0" * 32}
    rechained(path, edited)
    with pytest.raises(PersistenceError, match="prefix"):
        load_session("", path=path)


@pytest.mark.parametrize("given", ["../../x", "", "x" * 10_000, "..", "/etc/passwd", None, 5, b"x"])
def test_ids_that_are_no_uuids_are_refused(home: Path, given: Any) -> None:
    with pytest.raises(PersistenceError, match="not a session id"):
        load_session(given)


def test_a_log_under_another_sessions_name_is_refused(home: Path) -> None:
    session = Session.from_user_message("x")
    write_sample(session_file(session.id), session)
    other = session_file(uuid4())
    other.write_bytes(session_file(session.id).read_bytes())
    with pytest.raises(DamagedLog, match=str(session.id)):
        load_session(other.stem)
    assert load_session("", path=other).header.id == session.id


@pytest.mark.parametrize("name", ["missing", "directory", "pipe", "a/b", "x" * 300])
def test_what_cannot_be_read_is_a_persistence_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "a").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PersistenceError):
        load_session("", path=tmp_path / name)


def test_a_session_without_a_log_is_a_persistence_error(home: Path) -> None:
    session_id = uuid4()
    with pytest.raises(PersistenceError, match=str(session_id)):
        load_session(session_id)


_DEEP = b"[" * 100_000
HOSTILE = [
    b"",
    b"\n",
    b"\0",
    b"\n" * 1000,
    b"null\n",
    b"[]\n",
    b"5\n",
    b'"x"\n',
    b"\xff\xfe\n",
    _DEEP + b"\n",
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"\n",
    b'{"record_type":"header","schema_version":' + b"9" * 1_000_000 + b"}\n",
    b'{"record_type":"header","schema_version":' + b"9" * 4_000 + b"}\n",
    b'{"record_type":"header","schema_version":-1}\n',
    b'{"record_type":"header","schema_version":0}\n',
    b'{"record_type":"header","schema_version":1}\n',
    b'{"record_type":"header","schema_version":1e999}\n',
    b'{"record_type":"header","schema_version":NaN}\n',
    b'{"record_type":"header","schema_version":true}\n',
    b'{"record_type":"header","schema_version":2}\n',
    b'{"record_type":"header","schema_version":2,"epoch":5}\n',
    b'{"record_type":"header","schema_version":2,"epoch":"\\u00e9\\u00e9\\u00e9\\u00e9\\u00e9\\u00e9\\u00e9\\u00e9"}\n',
    b'{"record_type":"header","schema_version":2,"schema_version":1,"epoch":"0000000000000000"}\n',
    b'{"record_type":"header","schema_version":1,"id":"\\ud800"}\n',
]


@pytest.mark.parametrize("data", HOSTILE, ids=[str(i) for i in range(len(HOSTILE))])
def test_a_hostile_first_line_is_a_persistence_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(PersistenceError) as caught:
        load_session("", path=path)
    assert len(str(caught.value)) < 2000


HOSTILE_VALUES = [
    _DEEP,
    b"[" * 200 + b"]" * 200,
    b'{"a":' * 200 + b"1" + b"}" * 200,
    b"1" * 1_000_000,
    b"1" * 5000,
    b'"\xff"',
    b"\xed\xa0\x80",
    b'"\\q"',
    b"{} {}",
    b"{},",
    b'{},"row":{}',
    b'{"content":1}}',
    b'{"content":"x"},"kind":"system"',
    b'{"a":"\x01"}',
    b"",
    b"null",
    b"[]",
]


@pytest.mark.parametrize("value", HOSTILE_VALUES, ids=[str(i) for i in range(len(HOSTILE_VALUES))])
@pytest.mark.parametrize(
    "fields",
    [
        b',"index":0,"row":{"kind":"user","payload":%b},"digest":"%%b"',
        b',"row":{"kind":"user","payload":%b},"index":0,"digest":"%%b"',
        b',"call_id":"x","index":0,"payload":%b',
        b',"extra":%b',
    ],
    ids=["chunk", "reordered chunk", "tool_result", "usage"],
)
def test_a_hostile_value_under_a_valid_hash_is_a_persistence_error_or_a_row(
    tmp_path: Path, value: bytes, fields: bytes
) -> None:
    from hashlib import blake2b

    from rath.session.persistence.format import EMPTY_DIGEST, line_body, seal

    path = tmp_path / "a.jsonl"
    with SessionWriter(Session.from_user_message("x"), path=path) as writer:
        pass
    header = writer.path.read_bytes().splitlines(keepends=True)[0]
    row = b'{"kind":"user","payload":%b}' % value
    if b"row" in fields:
        kind = "chunk"
        body = fields % value % blake2b(EMPTY_DIGEST + row, digest_size=16).hexdigest().encode()
    else:
        kind = "tool_result" if b"call_id" in fields else "usage"
        body = fields % value
    line, _ = seal(line_body(kind, 1, body), header[-19:-3])
    path.write_bytes(header + line)
    assert verdict_of(path) in ("open", "refused: damaged")


def test_numbers_that_json_can_hold_come_back_from_a_crashed_round(tmp_path: Path) -> None:
    """Also numbers that msgspec does not take, beside text that it does not take either."""
    path = tmp_path / "a.jsonl"
    write_sample(path)
    header = records(path)[0]
    for payload in ({"n": 2**70}, {"n": 2**70, "s": "\ud800"}, {"x": 1e300}):
        rechained(path, [header, {"record_type": "tool_result", "call_id": "a", "index": 0, "payload": payload}])
        loaded = load_session("", path=path)
        assert [row.payload for row in loaded.chunk_table.rows] == [payload]


def test_rows_are_checked_down_to_their_bytes() -> None:
    from rath.session.persistence.format import BadLine

    for row in (*rows(), ChunkRow(ChunkKind.SYSTEM, {})):
        assert row_from_bytes(row.encoded) == row
        assert row_from_bytes(row.encoded).encoded == row.encoded
        for bad in (row.encoded[:-1], row.encoded[1:], row.encoded + b" ", b" " + row.encoded, b"", row.encoded[:9]):
            with pytest.raises(BadLine):
                row_from_bytes(bad)


@pytest.mark.slow
def test_a_line_too_long_is_refused_without_loading_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    lines = path.read_bytes().splitlines(keepends=True)
    with path.open("wb") as file:
        file.write(b"".join(lines[:-1]))
        offset = file.tell()
        file.truncate(offset + (3 << 30))  # sparse: takes no disk
        file.seek(0, os.SEEK_END)
        file.write(lines[-1])
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({MAX_LINE_BYTES * 3}, resource.RLIM_INFINITY))\n"
        "from rath.errors import DamagedLog\n"
        "from rath.session.persistence import load_session\n"
        "try:\n    load_session('', path=sys.argv[1])\n"
        "except DamagedLog as error:\n    print(error.reason, error.offset)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.stdout == f"a line is longer than {MAX_LINE_BYTES:,} bytes {offset}\n", done.stderr
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


@pytest.mark.slow
def test_a_log_that_cannot_be_decoded_in_one_block_loads(tmp_path: Path) -> None:
    big = [user_text_chunk("x" * 3_000_000), user_text_chunk("y"), user_text_chunk("z" * 1_048_576), user_text_chunk("")]
    with SessionWriter(Session.from_user_message("x"), path=tmp_path / "a.jsonl") as writer:
        for index, row in enumerate(big):
            writer.write_chunk(index, row)
    loaded = load_session("", path=writer.path)
    assert loaded.closed
    assert loaded.chunk_table.rows == tuple(big)


def test_the_id_in_a_path_is_always_the_canonical_one(home: Path) -> None:
    session_id = UUID(int=5)
    for given in (str(session_id), session_id.urn, session_id.hex, f"{{{session_id}}}"):
        assert session_file(given) == home / "sessions" / f"{session_id}.jsonl"


def test_an_interrupted_run_keeps_its_records(tmp_path: Path) -> None:
    log = open_run_log(Session.from_user_message("go"), path=tmp_path / "a.jsonl")
    run_until_results(log)
    log.abandon()
    loaded = load_session("", path=log.path)
    assert loaded.chunk_table.rows == tuple(rows()[:4])
    assert {r["call_id"] for r in loaded.records if r["record_type"] == "tool_intent"} == {"a", "b"}


def test_an_error_at_closing_a_file_that_was_read_is_one_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(PersistenceError, match="cannot read the session log .*a.jsonl"), open_log(tmp_path / "a.jsonl") as file:
        os.close(file.fileno())
