"""``rath sessions`` where logs share rows and results were cut: what is shown, copied, counted and removed."""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rath.cli.sessions import local_time
from rath.session.chunk import INTERRUPTED_BODY, user_text_chunk
from rath.session.persistence import load_session, session_file, verify
from rath.session.persistence.blobs import BlobStore
from rath.session.persistence.runlog import open_run_log
from rath.session.session import Session
from tests.cli.support import CONTROL, Ran, rath_at_a_terminal
from tests.persistence.samples import appended, assistant, finished, rechained, records, result, started, used, write_sample
from tests.persistence.shared import chain, directory, log_at, shared_log

Rath = Callable[..., Ran]
WHOLE = "".join(f"line {number}\n" for number in range(1000))


def put(text: str, *, age_s: float = 0) -> str:
    store = BlobStore.of_log(directory() / "x.jsonl")
    digest = store.put(text.encode(), durable=False)
    then = time.time() - age_s
    os.utime(store.path(digest), (then, then))
    return digest


def log_with_result(body: Any) -> Path:
    """A log with one tool call and this result."""
    session = Session.create("user", "go")
    log = open_run_log(session)
    log.append_row(0, user_text_chunk("go"))
    log.on_event(appended(1, assistant("a")))
    log.on_event(started("a"))
    text = body if isinstance(body, str) else json.dumps(body)
    log.on_event(finished("a", 2, text))
    log.on_event(appended(2, result("a", text)))
    log.close(usage=None, lineage_extras=(), outcome={"status": "completed"})
    return log.path


# -- list ---------------------------------------------------------------------------------------------------------------


def test_the_list_says_how_many_rows_are_shared_how_large_a_log_is_and_how_it_ends(rath_here: Rath) -> None:
    parent, child = chain(2)
    rath_here("sessions", "pin", str(parent))
    torn = shared_log(["x"], days=5)
    os.truncate(log_at(torn), log_at(torn).stat().st_size - 5)
    lines = rath_here("sessions", "list").out.splitlines()
    found = {line.split()[0]: line.split()[4:] for line in lines}
    sizes = {session: log_at(session).stat().st_size for session in (parent, child, torn)}
    assert found["id"] == ["shared", "size", "verdict"]
    assert found[str(child)[:8]] == ["2", "1", f"{sizes[child]:,}", "B", "complete"]
    assert found[str(parent)[:8]] == ["1", f"{sizes[parent]:,}", "B", "complete", "pinned"]
    assert found[str(torn)[:8]][-1] == "torn"
    first, *_ = rath_here("sessions", "list", "--json").json
    assert (first["id"], first["verdict"], first["rows"], first["closed"]) == (str(child), "complete", 2, True)
    assert (first["shared_rows"], first["shared_with"], first["size_bytes"]) == (1, str(parent), sizes[child])
    assert (first["pinned"], first["lineage_kind"]) == (False, "op_session_loop")


def test_every_time_takes_the_same_room() -> None:
    for year in (1, 999, 2026, 9999):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", local_time(datetime(year, 12, 31, 23, 59, tzinfo=UTC)))


def test_what_is_no_log_is_listed_by_its_name(rath_here: Rath) -> None:
    (directory() / "\x1b[31mevil\nname.jsonl").write_bytes(b"hello\n")
    done = rath_here("sessions", "list")
    assert "evil" in done.out
    assert done.out.splitlines()[1].endswith("damaged")
    assert CONTROL.search(done.out.replace("\n", "")) is None
    assert len(done.out.splitlines()) == 2
    assert rath_here("sessions", "list", "--json").json[0]["id"] is None
    lines = rath_here("sessions", "verify", "--all").out.splitlines()
    assert [line.split()[0] for line in lines] == ["damaged", "line"]


