"""Verdicts on single logs, and on files that somebody made to hurt."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from rath.errors import PersistenceError, UsageTypeError, UsageValueError
from rath.session.persistence import Verdict, load_session, session_file, verify
from rath.session.persistence.format import seal
from rath.session.persistence.runlog import open_run_log
from rath.session.session import Session
from rath.testing.pace import within
from tests.persistence.samples import rechained, records, run_until_results, write_sample


def test_a_verdict_says_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    session = write_sample(path)
    size = path.stat().st_size
    assert verify(path) == Verdict(
        verdict="complete",
        reason=None,
        line=None,
        offset=None,
        records=10,
        rows=5,
        whole_bytes=size,
        records_after=0,
        schema=2,
        session_id=session.id,
        size_bytes=size,
        path=path,
    )
    assert str(verify(path)) == "complete"
    with pytest.raises(dataclasses.FrozenInstanceError):
        verify(path).rows = 0  # type: ignore[misc]


def test_a_session_is_found_by_its_id_as_text_or_uuid_and_a_file_by_its_path(tmp_path: Path) -> None:
    session = Session.create("user", "go")
    write_sample(session_file(session.id), session)
    for name in (session.id, str(session.id), session_file(session.id), str(session_file(session.id))):
        assert verify(name).session_id == session.id


def test_a_log_under_another_sessions_name_is_damaged_by_id_and_whole_by_path() -> None:
    other = uuid4()
    session = write_sample(session_file(other))
    found = verify(other)
    assert (found.verdict, found.line, found.rows) == ("damaged", 1, 0)
    assert str(session.id) in str(found)
    assert verify(session_file(other)).verdict == "complete"


def test_a_log_that_is_being_written_says_by_whom(tmp_path: Path) -> None:
    log = open_run_log(Session.create("user", "go"), path=tmp_path / "a.jsonl")
    run_until_results(log)
    found = verify(log.path)
    assert (found.verdict, found.writer_alive, found.rows) == ("open", True, 4)
    assert str(os.getpid()) in str(found.writer)
    log.abandon()
    assert not verify(log.path).writer_alive


def test_a_cut_line_is_torn_and_a_changed_one_damaged_and_both_say_where(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    path.write_bytes(data[:-5])
    torn = verify(path)
    assert (torn.verdict, torn.line, torn.offset) == ("torn", 10, len(data) - len(lines[-1]))
    assert (torn.records, torn.rows, torn.left_out_bytes) == (9, 5, len(lines[-1]) - 5)
    path.write_bytes(b"".join(lines[:4]) + lines[4].replace(b"probe", b"robed") + b"".join(lines[5:]))
    damaged = verify(path)
    assert (damaged.verdict, damaged.line, damaged.offset) == ("damaged", 5, len(b"".join(lines[:4])))
    assert (damaged.records, damaged.rows, damaged.records_after) == (4, 2, 5)
    assert "line 5" in str(damaged)


def test_nul_bytes_at_the_end_are_torn_and_an_empty_file_has_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    path.write_bytes(path.read_bytes()[:-40] + b"\0" * 40 + b"\n")
    assert (verify(path).verdict, verify(path).rows) == ("torn", 5)
    path.write_bytes(b"")
    empty = verify(path)
    assert (empty.verdict, empty.reason, empty.records, empty.rows, empty.schema) == ("torn", "no whole header", 0, 0, None)


def test_two_writers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    lines = path.read_bytes().splitlines(keepends=True)
    second, _ = seal(b'{"record_type":"usage","seq":6,"model":"m"', records(path)[5]["h"].encode())
    path.write_bytes(b"".join(lines[:8]) + second + b"".join(lines[8:]))
    found = verify(path)
    assert (found.verdict, found.line, found.records) == ("damaged", 9, 8)
    assert str(found.reason).startswith("two writers")


def test_a_newer_schema_a_missing_file_and_a_directory_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    rechained(path, [records(path)[0] | {"schema_version": 3}])
    for what, why in ((path, "newer"), (tmp_path / "none", "No such file"), (tmp_path, "not a regular file"), (uuid4(), "no log")):
        with pytest.raises(PersistenceError, match=why):
            verify(what)
    with pytest.raises(UsageValueError):
        verify("")
    with pytest.raises(UsageTypeError):
        verify(7)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["../../x", "..", "6a1f8f0e-8d5b-4c0e-9d53-0a5d2c9f5a11/../x"])
def test_an_id_that_is_a_way_out_of_the_directory_leads_nowhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PersistenceError):
        verify(name)
    with pytest.raises(PersistenceError, match="not a session id"):
        load_session(name)
    path = tmp_path / "a.jsonl"
    write_sample(path)
    rechained(path, [records(path)[0] | {"id": name}])
    assert (verify(path).verdict, verify(path).reason) == ("damaged", "id is not a UUID")


WRONG: list[Any] = [None, True, -1, 10**30, 1.5, "", "\ud800", [[]], {"a": [1]}]


@pytest.mark.slow
def test_no_field_of_any_record_can_have_a_type_that_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    whole = records(path)
    seen = set()
    for place, record in enumerate(whole):
        for name in record.keys() - {"h", "seq", "record_type"}:
            for value in WRONG if name != "epoch" else [value for value in WRONG if value != "\ud800"]:
                edited = [*whole[:place], record | {name: value}, *whole[place + 1 :]]
                rechained(path, edited)
                try:
                    seen.add(verify(path).verdict)
                except PersistenceError as error:
                    assert name in ("schema_version", "prefix"), error
    assert {"complete", "damaged"} <= seen <= {"complete", "damaged"}


# -- files that somebody made to hurt -----------------------------------------------------------------------------------

_CHILD = """
import json, resource, sys, time
from rath.session.persistence import verify
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
found = verify(sys.argv[1])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([found.verdict, found.reason, found.rows, (after - before) / 1024, time.perf_counter() - start]))
"""


def in_a_child(path: Path) -> tuple[str, str, int, float, float]:
    """Verdict, reason, rows; how many MiB it took, and how many seconds."""
    done = subprocess.run([sys.executable, "-c", _CHILD, str(path)], capture_output=True, text=True, timeout=55, check=True)
    verdict, reason, rows, mib, seconds = json.loads(done.stdout)
    return verdict, reason, rows, mib, seconds


def header_and(path: Path, *bodies: bytes) -> None:
    """A log of a header and these records, sealed; ``%d`` in one becomes its ``seq``."""
    write_sample(path)
    header = path.read_bytes().splitlines(keepends=True)[0]
    h = json.loads(header)["h"].encode()
    with path.open("wb") as file:
        file.write(header)
        for seq, body in enumerate(bodies, 1):
            line, h = seal(body.replace(b"%d", b"%d" % seq, 1), h)
            file.write(line)


HUGE = 8_000_000


def record_with(kind: str, payload: bytes) -> bytes:
    """A record of a row with this payload, as it should be in all else."""
    if kind == "tool_result":
        return b'{"record_type":"tool_result","seq":%d,"call_id":"a","index":0,"payload":' + payload
    row = b'{"kind":"user","payload":' + payload + b"}"
    digest = hashlib.blake2b(bytes(16) + row, digest_size=16).hexdigest().encode()
    return b'{"record_type":"chunk","seq":%d,"index":0,"row":' + row + b',"digest":"' + digest + b'"'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b'{"a":' + b"[" * HUGE + b"]" * HUGE + b"}", "brackets and commas"),
        (b'{"a":' + b"[" * 400_000 + b"]" * 400_000 + b"}", "nested too deep"),
        (b'{"n":' + b"7" * HUGE + b"}", "not JSON"),
    ],
    ids=["brackets", "deep", "digits"],
)
@pytest.mark.parametrize("kind", ["chunk", "tool_result"])
def test_what_would_exhaust_a_parser_is_damaged_and_cheap(kind: str, payload: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    header_and(path, record_with(kind, payload))
    start = time.perf_counter()
    found = verify(path)
    assert (found.verdict, found.records, found.line) == ("damaged", 1, 2)
    assert reason in str(found.reason)
    assert time.perf_counter() - start < within(5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chunk", "tool_result"])
def test_a_number_with_a_long_exponent_is_a_number(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    header_and(path, record_with(kind, b'{"n":1e' + b"9" * HUGE + b"}"))
    start = time.perf_counter()
    assert (verify(path).verdict, verify(path).rows) == ("open", 1)
    assert time.perf_counter() - start < within(5)


def test_of_a_key_that_is_there_twice_the_last_counts_and_costs_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    big = b'{"record_type":"tool_result","seq":%d,"index":0,"payload":{"x":"' + b"y" * 4_000_000 + b'"},"payload":{}'
    small = b'{"record_type":"tool_result","seq":%d,"index":0,"payload":{}'
    header_and(path, big, *[small] * 3000)
    start = time.perf_counter()
    found = verify(path)
    assert time.perf_counter() - start < within(4)  # reading the big one again for each small one would take minutes
    assert (found.verdict, found.records) == ("open", 3002)


@pytest.mark.slow
def test_a_line_of_a_gigabyte_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    with path.open("r+b") as file:
        file.truncate(1 << 30)
    verdict, reason, rows, mib, seconds = in_a_child(path)
    assert (verdict, rows) == ("damaged", 5)
    assert "longer than" in reason
    assert mib < 700
    assert seconds < within(20)


@pytest.mark.slow
def test_a_log_needs_the_memory_of_its_longest_line_not_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = b'"' + b"x" * 100_000 + b'"'
    header_and(
        path,
        *(
            b'{"record_type":"tool_result","seq":%d,"index":' + b"%d" % i + b',"payload":{"content":' + text + b"}"
            for i in range(1000)
        ),
    )
    assert path.stat().st_size > 100_000_000
    verdict, _, rows, mib, _ = in_a_child(path)
    assert (verdict, rows) == ("open", 1000)
    assert mib < 40


@pytest.mark.slow
def test_results_that_wait_for_their_rows_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    header_and(
        path,
        *(b'{"record_type":"tool_result","seq":%d,"index":' + b"%d" % i + b',"payload":{}' for i in range(1, 300_000)),
    )
    verdict, reason, rows, mib, _ = in_a_child(path)
    assert (verdict, rows) == ("damaged", 0)
    assert "262,144 results" in reason
    assert mib < 120
