"""Reading logs whose first rows stand in others, whatever became of those."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from rath.errors import DamagedLog, PersistenceError
from rath.session import Session, continue_session_loop, load_session, resume_session
from rath.session.chunk import ChunkTable, user_text_chunk
from rath.session.persistence import export_session, open_dir, salvage, verify
from rath.session.persistence.edges import read_edges
from rath.session.persistence.reader import scan_log
from rath.session.persistence.runlog import open_run_log
from rath.testing import ScriptedClient
from rath.testing.pace import within
from tests.persistence.samples import (
    OK,
    USAGE,
    appended,
    assistant,
    finished,
    rechained,
    records,
    result,
    rows,
    run_until_results,
    started,
    write_sample,
)

Edit = Callable[[dict[str, Any]], None]


def write_log(directory: Path, seed: ChunkTable, *texts: str, close: bool = True) -> tuple[UUID, ChunkTable]:
    """A log that begins with ``seed``, and its rows."""
    session = Session.from_user_message("x")
    log = open_run_log(session, path=directory / f"{session.id}.jsonl", durability="process", seed=seed)
    table = seed
    for text in texts:
        row = user_text_chunk(text)
        log.append_row(len(table), row)
        table = table.extend(row)
    if close:
        log.close(usage=USAGE, lineage_extras=(), outcome={"status": "completed"}, table=table)
    else:
        log.abandon()
    return session.id, table


def write_round(directory: Path, seed: ChunkTable, *, close: bool) -> tuple[UUID, ChunkTable]:
    """A log of a round with two results, behind ``seed``."""
    session, first = Session.from_user_message("x"), len(seed)
    log = open_run_log(session, path=directory / f"{session.id}.jsonl", durability="process", seed=seed)
    log.on_event(appended(first, assistant("a", "b")))
    log.on_event(started("a"))
    log.on_event(started("b"))
    log.on_event(finished("b", first + 2))
    log.on_event(finished("a", first + 1))
    table = seed.extend(assistant("a", "b"), result("a"), result("b"))
    if close:
        for index in (first + 1, first + 2):
            log.on_event(appended(index, table[index]))
        log.on_event(appended(first + 3, assistant(text="done")))
        table = table.extend(assistant(text="done"))
        log.close(usage=USAGE, lineage_extras=(), outcome={"status": "completed"}, table=table)
    else:
        log.abandon()
    return session.id, table


@pytest.fixture
def logs(tmp_path: Path) -> tuple[Path, Path, ChunkTable]:
    """A log of three rows, the log of a round that begins with them, and all its rows."""
    parent, table = write_log(tmp_path, ChunkTable(), "a", "b", "c")
    child, table = write_round(tmp_path, table, close=True)
    assert records(tmp_path / f"{child}.jsonl")[0]["prefix"] == {
        "session_id": str(parent), "length": 3, "digest": ChunkTable(table[:3]).digest.hex(),
    }  # fmt: skip
    return tmp_path / f"{parent}.jsonl", tmp_path / f"{child}.jsonl", table


def edit_header(path: Path, change: Edit) -> None:
    """Write ``path`` anew with another header and good hashes."""
    edited = records(path)
    change(edited[0])
    rechained(path, edited)


def set_prefix(path: Path, prefix: Any) -> None:
    def change(header: dict[str, Any]) -> None:
        header["prefix"] = prefix

    edit_header(path, change)


def check_damaged(path: Path, reason: str) -> None:
    """Every way of reading it says so, and none of them anything else."""
    found = verify(path)
    assert (found.verdict, found.line, found.offset) == ("damaged", 1, 0)
    assert str(found.reason).startswith("prefix: ")
    assert reason in str(found.reason)
    for read in (lambda: load_session("", path=path), lambda: resume_session(path)):
        with pytest.raises(DamagedLog, match="prefix: ") as caught:
            read()
        assert caught.value.verdict == "damaged"
        assert str(found.reason).startswith(caught.value.reason)
    with pytest.raises(PersistenceError, match="prefix: "):
        export_session(path, path.with_name("copy"))
    assert not path.with_name("copy").exists()


# -- what is whole --------------------------------------------------------------------------------------------------------


def test_a_shared_log_reads_like_a_whole_one(logs: tuple[Path, Path, ChunkTable]) -> None:
    _, child, table = logs
    loaded = load_session("", path=child)
    assert (loaded.verdict, loaded.chunk_table, loaded.chunk_table.digest) == ("complete", table, table.digest)
    found = verify(child)
    assert (found.verdict, found.rows, found.records) == ("complete", 7, len(records(child)))
    assert read_edges(child).rows == 7
    assert resume_session(child).digest == table.digest
    (entry,) = [entry for entry in open_dir(child.parent).where(text="ON IT") if entry.path == child]
    assert entry.rows == 7
    assert child in {entry.path for entry in open_dir(child.parent).where(text="b")}  # a row of the other log
    assert child not in {entry.path for entry in open_dir(child.parent).where(text="nowhere")}


def test_what_changes_behind_the_shared_rows_is_the_other_logs_own_affair(logs: tuple[Path, Path, ChunkTable]) -> None:
    parent, child, table = logs
    whole = parent.read_bytes()
    end = len(b"".join(whole.splitlines(keepends=True)[:4]))
    for changed in (whole[:end], whole[: end + 9], whole[:end] + b"\0" * 99 + b"\n", whole + whole, whole[:end] + b"x\n" * 99):
        parent.write_bytes(changed)
        assert verify(child).verdict == "complete"
        assert load_session("", path=child).chunk_table == table


def test_a_log_that_stopped_is_repaired_and_gone_on_with_in_its_own_rows_only(tmp_path: Path) -> None:
    parent, table = write_log(tmp_path, ChunkTable(), "a", "b", "c")
    child, table = write_round(tmp_path, table, close=False)
    path, before = tmp_path / f"{child}.jsonl", (tmp_path / f"{parent}.jsonl").read_bytes()
    assert (load_session("", path=path).verdict, list(load_session("", path=path).chunk_table)) == ("open", list(table))
    assert (verify(path).verdict, verify(path).rows) == ("open", 6)
    with path.open("ab") as file:
        file.write(b'{"record_type":"ch')
    session = resume_session(path)
    assert session.chunk_table == table
    done = continue_session_loop(path, agent_provider=ScriptedClient(["done"]).as_provider()).synchronize()
    assert list(done.chunk_table) == [*table, done.chunk_table[-1]]
    assert done.chunk_table[-1].text == "done"
    assert load_session("", path=path).chunk_table.digest == done.digest
    assert records(path)[-1]["final_chunk_count"] == 7
    assert (tmp_path / f"{parent}.jsonl").read_bytes() == before


def test_a_parents_results_are_rows_as_soon_as_something_counts_them(tmp_path: Path) -> None:
    session = Session.from_user_message("x")
    log = open_run_log(session, path=tmp_path / f"{session.id}.jsonl", durability="process")
    run_until_results(log)
    loaded = load_session("", path=log.path).chunk_table
    assert (len(loaded), loaded.logged and loaded.logged.rows) == (4, 2)  # rows 2 and 3 could still become others
    child, table = write_log(tmp_path, loaded, "more")
    assert load_session("", path=tmp_path / f"{child}.jsonl").header.prefix.length == 2  # type: ignore[union-attr]
    # A child that another program wrote may build on them.
    set_prefix(tmp_path / f"{child}.jsonl", {"session_id": str(session.id), "length": 4, "digest": loaded.digest.hex()})
    edited = [record for record in records(tmp_path / f"{child}.jsonl") if record.get("index", 9) > 3]
    for record in edited:
        del record["seq"]
    edited[-1]["record_count"] = len(edited)
    rechained(tmp_path / f"{child}.jsonl", edited)
    assert load_session("", path=tmp_path / f"{child}.jsonl").chunk_table == table
    for index, row in list(enumerate(rows()))[2:]:
        log.on_event(appended(index, row))
    log.close(usage=None, lineage_extras=(), outcome={})
    assert load_session("", path=tmp_path / f"{child}.jsonl").chunk_table.digest == table.digest


def test_a_prefix_may_end_inside_the_prefix_of_the_other_log(logs: tuple[Path, Path, ChunkTable]) -> None:
    parent, child, table = logs
    middle, third = child.stem, write_log(child.parent, ChunkTable(), "x")[0]
    path = child.with_name(f"{third}.jsonl")
    for length in (1, 2, 3, 4, 5, 6, 7):
        digest = ChunkTable(table[:length]).digest.hex()
        header = records(path)[0] | {"prefix": {"session_id": middle, "length": length, "digest": digest}}
        rechained(path, [header])
        loaded = load_session("", path=path).chunk_table
        assert loaded.rows == table[:length]
        assert loaded.logged is not None
        assert loaded.logged.path == (parent if length <= 3 else child)
        assert (verify(path).verdict, verify(path).rows) == ("open", length)


@pytest.mark.slow
def test_a_chain_of_three_thousand_logs_loads(tmp_path: Path) -> None:
    table = ChunkTable((user_text_chunk("row 0"),))
    parent, header = write_log(tmp_path, table)[0], {}
    header = records(tmp_path / f"{parent}.jsonl")[0]
    for number in range(1, 3000):
        prefix = {"session_id": str(parent), "length": len(table), "digest": table.digest.hex()}
        table = table.extend(user_text_chunk(f"row {number}"))
        parent = UUID(int=number)
        chunk = {"record_type": "chunk", "index": number, "row": {"kind": "user", "payload": table[-1].payload}}
        path = tmp_path / f"{parent}.jsonl"
        rechained(path, [header | {"id": str(parent), "prefix": prefix}, chunk | {"digest": table.digest.hex()}])
    loaded = load_session("", path=path)
    assert (len(loaded.chunk_table), loaded.chunk_table.digest) == (3000, table.digest)
    found = verify(path)
    assert (found.verdict, found.rows) == ("open", 3000)
    assert export_session(path, tmp_path / "flat").rows == 3000
    assert sys.getrecursionlimit() <= 3000
    # The log that all begin in goes: every one is damaged, and says so as quickly.
    next(p for p in tmp_path.glob("*.jsonl") if records(p)[0]["prefix"] is None).unlink()
    check_damaged(path, "is not there")


# -- what is not ----------------------------------------------------------------------------------------------------------


def test_a_parent_that_is_not_what_it_was_is_found(logs: tuple[Path, Path, ChunkTable]) -> None:
    parent, child, _ = logs
    whole = parent.read_bytes()
    lines = whole.splitlines(keepends=True)
    for changed, reason in (
        (whole[: len(b"".join(lines[:4])) - 1], "has only 2 of the 3 rows"),
        (b"".join(lines[:3]), "has only 2 of the 3 rows"),
        (lines[0], "has only 0 of the 3 rows"),
        (lines[0][:-1], "has no whole header"),
        (b"", "has no whole header"),
        (b"{}\n", "is no header"),
        (whole.replace(b'"b"', b'"B"'), "line 3: "),
        (child.read_bytes(), "is of session "),
        (b"x" * (2 << 20), "has no whole header"),
        (lines[0].replace(b'"schema_version":2', b'"schema_version":3'), "schema 3"),
        (lines[0].replace(b'"schema_version":2', b'"schema_version":1'), "schema 1"),
    ):
        parent.write_bytes(changed)
        check_damaged(child, reason)
    other, _ = write_log(parent.parent, ChunkTable(), "a", "b", "C")
    edited = records(parent.with_name(f"{other}.jsonl"))
    rechained(parent, [edited[0] | {"id": parent.stem}, *edited[1:]])
    check_damaged(child, "are not those that were meant")
    parent.unlink()
    check_damaged(child, "is not there")
    parent.mkdir()
    check_damaged(child, "not a regular file")
    parent.rmdir()
    os.mkfifo(parent)
    check_damaged(child, "not a regular file")
    parent.unlink()
    parent.symlink_to("/etc/passwd")
    check_damaged(child, parent.name)
    parent.unlink()
    parent.write_bytes(whole)
    assert verify(child).verdict == "complete"


def test_every_changed_bit_of_the_shared_rows_is_found(logs: tuple[Path, Path, ChunkTable]) -> None:
    parent, child, _ = logs
    data = bytearray(parent.read_bytes())
    shared = len(b"".join(bytes(data).splitlines(keepends=True)[:4]))
    for bit in range(0, shared * 8, 53):
        data[bit >> 3] ^= 1 << (bit & 7)
        parent.write_bytes(data)
        found = verify(child)
        assert (found.verdict, str(found.reason)[:8]) == ("damaged", "prefix: "), bit
        data[bit >> 3] ^= 1 << (bit & 7)


def test_a_log_that_would_begin_in_itself_is_damaged(logs: tuple[Path, Path, ChunkTable]) -> None:
    parent, child, table = logs
    own = {"session_id": child.stem, "length": 3, "digest": ChunkTable(table[:3]).digest.hex()}
    set_prefix(parent, own)
    check_damaged(child, "in itself")
    check_damaged(parent, "in itself")
    set_prefix(child, own)
    check_damaged(child, "in itself")
    set_prefix(parent, own | {"session_id": parent.stem})
    check_damaged(parent, "in itself")


GOOD = {"session_id": str(UUID(int=5)), "length": 1, "digest": "0" * 32}


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        (GOOD, "is not there"),
        (GOOD | {"length": 10**18}, "length"),
        (GOOD | {"length": 0}, "length"),
        (GOOD | {"length": -1}, "length"),
        (GOOD | {"length": True}, "length"),
        (GOOD | {"length": 1.0}, "length"),
        (GOOD | {"length": "1"}, "length"),
        (GOOD | {"length": None}, "length"),
        (GOOD | {"length": 10**4000}, "length"),
        (GOOD | {"session_id": "../../x"}, "session_id"),
        (GOOD | {"session_id": str(UUID(int=5)).replace("-", "")}, "session_id"),
        (GOOD | {"session_id": "{" + str(UUID(int=5)) + "}"}, "session_id"),
        (GOOD | {"session_id": str(UUID(int=10)).upper()}, "session_id"),
        (GOOD | {"session_id": str(UUID(int=5)) + "\n"}, "session_id"),
        (GOOD | {"session_id": 5}, "session_id"),
        (GOOD | {"digest": "0" * 31}, "digest"),
        (GOOD | {"digest": "G" * 32}, "digest"),
        (GOOD | {"digest": 0}, "digest"),
        ({}, "session_id"),
        ([], "not an object"),
        ("x", "not an object"),
        (1, "not an object"),
        (False, "not an object"),
    ],
)
def test_a_prefix_that_is_none_is_damage(logs: tuple[Path, Path, ChunkTable], prefix: Any, reason: str) -> None:
    set_prefix(logs[1], prefix)
    check_damaged(logs[1], reason)


def test_a_wrong_digest_or_length_is_found(logs: tuple[Path, Path, ChunkTable]) -> None:
    parent, child, table = logs
    good = {"session_id": parent.stem, "length": 3, "digest": ChunkTable(table[:3]).digest.hex()}
    for changed in ({"digest": "0" * 32}, {"length": 2}, {"length": 1}, {"length": 2, "digest": ChunkTable(table[:3]).digest.hex()}):
        set_prefix(child, good | changed)
        check_damaged(child, "are not those that were meant")
    for length in (4, 5, 2**53):
        set_prefix(child, good | {"length": length})
        check_damaged(child, f"has only 3 of the {length:,} rows")


def test_an_older_log_has_no_prefix(tmp_path: Path) -> None:
    header = {"record_type": "header", "schema_version": 1, "id": str(uuid4()), "created_at": "2025-03-01T12:00:00+00:00"}
    (tmp_path / "a.jsonl").write_text(json.dumps(header | {"prefix": GOOD}) + "\n")
    check_damaged(tmp_path / "a.jsonl", "schema 1")


@pytest.mark.slow
def test_endless_lines_and_large_parents_cost_bounded_memory(logs: tuple[Path, Path, ChunkTable]) -> None:
    parent, child, _ = logs
    header = parent.read_bytes().index(b"\n") + 1
    with parent.open("r+b") as file:
        file.truncate(8 << 30)  # NUL bytes behind the trailer, in a file with a hole
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert verify(child).verdict == "complete"
    with parent.open("r+b") as file:
        file.truncate(header)
        file.truncate(300 << 20)
    check_damaged(child, "longer than")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 << 10  # KiB: one longest line, twice
    assert time.process_time() - began < within(10)


def test_every_cut_and_changed_bit_of_a_shared_log_is_found_as_in_a_whole_one(logs: tuple[Path, Path, ChunkTable]) -> None:
    _, child, table = logs
    data = child.read_bytes()
    ends, at, lines = {0: 0}, 0, data.splitlines(keepends=True)
    kinds = [record["record_type"] for record in records(child)]
    assert kinds == ["header", "chunk", "tool_intent", "tool_intent", "tool_result", "tool_result", "chunk", "trailer"]
    known = [3, 4, 4, 4, 4, 6, 7, 7]  # how many rows there are behind each line
    for line, count in zip(lines, known, strict=True):
        at += len(line)
        ends[at] = count

    def whole(size: int) -> int:
        return ends[max(end for end in ends if end <= size)]

    for size in [*range(0, len(data), 17), *ends, len(data) - 1]:
        child.write_bytes(data[:size])
        found = verify(child)
        assert found.rows == whole(size), size
        assert found.verdict == ("complete" if size == len(data) else "open" if size in ends and size else "torn"), size
        if size >= len(lines[0]):
            assert list(load_session("", path=child).chunk_table) == list(table[: found.rows])
    changed = bytearray(data)
    for bit in range(0, len(data) * 8, 101):
        changed[bit >> 3] ^= 1 << (bit & 7)
        child.write_bytes(changed)
        try:
            found = verify(child)
        except PersistenceError as error:  # the header claims another version
            assert "newer" in str(error)
            continue
        finally:
            changed[bit >> 3] ^= 1 << (bit & 7)
        assert found.verdict in ("torn", "damaged"), bit
        assert found.rows == whole(bit >> 3), bit


# -- salvage and export ---------------------------------------------------------------------------------------------------


def test_an_export_needs_no_other_log(logs: tuple[Path, Path, ChunkTable], tmp_path: Path) -> None:
    parent, child, table = logs
    before = records(child)
    copy = tmp_path / "copy" / child.name
    copy.parent.mkdir()
    assert export_session(child, copy).verdict == "complete"
    parent.unlink()
    loaded = load_session("", path=copy)
    assert (loaded.verdict, loaded.chunk_table, loaded.chunk_table.digest) == ("complete", table, table.digest)
    assert (loaded.header.prefix, loaded.header.id, loaded.cumulative_usage) == (None, UUID(child.stem), USAGE)
    copied = records(copy)
    assert [record["record_type"] for record in copied] == ["header", *["chunk"] * 3, *(r["record_type"] for r in before[1:])]
    assert [{**r, "seq": 0, "h": ""} for r in copied[4:-1]] == [{**r, "seq": 0, "h": ""} for r in before[1:-1]]
    assert copied[-1]["outcome"] == {"status": "completed"}
    assert copied[0]["writer"] == before[0]["writer"]


@pytest.mark.parametrize("keep", [6, -1])
def test_a_torn_or_open_log_is_exported_and_salvaged_with_the_rows_before_it(
    logs: tuple[Path, Path, ChunkTable], keep: int
) -> None:
    _, child, table = logs
    child.write_bytes(b"".join(child.read_bytes().splitlines(keepends=True)[:keep]) + b'{"record_ty')
    known = len(load_session("", path=child).chunk_table)
    assert known == (6 if keep == 6 else 7)
    out, copy = child.with_name("out"), child.with_name("copy")
    assert salvage(child, out).result.verdict == "complete"
    assert export_session(child, copy).verdict == "open"
    for path in (out, copy):
        assert list(load_session("", path=path).chunk_table) == list(table[:known])
        assert records(path)[0]["prefix"] is None


def test_salvage_keeps_a_logs_own_rows_when_its_parent_is_gone(logs: tuple[Path, Path, ChunkTable]) -> None:
    parent, child, table = logs
    parent.unlink()
    before = child.read_bytes()
    found = verify(child)
    assert (found.rows, found.records, found.left_out_bytes) == (4, len(records(child)), 0)
    out = child.with_name("out")
    made = salvage(child, out)
    assert (made.missing_rows, made.source.verdict, made.result.verdict, made.result.rows) == (3, "damaged", "complete", 4)
    loaded = load_session("", path=out)
    assert list(loaded.chunk_table) == list(table[3:])
    assert (loaded.trailer_raw or {})["outcome"]["missing_rows"] == 3
    assert (loaded.trailer_raw or {})["outcome"]["outcome"] == {"status": "completed"}
    assert [record["index"] for record in records(out) if record["record_type"] == "tool_result"] == [2, 1]
    assert child.read_bytes() == before
    lines = before.splitlines(keepends=True)
    child.write_bytes(b"".join(lines[:6]) + lines[6][:30])  # its own end is lost too
    made = salvage(child, child.with_name("again"))
    assert (made.result.rows, made.missing_rows, made.left_out_bytes) == (3, 3, 30)
    assert list(load_session("", path=child.with_name("again")).chunk_table) == list(table[3:6])


def test_a_log_of_another_programs_making_is_salvaged_and_exported_too(logs: tuple[Path, Path, ChunkTable]) -> None:
    parent, child, table = logs
    edited = [dict(reversed(record.items())) for record in records(child)]
    resume = {"record_type": "resume", "epoch": "0" * 16, "writer": {}, "repaired": {}}
    again = {**edited[-1], "seq": len(edited) + 1, "record_count": len(edited) + 2}
    rechained(child, [*edited, resume, again])
    assert verify(child).verdict == "complete"
    assert load_session("", path=child).chunk_table == table
    assert export_session(child, child.with_name("copy")).verdict == "complete"
    assert load_session("", path=child.with_name("copy")).chunk_table.digest == table.digest
    assert [record["record_type"] for record in records(child.with_name("copy"))][-3:] == ["trailer", "resume", "trailer"]
    parent.unlink()
    assert salvage(child, child.with_name("out")).missing_rows == 3
    assert list(load_session("", path=child.with_name("out")).chunk_table) == list(table[3:])


# -- rows from results -----------------------------------------------------------------------------------------------------


def test_logs_that_have_results_and_their_chunks_load_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    edited, table = records(path), ChunkTable(tuple(rows()))
    for record in edited:
        del record["seq"]
    at = next(n for n, record in enumerate(edited) if record.get("index") == 4)
    chunks = [
        {
            "record_type": "chunk",
            "index": index,
            "row": {"kind": "tool_result", "payload": table[index].payload},
            "digest": ChunkTable(table[: index + 1]).digest.hex(),
        }
        for index in (2, 3)
    ]
    for extra in (chunks, chunks[:1]):
        trailer = {**edited[-1], "record_count": len(edited) + len(extra)}
        rechained(path, [*edited[:at], *extra, *edited[at:-1], trailer])
        assert load_session("", path=path).chunk_table.digest == table.digest
        assert verify(path).verdict == "complete"


def test_a_chunk_behind_a_result_that_is_missing_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_sample(path)
    edited = [record for record in records(path) if not (record["record_type"] == "tool_result" and record["index"] == 2)]
    for record in edited:
        del record["seq"]
    rechained(path, edited)
    assert "row 4 where row 2 belongs" in str(verify(path).reason)
    with pytest.raises(DamagedLog):
        load_session("", path=path)
    assert (verify(path).rows, scan_log(path).rows) == (2, rows()[:2])  # a fault leaves the reader as it was


def test_strange_texts_in_results_keep_their_bytes(tmp_path: Path) -> None:
    texts = ["\u2028 \x85", "lone \ud800", 'x","index":9,"payload":{"a":1}', "\U0001f600", ',"h":"0123456789abcdef"}', OK]
    log = open_run_log(Session.from_user_message("x"), path=tmp_path / "a.jsonl")
    table = ChunkTable((assistant(*texts),))
    log.append_row(0, table[0])
    for index, text in enumerate(texts, 1):
        log.on_event(finished(text, index, text))
        table = table.extend(result(text, text))
        log.on_event(appended(index, table[index]))
    log.close(usage=None, lineage_extras=(), outcome={})
    assert [record["record_type"] for record in records(log.path)] == ["header", "chunk", *["tool_result"] * 6, "trailer"]
    assert load_session("", path=log.path).chunk_table.digest == table.digest
    assert (verify(log.path).verdict, verify(log.path).rows) == ("complete", 7)
