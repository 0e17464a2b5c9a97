"""A new whole log of what is whole in another, and checked copies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rath.errors import PersistenceError
from rath.session.persistence import BlobStore, export_session, load_session, salvage, session_file, verify
from rath.session.persistence.runlog import open_run_log
from rath.session.session import Session
from tests.persistence.corpus import SHAPES, make, make_legacy
from tests.persistence.samples import USAGE, rechained, records, rows, run_until_results, write_sample
from tests.persistence.shared import directory, log_at, shared_log


def cut_results() -> tuple[Path, str]:
    """A log that names a blob in a row of its own and another one in a row that stands in its parent; the other's digest."""
    store = BlobStore.of_log(directory() / "x.jsonl")
    digests = [store.put(text) for text in (b"whole", b"whole too")]
    store.put(b"of another session")
    parent = shared_log([f"see {digests[0]}"])
    return log_at(shared_log([f"see {digest}" for digest in digests], parent=parent, own=1)), digests[0]


def torn(path: Path) -> Session:
    """The sample log without the last five bytes."""
    session = write_sample(path)
    os.truncate(path, path.stat().st_size - 5)
    return session


def test_the_salvaged_log_is_complete_has_the_rows_and_says_where_it_comes_from(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    session = torn(source)
    before = source.read_bytes()
    made = salvage(source, str(out))
    assert source.read_bytes() == before
    assert (made.source.verdict, made.result.verdict) == ("torn", "complete")
    assert made.result == verify(out)
    assert made.left_out_bytes == made.source.left_out_bytes > 0
    loaded = load_session("", path=out)
    assert list(loaded.chunk_table) == rows()
    assert (loaded.header.id, loaded.cumulative_usage, loaded.closed) == (session.id, USAGE, True)
    assert loaded.trailer_raw is not None
    assert loaded.trailer_raw["outcome"] == {
        "status": "salvaged",
        "source": str(source),
        "verdict": "torn",
        "reason": "the last line was cut off",
        "line": made.source.line,
        "offset": made.source.offset,
        "left_out_bytes": made.left_out_bytes,
        "left_out_records": 0,
        "missing_rows": 0,
        "outcome": None,
    }
    old, new = records(source.with_name("out.jsonl"))[0], load_session("", path=out).header
    assert (new.epoch, new.writer and new.writer["pid"]) == (old["epoch"], os.getpid())
    assert new.epoch != load_session("", path=source).header.epoch
    assert out.stat().st_mode & 0o777 == 0o600


def test_what_follows_the_fault_of_a_damaged_log_is_left_out_and_counted(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    write_sample(source)
    source.write_bytes(source.read_bytes().replace(b'"call_id":"b"', b'"call_id":"c"', 1))
    made = salvage(source, out)
    assert (made.source.verdict, made.result.rows) == ("damaged", 2)
    assert made.left_out_records == made.source.records_after == 4
    assert list(load_session("", path=out).chunk_table) == rows()[:2]
    outcome = (load_session("", path=out).trailer_raw or {})["outcome"]
    assert (outcome["verdict"], outcome["left_out_records"]) == ("damaged", 4)


def test_results_without_their_rows_become_rows(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    log = open_run_log(Session.create("user", "go"), path=source)
    run_until_results(log)
    log.abandon()
    assert salvage(source, out).result.rows == 4
    assert [record["record_type"] for record in records(out)][-3:] == ["chunk", "chunk", "trailer"]
    assert list(load_session("", path=out).chunk_table) == rows()[:4]


def test_a_complete_log_with_a_torn_line_after_it_keeps_its_outcome(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    write_sample(source)
    with source.open("ab") as file:
        file.write(b'{"record_ty')
    salvage(source, out)
    kinds = [record["record_type"] for record in records(out)]
    assert kinds.count("trailer") == 1
    loaded = load_session("", path=out)
    assert (loaded.trailer_raw or {})["outcome"]["outcome"] == {"status": "completed"}
    assert loaded.cumulative_usage == USAGE


def test_of_a_log_that_went_on_after_its_trailer_everything_is_kept(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    write_sample(source)
    edited = [*records(source), {"record_type": "resume", "epoch": "0" * 16, "writer": {}, "repaired": {}}]
    rechained(source, edited)
    assert salvage(source, out).result.records == len(edited) + 1
    kinds = [record["record_type"] for record in records(out)]
    assert kinds[-3:] == ["trailer", "resume", "trailer"]


@pytest.mark.parametrize("shape", ["legacy", "legacy_open", "legacy_spaced"])
def test_a_log_of_schema_1_becomes_one_of_schema_2(shape: str, tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(make_legacy(shape, tmp_path) + b"{")
    made = salvage(source, out)
    assert (made.source.schema, made.result.schema, made.result.rows) == (1, 2, 4)
    assert records(out)[0]["schema_version"] == 2
    assert load_session("", path=out).chunk_table.digest == load_session("", path=source).chunk_table.digest


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_can_be_salvaged_line_by_line(shape: str, tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    data = make(shape, tmp_path)
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for end in ends[:-1]:
        source.write_bytes(data[:end])
        made = salvage(source, out)
        assert (made.result.verdict, made.result.rows) == ("complete", made.source.rows)
        out.unlink()


def test_nothing_is_overwritten_and_what_fails_leaves_nothing(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    torn(source)
    out.write_text("mine")
    for act in (salvage, export_session):
        with pytest.raises(PersistenceError, match="already"):
            act(source, out)
        with pytest.raises(PersistenceError, match="already"):
            act(source, source)
        with pytest.raises(PersistenceError, match="cannot write"):
            act(source, tmp_path / "none" / "out.jsonl")
        with pytest.raises(PersistenceError, match="cannot read"):
            act(tmp_path / "none.jsonl", tmp_path / "new.jsonl")
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PersistenceError, match="already"):
        salvage(source, link)
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "link.jsonl", "out.jsonl"]


def test_what_needs_no_salvage_or_allows_none_is_refused(tmp_path: Path) -> None:
    whole, headless, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "out.jsonl"
    write_sample(whole)
    headless.write_bytes(whole.read_bytes()[:50])
    with pytest.raises(PersistenceError, match="complete"):
        salvage(whole, out)
    with pytest.raises(PersistenceError, match="no whole header"):
        salvage(headless, out)
    log = open_run_log(Session.create("user", "go"), path=tmp_path / "c.jsonl")
    with pytest.raises(PersistenceError, match=f"being written by pid {os.getpid()}"):
        salvage(log.path, out)
    log.abandon()
    assert not out.exists()


def test_a_copy_has_the_same_bytes_and_of_an_unfinished_log_the_whole_lines(tmp_path: Path) -> None:
    session = Session.create("user", "go")
    path, out = session_file(session.id), tmp_path / "out.jsonl"
    write_sample(path, session)
    assert export_session(session.id, out).verdict == "complete"
    assert out.read_bytes() == path.read_bytes()
    os.truncate(path, path.stat().st_size - 5)
    copy = export_session(str(session.id), tmp_path / "two.jsonl")
    assert (copy.verdict, copy.rows) == ("open", 5)
    assert path.read_bytes().startswith((tmp_path / "two.jsonl").read_bytes())
    log = open_run_log(Session.create("user", "go"), path=tmp_path / "live.jsonl")
    run_until_results(log)
    assert export_session(log.path, tmp_path / "three.jsonl").rows == 4
    log.abandon()


def test_a_damaged_log_is_not_copied(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    write_sample(source)
    source.write_bytes(source.read_bytes().replace(b"probe", b"robed", 1))
    with pytest.raises(PersistenceError, match="salvage"):
        export_session(source, out)
    assert not out.exists()


# -- blobs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["export", "salvage"])
def test_a_copy_has_the_whole_texts_that_its_rows_name_those_from_other_logs_too(act: str, tmp_path: Path) -> None:
    source, digest = cut_results()
    out = tmp_path / "elsewhere" / "copy.jsonl"
    out.parent.mkdir()
    if act == "export":
        assert export_session(source, out).rows == 2
    else:
        os.truncate(source, source.stat().st_size - 5)
        made = salvage(source, out)
        assert (len(made.blobs.copied), made.blobs.damaged) == (2, ())
    copies = BlobStore.of_log(out)
    assert copies.get(digest) == b"whole"
    assert len(list(copies.directory.glob("*/*"))) == 2


@pytest.mark.parametrize("act", ["export", "salvage"])
def test_where_the_whole_texts_cannot_be_copied_there_is_no_copy(act: str, tmp_path: Path) -> None:
    source, _ = cut_results()
    out = tmp_path / "elsewhere" / "copy.jsonl"
    out.parent.mkdir()
    (out.parent / "blobs").write_text("in the way")
    if act == "salvage":
        os.truncate(source, source.stat().st_size - 5)
    with pytest.raises(PersistenceError, match="blobs"):
        (export_session if act == "export" else salvage)(source, out)
    assert [path.name for path in out.parent.iterdir()] == ["blobs"]
