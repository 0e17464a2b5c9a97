"""``rath sessions verify``, ``salvage``, ``export``, ``prune``, ``pin``, ``unpin``, ``du`` and ``tail``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from rath.cli.app_sessions import session_ids
from rath.session.chunk import user_text_chunk
from rath.session.persistence import load_session, session_file, verify
from rath.session.persistence.format import SEAL_LENGTH, seal
from rath.session.persistence.runlog import open_run_log
from rath.session.session import Session
from tests.cli.support import CONTROL, Ran, command, environment, rath_at_a_terminal
from tests.persistence.samples import (
    appended,
    assistant,
    finished,
    rechained,
    records,
    run_until_results,
    started,
    write_sample,
)

Rath = Callable[..., Ran]


def log_of(days: float = 0, *, cut: int = 0, damage: bool = False) -> Session:
    session = Session.create("user", "go")
    path = session_file(session.id)
    write_sample(path, session)
    edited = records(path)
    edited[0]["created_at"] = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    rechained(path, edited)
    data = path.read_bytes()
    if damage:
        data = data.replace(b'"call_id":"b"', b'"call_id":"c"', 1)
    path.write_bytes(data[: len(data) - cut])
    return session


# -- verify -------------------------------------------------------------------------------------------------------------


def test_verify_exits_with_0_only_if_every_log_is_complete(rath_here: Rath) -> None:
    whole, cut = log_of(), log_of(cut=5)
    done = rath_here("sessions", "verify", str(whole.id))
    assert (done.code, done.out.split()[0]) == (0, "complete")
    done = rath_here("sessions", "verify", str(whole.id), str(session_file(cut.id)))
    assert done.code == 1
    assert "the last line was cut off" in done.out
    assert "1 complete, 1 torn" in done.out
    assert rath_here("sessions", "verify").code == 2
    assert rath_here("sessions", "verify", "--all", str(whole.id)).code == 2
    assert rath_here("sessions", "verify", "no-such").code == 2
    assert rath_here("sessions", "verify", "0000").code == 1


def test_verify_all_counts_and_names_what_is_not_complete(rath_here: Rath) -> None:
    assert rath_here("sessions", "verify", "--all").code == 0
    for _ in range(25):
        log_of()
    damaged = log_of(damage=True)
    newer = session_file(log_of().id)
    rechained(newer, [records(newer)[0] | {"schema_version": 9}])
    done = rath_here("sessions", "verify", "--all")
    assert done.code == 1
    assert done.out.count("complete") == 1
    assert str(damaged.id) in done.out
    assert "25 complete, 1 damaged, 1 unreadable" in done.out
    found = rath_here("sessions", "verify", "--all", "--json").json
    assert found["counts"] == {"complete": 25, "damaged": 1, "unreadable": 1}
    one = next(log for log in found["logs"] if log["verdict"] == "damaged")
    assert (one["id"], one["line"], one["rows"], one["records_after"]) == (str(damaged.id), 6, 2, 4)
    refused = next(log for log in found["logs"] if log["verdict"] == "unreadable")
    assert set(refused) == set(one)
    assert (refused["path"], refused["rows"]) == (str(newer), None)


def test_a_directory_that_cannot_be_listed_is_not_one_without_logs(rath_here: Rath, tmp_path: Path) -> None:
    (tmp_path / ".openrath").write_text("a file")
    for doing in ("show", "verify", "resume", "pin"):
        done = rath_here("sessions", doing, "6a1f")
        assert (done.code, done.err.partition(":")[2].strip().partition(" in ")[0]) == (1, "cannot list the logs")


def test_numbers_that_no_program_can_read_are_null_in_what_is_shown(rath_here: Rath) -> None:
    session = log_of()
    path = session_file(session.id)
    edited = records(path)
    previous, data = edited[0]["epoch"].encode(), b""
    edited[0]["lineage_extras"] = [["score", "HUGE"]]
    rechained(path, edited)
    for line in path.read_bytes().replace(b'"HUGE"', b"1e999").splitlines():
        sealed, previous = seal(line[:-SEAL_LENGTH], previous)
        data += sealed
    path.write_bytes(data)
    shown = rath_here("sessions", "show", str(session.id), "--json")
    assert json.loads(shown.out, parse_constant=pytest.fail)["lineage_extras"] == [["score", None]]


def test_verify_says_who_is_writing(rath_here: Rath) -> None:
    log = open_run_log(Session.create("user", "go"))
    done = rath_here("sessions", "verify", log.path.stem)
    log.abandon()
    assert done.code == 1
    assert f"pid {os.getpid()} is writing it" in done.out


# -- salvage and export -------------------------------------------------------------------------------------------------


def test_salvage_writes_a_whole_log_and_says_what_was_left_out(rath_here: Rath, tmp_path: Path) -> None:
    cut, damaged = log_of(cut=5), log_of(damage=True)
    done = rath_here("sessions", "salvage", str(cut.id), "out.jsonl")
    assert done.code == 0
    assert "salvaged 5 rows" in done.out
    assert verify(tmp_path / "out.jsonl").verdict == "complete"
    done = rath_here("sessions", "salvage", str(damaged.id), "two.jsonl")
    assert "4 whole records among them" in done.out
    again = rath_here("sessions", "salvage", str(damaged.id), "two.jsonl")
    assert again.code == 1
    assert "already" in again.err
    found = rath_here("sessions", "salvage", str(damaged.id), "three.jsonl", "--json").json
    assert (found["source"]["verdict"], found["result"]["verdict"]) == ("damaged", "complete")


def test_export_copies_a_log(rath_here: Rath, tmp_path: Path) -> None:
    session = log_of()
    assert "complete" in rath_here("sessions", "export", str(session.id), "out.jsonl").out
    assert (tmp_path / "out.jsonl").read_bytes() == session_file(session.id).read_bytes()
    assert rath_here("sessions", "export", str(session.id), "two.jsonl", "--json").json["rows"] == 5
    assert rath_here("sessions", "export", str(log_of(damage=True).id), "three.jsonl").code == 1


# -- what is kept -------------------------------------------------------------------------------------------------------


def test_prune_removes_old_logs_but_pinned_ones(rath_here: Rath) -> None:
    old, pinned, young, cut = log_of(9), log_of(9), log_of(), log_of(8, cut=5)
    assert rath_here("sessions", "pin", str(pinned.id)).code == 0
    dry = rath_here("sessions", "prune", "--older-than", "5d", "--dry-run", "--json").json
    assert {entry["id"] for entry in dry["removed"]} == {str(old.id), str(cut.id)}
    torn_only = rath_here("sessions", "prune", "--older-than", "5d", "--verdict", "torn")
    assert "removed 1 log" in torn_only.out
    assert not session_file(cut.id).exists()
    assert rath_here("sessions", "prune", "--older-than", "5d").code == 0
    assert not session_file(old.id).exists()
    assert session_file(young.id).exists()
    assert rath_here("sessions", "unpin", str(pinned.id), "--json").json["was_pinned"] is True
    assert "was not pinned" in rath_here("sessions", "unpin", str(pinned.id)).out
    assert "removed 1 log" in rath_here("sessions", "prune", "--older-than", "1w").out
    for wrong in (["--older-than", "soon"], ["--older-than", "5d", "--verdict", "fine"], []):
        assert rath_here("sessions", "prune", *wrong).code == 2


def test_du_sums_by_verdict_and_says_what_prune_would_free(rath_here: Rath) -> None:
    old, damaged = log_of(40), log_of(damage=True)
    sizes = {session.id: session_file(session.id).stat().st_size for session in (old, damaged)}
    found = rath_here("sessions", "du", "--json").json
    assert found["verdicts"] == {"complete": {"logs": 2, "bytes": sum(sizes.values())}}
    assert (found["prune"]["logs"], found["prune"]["bytes"]) == (1, sizes[old.id])
    assert set(rath_here("sessions", "du", "--check", "--json").json["verdicts"]) == {"complete", "damaged"}
    assert f"would free {sizes[old.id]:,} bytes in 1 log" in rath_here("sessions", "du").out
    assert "would free 0 bytes" in rath_here("sessions", "du", "--older-than", "9w").out


def test_ids_are_completed_at_the_tab_key(rath_here: Rath) -> None:
    session = log_of()
    assert session_ids(str(session.id)[:5].upper()) == [str(session.id)]
    assert session_ids("zz") == []


def test_only_ids_are_completed(rath_here: Rath) -> None:
    log = session_file(log_of().id)
    for name in ("$(reboot)", "\x1b]0;a\x07", "-rf", "my copy"):
        shutil.copy(log, log.with_name(f"{name}.jsonl"))
    assert session_ids("") == [log.stem]


def test_an_id_means_its_log_in_whatever_case_and_form(rath_here: Rath) -> None:
    log = session_file(log_of().id)
    shutil.copy(log, f"{log}.__partial__")  # of an older version, which died between writing and renaming
    assert rath_here("sessions", "verify", log.stem.upper()).code == 0
    upper = log.with_name(log.stem.upper() + ".jsonl")
    log.rename(upper)
    Path(f"{log}.__partial__").unlink()
    done = rath_here("sessions", "verify", log.stem[:8])
    assert (done.code, upper.name in done.out) == (0, True)
    assert rath_here("sessions", "verify", "-").code == 2


@pytest.mark.slow
def test_logs_that_are_deleted_meanwhile_are_not_verified(rath_here: Rath) -> None:
    log = session_file(log_of().id)
    logs = [log, *(shutil.copy(log, log.with_name(f"{uuid4()}.jsonl")) for _ in range(400))]

    def delete() -> None:
        for path in sorted(map(Path, logs), reverse=True)[:-1]:
            time.sleep(0.0005)
            path.unlink()

    deleting = threading.Thread(target=delete)
    deleting.start()
    done = rath_here("sessions", "verify", "--all", "--json")
    deleting.join()
    assert (done.code, set(done.json["counts"])) == (0, {"complete"})


def test_a_log_that_cannot_be_removed_is_exit_code_1_and_the_others_go(rath_here: Rath) -> None:
    stuck, other = log_of(days=9), log_of(days=10)
    session_file(stuck.id).with_suffix(".lock").write_text("mine")
    done = rath_here("sessions", "prune", "--older-than", "1d", "--json")
    assert (done.code, [log["id"] for log in done.json["removed"]]) == (1, [str(other.id)])
    assert [log["id"] for log in done.json["failed"]] == [str(stuck.id)]
    assert "is needed as the lock of" in done.json["failed"][0]["why"]
    assert f"error: {session_file(stuck.id).with_suffix('.lock')} is needed" in done.err


# -- tail ---------------------------------------------------------------------------------------------------------------


def test_tail_shows_the_last_rows_and_how_the_log_ended(rath_here: Rath) -> None:
    session = log_of()
    done = rath_here("sessions", "tail", str(session.id), "-n", "2")
    assert done.code == 0
    assert "[3] tool probe" in done.out
    assert "[4] assistant" in done.out
    assert "[2]" not in done.out
    assert "the log is closed" in done.out
    rows = [json.loads(line) for line in rath_here("sessions", "tail", str(session.id), "--json", "-n", "0").out.splitlines()]
    assert sorted(row["index"] for row in rows) == [0, 1, 2, 3, 4]
    assert rows[-1]["payload"]["content"] == "done"


def test_tail_of_a_log_whose_writer_is_gone_ends_and_says_so(rath_here: Rath) -> None:
    session = log_of(cut=5)
    assert rath_here("sessions", "tail", str(session.id)).code == 0
    done = rath_here("sessions", "tail", str(session.id), "-f")
    assert done.code == 1
    assert "no trailer, and nobody is writing it" in done.err


def test_tail_says_which_line_is_bad_and_goes_on(rath_here: Rath) -> None:
    session = log_of(damage=True)
    done = rath_here("sessions", "tail", str(session.id))
    assert "line 6: the record does not match its hash" in done.err
    assert "[4] assistant" in done.out


def test_tail_strips_what_a_terminal_would_obey(rath_here: Rath, tmp_path: Path) -> None:
    session = Session.create("user", "go")
    log = open_run_log(session)
    log.append_row(0, user_text_chunk("\x1b]0;title\x07\x1b[2Jhello\x9b1m"))
    log.close(usage=None, lineage_extras=(), outcome={"status": "\x1b[31m"})
    done = rath_here("sessions", "tail", str(session.id))
    assert "hello" in done.out
    assert CONTROL.search(done.out) is None


def wait_for(path: Path, text: str, limit_s: float = 20) -> str:
    deadline = time.monotonic() + limit_s
    while text not in (said := path.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline, said
        time.sleep(0.02)
    return said


@pytest.mark.slow
def test_tail_follows_another_process_through_torn_lines_and_truncation_to_the_trailer(rath_here: Rath, tmp_path: Path) -> None:
    session = Session.create("user", "go")
    log = open_run_log(session)
    run_until_results(log)
    said = tmp_path / "said.txt"
    with said.open("w") as file:
        arguments = ["sessions", "tail", "-f", str(session.id)]
        tail = subprocess.Popen(command(arguments), cwd=tmp_path, env=environment(tmp_path), stdout=file)
        try:
            wait_for(said, "[2] tool")
            with log.path.open("ab") as other:  # half a record, as a reader may find it, which is then cut off
                other.write(b'{"record_type":"chunk","se')
            time.sleep(0.3)
            os.truncate(log.path, log.path.stat().st_size - 26)
            table = [*load_session("", path=log.path).chunk_table]
            log.on_event(appended(2, table[2]))
            log.on_event(appended(3, table[3]))
            log.on_event(appended(4, assistant("c", text="more")))
            wait_for(said, "[4] assistant")
            log.on_event(started("c"))
            log.on_event(finished("c", 5, '{"ok": true, "value": "fresh"}'))
            wait_for(said, "[5] tool")
            log.close(usage=None, lineage_extras=(), outcome={"status": "completed"})
            assert tail.wait(20) == 0
        finally:
            tail.kill()
            tail.wait()
    text = said.read_text(encoding="utf-8")
    assert [text.count(f"[{index}] ") for index in range(6)] == [1] * 6
    assert "the log is closed, completed" in text


@pytest.mark.slow
def test_at_a_terminal_verify_shows_its_progress(rath_here: Rath, tmp_path: Path) -> None:
    for _ in range(3):
        log_of()
    code, said = rath_at_a_terminal(tmp_path, "sessions", "verify", "--all")
    assert code == 0
    assert "verifying" in said
    assert "3 complete" in said