@pytest.mark.slow
def test_at_a_terminal_of_80_columns_every_log_has_one_line(rath_here: Rath, tmp_path: Path) -> None:
    parent, *_ = chain(3)
    rath_here("sessions", "pin", str(parent))
    (directory() / ("漢" * 40 + ".jsonl")).write_bytes(b"x\n")
    code, said = rath_at_a_terminal(tmp_path, "sessions", "list", env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert code == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= 80


@pytest.mark.slow
def test_reading_many_logs_shows_a_bar_at_a_terminal_and_nothing_in_a_pipe(rath_here: Rath, tmp_path: Path) -> None:
    for _ in range(150):
        chain(4)
    code, said = rath_at_a_terminal(tmp_path, "sessions", "list", "-n", "1")
    assert code == 0
    assert "reading logs" in said
    assert "599 more" in said
    assert rath_here("sessions", "list", "-n", "1").err == ""


# -- show ---------------------------------------------------------------------------------------------------------------


def test_show_says_which_rows_stand_in_another_log(rath_here: Rath) -> None:
    first, second, third = chain(3)
    said = rath_here("sessions", "show", str(third)).out
    assert f"rows     3, the first 2 from session {second}" in said
    assert f"── 2 rows from session {second} ──" in said
    assert said.index("── 2 rows") < said.index("row 0") < said.index("row 1") < said.index("── rows of this log") < said.index("row 2")
    found = rath_here("sessions", "show", str(third), "--json").json
    assert found["prefix"] == {"session_id": str(second), "length": 2}
    assert len(found["rows"]) == 3
    assert rath_here("sessions", "show", str(first), "--json").json["prefix"] is None
    log_at(first).unlink()
    done = rath_here("sessions", "show", str(third))
    assert done.code == 1
    assert "prefix" in done.err


def test_show_says_what_completions_took_and_cost(rath_here: Rath) -> None:
    path = session_file(write_sample(session_file((session := Session.create("user", "go")).id), session).id)
    assert "tokens   120: 100 in, 20 out, 1 completion\n" in rath_here("sessions", "show", str(session.id)).out
    edited = records(path)
    known = {"input_usd_per_mtok": 100, "output_usd_per_mtok": 117.0, "cached_input_usd_per_mtok": None}
    for price, said in ((known, "1 completion, $0.0123\n"), (-1, "1 completion\n"), ({"input_usd_per_mtok": 1e300}, "1 completion\n")):
        for record in edited:
            if record["record_type"] == "usage":
                record["price"] = price
        rechained(path, edited)
        assert said in rath_here("sessions", "show", str(session.id)).out
    assert rath_here("sessions", "show", str(session.id), "--json").json["cost_usd"] is None


def test_an_interrupted_result_is_marked(rath_here: Rath) -> None:
    said = rath_here("sessions", "show", log_with_result(INTERRUPTED_BODY).stem).out
    assert "[2] tool probe ⚠ interrupted: no result; it may or may not have taken effect\n" in said


def test_calls_without_a_result_are_marked_at_the_end_of_a_log_that_stopped(rath_here: Rath) -> None:
    log = open_run_log(Session.create("user", "go"))
    log.append_row(0, user_text_chunk("go"))
    log.on_event(used())
    log.on_event(appended(1, assistant("a", "b")))
    log.on_event(started("a"))
    assert "… probe has no result yet" in rath_here("sessions", "show", log.path.stem).out
    log.abandon()
    said = rath_here("sessions", "show", log.path.stem).out
    assert "⚠ interrupted: probe had begun, and may or may not have taken effect\n" in said
    assert "⚠ interrupted: probe had not begun\n" in said
    assert "no trailer" in said


def test_a_log_of_schema_1_does_not_tell_whether_a_call_had_begun(rath_here: Rath) -> None:
    session_id = "6a1f8f0e-8d5b-4c0e-9d53-0a5d2c9f5a11"
    header = {"record_type": "header", "schema_version": 1, "id": session_id, "created_at": "2025-03-01T12:00:00+00:00"}
    lines: list[dict[str, Any]] = [header]
    for index, row in enumerate((user_text_chunk("go"), assistant("a"))):
        lines.append({"record_type": "chunk", "index": index, "kind": row.kind.value, "payload": row.payload})
    path = session_file(session_id)
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = rath_here("sessions", "show", session_id).out
    assert "⚠ interrupted: probe has no result, and its log does not say whether it had begun\n" in said


def test_a_result_that_was_cut_is_shown_whole_with_full(rath_here: Rath) -> None:
    digest = put(WHOLE)
    body = {"exit_code": 0, "stdout": "line 0\n… cut …\nline 999\n", "stderr": "", "whole": {"stdout": digest}}
    name = log_with_result(body).stem
    folded = rath_here("sessions", "show", name).out
    assert "stdout was cut: --full shows the whole text" in folded
    assert digest not in folded
    full = rath_here("sessions", "show", name, "--full").out
    assert "    line 500\n" in full
    assert "… cut …" not in full
    assert rath_here("sessions", "show", name, "--full", "--json").json["whole_texts"] == {digest: WHOLE}
    assert "    line 500\n" in rath_here("sessions", "tail", name, "--full").out


def test_a_whole_result_that_was_cut_is_its_text(rath_here: Rath) -> None:
    digest = put(WHOLE)
    name = log_with_result({"truncated": True, "text": "line 0\n…", "characters": len(WHOLE), "whole": digest}).stem
    folded = rath_here("sessions", "show", name).out
    assert "    line 0\n" in folded
    assert f"the result was cut, of {len(WHOLE):,} characters: --full shows the whole text" in folded
    full = rath_here("sessions", "show", name, "--full").out
    assert "✓ 1,000 lines" in full
    assert "    line 999\n" in full


def test_a_whole_text_that_is_not_there_or_damaged_is_said_to_be(rath_here: Rath) -> None:
    digest = put(WHOLE)
    name = log_with_result({"exit_code": 0, "stdout": "cut here", "whole": {"stdout": digest}}).stem
    path = BlobStore.of_log(directory() / "x.jsonl").path(digest)
    path.write_text("changed")
    said = rath_here("sessions", "show", name, "--full")
    assert said.code == 0
    assert "stdout was cut, and the whole text cannot be read" in said.out
    path.unlink()
    said = rath_here("sessions", "show", name, "--full")
    assert f"the whole text is not there: {path}" in said.out
    assert "    cut here\n" in said.out
    assert rath_here("sessions", "show", name, "--full", "--json").json["whole_texts"] == {digest: None}


@pytest.mark.parametrize("whole", ["../../etc/passwd", {"stdout": "../x"}, {"stdout": 5}, 7, [], {"": "0" * 64}, "A" * 64])
def test_a_field_that_only_looks_like_a_digest_is_shown_as_it_is(whole: Any, rath_here: Rath) -> None:
    name = log_with_result({"value": "x", "whole": whole}).stem
    for arguments in ((), ("--full",)):
        done = rath_here("sessions", "show", name, *arguments)
        assert (done.code, done.err) == (0, "")
        assert "whole=" in done.out
        assert "was cut" not in done.out


@pytest.mark.slow
def test_at_a_terminal_sentences_break_between_words_and_results_fit_on_a_line(rath_here: Rath, tmp_path: Path) -> None:
    session = Session.create("user", "go")
    log = open_run_log(session)
    log.append_row(0, user_text_chunk("several words " * 30))
    log.on_event(appended(1, assistant("a")))
    log.on_event(finished("a", 2, json.dumps({"exit_code": 0, "stdout": "漢字 wide " * 100})))
    log.abandon()
    code, said = rath_at_a_terminal(tmp_path, "sessions", "show", str(session.id), env={"COLUMNS": "80", "NO_COLOR": "1"})
    assert code == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines()
    said_lines = [line for line in lines if "several" in line]
    assert len(said_lines) == 6
    assert all(line.endswith(("several", "words")) for line in said_lines)
    wide = next(line for line in lines if "漢字" in line)
    assert sum(2 if character in "漢字" else 1 for character in wide) <= 80


# -- tail ---------------------------------------------------------------------------------------------------------------


def test_tail_reaches_into_the_log_that_has_the_rows(rath_here: Rath) -> None:
    first, _, third = chain(3)
    out = rath_here("sessions", "tail", str(third), "-n", "2", "--json").out
    assert [json.loads(line)["index"] for line in out.splitlines()] == [1, 2]
    out = rath_here("sessions", "tail", str(third), "-n", "0", "--json").out
    assert [json.loads(line)["payload"]["content"] for line in out.splitlines()] == ["row 0", "row 1", "row 2"]
    log_at(first).unlink()
    done = rath_here("sessions", "tail", str(third))
    assert (done.code, "[2] user" in done.out) == (0, True)
    assert "2 rows before these cannot be had: prefix: " in done.err


# -- export and salvage -------------------------------------------------------------------------------------------------


def test_an_export_has_every_row_and_every_whole_text(rath_here: Rath, tmp_path: Path) -> None:
    *_, last = chain(4)
    digest = put(WHOLE)
    child = shared_log(["row 0", "row 1", "row 2", "row 3", f"see {digest}"], parent=last, own=1)
    (tmp_path / "out").mkdir()
    done = rath_here("sessions", "export", str(child), "out/copy.jsonl")
    assert done.code == 0
    assert "with 1 whole text" in done.out
    copy = tmp_path / "out" / "copy.jsonl"
    found = load_session(child, path=copy)
    assert found.header.prefix is None
    assert [row.payload["content"] for row in found.chunk_table][-1] == f"see {digest}"
    assert found.chunk_table.digest == load_session(child).chunk_table.digest
    assert BlobStore.of_log(copy).get(digest) == WHOLE.encode()
    assert verify(copy).verdict == "complete"
    again = rath_here("sessions", "export", str(child), "out/two.jsonl", "--json").json
    assert (again["rows"], again["blobs"]) == (5, {"copied": 1, "damaged": []})


def test_an_export_without_a_damaged_text_is_not_a_success(rath_here: Rath, tmp_path: Path) -> None:
    digest = put(WHOLE)
    child = shared_log([digest])
    BlobStore.of_log(directory() / "x.jsonl").path(digest).write_text("changed")
    (tmp_path / "out").mkdir()
    done = rath_here("sessions", "export", str(child), "out/copy.jsonl")
    assert done.code == 1
    assert f"the whole text {digest}" in done.err
    assert verify(tmp_path / "out" / "copy.jsonl").verdict == "complete"


def test_a_salvaged_log_has_its_whole_texts(rath_here: Rath, tmp_path: Path) -> None:
    digest = put(WHOLE)
    path = log_at(shared_log([digest]))
    os.truncate(path, path.stat().st_size - 5)
    (tmp_path / "out").mkdir()
    assert "with 1 whole text" in rath_here("sessions", "salvage", path.stem, "out/copy.jsonl").out
    assert BlobStore.of_log(tmp_path / "out" / "copy.jsonl").get(digest) == WHOLE.encode()


# -- du and prune -------------------------------------------------------------------------------------------------------


def test_prune_says_what_stays_and_why(rath_here: Rath) -> None:
    first, second = chain(2, days=10)
    young = shared_log(["row 0", "row 1", "new"], parent=second, own=1)
    dry = rath_here("sessions", "prune", "--older-than", "5d", "--dry-run", "--json").json
    assert dry["removed"] == []
    assert {entry["id"]: entry["why"] for entry in dry["kept"]} == {
        str(first): f"{second} has its first rows in it",
        str(second): f"{young} has its first rows in it",
    }
    said = rath_here("sessions", "prune", "--older-than", "5d").out
    assert f"{second}  stays\n    {young} has its first rows in it\n" in said
    assert "removed 0 logs" in said
    assert "2 logs as old as that would stay" in rath_here("sessions", "du", "--older-than", "5d").out


@pytest.mark.parametrize("seeds", [[0], pytest.param(range(1, 10), marks=pytest.mark.slow)])
def test_what_du_says_is_what_prune_does(seeds: Sequence[int], rath_here: Rath) -> None:
    for seed in seeds:
        chance = random.Random(seed)
        digests = [put(f"{seed} {number}" * number, age_s=chance.choice([0, 9000])) for number in range(6)]
        known: list[tuple[Any, list[str]]] = []
        for number in range(10):
            parent, texts = chance.choice(known) if known and chance.random() < 0.7 else (None, [])
            texts = [*texts, f"{number} {chance.choice(digests)}"]
            known.append((shared_log(texts, parent=parent, own=1 if parent else None, days=chance.uniform(0, 20)), texts))
        rath_here("sessions", "pin", str(chance.choice(known)[0]))
        before = usage(rath_here)
        foretold = rath_here("sessions", "du", "--older-than", "8d", "--json").json["prune"]
        dry = rath_here("sessions", "prune", "--older-than", "8d", "--dry-run", "--json").json
        done = rath_here("sessions", "prune", "--older-than", "8d", "--json").json
        for said in (dry, done):
            assert (len(said["removed"]), said["bytes"]) == (foretold["logs"], foretold["bytes"])
            assert (said["blobs"]["removed"], said["blobs"]["bytes"]) == (foretold["blobs"], foretold["blob_bytes"])
            assert len(said["kept"]) == foretold["kept"]
        after = usage(rath_here)
        assert before[0] - after[0] == foretold["bytes"]
        assert before[1] - after[1] == foretold["blob_bytes"]
        assert rath_here("sessions", "verify", "--all").code == 0


def usage(rath_here: Rath) -> tuple[int, int]:
    """Bytes of all logs, and of all blobs, as they lie there; ``du`` says the same."""
    logs = sum(path.stat().st_size for path in directory().glob("*.jsonl"))
    blobs = sum(path.stat().st_size for path in (directory().parent / "blobs").glob("*/*"))
    said = rath_here("sessions", "du", "--json").json
    assert (sum(verdict["bytes"] for verdict in said["verdicts"].values()), said["blobs"]["bytes"]) == (logs, blobs)
    return logs, blobs


def test_du_says_what_is_shared_and_what_blobs_take(rath_here: Rath) -> None:
    chain(3)
    digest = put(WHOLE, age_s=9000)
    found = rath_here("sessions", "du", "--json").json
    assert found["shared"] == {"logs": 2, "rows": 3, "needed_logs": 2}
    assert (found["blobs"]["blobs"], found["blobs"]["bytes"]) == (1, len(WHOLE))
    said = rath_here("sessions", "du").out
    assert "logs that have rows in others: 2 (3 rows); logs that others need: 2" in said
    assert f"would free {len(WHOLE):,} bytes in 0 logs and 1 blob that no log mentions then" in said
    assert "removed 1 blob that no log mentions" in rath_here("sessions", "prune", "--older-than", "30d").out
    assert not BlobStore.of_log(directory() / "x.jsonl").path(digest).exists()


def test_the_exit_codes_are_in_the_help(rath_here: Rath) -> None:
    assert "Exit codes: 0, done; 1," in " ".join(rath_here("sessions", "--help").out.split())
